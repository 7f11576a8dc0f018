//! `forgelm verify-annex-iv`, as data.

use super::TrustArgs;
use clap::Args;
use std::path::PathBuf;

/// `forgelm verify-annex-iv`.
#[derive(Debug, Args)]
pub struct VerifyAnnexIvArgs {
    /// `annex_iv_metadata.json` of a run.
    pub path: PathBuf,
    /// Refuse open points whatever the tier; of high-risk systems they always are.
    #[arg(long)]
    pub strict: bool,
    /// Accept a document without a hash of its own, with a note.
    #[arg(long)]
    pub allow_unhashed: bool,
    /// Verify all stages of a pipeline (not available yet).
    #[arg(long)]
    pub pipeline: bool,
    /// Whose signature is accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}
