//! `cargo xtask cluster --ranks N [--mpi openmpi|mpich] [--dev] -- ARGUMENTS`: the program on N
//! processes of this machine, joined by MPI: a cluster to try things on.

use crate::install;
use std::process::Command;

const USAGE: &str =
    "usage: cargo xtask cluster --ranks N [--mpi openmpi|mpich] [--dev] -- ARGUMENTS
  ARGUMENTS  of the program, as `--config run.yaml`";

/// An MPI as Debian names its programs, or as a site has the only one.
struct Mpi {
    name: &'static str,
    mpicc: &'static str,
    mpirun: &'static [&'static str],
}

/// Open MPI starts no more ranks than there are cores, and binds each to one, unless it is told.
const KNOWN: [Mpi; 3] = [
    Mpi {
        name: "openmpi",
        mpicc: "mpicc.openmpi",
        mpirun: &["mpirun.openmpi", "--oversubscribe", "--bind-to", "none"],
    },
    Mpi { name: "mpich", mpicc: "mpicc.mpich", mpirun: &["mpirun.mpich"] },
    Mpi { name: "mpi", mpicc: "mpicc", mpirun: &["mpirun"] },
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    n_ranks: usize,
    mpi: Option<String>,
    is_dev: bool,
    arguments: Vec<String>,
}

/// Builds the program and the library for an MPI of this machine, and starts the ranks.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let asked = parse(arguments)?;
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let is_asked = |mpi: &Mpi| asked.mpi.as_deref().is_none_or(|name| name == mpi.name);
    let mut known = KNOWN.iter().filter(|mpi| is_asked(mpi));
    let mpi = known.find(|mpi| is_there(mpi.mpicc) && is_there(mpi.mpirun[0]));
    let Some(mpi) = mpi else {
        let name = asked.mpi.as_deref().unwrap_or("MPI");
        return Err(format!(
            "{name}: no `mpicc` and `mpirun` of it here\n  hint: Debian has them in `openmpi-bin` and \
             `libopenmpi-dev`, or in `mpich` and `libmpich-dev`"
        ));
    };
    let root = install::root()?;
    install::build(&root, asked.is_dev)?;
    let target = install::target_dir(&root);
    let plugins = target.join("cluster").join(mpi.name);
    let program = target.join(if asked.is_dev { "debug" } else { "release" }).join("forgelm");
    let built = Command::new(&program)
        .args(["comm", "build", "--mpicc", mpi.mpicc, "--output"])
        .arg(&plugins)
        .status()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if !built.success() {
        return Err("the library for MPI was not built".to_owned());
    }
    let status = Command::new(mpi.mpirun[0])
        .args(&mpi.mpirun[1..])
        .args(["-np", &asked.n_ranks.to_string()])
        .arg(program)
        .args(&asked.arguments)
        .env("FORGELM_PLUGIN_PATH", &plugins)
        // Open MPI refuses root otherwise, as which a container often works.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .status()
        .map_err(|error| format!("{}: {error}", mpi.mpirun[0]))?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", mpi.mpirun[0])) }
}

fn parse(arguments: &[String]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--ranks" => {
                let value = rest.next().and_then(|value| value.parse().ok());
                asked.n_ranks = value.ok_or_else(|| format!("`--ranks` has no number; {USAGE}"))?;
            }
            "--mpi" => asked.mpi = rest.next().cloned(),
            "--dev" => asked.is_dev = true,
            "--" => asked.arguments = rest.by_ref().cloned().collect(),
            other => return Err(format!("no argument `{other}`; {USAGE}")),
        }
    }
    if asked.n_ranks == 0 || asked.arguments.is_empty() {
        return Err(format!("`--ranks` or the program's arguments are missing; {USAGE}"));
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Asked, String> {
        parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_of_the_program_come_last() {
        let asked = parsed("--ranks 4 --mpi mpich --dev -- --config run.yaml --resume");
        let expected = Asked {
            n_ranks: 4,
            mpi: Some("mpich".to_owned()),
            is_dev: true,
            arguments: ["--config", "run.yaml", "--resume"].map(str::to_owned).to_vec(),
        };
        assert_eq!(asked, Ok(expected));
        for wrong in ["--ranks four -- x", "--ranks 2", "-- --config x", "--nodes 2"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
