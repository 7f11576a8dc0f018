//! A finished run, verified as a stranger would.

use std::fs;
use std::path::Path;

use super::{event, open, signer, write_run};
use crate::bundle::verify::{BundleOptions, BundleReport, FindingKind, verify_bundle};
use crate::bundle::{ATTESTATION, PUBLIC_KEY};
use crate::checkpoint::CHECKPOINT_FILE;
use crate::class::Class;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::SignatureState;
use crate::integrity::verify_integrity;
use crate::keys::trust::TrustedKeys;
use crate::signature::{AuditRequest, verify_audit_log, verify_signature};

const RUN: &str = "fg-0123456789ab";

fn trusted(seed: u8) -> TrustedKeys {
    TrustedKeys::with_local(signer(seed).key.public())
}

fn verify(dir: &Path, keys: TrustedKeys) -> BundleReport {
    verify_bundle(dir, &BundleOptions { keys, ..BundleOptions::default() })
}

fn kinds(report: &BundleReport) -> Vec<(String, FindingKind)> {
    report.findings.iter().map(|f| (f.file.clone(), f.kind)).collect()
}

#[test]
fn a_fresh_run_verifies_with_every_verifier() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write_run(dir.path(), Ok(&signer(1)), RUN);
    assert_eq!(bundle.documents.len(), 10);
    let report = verify(dir.path(), trusted(1));
    assert_eq!((report.class, kinds(&report)), (Class::Accepted, vec![]));
    assert_eq!(report.signature.state, SignatureState::Valid);
    assert_eq!(report.subjects_verified, bundle.subject_count);
    // 10 documents with 10 signatures, the public key, 7 files of the model, the metrics, the
    // genesis manifest.
    assert_eq!(bundle.subject_count, 30);
    assert_eq!(report.documents_verified, 10);
    assert_eq!(report.audit.as_ref().unwrap().entries, bundle.audit_entries);
    assert_eq!(report.outcome.as_deref(), Some("promoted"));
    let json = report.to_json();
    assert_eq!(json.as_object().unwrap().keys().next().unwrap(), "success");
    assert_eq!((&json["success"], &json["signature"]["state"]), (&true.into(), &"valid".into()));
    assert!(report.to_lines()[0].starts_with("OK: "));

    for document in &bundle.documents {
        let path = dir.path().join(document);
        let kind = PredicateType::ComplianceManifest;
        let report = verify_signature(&path, None, &trusted(1), kind);
        assert_eq!(report.class(), Class::Accepted, "{:?}", report.to_lines());
        assert_eq!(report.signature.key_origin.as_deref(), Some("auto_generated"));
        assert_eq!(report.to_json()["signature"]["trusted"], true);
    }
    let integrity = verify_integrity(&dir.path().join("final_model"));
    assert_eq!((integrity.class, integrity.verified_count), (Class::Accepted, 5));
    let request = AuditRequest { keys: trusted(1), require_signature: true, ..Default::default() };
    let audit = verify_audit_log(&dir.path().join("audit_log.jsonl"), &request);
    assert_eq!(audit.class, Class::Accepted);
    assert_eq!(audit.to_lines()[0], "OK: 6 entries verified");
    let log = dir.path().join("audit_log.jsonl");
    let report = verify_signature(&log, None, &trusted(1), PredicateType::AuditCheckpoint);
    assert_eq!(report.class(), Class::Accepted);
}

#[test]
fn a_document_travels_with_its_signature_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    let away = tempfile::tempdir().unwrap();
    for name in ["compliance_report.json", "compliance_report.json.dsse.json"] {
        fs::copy(dir.path().join("compliance").join(name), away.path().join(name)).unwrap();
    }
    let path = away.path().join("compliance_report.json");
    let kind = PredicateType::ComplianceManifest;
    let state = |keys: &TrustedKeys| verify_signature(&path, None, keys, kind).signature.state;
    assert_eq!(state(&trusted(1)), SignatureState::Valid);
    assert_eq!(state(&trusted(2)), SignatureState::UntrustedKey);
    // Of another type than the caller expects.
    let report = verify_signature(&path, None, &trusted(1), PredicateType::TrainingRun);
    assert_eq!(report.signature.state, SignatureState::SubjectMismatch);
    assert_eq!(report.class(), Class::Different);
    // Under another name.
    let other = away.path().join("other.json");
    fs::rename(&path, &other).unwrap();
    let envelope = away.path().join("compliance_report.json.dsse.json");
    let report = verify_signature(&other, Some(&envelope), &trusted(1), kind);
    assert_eq!(report.signature.state, SignatureState::SubjectMismatch);
    let report = verify_signature(&other, None, &trusted(1), kind);
    assert_eq!(
        (report.signature.state, report.class()),
        (SignatureState::Absent, Class::NotCompared)
    );
}

