//! `forgelm comm build`: the library that joins processes by MPI, compiled on the machine that runs
//! it, so that the program itself is bound to no MPI.

use super::Context;
use crate::args::{CommCommand, LogLevel};
use forgelm_artifact::write::{self, Action, WriteError};
use forgelm_run::error::RunError;
use forgelm_run::exit::Exit;
use forgelm_run::plugins::{self, COLLECTIVES, Outcome};
use forgelm_world::compiler;
use serde_json::json;
use std::path::{Path, PathBuf};

const SOURCE: (&str, &str) = ("forgelm_mpi.c", include_str!("../../../../ffi/mpi/forgelm_mpi.c"));
const HEADER: (&str, &str) =
    ("forgelm_plugin.h", include_str!("../../../../ffi/include/forgelm_plugin.h"));
/// Named as `distributed.engine` is.
const LIBRARY: &str = "mpi.so";
/// What the compiler writes: no library until it is whole.
const UNFINISHED: &str = "mpi.unfinished";
const FLAGS: &[&str] = &[
    "-std=c11",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wl,-z,defs",
    "-Wl,-z,nodelete",
    "-I.",
    SOURCE.0,
    "-o",
    UNFINISHED,
];

/// Runs one of the commands.
pub fn comm(command: &CommCommand, context: &mut Context) -> Exit {
    let CommCommand::Build { mpicc, output } = command;
    let environment = context.environment();
    let own = environment.plugin_dir.as_ref().map(|dir| dir.join(COLLECTIVES));
    let is_own = output.is_none() || *output == own;
    let Some(folder) = output.clone().or(own) else {
        let problem = "there is no home folder for the library\n  hint: `--output FOLDER`";
        return context.refused(Exit::Config, problem);
    };
    let written = write::create_dir_all_durable(&folder).and_then(|()| {
        [SOURCE, HEADER]
            .iter()
            .try_for_each(|(name, text)| write::atomic(&folder.join(name), text.as_bytes()))
    });
    if let Err(error) = written {
        return context.failed(&RunError::from(error));
    }
    match compiler::run(&compiler_path(mpicc), FLAGS, &folder) {
        Ok(said) if said.is_empty() => {}
        Ok(said) => context.progress.line(LogLevel::Warning, &said),
        Err(problem) => {
            let hint = "hint: a package as libopenmpi-dev or libmpich-dev, or a module of the \
                        site, has mpicc; `--mpicc PATH` takes another one";
            return context.refused(Exit::Config, &format!("{problem}\n  {hint}"));
        }
    }
    let library = folder.join(LIBRARY);
    if let Err(error) = finish(&folder, &library) {
        return context.failed(&error);
    }
    let checked = plugins::check(&library, &environment);
    let (mut plugins, findings) = match checked {
        Ok(checked) => (checked.plugins, checked.findings),
        Err(error) => return context.failed(&error),
    };
    plugins.tell(&mut context.progress);
    for finding in findings.iter().filter(|of| matches!(of.outcome, Outcome::Fails(_))) {
        context.warning(&finding.to_string());
    }
    let built = plugins.libraries().iter().flat_map(|library| &library.plugins);
    let summary = built.map(|(_, _, summary)| summary.to_string()).collect::<String>();
    let place = match is_own {
        true => "a run of several processes finds it there".to_owned(),
        false => format!("a run finds it by `FORGELM_PLUGIN_PATH={}`", folder.display()),
    };
    let shown = library.display();
    let text = format!(
        "{shown}\n  joins {summary}\n  {place}\n  it is used once it is signed: \
         forgelm plugin sign {shown}"
    );
    let document = json!({
        "success": true,
        "library": library,
        "summary": summary,
        "is_found": is_own,
    });
    context.result(&text, &document);
    Exit::Success
}

/// As the caller means it: one with a folder in its name is looked for from here, not from where
/// the sources are.
fn compiler_path(mpicc: &Path) -> PathBuf {
    let is_name = mpicc.components().count() == 1 && !mpicc.has_root();
    if is_name { mpicc.to_owned() } else { std::path::absolute(mpicc).unwrap_or(mpicc.to_owned()) }
}

/// Gives the library its name, in one step, and takes away what signed another one of this name.
fn finish(folder: &Path, library: &Path) -> Result<(), RunError> {
    let unfinished = folder.join(UNFINISHED);
    let unreadable = |source| {
        let path = unfinished.clone();
        WriteError::Io { path, action: Action::Read, source }
    };
    let bytes = std::fs::read(&unfinished).map_err(unreadable)?;
    let mut signature = library.as_os_str().to_owned();
    signature.push(".dsse.json");
    let signature = PathBuf::from(signature);
    if signature.exists() {
        write::remove_file(&signature)?;
    }
    write::atomic(library, &bytes)?;
    Ok(write::remove_file(&unfinished)?)
}
