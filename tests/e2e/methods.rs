//! Every kind of training from a config to a model that is used: the kinds of adapters, merged
//! models, and training of every weight.

use crate::support::Workplace;
use forgelm_artifact::safetensors::SafetensorsFile;
use serde_json::{Value, json};
use std::fs;

/// The tuned weights of a run.
fn weights(workplace: &Workplace, file: &str) -> Vec<u8> {
    fs::read(workplace.path("out/final_model").join(file)).unwrap()
}

/// Killed at its first checkpoint and continued, a run gives the bits of one that was not.
fn trains_and_resumes(lora: &str, file: &str) -> Workplace {
    let new = || {
        let workplace = Workplace::new();
        workplace.edit_config("max_steps: 12", "max_steps: 40");
        workplace.edit_config("  r: 4\n", &format!("  r: 4\n{lora}"));
        workplace
    };
    let whole = new();
    whole.run();
    let interrupted = new();
    let mut child = interrupted.start(&["--config", "run.yaml"]);
    while !interrupted.path("out/checkpoint-4").exists() {
        assert!(child.try_wait().unwrap().is_none(), "{lora}: ended before its first checkpoint");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!interrupted.path("out/final_model").exists(), "killed too late to mean anything");
    interrupted.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
    assert!(weights(&interrupted, file) == weights(&whole, file), "{lora}: another model");
    let losses: Vec<f64> = whole
        .json_lines("out/metrics.jsonl")
        .iter()
        .filter_map(|line| line["eval_loss"].as_f64())
        .collect();
    assert!(losses[losses.len() - 1] < losses[0] - 0.5, "{lora}: the loss went {losses:?}");
    whole
}

/// Log-probabilities of a text under a model.
fn score(workplace: &Workplace, model: &str) -> Vec<f64> {
    let text = json!({"input_ids": [5, 90, 17, 230, 44, 61, 300, 12]}).to_string();
    workplace.write("in.jsonl", &text);
    let args = ["score", "--model", model, "--input", "in.jsonl", "--output", "scores.jsonl"];
    workplace.forgelm(&[&args[..], &["--compute-dtype", "float32"]].concat()).expect_code(0);
    let row = workplace.json_lines("scores.jsonl").remove(0);
    row["logprobs"].as_array().unwrap()[1..].iter().map(|l| l.as_f64().unwrap()).collect()
}

fn adapter_settings(workplace: &Workplace) -> Value {
    serde_json::from_str(&workplace.read("out/final_model/adapter_config.json")).unwrap()
}

#[test]
fn magnitudes_train_and_resume() {
    let run = trains_and_resumes("  method: dora\n", "adapter_model.safetensors");
    assert_eq!(adapter_settings(&run)["use_dora"], true);
    assert_ne!(score(&run, "out/final_model"), score(&run, "model"));
    assert!(run.read("out/final_model/README.md").contains("LoRA + DoRA + r=4"));
}

/// What is saved works on the original weights: twice the rank, no special start.
#[test]
fn principal_components_train_and_resume() {
    let lora = "  method: pissa\n  use_rslora: true\n  use_dora: true\n";
    let run = trains_and_resumes(lora, "adapter_model.safetensors");
    let settings = adapter_settings(&run);
    assert_eq!((&settings["r"], &settings["init_lora_weights"]), (&json!(8), &json!(true)));
    assert_ne!(score(&run, "out/final_model"), score(&run, "model"));
}

#[test]
fn every_weight_trains_and_resumes() {
    let run = trains_and_resumes("  enabled: false\n", "model.safetensors");
    assert!(!run.path("out/final_model/adapter_config.json").exists());
    assert!(run.path("out/final_model/config.json").is_file());
    assert_ne!(score(&run, "out/final_model"), score(&run, "model"));
    assert!(run.read("out/final_model/README.md").contains("full fine-tuning"));
    run.forgelm(&["verify-audit", "out"]).expect_code(0);
}

