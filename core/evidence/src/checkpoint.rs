//! Signed heads of audit logs: "the first `entries` lines end with the hash `head_sha256`".
//!
//! A hash chain alone cannot show that its tail was cut off; a signed head can, for everyone who
//! knows a checkpoint that is new enough. The run's attestation holds a copy.

use std::path::Path;

use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::write;
use serde_json::{Map, Value, json};

use crate::audit::LOG_FILE;
use crate::audit::verify::{AuditOptions, AuditRejection, ExpectedHead, verify_audit};
use crate::bundle::write::BundleError;
use crate::digest::{sha256_hex, unhex32};
use crate::documents::predicate::common_predicate;
use crate::documents::record::{Identity, Record};
use crate::dsse::Envelope;
use crate::dsse::statement::{PredicateType, Statement, Subject};
use crate::files;
use crate::keys::RunSigner;
use crate::strict_json::DOCUMENT_LIMITS;

/// File name of the signed checkpoint beside the log.
pub const CHECKPOINT_FILE: &str = "audit_log.jsonl.checkpoint.dsse.json";

/// The head of a log at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of lines.
    pub entries: u64,
    /// SHA-256 of line `entries`.
    pub head_sha256: String,
    /// SHA-256 of line 1.
    pub genesis_sha256: String,
    /// Time of line 1.
    pub first_timestamp: String,
    /// Time of line `entries`.
    pub last_timestamp: String,
    /// SHA-256 of the checkpoint file that this one replaces.
    pub previous_checkpoint_sha256: Option<String>,
}

impl Checkpoint {
    /// The head of the log at `path`, whose chain is verified first.
    ///
    /// # Errors
    /// If the log does not verify: a broken chain is never signed.
    pub fn of_log(path: &Path) -> Result<Self, AuditRejection> {
        let accepted = verify_audit(path, &AuditOptions::default())?;
        let previous =
            files::read_bounded(&path.with_file_name(CHECKPOINT_FILE), DOCUMENT_LIMITS.size_bytes);
        Ok(Self {
            entries: accepted.entries,
            head_sha256: accepted.head_sha256,
            genesis_sha256: accepted.genesis_sha256,
            first_timestamp: accepted.first_timestamp,
            last_timestamp: accepted.last_timestamp,
            previous_checkpoint_sha256: previous.ok().flatten().map(|bytes| sha256_hex(&bytes)),
        })
    }

    /// The members that S4 has, and S2 repeats in `audit_checkpoint`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "log": LOG_FILE,
            "entries": self.entries,
            "head_sha256": self.head_sha256,
            "genesis_sha256": self.genesis_sha256,
            "first_timestamp": self.first_timestamp,
            "last_timestamp": self.last_timestamp,
            "previous_checkpoint_sha256": self.previous_checkpoint_sha256,
        })
    }

    /// The head that a verified predicate states.
    ///
    /// # Errors
    /// Which member is missing.
    pub fn head_of(predicate: &Value, source: &str) -> Result<ExpectedHead, String> {
        let entries = predicate.get("entries").and_then(Value::as_u64).filter(|n| *n > 0);
        let head = predicate.get("head_sha256").and_then(Value::as_str);
        let head = head.filter(|hex| unhex32(hex.as_bytes()).is_some());
        Ok(ExpectedHead {
            entries: entries.ok_or("the checkpoint has no `entries`")?,
            head_sha256: head.ok_or("the checkpoint has no `head_sha256`")?.to_owned(),
            source: source.to_owned(),
        })
    }
}

/// Signs the head of the log in `out_dir` and writes it beside the log (S4).
///
/// # Errors
/// If the log does not verify or the file cannot be written.
pub fn write_checkpoint(
    out_dir: &Path,
    record: &Record<'_>,
    signer: &RunSigner,
    signed_at: &str,
) -> Result<Checkpoint, BundleError> {
    write_checkpoint_of(out_dir, &record.identity(), signer, signed_at)
}

/// As [`write_checkpoint`], for whoever adds to the log later.
pub(crate) fn write_checkpoint_of(
    out_dir: &Path,
    identity: &Identity<'_>,
    signer: &RunSigner,
    signed_at: &str,
) -> Result<Checkpoint, BundleError> {
    sign_checkpoint(out_dir, common_predicate(identity, signer, signed_at), signer)
}

/// [`write_checkpoint`], where `predicate` is what the statement says besides the head.
pub(crate) fn sign_checkpoint(
    out_dir: &Path,
    mut predicate: Map<String, Value>,
    signer: &RunSigner,
) -> Result<Checkpoint, BundleError> {
    let log = out_dir.join(LOG_FILE);
    let checkpoint = Checkpoint::of_log(&log).map_err(BundleError::Log)?;
    let sha256 = sha256_file(&log).map_err(BundleError::Open)?.to_string();
    if let Value::Object(members) = checkpoint.to_json() {
        predicate.extend(members);
    }
    let subject = Subject { name: LOG_FILE.to_owned(), sha256 };
    let statement =
        Statement::new(vec![subject], PredicateType::AuditCheckpoint, Value::Object(predicate));
    let envelope = Envelope::sign(statement.to_bytes(), &signer.key)?;
    write::atomic(&out_dir.join(CHECKPOINT_FILE), &envelope.to_bytes())?;
    Ok(checkpoint)
}
