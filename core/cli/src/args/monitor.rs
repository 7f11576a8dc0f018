//! `forgelm monitor`.

use super::TrustArgs;
use clap::Args;
use std::path::PathBuf;

/// `forgelm monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Output folder of a finished run.
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// Fresh rows, in the layout of the run's data; read again for each check.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Check once: exit 3 on drift. Without it, every `monitoring.check_interval_hours` until a signal.
    #[arg(long)]
    pub once: bool,
    /// A config whose `webhook` is told of drift, and whose `monitoring` sets the hours.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// No network.
    #[arg(long)]
    pub offline: bool,
    /// Whose signatures are accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}
