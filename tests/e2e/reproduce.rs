//! Finished runs made again from their evidence.

use crate::support::Workplace;
use serde_json::Value;
use std::fs;

const RUN: &[&str] = &["reproduce", "out", "--output", "again"];

fn finished() -> Workplace {
    let workplace = Workplace::new();
    workplace.run();
    workplace
}

/// `reproduce out --output again` and more.
fn reproduce(workplace: &Workplace, more: &[&str]) -> crate::support::Ran {
    workplace.forgelm(&[RUN, more].concat())
}

/// Changes a line of the ledger and mends the chain behind it, as a forger would, who then signs
/// the run anew with a key of his own.
fn forge_ledger(workplace: &Workplace, change: impl Fn(&mut Value)) {
    let mut prev = "genesis".to_owned();
    let mut forged = String::new();
    for mut line in workplace.json_lines("out/step_ledger.jsonl") {
        change(&mut line);
        line["prev"] = prev.clone().into();
        let text = line.to_string();
        prev = sha256(text.as_bytes());
        forged += &(text + "\n");
    }
    workplace.write("out/step_ledger.jsonl", &forged);
    let _ = fs::remove_file(workplace.path("out/compliance/attestation.dsse.json"));
}

fn sha256(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bytes");
    fs::write(&path, bytes).unwrap();
    let output = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

#[test]
fn a_run_made_again_is_the_same_and_what_was_run_is_only_read() {
    let workplace = finished();
    let before = workplace.read("out/audit_log.jsonl");
    let ran = reproduce(&workplace, &["--output-format", "json"]).expect_code(0);
    let result = ran.json();
    assert_eq!(result["success"], true);
    assert_eq!((&result["first_step"], &result["last_step"]), (&1.into(), &12.into()));
    let files = result["model_files"].as_array().unwrap();
    assert!(files.contains(&"adapter_model.safetensors".into()), "{files:?}");
    assert!(files.contains(&"adapter_config.json".into()), "{files:?}");
    assert_eq!(workplace.read("out/audit_log.jsonl"), before);
    assert_eq!(
        workplace.read("out/step_ledger.jsonl"),
        workplace.read("again/step_ledger.jsonl"),
        "a ledger names no time and no run"
    );
    workplace.forgelm(&["verify-bundle", "out"]).expect_code(0);
}

#[test]
fn a_run_that_a_gate_judged_and_people_approved_is_made_again_without_either() {
    let workplace = Workplace::new();
    let more =
        "evaluation: {auto_revert: true, max_acceptable_loss: 9, require_human_approval: true}\n";
    workplace.write("run.yaml", &(workplace.read("run.yaml") + more));
    let ran = workplace.forgelm(&["--config", "run.yaml", "--output-format", "json"]);
    let run_id = ran.expect_code(4).json()["run_id"].as_str().unwrap().to_owned();
    let same = |workplace: &Workplace, steps: &[&str]| {
        let ran = reproduce(workplace, steps).expect_code(0);
        assert!(!ran.stderr.contains("forced although"), "{}", ran.stderr);
        fs::remove_dir_all(workplace.path("again")).unwrap();
        ran.stdout
    };
    assert!(same(&workplace, &[]).contains("adapter_model.safetensors"), "still staged");
    let mut approve = workplace.command(&["approve", &run_id, "--output-dir", "out"]);
    let approved = approve.env("FORGELM_OPERATOR", "boss@example").output().unwrap();
    crate::support::Ran::from(approved).expect_code(0);
    assert!(same(&workplace, &[]).contains("adapter_model.safetensors"), "approved");
    same(&workplace, &["--steps", "6-7"]);
    // The archive of an approved run verifies, and names what was decided.
    let pack = ["bundle", "--output-dir", "out", "--out", "e.zip"];
    workplace.forgelm(&pack).expect_code(0);
    let ran = workplace.forgelm(&["verify-bundle", "e.zip"]).expect_code(0);
    assert!(ran.stdout.contains("approved by"), "{}", ran.stdout);
}

#[test]
fn a_slice_is_made_again_from_the_checkpoint_before_it() {
    let workplace = finished();
    let ran = reproduce(&workplace, &["--steps", "6-7"]).expect_code(0);
    assert!(ran.stdout.contains("steps 6 to 7 came out the same"), "{}", ran.stdout);
    let ran = ran.expect_stderr("the checkpoint before step 6 is that of step 4");
    assert!(!ran.stderr.contains("step 8/"), "it stops after the slice: {}", ran.stderr);
    let made = workplace.json_lines("again/step_ledger.jsonl");
    let steps = made.iter().filter(|line| line["entry"] == "step");
    assert_eq!(steps.map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [5, 6, 7]);
    // Without the checkpoint the same steps come from the beginning.
    fs::remove_dir_all(workplace.path("out/checkpoint-4")).unwrap();
    fs::remove_dir_all(workplace.path("again")).unwrap();
    reproduce(&workplace, &["--steps", "6-7"])
        .expect_code(0)
        .expect_stderr("steps 1 to 7 are made again from the base model");
}

#[test]
fn the_first_step_that_differs_is_named() {
    let workplace = finished();
    forge_ledger(&workplace, |line| {
        if line["entry"] == "step" && line["step"] == 3 {
            line["loss"] = (line["loss"].as_f64().unwrap() - 0.5).into();
        }
    });
    reproduce(&workplace, &["--allow-unsigned"])
        .expect_code(6)
        .expect_stderr("after step 3, the loss is not that of the run");

    let workplace = finished();
    forge_ledger(&workplace, |line| {
        if line["entry"] == "step" && line["step"] == 9 {
            line["weights_sha256"] = "00".repeat(32).into();
        }
    });
    reproduce(&workplace, &["--allow-unsigned"])
        .expect_code(6)
        .expect_stderr("after step 9, the weights (SHA-256) is not that of the run");
}

#[test]
fn it_is_made_again_on_the_kernels_of_the_run_or_not_at_all() {
    let workplace = finished();
    let kernels = |name: &'static str| {
        move |line: &mut Value| {
            if line["entry"] == "start" {
                line["kernels"] = name.into();
            }
        }
    };
    forge_ledger(&workplace, kernels("cpu/plain"));
    // Others add in another order: what these give is not what the run has.
    let ran = reproduce(&workplace, &["--allow-unsigned"]).expect_code(6);
    ran.expect_stderr("cpu/plain, loaded").expect_stderr("is not that of the run");
    fs::remove_dir_all(workplace.path("again")).unwrap();
    forge_ledger(&workplace, kernels("cpu/abacus"));
    reproduce(&workplace, &["--allow-unsigned"])
        .expect_code(1)
        .expect_stderr("`cpu/abacus`, which this machine does not have");
}

