//! What `forgelm doctor` says of MPI: launcher, compiler and library, and whether they belong together.

use crate::support::Workplace;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

const OWN: &str = "home/.local/share/forgelm/plugins/collectives/mpi.so";

/// A program in `bin/` that prints this.
fn program(workplace: &Workplace, name: &str, says: &str) {
    workplace.write(&format!("bin/{name}.txt"), says);
    let file = workplace.path(&format!("bin/{name}"));
    workplace.write(&format!("bin/{name}"), "#!/bin/sh\nread_all() { while IFS= read -r line; do echo \"$line\"; done; }\nread_all < \"$0.txt\"\n");
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The lines of MPI, where only the programs of `bin/` are there: name, status, detail, hint.
fn lines(workplace: &Workplace) -> Vec<[String; 4]> {
    let mut command = workplace.command(&["doctor", "--offline", "--output-format", "json"]);
    let ran = command.env("PATH", workplace.path("bin")).output().unwrap();
    let document: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let of = |check: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        [&check["name"], &check["status"], &check["detail"], &check["extras"]["hint"]].map(text)
    };
    let all = document["checks"].as_array().unwrap().iter().map(of);
    all.filter(|line| line[0].starts_with("mpi.")).collect()
}

#[track_caller]
fn expect(line: &[String; 4], start: [&str; 2], detail: &str, hint: &str) {
    assert_eq!([&*line[0], &*line[1]], start, "{line:?}");
    assert!(line[2].contains(detail) && line[3].contains(hint), "{detail}, {hint}: {line:?}");
}

const OPEN_MPI: &str = "mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org\n";
const MPICH_MACROS: &str = "#define MPI_VERSION 4\n#define MPICH_VERSION \"4.0.2\"\n";

#[test]
fn without_any_mpi_there_is_one_line() {
    let workplace = Workplace::new();
    let found = lines(&workplace);
    assert_eq!(found.len(), 1, "{found:?}");
    let detail = "no `mpirun`, `mpiexec` or `srun` in PATH: a run has one process";
    expect(&found[0], ["mpi.launcher", "warn"], detail, "openmpi-bin");
}

#[test]
fn launcher_and_compiler_of_two_mpis_are_told() {
    let workplace = Workplace::new();
    program(&workplace, "mpirun", OPEN_MPI);
    program(&workplace, "mpicc", MPICH_MACROS);
    let found = lines(&workplace);
    assert_eq!(found.len(), 3, "{found:?}");
    expect(&found[0], ["mpi.launcher", "pass"], "bin/mpirun`, Open MPI 4.1.4", "");
    let detail = "bin/mpicc`, MPICH 4.0.2; `mpirun` is of Open MPI 4.1.4";
    expect(&found[1], ["mpi.compiler", "warn"], detail, "with the mpicc of Open MPI 4.1.4");
    expect(&found[2], ["mpi.collective", "warn"], "it is not built", "`forgelm comm build`");
    // Slurm starts the processes of either.
    fs::remove_file(workplace.path("bin/mpirun")).unwrap();
    program(&workplace, "srun", "slurm 22.05.8\n");
    let found = lines(&workplace);
    expect(&found[0], ["mpi.launcher", "pass"], "bin/srun`, Slurm 22.05.8", "");
    expect(&found[1], ["mpi.compiler", "pass"], "bin/mpicc`, MPICH 4.0.2", "");
    // One that does not say what it is.
    program(&workplace, "mpirun", "usage: mpirun\n");
    expect(&lines(&workplace)[0], ["mpi.launcher", "warn"], "says no MPI that is known", "module");
}

#[test]
fn a_library_is_compared_with_the_launcher() {
    if Command::new("mpicc.openmpi").arg("--version").output().is_err() {
        println!("skipped: mpicc.openmpi is missing");
        return;
    }
    let workplace = Workplace::new();
    workplace.forgelm(&["comm", "build", "--mpicc", "mpicc.openmpi"]).expect_code(0);
    program(&workplace, "mpirun", OPEN_MPI);
    program(&workplace, "mpicc", MPICH_MACROS);
    let of_library = |n: usize| {
        let found = lines(&workplace);
        assert_eq!(found.len(), n, "{found:?}");
        found[n - 1].clone()
    };
    let detail = "collectives/mpi.so`, for Open MPI 4.1";
    expect(&of_library(3), ["mpi.collective", "warn"], detail, "`forgelm plugin sign ");
    workplace.forgelm(&["plugin", "sign", OWN]).expect_code(0);
    expect(&of_library(3), ["mpi.collective", "pass"], detail, "");
    program(&workplace, "mpirun", "HYDRA build details:\n    Version:      4.0.2\n");
    let detail = "`mpirun` is of MPICH 4.0.2, which cannot start it";
    expect(
        &of_library(3),
        ["mpi.collective", "warn"],
        detail,
        "start with the mpirun of Open MPI 4.1",
    );
    fs::remove_file(workplace.path(&format!("{OWN}.dsse.json"))).unwrap();
    workplace.write(OWN, "no library");
    let detail = "collectives/mpi.so: is not a shared library";
    expect(&of_library(3), ["mpi.collective", "fail"], detail, "build it with `-shared`");
}
