//! One more signature in the attestation of a run: several people, or machines, vouch for the same
//! statement, so that a trust store's threshold for `run` can be met.
//!
//! Nothing else of the run changes: the log and its signed head say what they said. An approval that is
//! signed binds the attestation's bytes, so that a run is co-signed before it is approved; decisions
//! themselves take no second signature, since the log binds their bytes, and each person signs one.

use std::path::Path;

use forgelm_artifact::write;

use crate::approval::decision::is_file_name;
use crate::bundle::{ATTESTATION, COMPLIANCE_DIR};
use crate::dsse::statement::Statement;
use crate::dsse::{Envelope, SIGNATURES_MAX, pae};
use crate::files::{self, FileProblem};
use crate::keys::RunSigner;
use crate::sign::SignFileError;
use crate::strict_json::DOCUMENT_LIMITS;

/// Adds a signature to the attestation of the run in `dir`, which the caller has verified and holds
/// locked; the number of signatures.
///
/// # Errors
/// If there is no attestation, this key signed it already, a decision binds it as it is, or it cannot be
/// written; nothing is changed then.
pub fn cosign_run(dir: &Path, signer: &RunSigner) -> Result<usize, SignFileError> {
    let path = dir.join(ATTESTATION);
    let refused = |reason: String| SignFileError::Add {
        signature: path.clone(),
        reason,
        is_different: false,
    };
    let bytes = match files::read_bounded(&path, DOCUMENT_LIMITS.size_bytes) {
        Ok(bytes) => bytes.ok_or_else(|| refused("larger than 16 MiB".to_owned()))?,
        Err(FileProblem::Missing) => {
            return Err(refused("there is no signature to add one to".to_owned()));
        }
        Err(problem) => return Err(refused(problem.reason())),
    };
    let mut envelope =
        Envelope::parse(&bytes).map_err(|error| refused(format!("not an envelope: {error}")))?;
    let message = pae(&envelope.payload_type, &envelope.payload);
    let public = signer.key.public();
    if envelope.signatures.iter().any(|s| public.verifies(&message, &s.sig)) {
        return Err(refused("this key signed it already".to_owned()));
    }
    if envelope.signatures.len() >= SIGNATURES_MAX {
        return Err(refused(format!("it has {SIGNATURES_MAX} signatures already")));
    }
    if let Some(decision) = binding_decision(dir) {
        return Err(refused(format!(
            "`{decision}` is a signed decision on it as it is, and would not verify with one more \
             signature\n  hint: a run is co-signed before it is approved"
        )));
    }
    envelope.add_signature(&signer.key)?;
    write::atomic(&path, &envelope.to_bytes())?;
    Ok(envelope.signatures.len())
}

/// A decision that names the attestation with its digest.
fn binding_decision(dir: &Path) -> Option<String> {
    let found = files::walk(dir, COMPLIANCE_DIR).ok()?;
    let binds = |name: &&String| {
        let read = || {
            let bytes = files::read_bounded(&dir.join(name), DOCUMENT_LIMITS.size_bytes).ok()??;
            Statement::parse(&Envelope::parse(&bytes).ok()?.payload).ok()
        };
        is_file_name(name)
            && read().is_some_and(|s| s.subjects.iter().any(|s| s.name == ATTESTATION))
    };
    found.keys().find(binds).cloned()
}
