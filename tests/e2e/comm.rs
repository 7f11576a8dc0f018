//! `forgelm comm build`: the library that joins processes by MPI, made by the MPIs of this machine.

use crate::support::Workplace;
use std::process::Command;

/// Compilers of MPI, as Debian calls them, and what their libraries say of themselves.
const KNOWN: [(&str, &str); 2] = [("mpicc.openmpi", "Open MPI "), ("mpicc.mpich", "MPICH ")];

/// Those that are there; with `CI=true` it must be both.
#[expect(clippy::print_stdout, reason = "what is skipped is skipped aloud")]
fn every_mpicc() -> Vec<(&'static str, &'static str)> {
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let is_there = |mpicc: &str| Command::new(mpicc).arg("--version").output().is_ok();
    let (there, missing): (Vec<_>, Vec<_>) =
        KNOWN.into_iter().partition(|(mpicc, _)| is_there(mpicc));
    for (mpicc, _) in missing {
        assert!(!is_ci, "{mpicc} is missing, and CI=true wants both MPIs");
        println!("skipped: {mpicc} is missing");
    }
    there
}

#[test]
fn a_library_for_mpi_is_built_found_signed_and_built_anew() {
    let workplace = Workplace::new();
    let library = "home/.local/share/forgelm/plugins/libforgelm_mpi.so";
    for (mpicc, named) in every_mpicc() {
        let summary = format!("the processes that a launcher started, through {named}");
        let built = workplace.forgelm(&["comm", "build", "--mpicc", mpicc]).expect_code(0);
        let built = built.expect_stdout(&summary).expect_stdout("the program finds it there");
        built.expect_stdout("forgelm plugin sign ");
        // What was signed before was another library of this name.
        let envelope = format!("{library}.dsse.json");
        assert!(!workplace.path(&envelope).exists());
        let listed = workplace.forgelm(&["plugin", "list"]).expect_code(0);
        listed.expect_stdout(&summary).expect_stdout("unsigned, in a process of its own");
        workplace.forgelm(&["plugin", "sign", library]).expect_code(0);
        let listed = workplace.forgelm(&["plugin", "list"]).expect_code(0);
        listed.expect_stdout(&summary).expect_stdout("ABI 1.0, signed by ");
        let checked = workplace.forgelm(&["plugin", "check", library]).expect_code(0);
        checked.expect_stdout("collective mpi: is well described");
    }
}

#[test]
fn a_folder_of_ones_own_is_named_with_the_variable_that_finds_it() {
    let workplace = Workplace::new();
    for (mpicc, _) in every_mpicc() {
        let args = ["comm", "build", "--mpicc", mpicc, "--output", "made"];
        let built = workplace.forgelm(&args).expect_code(0);
        built.expect_stdout("by `FORGELM_PLUGIN_PATH=made`");
        for file in ["forgelm_mpi.c", "forgelm_plugin.h", "libforgelm_mpi.so"] {
            assert!(workplace.path("made").join(file).is_file(), "{file}");
        }
        assert!(!workplace.path("made/libforgelm_mpi.unfinished").exists());
    }
}

#[test]
fn a_compiler_that_is_not_there_or_knows_no_mpi_is_told_with_what_to_do() {
    let workplace = Workplace::new();
    let missing = workplace.forgelm(&["comm", "build", "--mpicc", "/nowhere/mpicc"]);
    let missing = missing.expect_code(1).expect_stderr("`/nowhere/mpicc` cannot be started");
    missing.expect_stderr("hint: a package as libopenmpi-dev or libmpich-dev");
    // Whatever it is, it fails as a compiler would.
    let failed = workplace.forgelm(&["comm", "build", "--mpicc", "false"]).expect_code(1);
    failed.expect_stderr("`false` ended with exit status: 1");
    let place = workplace.path("home/.local/share/forgelm/plugins/libforgelm_mpi.so");
    assert!(!place.exists());
}
