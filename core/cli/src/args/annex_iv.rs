//! `forgelm verify-annex-iv`, as data.

use super::TrustArgs;
use clap::Args;
use std::path::PathBuf;

/// `forgelm verify-annex-iv`.
#[derive(Debug, Args)]
pub struct VerifyAnnexIvArgs {
    /// `annex_iv_metadata.json` of a run, or with `--pipeline` the folder of a pipeline.
    pub path: PathBuf,
    /// Refuse open points whatever the tier; of high-risk systems they always are.
    #[arg(long)]
    pub strict: bool,
    /// Accept a document without a hash of its own, with a note.
    #[arg(long)]
    pub allow_unhashed: bool,
    /// Verify the manifest of a pipeline, the chain of its stages, and the evidence of each.
    #[arg(long, conflicts_with_all = ["strict", "allow_unhashed"])]
    pub pipeline: bool,
    /// With `--pipeline`, refuse one whose audit log is not there, or shows nothing without a secret or a
    /// signed head.
    #[arg(long, requires = "pipeline")]
    pub require_corroboration: bool,
    /// Whose signature is accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}
