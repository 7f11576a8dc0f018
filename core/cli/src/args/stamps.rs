//! Flags of trusted time stamps, and of whose signatures a run that is co-signed must have.

use super::TrustArgs;
use clap::Args;
use std::path::PathBuf;

/// Whose time stamps are believed.
#[derive(Debug, Clone, Default, Args)]
pub struct StampArgs {
    /// A certificate (PEM) of a time stamp authority, or of who certifies one; several with one
    /// `--tsa-cert` each.
    #[arg(long, value_name = "PEM")]
    pub tsa_cert: Vec<PathBuf>,
    /// Refuse what has no trusted time stamp: the attestation of a run, a model's signature, the
    /// checkpoint of a log, or the file that is named.
    #[arg(long)]
    pub require_timestamp: bool,
}

/// Whose signature a run must have before it gets one more.
#[derive(Debug, Clone, Default, Args)]
pub struct CosignArgs {
    /// With `--add` and a run: a public key (PEM) that signed it; several with one `--key` each.
    #[arg(long, value_name = "PUB", requires = "add")]
    pub key: Vec<PathBuf>,
    /// With `--add` and a run: a trust store (JSON).
    #[arg(long, value_name = "FILE", requires = "add")]
    pub trusted_keys: Option<PathBuf>,
    /// With `--add` and a run: a certificate (PEM) of a time stamp authority.
    #[arg(long, value_name = "PEM", requires = "add")]
    pub tsa_cert: Vec<PathBuf>,
}

impl CosignArgs {
    /// As a verifier has it.
    #[must_use]
    pub fn trust(&self) -> TrustArgs {
        let stamps = StampArgs { tsa_cert: self.tsa_cert.clone(), require_timestamp: false };
        let (key, trusted_keys) = (self.key.clone(), self.trusted_keys.clone());
        TrustArgs { key, trusted_keys, stamps, ..TrustArgs::default() }
    }
}
