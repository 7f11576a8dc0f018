//! What is done with the checkpoints of a run that does not work.

use crate::environment::Environment;
use crate::error::RunError;
use forgelm_artifact::lock::{LOCK_FILE, RunLock};
use forgelm_artifact::open::OpenError;
use forgelm_train::checkpoint::merge::{self, MergeError};
use std::path::Path;

/// Makes a whole checkpoint out of one in shards, in a new folder or in its place; how many shards
/// there were.
///
/// # Errors
/// If it is none, or damaged, a run works in its folder where it is replaced, or the disk refuses.
pub fn merge(
    checkpoint: &Path,
    output: Option<&Path>,
    env: &Environment,
) -> Result<usize, RunError> {
    let unreadable = |source| OpenError::Io { path: checkpoint.to_owned(), source };
    let checkpoint = checkpoint.canonicalize().map_err(unreadable)?;
    let run_dir = checkpoint.parent().filter(|run_dir| run_dir.join(LOCK_FILE).exists());
    let _lock = match (output, run_dir) {
        (None, Some(run_dir)) => {
            Some(RunLock::acquire(run_dir, "checkpoint merge", env.clock.utc())?)
        }
        (None | Some(_), _) => None,
    };
    merge::merge(&checkpoint, output).map_err(|error| match error {
        MergeError::Checkpoint(error) => error.into(),
        MergeError::Write(error) => error.into(),
    })
}
