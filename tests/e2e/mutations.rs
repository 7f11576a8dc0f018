//! Every kind of change at every level of a run that the program itself made. Each is noticed, with the
//! exit code of the table in the specification, and the file is named.
//!
//! The many changes are looked at by the library, in this process; the last test asks the program.

use crate::compliance::COMPLETE;
use crate::support::Workplace;
use forgelm_artifact::hash::sha256_bytes;
use forgelm_evidence::Class;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::bundle::verify::{BundleOptions, BundleReport, verify_bundle};
use forgelm_evidence::bundle::{ATTESTATION, PUBLIC_KEY};
use forgelm_evidence::checkpoint::CHECKPOINT_FILE;
use forgelm_evidence::keys::trust::TrustedKeys;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two finished runs of one key: `out`, which is changed, and `other`, as genuine as it.
struct Runs {
    workplace: Workplace,
    /// The files of `out`, without its checkpoints and its lock.
    files: Vec<String>,
}

impl Runs {
    fn new() -> Self {
        let workplace = Workplace::new();
        workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
        let config = workplace.read("run.yaml");
        workplace.write("run.yaml", &(config + COMPLETE + "signing: {key_file: k}\n"));
        workplace.edit_config("max_steps: 12", "max_steps: 4");
        workplace.run();
        let other = workplace.read("run.yaml").replace("output_dir: out", "output_dir: other");
        workplace.write("other.yaml", &other.replace("learning_rate: 5e-3", "learning_rate: 4e-3"));
        workplace.forgelm(&["--config", "other.yaml"]).expect_code(0);
        let mut files = Vec::new();
        walk(&workplace.path("out"), "", &mut files);
        // To go on with, and who works in the folder: no part of what is signed.
        files.retain(|file| !file.starts_with("checkpoint") && file != ".forgelm.lock");
        files.sort();
        Self { workplace, files }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.workplace.path("out").join(file)
    }

    fn good(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    fn verify(&self) -> BundleReport {
        let keys = TrustedKeys::of_key_files(&[self.workplace.path("k.pub")]).unwrap();
        let options = BundleOptions { keys, ..BundleOptions::default() };
        verify_bundle(&self.workplace.path("out"), &options)
    }

    /// Puts the file back as it was, whatever lies in its place.
    fn restore(&self, file: &str, good: &[u8]) {
        let path = self.path(file);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
        fs::write(&path, good).unwrap();
    }
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        match entry.path().is_dir() {
            true => walk(&entry.path(), &format!("{name}/"), found),
            false => found.push(name),
        }
    }
}

fn names(report: &BundleReport, file: &str) -> bool {
    let findings = report.findings.iter().any(|f| f.file == file);
    findings || (report.signature.class != Class::Accepted && report.signature.place == file)
}

/// No other signature covers these two, so what is left of them may be no envelope at all: that is "not
/// compared". Everything else that differs from what was signed is 6.
fn is_top(file: &str) -> bool {
    file == ATTESTATION || file == CHECKPOINT_FILE
}

/// Positions all over a file, the ends among them.
fn positions(len: usize, n: usize) -> BTreeSet<usize> {
    (0..n).map(|i| i * (len - 1) / (n - 1)).collect()
}

/// The lines of a text file, each with its end.
fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|&b| b == b'\n').collect()
}

/// Other bytes for a file, and what was done to get them.
fn other_bytes(good: &[u8], of_other_run: Option<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (i, at) in positions(good.len(), 12).into_iter().enumerate() {
        let mut bad = good.to_vec();
        bad[at] ^= [1, 0x20, 0x80][i % 3];
        all.push((format!("byte {at} changed"), bad));
    }
    for keep in [good.len() - 1, good.len() / 2] {
        all.push((format!("cut after {keep}"), good[..keep].to_vec()));
    }
    all.push(("emptied".to_owned(), Vec::new()));
    for more in [" ", "\n", "\0", "{}\n"] {
        all.push((format!("{more:?} appended"), [good, more.as_bytes()].concat()));
    }
    all.push(("a byte before it".to_owned(), [b"\n", good].concat()));
    let parts = lines(good);
    if parts.len() > 2 {
        let (middle, last) = (parts.len() / 2, parts.len() - 1);
        let mut swapped = parts.clone();
        swapped.swap(middle - 1, middle);
        all.push(("two lines swapped".to_owned(), swapped.concat()));
        for at in [0, middle, last] {
            let mut fewer = parts.clone();
            fewer.remove(at);
            all.push((format!("line {} removed", at + 1), fewer.concat()));
            let mut more = parts.clone();
            more.insert(at, parts[at]);
            all.push((format!("line {} doubled", at + 1), more.concat()));
        }
    }
    if let Some(other) = of_other_run {
        all.push(("taken from another genuine run".to_owned(), other));
    }
    all.retain(|(_, bytes)| bytes != good);
    all
}

