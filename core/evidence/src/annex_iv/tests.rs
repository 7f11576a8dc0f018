use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{AnnexIvOptions, AnnexIvReport, PointVerdict, read_previous, verify_annex_iv};
use crate::class::Class;
use crate::documents::evidence::Evidence;
use crate::documents::evidence::tests::evidence;
use crate::dsse::verify::SignatureState;
use crate::keys::trust::TrustedKeys;
use crate::manifest_hash::manifest_hash;
use crate::tests::{signer, write_run_of};

const UPSTREAM: &str = include_str!("../tests/annex_iv_upstream.json");

/// A run in which nothing is left to say.
fn complete() -> Evidence {
    let mut evidence = evidence();
    crate::documents::annex_iv::tests::answer_everything(&mut evidence);
    evidence
}

/// A signed run in `dir`; its document.
fn run(dir: &Path, evidence: &Evidence) -> PathBuf {
    write_run_of(dir, Ok(&signer(1)), evidence);
    dir.join("compliance/annex_iv_metadata.json")
}

fn options() -> AnnexIvOptions {
    let keys = TrustedKeys::of_public_keys([signer(1).key.public()]);
    AnnexIvOptions { keys, ..AnnexIvOptions::default() }
}

/// The report on a document by itself, unsigned.
fn alone(document: &Value) -> AnnexIvReport {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("annex.json");
    forgelm_artifact::write::atomic(&path, document.to_string().as_bytes()).unwrap();
    verify_annex_iv(&path, &AnnexIvOptions { allow_unsigned: true, ..options() })
}

/// With its own hash again.
fn rehashed(mut document: Value) -> Value {
    document["metadata"]["manifest_hash"] = json!(manifest_hash(&document));
    document
}

fn upstream() -> Value {
    serde_json::from_str(UPSTREAM).unwrap()
}

#[test]
fn a_fresh_run_is_accepted_and_each_point_has_its_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let report = verify_annex_iv(&path, &AnnexIvOptions { strict: true, ..options() });
    assert_eq!((report.class, &report.reason), (Class::Accepted, &None), "{:?}", report.notes);
    assert_eq!(report.points.len(), 23);
    assert_eq!(report.n_points(PointVerdict::Absent), 0);
    assert!(report.n_points(PointVerdict::Evidence) >= 7, "{:?}", report.points);
    assert_eq!(report.hash_actual, report.hash_expected);
    assert_eq!(report.signature.as_ref().unwrap().state, SignatureState::Valid);
    let envelope = fs::read(path.with_file_name("annex_iv_metadata.json.dsse.json")).unwrap();
    let payload = crate::dsse::Envelope::parse(&envelope).unwrap().payload;
    let statement: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(statement["predicate"]["manifest_hash"], json!(report.hash_actual));
    let json = report.to_json();
    assert_eq!(json["success"], true);
    assert_eq!(json["points"]["1(b)"], "statement");
    assert!(json["path"].as_str().unwrap().starts_with('/'));
}

#[test]
fn open_points_are_absent_and_fail_only_where_none_may_be_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut evidence = complete();
    evidence.compliance.as_mut().unwrap()["annex_iv"]["product"] = json!("TODO");
    let path = run(dir.path(), &evidence);
    let report = verify_annex_iv(&path, &options());
    assert_eq!(report.class, Class::Accepted);
    assert_eq!(report.n_points(PointVerdict::Absent), 1);
    let report = verify_annex_iv(&path, &AnnexIvOptions { strict: true, ..options() });
    assert_eq!(report.class, Class::NotCompared);
    assert_eq!(report.reason.as_deref(), Some("1 points are absent: 1(f)"));
    let dir = tempfile::tempdir().unwrap();
    let section = evidence.compliance.as_mut().unwrap();
    section.insert("risk_classification".to_owned(), json!("high-risk"));
    let path = run(dir.path(), &evidence);
    assert_eq!(verify_annex_iv(&path, &options()).class, Class::NotCompared);
}

