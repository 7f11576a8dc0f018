//! `forgelm monitor` on a run of the tiny model.

use crate::receiver::{Answers, Receiver};
use crate::support::{Ran, Workplace, conversation};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const MONITOR: [&str; 7] =
    ["monitor", "--run", "out", "--key", "out/compliance/signing_key.pub", "--data", "fresh.jsonl"];

/// A finished run that held twelve rows out, and fresh rows of the same kind.
fn finished() -> Workplace {
    let workplace = Workplace::new();
    workplace.edit_config(
        "  dataset_name_or_path: data.jsonl\n",
        "  dataset_name_or_path: data.jsonl\n  validation_split: 0.5\nmonitoring:\n  enabled: true\n",
    );
    workplace.run();
    fresh(&workplace, (24..44).map(conversation));
    workplace
}

fn fresh(workplace: &Workplace, rows: impl Iterator<Item = String>) {
    workplace.write("fresh.jsonl", &rows.fold(String::new(), |text, row| text + &row + "\n"));
}

/// Rows that the model has never seen the like of.
fn foreign() -> impl Iterator<Item = String> {
    (0..20).map(|i| {
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("Translate number {i}.")},
            {"role": "assistant", "content": format!("Zwölf Boxkämpfer jagen Viktor {i}-mal quer!")},
        ]})
        .to_string()
    })
}

fn once(workplace: &Workplace, more: &[&str]) -> Ran {
    let args = [&MONITOR[..], &["--once", "--output-format", "json"], more].concat();
    workplace.forgelm(&args)
}

/// A finished run whose held-out rows are a file of their own: `data/validation.jsonl`.
fn with_own_validation(edit: (&str, &str)) -> Workplace {
    let workplace = Workplace::new();
    let rows = |range: std::ops::Range<usize>| {
        range.map(conversation).fold(String::new(), |text, row| text + &row + "\n")
    };
    workplace.write("data/train.jsonl", &rows(0..24));
    workplace.write("data/validation.jsonl", &rows(24..36));
    workplace.edit_config(
        "  dataset_name_or_path: data.jsonl\n",
        "  dataset_name_or_path: data\nmonitoring:\n  enabled: true\n",
    );
    workplace.edit_config(edit.0, edit.1);
    workplace.run();
    workplace
}

#[test]
fn the_baseline_is_signed_and_the_held_out_rows_score_the_same_again() {
    for edit in [
        ("lora:\n", "lora:\n"),
        // Over four-bit weights the adapter is scored as it was trained.
        ("load_in_4bit: false", "load_in_4bit: true"),
        ("lora:\n", "lora:\n  enabled: false\n"),
    ] {
        let workplace = with_own_validation(edit);
        let path = "out/compliance/monitoring_baseline.json";
        let baseline: Value = serde_json::from_str(&workplace.read(path)).unwrap();
        assert_eq!(baseline["held_out"]["n_rows"], 12);
        let report = workplace.read("out/compliance/compliance_report.json");
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(baseline["run_id"], report["run_id"]);
        workplace
            .forgelm(&["verify-signature", path, "--key", "out/compliance/signing_key.pub"])
            .expect_code(0);
        fs::copy(workplace.path("data/validation.jsonl"), workplace.path("fresh.jsonl")).unwrap();
        let same = once(&workplace, &[]).expect_code(0).json();
        assert_eq!(same["baseline"], baseline["held_out"]);
        let mean = |of: &str| same[of]["mean"].as_f64().unwrap();
        assert!((mean("fresh") - mean("baseline")).abs() < 1e-6, "{edit:?}: {same}");
    }
}

#[test]
fn rows_of_the_same_kind_are_no_drift_and_foreign_ones_are() {
    let workplace = finished();
    let same = once(&workplace, &[]).expect_code(0).json();
    assert_eq!(same["verdict"], "no_drift", "{same}");
    assert_eq!(same["confidence"], 0.99);
    let bound = |json: &Value, i: usize| json["interval"][i].as_f64().unwrap();
    assert!(bound(&same, 0) < 0.0 && bound(&same, 1) > 0.0, "{same}");
    fresh(&workplace, foreign());
    let drift = once(&workplace, &[]).expect_code(3).json();
    assert_eq!(drift["verdict"], "drift");
    assert!(bound(&drift, 0) > 0.0, "{drift}");
    // Both comparisons are in the log, and the log still verifies.
    let lines = workplace.json_lines("out/audit_log.jsonl");
    let checks: Vec<&Value> =
        lines.iter().filter(|line| line["event"] == "monitoring.check_completed").collect();
    assert_eq!(checks.len(), 2);
    assert_eq!(checks[1]["verdict"], "drift");
    assert_eq!(checks[1]["interval_low"], drift["interval"][0]);
    assert_eq!(checks[1]["fresh_rows"], 20);
    assert_eq!(checks[1]["run_id"], drift["run_id"]);
    workplace
        .forgelm(&["verify-bundle", "out", "--key", "out/compliance/signing_key.pub"])
        .expect_code(0);
    // As a person reads it.
    let ran = workplace.forgelm(&[&MONITOR[..], &["--once"]].concat()).expect_code(3);
    assert!(ran.stdout.starts_with("drift: mean loss "), "{}", ran.stdout);
    assert!(ran.stdout.contains("with 99 % confidence from +"), "{}", ran.stdout);
}

