//! `forgelm checkpoint`.

use clap::Subcommand;
use std::path::PathBuf;

/// `forgelm checkpoint …`.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Make a whole checkpoint out of one that processes wrote in shards
    Merge {
        /// The checkpoint: a folder `checkpoint-N` of a run.
        #[arg(value_name = "DIR")]
        checkpoint: PathBuf,
        /// A new folder for the whole one; when not given, it takes the place of the one in shards.
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
}