#[test]
fn a_changed_byte_is_found_with_and_without_a_signature() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let good = fs::read_to_string(&path).unwrap();
    let bad = good.replacen("\"system_name\": \"the", "\"system_name\": \"tha", 1);
    assert_ne!(good, bad);
    forgelm_artifact::write::atomic(&path, bad.as_bytes()).unwrap();
    let report = verify_annex_iv(&path, &options());
    assert_eq!(report.class, Class::Different);
    assert_ne!(report.hash_actual, report.hash_expected);
    assert_eq!(report.signature.as_ref().unwrap().state, SignatureState::SubjectMismatch);
    // Whoever edits the file can compute the hash anew, and not the signature.
    let forged = rehashed(serde_json::from_str(&bad).unwrap());
    forgelm_artifact::write::atomic(&path, format!("{forged:#}\n").as_bytes()).unwrap();
    let report = verify_annex_iv(&path, &options());
    assert_eq!((report.class, report.hash_actual), (Class::Different, report.hash_expected));
    fs::remove_file(path.with_file_name("annex_iv_metadata.json.dsse.json")).unwrap();
    let report = verify_annex_iv(&path, &options());
    assert_eq!(report.class, Class::NotCompared, "a stripped signature is no success");
    assert!(report.reason.unwrap().contains("it says that there was one"));
}

#[test]
fn evidence_that_lies_beside_it_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let instructions = dir.path().join("final_model/deployer_instructions.md");
    forgelm_artifact::write::atomic(&instructions, b"# Approved\n").unwrap();
    let report = verify_annex_iv(&path, &options());
    assert_eq!(report.class, Class::Different);
    let reason = report.reason.unwrap();
    assert!(reason.starts_with("final_model/deployer_instructions.md: is not"), "{reason}");
    fs::remove_file(&instructions).unwrap();
    let report = verify_annex_iv(&path, &options());
    assert_eq!(report.class, Class::Accepted, "it may travel alone");
    assert_eq!(report.notes, ["1 files of evidence are not beside it"]);
}

#[test]
fn keys_that_are_not_trusted_and_hashes_that_are_missing_are_not_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let other = TrustedKeys::of_public_keys([signer(2).key.public()]);
    for keys in [other, TrustedKeys::default()] {
        let report = verify_annex_iv(&path, &AnnexIvOptions { keys, ..AnnexIvOptions::default() });
        assert_eq!(report.class, Class::NotCompared);
        assert_eq!(report.signature.unwrap().state, SignatureState::UntrustedKey);
    }
    let mut document = upstream();
    document["metadata"] = json!({});
    let report = alone(&document);
    assert_eq!(report.class, Class::NotCompared);
    assert!(report.reason.unwrap().contains("no `metadata.manifest_hash`"));
    let file = dir.path().join("annex.json");
    forgelm_artifact::write::atomic(&file, document.to_string().as_bytes()).unwrap();
    let lenient =
        AnnexIvOptions { allow_unsigned: true, allow_unhashed: true, ..AnnexIvOptions::default() };
    assert_eq!(verify_annex_iv(&file, &lenient).class, Class::Accepted);
}