/// The same training, saved both ways: the merged model scores as the adapter does, and the run
/// says how far it is.
#[test]
fn a_merged_model_is_the_adapter_folded_in() {
    let adapter = Workplace::new();
    adapter.edit_config("  r: 4\n", "  r: 4\n  method: dora\n");
    adapter.run();
    let merged = Workplace::new();
    merged.edit_config("  r: 4\n", "  r: 4\n  method: dora\n");
    merged.edit_config("  output_dir: out\n", "  output_dir: out\n  merge_adapters: true\n");
    let ran = merged.run();
    assert!(ran.stderr.contains("the saved model was read again"), "{}", ran.stderr);
    assert!(!merged.path("out/final_model/adapter_config.json").exists());
    let (a, b) = (score(&adapter, "out/final_model"), score(&merged, "out/final_model"));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-4, "{a} with the adapter, {b} merged");
    }
    let report: Value =
        serde_json::from_str(&merged.read("out/compliance/compliance_report.json")).unwrap();
    let text = report.to_string();
    for key in ["merge_logit_difference_max", "merge_logit_difference_mean", "merge_kl_mean"] {
        assert!(text.contains(key), "no {key} in the report");
    }
}

/// The matched matrices train, and nothing else; there is no adapter.
#[test]
fn galore_trains_the_matched_matrices() {
    let run = Workplace::new();
    let keys = "  output_dir: out\n  galore_enabled: true\n  galore_rank: 8\n  \
                galore_update_proj_gap: 5\n  galore_target_modules: [\".*\\\\.mlp\\\\..*\"]\n";
    run.edit_config("  output_dir: out\n", keys);
    let ran = run.run();
    assert!(ran.stderr.contains("adds no adapter"), "{}", ran.stderr);
    let tensors = |path: &str| SafetensorsFile::open(&run.path(path)).unwrap();
    let (base, tuned) =
        (tensors("model/model.safetensors"), tensors("out/final_model/model.safetensors"));
    let mut changed: Vec<String> = Vec::new();
    for name in base.names() {
        let values = |file: &SafetensorsFile| file.tensor(name).unwrap().to_f32().unwrap();
        if values(&base) != values(&tuned) {
            changed.push(name.to_owned());
        }
    }
    assert_eq!(changed.len(), 2 * 3, "{changed:?}");
    assert!(changed.iter().all(|name| name.contains(".mlp.")), "{changed:?}");
    assert!(run.read("out/final_model/README.md").contains("GaLore r=8"));
}

/// Layer by layer the same model as all at once, with the bits of an uninterrupted run after
/// a kill.
#[test]
fn layerwise_galore_gives_the_model_of_plain_galore() {
    let new = |optim: &str, norm: &str| {
        let workplace = Workplace::new();
        let keys = format!(
            "  output_dir: out\n  galore_enabled: true\n  galore_rank: 8\n  \
             galore_update_proj_gap: 5\n  galore_optim: {optim}\n{norm}"
        );
        workplace.edit_config("  output_dir: out\n", &keys);
        workplace.edit_config("max_steps: 12", "max_steps: 40");
        workplace
    };
    for optim in ["galore_adamw", "galore_adamw_8bit", "galore_adafactor"] {
        let plain = new(optim, "  max_grad_norm: 1e9\n");
        plain.run();
        let layerwise = new(&format!("{optim}_layerwise"), "");
        let mut child = layerwise.start(&["--config", "run.yaml"]);
        while !layerwise.path("out/checkpoint-4").exists() {
            assert!(child.try_wait().unwrap().is_none(), "{optim}: ended too early");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!layerwise.path("out/final_model").exists(), "killed too late to mean anything");
        layerwise.forgelm(&["--config", "run.yaml", "--resume"]).expect_code(0);
        let file = "model.safetensors";
        assert!(weights(&layerwise, file) == weights(&plain, file), "{optim}: another model");
    }
}
