//! The evidence of a run as one file, verified where the run never was.

use crate::support::{Ran, Workplace};
use std::fs;

/// A finished run, signed by a key of its own, and packed.
fn packed(more: &[&str]) -> Workplace {
    let workplace = Workplace::new();
    workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
    let config = workplace.read("run.yaml");
    workplace.write("run.yaml", &(config + "signing: {key_file: k}\n"));
    workplace.run();
    pack(&workplace, "evidence.zip", more).expect_code(0);
    workplace
}

fn pack(workplace: &Workplace, name: &str, more: &[&str]) -> Ran {
    let args = ["bundle", "--output-dir", "out", "--out", name, "--output-format", "json"];
    workplace.forgelm(&[&args[..], more].concat())
}

/// A folder that has nothing but the archive and the public key: the run is gone.
fn elsewhere(workplace: Workplace) -> Workplace {
    let stranger = Workplace::new();
    for file in ["evidence.zip", "k.pub"] {
        fs::copy(workplace.path(file), stranger.path(file)).unwrap();
    }
    drop(workplace);
    for entry in fs::read_dir(stranger.path("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false if name == "evidence.zip" || name == "k.pub" => {}
            false => fs::remove_file(path).unwrap(),
        }
    }
    stranger
}

fn verify(workplace: &Workplace, more: &[&str]) -> Ran {
    let args = ["verify-bundle", "evidence.zip", "--key", "k.pub"];
    workplace.forgelm(&[&args[..], more].concat())
}

#[test]
fn a_stranger_with_the_archive_and_the_key_verifies_a_run_that_is_gone() {
    let stranger = elsewhere(packed(&[]));
    let ran = verify(&stranger, &[]).expect_code(0);
    assert!(ran.stdout.contains("1 files of weights are not here"), "{}", ran.stdout);
    let json = verify(&stranger, &["--output-format", "json"]).expect_code(0).json();
    assert_eq!((&json["valid"], &json["outcome"]), (&true.into(), &"promoted".into()));
    assert_eq!(json["path"], "evidence.zip");
    stranger.forgelm(&["verify-bundle", "evidence.zip"]).expect_code(1);
    let left = fs::read_dir(stranger.path("home/.cache/forgelm")).unwrap().count();
    assert_eq!(left, 0, "what was unpacked is gone");
}

#[test]
fn the_archive_with_weights_is_the_whole_run() {
    let stranger = elsewhere(packed(&["--with-weights"]));
    let ran = verify(&stranger, &[]).expect_code(0);
    assert!(!ran.stdout.contains("not here"), "{}", ran.stdout);
}

#[test]
fn the_same_run_gives_the_same_archive_and_none_is_overwritten() {
    let workplace = packed(&[]);
    pack(&workplace, "again.zip", &[]).expect_code(0);
    let [a, b] = ["evidence.zip", "again.zip"].map(|name| fs::read(workplace.path(name)).unwrap());
    assert!(a == b);
    pack(&workplace, "again.zip", &[]).expect_code(1).expect_stderr("never overwritten");
    fs::remove_file(workplace.path("out/compliance/attestation.dsse.json")).unwrap();
    pack(&workplace, "more.zip", &[]).expect_code(1).expect_stderr("only a run that was signed");
    assert!(!workplace.path("more.zip").exists());
}

#[test]
fn a_changed_byte_or_a_forged_file_of_an_archive_is_found() {
    let stranger = elsewhere(packed(&[]));
    let good = fs::read(stranger.path("evidence.zip")).unwrap();
    let mut codes = std::collections::BTreeSet::new();
    for i in 0..60 {
        let at = i * (good.len() - 1) / 59;
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(stranger.path("evidence.zip"), &bad).unwrap();
        let ran = verify(&stranger, &[]);
        // Some bytes mean nothing: the time of an entry, or who may read it.
        assert!([0, 1, 6].contains(&ran.code), "byte {at}: {} {}", ran.code, ran.stderr);
        codes.insert(ran.code);
    }
    assert!(codes.contains(&6), "{codes:?}");
    fs::write(stranger.path("evidence.zip"), &good[..good.len() / 2]).unwrap();
    verify(&stranger, &[]).expect_code(1).expect_stderr("not a ZIP archive");
    fs::write(stranger.path("evidence.zip"), "no archive at all").unwrap();
    verify(&stranger, &[]).expect_code(1).expect_stderr("not a ZIP archive");
}

#[test]
fn a_file_left_out_that_is_no_file_of_weights_is_missed() {
    let workplace = packed(&[]);
    // Somebody who packs by hand leaves out what he does not like.
    fs::remove_file(workplace.path("evidence.zip")).unwrap();
    let before = workplace.read("out/compliance/training_manifest.json");
    fs::write(
        workplace.path("out/compliance/training_manifest.json"),
        before.replace("sft", "xxx"),
    )
    .unwrap();
    pack(&workplace, "evidence.zip", &[]).expect_code(0);
    let stranger = elsewhere(workplace);
    verify(&stranger, &[])
        .expect_code(6)
        .expect_stderr("changed: compliance/training_manifest.json");
}
