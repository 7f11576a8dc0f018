//! A checkpoint that the processes of a run write together.

use super::Session;
use super::together::Command;
use crate::checkpoint::shards::{Own, SaveError, Staged, Written};
use forgelm_artifact::Disk;
use forgelm_collective::CollectiveError;
use forgelm_model::PeftInfo;
use std::path::{Path, PathBuf};

impl Session<'_> {
    /// Writes a checkpoint of which every process writes a part; its folder.
    ///
    /// # Errors
    /// If the disk refuses, on any process, or the leader does not see what another one wrote; nothing
    /// is left then, and earlier checkpoints are untouched.
    pub fn save_in_shards(
        &self,
        disk: &Disk,
        run_dir: &Path,
        peft: &PeftInfo,
    ) -> Result<PathBuf, SaveError> {
        let staged = Staged::begin(disk, run_dir, &self.state)?;
        self.lead(Command::SaveShard { folder: staged.path().to_owned() })?;
        let written = self.write_shard(disk, staged.path());
        self.led();
        staged.finish(written?, (&self.adapter, peft), &self.state)
    }

    /// Writes the part of this process into the folder that the leader stages; what every process
    /// wrote.
    pub(super) fn write_shard(
        &self,
        disk: &Disk,
        folder: &Path,
    ) -> Result<Vec<Written>, CollectiveError> {
        let (place, ranges) = match &self.shares {
            None => ((0, 1), std::iter::once(0..self.adapter.n_params()).collect()),
            Some(shares) => {
                let group = shares.group();
                ((group.rank(), group.n_ranks()), shares.ranges(group.rank()))
            }
        };
        let own = Own { place, adapter: &self.adapter, optimizer: &self.optimizer, ranges };
        let written = own.write(disk, folder);
        match &self.shares {
            None => Ok(vec![written]),
            Some(shares) => shares.group().all_gather_values(&written),
        }
    }
}
