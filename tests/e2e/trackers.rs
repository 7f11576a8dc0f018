//! `training.report_to`: the numbers of a run where other tools read them.

use crate::receiver::{Answers, Receiver};
use crate::support::{Ran, Workplace};
use crate::tracker_files::{fields, number, wandb_items, wandb_records};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A workplace with this tracker.
fn workplace(tracker: &str) -> Workplace {
    let workplace = Workplace::new();
    let to = format!("report_to: {tracker}\n  logging_steps: 1");
    workplace.edit_config("report_to: none", &to);
    workplace
}

/// The event files below a folder, in the order in which TensorBoard reads them.
fn event_files(dir: PathBuf) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What a reader of event files has in the end: each tag's values by step, each step once. Panics where a
/// step comes twice.
fn scalars(files: &[PathBuf]) -> BTreeMap<String, BTreeMap<u64, f32>> {
    let mut found: BTreeMap<String, BTreeMap<u64, f32>> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        let mut rest = &bytes[..];
        let mut n_events = 0;
        while !rest.is_empty() {
            let length = number(&rest[..8]) as usize;
            // A process that was killed in the middle of a record leaves a part of it.
            let Some(event) = rest.get(12..12 + length) else { break };
            rest = rest.get(12 + length + 4..).unwrap_or_default();
            let event: BTreeMap<u64, Vec<u8>> = fields(event).into_iter().collect();
            let step = event.get(&2).map_or(0, |step| number(step));
            if n_events == 0 {
                assert_eq!(event[&3], b"brain.Event:2", "{}", file.display());
            }
            if event.contains_key(&7) {
                assert!(i > 0, "only what goes on begins anew");
                found.values_mut().for_each(|of| of.retain(|known, _| *known < step));
            }
            for (_, value) in fields(event.get(&5).map_or(&[], Vec::as_slice)) {
                let value: BTreeMap<u64, Vec<u8>> = fields(&value).into_iter().collect();
                let tag = String::from_utf8(value[&1].clone()).unwrap();
                let number = f32::from_le_bytes(value[&2][..].try_into().unwrap());
                let is_new = found.entry(tag.clone()).or_default().insert(step, number).is_none();
                assert!(is_new || tag == "train/epoch", "{tag} of step {step} comes twice");
            }
            n_events += 1;
        }
    }
    found
}

#[test]
fn tensorboard_gets_the_numbers_of_metrics_jsonl_under_the_usual_names() {
    let workplace = workplace("tensorboard");
    let dry = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(dry.stdout.contains("out/runs/"), "{}", dry.stdout);
    workplace.run();
    let files = event_files(workplace.path("out/runs/model_finetune"));
    assert_eq!(files.len(), 1);
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("events.out.tfevents.1") && name.contains(".fg-"), "{name}");
    let found = scalars(&files);
    for (key, tag) in [
        ("loss", "train/loss"),
        ("learning_rate", "train/learning_rate"),
        ("grad_norm", "train/grad_norm"),
        ("eval_loss", "eval/loss"),
    ] {
        let lines = workplace.json_lines("out/metrics.jsonl");
        let expected: BTreeMap<u64, u32> = lines
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line.get(key)?.as_f64()? as f32)))
            .map(|(step, value)| (step, value.to_bits()))
            .collect();
        let found: BTreeMap<u64, u32> =
            found[tag].iter().map(|(step, value)| (*step, value.to_bits())).collect();
        assert_eq!(found, expected, "{tag}");
    }
    assert!(found.contains_key("train/train_runtime") && found.contains_key("train/total_flos"));
    // A copy is no evidence: it may go, and the run verifies.
    fs::remove_dir_all(workplace.path("out/runs")).unwrap();
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

#[test]
fn what_is_not_written_means_tensorboard_and_none_writes_nothing() {
    let unwritten = Workplace::new();
    unwritten.edit_config("  report_to: none\n", "  run_name: ../a name\n");
    unwritten.run();
    assert_eq!(event_files(unwritten.path("out/runs/.._a name")).len(), 1);
    let none = Workplace::new();
    none.run();
    assert!(!none.path("out/runs").exists());
    // Where numbers go decides no bit of the weights.
    assert_eq!(unwritten.adapter("out"), none.adapter("out"));
}

