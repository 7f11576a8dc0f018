//! `forgelm-bench gpu --tiny` on the emulated device: the command for the first day on a real one
//! runs to its end, and what it writes has everything in it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test, which says what it skips")]
#![expect(clippy::disallowed_methods, reason = "a test prepares files")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forgelm_kernels_emulator as emulator;
use serde_json::Value;

/// Where an emulated device writes its page.
const NAME: &str = "forgelm-emulated-device";

/// The command; `None`, aloud, where there is no emulator.
fn gpu(out: &Path, arguments: &[&str]) -> Option<Output> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_forgelm-bench"));
    command.args(["gpu", "--tiny", "--python", "/no/such/python", "--libraries"]);
    command.arg(emulator::library_folder()).arg("--out").arg(out).args(arguments);
    Some(command.output().unwrap())
}

/// A program that stands in for tests of the device: it is asked as they are, and says `lines`.
fn stand_in(folder: &Path, lines: &str) -> PathBuf {
    let path = folder.join("device-0123456789abcdef");
    let script = format!("#!/bin/sh\n[ \"$FORGELM_TEST_DEVICE\" = 1 ] || exit 3\necho '{lines}'\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn read(out: &Path, name: &str) -> (String, Value) {
    let page = std::fs::read_to_string(out.join(format!("{name}.md"))).unwrap();
    let raw = std::fs::read_to_string(out.join(format!("{name}.json"))).unwrap();
    (page, serde_json::from_str(&raw).unwrap())
}

#[test]
fn a_tiny_run_on_the_emulated_device_fills_every_table() {
    let out = tempfile::tempdir().unwrap();
    let tests = stand_in(out.path(), "test result: ok. 2 passed; 0 failed");
    let Some(output) = gpu(out.path(), &["--tests", &tests.display().to_string()]) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let (page, raw) = read(out.path(), NAME);
    assert!(output.status.success(), "{text}{errors}{page}");
    for expected in [
        "# forgelm emulated device\n",
        "**Emulated or tiny: these numbers say nothing about any device.",
        "## The device\n\n| what | is |",
        "| compute capability | 9.0 |",
        "| rms_norm |  | ",
        "within its bounds, the same bits twice",
        "| device | ",
        "| 2 passed |",
        "| copy on the device, read and written |",
        "| gate | 96 | 64 | 32 |",
        "| rope | ",
        "| attention_backward, 32 |",
        "| linear_backward, own product |",
        "| down | backward |",
        "| a layer of tiny | 2 x 16 |",
        "| tiny | 2 x 16 |",
        "Skipped: /no/such/python",
    ] {
        assert!(page.contains(expected), "no `{expected}` in\n{page}");
    }
    assert_eq!((raw["is_tiny"].as_bool(), &raw["problems"]), (Some(true), &serde_json::json!([])));
    let parts = raw["parts"].as_object().unwrap();
    assert_eq!(parts.len(), 9);
    for (part, number) in [
        ("ops", "/cases"),
        ("ceilings", "/copy_bytes_per_second"),
        ("ceilings", "/products_flops_per_second/32"),
        ("kernels", "/seconds/glu_backward/seconds"),
        ("kernels", "/seconds/adapter of gate, forward/longer_sum"),
        ("kernels", "/attention_flops_per_second/16"),
        ("layer", "/a layer of tiny, 2 x 16/predicted_tokens_per_second"),
        ("step", "/tiny, 2 x 16/tokens_per_second"),
        ("step", "/tiny, 2 x 16/predicted_tokens_per_second"),
    ] {
        let found = parts[part].pointer(number).and_then(Value::as_f64);
        assert!(found.is_some_and(|n| n > 0.0), "{part}{number} is {found:?}");
    }
}

#[test]
fn tests_that_skip_themselves_make_the_command_fail() {
    let out = tempfile::tempdir().unwrap();
    let tests = stand_in(out.path(), "skipped: no NVIDIA device\ntest result: ok. 2 passed; 0");
    let arguments = ["--only", "tests", "--tests", &tests.display().to_string()];
    let Some(output) = gpu(out.path(), &arguments) else { return };
    assert_eq!(output.status.code(), Some(1));
    let (page, raw) = read(out.path(), NAME);
    let problem = "device: skipped: no NVIDIA device";
    assert!(page.contains(&format!("**Problem:** {problem}")), "{page}");
    assert_eq!(raw["problems"], serde_json::json!([problem]));
    assert!(!page.contains("## Whole steps"), "{page}");
}

#[test]
fn what_there_is_no_time_for_is_skipped_aloud() {
    let out = tempfile::tempdir().unwrap();
    let Some(output) = gpu(out.path(), &["--minutes", "0.01"]) else { return };
    assert!(output.status.success());
    let (page, _) = read(out.path(), "no-device");
    assert_eq!(page.matches("Skipped: the budget is used up.").count(), 9, "{page}");
}
