//! What lies too long in a run's folder, and what holds it: `purge --check-policy`, `--hold`,
//! `--release`, and what a run does before it starts.

use crate::support::Workplace;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, SystemTime};

const CHECK: &[&str] =
    &["purge", "--check-policy", "--config", "run.yaml", "--output-format", "json"];
const DAY: Duration = Duration::from_secs(86_400);

/// A folder `out` whose log begins in 2019 and in which a run's model was rejected in 2020.
fn old_folder(retention: &str) -> Workplace {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &format!("{config}{retention}"));
    let log = [
        ("2019-01-01T00:00:00.000000+00:00", "fg-000000000001", "pipeline.initialized"),
        ("2020-01-01T00:00:00.000000+00:00", "fg-000000000001", "human_approval.rejected"),
    ];
    let mut prev = "genesis".to_owned();
    let mut text = String::new();
    for (timestamp, run_id, event) in log {
        let line = json!({"timestamp": timestamp, "run_id": run_id, "operator": "x@y", "event": event, "prev_hash": prev});
        prev = sha256(line.to_string().as_bytes());
        text += &(line.to_string() + "\n");
    }
    let first = sha256(text.lines().next().unwrap().as_bytes());
    let genesis = json!({"audit_log": "audit_log.jsonl", "run_id": "fg-000000000001", "first_entry_sha256": first});
    workplace.write("out/audit_log.jsonl.manifest.json", &genesis.to_string());
    workplace.write("out/audit_log.jsonl", &text);
    workplace.write("out/final_model.staging.fg-000000000001/adapter_model.safetensors", "x");
    workplace.write("out/raw_documents/fresh.txt", "x");
    workplace
}

