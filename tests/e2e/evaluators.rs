//! Evaluators: judged by the bundled one, by one in Rust that knows the SDK alone and by ones in C,
//! in the program and in a process of their own; and what becomes of a run whose evaluator fails.

use crate::plugins::compile;
use crate::support::{Ran, Workplace, data_dir};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// A workplace whose run is judged as this section says.
fn judged_by(section: &str) -> Workplace {
    let workplace = Workplace::new();
    workplace.write("run.yaml", &(workplace.read("run.yaml") + section));
    workplace
}

/// A workplace whose run is judged by `judge.c`, in a process of its own.
fn judged_by_c(evaluate: &str) -> Workplace {
    let workplace = judged_by(
        "plugins: {paths: [judge.so], deadline_seconds: 1, evaluators: [{name: judge}]}\n",
    );
    let flag = format!("-DEVALUATE={evaluate}");
    compile(&workplace, "loader/tests/plugins/judge.c", "judge", &[&flag]);
    workplace
}

/// The library of `ffi/example_plugin`, as cargo built it.
pub fn example_plugin() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join("libforgelm_example_plugin.so")
}

fn document(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap()
}

/// What the i-th evaluator of the run found, with its name and options.
fn found(workplace: &Workplace, i: usize) -> Value {
    document(workplace)["evaluation_results"]["evaluators"][i].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A run that hardly moves the model, over the conversations of TRL's golden batch: the held-out
/// loss is the loss of the model that TRL measured, and what the run itself calls its validation
/// loss.
#[test]
fn held_out_loss_is_the_validation_loss_of_the_run_and_that_of_trl() {
    let path = data_dir().join("golden/misc/sft_loss.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let golden = &golden["assistant_only"];
    let workplace = judged_by("plugins: {evaluators: [{name: held_out_loss}]}\n");
    let rows = golden["data"].as_array().unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    workplace.write("data/validation.jsonl", &(lines.join("\n") + "\n"));
    workplace.write("data/train.jsonl", &workplace.read("data.jsonl"));
    workplace.edit_config("data.jsonl", "data");
    workplace.edit_config("max_steps: 12", "max_steps: 2");
    workplace.edit_config("learning_rate: 5e-3", "learning_rate: 1e-12");
    let ran = workplace.run();
    let found = found(&workplace, 0);
    assert_eq!((&found["name"], &found["options"]), (&json!("held_out_loss"), &json!({})));
    let report = &found["report"];
    let (loss, expected) = (number(&report["loss"]), number(&golden["loss"]));
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss} is not TRL's {expected}");
    assert!((number(&report["perplexity"]) - loss.exp()).abs() < 1e-9, "{report}");
    assert_eq!(report["n_records"], 2);
    assert_eq!(report["data"], "validation split");

    let metrics = document(&workplace)["evaluation_results"]["metrics"].clone();
    assert_eq!(metrics["held_out_loss/loss"], report["loss"]);
    let own = number(&metrics["eval_loss"]);
    assert!((loss - own).abs() < 1e-9, "{loss} is not the run's own {own}");
    let lines = workplace.json_lines("out/metrics.jsonl");
    let told = lines.last().unwrap();
    assert_eq!((&told["evaluator"], &told["step"]), (&json!("held_out_loss"), &json!(2)));
    assert_eq!(told["held_out_loss/n_tokens"], number(&report["n_tokens"]));
    ran.expect_stderr(&format!("held_out_loss: loss {loss:.4}, n_tokens "));

    let used = document(&workplace)["plugins"][1].clone();
    assert_eq!((&used["kind"], &used["name"]), (&json!("evaluator"), &json!("held_out_loss")));
    assert_eq!(used["library"], "forgelm_plugin_evaluator");
    assert_eq!(used["isolation"], "in_process");
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);

    let events = workplace.json_lines("out/audit_log.jsonl");
    let of_evaluators: Vec<&Value> =
        events.iter().filter(|event| event["event"] == "evaluation.evaluator_completed").collect();
    let [event] = of_evaluators[..] else { panic!("{of_evaluators:?}") };
    assert_eq!((&event["evaluator"], &event["label"]), (&found["name"], &found["label"]));
    assert_eq!((&event["library"], &event["library_sha256"]), (&used["library"], &used["sha256"]));
    let numbers = report.as_object().unwrap().iter().filter(|(_, value)| value.is_number());
    let numbers: BTreeMap<_, _> = numbers.map(|(key, value)| (key, number(value))).collect();
    let scores = event["scores"].as_object().unwrap().iter();
    let scores: BTreeMap<_, _> = scores.map(|(key, value)| (key, number(value))).collect();
    assert_eq!(scores, numbers);
    assert!(numbers.len() > 3, "{event}");
}