#[test]
fn every_file_of_a_finished_run_is_bound() {
    let runs = Runs::new();
    let report = runs.verify();
    assert_eq!(report.class, Class::Accepted, "{:#?}", report.to_lines());
    // The log, its checkpoint and the attestation are verified in other ways than as subjects.
    assert_eq!(report.subjects_verified, runs.files.len() - 3, "{:#?}", runs.files);
    assert!(runs.files.len() > 25, "{:#?}", runs.files);
}

#[test]
fn other_bytes_in_any_file_are_noticed_and_the_file_is_named() {
    let runs = Runs::new();
    let mut n_mutations = 0;
    for file in &runs.files {
        let good = runs.good(file);
        let other = fs::read(runs.workplace.path("other").join(file)).ok();
        for (what, bad) in other_bytes(&good, other) {
            fs::write(runs.path(file), &bad).unwrap();
            let report = runs.verify();
            let told = || format!("{file}: {what}: {:#?}", report.to_lines());
            match what.as_str() {
                // The attestation of another run is good: it is the files that do not fit.
                "taken from another genuine run" if file == ATTESTATION => {
                    assert!(report.findings.len() > 9, "{}", told());
                }
                _ => assert!(names(&report, file), "{}", told()),
            }
            let is_flip = what.ends_with("changed");
            if is_top(file) && !is_flip {
                assert!([1, 6].contains(&report.class.exit_code()), "{}", told());
            } else {
                assert_eq!(report.class, Class::Different, "{}", told());
            }
            n_mutations += 1;
        }
        fs::write(runs.path(file), &good).unwrap();
    }
    assert_eq!(runs.verify().class, Class::Accepted, "all is as it was");
    assert!(n_mutations >= 500, "{n_mutations}");
}

#[test]
fn what_is_no_file_any_more_or_has_another_name_is_noticed_and_named() {
    let runs = Runs::new();
    let away = runs.workplace.path("away");
    let mut n_mutations = 0;
    for file in &runs.files {
        let (path, good) = (runs.path(file), runs.good(file));
        let mut check = |what: &str| {
            let report = runs.verify();
            let told = || format!("{file}: {what}: {:#?}", report.to_lines());
            assert!(names(&report, file), "{}", told());
            let expected = if is_top(file) { Class::NotCompared } else { Class::Different };
            assert_eq!(report.class, expected, "{}", told());
            n_mutations += 1;
        };
        fs::remove_file(&path).unwrap();
        check("removed");
        fs::create_dir(&path).unwrap();
        check("a folder");
        fs::write(path.join("x"), &good).unwrap();
        check("a folder with a file in it");
        fs::remove_dir_all(&path).unwrap();
        fs::write(&away, &good).unwrap();
        symlink(&away, &path).unwrap();
        check("a link to the same bytes");
        fs::remove_file(&path).unwrap();
        symlink(runs.workplace.path("nowhere"), &path).unwrap();
        check("a link to nothing");
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        check("a named pipe");
        fs::remove_file(&path).unwrap();
        // With letters of another alphabet that look the same, and with a line end.
        for (what, name) in [
            ("renamed", format!("{file}.moved")),
            ("a name that looks the same", file.replace('a', "\u{430}").replace('o', "\u{43e}")),
            ("a name of two lines", format!("{file}\nOK: all is well")),
        ] {
            let moved = runs.path(&name);
            let folder = moved.parent().unwrap().to_owned();
            let is_new = !folder.exists();
            fs::create_dir_all(&folder).unwrap();
            fs::write(&moved, &good).unwrap();
            check(what);
            fs::remove_file(&moved).unwrap();
            if is_new {
                fs::remove_dir(&folder).unwrap();
            }
        }
        runs.restore(file, &good);
        assert_eq!(runs.verify().class, Class::Accepted, "{file} restored");
    }
    assert!(n_mutations >= 200, "{n_mutations}");
}

