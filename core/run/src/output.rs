//! The run's folder: what may be in it before a run starts, and what a run leaves.

use crate::error::RunError;
use forgelm_artifact::write;
use forgelm_evidence::approval::staging_name;
use std::path::{Component, Path, PathBuf};

/// Names in a run's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputDir {
    root: PathBuf,
    final_model: PathBuf,
}

/// Whether the run may find files of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A fresh run: the folder must be empty.
    Fresh,
    /// A continued run.
    Resume,
}

/// Files that may stand in an otherwise empty folder: the report of `forgelm audit` goes into the
/// evidence of the run.
const OURS: [&str; 3] =
    [".forgelm.lock", "data_audit_report.json", "data_audit_report.json.dsse.json"];

impl OutputDir {
    /// The folder of `training.output_dir` with `training.final_model_dir` in it.
    #[must_use]
    pub fn new(root: &str, final_model: &str) -> Self {
        let root = PathBuf::from(root);
        Self { final_model: root.join(final_model), root }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The tuned model.
    #[must_use]
    pub fn final_model(&self) -> &Path {
        &self.final_model
    }

    /// Where the model of a run goes: a folder of its own beside the final one while people must
    /// approve it.
    #[must_use]
    pub fn model_of(&self, run_id: &str, is_staged: bool) -> PathBuf {
        match self.final_model.file_name() {
            Some(name) if is_staged => {
                let name = staging_name(&name.to_string_lossy(), run_id);
                self.final_model.with_file_name(name)
            }
            _ => self.final_model.clone(),
        }
    }

    /// One line a step and evaluation.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The step that could not be made, for whoever looks into it.
    #[must_use]
    pub fn replay(&self, step: u64) -> PathBuf {
        self.root.join(format!("replay-step-{step}.json"))
    }

    /// Refuses a folder in which a run would lose something: one that is an input or lies in one,
    /// or, for a fresh run, one that is not empty. Nothing is created or removed.
    ///
    /// # Errors
    /// Naming the folder and what is in the way.
    pub fn check(&self, inputs: &[&Path], start: Start) -> Result<(), RunError> {
        for input in inputs {
            if lies_in(&self.root, input) {
                return Err(RunError::OutputDir {
                    dir: self.root.clone(),
                    problem: format!("is or lies in the input `{}`", input.display()),
                    hint: "choose a `training.output_dir` outside everything that the run reads",
                });
            }
        }
        match start {
            Start::Fresh => self.check_empty(),
            Start::Resume => Ok(()),
        }
    }

    fn check_empty(&self) -> Result<(), RunError> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(RunError::OutputDir {
                    dir: self.root.clone(),
                    problem: format!("cannot be listed: {error}"),
                    hint: "choose a folder for `training.output_dir`",
                });
            }
            Ok(entries) => entries,
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .filter(|name| !OURS.contains(&name.as_str()))
            .collect();
        names.sort();
        let Some(first) = names.first() else { return Ok(()) };
        let hint = if names.iter().any(|name| name == "audit_log.jsonl") {
            "it has a run: continue it with `--resume`, or choose another `training.output_dir`"
        } else {
            "choose another `training.output_dir`: nothing in this one is ever overwritten"
        };
        Err(RunError::OutputDir {
            dir: self.root.clone(),
            problem: format!("is not empty: it has `{first}`"),
            hint,
        })
    }

    /// Makes the folder, and shows that files can be written in it.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn create(&self) -> Result<(), RunError> {
        write::create_dir_all_durable(&self.root)?;
        let probe = self.root.join(".forgelm.write-test");
        write::atomic(&probe, b"")?;
        write::remove_file(&probe)?;
        Ok(())
    }
}

/// Whether a path is `folder` or something in it, once links are followed.
#[must_use]
pub fn lies_in(path: &Path, folder: &Path) -> bool {
    resolved(path).starts_with(resolved(folder))
}

/// The path with every link and `..` resolved, as far as it exists: what does not exist is no link.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let start = if path.is_absolute() { Path::new("/") } else { Path::new(".") };
    let mut real = start.canonicalize().unwrap_or_else(|_| start.to_owned());
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                let next = real.join(name);
                real = next.canonicalize().unwrap_or(next);
            }
            Component::ParentDir => {
                real.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    real
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::*;

    #[test]
    fn a_folder_inside_an_input_is_refused_through_dots_and_links() {
        let dir = tempfile::tempdir().expect("a folder");
        let model = dir.path().join("model");
        std::fs::create_dir(&model).expect("created");
        std::os::unix::fs::symlink(&model, dir.path().join("link")).expect("linked");
        for inside in ["model", "model/new", "model/../model/new", "link/new/deep"] {
            let root = dir.path().join(inside).display().to_string();
            let output = OutputDir::new(&root, "final_model");
            let refused = output.check(&[&model], Start::Resume);
            assert!(refused.is_err(), "{inside}");
        }
        let beside = dir.path().join("model2").display().to_string();
        assert!(OutputDir::new(&beside, "final_model").check(&[&model], Start::Fresh).is_ok());
    }

    #[test]
    fn a_path_that_does_not_exist_is_resolved_part_by_part() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("it exists");
        std::fs::create_dir_all(root.join("deep/er")).expect("created");
        std::os::unix::fs::symlink(root.join("deep/er"), root.join("link")).expect("linked");
        for (path, expected) in [
            ("new/../other", "other"),
            ("new/./a/../b", "new/b"),
            // Up from where the link leads, as the system goes.
            ("link/../sibling", "deep/sibling"),
            ("link/new", "deep/er/new"),
        ] {
            assert_eq!(resolved(&root.join(path)), root.join(expected), "{path}");
        }
        assert_eq!(resolved(Path::new("/../x-y-z")), Path::new("/x-y-z"));
    }

    #[test]
    fn only_an_empty_folder_takes_a_fresh_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let output = OutputDir::new(&dir.path().display().to_string(), "final_model");
        output.check(&[], Start::Fresh).expect("empty");
        std::fs::write(dir.path().join(".forgelm.lock"), "").expect("written");
        output.check(&[], Start::Fresh).expect("our lock is no content");
        std::fs::write(dir.path().join("audit_log.jsonl"), "").expect("written");
        let text = output.check(&[], Start::Fresh).expect_err("not empty").to_string();
        assert!(text.contains("`audit_log.jsonl`") && text.contains("--resume"), "{text}");
        output.check(&[], Start::Resume).expect("its own run");
    }
}
