//! `verify-annex-iv --pipeline` over a folder whose stages are real runs. The manifest is written here:
//! no command writes one yet.

use crate::compliance::COMPLETE;
use crate::support::{Ran, Workplace};
use forgelm_evidence::manifest_hash::manifest_hash;
use serde_json::{Value, json};
use std::fs;

const MANIFEST: &str = "pipe/compliance/pipeline_manifest.json";

/// Two runs of one key below `pipe`, the second on top of what the first made.
fn pipeline() -> Workplace {
    let workplace = Workplace::new();
    workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
    let config = workplace.read("run.yaml") + COMPLETE + "signing: {key_file: k}\n";
    let config = config.replace("max_steps: 12", "max_steps: 4");
    for stage in ["stage1", "stage2"] {
        let of_stage = config.replace("output_dir: out", &format!("output_dir: pipe/{stage}"));
        workplace.write("stage.yaml", &of_stage);
        workplace.forgelm(&["--config", "stage.yaml"]).expect_code(0);
    }
    put(&workplace, &manifest());
    workplace
}

fn manifest() -> Value {
    let stage = |n: usize, source: &str, input: &str| {
        json!({
            "name": format!("stage_{n}"), "index": n - 1, "trainer_type": "sft",
            "status": "completed", "input_model": input, "input_source": source,
            "output_model": format!("stage{n}/final_model"), "gate_decision": "passed",
            "training_manifest": format!("stage{n}/compliance/annex_iv_metadata.json"),
        })
    };
    json!({
        "forgelm_version": env!("CARGO_PKG_VERSION"),
        "pipeline_run_id": "pl_2026-01-01_a1b2c3",
        "pipeline_config_hash": format!("sha256:{}", "0".repeat(64)),
        "started_at": "2026-01-01T00:00:00+00:00",
        "final_status": "completed",
        "stopped_at": null,
        "stages": [stage(1, "root", "model"), stage(2, "chain", "stage1/final_model")],
        "annex_iv": {"provider_name": "Acme GmbH"},
        "metadata": {},
    })
}

fn put(workplace: &Workplace, manifest: &Value) {
    let mut manifest = manifest.clone();
    manifest["metadata"]["manifest_hash"] = json!(manifest_hash(&manifest));
    workplace.write(MANIFEST, &manifest.to_string());
}

fn verify(workplace: &Workplace, more: &[&str]) -> Ran {
    let args = ["verify-annex-iv", "--pipeline", "pipe"];
    workplace.forgelm(&[&args[..], more].concat())
}

#[test]
fn a_pipeline_of_real_runs_is_0_a_broken_rule_1_and_what_differs_6() {
    let workplace = pipeline();
    let unsigned = ["--key", "k.pub", "--allow-unsigned"];
    let ran = verify(&workplace, &unsigned).expect_code(0);
    assert!(ran.stdout.contains("audit log: unattested (audit_log_absent)"), "{}", ran.stdout);
    let json =
        verify(&workplace, &["--key", "k.pub", "--allow-unsigned", "--output-format", "json"]);
    let json = json.expect_code(0).json();
    assert_eq!((&json["evidence_verified"], &json["stages_examined"]), (&json!(2), &json!(2)));
    assert_eq!(json["hash_state"], "verified");
    // A log that shows nothing is 1 where it must show something, and so is a manifest without a
    // signature where a key was named.
    let required = ["--key", "k.pub", "--allow-unsigned", "--require-corroboration"];
    verify(&workplace, &required).expect_code(1).expect_stderr("audit_log_absent");
    verify(&workplace, &["--key", "k.pub"]).expect_code(1).expect_stderr("pipeline_manifest.json");
    workplace.forgelm(&["sign", MANIFEST, "--signing-key", "k"]).expect_code(0);
    verify(&workplace, &["--key", "k.pub"]).expect_code(0);
    fs::remove_file(workplace.path(&format!("{MANIFEST}.dsse.json"))).unwrap();
    // The chain: 1.
    let mut broken = manifest();
    broken["stages"][1]["input_model"] = json!("another");
    put(&workplace, &broken);
    verify(&workplace, &unsigned).expect_code(1).expect_stderr("stage 1 `stage_2`: `input_model`");
    // The manifest itself: 6.
    put(&workplace, &manifest());
    let text = workplace.read(MANIFEST).replace("\"root\"", "\"toor\"");
    workplace.write(MANIFEST, &text);
    verify(&workplace, &unsigned).expect_code(6).expect_stderr("manifest_hash");
    // The evidence of a stage: 6 when it differs, 1 when it is gone.
    put(&workplace, &manifest());
    let annex = "pipe/stage2/compliance/annex_iv_metadata.json";
    let good = workplace.read(annex);
    workplace.write(annex, &good.replacen("Acme GmbH", "Acme Ltd.", 1));
    verify(&workplace, &unsigned).expect_code(6).expect_stderr("stage2/compliance/annex_iv");
    fs::remove_file(workplace.path(annex)).unwrap();
    verify(&workplace, &unsigned).expect_code(1).expect_stderr("stage2/compliance/annex_iv");
    workplace.write(annex, &good);
    verify(&workplace, &unsigned).expect_code(0);
    // No pipeline at all.
    let nowhere = ["verify-annex-iv", "--pipeline", "pipe/stage1"];
    workplace.forgelm(&nowhere).expect_code(1).expect_stderr("pipeline_manifest.json: missing");
}
