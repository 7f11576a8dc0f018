//! `forgelm approve`, `reject` and `approvals`.

use super::TrustArgs;
use clap::{ArgGroup, Args};
use std::path::PathBuf;

/// `forgelm approve` and `forgelm reject`.
#[derive(Debug, Args)]
pub struct DecisionArgs {
    /// The run that waits, as `forgelm approvals --pending` lists it.
    pub run_id: String,
    /// Its output folder.
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
    /// Why; it is kept in the audit log.
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// The role in which you decide, where the run asks for one.
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Your private key: it signs the decision, which is kept beside the documents.
    #[arg(long, value_name = "KEY")]
    pub approver_key: Option<PathBuf>,
    /// The private key that signs the new head of the audit log; without it yours, else as in a run.
    #[arg(long, value_name = "KEY")]
    pub signing_key: Option<PathBuf>,
    /// Whose signatures are accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// `forgelm approvals`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(false))]
pub struct ApprovalsArgs {
    /// What waits.
    #[arg(long, group = "what")]
    pub pending: bool,
    /// What was asked and answered on this run.
    #[arg(long, group = "what", value_name = "RUN_ID")]
    pub show: Option<String>,
    /// The output folder.
    #[arg(long, value_name = "DIR")]
    pub output_dir: PathBuf,
}
