//! `forgelm comm build`: the library that joins processes by MPI, made by the MPIs of this machine.

use crate::distributed::ZERO2;
use crate::support::{Ran, Workplace};
use std::process::Command;

/// Compilers of MPI, as Debian calls them, and what their libraries say of themselves.
const KNOWN: [(&str, &str); 2] = [("mpicc.openmpi", "Open MPI "), ("mpicc.mpich", "MPICH ")];

/// Where a library of the user's own folder is.
const OWN: &str = "home/.local/share/forgelm/plugins/collectives/mpi.so";

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
    let library = OWN;
    for (mpicc, named) in every_mpicc() {
        let summary = format!("the processes that a launcher started, through {named}");
        let built = workplace.forgelm(&["comm", "build", "--mpicc", mpicc]).expect_code(0);
        let built = built
            .expect_stdout(&summary)
            .expect_stdout("a run of several processes finds it there");
        built.expect_stdout("forgelm plugin sign ");
        // What was signed before was another library of this name.
        let envelope = format!("{library}.dsse.json");
        assert!(!workplace.path(&envelope).exists());
        let listed = workplace.forgelm(&["plugin", "list"]).expect_code(0);
        listed.expect_stdout(&summary).expect_stdout("unsigned, in a process of its own");
        workplace.forgelm(&["plugin", "sign", library]).expect_code(0);
        let listed = workplace.forgelm(&["plugin", "list"]).expect_code(0);
        listed.expect_stdout(&summary).expect_stdout("ABI 1.0, signed by ");
        let mut checked = workplace.forgelm(&["plugin", "check", library]).expect_code(0);
        for property in [
            "is well described",
            "joins a process that no launcher started",
            "names the library that carries the bytes",
            "gives back what one process sends",
            "makes a part that works as the whole does",
            "leaves when it is dropped",
            "does without the host's kernels, or says that it needs them",
        ] {
            checked = checked.expect_stdout(&format!("ok      collective mpi: {property}"));
        }
    }
}

#[test]
fn a_folder_of_ones_own_is_named_with_the_variable_that_finds_it() {
    let workplace = Workplace::new();
    for (mpicc, _) in every_mpicc() {
        let args = ["comm", "build", "--mpicc", mpicc, "--output", "made"];
        let built = workplace.forgelm(&args).expect_code(0);
        built.expect_stdout("by `FORGELM_PLUGIN_PATH=made`");
        for file in ["forgelm_mpi.c", "forgelm_plugin.h", "mpi.so"] {
            assert!(workplace.path("made").join(file).is_file(), "{file}");
        }
        assert!(!workplace.path("made/mpi.unfinished").exists());
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
    assert!(!workplace.path(OWN).exists());
}

/// A run as a launcher of one process starts it: it joins itself.
fn launched(workplace: &Workplace) -> Ran {
    let mut command = workplace.command(&["--config", "run.yaml"]);
    command.env("OMPI_COMM_WORLD_SIZE", "1").output().unwrap().into()
}

#[test]
fn a_library_that_cannot_be_used_stops_only_the_runs_that_need_it() {
    let workplace = crate::distributed::workplace(ZERO2);
    let shared = workplace.read("run.yaml");
    launched(&workplace)
        .expect_code(1)
        .expect_stderr("`distributed.engine`: no collective is named `mpi`: there is no `")
        .expect_stderr("plugins/collectives/mpi.so`; loaded: none")
        .expect_stderr("hint: `forgelm comm build` makes `mpi`");
    workplace.write(OWN, "no library");
    launched(&workplace)
        .expect_code(1)
        .expect_stderr("plugins/collectives/mpi.so: is not a shared library")
        .expect_stderr("hint: build it with `-shared`");
    let listed = workplace.forgelm(&["plugin", "list"]).expect_code(1);
    listed.expect_stderr("plugins/collectives/mpi.so: is not a shared library");
    // Neither does a run of one process that asks for several, nor one that does not.
    workplace.edit_config("max_steps: 12", "max_steps: 1");
    workplace.run().expect_stderr("this is the only process");
    workplace.write("run.yaml", &shared.replace(&format!("distributed: {{{ZERO2}"), "#"));
    workplace.edit_config("max_steps: 12", "max_steps: 1");
    workplace.edit_config("output_dir: out", "output_dir: alone");
    launched(&workplace).expect_code(0);
    // A name leads to no other folder.
    workplace.write("run.yaml", &shared.replace(ZERO2, "strategy: deepspeed, engine: ../../mpi"));
    launched(&workplace).expect_code(1).expect_stderr("is named `../../mpi`; loaded: none");
}

#[test]
fn a_library_of_ones_own_folder_is_used_where_it_is_signed_or_trusted() {
    for (mpicc, named) in every_mpicc() {
        let workplace = crate::distributed::workplace(ZERO2);
        workplace.edit_config("max_steps: 12", "max_steps: 1");
        workplace.edit_config("plugins: {isolation: in_process}", "plugins: {isolation: auto}");
        workplace.forgelm(&["comm", "build", "--mpicc", mpicc]).expect_code(0);
        launched(&workplace)
            .expect_code(1)
            .expect_stderr(
                "mpi.so: it has no signature of a key that is trusted, so it would run in",
            )
            .expect_stderr("hint: `forgelm plugin sign ");
        workplace.forgelm(&["plugin", "sign", OWN]).expect_code(0);
        launched(&workplace).expect_code(0);
        let lines = workplace.json_lines("out/audit_log.jsonl");
        let joined = lines.iter().find(|line| line["event"] == "training.distributed").unwrap();
        assert!(joined["collective"].as_str().unwrap().starts_with(named), "{joined}");
        assert_eq!(joined["library"], "forgelm_mpi");
        let digest = forgelm_artifact::hash::sha256_file(&workplace.path(OWN)).unwrap().to_string();
        assert_eq!(joined["library_sha256"], digest);
        let report: serde_json::Value =
            serde_json::from_str(&workplace.read("out/compliance/compliance_report.json")).unwrap();
        let library = &report["training_parameters"]["distributed"]["library"];
        assert_eq!(library["kind"], "collective");
        assert_eq!(library["sha256"], digest);
        assert!(library["signature"]["keyid"].is_string(), "{library}");
        // Under the name of another engine it is not what the config names.
        let other = workplace.path("home/.local/share/forgelm/plugins/collectives/other.so");
        std::fs::copy(workplace.path(OWN), other).unwrap();
        workplace.edit_config("isolation: auto", "isolation: in_process");
        workplace.edit_config(ZERO2, "strategy: deepspeed, engine: other");
        launched(&workplace)
            .expect_code(1)
            .expect_stderr("other.so: has no collective `other`; it has: collective mpi");
    }
}