#[test]
fn files_that_change_places_are_both_named() {
    let runs = Runs::new();
    let mut n_mutations = 0;
    for pair in runs.files.windows(2) {
        let [a, b] = pair else { unreachable!() };
        let (of_a, of_b) = (runs.good(a), runs.good(b));
        if of_a == of_b {
            continue;
        }
        fs::write(runs.path(a), &of_b).unwrap();
        fs::write(runs.path(b), &of_a).unwrap();
        let report = runs.verify();
        assert!(names(&report, a) && names(&report, b), "{a}, {b}: {:#?}", report.to_lines());
        assert_ne!(report.class, Class::Accepted);
        assert!(is_top(a) || is_top(b) || report.class == Class::Different, "{a}, {b}");
        runs.restore(a, &of_a);
        runs.restore(b, &of_b);
        n_mutations += 1;
    }
    assert!(n_mutations > 20, "{n_mutations}");
    assert_eq!(runs.verify().class, Class::Accepted);
}

#[test]
fn a_whole_folder_that_is_swapped_for_a_link_or_another_run_s_is_noticed() {
    let runs = Runs::new();
    for folder in ["compliance", "final_model"] {
        let (path, away) = (runs.path(folder), runs.workplace.path("away"));
        fs::rename(&path, &away).unwrap();
        assert_ne!(runs.verify().class, Class::Accepted, "{folder} removed");
        symlink(&away, &path).unwrap();
        let report = runs.verify();
        assert_eq!(report.class, Class::Different, "{folder}: {:#?}", report.to_lines());
        fs::remove_file(&path).unwrap();
        symlink(runs.workplace.path("other").join(folder), &path).unwrap();
        assert_eq!(runs.verify().class, Class::Different, "{folder} of the other run");
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        assert_eq!(runs.verify().class, Class::Accepted);
    }
    // Everything that says who signed, together, from the other run: the files still are not its own.
    for file in [ATTESTATION, PUBLIC_KEY, LOG_FILE, CHECKPOINT_FILE] {
        fs::copy(runs.workplace.path("other").join(file), runs.path(file)).unwrap();
    }
    fs::copy(
        runs.workplace.path("other/audit_log.jsonl.manifest.json"),
        runs.path("audit_log.jsonl.manifest.json"),
    )
    .unwrap();
    let report = runs.verify();
    assert_eq!(report.class, Class::Different, "{:#?}", report.to_lines());
}

#[test]
fn a_file_that_nobody_signed_is_noticed_wherever_the_run_binds_a_folder() {
    let runs = Runs::new();
    for folder in ["compliance", "final_model", "final_model/new", "compliance/new"] {
        fs::create_dir_all(runs.path(folder)).unwrap();
        for name in
            ["x.json", ".hidden", "x.dsse.json", "attestation.dsse.json.old", "a\nb", "\u{202e}x"]
        {
            let file = format!("{folder}/{name}");
            fs::write(runs.path(&file), "{}").unwrap();
            let report = runs.verify();
            assert_eq!(report.class, Class::Different, "{file:?}");
            assert!(names(&report, &file), "{file:?}");
            // No name writes a line of its own, or turns one round.
            let text = report.to_lines().join("\n");
            assert!(!text.contains("a\nb") && !text.contains('\u{202e}'), "{text}");
            fs::remove_file(runs.path(&file)).unwrap();
        }
    }
    let path = runs.path("final_model").join(OsStr::from_bytes(b"x\xff"));
    fs::write(&path, "").unwrap();
    assert_eq!(runs.verify().class, Class::Different);
    fs::remove_file(&path).unwrap();
    assert_eq!(runs.verify().class, Class::Accepted);
}

