//! The command line of `forgelm bundle`.

use clap::Args;
use std::path::PathBuf;

/// `forgelm bundle`.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// Output folder of a run.
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// The archive; never overwritten.
    #[arg(long, value_name = "FILE.zip")]
    pub out: PathBuf,
    /// With the files of weights too.
    #[arg(long)]
    pub with_weights: bool,
}