#[test]
fn few_rows_say_nothing() {
    let workplace = finished();
    fresh(&workplace, (24..33).map(conversation));
    let ran = once(&workplace, &[]).expect_code(1);
    let few = ran.json();
    assert_eq!(few["verdict"], "too_few_rows");
    assert_eq!(few["interval"], Value::Null);
    assert_eq!(few["fresh"]["n_rows"], 9);
}

#[test]
fn drift_is_told_to_the_webhook_of_the_config() {
    let receiver = Receiver::start(Answers::Status(200));
    let workplace = finished();
    let url = receiver.url("/hook");
    let section = format!("webhook:\n  url: \"{url}\"\n  allow_private_destinations: true\n");
    workplace.write("told.yaml", &(workplace.read("run.yaml") + &section));
    once(&workplace, &["--config", "told.yaml"]).expect_code(0);
    assert!(receiver.received().is_empty(), "nothing to tell");
    fresh(&workplace, foreign());
    let ran = once(&workplace, &["--config", "told.yaml"]).expect_code(3);
    assert_eq!(receiver.events(), ["monitoring.drift"], "{}", ran.stderr);
    let body = receiver.received()[0].json();
    assert_eq!(body["run_id"], ran.json()["run_id"]);
    assert_eq!(body["metrics"]["interval_low"], ran.json()["interval"][0]);
    assert!(body["reason"].as_str().unwrap().contains("with 99 % confidence"));
    // Without the config nobody can be told, which is said.
    once(&workplace, &[]).expect_code(3).expect_stderr("`--config` names the config");
}

#[test]
fn a_changed_baseline_or_model_is_refused_and_nothing_is_recorded() {
    let workplace = finished();
    let before = workplace.read("out/audit_log.jsonl");
    let path = "out/compliance/monitoring_baseline.json";
    let text = workplace.read(path);
    workplace.write(path, &text.replace("\"n_rows\": 12", "\"n_rows\": 13"));
    once(&workplace, &[]).expect_code(6).expect_stderr("monitoring_baseline.json");
    workplace.write(path, &text);
    let adapter = workplace.path("out/final_model/adapter_model.safetensors");
    let mut bytes = fs::read(&adapter).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&adapter, bytes).unwrap();
    once(&workplace, &[]).expect_code(6).expect_stderr("adapter_model.safetensors");
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
}

#[test]
fn a_run_without_a_baseline_is_refused_with_the_way_out() {
    let workplace = Workplace::new();
    workplace.run();
    fresh(&workplace, (24..44).map(conversation));
    once(&workplace, &[])
        .expect_code(1)
        .expect_stderr("the run recorded no baseline")
        .expect_stderr("`monitoring.enabled`");
    // A run that holds nothing out says so at its start.
    let workplace = Workplace::new();
    workplace.edit_config(
        "  dataset_name_or_path: data.jsonl\n",
        "  dataset_name_or_path: data.jsonl\n  validation_split: 0\nmonitoring:\n  enabled: true\n",
    );
    workplace.run().expect_stderr("there will be no baseline");
    assert!(!workplace.path("out/compliance/monitoring_baseline.json").exists());
}

#[test]
fn a_strange_key_and_bad_rows_are_refused() {
    let workplace = finished();
    workplace.forgelm(&["keygen", "--out", "other.key"]).expect_code(0);
    let args =
        ["monitor", "--run", "out", "--key", "other.key.pub", "--data", "fresh.jsonl", "--once"];
    workplace
        .forgelm(&args)
        .expect_code(1)
        .expect_stderr("the evidence of the run is not accepted");
    workplace.write("fresh.jsonl", "{\"messages\": 7}\n");
    once(&workplace, &[]).expect_code(1).expect_stderr("fresh.jsonl:1");
    fs::remove_file(workplace.path("fresh.jsonl")).unwrap();
    once(&workplace, &[]).expect_code(1).expect_stderr("fresh.jsonl");
}

#[test]
fn without_once_it_checks_until_a_signal() {
    let workplace = finished();
    let child = workplace.start(&MONITOR);
    let start = Instant::now();
    while !workplace.read("out/audit_log.jsonl").contains("monitoring.check_completed") {
        assert!(start.elapsed() < Duration::from_secs(60), "no check");
        std::thread::sleep(Duration::from_millis(50));
    }
    // It waits for its next hour now.
    std::thread::sleep(Duration::from_millis(300));
    let pid = i32::try_from(child.id()).unwrap();
    let kill = std::process::Command::new("kill").arg(pid.to_string()).status().unwrap();
    assert!(kill.success());
    let ran = Ran::from(child.wait_with_output().unwrap()).expect_code(0);
    assert!(ran.stdout.starts_with("no drift: "), "{}", ran.stdout);
}
