//! Which checkpoint a run continues from.

use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::launch;
use crate::output::OutputDir;
use forgelm_artifact::open::OpenError;
use forgelm_train::checkpoint;
use forgelm_train::state::State;
use std::path::{Path, PathBuf};

/// What `--resume` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Nothing: a fresh run.
    No,
    /// The newest checkpoint that verifies; a fresh run when there is none.
    Newest,
    /// This one.
    From(PathBuf),
}

impl Resume {
    /// From the flag's value: `auto` is the newest.
    #[must_use]
    pub fn from_flag(flag: Option<&Path>) -> Self {
        match flag {
            None => Self::No,
            Some(path) if path == Path::new("auto") => Self::Newest,
            Some(path) => Self::From(path.to_owned()),
        }
    }

    /// As the flag says where a run is started for the first time, and from its own newest checkpoint
    /// where it is started again; a checkpoint that was asked for counts until it has one.
    #[must_use]
    pub fn started_again(self, output: &OutputDir) -> Self {
        match self {
            Self::From(path) if launch::newest_step(output.root()).is_none() => Self::From(path),
            Self::No | Self::Newest | Self::From(_) => Self::Newest,
        }
    }
}

/// A checkpoint that verified, and where the run stood.
#[derive(Clone, Debug)]
pub struct From {
    /// Its folder.
    pub path: PathBuf,
    /// Its state.
    pub state: State,
}

/// The checkpoint to continue from; `None` for a fresh run. Checkpoints that are passed over are
/// named.
///
/// # Errors
/// If the one asked for does not exist or does not verify, or the folder cannot be listed.
pub fn choose(
    resume: &Resume,
    output: &OutputDir,
    observer: &mut dyn Observer,
) -> Result<Option<From>, RunError> {
    let path = match resume {
        Resume::No => return Ok(None),
        Resume::From(path) if !path.is_dir() => {
            return Err(RunError::NoCheckpoint { path: path.clone() });
        }
        Resume::From(path) => {
            checkpoint::verify(path)?;
            path.clone()
        }
        Resume::Newest => {
            let (found, skipped) = checkpoint::newest(output.root())
                .map_err(|source| OpenError::Io { path: output.root().to_owned(), source })?;
            for skipped in skipped {
                let text = format!("`{}` was skipped: {}", skipped.path.display(), skipped.reason);
                observer.observe(&Event::Warning(text));
            }
            let Some(path) = found else {
                let text =
                    format!("no checkpoint in `{}`: starting afresh", output.root().display());
                observer.observe(&Event::Warning(text));
                return Ok(None);
            };
            path
        }
    };
    let state = checkpoint::read_state(&path)?;
    Ok(Some(From { path, state }))
}

/// What is said when the last run in a folder left no word of its end in the audit log: it was
/// killed, or the machine stopped.
#[must_use]
pub fn ended_silently(output: &OutputDir) -> Option<String> {
    let text = std::fs::read_to_string(output.root().join("audit_log.jsonl")).ok()?;
    let last: serde_json::Value = serde_json::from_str(text.lines().last()?).ok()?;
    let event = last["event"].as_str()?;
    let is_end = ["pipeline.completed", "pipeline.failed", "training.interrupted"].contains(&event)
        || event.starts_with("human_approval.");
    (!is_end).then(|| {
        format!(
            "run {} ended without a word after `{event}`: it was killed, perhaps by the kernel for \
             lack of memory (`training.oom_recovery: true` helps then), or the machine stopped",
            last["run_id"].as_str().unwrap_or("?"),
        )
    })
}
