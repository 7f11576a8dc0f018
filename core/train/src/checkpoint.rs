//! Checkpoints: everything that a run needs to go on, in one folder that is complete or absent.
//!
//! `checkpoint-N/` holds the adapter (in PEFT's format), `optimizer.safetensors`,
//! `trainer_state.json` and, written last, `checkpoint_manifest.json` with the SHA-256 of each
//! other file. A folder whose manifest does not verify is never used. Where every process of a run
//! writes a part ([`shards`]), the files of tensors are in pieces; [`merge`](merge::merge) makes
//! one of the other kind out of it. Source: `docs/formats/checkpoint.md`.
//!
//! **Invariant:** the last checkpoint that verified and the best one are never removed
//! ([`rotate`]).

mod manifest;
pub mod merge;
pub mod shards;

use crate::optimizer::{Optimizer, StateError};
use crate::state::{STATE_FORMAT, State};
use forgelm_artifact::pieces::PiecesError;
use forgelm_artifact::write::{self, StagedDir, WriteError};
use forgelm_artifact::{Disk, Pieces, hash};
use forgelm_model::{AdapterError, PeftInfo, Trainable};
use manifest::Manifest;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file with the hashes of the others.
pub const MANIFEST: &str = "checkpoint_manifest.json";
const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const PREFIX: &str = "checkpoint-";

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// What trains.
    pub adapter: Trainable,
    /// The optimizer, with its state.
    pub optimizer: Optimizer,
    /// Where the run stood.
    pub state: State,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is not what its manifest says.
    #[error("{}: {reason}", .path.display())]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer program wrote it.
    #[error("{}: format {found}; this program reads up to {STATE_FORMAT}", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The optimizer's state does not fit this run.
    #[error("{}: {source}", .path.display())]
    Optimizer {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: StateError,
    },
    /// There are no shards to be merged.
    #[error("{}: is whole; there are no shards to merge", .path.display())]
    Whole {
        /// Its folder.
        path: PathBuf,
    },
    /// The adapter in it is not the one that the config asks for.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// A checkpoint that was passed over.
#[derive(Debug)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// The folder of the checkpoint after `step` steps.
#[must_use]
pub fn path(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("{PREFIX}{step}"))
}

/// Writes a checkpoint: a staged folder, the manifest last, then one rename.
///
/// # Errors
/// If the disk refuses; earlier checkpoints are untouched then.
pub fn save(disk: &Disk, run_dir: &Path, checkpoint: View<'_>) -> Result<PathBuf, WriteError> {
    let path = path(run_dir, checkpoint.state.global_step);
    let mut dir = StagedDir::new_on(disk, &path)?;
    let mut files = BTreeMap::new();
    let mut add = |dir: &mut StagedDir, name: &str, bytes: &[u8]| {
        files.insert(name.to_owned(), hash::sha256_bytes(bytes).as_str().to_owned());
        dir.write(name, bytes)
    };
    for (name, bytes) in checkpoint.adapter.to_files(checkpoint.peft) {
        add(&mut dir, name, &bytes)?;
    }
    add(&mut dir, OPTIMIZER, &checkpoint.optimizer.to_bytes())?;
    add(&mut dir, STATE, &json(checkpoint.state))?;
    dir.write(MANIFEST, &json(&Manifest::of_whole(files)))?;
    dir.commit_replacing()?;
    Ok(path)
}

/// What [`save`] writes.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What trains.
    pub adapter: &'a Trainable,
    /// What its config file says besides.
    pub peft: &'a PeftInfo,
    /// The optimizer, with its state.
    pub optimizer: &'a Optimizer,
    /// Where the run stands.
    pub state: &'a State,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data is serializable");
    bytes.push(b'\n');
    bytes
}

/// Reads a checkpoint, every byte of it verified first. `fresh` is the run's optimizer before its
/// first step, over the parameters of the adapter.
///
/// # Errors
/// If a file is missing, extra or changed, what trained is not what trains in `like`, or the state is
/// not of this optimizer.
pub fn load(
    path: &Path,
    like: &Trainable,
    fresh: Optimizer,
) -> Result<Checkpoint, CheckpointError> {
    let adapter = load_adapter(path, like)?;
    let state = read_state(path)?;
    let optimizer = read_optimizer(&Manifest::read(path)?.paths(path, OPTIMIZER), fresh)?;
    Ok(Checkpoint { adapter, optimizer, state })
}

/// Reads what a checkpoint trained, every byte of the checkpoint verified first.
///
/// # Errors
/// As [`load`].
pub fn load_adapter(path: &Path, like: &Trainable) -> Result<Trainable, CheckpointError> {
    verify(path)?;
    let mut adapter = like.clone();
    let numbers = Manifest::read(path)?.paths(path, like.numbers_file());
    adapter.restore_from(path, &numbers)?;
    Ok(adapter)
}