/// Whoever has no key can lengthen the log, and no signed head says that he did not. That is told, with
/// the number of lines, and is no failure: approvals come after the end too.
#[test]
fn a_genuine_line_after_the_signed_head_is_counted_and_anything_else_is_not_accepted() {
    let runs = Runs::new();
    let good = runs.good(LOG_FILE);
    let last = lines(&good).last().unwrap().trim_ascii_end().to_vec();
    let text = String::from_utf8(last.clone()).unwrap();
    let (head, _) = text.split_once("\"prev_hash\": \"").unwrap();
    let next = |of: &[u8]| {
        let line = format!("{head}\"prev_hash\": \"{}\"}}\n", sha256_bytes(of));
        [&good[..], line.as_bytes()].concat()
    };
    fs::write(runs.path(LOG_FILE), next(&last)).unwrap();
    let report = runs.verify();
    assert_eq!(report.class, Class::Accepted, "{:#?}", report.to_lines());
    assert!(report.notes.iter().any(|note| note.starts_with("1 entries after")), "{report:#?}");
    fs::write(runs.path(LOG_FILE), next(b"something else")).unwrap();
    assert_eq!(runs.verify().class, Class::Different);
}

#[test]
fn the_program_says_of_each_level_what_the_library_says() {
    let runs = Runs::new();
    let key = ["--key", "k.pub"];
    let of_bundle: &[&str] = &["verify-bundle", "out"];
    let of_audit: &[&str] = &["verify-audit", "out"];
    let of_model: &[&str] = &["verify-signature", "out/final_model"];
    let of_file: &[&str] = &["verify-signature", "out/compliance/compliance_report.json"];
    // It names files of the run by content; where one is not beside it, that is a note.
    let of_annex: &[&str] = &["verify-annex-iv", "out/compliance/annex_iv_metadata.json"];
    let adapter = "final_model/adapter_model.safetensors";
    let report = "compliance/compliance_report.json";
    let envelope = "compliance/compliance_report.json.dsse.json";
    let cases: &[(&[&str], &str, i32, i32)] = &[
        // command, file, code when a byte of it is changed, code when it is gone
        (of_bundle, adapter, 6, 6),
        (of_bundle, report, 6, 6),
        (of_bundle, envelope, 6, 6),
        (of_bundle, LOG_FILE, 6, 6),
        (of_bundle, ATTESTATION, 6, 1),
        (of_bundle, CHECKPOINT_FILE, 6, 1),
        (of_bundle, PUBLIC_KEY, 6, 6),
        (of_audit, LOG_FILE, 6, 1),
        (of_audit, CHECKPOINT_FILE, 6, 1),
        (of_model, adapter, 6, 6),
        (of_model, "final_model/model.sig", 6, 1),
        (of_file, report, 6, 1),
        (of_file, envelope, 6, 1),
        (of_annex, "compliance/annex_iv_metadata.json.dsse.json", 6, 1),
        (of_annex, "final_model/model_integrity.json", 6, 0),
    ];
    for (command, file, changed, gone) in cases {
        let good = runs.good(file);
        let run = || runs.workplace.forgelm(&[command, &key[..]].concat());
        let json = || {
            let args = [command, &key[..], &["--output-format", "json"]].concat();
            runs.workplace.forgelm(&args)
        };
        run().expect_code(0);
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] ^= 1;
        fs::write(runs.path(file), &bad).unwrap();
        let name = file.rsplit('/').next().unwrap();
        run().expect_code(*changed).expect_stderr(name);
        assert_eq!(json().expect_code(*changed).json()["success"], false);
        fs::remove_file(runs.path(file)).unwrap();
        let ran = run().expect_code(*gone);
        assert!(*gone == 0 || ran.stderr.contains(name), "{}", ran.stderr);
        assert_eq!(json().expect_code(*gone).json()["success"], *gone == 0);
        fs::write(runs.path(file), &good).unwrap();
        run().expect_code(0);
    }
}
