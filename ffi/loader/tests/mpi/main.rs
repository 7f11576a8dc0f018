//! Real processes under real launchers: `ffi/mpi/forgelm_mpi.c`, compiled by the mpicc of each MPI of
//! this machine, loaded as a program loads it, and started by that MPI's own mpirun.
//!
//! A rank is this very test program: [`rank::a_rank_of_a_launcher`], which does what the test that
//! started it wants. Where there is no MPI the tests are skipped aloud; with `CI=true` they fail.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, which starts programs"
)]

mod launch;
mod rank;

use launch::{Mpi, every_mpi};
use std::time::Duration;

/// Each operation against a plain loop, with counts that are uneven and nothing at all; more bytes than
/// one round takes; parts of the whole. Two ranks and four: four share two cores.
#[test]
fn every_operation_carries_the_bytes_that_a_plain_loop_says() {
    for mpi in every_mpi() {
        for n in [2, 4] {
            let ended = mpi.start(n, "operations");
            ended.must_be(0);
            for rank in 0..n {
                ended.must_say(&format!("rank {rank} of {n}: every operation is right"));
            }
        }
    }
}

#[test]
fn a_rank_that_never_comes_is_named_and_all_are_ended_with_the_exit_code() {
    for mpi in every_mpi() {
        let ended = mpi.start(3, "absent");
        ended.must_be(17);
        for rank in [0, 1] {
            let expected = format!("rank {rank} of 3: Deadline: collective `mpi` of forgelm_mpi");
            ended.must_say(&expected);
        }
        assert_eq!(ended.said.matches("no sign of rank 2 (host ").count(), 2, "{}", ended.said);
        assert_eq!(ended.said.matches(" in barrier number 2").count(), 2, "{}", ended.said);
        assert!(!ended.said.contains("no sign of rank 0"), "who waits answers: {}", ended.said);
    }
}

/// The stopped one spins in no library and sends nothing: only its silence tells.
#[test]
fn a_rank_that_is_stopped_is_noticed_and_named() {
    for mpi in every_mpi() {
        let ended = mpi.start(2, "stopped");
        ended.must_be(17);
        ended.must_say("no sign of rank 1 (host ");
        ended.must_say(" in all_gather number ");
        assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    }
}

/// Deadlines run from when each rank comes: who waits longer answers who gives up first.
#[test]
fn a_rank_with_a_longer_deadline_gives_up_with_the_others_and_is_not_called_missing() {
    for mpi in every_mpi() {
        let ended = mpi.start(3, "patient");
        ended.must_be(17);
        assert_eq!(ended.said.matches("no sign of rank 2 (host ").count(), 2, "{}", ended.said);
        assert!(!ended.said.contains("no sign of rank 1"), "{}", ended.said);
        assert!(ended.took < Duration::from_secs(30), "{:?}", ended.took);
    }
}

#[test]
fn ranks_that_call_different_operations_are_told_who_is_where() {
    for mpi in every_mpi() {
        let ended = mpi.start(2, "crossed");
        ended.must_be(17);
        ended.must_say("every rank gives signs, but they came no further for ");
        ended.must_say("; rank 1 (host ");
        ended.must_say(") is in all_to_all number 1");
    }
}

#[test]
fn a_launcher_of_one_mpi_is_refused_by_the_library_of_the_other() {
    let all: Vec<Mpi> = every_mpi().collect();
    let [first, second] = &all[..] else {
        println!("skipped: it takes two MPIs, and this machine has {}", all.len());
        return;
    };
    for (launcher, library) in [(first, second), (second, first)] {
        let ended = launcher.start_with(2, "refused", library);
        ended.must_be(0);
        let said = "the launcher started 2 processes (";
        assert_eq!(ended.said.matches(said).count(), 2, "{}", ended.said);
        ended.must_say("sees 1: launcher and library are of two MPIs");
    }
}

/// Under mpirun there is a launcher; here there is none, and a process is alone.
#[test]
fn without_a_launcher_a_process_is_alone_unless_slurm_says_otherwise() {
    for mpi in every_mpi() {
        let ended = mpi.start_alone("operations", None);
        ended.must_be(0);
        ended.must_say("rank 0 of 1: every operation is right");
        let ended = mpi.start_alone("refused", Some(("SLURM_STEP_NUM_TASKS", "4")));
        ended.must_be(0);
        ended.must_say("the launcher started 4 processes (SLURM_STEP_NUM_TASKS), but ");
    }
}

#[test]
fn a_site_s_compiler_has_nothing_to_say_about_the_file() {
    for mpi in every_mpi() {
        mpi.compile(&["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wconversion"]);
    }
}