fn sha256(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bytes");
    fs::write(&path, bytes).unwrap();
    let output = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn kinds(violations: &Value) -> Vec<(&str, &str)> {
    let entries = violations.as_array().unwrap().iter();
    entries
        .map(|v| (v["artefact_kind"].as_str().unwrap(), v["age_source"].as_str().unwrap()))
        .collect()
}

fn events(workplace: &Workplace, name: &str) -> Vec<Value> {
    let lines = workplace.json_lines("out/audit_log.jsonl");
    lines.into_iter().filter(|line| line["event"] == name).collect()
}

#[test]
fn check_policy_names_what_is_too_old_and_writes_nothing() {
    let workplace = old_folder("retention: {}\n");
    let before = workplace.read("out/audit_log.jsonl");
    let found = workplace.forgelm(CHECK).expect_code(0).json();
    let old = [("audit_log", "audit"), ("staging_dir[fg-000000000001]", "audit")];
    assert_eq!((kinds(&found["violations"]), &found["count"]), (old.to_vec(), &2.into()));
    assert_eq!(found["violations"][1]["horizon_days"], 7);
    assert!(found["violations"][1]["age_days"].as_f64().unwrap() > 2000.0);
    assert_eq!(found["violations"][1]["path"], "out/final_model.staging.fg-000000000001");
    // A document of its own age.
    let document =
        fs::File::options().append(true).open(workplace.path("out/raw_documents/fresh.txt"));
    document.unwrap().set_modified(SystemTime::now() - 91 * DAY).unwrap();
    let found = workplace.forgelm(CHECK).expect_code(0).json();
    assert_eq!(kinds(&found["violations"])[2], ("raw_documents[raw_documents]", "mtime"));
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
    // Horizons of 0 days are none; and the old key still says how long a staged model stays.
    let config = workplace.read("run.yaml").replace(
        "retention: {}",
        "retention: {audit_log_retention_days: 0, raw_documents_retention_days: 0}\n\
         evaluation: {staging_ttl_days: 0}",
    );
    workplace.write("run.yaml", &config);
    let ran = workplace.forgelm(CHECK).expect_code(0);
    assert_eq!(ran.json()["count"], 0);
}

#[test]
fn without_horizons_check_policy_says_so() {
    let workplace = Workplace::new();
    let ran = workplace.forgelm(&["purge", "--check-policy"]).expect_code(0);
    assert!(ran.stdout.contains("no --config"), "{}", ran.stdout);
    let found = workplace.forgelm(CHECK).expect_code(0).json();
    assert_eq!((&found["violations"], &found["legal_hold"]), (&json!([]), &Value::Null));
    assert!(found["note"].as_str().unwrap().contains("no `retention` section"));
    let missing = ["purge", "--check-policy", "--config", "none.yaml"];
    workplace.forgelm(&missing).expect_code(1).expect_stderr("none.yaml");
    workplace.write("bad.yaml", "retention: {staging_ttl_days: -1}\n");
    let bad = ["purge", "--check-policy", "--config", "bad.yaml"];
    workplace.forgelm(&bad).expect_code(1).expect_stderr("staging_ttl_days");
    workplace.forgelm(&["purge"]).expect_code(2);
    workplace.forgelm(&["purge", "--check-policy", "--hold", "x"]).expect_code(2);
}

#[test]
fn a_run_is_logged_warned_or_stopped_as_the_config_says() {
    let resume = ["--config", "run.yaml", "--resume", "--output-format", "json"];
    let workplace = old_folder("retention: {enforce: block_on_excess}\n");
    let ran = workplace.forgelm(&resume).expect_code(3);
    let result = ran.json();
    assert_eq!((&result["success"], &result["exit_code"]), (&false.into(), &3.into()));
    assert_eq!(kinds(&result["violations"]).len(), 2);
    assert!(result["error"].as_str().unwrap().contains("`block_on_excess`"));
    let ran =
        ran.expect_stderr("retention violation kind=audit_log path=out/audit_log.jsonl age_days=");
    assert!(!ran.stderr.contains("loaded"), "no model was loaded: {}", ran.stderr);
    let recorded = events(&workplace, "retention.policy_violation");
    assert_eq!(recorded.len(), 2);
    assert_eq!(
        (&recorded[0]["enforce"], &recorded[0]["horizon_days"]),
        (&"block_on_excess".into(), &1825.into())
    );
    assert!(
        !workplace.path("out/final_model").exists()
            && !workplace.path("out/metrics.jsonl").exists()
    );
    assert!(workplace.path("out/final_model.staging.fg-000000000001").exists());

    workplace.edit_config("block_on_excess", "warn_on_excess");
    workplace.forgelm(&resume).expect_code(0).expect_stderr("warning: retention violation");
    assert_eq!(events(&workplace, "retention.policy_violation").len(), 4);

    let workplace = old_folder("retention: {enforce: log_only}\n");
    let ran = workplace.forgelm(&resume).expect_code(0);
    assert!(!ran.stderr.contains("retention violation"), "{}", ran.stderr);
    assert_eq!(events(&workplace, "retention.policy_violation").len(), 2);

    // What is held cannot be removed, so that nothing is refused for it.
    let workplace = old_folder("retention: {enforce: block_on_excess, legal_hold: true}\n");
    workplace.forgelm(&resume).expect_code(0).expect_stderr("legal hold: `retention.legal_hold`");
}

#[test]
fn a_dry_run_counts_what_is_too_old_and_writes_nothing() {
    let workplace = old_folder("retention: {enforce: block_on_excess}\n");
    let before = workplace.read("out/audit_log.jsonl");
    let ran = workplace.forgelm(&["--config", "run.yaml", "--dry-run", "--output-format", "json"]);
    assert_eq!(ran.expect_code(0).json()["retention_violations"], 2);
    let ran = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(ran.stdout.contains("warning: retention violation kind=audit_log"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("in out: 2 too old for `retention`\n"), "{}", ran.stdout);
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
}

#[test]
fn a_hold_is_placed_and_released_once_each_with_a_record() {
    let workplace = Workplace::new();
    workplace.run();
    let hold = ["purge", "--hold", "Case 7, asked for by eve@example.org", "--output-dir", "out"];
    workplace.forgelm(&hold).expect_code(0);
    let file: Value = serde_json::from_str(&workplace.read("out/LEGAL_HOLD")).unwrap();
    assert_eq!(file["reason"], "Case 7, asked for by [REDACTED]");
    workplace.forgelm(&hold).expect_code(1).expect_stderr("a hold stands already: \"Case 7");
    assert_eq!(events(&workplace, "retention.hold_placed")[0]["reason"], file["reason"]);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    let release = ["purge", "--release", "closed", "--output-dir", "out"];
    workplace.forgelm(&release).expect_code(0);
    assert!(!workplace.path("out/LEGAL_HOLD").exists());
    assert_eq!(events(&workplace, "retention.hold_released")[0]["held_for"], file["reason"]);
    workplace.forgelm(&release).expect_code(1).expect_stderr("no hold stands");
    workplace.forgelm(&["purge", "--hold", " ", "--output-dir", "out"]).expect_code(1);
    workplace.forgelm(&["purge", "--hold", "x", "--output-dir", "none"]).expect_code(1);
    assert!(!workplace.path("none").exists());
    workplace.forgelm(&["verify-audit", "out"]).expect_code(0);
}
