//! A pipeline that is killed at its operations on the disk and gone on with: the same models, the same
//! manifest apart from times, as one that was not.

use crate::pipelines::{RUN, verifies, workplace};
use crate::support::{Ran, Workplace};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Kills in the test that always runs, evenly over a whole pipeline. [`killed_at_every_write`] has them
/// all.
const N_KILLS: u64 = 17;

const STAGES: [&str; 3] = ["one", "two", "three"];

/// The library that kills, compiled.
fn killer() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("kill_at_write.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/kill_at_write.c");
    let compiler = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-fPIC", "-shared", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    (dir, library.display().to_string())
}

/// A pipeline of three stages of two steps, with a key that is there.
fn pipeline() -> Workplace {
    let workplace = workplace();
    workplace.forgelm(&["keygen", "--out", "k"]).expect_code(0);
    let config = workplace.read("run.yaml") + "signing: {key_file: k}\n";
    let config =
        config.replace("max_steps: 4", "max_steps: 2").replace("eval_steps: 2", "eval_steps: 1");
    workplace.write("run.yaml", &config.replace("save_steps: 2", "save_steps: 1"));
    workplace
}

fn watched(workplace: &Workplace, library: &str, at: u64, args: &[&str]) -> Ran {
    let mut command = workplace.command(args);
    command.env("LD_PRELOAD", library).env("KILL_AT", at.to_string());
    command.env("COUNT_TO", workplace.path("count"));
    command.output().unwrap().into()
}

/// The manifest without what says when, by which run, and how fast.
fn manifest(workplace: &Workplace) -> Value {
    let text = workplace.read("pipe/compliance/pipeline_manifest.json");
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    let members = manifest.as_object_mut().unwrap();
    for key in ["generated_at", "started_at", "finished_at", "pipeline_run_id", "metadata"] {
        assert!(members.remove(key).is_some(), "{key}");
    }
    for stage in members["stages"].as_array_mut().unwrap() {
        let stage = stage.as_object_mut().unwrap();
        for key in
            ["started_at", "finished_at", "duration_seconds", "run_id", "training_manifest_sha256"]
        {
            assert!(stage.remove(key).is_some(), "{key}");
        }
        let metrics = stage["metrics"].as_object_mut().unwrap();
        metrics.retain(|name, _| !name.starts_with("resource/") && name != "train_runtime");
        assert!(metrics.contains_key("train_steps"));
    }
    manifest
}

/// Kills at one operation, and goes on until it has ended; nothing may be told from one that was never
/// killed.
fn killed_at(at: u64, library: &str, expected: &(Vec<Vec<u8>>, Value)) {
    let workplace = pipeline();
    let ran = watched(&workplace, library, at, &RUN);
    assert_eq!(ran.code, -1, "operation {at}: it was not killed\n{}", ran.stderr);
    if workplace.path("pipe/compliance/pipeline_manifest.json").is_file() {
        let log = workplace.path("pipe/audit_log.jsonl");
        let is_torn =
            std::fs::read(log).is_ok_and(|bytes| bytes.last().is_some_and(|b| *b != b'\n'));
        let found = workplace.forgelm(&["verify-annex-iv", "--pipeline", "pipe"]);
        let is_forged = found.code == 6 && !is_torn;
        assert!(!is_forged, "operation {at}: taken for a forgery\n{}", found.stdout);
    }
    let resume = [&RUN[..], &["--resume"]].concat();
    let ran = workplace.forgelm(&resume);
    assert_eq!(ran.code, 0, "operation {at}\n{}\n{}", ran.stdout, ran.stderr);
    for (stage, expected) in STAGES.iter().zip(&expected.0) {
        let adapter = workplace.adapter(&format!("pipe/{stage}"));
        assert!(adapter == *expected, "operation {at}: another adapter of stage {stage}");
    }
    assert_eq!(manifest(&workplace), expected.1, "operation {at}");
    let found = verifies(&workplace);
    assert_eq!(found["evidence_verified"], 3, "operation {at}: {found}");
}

/// The number of operations of a whole pipeline, and what it ends with.
fn whole(library: &str) -> (u64, (Vec<Vec<u8>>, Value)) {
    let workplace = pipeline();
    watched(&workplace, library, 0, &RUN).expect_code(0);
    let n: u64 = workplace.read("count").trim().parse().unwrap();
    assert!(n > 300, "three stages with all their evidence: {n} operations");
    verifies(&workplace);
    let adapters = STAGES.iter().map(|stage| workplace.adapter(&format!("pipe/{stage}")));
    (n, (adapters.collect(), manifest(&workplace)))
}

#[test]
fn killed_at_writes_all_over_a_pipeline_and_resumed_it_ends_as_one_that_was_not() {
    let (_dir, library) = killer();
    let (n, expected) = whole(&library);
    for i in 0..N_KILLS {
        killed_at(1 + i * (n - 1) / N_KILLS, &library, &expected);
    }
}

/// All of them; half an hour. `cargo test --workspace --test e2e -- --ignored killed_at_every_write`
#[test]
#[ignore = "it takes half an hour; a sample of it always runs"]
fn killed_at_every_write() {
    let (_dir, library) = killer();
    let (n, expected) = whole(&library);
    println!("{n} operations");
    let mut failures = Vec::new();
    for at in 1..=n {
        if at.is_multiple_of(50) {
            println!("{at} of {n}");
        }
        let caught = std::panic::catch_unwind(|| killed_at(at, &library, &expected));
        failures.extend(caught.is_err().then_some(at));
    }
    assert!(failures.is_empty(), "killed at {failures:?} it does not end the same");
}