#[test]
fn a_run_that_was_killed_goes_on_without_a_step_twice() {
    let workplace = workplace("tensorboard");
    workplace.edit_config("max_steps: 12", "max_steps: 60");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    while !workplace.path("out/checkpoint-20").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // From an earlier one, so that the killed process has told more than is kept.
    let kept = fs::read_dir(workplace.path("out")).unwrap().filter_map(|entry| {
        entry.unwrap().file_name().to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok()
    });
    let oldest = format!("out/checkpoint-{}", kept.min().unwrap());
    workplace.forgelm(&["--config", "run.yaml", "--resume", &oldest]).expect_code(0);
    let files = event_files(workplace.path("out/runs/model_finetune"));
    assert_eq!(files.len(), 2);
    let found = scalars(&files);
    assert_eq!(
        found["train/loss"].keys().copied().collect::<Vec<_>>(),
        (1..=60).collect::<Vec<_>>()
    );
    let lines = workplace.json_lines("out/metrics.jsonl");
    let n_evaluations = lines.iter().filter(|line| line.get("eval_loss").is_some()).count();
    assert_eq!(found["eval/loss"].len(), n_evaluations);
}

#[test]
fn a_tracker_that_cannot_be_written_is_told_once_and_ends_nothing() {
    let workplace = workplace("tensorboard");
    let mut child = workplace.start(&["--config", "run.yaml"]);
    child.wait().unwrap();
    // Continued where a file stands in the place of the folder.
    fs::remove_dir_all(workplace.path("out/runs")).unwrap();
    fs::remove_dir_all(workplace.path("out/checkpoint-12")).unwrap();
    fs::remove_dir_all(workplace.path("out/final_model")).unwrap();
    workplace.write("out/runs", "in the way");
    let ran = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert_eq!(ran.stderr.matches("tensorboard: nothing is written").count(), 1, "{}", ran.stderr);
    assert_eq!(workplace.read("out/runs"), "in the way");
}

/// What an MLflow server answers.
fn mlflow(first_line: &str) -> &'static str {
    let of = |part: &str| first_line.contains(part);
    if of("experiments/get-by-name") {
        r#"{"experiment": {"experiment_id": "7"}}"#
    } else if of("runs/create") {
        r#"{"run": {"info": {"run_id": "abc123"}}}"#
    } else {
        "{}"
    }
}

const RUN: [&str; 2] = ["--config", "run.yaml"];

#[test]
fn mlflow_gets_the_run_from_its_first_step_to_its_end() {
    let receiver = Receiver::start(Answers::Body(mlflow));
    let workplace = workplace("mlflow");
    let dry = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(
        dry.stdout.contains("the address in `MLFLOW_TRACKING_URI`, for metrics"),
        "{}",
        dry.stdout
    );
    let start = |args: &[&str]| {
        let mut command = workplace.command(args);
        command
            .env("MLFLOW_TRACKING_URI", receiver.url("/hidden-path"))
            .env("MLFLOW_EXPERIMENT_NAME", "my runs")
            .env("MLFLOW_TRACKING_USERNAME", "jane")
            .env("MLFLOW_TRACKING_PASSWORD", "hidden-password");
        Ran::from(command.output().unwrap())
    };
    start(&RUN)
        .expect_code(0)
        .expect_stderr("mlflow http://127.0.0.1: experiment `my runs`, run abc123");
    let received = receiver.received();
    let paths: Vec<&str> = received
        .iter()
        .map(|request| request.head.split(' ').nth(1).unwrap().rsplit("mlflow/").next().unwrap())
        .collect();
    assert_eq!(
        paths[..3],
        ["experiments/get-by-name?experiment_name=my%20runs", "runs/create", "runs/log-batch"]
    );
    assert_eq!(paths.last(), Some(&"runs/update"));
    for request in &received {
        assert_eq!(request.header("Authorization"), Some("Basic amFuZTpoaWRkZW4tcGFzc3dvcmQ="));
    }
    let created = received[1].json();
    assert_eq!(
        (&created["experiment_id"], &created["run_name"]),
        (&"7".into(), &"model_finetune".into())
    );
    let params = received[2].json();
    let has = |key: &str, value: &str| {
        let pairs = params["params"].as_array().unwrap();
        pairs.iter().any(|pair| pair["key"] == key && pair["value"] == value)
    };
    assert!(has("lora.r", "4") && has("training.learning_rate", "0.005"), "{params}");
    // Every loss of every step, as metrics.jsonl has it.
    let metrics: Vec<serde_json::Value> = received[3..]
        .iter()
        .flat_map(|request| request.json()["metrics"].as_array().cloned().unwrap_or_default())
        .collect();
    for key in ["loss", "eval_loss"] {
        let lines = workplace.json_lines("out/metrics.jsonl");
        let expected: BTreeMap<u64, u64> = lines
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line.get(key)?.as_f64()?.to_bits())))
            .collect();
        let found: BTreeMap<u64, u64> = metrics
            .iter()
            .filter(|metric| metric["key"] == key)
            .map(|of| (of["step"].as_u64().unwrap(), of["value"].as_f64().unwrap().to_bits()))
            .collect();
        assert_eq!(found, expected, "{key}");
    }
    let end = received.last().unwrap().json();
    assert_eq!((&end["run_id"], &end["status"]), (&"abc123".into(), &"FINISHED".into()));
    // Made again it tells nobody: there is no address.
    let key = ["--key", "out/compliance/signing_key.pub"];
    workplace.forgelm(&["reproduce", "out", "--output", "again", key[0], key[1]]).expect_code(0);
    assert!(!workplace.path("again/runs").exists());
    // Continued, it is the same run there.
    fs::remove_dir_all(workplace.path("out/checkpoint-12")).unwrap();
    fs::remove_dir_all(workplace.path("out/final_model")).unwrap();
    let ran = start(&["--config", "run.yaml", "--resume"]).expect_code(0);
    let more = receiver.received().split_off(received.len());
    let first = more[0].json();
    assert_eq!((&first["run_id"], &first["status"]), (&"abc123".into(), &"RUNNING".into()));
    assert!(!more.iter().any(|request| request.head.contains("runs/create")));
    for text in [&ran.stderr, &ran.stdout, &workplace.read("out/audit_log.jsonl")] {
        assert!(!text.contains("hidden"), "{text}");
    }
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

