//! The manifest of the version before, read as a source of the change log.

use std::path::Path;

use serde_json::Value;

use crate::class::Class;
use crate::digest::sha256_hex;
use crate::documents::facts::PreviousManifest;
use crate::dsse::statement::PredicateType;
use crate::files::{self, FileProblem};
use crate::keys::trust::TrustedKeys;
use crate::manifest_hash::manifest_hash;
use crate::signature::verify_signature;
use crate::strict_json::{DOCUMENT_LIMITS, parse};

/// Why the manifest of the version before cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PreviousProblem {
    /// Which exit code this belongs to.
    pub class: Class,
    /// Why.
    pub reason: String,
}

/// Reads an earlier `annex_iv_metadata.json`. Its hash must be its own; a signature may be missing or
/// of an unknown key, which is recorded, but may not contradict it.
///
/// # Errors
/// If it cannot be read, is no such document, or was changed after it was written or signed.
pub fn read_previous(path: &Path, keys: &TrustedKeys) -> Result<PreviousManifest, PreviousProblem> {
    let fail = |class, reason: &str| Err(PreviousProblem { class, reason: reason.to_owned() });
    let bytes = match files::read_bounded(path, DOCUMENT_LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return fail(Class::NotCompared, "larger than 16 MiB"),
        Err(FileProblem::Unreadable(detail)) => {
            return fail(Class::Unreadable, &format!("cannot be read: {detail}"));
        }
        Err(problem) => return fail(Class::NotCompared, &problem.reason()),
    };
    let document = match parse(&bytes, DOCUMENT_LIMITS) {
        Ok(document) => document,
        Err(error) => return fail(Class::NotCompared, &error.to_string()),
    };
    let hash = document.pointer("/metadata/manifest_hash").and_then(Value::as_str);
    let Some(hash) = hash.filter(|_| document.get("system_identification").is_some()) else {
        let reason = "no `annex_iv_metadata.json`: expected `system_identification` and \
                      `metadata.manifest_hash`";
        return fail(Class::NotCompared, reason);
    };
    if hash != manifest_hash(&document) {
        let reason = "its content is not what `metadata.manifest_hash` was taken over";
        return fail(Class::Different, reason);
    }
    let expected = PredicateType::ComplianceManifest;
    let signature = verify_signature(path, None, keys, expected).signature;
    if signature.class == Class::Different {
        let reason = signature.reason.unwrap_or_default();
        return fail(Class::Different, &format!("signature: {reason}"));
    }
    Ok(PreviousManifest {
        file: path.display().to_string(),
        sha256: sha256_hex(&bytes),
        signature: signature.state.as_str(),
        keyid: signature.keyid,
        document,
    })
}
