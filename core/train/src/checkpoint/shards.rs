//! A checkpoint of which every process writes a part.
//!
//! The leader stages the folder. Every process then writes and syncs two files of its own into it:
//! the trained numbers and the optimizer's state of its ranges. All tell each other what they wrote,
//! or why they could not; the leader looks whether it sees the same files, writes what is not
//! shared out, the manifest last, and gives the folder its name.
//!
//! **Invariant:** without the word of every process there is no manifest, and without a manifest
//! no folder with a checkpoint's name.

use super::manifest::{Manifest, Shard, Shards, shard_name};
use super::{MANIFEST, OPTIMIZER, STATE, json, path};
use crate::optimizer::Optimizer;
use crate::state::State;
use forgelm_artifact::hash::{HashingWriter, sha256_bytes};
use forgelm_artifact::pieces::{self, PieceToWrite};
use forgelm_artifact::write::{StagedDir, WriteError, write_into_staged};
use forgelm_artifact::{Class, Disk};
use forgelm_collective::CollectiveError;
use forgelm_model::{PeftInfo, Trainable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a checkpoint was not written. Earlier ones are untouched.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The disk refused the leader.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Processes could not write their shards, or the leader does not see them.
    #[error("{}", texts(.0))]
    Shards(Vec<NotWritten>),
    /// The processes no longer speak to each other.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// A shard that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotWritten {
    /// Whose it is.
    pub rank: usize,
    /// What is wrong, with the path.
    pub reason: String,
    /// Whether its disk is full.
    pub no_room: bool,
}

fn texts(of: &[NotWritten]) -> String {
    let text = |of: &NotWritten| format!("rank {}: {}", of.rank, of.reason);
    of.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// What a process has of a checkpoint.
pub struct Own<'a> {
    /// Which of how many.
    pub place: (usize, usize),
    /// What trains, whole.
    pub adapter: &'a Trainable,
    /// The optimizer of everything, or of the ranges.
    pub optimizer: &'a Optimizer,
    /// The ranges of the buffer that it writes.
    pub ranges: Vec<Range<usize>>,
}

/// The files that a process wrote, or why it could not.
pub type Written = Result<BTreeMap<String, Shard>, NotWritten>;

impl Own<'_> {
    /// Writes and syncs the files of this process into a folder that the leader stages.
    ///
    /// # Errors
    /// If it cannot, with the rank, for all to be told.
    pub fn write(&self, disk: &Disk, folder: &Path) -> Written {
        self.try_write(disk, folder).map_err(|error| {
            let cause = error.source().map_or(String::new(), |source| format!(": {source}"));
            let no_room = error.class() == Class::Resources;
            NotWritten { rank: self.place.0, reason: format!("{error}{cause}"), no_room }
        })
    }

    fn try_write(&self, disk: &Disk, folder: &Path) -> Result<BTreeMap<String, Shard>, WriteError> {
        let mut written = BTreeMap::new();
        let numbers = self.adapter.pieces(&self.ranges);
        let metadata = Trainable::files_metadata();
        let mut add = |file: &str, pieces: &[PieceToWrite<'_>], metadata: &BTreeMap<_, _>| {
            let name = shard_name(file, self.place.0, self.place.1);
            let mut shard = None;
            write_into_staged(disk, folder, &name, |w| {
                let mut hashing = HashingWriter::new(w);
                pieces::write(&mut hashing, pieces, self.place, metadata)?;
                let (sha256, bytes) = hashing.finish();
                shard = Some(Shard { bytes, sha256: sha256.to_string() });
                Ok(())
            })?;
            written.extend(shard.map(|shard| (name, shard)));
            Ok::<_, WriteError>(())
        };
        add(self.adapter.numbers_file(), &numbers, &metadata)?;
        drop(numbers);
        let state = self.optimizer.state_pieces(&self.adapter.slices(), &self.ranges);
        add(OPTIMIZER, &state, &self.optimizer.file_metadata())?;
        Ok(written)
    }
}

/// Of the leader: a checkpoint that is being written.
#[derive(Debug)]
pub struct Staged(StagedDir);

impl Staged {
    /// A folder for the shards of all processes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn begin(disk: &Disk, run_dir: &Path, state: &State) -> Result<Self, WriteError> {
        Ok(Self(StagedDir::new_on(disk, &path(run_dir, state.global_step))?))
    }

    /// Where the shards go.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes what is not shared out, the manifest last, and gives the folder its name.
    ///
    /// # Errors
    /// If a process could not write its part, its part is not seen here, or the disk refuses; nothing
    /// is left then.
    pub fn finish(
        self,
        written: Vec<Written>,
        adapter: (&Trainable, &PeftInfo),
        state: &State,
    ) -> Result<PathBuf, SaveError> {
        let Self(mut dir) = self;
        let n = written.len();
        let (mut all, mut failed) = (BTreeMap::new(), Vec::new());
        for (rank, of_rank) in written.into_iter().enumerate() {
            match of_rank {
                Err(not_written) => failed.push(not_written),
                Ok(files) => {
                    failed.extend(unseen(dir.path(), rank, &files));
                    all.extend(files);
                }
            }
        }
        if !failed.is_empty() {
            return Err(SaveError::Shards(failed));
        }
        let (adapter, peft) = adapter;
        let mut files = BTreeMap::new();
        let others = adapter.settings_file(peft).into_iter().chain([(STATE, json(state))]);
        for (name, bytes) in others {
            files.insert(name.to_owned(), sha256_bytes(&bytes).to_string());
            dir.write(name, &bytes)?;
        }
        let manifest = Manifest::in_shards(files, Shards { n, files: all });
        dir.write(MANIFEST, &json(&manifest))?;
        let path = dir.final_path().to_owned();
        dir.commit_replacing()?;
        Ok(path)
    }
}

/// The first file of a process that is not in the folder as the leader sees it.
fn unseen(folder: &Path, rank: usize, files: &BTreeMap<String, Shard>) -> Option<NotWritten> {
    files.iter().find_map(|(name, shard)| {
        let path = folder.join(name);
        let found = path.metadata().map(|found| found.len());
        let what = match found {
            Ok(n_bytes) if n_bytes == shard.bytes => return None,
            Ok(n_bytes) => format!("has {n_bytes} bytes on rank 0; it wrote {}", shard.bytes),
            Err(error) => format!("was written, and rank 0 does not see it: {error}"),
        };
        Some(NotWritten { rank, reason: format!("{}: {what}", path.display()), no_room: false })
    })
}
