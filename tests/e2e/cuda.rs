//! Runs on an NVIDIA device, which is emulated: the driver that the program finds runs the kernels'
//! own sources on the processor. With `FORGELM_TEST_DEVICE=1` it is the machine's own device.

use crate::resume::wait_for;
use crate::support::{Ran, Workplace};
use forgelm_kernels_emulator as emulator;
use serde_json::{Value, json};
use std::process::Command;

/// A run of four steps, of which the second half follows a checkpoint.
fn workplace(edits: &[(&str, &str)]) -> Workplace {
    let workplace = Workplace::new();
    let steps = ("max_steps: 12", "max_steps: 4");
    let smaller = [
        steps,
        ("max_length: 128", "max_length: 64"),
        ("per_device_train_batch_size: 4", "per_device_train_batch_size: 2"),
        ("eval_steps: 4", "eval_steps: 2"),
        ("save_steps: 4", "save_steps: 2"),
        ("report_to: none", "report_to: none\n  logging_steps: 1"),
    ];
    for (from, to) in smaller.iter().chain(edits) {
        workplace.edit_config(from, to);
    }
    workplace
}

/// Whether tests run on the machine's own device.
fn is_real() -> bool {
    std::env::var_os("FORGELM_TEST_DEVICE").is_some_and(|value| value == "1")
}

