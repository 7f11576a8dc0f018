//! Faults that are planted in kernels are found, each by what is meant to find it; kernels without
//! one give the same bits in all twelve combinations of schedule and asynchronous copies.
#![expect(clippy::print_stderr, reason = "tests that cannot run here say so")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use support::{compile, skip};

/// `FAULT`s of programs/mutants.cpp.
const NONE: u32 = 0;
const SHARED_OVERRUN: u32 = 10;
const GLOBAL_OVERRUN: u32 = 12;

/// Combinations of schedule and copies, as the program prints them.
const N_COMBINATIONS: usize = 12;

fn run(program: &Path, fault: u32) -> Output {
    Command::new(program).arg(fault.to_string()).output().expect("the program starts")
}

fn plain(fault: u32) -> Output {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    run(PROGRAM.get_or_init(|| compile("mutants.cpp", "mutants", &["-O2"])), fault)
}

fn sanitized(fault: u32) -> Output {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let options = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
    run(PROGRAM.get_or_init(|| compile("mutants.cpp", "mutants_sanitized", &options)), fault)
}

/// The combinations (schedule, copies) in which numbers were wrong.
fn wrong(output: &Output) -> Vec<(u32, u32)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = Vec::new();
    for line in text.lines() {
        let rest = line.strip_prefix("wrong under schedule ").expect("it prints nothing else");
        let (schedule, copies) = rest.split_once(", copies ").expect("both are numbers");
        found.push((schedule.parse().expect("a number"), copies.parse().expect("a number")));
    }
    found
}

/// The first line of the report with which the emulator ended the process.
fn report(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_none(), "it was not ended by a signal: {text}");
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn kernels_without_a_fault_are_right_in_all_combinations() {
    if skip() {
        return;
    }
    for output in [plain(NONE), sanitized(NONE)] {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?} {errors}", wrong(&output));
    }
}

#[test]
fn a_tile_that_is_overwritten_too_early_is_found_by_greedy_warps_with_copies_that_land_at_once() {
    if skip() {
        return;
    }
    for fault in [1, 2] {
        assert_eq!(wrong(&plain(fault)), [(4, 1), (5, 1), (6, 1)], "fault {fault}");
    }
}

#[test]
fn a_tile_that_is_read_too_early_is_found_by_copies_that_land_at_their_wait() {
    if skip() {
        return;
    }
    let expected = [(0, 0), (1, 0), (2, 0), (4, 0), (5, 0), (6, 0)];
    for fault in [3, 4] {
        assert_eq!(wrong(&plain(fault)), expected, "fault {fault}");
    }
}

#[test]
fn a_wrong_lane_of_ldmatrix_is_found_by_the_numbers() {
    if skip() {
        return;
    }
    assert_eq!(wrong(&plain(5)).len(), N_COMBINATIONS);
}

/// In the reverse orders the thread that writes the result happens to come last.
#[test]
fn a_reduction_without_its_barrier_is_found_by_the_poison_in_shared_memory() {
    if skip() {
        return;
    }
    let found = wrong(&plain(6));
    for schedule in [0, 2, 4, 6] {
        for copies in [0, 1] {
            assert!(found.contains(&(schedule, copies)), "schedule {schedule}: {found:?}");
        }
    }
}

#[test]
fn what_no_device_can_do_ends_the_process_with_a_report() {
    if skip() {
        return;
    }
    let expected = [
        (7, "nothing can run: a divergent barrier, or lanes that are missing"),
        (8, "threads meet in different barriers; kernel sum_of_row_8, block (0,0,0)"),
        (9, "a cp.async that is not aligned to 16; kernel two_products_9"),
        (SHARED_OVERRUN, "a write behind the end of dynamic shared memory"),
        (11, "lanes of a warp meet in different collectives"),
    ];
    for (fault, text) in expected {
        let report = report(&plain(fault));
        assert!(report.contains(text), "fault {fault}: {report}");
    }
}

#[test]
fn address_sanitizer_sees_the_ends_of_shared_and_of_global_memory() {
    if skip() {
        return;
    }
    let expected = [(SHARED_OVERRUN, "two_products<10>"), (GLOBAL_OVERRUN, "sum_of_row<12>")];
    for (fault, kernel) in expected {
        let output = sanitized(fault);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "fault {fault} was not seen");
        let is_named = text.contains("heap-buffer-overflow") && text.contains(kernel);
        assert!(is_named, "fault {fault}: {text}");
    }
}
