//! `forgelm plugin check`: one library, tried in processes of its own, so that a crash is a finding too.

use super::signed::Signatures;
use super::{CHECK_DEADLINE, Plugins};
use crate::environment::Environment;
use crate::error::RunError;
use crate::kernels::Kernels;
use crate::model;
use crate::trust::trusted_keys;
use forgelm_loader::conformance::{self, Finding, OnDevice};
use forgelm_loader::search::Found;
use forgelm_loader::{Library, LibraryFile, WorkerProgram};
use std::path::Path;

/// A library that was tried.
#[derive(Debug)]
pub struct Checked {
    /// The library, and what it said.
    pub plugins: Plugins,
    /// What was tried.
    pub findings: Vec<Finding>,
    /// The device that merge methods and quantizers were tried on, or why on none; nothing for a
    /// library without them.
    pub device: Option<Result<String, String>>,
}

/// Loads one library and tries what every plugin of a kind must have, again where the host has no
/// kernels, and on a device if there is one.
///
/// # Errors
/// If it cannot be used at all.
pub fn check(path: &Path, env: &Environment) -> Result<Checked, RunError> {
    let mut plugins = Plugins::empty(Kernels::on_host(model::all_cores()));
    let found = Found { path: path.to_owned(), is_bundled: false };
    let signatures = Signatures::new(trusted_keys(None, env)?, false);
    let file = signatures.read(&found, &mut plugins.notes)?;
    // Nothing was loaded by these loaders before: there is a library.
    let program = plugins.worker_program(env, CHECK_DEADLINE)?;
    let library = plugins.loader(env, CHECK_DEADLINE).open_in_worker(&file, &program)?;
    let (mut findings, mut device) = (Vec::new(), None);
    if let Some(library) = library {
        findings = conformance::check(&library);
        let program = Plugins::worker_program_on(0, env, CHECK_DEADLINE)?;
        let without = plugins.loader(env, CHECK_DEADLINE).open_in_worker(&file, &program);
        findings.extend(conformance::check_without_kernels(&findings, without));
        if let Some(there) = on_device(&plugins, &library, &file, env)? {
            findings.extend(there.findings);
            device = Some(there.device);
        }
        plugins.put(library, false)?;
    }
    Ok(Checked { plugins, findings, device })
}

/// Nothing for a library that has nothing to do on a device.
fn on_device(
    plugins: &Plugins,
    library: &Library,
    file: &LibraryFile,
    env: &Environment,
) -> Result<Option<OnDevice>, RunError> {
    let offers = &library.offers;
    if offers.merge_methods.is_empty() && offers.quantizers.is_empty() {
        return Ok(None);
    }
    let program = with_device(plugins.worker_program(env, CHECK_DEADLINE)?, env);
    Ok(Some(plugins.loader(env, CHECK_DEADLINE).try_on_device(file, &program)?))
}

/// A worker that has a device, which is opened there.
fn with_device(mut program: WorkerProgram, env: &Environment) -> WorkerProgram {
    program.args.push("--device".into());
    let more = env.plugin_worker.iter().flat_map(|worker| &worker.device_environment);
    program.environment.extend(more.cloned());
    program
}