#[test]
fn a_run_whose_evidence_or_inputs_changed_is_not_the_run() {
    let workplace = finished();
    let data = workplace.read("data.jsonl");
    workplace.write("data.jsonl", &data.replace("item 3", "item three"));
    reproduce(&workplace, &[]).expect_code(6).expect_stderr("the data (SHA-256)");
    workplace.write("data.jsonl", &data);

    fs::remove_dir_all(workplace.path("again")).unwrap();
    workplace.write("moved/data.jsonl", &data);
    fs::rename(workplace.path("model"), workplace.path("moved/model")).unwrap();
    fs::remove_file(workplace.path("data.jsonl")).unwrap();
    let elsewhere = ["--model", "moved/model", "--data", "moved/data.jsonl"];
    reproduce(&workplace, &elsewhere).expect_code(0);

    let ledger = workplace.read("out/step_ledger.jsonl");
    let lines: Vec<&str> = ledger.lines().collect();
    workplace.write("out/step_ledger.jsonl", &(lines[..lines.len() - 2].join("\n") + "\n"));
    fs::remove_dir_all(workplace.path("again")).unwrap();
    reproduce(&workplace, &elsewhere).expect_code(6).expect_stderr("step_ledger.jsonl");
}

#[test]
fn what_cannot_be_reproduced_is_refused_before_anything_runs() {
    let workplace = finished();
    for (steps, says) in [("13", "the ledger has 1-12"), ("12-20", "the ledger has 1-12")] {
        reproduce(&workplace, &["--steps", steps]).expect_code(1).expect_stderr(says);
    }
    for steps in ["0-3", "4-2", "x"] {
        reproduce(&workplace, &["--steps", steps]).expect_code(2);
    }
    workplace.write("again/something", "");
    reproduce(&workplace, &[]).expect_code(1).expect_stderr("is not empty");
    workplace
        .forgelm(&["reproduce", "out", "--output", "out/again"])
        .expect_code(1)
        .expect_stderr("is or lies in the input");
    assert!(!workplace.path("out/again").exists());
    workplace.forgelm(&["reproduce", "nothing", "--output", "new"]).expect_code(1);
    fs::remove_file(workplace.path("out/step_ledger.jsonl")).unwrap();
    reproduce(&workplace, &["--allow-unsigned"]).expect_code(6).expect_stderr("step_ledger.jsonl");
}
