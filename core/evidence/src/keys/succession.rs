//! S8: signed statements about keys, kept in the trust store beside the keys that they speak of.
//!
//! A subject is a key's SubjectPublicKeyInfo, whose SHA-256 is the key id. A store that has a
//! statement must say of its keys what the statement says, or more; otherwise it was edited, and is
//! refused. What no statement speaks of is trusted as the store was delivered.

use forgelm_artifact::UtcTime;
use serde_json::{Value, json};

use super::trust::{Revocation, TrustedKey};
use super::{KeyError, KeyId, RunSigner, SigningKey};
use crate::documents::evidence::Builder;
use crate::dsse::statement::{ATTESTATION_BASE, Statement, Subject};
use crate::dsse::{Envelope, PAYLOAD_TYPE, pae};

/// The predicate of a key that follows another, signed by both.
const SUCCESSION: &str = "key-succession/v1";
/// The predicate of a key that is no longer believed.
const REVOCATION: &str = "key-revocation/v1";

/// Who says it, and when.
#[derive(Clone, Copy, Debug)]
pub struct Saying<'a> {
    /// What signs it.
    pub builder: &'a Builder,
    /// When.
    pub now: UtcTime,
}

fn envelope(
    kind: &str,
    keyids: &[&KeyId],
    mut predicate: Value,
    saying: &Saying<'_>,
    signers: &[&SigningKey],
) -> Result<Envelope, KeyError> {
    predicate["signed_at"] = json!(saying.now.to_string());
    predicate["builder"] = saying.builder.to_json();
    let subject = |id: &&KeyId| Subject { name: id.to_string(), sha256: id.to_string() };
    let mut subjects: Vec<Subject> = keyids.iter().map(subject).collect();
    subjects.sort();
    let predicate_type = format!("{ATTESTATION_BASE}{kind}");
    let payload = Statement { subjects, predicate_type, predicate }.to_bytes();
    let mut envelope = Envelope::unsigned(payload);
    signers.iter().try_for_each(|key| envelope.add_signature(key))?;
    Ok(envelope)
}

/// `new` follows `old`, which signs nothing after `not_after`.
pub(super) fn succession(
    old: &SigningKey,
    new: &SigningKey,
    not_after: UtcTime,
    saying: &Saying<'_>,
) -> Result<Envelope, KeyError> {
    let predicate = json!({
        "old_keyid": old.id().as_str(),
        "new_keyid": new.id().as_str(),
        "not_after": not_after.to_string(),
        "signer": {"keyid": old.id().as_str()},
    });
    envelope(SUCCESSION, &[&old.id(), &new.id()], predicate, saying, &[old, new])
}

/// `signer` says that the key `keyid` is revoked.
pub(super) fn revocation(
    keyid: &KeyId,
    revocation: &Revocation,
    signer: &RunSigner,
    saying: &Saying<'_>,
) -> Result<Envelope, KeyError> {
    let predicate = json!({
        "keyid": keyid.as_str(),
        "revoked_at": revocation.at.to_string(),
        "revocation_reason": revocation.reason,
        "signer": {"keyid": signer.key.id().as_str()},
    });
    envelope(REVOCATION, &[keyid], predicate, saying, &[&signer.key])
}

/// Reads a statement of a store, and compares it with the store's keys.
pub(super) fn read(value: &Value, keys: &[TrustedKey]) -> Result<Envelope, String> {
    let envelope = Envelope::parse(value.to_string().as_bytes()).map_err(|e| e.to_string())?;
    let message = pae(&envelope.payload_type, &envelope.payload);
    let is_signed_by = |key: &TrustedKey| {
        envelope.signatures.iter().any(|s| key.public_key.verifies(&message, &s.sig))
    };
    if envelope.payload_type != PAYLOAD_TYPE || !keys.iter().any(is_signed_by) {
        return Err("no key of the store signed it".to_owned());
    }
    let statement = Statement::parse(&envelope.payload)?;
    let says = |name: &str| statement.predicate.get(name).and_then(Value::as_str);
    let key = |name: &str| {
        let id = says(name).ok_or_else(|| format!("`{name}` is missing"))?;
        let found = keys.iter().find(|key| key.keyid.as_str() == id);
        let found = found.ok_or_else(|| format!("`{name}` is no key of the store"))?;
        let is_subject = statement.subjects.iter().any(|s| s.sha256 == id && s.name == id);
        is_subject.then_some(found).ok_or_else(|| format!("`{name}` is no subject of it"))
    };
    let time = |name: &str| {
        let found = says(name).and_then(|text| text.parse::<UtcTime>().ok());
        found.ok_or_else(|| format!("`{name}` is not a time"))
    };
    match statement.predicate_type.strip_prefix(ATTESTATION_BASE) {
        Some(SUCCESSION) => {
            let (old, new) = (key("old_keyid")?, key("new_keyid")?);
            if let Some(missing) = [old, new].into_iter().find(|key| !is_signed_by(key)) {
                return Err(format!("key {} did not sign it; both keys must", missing.keyid));
            }
            if old.successor.as_ref() != Some(&new.keyid) {
                return Err(format!("the store does not say that {} follows", new.keyid));
            }
            let limit = time("not_after")?;
            if old.not_after.is_none_or(|at| at > limit) {
                return Err(format!("the store trusts key {} for longer", old.keyid));
            }
        }
        Some(REVOCATION) => {
            let (revoked, at) = (key("keyid")?, time("revoked_at")?);
            let stated = Revocation::new(at, says("revocation_reason").unwrap_or_default());
            let Some(found) = &revoked.revocation else {
                return Err(format!(
                    "the store does not say that key {} is revoked",
                    revoked.keyid
                ));
            };
            if found.is_weaker_than(&stated) {
                return Err(format!("the store revokes key {} later or less", revoked.keyid));
            }
        }
        Some(_) | None => {
            let found = forgelm_artifact::Quoted(&statement.predicate_type);
            return Err(format!(
                "a statement of type {found}; expected `{SUCCESSION}` or `{REVOCATION}`"
            ));
        }
    }
    Ok(envelope)
}
