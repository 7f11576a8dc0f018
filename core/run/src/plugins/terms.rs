//! On what terms libraries are loaded: what a config says of signatures, processes and patience.

use super::Plugins;
use super::signed::Signatures;
use crate::environment::Environment;
use crate::error::RunError;
use crate::trust::trusted_keys;
use forgelm_config::PluginIsolation;
use forgelm_loader::search::Found;
use forgelm_loader::{LibraryFile, Loader};
use std::path::Path;

/// `plugins.deadline_seconds` where there is no such section.
const DEADLINE: u64 = 300;

/// What is asked of a library, and where it runs.
pub(super) struct Terms {
    pub(super) signatures: Signatures,
    pub(super) isolation: PluginIsolation,
    pub(super) deadline_seconds: u64,
}

impl Terms {
    /// Those of a config; without a section, those of commands that read none.
    ///
    /// # Errors
    /// If the trust store cannot be used.
    pub(super) fn of(
        section: Option<&forgelm_config::Plugins>,
        trust_store: Option<&Path>,
        env: &Environment,
    ) -> Result<Self, RunError> {
        let is_required = section.is_some_and(|plugins| plugins.require_signed);
        Ok(Self {
            signatures: Signatures::new(trusted_keys(trust_store, env)?, is_required),
            isolation: section.map_or(PluginIsolation::Auto, |plugins| plugins.isolation),
            deadline_seconds: section.map_or(DEADLINE, |plugins| plugins.deadline_seconds),
        })
    }

    /// Whether a library runs in a process of its own.
    pub(super) fn is_apart(&self, found: &Found, file: &LibraryFile) -> bool {
        match self.isolation {
            PluginIsolation::Auto => !found.is_bundled && file.signature().is_none(),
            PluginIsolation::Process => true,
            PluginIsolation::InProcess => false,
        }
    }
}

impl Plugins {
    pub(super) fn loader_on(&self, terms: &Terms, env: &Environment) -> Loader {
        self.loader(env, terms.deadline_seconds)
    }

    /// Reads a library and loads it, in a process of its own where the terms want that.
    pub(super) fn add_on(
        &mut self,
        terms: &Terms,
        loader: &mut Loader,
        found: &Found,
        env: &Environment,
    ) -> Result<(), RunError> {
        let file = terms.signatures.read(found, &mut self.notes)?;
        let worker = terms.is_apart(found, &file);
        let worker = worker.then(|| self.worker_program(env, terms.deadline_seconds));
        self.add(loader, found, &file, worker.transpose()?.as_ref())
    }
}
