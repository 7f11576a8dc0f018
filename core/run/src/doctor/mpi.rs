//! MPI: what starts the processes of a run, what compiles its library, whether that library opens, and
//! whether they are of one MPI. No process is joined to others here: `forgelm plugin check` does that.

use super::{Check, World};
use crate::plugins::{self, LibraryRecord};
use serde_json::json;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// What starts processes, the first that is there.
const LAUNCHERS: [&str; 3] = ["mpirun", "mpiexec", "srun"];
const COMPILER: &str = "mpicc";
/// What a launcher prints about itself.
const VERSION: &[&str] = &["--version"];
/// What a compiler prints of `mpi.h`: all its macros.
const MACROS: &[&str] = &["-E", "-dM", "-include", "mpi.h", "-x", "c", "/dev/null"];
/// The collective of these processes.
const ENGINE: (&str, &str) = ("collective", "mpi");
const BUILD: &str = "`forgelm comm build` makes it, with the mpicc of the launcher's MPI";

/// One MPI.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mpi {
    family: Family,
    version: String,
}

/// MPIs whose launchers start each other's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    OpenMpi,
    /// MPICH and what was made from it, whose launcher is Hydra.
    Mpich,
    /// Slurm, which starts those of any MPI that its plugins know.
    Slurm,
}

impl fmt::Display for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.family {
            Family::OpenMpi => "Open MPI",
            Family::Mpich => "MPICH",
            Family::Slurm => "Slurm",
        };
        write!(f, "{name} {}", self.version)
    }
}

impl Mpi {
    /// The one that a text names: that of a launcher, or the summary of the library.
    fn named_in(text: &str) -> Option<Self> {
        let after = |words: &str| {
            let rest = text.split_once(words)?.1.trim_start();
            rest.split([' ', ',', '\n']).next().map(|version| version.trim().to_owned())
        };
        let of = |family, words| Some(Self { family, version: after(words)? });
        if text.contains("HYDRA build details") {
            return of(Family::Mpich, "Version:");
        }
        of(Family::OpenMpi, "Open MPI)")
            .or_else(|| of(Family::OpenMpi, "Open MPI "))
            .or_else(|| of(Family::Mpich, "MPICH "))
            .or_else(|| of(Family::Mpich, "MVAPICH2 "))
            .or_else(|| of(Family::Mpich, "Intel MPI "))
            .or_else(|| of(Family::Mpich, "Intel(R) MPI Library for Linux* OS, Version "))
            .or_else(|| of(Family::Slurm, "slurm "))
    }

    /// The one whose `mpi.h` has these macros.
    fn of_macros(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let line =
                text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name));
            Some(line?.strip_prefix(' ')?.trim().trim_matches('"').to_owned())
        };
        if let Some(version) = value("MPICH_VERSION") {
            return Some(Self { family: Family::Mpich, version });
        }
        let number = |part: &str| value(&format!("OMPI_{part}_VERSION"));
        let version = format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("RELEASE")?);
        Some(Self { family: Family::OpenMpi, version })
    }

    fn starts(&self, other: &Self) -> bool {
        self.family == other.family || self.family == Family::Slurm
    }
}

/// A program that was asked which MPI it belongs to.
struct Asked {
    name: &'static str,
    path: PathBuf,
    answer: Result<Mpi, String>,
}

impl Asked {
    fn new(
        world: &World<'_>,
        name: &'static str,
        arguments: &[&str],
        read: impl Fn(&str) -> Option<Mpi>,
    ) -> Option<Self> {
        let path = program(world, name)?;
        let unknown = || "says no MPI that is known".to_owned();
        let answer = (world.env.ask_program)(&path, arguments);
        let answer = answer.and_then(|text| read(&text).ok_or_else(unknown));
        Some(Self { name, path, answer })
    }

    fn mpi(&self) -> Option<&Mpi> {
        self.answer.as_ref().ok()
    }

    /// Its line, where it answers.
    fn check(&self, line: &str) -> Check {
        let path = self.path.display();
        let check = match &self.answer {
            Ok(mpi) => Check::pass(line, format!("`{path}`, {mpi}")),
            Err(why) => Check::warn(line, format!("`{path}` {why}"))
                .hint("is the module of the site for this MPI loaded?"),
        };
        check.with("path", json!(self.path)).with("mpi", json!(self.mpi().map(Mpi::to_string)))
    }
}

/// Where a shell would find a program.
fn program(world: &World<'_>, name: &str) -> Option<PathBuf> {
    let path = (world.env.variable)("PATH")?;
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(is_program)
}

/// Launcher, compiler and library; one line where there is nothing of MPI.
pub(super) fn mpi(world: &World<'_>) -> Vec<Check> {
    let launcher =
        LAUNCHERS.into_iter().find_map(|name| Asked::new(world, name, VERSION, Mpi::named_in));
    let compiler = Asked::new(world, COMPILER, MACROS, Mpi::of_macros);
    let libraries = Libraries::of(world);
    let started = launcher.as_ref().map_or_else(no_launcher, |of| of.check("mpi.launcher"));
    if launcher.is_none() && compiler.is_none() && libraries.is_none() {
        return vec![started];
    }
    let mut checks = vec![started];
    checks.push(compiler_line(compiler.as_ref(), launcher.as_ref()));
    checks.extend(libraries.lines(launcher.as_ref()));
    checks
}

fn no_launcher() -> Check {
    let [first, second, third] = LAUNCHERS;
    let detail = format!("no `{first}`, `{second}` or `{third}` in PATH: a run has one process");
    Check::warn("mpi.launcher", detail)
        .hint("for several, a package as openmpi-bin or mpich, or a module of the site, has one")
}