#[test]
fn without_a_trusted_key_nothing_is_accepted_and_changes_are_still_found() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    for keys in [TrustedKeys::default(), trusted(2)] {
        let report = verify(dir.path(), keys);
        assert_eq!(report.signature.state, SignatureState::UntrustedKey);
        assert_eq!((report.class, kinds(&report)), (Class::NotCompared, vec![]));
        assert!(report.to_lines().iter().any(|line| line.contains("--key PUB")));
    }
    let adapter = dir.path().join("final_model/adapter_model.safetensors");
    forgelm_artifact::write::atomic(&adapter, &[8; 3000]).unwrap();
    let report = verify(dir.path(), TrustedKeys::default());
    assert_eq!(report.class, Class::Different);
    assert!(
        kinds(&report)
            .contains(&("final_model/adapter_model.safetensors".to_owned(), FindingKind::Changed))
    );
    // The public key beside the files cannot make itself trusted, and without it nothing is known.
    fs::remove_file(dir.path().join(PUBLIC_KEY)).unwrap();
    let report = verify(dir.path(), TrustedKeys::default());
    assert_eq!(report.signature.state, SignatureState::UntrustedKey);
}

#[test]
fn fault_098_a_genuine_signature_of_another_run_or_of_before_is_refused() {
    let dirs = [0, 1, 2].map(|_| tempfile::tempdir().unwrap());
    let [a, b, old] = dirs.each_ref().map(tempfile::TempDir::path);
    write_run(a, Ok(&signer(1)), "fg-aaaaaaaaaaaa");
    write_run(b, Ok(&signer(1)), "fg-bbbbbbbbbbbb");
    let copy = |from: &Path, to: &Path, name: &str| {
        fs::copy(from.join(name), to.join(name)).unwrap();
    };
    // The whole attestation of another run.
    let document = "compliance/compliance_report.json";
    let envelope = "compliance/compliance_report.json.dsse.json";
    copy_folder(a, old);
    copy(b, a, ATTESTATION);
    let report = verify(a, trusted(1));
    assert_eq!((report.signature.state, report.class), (SignatureState::Valid, Class::Different));
    assert!(kinds(&report).contains(&(document.to_owned(), FindingKind::Changed)));
    assert!(kinds(&report).contains(&("audit_log.jsonl".to_owned(), FindingKind::Chain)));
    // A document of another run with its own signature.
    copy(old, a, ATTESTATION);
    assert_eq!(verify(a, trusted(1)).class, Class::Accepted);
    copy(b, a, document);
    copy(b, a, envelope);
    let report = verify(a, trusted(1));
    assert_eq!(report.class, Class::Different);
    assert_eq!(
        kinds(&report),
        [(document.to_owned(), FindingKind::Changed), (envelope.to_owned(), FindingKind::Changed)]
    );
    // The signature of one document beside another.
    copy(old, a, document);
    copy(old, a, envelope);
    let path = a.join(document);
    let wrong = a.join("compliance/data_provenance.json.dsse.json");
    let kind = PredicateType::ComplianceManifest;
    let report = verify_signature(&path, Some(&wrong), &trusted(1), kind);
    assert_eq!(report.signature.state, SignatureState::SubjectMismatch);
    // The run goes on in the same folder; then someone puts the older log and checkpoint back.
    write_run(a, Ok(&signer(1)), "fg-aaaaaaaaaaaa");
    assert_eq!(verify(a, trusted(1)).class, Class::Accepted);
    copy(old, a, "audit_log.jsonl");
    copy(old, a, CHECKPOINT_FILE);
    let report = verify(a, trusted(1));
    assert_eq!(report.class, Class::Different);
    assert!(kinds(&report).contains(&("audit_log.jsonl".to_owned(), FindingKind::Chain)));
    assert!(kinds(&report).contains(&(CHECKPOINT_FILE.to_owned(), FindingKind::Signature)));
}

