//! Every kind of change, at every level of a finished run: each is noticed, with the right exit
//! class, and the file is named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::run_folder::copy_folder;
use super::{signer, write_run};
use crate::bundle::ATTESTATION;
use crate::bundle::verify::{BundleOptions, BundleReport, verify_bundle};
use crate::checkpoint::CHECKPOINT_FILE;
use crate::class::Class;
use crate::dsse::statement::PredicateType;
use crate::files::walk;
use crate::integrity::{INTEGRITY_FILE, verify_integrity};
use crate::keys::trust::TrustedKeys;
use crate::model::MODEL_SIGNATURE;
use crate::signature::{AuditRequest, verify_audit_log, verify_signature};

struct Run {
    root: PathBuf,
    files: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        write_run(&root, Ok(&signer(1)), "fg-0123456789ab");
        let files = walk(&root, "").unwrap().into_keys().collect();
        Self { root, files, _dir: dir }
    }

    fn keys() -> TrustedKeys {
        TrustedKeys::with_local(signer(1).key.public())
    }

    fn verify(&self) -> BundleReport {
        verify_bundle(&self.root, &BundleOptions { keys: Self::keys(), ..Default::default() })
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        // Not through a temporary file beside it: that would be an extra file for a moment.
        use std::io::Write as _;
        let options = fs::OpenOptions::new().write(true).truncate(true).open(self.root.join(name));
        options.unwrap().write_all(bytes).unwrap();
    }
}

fn names(report: &BundleReport, file: &str) -> bool {
    let findings = report.findings.iter().any(|f| f.file == file);
    findings || (report.signature.class != Class::Accepted && report.signature.place == file)
}

/// Positions all over a file, the ends among them.
fn positions(len: usize, n: usize) -> BTreeSet<usize> {
    (0..n).map(|i| i * (len - 1) / (n - 1)).collect()
}

#[test]
fn one_changed_byte_anywhere_is_6_and_names_the_file() {
    let run = Run::new();
    assert_eq!(run.verify().class, Class::Accepted);
    assert_eq!(run.files.len(), 33);
    let mut n_mutations = 0;
    for file in &run.files {
        let good = fs::read(run.root.join(file)).unwrap();
        for (i, at) in positions(good.len(), 24).into_iter().enumerate() {
            let mut bad = good.clone();
            bad[at] ^= [1, 0x20, 0x80][i % 3];
            run.put(file, &bad);
            let report = run.verify();
            assert_eq!(
                report.class,
                Class::Different,
                "{file} byte {at}: {:#?}",
                report.to_lines()
            );
            assert!(names(&report, file), "{file} byte {at}: {:#?}", report.to_lines());
            n_mutations += 1;
        }
        run.put(file, &good);
    }
    assert_eq!(run.verify().class, Class::Accepted);
    assert!(n_mutations > 400, "{n_mutations}");
}

#[test]
fn cut_removed_emptied_appended_and_swapped_files_are_noticed() {
    let run = Run::new();
    let mut n_mutations = 0;
    let mut check = |file: &str, what: &str| {
        let report = run.verify();
        assert!(names(&report, file), "{what} {file}: {:#?}", report.to_lines());
        // The two envelopes that no other signature covers: what is left of them may be no
        // envelope at all, or absent, which is "not compared". Everything else is 6.
        let top = file == ATTESTATION || file == CHECKPOINT_FILE;
        if top {
            assert_ne!(report.class, Class::Accepted, "{what} {file}");
        } else {
            assert_eq!(report.class, Class::Different, "{what} {file}: {:#?}", report.to_lines());
        }
        n_mutations += 1;
    };
    for (i, file) in run.files.iter().enumerate() {
        let path = run.root.join(file);
        let good = fs::read(&path).unwrap();
        for keep in [good.len() - 1, good.len() / 2, 0] {
            run.put(file, &good[..keep]);
            check(file, "cut");
        }
        // A complete audit record more is an unsigned tail, not a change; half a one is torn.
        run.put(file, &[&good[..], b" "].concat());
        check(file, "appended to");
        let other = &run.files[(i + 1) % run.files.len()];
        let other_bytes = fs::read(run.root.join(other)).unwrap();
        run.put(file, &other_bytes);
        check(file, "overwritten by its neighbour");
        run.put(file, &good);
        fs::remove_file(&path).unwrap();
        check(file, "removed");
        forgelm_artifact::write::atomic(&path, &good).unwrap();
        assert_eq!(run.verify().class, Class::Accepted, "{file} restored");
    }
    assert!(n_mutations > 120, "{n_mutations}");
}