/// Texts of a file are scored as `forgelm score` scores them under the tuned model. The same
/// evaluator twice has two labels.
#[test]
fn held_out_loss_of_a_file_is_what_score_says_and_changes_no_weight() {
    let plain = Workplace::new();
    plain.run();
    let files = "plugins: {evaluators: [{name: held_out_loss, options: [file=texts.jsonl]}, \
                 {name: held_out_loss, options: [file=pairs.jsonl]}]}\n";
    let workplace = judged_by(files);
    let texts = ["Item 3 is a red bird.", "What is item 30?", "A stone is not a river."];
    let lines = texts.map(|text| json!({"text": text}).to_string());
    workplace.write("texts.jsonl", &lines.join("\n"));
    let pairs = texts.map(|text| json!({"prompt": &text[..8], "completion": &text[8..]}));
    workplace.write("pairs.jsonl", &pairs.map(|pair| pair.to_string()).join("\n"));
    workplace.run();
    assert!(plain.adapter("out") == workplace.adapter("out"), "other bytes");

    let args = ["score", "--model", "out/final_model", "--input", "texts.jsonl", "--output"];
    let more = ["scored.jsonl", "--compute-dtype", "float32"];
    workplace.forgelm(&[&args[..], &more].concat()).expect_code(0);
    let scored = workplace.json_lines("scored.jsonl");
    let sum: f64 = scored.iter().map(|row| number(&row["sum_logprob"])).sum();
    let n_tokens: f64 = scored.iter().map(|row| number(&row["n_scored"])).sum();
    let whole = found(&workplace, 0)["report"].clone();
    let loss = number(&whole["loss"]);
    assert!((loss + sum / n_tokens).abs() < 1e-12, "{loss} is not {}", -sum / n_tokens);
    assert!((number(&whole["n_tokens"]) - n_tokens).abs() < 0.5);
    let digest = Command::new("sha256sum").arg(workplace.path("texts.jsonl")).output().unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    assert_eq!(whole["data"], json!({"file": "texts.jsonl", "sha256": digest[..64]}));

    let second = found(&workplace, 1);
    assert_eq!(second["label"], "held_out_loss_2");
    assert_eq!(second["options"], json!({"file": "pairs.jsonl"}));
    let n_completion = number(&second["report"]["n_tokens"]);
    assert!(0.0 < n_completion && n_completion < n_tokens, "{n_completion} of {n_tokens}");
    let metrics = document(&workplace)["evaluation_results"]["metrics"].clone();
    assert_eq!(metrics["held_out_loss_2/loss"], second["report"]["loss"]);
}

