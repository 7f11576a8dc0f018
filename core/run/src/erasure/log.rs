//! The record of an erasure: what was asked, and how it ended.

use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::bundle::write::BundleError;
use forgelm_evidence::dsse::statement::Subject;
use forgelm_evidence::erasure::{self, ErasureClaims};
use forgelm_evidence::identifier::{HASH_SCHEME, SaltSource};
use forgelm_evidence::keys::RunSigner;
use forgelm_privacy::{PII_MASK, mask_pii};
use std::path::{Path, PathBuf};

/// Longest message of an event, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// What is to be removed, as every event names it.
pub struct Target {
    /// `row`, `staging` or `artefacts`.
    pub kind: &'static str,
    /// The digest of a row's identifier; or the run.
    pub id: String,
    /// Of a row: what the key of its digest came from.
    pub salt: Option<SaltSource>,
    /// Of a row: the data.
    pub corpus: Option<PathBuf>,
    /// The folder whose log has the record.
    pub dir: PathBuf,
    /// Why.
    pub justification: Option<String>,
    /// Whether nothing is removed.
    pub dry_run: bool,
}

/// How it ended.
#[derive(Default)]
pub struct Done {
    pub bytes_freed: u64,
    pub files_modified: Vec<String>,
    pub first_line: Option<u64>,
    pub n_matches: Option<u64>,
    pub sha256_before: Option<String>,
    pub sha256_after: Option<String>,
    pub copies: Vec<String>,
    pub statement: Option<String>,
}

/// An open log with the request in it.
pub struct Record<'a> {
    target: Target,
    audit: AuditLog,
    signer: Option<&'a RunSigner>,
    env: &'a Environment,
}

impl<'a> Record<'a> {
    /// Opens the log of the target's folder and records the request. Without a signer nothing is signed:
    /// nothing is removed either then.
    pub fn begin(
        target: Target,
        run_id: String,
        operator: String,
        signer: Option<&'a RunSigner>,
        env: &'a Environment,
    ) -> Result<Self, RunError> {
        let identity = AuditIdentity {
            run_id,
            operator,
            secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
            allow_reroot: env.allow_audit_reroot,
        };
        let audit = AuditLog::open(&target.dir, identity, env.clock.clone())?;
        let mut record = Self { target, audit, signer, env };
        let target = &record.target;
        let event = AuditEvent::DataErasureRequested {
            target_kind: target.kind.to_owned(),
            target_id: target.id.clone(),
            hash_scheme: target.hash_scheme(),
            salt_source: target.salt_source(),
            corpus_path: target.corpus_path(),
            output_dir: shown(&target.dir),
            justification: target.justification.clone(),
            dry_run: target.dry_run,
        };
        record.audit.append(&event)?;
        Ok(record)
    }

    /// Records that it failed, and gives the error back.
    pub fn failed(
        &mut self,
        error: RunError,
        n_matches: Option<u64>,
        files_modified: Vec<String>,
    ) -> RunError {
        let target = &self.target;
        let class = match &error {
            RunError::Erasure(error) => error.name(),
            RunError::Retention(_) => "LegalHold",
            RunError::Write(_) => "WriteFailed",
            RunError::Open(_) => "ReadFailed",
            RunError::Lock(_) => "Busy",
            _ => "Failed",
        };
        let event = AuditEvent::DataErasureFailed {
            target_kind: target.kind.to_owned(),
            target_id: target.id.clone(),
            hash_scheme: target.hash_scheme(),
            salt_source: target.salt_source(),
            corpus_path: target.corpus_path(),
            output_dir: shown(&target.dir),
            justification: target.justification.clone(),
            dry_run: target.dry_run,
            error_class: class.to_owned(),
            error_message: message(&error.chain()),
            match_count: n_matches,
            files_modified,
        };
        // The error itself matters more than a log that cannot take it.
        let _ = self.audit.append(&event);
        error
    }

    /// Records that it is done.
    pub fn completed(&mut self, done: Done) -> Result<(), RunError> {
        let target = &self.target;
        let event = AuditEvent::DataErasureCompleted {
            target_kind: target.kind.to_owned(),
            target_id: target.id.clone(),
            hash_scheme: target.hash_scheme(),
            salt_source: target.salt_source(),
            corpus_path: target.corpus_path(),
            output_dir: shown(&target.dir),
            justification: target.justification.clone(),
            dry_run: target.dry_run,
            bytes_freed: done.bytes_freed,
            files_modified: done.files_modified,
            pre_erasure_line_number: done.first_line,
            match_count: done.n_matches,
            corpus_sha256_before: done.sha256_before,
            corpus_sha256_after: done.sha256_after,
            copies: done.copies,
            statement: done.statement,
        };
        self.audit.append(&event)?;
        Ok(())
    }

    /// Records an event of the same target: `make` gets its kind and id, and the data.
    pub fn warn(
        &mut self,
        make: impl FnOnce(String, String, String) -> AuditEvent,
    ) -> Result<(), RunError> {
        let target = &self.target;
        let (kind, id) = (target.kind.to_owned(), target.id.clone());
        let event = make(kind, id, target.corpus_path().unwrap_or_default());
        self.audit.append(&event)?;
        Ok(())
    }

    /// Signs that files are erased, before they are.
    pub fn sign(&self, subjects: Vec<Subject>) -> Result<Option<String>, RunError> {
        let dir = &self.target.dir;
        match self.signer.filter(|_| !subjects.is_empty()) {
            None => Ok(None),
            Some(signer) => self
                .claim(|claims| erasure::write_statement(dir, subjects, claims, signer))
                .map(Some),
        }
    }

    /// Signs the head of the log.
    pub fn sign_head(&self) -> Result<(), RunError> {
        if let Some(signer) = self.signer {
            self.claim(|claims| erasure::write_head(&self.target.dir, claims, signer))?;
        }
        Ok(())
    }

    fn claim<T>(
        &self,
        sign: impl FnOnce(&ErasureClaims<'_>) -> Result<T, BundleError>,
    ) -> Result<T, RunError> {
        let (builder, signed_at) = (dossier::builder(), self.env.clock.utc().to_string());
        Ok(sign(&ErasureClaims {
            run_id: self.audit.run_id(),
            kind: self.target.kind,
            justification: self.target.justification.as_deref(),
            builder: &builder,
            operator: self.audit.operator(),
            signed_at: &signed_at,
        })?)
    }
}

impl Target {
    fn hash_scheme(&self) -> Option<String> {
        self.salt.map(|_| HASH_SCHEME.to_owned())
    }

    fn salt_source(&self) -> Option<String> {
        self.salt.map(|salt| salt.as_str().to_owned())
    }

    fn corpus_path(&self) -> Option<String> {
        self.corpus.as_deref().map(shown)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A message for a log that is never purged: personal data masked, and short.
pub fn message(text: &str) -> String {
    let masked = mask_pii(text, PII_MASK).text;
    match masked.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}… (cut)", &masked[..end]),
        None => masked,
    }
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn messages_are_masked_and_short() {
        assert_eq!(message("no eve@example.org here"), "no [REDACTED] here");
        let long = message(&"é".repeat(500));
        assert_eq!(long.chars().count(), 200 + "… (cut)".chars().count());
    }
}