#[test]
fn added_renamed_and_linked_files_are_noticed() {
    let run = Run::new();
    let mut n_mutations = 0;
    for folder in ["compliance", "final_model", "final_model/new"] {
        fs::create_dir_all(run.root.join(folder)).unwrap();
        for name in ["x.json", ".hidden", "x.dsse.json", "README.md.bak"] {
            let file = format!("{folder}/{name}");
            forgelm_artifact::write::atomic(&run.root.join(&file), b"{}").unwrap();
            let report = run.verify();
            assert_eq!(report.class, Class::Different, "{file}");
            assert!(names(&report, &file), "{file}");
            fs::remove_file(run.root.join(&file)).unwrap();
            n_mutations += 1;
        }
    }
    let below: Vec<&String> = run.files.iter().filter(|file| file.contains('/')).collect();
    for file in &below {
        let path = run.root.join(file);
        let moved = run.root.join(format!("{file}.moved"));
        fs::rename(&path, &moved).unwrap();
        let report = run.verify();
        assert!(names(&report, file), "{file} renamed: {:#?}", report.to_lines());
        assert_ne!(report.class, Class::Accepted);
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        let report = run.verify();
        assert!(report.class != Class::Accepted, "{file} linked");
        fs::remove_file(&path).unwrap();
        fs::rename(&moved, &path).unwrap();
        n_mutations += 2;
    }
    assert_eq!(run.verify().class, Class::Accepted);
    assert!(n_mutations > 40, "{n_mutations}");
}

#[test]
fn every_byte_of_an_envelope_and_of_its_document_counts() {
    let run = Run::new();
    let document = run.root.join("compliance/training_manifest.yaml");
    let envelope = "compliance/training_manifest.yaml.dsse.json";
    let state = || {
        let kind = PredicateType::ComplianceManifest;
        verify_signature(&document, None, &Run::keys(), kind)
    };
    assert_eq!(state().class(), Class::Accepted);
    for file in [envelope, "compliance/training_manifest.yaml"] {
        let good = fs::read(run.root.join(file)).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= if at % 2 == 0 { 1 } else { 0x20 };
            run.put(file, &bad);
            let report = state();
            assert_eq!(
                report.class(),
                Class::Different,
                "{file} byte {at}: {:?}",
                report.to_lines()
            );
            let place = &report.signature.place;
            assert!(place.ends_with(file), "{file} byte {at} is blamed on {place}");
        }
        run.put(file, &good);
    }
    assert_eq!(state().class(), Class::Accepted);
}

#[test]
fn every_byte_of_the_audit_log_counts() {
    let run = Run::new();
    let log = run.root.join("audit_log.jsonl");
    let request = AuditRequest { keys: Run::keys(), ..Default::default() };
    assert_eq!(verify_audit_log(&log, &request).class, Class::Accepted);
    let good = fs::read(&log).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= if at % 2 == 0 { 1 } else { 0x20 };
        run.put("audit_log.jsonl", &bad);
        let report = verify_audit_log(&log, &request);
        assert_eq!(report.class, Class::Different, "byte {at}: {:?}", report.to_lines());
        assert!(
            report.to_lines().join("\n").contains("audit_log.jsonl"),
            "{:?}",
            report.to_lines()
        );
    }
}

#[test]
fn every_file_of_the_model_folder_counts() {
    let run = Run::new();
    let dir = run.root.join("final_model");
    let by_itself = [INTEGRITY_FILE, MODEL_SIGNATURE];
    let files = walk(&dir, "").unwrap().into_keys();
    for file in files.filter(|name| !by_itself.contains(&name.as_str())) {
        let name = format!("final_model/{file}");
        let good = fs::read(run.root.join(&name)).unwrap();
        for at in positions(good.len(), 9) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            run.put(&name, &bad);
            let report = verify_integrity(&dir);
            assert_eq!(
                (report.class, &report.changed[..]),
                (Class::Different, &[file.clone()][..])
            );
        }
        run.put(&name, &good);
    }
    assert_eq!(verify_integrity(&dir).class, Class::Accepted);
}

#[test]
fn a_copy_of_the_folder_verifies_elsewhere() {
    let run = Run::new();
    let away = tempfile::tempdir().unwrap();
    copy_folder(&run.root, away.path());
    let options = BundleOptions { keys: Run::keys(), ..Default::default() };
    assert_eq!(verify_bundle(away.path(), &options).class, Class::Accepted);
    assert_eq!(verify_bundle(Path::new("/nowhere"), &options).class, Class::NotCompared);
}