/// The program with the emulated libraries, or those of this machine; `None`, aloud, where there are
/// none.
#[expect(clippy::print_stderr, reason = "a test says what it skips")]
pub fn on_device(workplace: &Workplace, args: &[&str]) -> Option<Command> {
    if is_real() {
        let mut command = workplace.command(args);
        for name in ["FORGELM_CUDA_PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "VIRTUAL_ENV"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        return Some(command);
    }
    if let Some(reason) = emulator::unavailable() {
        eprintln!("skipped: {reason}");
        return None;
    }
    let mut command = workplace.command(args);
    command.env("FORGELM_CUDA_PATH", emulator::library_folder());
    Some(command)
}

pub fn ran(mut command: Command) -> Ran {
    command.output().unwrap().into()
}

/// Losses of training and of evaluations, in order.
fn losses(workplace: &Workplace, out: &str) -> Vec<f64> {
    let lines = workplace.json_lines(&format!("{out}/metrics.jsonl"));
    let of = |line: &Value| line["loss"].as_f64().or_else(|| line["eval_loss"].as_f64());
    lines.iter().filter_map(of).collect()
}

fn assert_close(found: &[f64], expected: &[f64], relative: f64) {
    assert_eq!(found.len(), expected.len(), "{found:?}, {expected:?}");
    assert!(found.len() >= 4, "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        let error = (found - expected).abs();
        assert!(error <= relative * expected.abs(), "{found}, expected {expected}");
    }
}

#[test]
fn a_run_on_the_device_learns_as_on_the_processor() {
    for (compute, relative) in [("float32", 1e-5), ("bfloat16", 1e-2)] {
        let compute_dtype = format!("compute_dtype: {compute}");
        let cuda = format!("{compute_dtype}\n  device: cuda:0");
        let device = workplace(&[("compute_dtype: float32", &cuda)]);
        let Some(command) = on_device(&device, &["--config", "run.yaml"]) else { return };
        ran(command).expect_code(0).expect_stderr("cuda:0/sm_");
        let cpu = format!("{compute_dtype}\n  device: cpu");
        let processor = workplace(&[("compute_dtype: float32", &cpu)]);
        processor.run();
        assert_close(&losses(&device, "out"), &losses(&processor, "out"), relative);
        device.forgelm(&["verify-bundle", "out"]).expect_code(0);
    }
}

#[test]
fn a_run_on_the_device_that_is_killed_goes_on_with_the_same_bits() {
    // A real device would be through with four steps before it can be killed.
    let steps = if is_real() { "max_steps: 200" } else { "max_steps: 4" };
    let device = "compute_dtype: bfloat16\n  device: cuda:0";
    let edit = [("compute_dtype: float32", device), ("max_steps: 4", steps)];
    let whole = workplace(&edit);
    let Some(command) = on_device(&whole, &["--config", "run.yaml"]) else { return };
    ran(command).expect_code(0);
    let killed = workplace(&edit);
    let mut command = on_device(&killed, &["--config", "run.yaml"]).unwrap();
    let mut child = command.spawn().unwrap();
    wait_for(&killed.path("out/checkpoint-2"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.path("out/final_model").exists(), "the run was over before it was killed");
    let command = on_device(&killed, &["--config", "run.yaml", "--resume"]).unwrap();
    ran(command).expect_code(0).expect_stderr("continuing from");
    assert!(whole.adapter("out") == killed.adapter("out"));
}

/// With a stand-in for cuDNN, which a real device has no use for.
fn with_cudnn(workplace: &Workplace, fault: &str) -> Option<Command> {
    if is_real() {
        return None;
    }
    let mut command = on_device(workplace, &["--config", "run.yaml"])?;
    let folders = [emulator::library_folder().to_owned(), emulator::cudnn_folder()];
    command.env("FORGELM_CUDA_PATH", std::env::join_paths(folders).unwrap());
    command.env("FORGELM_EMULATOR_CUDNN_FAULT", fault);
    Some(command)
}

#[test]
fn a_run_leaves_attention_to_a_cudnn_that_computes_the_same_and_to_no_other() {
    let device = "compute_dtype: bfloat16\n  device: cuda:0";
    let edit = [("compute_dtype: float32", device)];
    let theirs = workplace(&edit);
    let Some(command) = with_cudnn(&theirs, "0") else { return };
    let done = ran(command).expect_code(0).expect_stderr(", cuDNN 9.28.0)");
    assert!(!done.stderr.contains("not left to cuDNN"), "{}", done.stderr);
    theirs.forgelm(&["verify-bundle", "out"]).expect_code(0);

    let ours = workplace(&edit);
    let mut command = with_cudnn(&ours, "0").unwrap();
    command.env("FORGELM_OWN_ATTENTION", "1");
    let done = ran(command).expect_code(0);
    assert!(!done.stderr.contains("cuDNN"), "{}", done.stderr);
    assert_close(&losses(&theirs, "out"), &losses(&ours, "out"), 1e-2);
    // Two ways to round: it was cuDNN that computed.
    assert!(theirs.adapter("out") != ours.adapter("out"));

    let bad = workplace(&edit);
    let logarithm_of_two = "2";
    ran(with_cudnn(&bad, logarithm_of_two).unwrap())
        .expect_code(0)
        .expect_stderr("is not left to cuDNN 9.28.0, which differs from our own kernels for ");
    assert!(bad.adapter("out") == ours.adapter("out"));
}

/// A run of long texts, of which no question is made, with our own products: nothing but the steps
/// takes memory.
fn workplace_of_texts(training: &str) -> Workplace {
    let device = "compute_dtype: float32\n  device: cuda:0";
    let edits = [
        ("compute_dtype: float32", device),
        ("per_device_train_batch_size: 2", training),
        ("max_steps: 4", "max_steps: 2"),
    ];
    let workplace = workplace(&edits);
    let text = |i: usize| "Item of many words. ".repeat(8 + i % 3);
    let rows: Vec<String> = (0..24).map(|i| json!({ "text": text(i) }).to_string()).collect();
    workplace.write("data.jsonl", &rows.join("\n"));
    std::fs::create_dir(workplace.path("driver")).unwrap();
    workplace
}

/// The program, where allocations on the device beyond so many MiB are refused.
fn with_memory(workplace: &Workplace, mebibytes: u64) -> Option<Command> {
    let mut command = on_device(workplace, &["--config", "run.yaml"])?;
    let driver = workplace.path("driver");
    let library = emulator::library_folder().join("libcuda.so.1");
    std::os::unix::fs::symlink(library, driver.join("libcuda.so.1")).unwrap();
    command.env("FORGELM_CUDA_PATH", driver);
    command.env("FORGELM_EMULATOR_HIDDEN_LIMIT", (mebibytes << 20).to_string());
    Some(command)
}

/// The device promises its memory and refuses it later: another program has taken it meanwhile.
#[test]
fn a_device_that_fills_up_within_a_step_makes_the_step_again_in_smaller_pieces() {
    let full = workplace_of_texts("per_device_train_batch_size: 16\n  oom_recovery: true");
    let Some(command) = with_memory(&full, 8) else { return };
    let ran_full = ran(command).expect_code(0);
    let short = ran_full.stderr.lines().filter(|line| line.contains("memory is short before step"));
    let short: Vec<&str> = short.collect();
    assert!(short[0].contains("cuda:0: ") && short[0].contains("do not fit"), "{short:?}");
    assert!(short.last().unwrap().contains("going on with batch 8 x 2"), "{short:?}");

    let configured = workplace_of_texts("per_device_train_batch_size: 8");
    configured.edit_config("gradient_accumulation_steps: 1", "gradient_accumulation_steps: 2");
    ran(with_memory(&configured, 1 << 20).unwrap()).expect_code(0);
    assert!(full.adapter("out") == configured.adapter("out"));
}

#[test]
fn a_device_that_is_too_full_for_any_step_ends_the_run_with_what_helps() {
    let workplace = workplace_of_texts("per_device_train_batch_size: 16");
    let Some(command) = with_memory(&workplace, 8) else { return };
    let refused = ran(command).expect_code(8);
    assert!(refused.stderr.contains("error: cuda:0: "), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: end what else uses the memory"), "{}", refused.stderr);
    let log = workplace.read("out/audit_log.jsonl");
    assert!(log.contains("pipeline.failed") && log.contains("do not fit"), "{log}");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let workplace = workplace(&[("compute_dtype: float32", "device: cuda:1")]);
    // No driver at all, wherever this test runs: nothing is looked for but what a folder has.
    let none = ran(workplace.command(&["--config", "run.yaml"]));
    assert_eq!(none.code, 2, "{}", none.stderr);
    assert!(none.stderr.contains("`cuda:1` cannot be used: "), "{}", none.stderr);
    assert!(none.stderr.contains("training.device: cpu"), "{}", none.stderr);
    let Some(command) = on_device(&workplace, &["--config", "run.yaml"]) else { return };
    ran(command).expect_code(2).expect_stderr("there is no CUDA device 1: this machine has 1");
}

#[test]
fn a_text_that_names_no_device_is_refused_with_its_place() {
    let workplace = workplace(&[("compute_dtype: float32", "device: gpu")]);
    let refused = workplace.forgelm(&["--config", "run.yaml"]).expect_code(1);
    let expected = "`training.device` is `gpu`; expected `auto`, `cpu` or `cuda:N`";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
}
