//! Bad input: the behaviour that the table of faults promises, as a user meets it.

use crate::support::Workplace;
use std::fs;
use std::process::Command;

/// Runs the config; it must end with `code`, say `text`, and leave no model.
#[track_caller]
fn refused(workplace: &Workplace, code: i32, text: &str) {
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(code).expect_stderr(text);
    assert!(!workplace.path("out/final_model").exists());
}

/// The data file with its fifth row replaced.
fn with_row(row: &str) -> Workplace {
    let workplace = Workplace::new();
    let data = workplace.read("data.jsonl");
    let mut rows: Vec<&str> = data.lines().collect();
    rows[4] = row;
    workplace.write("data.jsonl", &rows.join("\n"));
    workplace
}

#[test]
fn fault_014_output_folders_that_would_lose_something() {
    let workplace = Workplace::new();
    workplace.edit_config("output_dir: out", "output_dir: model");
    refused(&workplace, 1, "output_dir");
    workplace.edit_config("output_dir: model", "output_dir: model/tuned");
    refused(&workplace, 1, "output_dir");
    workplace.edit_config("output_dir: model/tuned", "output_dir: out");
    workplace.write("out/thesis.txt", "mine");
    refused(&workplace, 1, "not empty");
    assert_eq!(workplace.read("out/thesis.txt"), "mine");
}

#[test]
fn a_finished_run_is_not_overwritten() {
    let workplace = Workplace::new();
    workplace.run();
    let adapter = workplace.adapter("out");
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(1)
        .expect_stderr("not empty")
        .expect_stderr("--resume");
    assert!(workplace.adapter("out") == adapter);
}

#[test]
fn fault_017_a_bad_line_is_named_before_step_one() {
    refused(&with_row("{\"messages\": [}"), 1, "data.jsonl:5");
    let workplace = with_row("{\"messages\": [}");
    workplace.edit_config("  dataset_name", "  on_bad_row: skip\n  dataset_name");
    refused(&workplace, 1, "data.jsonl:5"); // one of 24 is more than the cap of 1 %
}

#[test]
fn fault_018_empty_files() {
    for text in ["", "\n\n  \n"] {
        let workplace = Workplace::new();
        workplace.write("data.jsonl", text);
        refused(&workplace, 1, "data.jsonl");
    }
}