fn compiler_line(compiler: Option<&Asked>, launcher: Option<&Asked>) -> Check {
    let line = "mpi.compiler";
    let Some(compiler) = compiler else {
        return Check::warn(line, format!("no `{COMPILER}` in PATH")).hint(
            "`forgelm comm build` wants one: a package as libopenmpi-dev or libmpich-dev has it",
        );
    };
    let check = compiler.check(line);
    match (compiler.mpi(), launcher.and_then(|of| Some((of, of.mpi()?)))) {
        (Some(mpi), Some((launcher, other))) if !other.starts(mpi) => {
            let (path, name) = (compiler.path.display(), launcher.name);
            let detail = format!("`{path}`, {mpi}; `{name}` is of {other}");
            let hint = format!("`forgelm comm build --mpicc PATH`, with the mpicc of {other}");
            Check { extras: check.extras, ..Check::warn(line, detail).hint(hint) }
        }
        _ => check,
    }
}

/// The libraries that join processes, and those that cannot be opened.
struct Libraries {
    loaded: Vec<LibraryRecord>,
    broken: Vec<Check>,
}

impl Libraries {
    fn of(world: &World<'_>) -> Self {
        let line = "mpi.collective";
        let found = plugins::list(None, &[], world.env).and_then(|(mut plugins, _)| {
            // What is wrong with the others is told by `plugins.libraries`.
            let broken = plugins.add_collectives(None, world.env)?;
            Ok((plugins, broken))
        });
        match found {
            Err(error) => Self { loaded: Vec::new(), broken: vec![Check::failed_by(line, &error)] },
            Ok((plugins, broken)) => {
                let is_engine = |of: &&LibraryRecord| summary(of).is_some();
                Self {
                    loaded: plugins.libraries().iter().filter(is_engine).cloned().collect(),
                    broken: broken.iter().map(|error| Check::failed_by(line, error)).collect(),
                }
            }
        }
    }

    fn is_none(&self) -> bool {
        self.loaded.is_empty() && self.broken.is_empty()
    }

    fn lines(self, launcher: Option<&Asked>) -> Vec<Check> {
        if self.is_none() {
            return vec![Check::warn("mpi.collective", "it is not built").hint(BUILD)];
        }
        let mut lines = self.broken;
        lines.extend(self.loaded.iter().map(|library| library_line(library, launcher)));
        lines
    }
}

/// What a library says of its collective.
fn summary(library: &LibraryRecord) -> Option<&'static str> {
    let of_engine = |of: &&(&str, &str, &'static str)| (of.0, of.1) == ENGINE;
    library.plugins.iter().find(of_engine).map(|of| of.2)
}

fn library_line(library: &LibraryRecord, launcher: Option<&Asked>) -> Check {
    let line = "mpi.collective";
    let (path, mpi) = (&library.origin.path, summary(library).and_then(Mpi::named_in));
    let shown = mpi.as_ref().map_or_else(|| "an MPI that is not known".to_owned(), Mpi::to_string);
    let shown = format!("`{}`, for {shown}", path.display());
    let other = launcher.and_then(|of| Some((of, of.mpi()?)));
    let check = match (&mpi, other) {
        (Some(mpi), Some((launcher, other))) if !other.starts(mpi) => {
            let detail =
                format!("{shown}; `{}` is of {other}, which cannot start it", launcher.name);
            let hint =
                format!("start with the mpirun of {mpi}, or build it with the mpicc of {other}");
            Check::warn(line, detail).hint(hint)
        }
        _ if library.origin.is_isolated => {
            Check::warn(line, format!("{shown}, not signed")).hint(unsigned_hint(path))
        }
        _ => Check::pass(line, shown),
    };
    check.with("mpi", json!(mpi.as_ref().map(Mpi::to_string))).with("library", library.to_json())
}

fn unsigned_hint(path: &Path) -> String {
    format!(
        "`forgelm plugin sign {}` with a key that you trust, or `plugins.isolation: in_process` in runs",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Option<String> {
        Mpi::named_in(text).map(|mpi| mpi.to_string())
    }

    #[test]
    fn every_mpi_is_known_by_what_it_says() {
        let hydra = "HYDRA build details:\n    Version:                                 4.0.2\n";
        let intel = "Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005\nCopyright";
        for (text, expected) in [
            ("mpirun (Open MPI) 4.1.4\n\nReport bugs to", "Open MPI 4.1.4"),
            ("the processes that a launcher started, through Open MPI 5.0.3", "Open MPI 5.0.3"),
            ("the processes that a launcher started, through MPICH 4.0.2", "MPICH 4.0.2"),
            (hydra, "MPICH 4.0.2"),
            (intel, "MPICH 2021.11"),
            ("slurm 22.05.8\n", "Slurm 22.05.8"),
        ] {
            assert_eq!(named(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(named("mpirun: command of another world"), None);
    }

    #[test]
    fn the_macros_of_a_header_say_whose_it_is() {
        let open = "#define OMPI_MAJOR_VERSION 4\n#define OMPI_RELEASE_VERSION 4\n\
                    #define MPI_VERSION 3\n#define OMPI_MINOR_VERSION 1\n";
        let of = |text| Mpi::of_macros(text).map(|mpi| mpi.to_string());
        assert_eq!(of(open).as_deref(), Some("Open MPI 4.1.4"));
        assert_eq!(of("#define MPICH_VERSION \"4.0.2\"\n").as_deref(), Some("MPICH 4.0.2"));
        assert_eq!(of("#define MPICH_VERSION_X 1\n#define MPI_VERSION 3\n"), None);
    }
}