#[test]
fn files_of_the_earlier_implementation_are_read_and_their_placeholders_are_none() {
    type Change<'a> = &'a dyn Fn(&mut Value);
    let report = alone(&upstream());
    assert_eq!((report.class, report.points.len()), (Class::Accepted, 0), "{:?}", report.reason);
    let with = |change: Change<'_>| {
        let mut document = upstream();
        change(&mut document);
        alone(&rehashed(document))
    };
    let cases: [(&str, Change<'_>); 8] = [
        ("intended_purpose", &|d| d["intended_purpose"] = json!("  \n")),
        ("computational_resources", &|d| {
            d["computational_resources"] = json!({"recorded": "see the tracking server"});
        }),
        ("risk_management", &|d| d["risk_management"] = json!({"art9_reference": "none yet"})),
        ("performance_metrics", &|d| d["performance_metrics"] = json!({})),
        ("data_governance", &|d| d["data_governance"] = json!({"a": "", "b": [null]})),
        ("system_identification.system_name", &|d| {
            d["system_identification"]["system_name"] = json!("TBD");
        }),
        ("system_identification.provider_name", &|d| {
            d["system_identification"]["provider_name"] = json!(false);
        }),
        ("monitoring_and_logging", &|d| d["gaps"] = json!(["monitoring_and_logging"])),
    ];
    for (field, change) in cases {
        let report = with(change);
        assert_eq!(report.class, Class::NotCompared, "{field}");
        assert_eq!(report.missing_fields, [field]);
        assert_eq!(report.hash_actual, None, "not compared");
    }
    let report = with(&|d| d["system_identification"]["risk_classification"] = json!("high-risk"));
    assert_eq!(report.class, Class::NotCompared, "a strict tier needs the points");
    let mut changed = upstream();
    changed["performance_metrics"]["eval_loss"] = json!(0.41);
    assert_eq!(alone(&changed).class, Class::Different);
}

#[test]
fn points_that_claim_what_they_do_not_have_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let with = |point: &str, value: Value| {
        let mut document = document.clone();
        document["points"][point] = value;
        alone(&rehashed(document))
    };
    let digest = "a".repeat(64);
    let row = |status: &str, answer: Value, evidence: Value| json!({"status": status, "answer": answer, "evidence": evidence});
    let given = || json!({"x": "y"});
    let cases = [
        (row("complete", given(), json!([])), "none of the three words"),
        (row("statement", json!({"x": "TBD"}), json!([])), "a placeholder or nothing"),
        (row("evidence", given(), json!([])), "names none by content"),
        (row("evidence", given(), json!([{"file": "x"}])), "names none by content"),
        (row("evidence", given(), json!([{"file": "x", "sha256": "0"}])), "names none by content"),
        (
            row("evidence", given(), json!([{"file": " ", "sha256": digest}])),
            "names none by content",
        ),
        (json!("yes"), "none of the three words"),
        (json!(null), "none of the three words"),
    ];
    for (value, expected) in cases {
        let report = with("2(e)", value.clone());
        assert_eq!(report.class, Class::NotCompared, "{value}");
        let reason = report.reason.unwrap();
        assert!(reason.starts_with("point 2(e): ") && reason.contains(expected), "{reason}");
    }
    let mut without = document.clone();
    without["points"].as_object_mut().unwrap().shift_remove("7");
    let report = alone(&rehashed(without));
    assert_eq!(report.reason.as_deref(), Some("point 7: missing"));
    let mut standalone = document.clone();
    standalone["standalone"] = json!(true);
    let report = alone(&rehashed(standalone));
    assert!(report.reason.unwrap().contains("made from a config alone"));
}

#[test]
fn fault_104_hostile_documents_are_bounded_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("annex.json");
    let verdict = |bytes: &[u8]| {
        forgelm_artifact::write::atomic(&path, bytes).unwrap();
        let report = verify_annex_iv(&path, &options());
        assert_eq!(report.class, Class::NotCompared);
        report.reason.unwrap()
    };
    assert!(verdict("[".repeat(100_000).as_bytes()).contains("levels deep"));
    assert!(verdict(b"{\"a\": 1, \"a\": 2}").contains("twice"));
    assert!(verdict(b"\xff\xfe").contains("not JSON"));
    assert!(verdict(b"").contains("not JSON"));
    assert_eq!(verdict(b"[]"), "not a JSON object");
    assert!(verdict(&vec![b' '; (16 << 20) + 1]).contains("16 MiB"));
    let missing = verify_annex_iv(&dir.path().join("nowhere.json"), &options());
    assert_eq!(missing.class, Class::NotCompared);
    assert_eq!(verify_annex_iv(dir.path(), &options()).class, Class::NotCompared);
    // Evidence that points out of the run's folder is not looked at.
    let run_dir = tempfile::tempdir().unwrap();
    let path = run(run_dir.path(), &complete());
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    document["points"]["9"]["evidence"] =
        json!([{"file": "../../etc/passwd", "sha256": "a".repeat(64)}]);
    let text = rehashed(document).to_string();
    forgelm_artifact::write::atomic(&path, text.as_bytes()).unwrap();
    fs::remove_file(path.with_file_name("annex_iv_metadata.json.dsse.json")).unwrap();
    let report = verify_annex_iv(&path, &AnnexIvOptions { allow_unsigned: true, ..options() });
    assert_eq!(report.class, Class::NotCompared);
    assert!(report.reason.unwrap().contains("no path within the run's folder"));
}