#[test]
fn fault_021_conversations_that_cannot_be_trained_on() {
    for (row, said) in [
        (r#"{"messages": []}"#, "messages"),
        (r#"{"messages": [{"role": "user", "content": null}]}"#, "content"),
        (r#"{"messages": [{"role": "wizard", "content": "x"}]}"#, "wizard"),
        (r#"{"messages": [{"role": "user", "content": "x"}]}"#, "assistant"),
    ] {
        let workplace = with_row(row);
        refused(&workplace, 1, "data.jsonl:5");
        refused(&workplace, 1, said);
    }
}

#[test]
fn fault_028_one_row_trains_without_validation() {
    let workplace = Workplace::new();
    workplace.write("data.jsonl", &crate::support::conversation(1));
    workplace.run().expect_stderr("validation");
}

#[test]
fn fault_035_a_fifo_is_refused_without_blocking() {
    let workplace = Workplace::new();
    fs::remove_file(workplace.path("data.jsonl")).unwrap();
    let made = Command::new("mkfifo").arg(workplace.path("data.jsonl")).status().unwrap();
    assert!(made.success());
    refused(&workplace, 1, "data.jsonl");
}

#[test]
fn fault_037_041_043_044_046_051_model_files() {
    let truncate = |workplace: &Workplace| {
        let path = workplace.path("model/model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    };
    let poison = |workplace: &Workplace| {
        let path = workplace.path("model/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
    };
    let pointer = |workplace: &Workplace| {
        let text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        workplace.write("model/model.safetensors", text);
    };
    let heads = |workplace: &Workplace| {
        let config = workplace.read("model/config.json");
        workplace.write(
            "model/config.json",
            &config.replace("\"hidden_size\": 64", "\"hidden_size\": 80"),
        );
    };
    let pickle = |workplace: &Workplace| {
        fs::rename(
            workplace.path("model/model.safetensors"),
            workplace.path("model/pytorch_model.bin"),
        )
        .unwrap();
    };
    let other = |workplace: &Workplace| {
        let config = workplace.read("model/config.json");
        workplace.write("model/config.json", &config.replace("\"llama\"", "\"mamba\""));
    };
    type Breaking<'a> = &'a dyn Fn(&Workplace);
    let cases: [(Breaking<'_>, i32, &str); 6] = [
        (&truncate, 6, "model.safetensors"),
        (&poison, 6, "NaN"),
        (&pointer, 1, "pointer"),
        (&heads, 1, "80"),
        (&pickle, 1, "pytorch_model.bin"),
        (&other, 1, "mamba"),
    ];
    for (break_it, code, said) in cases {
        let workplace = Workplace::new();
        break_it(&workplace);
        refused(&workplace, code, said);
    }
}

#[test]
fn fault_059_a_model_without_a_template_trains_on_tags_and_says_so() {
    let workplace = Workplace::new();
    fs::remove_file(workplace.path("model/chat_template.jinja")).unwrap();
    workplace.run().expect_stderr("the tags [USER] and [ASSISTANT]");
}

#[test]
fn fault_055_an_endless_template_is_stopped() {
    let workplace = Workplace::new();
    let endless =
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    workplace.write("model/chat_template.jinja", endless);
    refused(&workplace, 1, "template");
}

#[test]
fn fault_097_a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let workplace = Workplace::new();
    workplace.forgelm(&["keygen", "--out", "keys/run.key"]).expect_code(0);
    workplace.forgelm(&["keygen", "--out", "keys/run.key"]).expect_code(1);
    let key = workplace.path("keys/run.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    workplace.edit_config("data:\n", "signing:\n  key_file: keys/run.key\ndata:\n");
    refused(&workplace, 1, "0600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    workplace.run();
    workplace.forgelm(&["verify-bundle", "out", "--key", "keys/run.key.pub"]).expect_code(0);
}

#[test]
fn fault_012_a_variable_that_is_not_set_is_named_before_the_start() {
    let workplace = Workplace::new();
    workplace.edit_config("data:\n", "signing:\n  key_env: RUN_SIGNING_KEY\ndata:\n");
    refused(&workplace, 1, "`RUN_SIGNING_KEY`");
    workplace.forgelm(&["keygen", "--out", "run.key"]).expect_code(0);
    let key = workplace.read("run.key");
    let run = |value: &str| {
        let mut command = workplace.command(&["--config", "run.yaml"]);
        command.env("RUN_SIGNING_KEY", value).output().unwrap()
    };
    assert_eq!(run("").status.code(), Some(1), "empty is not set");
    assert_eq!(run(&key).status.code(), Some(0));
    workplace.forgelm(&["verify-bundle", "out", "--key", "run.key.pub"]).expect_code(0);
}

/// The tiny model with a file for each tensor.
fn one_file_a_tensor(workplace: &Workplace) -> usize {
    let bytes = fs::read(workplace.path("model/model.safetensors")).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap();
    let mut places = serde_json::Map::new();
    for (i, (name, tensor)) in header.iter().filter(|(name, _)| *name != "__metadata__").enumerate()
    {
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let (from, to) = (offset(0), offset(1));
        let mut own = tensor.clone();
        own["data_offsets"] = serde_json::json!([0, to - from]);
        let mut head = serde_json::json!({name: own}).to_string();
        while !head.len().is_multiple_of(8) {
            head.push(' ');
        }
        let file = format!("part-{i}.safetensors");
        let parts = [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), &data[from..to]];
        fs::write(workplace.path("model").join(&file), parts.concat()).unwrap();
        places.insert(name.clone(), file.into());
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": places});
    workplace.write("model/model.safetensors.index.json", &index.to_string());
    fs::remove_file(workplace.path("model/model.safetensors")).unwrap();
    places.len()
}

#[test]
fn fault_087_a_model_in_many_files_holds_none_of_them_open() {
    let whole = Workplace::new();
    whole.run();
    let workplace = Workplace::new();
    let n_files = one_file_a_tensor(&workplace);
    assert!(n_files > 20);
    // Fewer files at once than the model has.
    let forgelm = env!("CARGO_BIN_EXE_forgelm");
    let script = format!("ulimit -n 16; exec {forgelm} --config run.yaml");
    let mut command = workplace.command(&[]);
    let (program, envs) = (command.get_program().to_owned(), command.get_envs());
    assert!(program == forgelm);
    let envs: Vec<_> = envs.filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    command = std::process::Command::new("sh");
    command.args(["-c", &script]).env_clear().envs(envs).current_dir(workplace.path(""));
    let ran: crate::support::Ran = command.output().unwrap().into();
    ran.expect_code(0);
    assert!(workplace.adapter("out") == whole.adapter("out"));
}