/// Rust against the SDK alone, built for itself: in a process of its own, and in the program.
#[test]
fn a_third_partys_evaluator_in_rust_judges_a_run_and_the_evidence_says_so() {
    let judged = |isolation: &str| {
        let workplace = judged_by(&format!(
            "plugins: {{paths: [truths.so], isolation: {isolation}, evaluators: [{{name: truths}}]}}\n"
        ));
        std::fs::copy(example_plugin(), workplace.path("truths.so")).unwrap();
        let ran = workplace.run();
        assert!(ran.stderr.contains("plugin truths: "), "{}", ran.stderr);
        assert!(ran.stderr.contains("truths: n_right "), "{}", ran.stderr);
        workplace
    };
    let apart = judged("auto");
    let report = found(&apart, 0)["report"].clone();
    assert_eq!(report["n_questions"], 3);
    assert!(number(&report["n_right"]) <= 3.0);
    assert!(report["answer"].is_string(), "{report}");
    let used = document(&apart)["plugins"][1].clone();
    assert_eq!((&used["kind"], &used["name"]), (&json!("evaluator"), &json!("truths")));
    assert_eq!((&used["path"], &used["isolation"]), (&json!("truths.so"), &json!("process")));
    let digest = Command::new("sha256sum").arg(apart.path("truths.so")).output().unwrap();
    assert_eq!(used["sha256"].as_str().unwrap(), &String::from_utf8(digest.stdout).unwrap()[..64]);
    apart.forgelm(&["verify-bundle", "out"]).expect_code(0);

    let whole = judged("in_process");
    assert_eq!(document(&whole)["plugins"][1]["isolation"], "in_process");
    assert_eq!(found(&whole, 0)["report"], report);
    assert!(apart.adapter("out") == whole.adapter("out"), "other bytes");
}

/// Every service from C, with what each refuses: the status of an invalid argument is 3.
#[test]
fn every_service_says_the_same_in_the_program_and_in_a_process_of_its_own() {
    let judged = |isolation: &str, threads: &str| {
        let workplace = judged_by_c("asks_everything");
        workplace.edit_config("paths:", &format!("isolation: {isolation}, paths:"));
        workplace.edit_config("threads: 1", threads);
        workplace.run();
        found(&workplace, 0)["report"].clone()
    };
    let apart = judged("process", "threads: 1");
    assert_eq!(apart["refusals"], json!([3, 3, 3, 3]));
    assert_eq!(apart["refused"], 1);
    assert!(number(&apart["logp_sum"]) < 0.0 && number(&apart["record_sum"]) < 0.0, "{apart}");
    assert!(number(&apart["n_tokens"]) >= 1.0 && number(&apart["record_tokens"]) >= 1.0, "{apart}");
    assert_eq!(judged("in_process", "threads: 2"), apart);
}

/// The header gives services to the thread that `evaluate` was called on: another one is refused, with
/// the status of an argument, and there are no records for it.
#[test]
fn a_service_that_is_asked_on_another_thread_refuses_in_the_program_and_in_a_process() {
    for isolation in ["in_process", "process"] {
        let workplace = judged_by_c("asks_on_a_thread");
        workplace.edit_config("paths:", &format!("isolation: {isolation}, paths:"));
        workplace.run();
        let expected = json!({"other": [3, 3, 3, 3, 0], "here": [0, 0, 0, 0], "is_told": true});
        assert_eq!(found(&workplace, 0)["report"], expected, "{isolation}");
    }
}

#[test]
fn an_evaluator_that_cannot_be_used_is_refused_before_anything_starts() {
    let refused = |section: &str, expected: &str| {
        let workplace = judged_by(section);
        workplace.write("held.jsonl", "{\"text\": \"fine\"}\n{\"text\": 3}\n");
        let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(1);
        assert!(ran.stderr.contains(expected), "no `{expected}` in:\n{}", ran.stderr);
        assert!(!workplace.path("out").exists(), "{section}: something was written");
    };
    let plugins = |evaluator: &str| format!("plugins: {{evaluators: [{evaluator}]}}\n");
    refused(
        &plugins("{name: perplexity}"),
        "no evaluator plugin is named `perplexity`; loaded: held_out_loss",
    );
    refused(
        &plugins("{name: held_out_loss}, {name: held_out_loss, options: [file]}"),
        "`plugins.evaluators`: `file`; expected `key=value`",
    );
    refused(
        &plugins("{name: held_out_loss, options: [texts=held.jsonl]}"),
        "`texts` is not an option of `held_out_loss`; expected one of: file",
    );
    refused(
        &plugins("{name: held_out_loss, options: [file=held.jsonl]}"),
        "held.jsonl:2: `text` is 3; expected a text",
    );
    refused(&plugins("{name: held_out_loss, options: [file=none.jsonl]}"), "none.jsonl: ");
    refused(&plugins("{options: [a=b]}"), "`plugins.evaluators[0].name`");
}

