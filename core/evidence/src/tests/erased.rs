//! A run of which something was erased, and what a verifier says of it.

use std::path::Path;

use forgelm_artifact::write;

use super::{open, signer, write_run};
use crate::bundle::verify::{BundleOptions, BundleReport, FindingKind, verify_bundle};
use crate::class::Class;
use crate::documents::evidence::Builder;
use crate::erasure::{ErasureClaims, is_statement, subjects, write_head, write_statement};
use crate::keys::trust::TrustedKeys;

const RUN: &str = "fg-0123456789ab";
const GONE: [&str; 2] = ["compliance/config.json.dsse.json", "compliance/config.json"];

fn verify(dir: &Path) -> BundleReport {
    let keys = TrustedKeys::with_local(signer(1).key.public());
    verify_bundle(dir, &BundleOptions { keys, ..BundleOptions::default() })
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Signs with `seed` that files are erased, and removes these.
fn erase(dir: &Path, seed: u8, named: &[&str], removed: &[&str]) -> String {
    let builder = Builder::default();
    let claims = ErasureClaims {
        run_id: RUN,
        kind: "artefacts",
        justification: None,
        builder: &builder,
        operator: "alice@host",
        signed_at: "2026-02-01T00:00:00.000000+00:00",
    };
    let subjects = subjects(dir, &names(named)).unwrap();
    let name = write_statement(dir, subjects, &claims, &signer(seed)).unwrap();
    for file in removed {
        let path = dir.join(file);
        if path.is_dir() { write::remove_dir(&path) } else { write::remove_file(&path) }.unwrap();
    }
    open(dir).append(&super::event("erased", 1)).unwrap();
    write_head(dir, &claims, &signer(1)).unwrap();
    name
}

#[test]
fn what_a_signed_statement_names_is_erased_and_what_none_names_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    let statement = erase(dir.path(), 1, &GONE, &GONE);
    assert_eq!(statement, "compliance/erasure.1.dsse.json");
    let report = verify(dir.path());
    assert_eq!((report.class, &report.findings), (Class::Accepted, &vec![]));
    let mut erased: Vec<&str> = report.erased.iter().map(|(file, _)| file.as_str()).collect();
    erased.reverse();
    assert_eq!(erased, GONE);
    assert_eq!(report.to_json()["erased"][0]["statement"], "compliance/erasure.1.dsse.json");
    assert!(report.to_lines().iter().any(|line| line.contains("erased: compliance/config.json:")));

    // One more file is gone, and nobody signed that.
    write::remove_file(&dir.path().join("metrics.jsonl")).unwrap();
    let report = verify(dir.path());
    assert_eq!(report.class, Class::Different);
    let found: Vec<_> = report.findings.iter().map(|f| (f.file.as_str(), f.kind)).collect();
    assert_eq!(found, [("metrics.jsonl", FindingKind::Missing)]);

    // A whole folder, with a second statement.
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    erase(dir.path(), 1, &GONE, &GONE);
    assert_eq!(
        erase(dir.path(), 1, &["final_model"], &["final_model"]),
        "compliance/erasure.2.dsse.json"
    );
    let report = verify(dir.path());
    assert_eq!((report.class, &report.findings), (Class::Accepted, &vec![]));
    assert_eq!(report.erased.len(), 9);
}

#[test]
fn a_statement_counts_for_the_bytes_that_it_names_and_by_a_trusted_key_alone() {
    // Of a key that nobody knows: it says nothing, and what is missing is missing.
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    erase(dir.path(), 2, &GONE, &GONE);
    let report = verify(dir.path());
    assert_eq!((report.class, report.findings.len()), (Class::Different, 3));
    // Of the key beside the run, which nobody trusts: as for the run itself, nothing was compared.
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    erase(dir.path(), 1, &GONE, &GONE);
    let report = verify_bundle(dir.path(), &BundleOptions::default());
    assert_eq!((report.class, report.findings.len()), (Class::NotCompared, 2));
    assert!(report.findings.iter().all(|f| f.kind == FindingKind::Missing));
    // Of other bytes than the run signed.
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    write::atomic(&dir.path().join("metrics.jsonl"), b"other").unwrap();
    erase(dir.path(), 1, &["metrics.jsonl"], &["metrics.jsonl"]);
    assert_eq!(verify(dir.path()).class, Class::Different);
    // Changed anywhere: it says nothing any more, and is a finding of its own.
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    let path = dir.path().join(erase(dir.path(), 1, &GONE, &GONE));
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 16) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        write::atomic(&path, &bytes).unwrap();
        let report = verify(dir.path());
        assert_eq!((report.class, report.findings.len()), (Class::Different, 3), "byte {at}");
    }
    write::atomic(&path, &good).unwrap();
    assert_eq!(verify(dir.path()).class, Class::Accepted);
    // Named and there: a purge that stopped in the middle.
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), Ok(&signer(1)), RUN);
    erase(dir.path(), 1, &GONE, &GONE[..1]);
    let report = verify(dir.path());
    assert_eq!((report.class, report.erased.len()), (Class::Accepted, 1));
}

#[test]
fn only_a_number_names_a_statement() {
    assert!(is_statement("compliance/erasure.12.dsse.json"));
    for name in
        ["compliance/erasure..dsse.json", "compliance/erasure.x.dsse.json", "erasure.1.dsse.json"]
    {
        assert!(!is_statement(name), "{name}");
    }
}
