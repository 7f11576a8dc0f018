//! The command line of `forgelm purge`.

use clap::{ArgGroup, Args};
use std::path::PathBuf;

/// `forgelm purge`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(false))]
pub struct PurgeArgs {
    /// Say what lies in a run's folder for longer than the config allows; nothing is removed or recorded.
    #[arg(long, group = "what")]
    pub check_policy: bool,
    /// Hold everything in the folder back from purging, for this reason.
    #[arg(long, value_name = "REASON", group = "what")]
    pub hold: Option<String>,
    /// End the hold, for this reason.
    #[arg(long, value_name = "REASON", group = "what")]
    pub release: Option<String>,
    /// The run's folder. Without it, the config's `training.output_dir`, else the folder that one is in.
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// The config with the `retention` section.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}