/// However an evaluator fails, the tuned model is kept, and the run goes on once it is mended.
#[test]
fn an_evaluator_that_fails_ends_the_run_by_its_name_and_keeps_the_model() {
    let mut n_tried = 0;
    for (evaluate, expected) in [
        ("crashes", "killed by signal 11 (segmentation fault)"),
        ("hangs", "no sign of life for 1s, so its worker was killed"),
        ("reports_nan", "its report is no JSON object"),
        ("reports_null", "its report has null at `scores.first`"),
    ] {
        let workplace = judged_by_c(evaluate);
        let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
        let by = "evaluator `judge` of judge 0.1.0 (judge.so): ";
        for said in [by, expected, "the tuned model is in `out/final_model`, without evidence"] {
            assert!(ran.stderr.contains(said), "{evaluate}: no `{said}` in:\n{}", ran.stderr);
        }
        assert!(!workplace.path("out/compliance/attestation.dsse.json").exists(), "{evaluate}");
        let kept = workplace.adapter("out");
        workplace.edit_config("name: judge", "name: held_out_loss");
        let ran = workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
        assert!(ran.stderr.contains("held_out_loss: loss "), "{}", ran.stderr);
        assert!(workplace.adapter("out") == kept, "{evaluate}: other bytes");
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
        n_tried += 1;
    }
    assert_eq!(n_tried, 4);
}

#[test]
fn the_programs_own_time_is_no_silence_of_an_evaluator() {
    let workplace = judged_by_c("keeps_the_host_busy");
    workplace.run();
    assert_eq!(found(&workplace, 0)["report"], json!({"was_busy": true}));
}

/// The model is there, and so is the checkpoint of the last step.
#[test]
fn a_signal_stops_an_evaluator_and_the_run_goes_on_with_resume() {
    let workplace = judged_by_c("asks_without_end");
    workplace.edit_config("deadline_seconds: 1", "deadline_seconds: 60");
    let child = workplace.start(&["--config", "run.yaml"]);
    let final_model = workplace.path("out/final_model/adapter_model.safetensors");
    while !final_model.exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ran: Ran = child.wait_with_output().unwrap().into();
    let ran = ran.expect_code(7).expect_stderr("plugin judge: cancelled");
    assert!(ran.stderr.contains("checkpoint-12"), "{}", ran.stderr);
    workplace.edit_config("name: judge", "name: held_out_loss");
    workplace.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    let lines = workplace.json_lines("out/metrics.jsonl");
    let of_evaluators = lines.iter().filter(|line| line.get("evaluator").is_some()).count();
    assert_eq!(of_evaluators, 1);
}

#[test]
fn a_run_that_holds_nothing_out_says_so_and_check_and_dry_run_know_evaluators() {
    let workplace = judged_by("plugins: {evaluators: [{name: held_out_loss}]}\n");
    let config = workplace.read("run.yaml");
    workplace
        .write("run.yaml", &config.replace("data.jsonl\n", "data.jsonl\n  validation_split: 0\n"));
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
    assert!(ran.stderr.contains("the run holds out no record"), "{}", ran.stderr);
    let dry = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0).stdout;
    assert!(dry.contains("by held_out_loss"), "{dry}");

    std::fs::copy(example_plugin(), workplace.path("truths.so")).unwrap();
    let ran = workplace.forgelm(&["plugin", "check", "truths.so"]).expect_code(0);
    let held = ran.stdout.lines().filter(|line| line.starts_with("ok      evaluator truths"));
    assert_eq!(held.count(), 5, "{}", ran.stdout);
    for evaluate in ["crashes", "trusts_the_host"] {
        let flag = [&*format!("-DEVALUATE={evaluate}")];
        compile(&workplace, "loader/tests/plugins/judge.c", "judge", &flag);
        let ran = workplace.forgelm(&["plugin", "check", "judge.so"]).expect_code(1);
        assert!(ran.stdout.contains("killed by signal 11"), "{}", ran.stdout);
        let is_first = ran.stdout.contains("FAILED  evaluator judge: judges a model");
        assert_eq!(is_first, evaluate == "crashes", "{}", ran.stdout);
    }
}