/// Copies a whole folder, so that a test has it as it was.
pub(super) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn fault_100_extra_missing_renamed_and_linked_files_have_their_own_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_run(root, Ok(&signer(1)), RUN);
    forgelm_artifact::write::atomic(&root.join("compliance/extra.json"), b"{}").unwrap();
    fs::remove_file(root.join("compliance/data_provenance.json")).unwrap();
    fs::rename(root.join("final_model/tokenizer.json"), root.join("final_model/t.json")).unwrap();
    let metrics = root.join("metrics.jsonl");
    fs::rename(&metrics, root.join("m.jsonl")).unwrap();
    std::os::unix::fs::symlink(root.join("m.jsonl"), &metrics).unwrap();
    let report = verify(root, trusted(1));
    assert_eq!((report.signature.state, report.class), (SignatureState::Valid, Class::Different));
    let expected = [
        ("compliance/data_provenance.json", FindingKind::Missing),
        ("compliance/extra.json", FindingKind::Extra),
        ("final_model/model.sig", FindingKind::Signature),
        ("final_model/t.json", FindingKind::Extra),
        ("final_model/t.json", FindingKind::Extra),
        ("final_model/tokenizer.json", FindingKind::Missing),
        ("final_model/tokenizer.json", FindingKind::Renamed),
        ("metrics.jsonl", FindingKind::NotAFile),
    ];
    assert_eq!(kinds(&report), expected.map(|(file, kind)| (file.to_owned(), kind)));
    let text = report.to_lines().join("\n");
    assert!(text.contains("renamed: final_model/tokenizer.json: its bytes now lie in"), "{text}");
    assert!(text.contains("not_a_file: metrics.jsonl: a symbolic link"), "{text}");
}

#[test]
fn an_unsigned_run_is_not_accepted_unless_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write_run(dir.path(), Err("signing.enabled is false"), RUN);
    assert_eq!((bundle.keyid, bundle.subject_count), (None, 0));
    let log = fs::read_to_string(dir.path().join("audit_log.jsonl")).unwrap();
    assert!(log.contains("\"signing.skipped\"") && log.contains("signing.enabled is false"));
    let report = verify(dir.path(), trusted(1));
    assert_eq!(
        (report.signature.state, report.class),
        (SignatureState::Absent, Class::NotCompared)
    );
    let options = BundleOptions { allow_unsigned: true, ..BundleOptions::default() };
    assert_eq!(verify_bundle(dir.path(), &options).class, Class::Accepted);
    forgelm_artifact::write::atomic(&dir.path().join("final_model/tokenizer.json"), b"[]").unwrap();
    assert_eq!(verify_bundle(dir.path(), &options).class, Class::Different);
}

#[test]
fn a_second_run_in_the_folder_replaces_the_evidence_and_extends_the_log() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    open(dir.path()).append(&event("approval", 0)).unwrap();
    let report = verify(dir.path(), trusted(1));
    assert_eq!(report.class, Class::Accepted, "a longer log is fine");
    assert_eq!(report.notes, ["1 entries after the newest signed checkpoint"]);
    let bundle = write_run(dir.path(), Ok(&signer(1)), "fg-cccccccccccc");
    assert_eq!(bundle.audit_entries, 13);
    let report = verify(dir.path(), trusted(1));
    assert_eq!((report.class, report.notes.len()), (Class::Accepted, 0));
    // The key was replaced in between: the old one says nothing about the new run.
    write_run(dir.path(), Ok(&signer(2)), "fg-dddddddddddd");
    assert_eq!(verify(dir.path(), trusted(1)).signature.state, SignatureState::UntrustedKey);
    assert_eq!(verify(dir.path(), trusted(2)).class, Class::Accepted);
}
