//! The loss gate: a model that is too bad is taken back, with evidence that it was.

use crate::support::{Ran, Workplace};
use forgelm_evidence::dsse::Envelope;
use serde_json::Value;

const JSON: [&str; 4] = ["--config", "run.yaml", "--output-format", "json"];

/// A workplace whose config has these gates.
fn gated(evaluation: &str) -> Workplace {
    let workplace = Workplace::new();
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &format!("{config}evaluation: {evaluation}\n"));
    workplace
}

fn events(workplace: &Workplace) -> Vec<Value> {
    workplace.json_lines("out/audit_log.jsonl")
}

fn event(workplace: &Workplace, name: &str) -> Value {
    let found = events(workplace).into_iter().find(|line| line["event"] == name);
    found.unwrap_or_else(|| panic!("no {name}"))
}

fn report(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap()
}

/// The statement inside an envelope.
fn predicate(workplace: &Workplace, envelope: &str) -> Value {
    let envelope = Envelope::parse(workplace.read(envelope).as_bytes()).unwrap();
    let statement: Value = serde_json::from_slice(&envelope.payload).unwrap();
    statement["predicate"].clone()
}

fn resumed(workplace: &Workplace, more: &[&str]) -> Ran {
    let args = [&["--config", "run.yaml", "--resume"], more].concat();
    workplace.forgelm(&args)
}

#[test]
fn a_model_above_the_threshold_is_deleted_with_signed_evidence_and_exits_3() {
    let workplace = gated("{auto_revert: true, max_acceptable_loss: 0.001}");
    let ran = workplace.forgelm(&JSON).expect_code(3);
    let result = ran.json();
    assert_eq!(result["success"], false);
    assert_eq!(result["reverted"], true);
    assert_eq!(result["awaiting_approval"], false);
    assert_eq!(result["final_model_path"], Value::Null);
    assert_eq!(result["exit_code"], 3);
    assert!(result["metrics"]["eval_loss"].as_f64() > Some(0.001));
    let failure = &result["gate_failures"][0];
    assert_eq!(failure["gate"], "loss");
    let reason = failure["reason"].as_str().unwrap();
    assert!(reason.contains("above `evaluation.max_acceptable_loss` 0.001"), "{reason}");
    assert!(result["error"].as_str().unwrap().contains(reason));
    assert!(!workplace.path("out/final_model").exists());

    // The log: judged, then that it is taken back, then the documents.
    let events = events(&workplace);
    let at = |name: &str| events.iter().position(|line| line["event"] == name).unwrap();
    assert!(at("evaluation.loss_gate_completed") < at("model.reverted"));
    assert!(at("model.reverted") < at("compliance.artifacts_exported"));
    assert_eq!(events[at("model.reverted")]["reason"], "threshold");
    assert_eq!(events[at("pipeline.completed")]["success"], false);
    assert!(!events.iter().any(|line| line["event"] == "model.integrity_verified"));

    // A stranger sees that the run was reverted.
    let verified = workplace.forgelm(&["verify-bundle", "out", "--output-format", "json"]);
    assert_eq!(verified.expect_code(0).json()["outcome"], "reverted");
    let claims = predicate(&workplace, "out/compliance/attestation.dsse.json");
    assert_eq!(claims["outcome"], "reverted");
    assert_eq!(claims["model"], Value::Null);
    assert_eq!(claims["gates"], report(&workplace)["gates"]);
    assert_eq!(claims["gates"][0]["passed"], false);

    // Continued, it says so and does nothing.
    let before = workplace.read("out/audit_log.jsonl");
    resumed(&workplace, &[]).expect_code(3).expect_stderr("was reverted");
    let again = resumed(&workplace, &["--output-format", "json"]).expect_code(3).json();
    assert_eq!((&again["reverted"], &again["success"]), (&true.into(), &false.into()));
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
}

