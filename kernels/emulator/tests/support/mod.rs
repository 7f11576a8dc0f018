//! Programs in C++ that tests compile and run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether there is no emulator here; says so.
pub(crate) fn skip() -> bool {
    let reason = forgelm_kernels_emulator::unavailable();
    if let Some(reason) = reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

/// Compiles `programs/SOURCE` with options of its own.
pub(crate) fn compile(source: &str, name: &str, options: &[&str]) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new(env!("EMULATOR_COMPILER"))
        .args(["-std=c++17", "-ffp-contract=off", "-pthread", "-Wall", "-Wno-unknown-pragmas"])
        .args(options)
        .arg("-I")
        .arg(here.join("include"))
        .arg("-I")
        .arg(here.join("../cuda/include"))
        .arg(here.join("tests/programs").join(source))
        .arg("-o")
        .arg(&program)
        .output()
        .expect("the compiler starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}
