//! Conversions, random bits and collective functions of `device.cuh`, which kernels are built from.
#![expect(clippy::print_stderr, reason = "tests that cannot run here say so")]

mod support;

use std::process::Command;

#[test]
fn numbers_and_collectives_are_what_they_are_defined_to_be() {
    if support::skip() {
        return;
    }
    for (name, options) in [
        ("numbers", &["-O2"][..]),
        ("numbers_sanitized", &["-O1", "-g", "-fsanitize=address,undefined"]),
    ] {
        let program = support::compile("numbers.cpp", name, options);
        let output = Command::new(program).output().expect("the program starts");
        let found = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{name}:\n{found}{errors}");
    }
}