#[test]
fn a_rejected_model_without_auto_revert_is_kept_and_the_verdict_recorded() {
    let workplace = gated("{max_acceptable_loss: 0.001}");
    let ran = workplace.forgelm(&JSON).expect_code(0).expect_stderr("is kept");
    let result = ran.json();
    assert_eq!((&result["success"], &result["reverted"]), (&true.into(), &false.into()));
    assert_eq!(result["error"], Value::Null);
    assert_eq!(result["gate_failures"][0]["gate"], "loss");
    assert!(workplace.path("out/final_model/adapter_model.safetensors").is_file());
    assert_eq!(event(&workplace, "evaluation.loss_gate_completed")["passed"], false);
    assert_eq!(report(&workplace)["outcome"], "promoted");
    assert_eq!(report(&workplace)["gates"][0]["passed"], false);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn a_person_reads_the_verdict_with_its_margin() {
    let workplace = gated("{max_acceptable_loss: 9}");
    let ran = workplace.run().expect_stdout("gate      loss passed: eval_loss 6.");
    ran.expect_stdout(", at most 9.0000 (margin 2.").expect_stdout(", 3 samples)");
}

#[test]
fn the_baseline_is_measured_before_the_first_step_unless_it_is_written() {
    let workplace = gated("{auto_revert: true}");
    let result = workplace.forgelm(&JSON).expect_code(0).json();
    assert_eq!(result["gate_failures"], serde_json::json!([]));
    let judged = event(&workplace, "evaluation.loss_gate_completed");
    assert_eq!(judged["passed"], true);
    assert_eq!(judged["max_acceptable_loss"], Value::Null);
    assert_eq!(judged["baseline_loss"], result["metrics"]["baseline_eval_loss"]);
    assert_eq!(judged["eval_loss"], result["metrics"]["eval_loss"]);
    assert_eq!(
        report(&workplace)["gates"][0],
        serde_json::json!({
            "gate": "loss",
            "passed": true,
            "reason": null,
            "checks": [{
                "measure": "eval_loss",
                "value": judged["eval_loss"],
                "bound": "at_most",
                "limit": judged["baseline_loss"],
                "limit_name": "the baseline",
                "n_samples": 3,
                "interval": null,
            }],
        })
    );

    // One that is written counts instead.
    let workplace = gated("{auto_revert: true, baseline_loss: 0.5}");
    let result = workplace.forgelm(&JSON).expect_code(3).json();
    let reason = result["gate_failures"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("above the baseline 0.5"), "{reason}");
    assert!(!workplace.path("out/final_model").exists());
}

#[test]
fn thresholds_stand_in_the_log_before_training_and_cannot_change_afterwards() {
    let workplace = gated("{auto_revert: true, max_acceptable_loss: 0.001}");
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(3);
    let started = event(&workplace, "training.started");
    assert_eq!(started["gates"]["max_acceptable_loss"], 0.001);
    assert_eq!(started["gates"]["auto_revert"], true);
    assert_eq!(started["gates_sha256"].as_str().unwrap().len(), 64);
    workplace.edit_config("max_acceptable_loss: 0.001", "max_acceptable_loss: 9.0");
    resumed(&workplace, &[])
        .expect_code(1)
        .expect_stderr("`evaluation.max_acceptable_loss`: 0.001 at the checkpoint, 9.0 now");
    // Forced, the change is in the log, beside the first verdict.
    resumed(&workplace, &["--force-resume"]).expect_code(0);
    let changes = event(&workplace, "training.resumed")["changes"].to_string();
    assert!(changes.contains("max_acceptable_loss"), "{changes}");
    let verdicts: Vec<bool> = events(&workplace)
        .iter()
        .filter(|line| line["event"] == "evaluation.loss_gate_completed")
        .map(|line| line["passed"].as_bool().unwrap())
        .collect();
    assert_eq!(verdicts, [false, true]);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

/// Killed at each place between the verdict and the end of the evidence.
#[test]
fn fault_092_a_revert_that_was_interrupted_is_finished_by_resuming() {
    for is_folder_gone in [false, true] {
        let workplace = gated("{auto_revert: true, max_acceptable_loss: 0.001}");
        workplace.forgelm(&["--config", "run.yaml"]).expect_code(3);
        // As a process leaves it that was killed once `model.reverted` was recorded.
        std::fs::remove_dir_all(workplace.path("out/compliance")).unwrap();
        let log = workplace.read("out/audit_log.jsonl");
        let end = log.find("compliance.artifacts_exported").unwrap();
        let kept = log[..end].rfind('\n').unwrap();
        workplace.write("out/audit_log.jsonl", &log[..=kept]);
        if !is_folder_gone {
            workplace.write("out/final_model/adapter_model.safetensors", "half of it");
        }
        workplace.write("out/.final_model.removed-1-0/adapter_model.safetensors", "renamed");
        resumed(&workplace, &[]).expect_code(3).expect_stderr("ended without a word");
        assert!(!workplace.path("out/final_model").exists());
        assert!(!workplace.path("out/.final_model.removed-1-0").exists());
        workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
        resumed(&workplace, &[]).expect_code(3).expect_stderr("was reverted");
    }
}

#[test]
fn a_threshold_with_nothing_held_out_is_refused_before_the_start() {
    let workplace = gated("{max_acceptable_loss: 2}");
    workplace.edit_config("data:\n", "data:\n  validation_split: 0\n");
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(1)
        .expect_stderr("no record is held out")
        .expect_stderr("`data.validation_split: 0.1`");
    assert!(!workplace.path("out").exists());
    let workplace = gated("{auto_revert: true}");
    workplace.edit_config("data:\n", "data:\n  validation_split: 0\n");
    workplace.run().expect_stderr("the loss gate judges nothing");
    assert!(workplace.path("out/final_model").is_dir());
}

#[test]
fn too_few_samples_are_no_evidence_and_the_run_fails_with_its_model() {
    let workplace = gated("{auto_revert: true, max_acceptable_loss: 0.001, min_samples: 1000}");
    let ran = workplace.forgelm(&["--config", "run.yaml"]).expect_code(2);
    ran.expect_stderr("not enough evidence: eval_loss has 3 samples behind it")
        .expect_stderr("`evaluation.min_samples` is 1000")
        .expect_stderr("continue with `--resume`");
    assert!(workplace.path("out/final_model/adapter_model.safetensors").is_file());
    assert!(!workplace.path("out/compliance/attestation.dsse.json").exists());
    let log = events(&workplace);
    assert!(!log.iter().any(|line| line["event"] == "model.reverted"));
    assert_eq!(log.last().unwrap()["event"], "pipeline.failed");
    let measured: Value =
        serde_json::from_str(&workplace.read("out/compliance/gate_measurements.json")).unwrap();
    assert_eq!(measured["policy"]["min_samples"], 1000);
    assert_eq!(measured["gates"][0]["checks"][0]["limit"], 0.001);

    // Continued with what it asks for, nothing is trained again, and the same number rejects.
    workplace.edit_config("min_samples: 1000", "min_samples: 3");
    resumed(&workplace, &[]).expect_code(1);
    let metrics = workplace.read("out/metrics.jsonl");
    resumed(&workplace, &["--force-resume"]).expect_code(3);
    assert_eq!(workplace.read("out/metrics.jsonl"), metrics);
    let verified = workplace.forgelm(&["verify-bundle", "out", "--output-format", "json"]);
    assert_eq!(verified.expect_code(0).json()["outcome"], "reverted");
}

#[test]
fn measurements_are_evidence_and_cannot_be_changed_or_removed() {
    let workplace = gated("{auto_revert: true, max_acceptable_loss: 9}");
    workplace.forgelm(&["--config", "run.yaml"]).expect_code(0);
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
    let file = "out/compliance/gate_measurements.json";
    let text = workplace.read(file);
    assert!(text.contains("\"limit\": 9.0"), "{text}");
    workplace.write(file, &text.replace("\"limit\": 9.0", "\"limit\": 0.1"));
    workplace
        .forgelm(&["verify-bundle", "out"])
        .expect_code(6)
        .expect_stderr("the gate `loss` does not pass; it is signed as passed");
    std::fs::remove_file(workplace.path(file)).unwrap();
    workplace
        .forgelm(&["verify-bundle", "out"])
        .expect_code(6)
        .expect_stderr(file.trim_start_matches("out/"));
}
