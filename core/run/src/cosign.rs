//! `forgelm sign OUT --add`: the run is verified, and signed by one more key, under its lock.

use crate::dossier::to_evidence;
use crate::environment::Environment;
use crate::error::RunError;
use forgelm_artifact::lock::RunLock;
use forgelm_evidence::Class;
use forgelm_evidence::bundle::ATTESTATION;
use forgelm_evidence::bundle::verify::{BundleOptions, BundleReport, verify_bundle};
use forgelm_evidence::cosign::cosign_run;
use forgelm_evidence::keys::RunSigner;
use forgelm_evidence::keys::trust::{TrustedKeys, Usage};
use std::path::Path;

/// What came of it.
pub enum Cosigned {
    /// There is one signature more.
    Added {
        /// Of how many with this one.
        n_signatures: usize,
    },
    /// The run does not verify, and is as it was.
    Refused(Box<BundleReport>),
}

/// Whether a folder is that of a signed run.
#[must_use]
pub fn is_run(dir: &Path) -> bool {
    dir.join(ATTESTATION).symlink_metadata().is_ok()
}

/// Verifies everything that the run in `dir` signed, by one of `keys` or more, and adds a signature to
/// its attestation. How many signatures it needs in the end is not asked here.
///
/// # Errors
/// If a run is at work there, or the attestation takes no signature of this key.
pub fn cosign(
    dir: &Path,
    mut keys: TrustedKeys,
    signer: &RunSigner,
    env: &Environment,
) -> Result<Cosigned, RunError> {
    let _lock = RunLock::acquire(dir, "sign --add", env.clock.utc())?;
    let secret = env.audit_secret.as_ref().and_then(to_evidence);
    keys.set_threshold_of(Usage::Run, 1);
    let options = BundleOptions { keys, secret: secret.as_ref(), ..BundleOptions::default() };
    let report = verify_bundle(dir, &options);
    if report.class != Class::Accepted {
        return Ok(Cosigned::Refused(Box::new(report)));
    }
    Ok(Cosigned::Added { n_signatures: cosign_run(dir, signer)? })
}
