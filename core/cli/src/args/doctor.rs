//! `forgelm doctor`.

use clap::Args;

/// `forgelm doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Warnings do not fail it. Exit codes: 0 nothing failed, 1 a check failed, 2 a check crashed"
)]
pub struct DoctorArgs {
    /// No network: look at what is kept of the model hub instead.
    #[arg(long)]
    pub offline: bool,
}