#[test]
fn the_second_profile_of_the_hash_is_read_by_its_label() {
    let mut document = upstream();
    document["metadata"] = json!({});
    let sha256 = crate::manifest_hash::manifest_hash_canonical(&document).unwrap();
    document["metadata"] = json!({"manifest_hash_v2": {"profile": "rfc8785", "sha256": sha256}});
    let report = alone(&document);
    assert_eq!((report.class, report.hash_actual), (Class::Accepted, Some(sha256)));
    document["performance_metrics"]["eval_loss"] = json!(0.5);
    assert_eq!(alone(&document).class, Class::Different);
    document["metadata"]["manifest_hash_v2"]["profile"] = json!("v9");
    assert_eq!(alone(&document).class, Class::NotCompared);
}

#[test]
fn the_manifest_before_is_used_only_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let keys = || options().keys;
    let previous = read_previous(&path, &keys()).unwrap();
    assert_eq!((previous.signature, previous.keyid.is_some()), ("valid", true));
    assert_eq!(read_previous(&path, &TrustedKeys::default()).unwrap().signature, "untrusted_key");
    let good = fs::read_to_string(&path).unwrap();
    let write = |text: &str| forgelm_artifact::write::atomic(&path, text.as_bytes()).unwrap();
    write(&good.replacen("\"lora_r\": 8", "\"lora_r\": 9", 1));
    assert_eq!(read_previous(&path, &keys()).unwrap_err().class, Class::Different);
    let forged = rehashed(serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap());
    write(&forged.to_string());
    let problem = read_previous(&path, &keys()).unwrap_err();
    assert!(problem.class == Class::Different && problem.reason.starts_with("signature: "));
    write("{}");
    assert_eq!(read_previous(&path, &keys()).unwrap_err().class, Class::NotCompared);
    assert_eq!(read_previous(dir.path(), &keys()).unwrap_err().class, Class::NotCompared);
}

/// Every byte of the document matters, and every byte of its signature.
#[test]
fn one_flipped_byte_is_never_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let mut n_tried = 0;
    for file in [path.clone(), path.with_file_name("annex_iv_metadata.json.dsse.json")] {
        let good = fs::read(&file).unwrap();
        for at in (0..good.len()).step_by(good.len() / 150) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            forgelm_artifact::write::atomic(&file, &bad).unwrap();
            assert_ne!(verify_annex_iv(&path, &options()).class, Class::Accepted, "byte {at}");
            n_tried += 1;
        }
        forgelm_artifact::write::atomic(&file, &good).unwrap();
    }
    assert!(n_tried >= 300);
    assert_eq!(verify_annex_iv(&path, &options()).class, Class::Accepted);
}

/// What stands where something else is expected is refused or counted as nothing, and never a panic.
#[test]
fn members_of_any_other_type_are_no_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = run(dir.path(), &complete());
    let document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let others = [
        json!(null),
        json!(true),
        json!(0),
        json!(""),
        json!([]),
        json!({}),
        json!([[]]),
        json!({"": null}),
    ];
    for key in document.as_object().unwrap().keys() {
        for other in &others {
            let mut changed = document.clone();
            changed[key] = other.clone();
            if changed == document {
                continue;
            }
            let report = alone(&changed);
            assert_ne!(report.class, Class::Accepted, "{key}: {other}");
            assert!(report.to_lines()[0].starts_with("FAIL: "), "{key}: {other}");
            assert_eq!(report.to_json()["success"], false);
        }
    }
}
