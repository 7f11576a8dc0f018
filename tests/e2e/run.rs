//! The main job.

use crate::support::Workplace;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_run_leaves_what_it_promises() {
    let workplace = Workplace::new();
    let ran = workplace.run();
    for file in [
        "final_model/adapter_model.safetensors",
        "final_model/adapter_config.json",
        "final_model/tokenizer.json",
        "final_model/tokenizer_config.json",
        "final_model/model_integrity.json",
        "final_model/README.md",
        "checkpoint-4/adapter_model.safetensors",
        "checkpoint-12/trainer_state.json",
        "audit_log.jsonl",
        "audit_log.jsonl.manifest.json",
        "audit_log.jsonl.checkpoint.dsse.json",
        "metrics.jsonl",
        "compliance/compliance_report.json",
        "compliance/compliance_report.json.dsse.json",
        "compliance/training_manifest.yaml",
        "compliance/training_manifest.yaml.dsse.json",
        "compliance/training_manifest.json",
        "compliance/data_provenance.json",
        "compliance/attestation.dsse.json",
    ] {
        assert!(workplace.path("out").join(file).is_file(), "no {file}\n{}", ran.stderr);
    }
    let key = workplace.path("home/.config/forgelm/signing.key");
    let mode = key.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "mode of the private key");
    assert!(ran.stderr.contains("signing key"), "a notice of the new key:\n{}", ran.stderr);
}

#[test]
fn the_metrics_file_has_every_step_and_evaluation() {
    let workplace = Workplace::new();
    workplace.run();
    let lines = workplace.json_lines("out/metrics.jsonl");
    let steps: Vec<_> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    let numbers: Vec<_> = steps.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
    for step in &steps {
        for key in ["epoch", "learning_rate", "grad_norm", "trained_tokens", "tokens_per_second"] {
            assert!(step[key].is_number(), "{key} in {step}");
        }
    }
    let losses: Vec<f64> =
        lines.iter().filter_map(|line| line.get("eval_loss")?.as_f64()).collect();
    assert_eq!(losses.len(), 4, "at the start and after steps 4, 8 and 12");
    assert!(losses[3] < losses[0] - 0.05, "validation loss falls: {losses:?}");
}

#[test]
fn the_audit_log_tells_the_run_in_order() {
    let workplace = Workplace::new();
    workplace.run();
    let lines = workplace.json_lines("out/audit_log.jsonl");
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events[..2], ["signing.key_loaded", "pipeline.initialized"]);
    let at = |name: &str| events.iter().position(|event| *event == name).unwrap();
    assert!(at("training.started") < at("model.integrity_verified"));
    assert!(at("model.integrity_verified") < at("compliance.artifacts_exported"));
    assert_eq!(events.last(), Some(&"pipeline.completed"));
    assert!(lines.iter().all(|line| line["operator"] == "tester@example"));
}

#[test]
fn json_output_is_one_document() {
    let workplace = Workplace::new();
    let ran =
        workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]).expect_code(0);
    let result = ran.json();
    assert_eq!(result["success"], true);
    assert_eq!(result["reverted"], false);
    assert_eq!(result["awaiting_approval"], false);
    assert!(result["final_model_path"].as_str().unwrap().ends_with("final_model"));
    assert!(result["metrics"]["eval_loss"].is_number());
    assert!(result["run_id"].as_str().unwrap().starts_with("fg-"));
    assert!(result["config_hash"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn dry_run_touches_nothing() {
    let workplace = Workplace::new();
    let ran = workplace.forgelm(&["--config", "run.yaml", "--dry-run"]).expect_code(0);
    assert!(ran.stdout.contains("out/final_model"), "{}", ran.stdout);
    assert!(!workplace.path("out").exists());
    assert!(!workplace.path("home").exists());
    let json = workplace.forgelm(&["--config", "run.yaml", "--dry-run", "--output-format", "json"]);
    let plan = json.expect_code(0).json();
    assert_eq!(plan["success"], true);
    assert_eq!(plan["status"], "valid");
    assert_eq!(plan["lora_rank"], 4);
    assert_eq!(plan["output_dir"], "out/final_model");
}

#[test]
fn one_and_two_threads_give_the_same_adapter() {
    let workplace = Workplace::new();
    workplace.run();
    let one = workplace.adapter("out");
    workplace.edit_config("threads: 1", "threads: 2");
    workplace.edit_config("output_dir: out", "output_dir: out2");
    workplace.run();
    assert!(one == workplace.adapter("out2"), "the adapter depends on the number of threads");
}

#[test]
fn packing_trains_too() {
    let workplace = Workplace::new();
    workplace.edit_config("training:\n", "training:\n  packing: true\n");
    workplace.run();
    let lines = workplace.json_lines("out/metrics.jsonl");
    let losses: Vec<f64> =
        lines.iter().filter_map(|line| line.get("eval_loss")?.as_f64()).collect();
    assert!(losses.last().unwrap() < &(losses[0] - 0.05), "{losses:?}");
}
