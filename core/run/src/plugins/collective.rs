//! The collective of a run: the one kind of plugin that is loaded only by a run that needs it.
//!
//! One of the user's own folder lies in [`COLLECTIVES`], in a file that is named as the engine is: so
//! it is known without opening it. What it is linked to may be there only after a module of the site
//! was loaded, and a run of one process must not care.

use super::terms::Terms;
use super::{Plugins, trust_store};
use crate::environment::Environment;
use crate::error::RunError;
use crate::plan::Plan;
use forgelm_loader::search::{Found, Places, find};
use forgelm_plugin::{Collectives, Kind, Plugin};
use std::path::{Path, PathBuf};

/// The folder of collectives, in that of the user's own plugins.
pub const COLLECTIVES: &str = "collectives";

/// Why the collective that a config names cannot be used. Each says which file it is about.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is none.
    #[error(
        "no collective is named `{engine}`{}; loaded: {known}\n  hint: `forgelm comm build` makes `mpi`, \
         with the site's own mpicc",
        .file.as_ref().map(|file| format!(": there is no `{}`", file.display())).unwrap_or_default()
    )]
    Missing {
        /// `distributed.engine`.
        engine: String,
        /// Where it would be, if a file can have this name and there is a folder for it.
        file: Option<PathBuf>,
        /// The collectives of other libraries.
        known: String,
    },
    /// The library of this name has others.
    #[error(
        "{}: has no collective `{engine}`; it has: {offered}\n  hint: the file is named as the engine is",
        .file.display()
    )]
    Other {
        /// `distributed.engine`.
        engine: String,
        /// The library.
        file: PathBuf,
        /// What it has.
        offered: String,
    },
    /// It would not run in the process that it joins to others.
    #[error(
        "{}: {why}, so it would run in a process of its own; expected in the one that the launcher \
         started\n  hint: `forgelm plugin sign {}` with a key that you trust, or `plugins.isolation: \
         in_process`",
        .file.display(), .file.display()
    )]
    Apart {
        /// The library.
        file: PathBuf,
        /// What puts it there.
        why: &'static str,
    },
}

/// Where the collective of this name is, in the user's own folder; none without such a folder, or
/// where the name is none of a file.
#[must_use]
pub fn collective_file(engine: &str, env: &Environment) -> Option<PathBuf> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let folder = env.plugin_dir.as_ref()?.join(COLLECTIVES);
    (!engine.is_empty() && engine.chars().all(is_plain))
        .then(|| folder.join(engine).with_extension("so"))
}

impl Plugins {
    /// The collective that a config names: of a library that every run loads, else of the user's own
    /// folder, from where it is loaded now.
    ///
    /// # Errors
    /// If there is none, or it cannot be used.
    pub(crate) fn collective(
        &mut self,
        engine: &str,
        plan: &Plan,
        env: &Environment,
    ) -> Result<&Plugin<Collectives>, RunError> {
        if self.registry.collective(engine).is_err() {
            self.load_collective(engine, plan, env)?;
        }
        Ok(self.registry.collective(engine)?)
    }

    fn load_collective(
        &mut self,
        engine: &str,
        plan: &Plan,
        env: &Environment,
    ) -> Result<(), RunError> {
        let file = collective_file(engine, env);
        let Some(path) = file.clone().filter(|path| path.exists()) else {
            let known: Vec<_> = self.names_of_collectives().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(EngineError::Missing { engine: engine.to_owned(), file, known }.into());
        };
        let terms = Terms::of(plan.run.plugins.as_ref(), trust_store(plan), env)?;
        let n_before = self.libraries.len();
        for found in of_place(&path)? {
            let library = terms.signatures.read(&found, &mut self.notes)?;
            if terms.is_apart(&found, &library) {
                let why = match library.signature() {
                    None => "it has no signature of a key that is trusted",
                    Some(_) => "`plugins.isolation` is `process`",
                };
                return Err(EngineError::Apart { file: path, why }.into());
            }
            let mut loader = self.loader_on(&terms, env);
            self.add(&mut loader, &found, &library, None)?;
        }
        let added = self.libraries[n_before..].iter().flat_map(|library| &library.plugins);
        let offered: Vec<String> = added.map(|(kind, name, _)| format!("{kind} {name}")).collect();
        if self.registry.collective(engine).is_err() {
            let (engine, offered) = (engine.to_owned(), offered.join(", "));
            return Err(EngineError::Other { engine, file: path, offered }.into());
        }
        Ok(())
    }

    fn names_of_collectives(&self) -> impl Iterator<Item = &'static str> {
        let all = self.libraries.iter().flat_map(|library| &library.plugins);
        all.filter(|(kind, ..)| *kind == Collectives::NAME).map(|(_, name, _)| *name)
    }

    /// Loads every collective of the user's own folder too, for a list; those that cannot be used.
    ///
    /// # Errors
    /// If the folder cannot be searched, or the trust store cannot be used.
    pub fn add_collectives(
        &mut self,
        plan: Option<&Plan>,
        env: &Environment,
    ) -> Result<Vec<RunError>, RunError> {
        let folder = env.plugin_dir.as_ref().map(|own| own.join(COLLECTIVES));
        let Some(folder) = folder.filter(|folder| folder.is_dir()) else { return Ok(Vec::new()) };
        let section = plan.and_then(|plan| plan.run.plugins.as_ref());
        let terms = Terms::of(section, plan.and_then(trust_store), env)?;
        let mut loader = self.loader_on(&terms, env);
        let mut broken = Vec::new();
        for found in of_place(&folder)? {
            let name = found.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Ok(other) = self.registry.collective(&name) {
                let (own, other) = (found.path.display(), &other.origin);
                self.notes
                    .push(format!("{own}: not used: `{name}` is in {other}, which comes first"));
                continue;
            }
            if let Err(error) = self.add_on(&terms, &mut loader, &found, env) {
                broken.push(error);
            }
        }
        Ok(broken)
    }
}

/// The libraries of one place, whose rights are looked at.
fn of_place(place: &Path) -> Result<Vec<Found>, RunError> {
    Ok(find(&Places { variable: vec![place.to_owned()], ..Places::default() })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::tests::nobody;

    #[test]
    fn a_name_leads_to_a_file_of_the_folder_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let env = Environment { plugin_dir: Some("/own".into()), ..nobody(dir.path()) };
        let file = |engine| collective_file(engine, &env);
        assert_eq!(file("mpi"), Some("/own/collectives/mpi.so".into()));
        assert_eq!(file("my-mpi_2"), Some("/own/collectives/my-mpi_2.so".into()));
        for elsewhere in ["", ".", "..", "../mpi", "a/b", "/tmp/x", "mpi.so", "m pi"] {
            assert_eq!(file(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(collective_file("mpi", &nobody(dir.path())), None, "no folder of one's own");
    }
}
