//! What a stranger can check, and what one changed byte does.

use crate::support::Workplace;
use std::fs;

const CHECKS: [&[&str]; 5] = [
    &["verify-audit", "out"],
    &["verify-integrity", "out/final_model"],
    &["verify-signature", "out/compliance/compliance_report.json"],
    &["verify-signature", "out/compliance/training_manifest.yaml"],
    &["verify-bundle", "out"],
];

#[test]
fn a_fresh_run_verifies() {
    let workplace = Workplace::new();
    workplace.run();
    for check in CHECKS {
        workplace.forgelm(check).expect_code(0);
        let mut json = check.to_vec();
        json.extend(["--output-format", "json"]);
        assert_eq!(workplace.forgelm(&json).expect_code(0).json()["success"], true, "{check:?}");
    }
}

#[test]
fn a_stranger_verifies_with_the_public_key_alone() {
    let workplace = Workplace::new();
    workplace.run();
    fs::rename(workplace.path("home"), workplace.path("gone")).unwrap();
    let manifest = "out/compliance/training_manifest.yaml";
    workplace.forgelm(&["verify-signature", manifest]).expect_code(1);
    let key = "gone/.config/forgelm/signing.key.pub";
    workplace.forgelm(&["verify-signature", manifest, "--key", key]).expect_code(0);
    workplace.forgelm(&["verify-bundle", "out", "--key", key]).expect_code(0);
}

#[test]
fn one_changed_byte_exits_6_and_names_the_file() {
    let workplace = Workplace::new();
    workplace.run();
    let cases: [(&str, &[&str]); 6] = [
        ("out/audit_log.jsonl", &["verify-audit", "out"]),
        ("out/final_model/adapter_model.safetensors", &["verify-integrity", "out/final_model"]),
        ("out/final_model/tokenizer.json", &["verify-integrity", "out/final_model"]),
        (
            "out/compliance/training_manifest.yaml",
            &["verify-signature", "out/compliance/training_manifest.yaml"],
        ),
        (
            "out/compliance/compliance_report.json",
            &["verify-signature", "out/compliance/compliance_report.json"],
        ),
        ("out/final_model/adapter_model.safetensors", &["verify-bundle", "out"]),
    ];
    for (file, check) in cases {
        let path = workplace.path(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let at = bad.len() / 3;
        bad[at] = if bad[at] == b'7' { b'8' } else { b'7' };
        fs::write(&path, &bad).unwrap();
        let ran = workplace.forgelm(check).expect_code(6);
        let name = path.file_name().unwrap().to_str().unwrap();
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains(name), "{check:?} does not name {name}:\n{said}");
        fs::write(&path, &good).unwrap();
        workplace.forgelm(check).expect_code(0);
    }
}

#[test]
fn what_is_not_there_is_not_accepted() {
    let workplace = Workplace::new();
    workplace.forgelm(&["verify-audit", "nowhere"]).expect_code(1);
    workplace.forgelm(&["verify-integrity", "model"]).expect_code(1);
    workplace.forgelm(&["verify-signature", "data.jsonl"]).expect_code(1);
    workplace.forgelm(&["verify-bundle", "model"]).expect_code(1);
}