#[test]
fn mlflow_needs_an_address_before_anything_starts() {
    let workplace = workplace("mlflow");
    let told =
        "`training.report_to` is `mlflow`, and the variable `MLFLOW_TRACKING_URI` is not set";
    workplace.forgelm(&RUN).expect_code(1).expect_stderr(told);
    for (address, told) in [
        ("sqlite:///hidden.db", "the variable `MLFLOW_TRACKING_URI`"),
        ("databricks", "is not an address; expected `https://HOST/PATH`"),
        ("ftp://h/hidden", "has another scheme"),
    ] {
        let mut command = workplace.command(&RUN);
        command.env("MLFLOW_TRACKING_URI", address);
        let ran = Ran::from(command.output().unwrap()).expect_code(1).expect_stderr(told);
        assert!(!ran.stderr.contains("hidden"), "{}", ran.stderr);
    }
    assert!(!workplace.path("out").exists());
}

#[test]
fn an_mlflow_server_that_is_away_is_told_once_and_ends_nothing() {
    let workplace = workplace("mlflow");
    let refused = Receiver::start(Answers::Status(403));
    let run = |out: &str, address: &str, offline: bool| {
        workplace.edit_config("output_dir: out", &format!("output_dir: {out}"));
        let args = if offline { vec!["--config", "run.yaml", "--offline"] } else { RUN.to_vec() };
        let mut command = workplace.command(&args);
        command.env("MLFLOW_TRACKING_URI", address);
        let ran = Ran::from(command.output().unwrap()).expect_code(0);
        workplace.edit_config(&format!("output_dir: {out}"), "output_dir: out");
        ran
    };
    let ran = run("first", &refused.url(""), false);
    assert_eq!(ran.stderr.matches("warning: mlflow").count(), 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("there is no run on the server: status 403"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("numbers did not arrive; metrics.jsonl has them"),
        "{}",
        ran.stderr
    );
    // Offline nothing outside is asked, and the operator's own network may be.
    let ran = run("second", "https://198.51.100.7", true);
    assert!(ran.stderr.contains("198.51.100.7 is an address for documentation"), "{}", ran.stderr);
    let inside = Receiver::start(Answers::Body(mlflow));
    let ran = run("third", &inside.url(""), true);
    assert!(!ran.stderr.contains("warning: mlflow"), "{}", ran.stderr);
}

/// The offline runs of a run's folder, in the order in which they were made.
fn offline_runs(workplace: &Workplace) -> Vec<(String, Vec<u8>)> {
    let dirs = event_files(workplace.path("out/wandb"));
    let of = |dir: &PathBuf| {
        let name = dir.file_name().unwrap().to_str().unwrap();
        let id = name.strip_prefix("offline-run-").unwrap().split_once('-').unwrap().1;
        (id.to_owned(), fs::read(dir.join(format!("run-{id}.wandb"))).unwrap())
    };
    dirs.iter().map(of).collect()
}

#[test]
fn wandb_gets_an_offline_run_with_the_numbers_of_metrics_jsonl_and_nobody_is_contacted() {
    let workplace = workplace("wandb");
    let dry = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(dry.stdout.contains("out/wandb/"), "{}", dry.stdout);
    let mut command = workplace.command(&RUN);
    command
        .env("WANDB_PROJECT", "my project")
        .env("WANDB_RUN_GROUP", "all of them")
        .env("WANDB_API_KEY", "hidden");
    Ran::from(command.output().unwrap())
        .expect_code(0)
        .expect_stderr("wandb: an offline run; `wandb sync out/wandb/offline-run-2");
    let runs = offline_runs(&workplace);
    assert_eq!(runs.len(), 1);
    let (id, file) = &runs[0];
    assert!(id.starts_with("fg-"), "{id}");
    let records = wandb_records(file);
    // Header, run, and at the end the exit code, which is 0.
    assert_eq!((records[0].0, records[1].0), (21, 17));
    assert_eq!(records.last(), Some(&(18, Vec::new())));
    let run: BTreeMap<u64, Vec<u8>> = fields(&records[1].1).into_iter().collect();
    let text = |field: u64| String::from_utf8(run[&field].clone()).unwrap();
    assert_eq!((&text(1), text(3)), (id, "my project".to_owned()));
    assert_eq!((text(8), text(6)), ("model_finetune".to_owned(), "all of them".to_owned()));
    assert_eq!(run.get(&2), None);
    let config: BTreeMap<_, _> = wandb_items(&run[&4], 1).into_iter().collect();
    assert_eq!(config["lora"]["r"], 4);
    // A step has one row, and steps rise; every number is that of metrics.jsonl.
    let rows: Vec<BTreeMap<String, serde_json::Value>> = records
        .iter()
        .filter(|(field, _)| *field == 2)
        .map(|(_, row)| wandb_items(row, 2).into_iter().collect())
        .collect();
    let steps: Vec<u64> = rows.iter().map(|row| row["_step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (steps[0]..=12).collect::<Vec<_>>());
    for (key, tag) in [("loss", "train/loss"), ("eval_loss", "eval/loss")] {
        let lines = workplace.json_lines("out/metrics.jsonl");
        let bits = |value: &serde_json::Value| Some(value.as_f64()?.to_bits());
        let expected: BTreeMap<u64, u64> = lines
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, bits(line.get(key)?)?)))
            .collect();
        let found: BTreeMap<u64, u64> = rows
            .iter()
            .filter_map(|row| Some((row["_step"].as_u64()?, bits(row.get(tag)?)?)))
            .collect();
        assert_eq!(found, expected, "{tag}");
    }
    assert!(rows.last().unwrap().contains_key("train/train_runtime"));
    assert!(!file.windows(6).any(|bytes| bytes == b"hidden"));
    // A copy is no evidence: it may go, and the run verifies.
    fs::remove_dir_all(workplace.path("out/wandb")).unwrap();
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
}

#[test]
fn a_run_that_goes_on_is_an_offline_run_of_its_own() {
    let workplace = workplace("wandb");
    workplace.edit_config("max_steps: 12", "max_steps: 60");
    let mut child = workplace.start(&RUN);
    while !workplace.path("out/checkpoint-20").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    let runs = offline_runs(&workplace);
    assert_eq!(runs.len(), 2);
    let about = |file: &[u8]| -> BTreeMap<u64, Vec<u8>> {
        fields(&wandb_records(file)[1].1).into_iter().collect()
    };
    let (first, second) = (about(&runs[0].1), about(&runs[1].1));
    assert_eq!(first[&8], second[&8], "the name");
    assert_ne!(first[&1], second[&1], "what was sent of the first one stays");
    // Folders made in the same second have no order. What was killed has no end.
    let has_end = |file: &[u8]| wandb_records(file).iter().any(|(field, _)| *field == 18);
    assert_eq!(runs.iter().filter(|(_, file)| has_end(file)).count(), 1);
}
