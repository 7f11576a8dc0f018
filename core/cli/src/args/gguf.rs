//! `forgelm verify-gguf`, as data.

use super::TrustArgs;
use clap::Args;
use std::path::PathBuf;

/// `forgelm verify-gguf`.
#[derive(Debug, Args)]
pub struct VerifyGgufArgs {
    /// The `.gguf` file.
    pub path: PathBuf,
    /// Refuse a file without a signature; so it is wherever keys are named.
    #[arg(long, conflicts_with = "allow_unsigned")]
    pub require_signature: bool,
    /// Whose signature is accepted.
    #[command(flatten)]
    pub trust: TrustArgs,
}
