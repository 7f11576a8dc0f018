//! A signed head within the log itself (`audit.checkpoint`): the lines before it cannot be changed by
//! who does not have the key, also while a run goes on or after it was killed.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::LOG_FILE;
use super::event::AuditEvent;
use crate::digest::{Digest32, hex, unhex32};
use crate::dsse::pae;
use crate::keys::{KeyError, KeyId, RunSigner};
use crate::text::canonical_json;

/// The event's name.
pub(super) const CHECKPOINT_EVENT: &str = "audit.checkpoint";

/// The payload type of what is signed, so that it can be taken for nothing else.
const PAYLOAD_TYPE: &str = "application/vnd.forgelm.audit-checkpoint+json";

/// Signs heads as lines are appended.
#[derive(Clone)]
pub struct HeadSigner {
    /// The key.
    pub signer: Arc<RunSigner>,
    /// After this many lines of the writer.
    pub every: u64,
}

impl HeadSigner {
    /// The event that signs a log of `entries` lines, the last of which has this digest.
    ///
    /// # Errors
    /// As [`crate::keys::SigningKey::sign`].
    pub(super) fn event(&self, entries: u64, head: &Digest32) -> Result<AuditEvent, KeyError> {
        let sig = self.signer.key.sign(&message(entries, head))?;
        Ok(AuditEvent::AuditCheckpoint {
            entries,
            head_sha256: hex(head),
            keyid: self.signer.key.id().to_string(),
            sig: STANDARD.encode(sig),
        })
    }
}

/// What a line says that signs the lines before it.
pub(super) struct SignedHead {
    pub(super) entries: u64,
    pub(super) head_sha256: Digest32,
    pub(super) keyid: KeyId,
    pub(super) sig: [u8; 64],
}

impl SignedHead {
    /// Reads a line that is known to be one JSON object.
    pub(super) fn parse(line: &[u8]) -> Result<Self, ()> {
        let line: Value = serde_json::from_slice(line).map_err(|_| ())?;
        let text = |key: &str| line[key].as_str().ok_or(());
        let sig = STANDARD.decode(text("sig")?).map_err(|_| ())?;
        Ok(Self {
            entries: line["entries"].as_u64().ok_or(())?,
            head_sha256: unhex32(text("head_sha256")?.as_bytes()).ok_or(())?,
            keyid: KeyId::parse(text("keyid")?).ok_or(())?,
            sig: sig.try_into().map_err(|_| ())?,
        })
    }

    /// The bytes that were signed.
    pub(super) fn message(&self) -> Vec<u8> {
        message(self.entries, &self.head_sha256)
    }
}

fn message(entries: u64, head: &Digest32) -> Vec<u8> {
    let body = json!({"log": LOG_FILE, "entries": entries, "head_sha256": hex(head)});
    pae(PAYLOAD_TYPE, &canonical_json(&body))
}
