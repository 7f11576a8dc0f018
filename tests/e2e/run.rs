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

#[test]
fn fault_066_a_warm_up_that_never_ends_is_told_before_the_start() {
    let workplace = Workplace::new();
    workplace.edit_config("  max_steps: 12", "  max_steps: 12\n  warmup_ratio: 1.0");
    let ran = workplace.run().expect_stderr("never reaches `training.learning_rate`");
    let (warning, first) = (ran.stderr.find("never reaches"), ran.stderr.find("step 1/12"));
    assert!(warning < first, "before the first step:\n{}", ran.stderr);
}

#[test]
fn time_arithmetic_and_cost_are_in_the_result_and_the_evidence() {
    let workplace = Workplace::new();
    workplace.edit_config("training:\n", "training:\n  gpu_cost_per_hour: 36.0\n");
    let ran = workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]);
    let result = ran.expect_code(0).json();
    let report: serde_json::Value =
        serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
    let usage = &report["resource_usage"];
    assert_eq!(usage, &result["resource_usage"]);
    let number = |key: &str| usage[key].as_f64().unwrap_or_else(|| panic!("{key} in {usage}"));
    let seconds = number("training_duration_seconds");
    // A cent a second; the duration is rounded to a tenth.
    assert!((number("estimated_cost_usd") - seconds / 100.0).abs() < 0.0006, "{usage}");
    assert_eq!(usage["cost_source"], "user_config");
    assert_eq!(result["estimated_cost_usd"], usage["estimated_cost_usd"]);
    assert!(number("cpu_seconds") > 0.0);
    let energy = &usage["energy_joules"];
    assert!(energy == "not measured" || energy.as_f64() > Some(0.0), "{energy}");
    assert_eq!(result["metrics"]["resource/flops"], usage["flops"]);
    // 2 layers of 64 x (4 x 64 .. ) weights: between the forward pass alone and six times it.
    let (tokens, flops) = (number("tokens"), number("flops"));
    let per_token = flops / tokens;
    assert!((1e5..1e6).contains(&per_token), "{per_token} a token");
}

#[test]
fn noise_on_embeddings_changes_training_alone() {
    let plain = Workplace::new();
    plain.run();
    let noisy = Workplace::new();
    noisy.edit_config("training:\n", "training:\n  neftune_noise_alpha: 5\n");
    noisy.run();
    assert!(plain.adapter("out") != noisy.adapter("out"));
    let first = |workplace: &Workplace, key: &str| {
        let lines = workplace.json_lines("out/metrics.jsonl");
        lines.iter().find_map(|line| line.get(key)?.as_f64()).unwrap()
    };
    assert_eq!(first(&plain, "eval_loss").to_bits(), first(&noisy, "eval_loss").to_bits());
    assert_ne!(first(&plain, "loss").to_bits(), first(&noisy, "loss").to_bits());
}

/// Mean loss of the rows of `rows.jsonl` under a model.
fn scored(workplace: &Workplace, model: &str) -> f64 {
    let args = ["score", "--model", model, "--input", "rows.jsonl", "--output", "scores.jsonl"];
    let args = [&args[..], &["--compute-dtype", "float32"]].concat();
    workplace.forgelm(&args).expect_code(0);
    let lines = workplace.json_lines("scores.jsonl");
    std::fs::remove_file(workplace.path("scores.jsonl")).unwrap();
    let logps = lines.iter().flat_map(|line| line["logprobs"].as_array().unwrap());
    let logps: Vec<f64> = logps.filter_map(serde_json::Value::as_f64).collect();
    -logps.iter().sum::<f64>() / logps.len() as f64
}

#[test]
fn rotary_scaling_trains_and_stands_beside_the_adapter_that_needs_it() {
    let workplace = Workplace::new();
    workplace.write("rows.jsonl", &crate::support::conversation(1));
    let plain = scored(&workplace, "model");
    workplace
        .edit_config("training:\n", "training:\n  rope_scaling: {type: linear, factor: 4.0}\n");
    workplace.run();
    let overrides = "out/final_model/forgelm_model_overrides.json";
    let written: serde_json::Value = serde_json::from_str(&workplace.read(overrides)).unwrap();
    assert_eq!(written, serde_json::json!({"rope_scaling": {"type": "linear", "factor": 4.0}}));
    let with = scored(&workplace, "out/final_model");
    std::fs::remove_file(workplace.path(overrides)).unwrap();
    let without = scored(&workplace, "out/final_model");
    assert!((with - without).abs() > 1e-3, "{with} and {without}: the scaling does nothing");
    assert!(with < plain, "{plain} -> {with}");
    // A key that cannot be is named before anything is loaded.
    workplace.edit_config("factor: 4.0", "factor: 0");
    workplace
        .forgelm(&["--config", "run.yaml", "--dry-run"])
        .expect_code(1)
        .expect_stderr("training.rope_scaling.factor");
}

#[test]
fn a_window_for_a_family_without_windows_is_refused() {
    let workplace = Workplace::new();
    workplace.edit_config("training:\n", "training:\n  sliding_window_attention: 8\n");
    workplace
        .forgelm(&["--config", "run.yaml"])
        .expect_code(1)
        .expect_stderr("`training.sliding_window_attention`")
        .expect_stderr("llama");
    assert!(!workplace.path("out").exists());
}

#[test]
fn four_bit_weights_train_and_are_recorded_as_what_they_are() {
    for (quant_type, name) in [("nf4", "4-bit NF4"), ("fp4", "4-bit FP4")] {
        let workplace = Workplace::new();
        workplace.edit_config(
            "load_in_4bit: false",
            &format!("load_in_4bit: true\n  bnb_4bit_quant_type: {quant_type}"),
        );
        workplace.run();
        let lines = workplace.json_lines("out/metrics.jsonl");
        let losses: Vec<f64> =
            lines.iter().filter_map(|line| line.get("eval_loss")?.as_f64()).collect();
        assert!(losses[3] < losses[0] - 0.05, "{losses:?}");
        let report: serde_json::Value =
            serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
        assert_eq!(report["model_lineage"]["quantization"], name);
        let formats = &report["training_parameters"]["linear_formats"];
        // Two layers of seven; rows of `down_proj` are not whole blocks.
        assert_eq!(formats[format!("{quant_type}, double quantized")], 12, "{formats}");
        assert_eq!(formats[format!("{quant_type}, double quantized, unpacked")], 2, "{formats}");
    }
    let workplace = Workplace::new();
    workplace.edit_config("load_in_4bit: false", "load_in_4bit: true");
    workplace.edit_config("lora:\n", "lora:\n  enabled: false\n");
    workplace
        .forgelm(&["--config", "run.yaml", "--dry-run"])
        .expect_code(1)
        .expect_stderr("weights of four bits do not train");
}