/// Checks every file of a checkpoint against its manifest.
///
/// # Errors
/// If one is missing, extra or changed: the first by name.
pub fn verify(path: &Path) -> Result<(), CheckpointError> {
    Manifest::read(path)?.verify(path)
}

/// What a ledger says of a checkpoint's optimizer, as its manifest has it: the SHA-256 of the file of
/// its state; of one in shards, that of a line `DIGEST  NAME` for each of these files.
///
/// # Errors
/// If the manifest cannot be read.
pub fn optimizer_sha256(path: &Path) -> Result<String, CheckpointError> {
    Ok(Manifest::read(path)?.sha256_of(OPTIMIZER))
}

fn damaged(path: PathBuf, reason: &str) -> CheckpointError {
    CheckpointError::Damaged { path, reason: reason.to_owned() }
}

/// Reads where a checkpoint's run stood.
///
/// # Errors
/// If the file is damaged, or a newer program wrote it.
pub fn read_state(path: &Path) -> Result<State, CheckpointError> {
    let file = path.join(STATE);
    let damaged = |reason: String| CheckpointError::Damaged { path: file.clone(), reason };
    let text = std::fs::read(&file).map_err(|error| damaged(error.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let format = value["format"].as_u64().and_then(|format| u32::try_from(format).ok());
    match format {
        Some(found) if found > STATE_FORMAT => Err(CheckpointError::Newer { path: file, found }),
        _ => serde_json::from_value(value).map_err(|error| damaged(error.to_string())),
    }
}

/// The tensors of one file, in all places where they are.
fn open_pieces(files: &[PathBuf]) -> Result<Pieces, CheckpointError> {
    Pieces::open(files).map_err(|error| match error {
        PiecesError::Foreign { path, what } => damaged(path, &what),
        PiecesError::File(error) => {
            damaged(files.first().cloned().unwrap_or_default(), &error.to_string())
        }
    })
}

fn read_optimizer(
    files: &[PathBuf],
    mut optimizer: Optimizer,
) -> Result<Optimizer, CheckpointError> {
    let place = files.first().cloned().unwrap_or_default();
    let file = open_pieces(files)?;
    optimizer.read(&file).map_err(|source| CheckpointError::Optimizer { path: place, source })?;
    Ok(optimizer)
}

/// The newest checkpoint of a run that verifies, and those that were passed over. Folders whose
/// suffix is not a decimal number are passed over too.
///
/// # Errors
/// If the folder cannot be listed.
pub fn newest(run_dir: &Path) -> std::io::Result<(Option<PathBuf>, Vec<Skipped>)> {
    let (numbered, mut skipped) = list(run_dir)?;
    for (_, path) in numbered.into_iter().rev() {
        match verify(&path) {
            Ok(()) => return Ok((Some(path), skipped)),
            Err(error) => skipped.push(Skipped { path, reason: error.to_string() }),
        }
    }
    Ok((None, skipped))
}

/// Checkpoints by step, and what only looks like one.
fn list(run_dir: &Path) -> std::io::Result<(BTreeMap<u64, PathBuf>, Vec<Skipped>)> {
    let mut numbered = BTreeMap::new();
    let mut others = Vec::new();
    let entries = match std::fs::read_dir(run_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((numbered, others));
        }
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(suffix) = name.strip_prefix(PREFIX) else { continue };
        let is_decimal = !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit());
        match suffix.parse() {
            Ok(step) if is_decimal => {
                numbered.insert(step, path);
            }
            _ => others.push(Skipped { path, reason: "its name is not a step".to_owned() }),
        }
    }
    Ok((numbered, others))
}

/// Removes old checkpoints until `n_kept` are left. The newest and the one of `best_step` stay.
///
/// # Errors
/// If the folder cannot be listed or a checkpoint cannot be removed.
pub fn rotate(run_dir: &Path, n_kept: usize, best_step: Option<u64>) -> Result<(), WriteError> {
    let listing = list(run_dir).map_err(|source| WriteError::Io {
        path: run_dir.to_owned(),
        action: write::Action::Read,
        source,
    })?;
    let mut numbered = listing.0;
    let newest = numbered.keys().next_back().copied();
    let n_too_many = numbered.len().saturating_sub(n_kept.max(1));
    numbered.retain(|step, _| Some(*step) != best_step && Some(*step) != newest);
    for path in numbered.values().take(n_too_many) {
        write::remove_dir(path)?;
    }
    Ok(())
}
