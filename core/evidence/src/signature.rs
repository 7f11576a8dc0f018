//! `verify-signature` and `verify-audit` as the command line shows them: a file, the signature
//! beside it, and a report.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::audit::LOG_FILE;
use crate::audit::verify::{AuditAccepted, AuditOptions, AuditRejection, verify_audit};
use crate::bundle::PUBLIC_KEY;
use crate::checkpoint::{CHECKPOINT_FILE, Checkpoint};
use crate::class::Class;
use crate::dsse::SUFFIX;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::{CheckedEnvelope, SignatureReport, SignatureState, check_envelope};
use crate::files::{self, FileProblem};
use crate::keys::PublicKey;
use crate::keys::trust::TrustedKeys;
use crate::model::verify_model;
use crate::secret::Secret;
use crate::strict_json::DOCUMENT_LIMITS;
use crate::text::shown;

/// The report of a data audit, where it has its usual name.
const DATA_AUDIT: &str = "data_audit_report.json";

/// What `verify-signature` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Its signature.
    pub signature: SignatureReport,
}

impl FileReport {
    /// The exit class.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.signature.class
    }

    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let valid = self.class() == Class::Accepted;
        json!({
            "success": valid,
            "valid": valid,
            "reason": self.signature.reason,
            "path": self.path.display().to_string(),
            "signature": self.signature.to_json(),
        })
    }

    /// The lines for people.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        signature_lines(&self.path.display().to_string(), &self.signature)
    }
}

pub(crate) fn signature_lines(path: &str, report: &SignatureReport) -> Vec<String> {
    let mut lines = match (&report.reason, report.class) {
        (None, _) | (_, Class::Accepted) => {
            let keyid = report.keyid.as_deref().unwrap_or("unknown");
            let label = report.label.as_ref().map_or_else(String::new, |l| format!(" ({l})"));
            let at = report.signed_at.as_deref().unwrap_or("an unknown time");
            vec![format!("OK: {path}: signed by {keyid}{label} at {at}")]
        }
        (Some(reason), _) if report.place == path => {
            let path = shown(path);
            vec![format!("FAIL: {path}: {}: {reason}", report.state.as_str())]
        }
        (Some(reason), _) => {
            let place = shown(&report.place);
            vec![format!("FAIL: {}: {}: {place}: {reason}", shown(path), report.state.as_str())]
        }
    };
    if report.state == SignatureState::UntrustedKey {
        lines.push("  hint: name the signer's public key with --key PUB".to_owned());
    }
    lines.extend(report.warnings.iter().map(|warning| format!("  note: {warning}")));
    lines
}

/// The signature file of `path` when none is named.
#[must_use]
pub fn default_signature_path(path: &Path) -> PathBuf {
    if path.file_name().is_some_and(|name| name == LOG_FILE) {
        return path.with_file_name(CHECKPOINT_FILE);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// The type of statement that is expected about `path` when none is named.
#[must_use]
pub fn default_type(path: &Path) -> PredicateType {
    if path.is_dir() {
        PredicateType::ModelFolder
    } else if path.file_name().is_some_and(|name| name == LOG_FILE) {
        PredicateType::AuditCheckpoint
    } else if path.extension().is_some_and(|extension| extension == "so") {
        PredicateType::PluginLibrary
    } else if path.extension().is_some_and(|extension| extension == "gguf") {
        PredicateType::ModelExport
    } else if path.file_name().is_some_and(|name| name == DATA_AUDIT) {
        PredicateType::DataAudit
    } else {
        PredicateType::ComplianceManifest
    }
}

/// The public key beside `path`, or in the `compliance` folder beside it. Never trusted.
#[must_use]
pub fn neighbouring_key(path: &Path) -> Option<PublicKey> {
    let dir = path.parent()?;
    let name = Path::new(PUBLIC_KEY);
    let places = [dir.join(name.file_name()?), dir.join(name)];
    places.iter().find_map(|place| crate::keys::file::load_public_key(place).ok())
}

/// Reads and checks the envelope at `path`.
pub(crate) fn check_envelope_file(
    path: &Path,
    place: &str,
    keys: &TrustedKeys,
    neighbour: Option<&PublicKey>,
    expected: PredicateType,
) -> CheckedEnvelope {
    let stop = |report| CheckedEnvelope { report, statement: None };
    let bytes = match files::read_bounded(path, DOCUMENT_LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            let reason = "larger than 16 MiB";
            return stop(SignatureReport::new(SignatureState::Malformed, place, reason));
        }
        Err(FileProblem::Missing) => {
            let reason = "there is no signature";
            return stop(SignatureReport::new(SignatureState::Absent, place, reason));
        }
        Err(FileProblem::Unreadable(detail)) => {
            return stop(SignatureReport::unreadable(place, format!("cannot be read: {detail}")));
        }
        Err(problem @ (FileProblem::Symlink | FileProblem::NotAFile(_))) => {
            let reason = problem.reason();
            return stop(SignatureReport::new(SignatureState::Malformed, place, reason));
        }
    };
    check_envelope(&bytes, place, keys, neighbour, expected)
}

/// Verifies that `signature` (default: `<path>.dsse.json`) is a signature of type `expected` over
/// the file `path` by a key of `keys`. A statement may travel with its file alone: names are
/// compared without their folders.
#[must_use]
pub fn verify_signature(
    path: &Path,
    signature: Option<&Path>,
    keys: &TrustedKeys,
    expected: PredicateType,
) -> FileReport {
    let neighbour = neighbouring_key(path);
    if expected == PredicateType::ModelFolder {
        let signature = verify_model(path, signature, keys, neighbour.as_ref());
        return FileReport { path: path.to_owned(), signature };
    }
    let envelope_path = signature.map_or_else(|| default_signature_path(path), Path::to_owned);
    let place = envelope_path.display().to_string();
    let checked = check_envelope_file(&envelope_path, &place, keys, neighbour.as_ref(), expected);
    let report = match &checked.statement {
        None => checked.report,
        Some(_) if expected == PredicateType::AuditCheckpoint => compare_log(path, checked),
        Some(_) => compare_file(path, checked),
    };
    FileReport { path: path.to_owned(), signature: report }
}

/// As [`verify_signature`] of a library whose bytes were read before: these are what is compared, and
/// nothing else that may lie under its name by now.
#[must_use]
pub fn verify_library(path: &Path, sha256: &str, keys: &TrustedKeys) -> SignatureReport {
    verify_hashed(path, keys, PredicateType::PluginLibrary, || sha256.to_owned())
}

/// As [`verify_signature`] of a file whose digest `sha256` takes from bytes that are open already. It is
/// asked for only when there is a signature to compare it with.
pub(crate) fn verify_hashed(
    path: &Path,
    keys: &TrustedKeys,
    expected: PredicateType,
    sha256: impl FnOnce() -> String,
) -> SignatureReport {
    let envelope_path = default_signature_path(path);
    let place = envelope_path.display().to_string();
    let neighbour = neighbouring_key(path);
    let checked = check_envelope_file(&envelope_path, &place, keys, neighbour.as_ref(), expected);
    compare(path, checked, || Ok(sha256()))
}

fn compare_file(path: &Path, checked: CheckedEnvelope) -> SignatureReport {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    compare(path, checked, || files::digest(parent, name).map(|found| found.sha256))
}

/// Compares the file with what was signed about one of its name.
fn compare(
    path: &Path,
    checked: CheckedEnvelope,
    digest: impl FnOnce() -> Result<String, FileProblem>,
) -> SignatureReport {
    let CheckedEnvelope { report, statement } = checked;
    let Some(statement) = statement else { return report };
    let place = path.display().to_string();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_named = |subject: &str| subject.rsplit('/').next() == Some(name);
    let subjects: Vec<_> = statement.subjects.iter().filter(|s| is_named(&s.name)).collect();
    if subjects.is_empty() {
        let of: Vec<_> = statement.subjects.iter().map(|s| shown(&s.name)).take(3).collect();
        let reason = format!("the signature is for {}, not for this file", of.join(", "));
        return report.failed(SignatureState::SubjectMismatch, &place, reason);
    }
    match digest() {
        Ok(sha256) if subjects.iter().any(|s| s.sha256 == sha256) => report,
        Ok(_) => {
            let reason = "the bytes were changed after signing";
            report.failed(SignatureState::SubjectMismatch, &place, reason)
        }
        Err(FileProblem::Unreadable(detail)) => {
            SignatureReport::unreadable(&place, format!("cannot be read: {detail}"))
        }
        Err(problem) => report.failed(SignatureState::NotChecked, &place, problem.reason()),
    }
}

fn compare_log(path: &Path, checked: CheckedEnvelope) -> SignatureReport {
    let CheckedEnvelope { report, statement } = checked;
    let Some(statement) = statement else { return report };
    let head = match Checkpoint::head_of(&statement.predicate, "the checkpoint") {
        Ok(head) => head,
        Err(reason) => {
            let place = report.place.clone();
            return report.failed(SignatureState::Malformed, &place, reason);
        }
    };
    let options = AuditOptions { expected_heads: vec![head], ..AuditOptions::default() };
    let place = path.display().to_string();
    match verify_audit(path, &options) {
        Ok(accepted) => {
            let mut report = report;
            report.warnings.extend(accepted.notes);
            report
        }
        Err(rejection) => match rejection.class() {
            Class::Different => {
                report.failed(SignatureState::SubjectMismatch, &place, rejection.to_string())
            }
            Class::Unreadable => SignatureReport::unreadable(&place, rejection.to_string()),
            Class::NotCompared | Class::Accepted => {
                report.failed(SignatureState::NotChecked, &place, rejection.to_string())
            }
        },
    }
}

/// What is asked of `verify-audit`.
#[derive(Clone, Default)]
pub struct AuditRequest<'a> {
    /// The secret of the HMACs, if known.
    pub secret: Option<&'a Secret>,
    /// `--require-hmac`.
    pub require_hmac: bool,
    /// The trusted keys.
    pub keys: TrustedKeys,
    /// `--require-signature`: a checkpoint by a trusted key must be there.
    pub require_signature: bool,
}

/// What `verify-audit` found.
#[derive(Debug)]
pub struct AuditReport {
    /// The log.
    pub path: PathBuf,
    /// The exit class.
    pub class: Class,
    /// The chain.
    pub chain: Result<AuditAccepted, AuditRejection>,
    /// The signed checkpoint beside the log.
    pub signature: SignatureReport,
    /// Whether a secret was known.
    pub has_secret: bool,
    /// How many lines a trusted key vouches for.
    pub signed_entries: u64,
}

/// Verifies a log against its chain, its genesis manifest and the signed checkpoint beside it.
///
/// A checkpoint that is there must not contradict the log, whoever signed it. That one is there,
/// and by a trusted key, is only demanded with `require_signature`.
#[must_use]
pub fn verify_audit_log(path: &Path, request: &AuditRequest<'_>) -> AuditReport {
    let envelope_path = default_signature_path(&path.with_file_name(LOG_FILE));
    let place = envelope_path.display().to_string();
    let checked = check_envelope_file(
        &envelope_path,
        &place,
        &request.keys,
        neighbouring_key(path).as_ref(),
        PredicateType::AuditCheckpoint,
    );
    let mut signature = checked.report;
    let mut expected_heads = Vec::new();
    let mut signed_entries = 0;
    if let Some(statement) = checked.statement {
        match Checkpoint::head_of(&statement.predicate, "the checkpoint") {
            Ok(head) => {
                if signature.class == Class::Accepted {
                    signed_entries = head.entries;
                }
                expected_heads.push(head);
            }
            Err(reason) => signature = signature.failed(SignatureState::Malformed, &place, reason),
        }
    }
    let options = AuditOptions {
        secret: request.secret,
        require_hmac: request.require_hmac,
        expected_heads,
        keys: Some(&request.keys),
    };
    let chain = verify_audit(path, &options);
    let chain_class = chain.as_ref().err().map_or(Class::Accepted, AuditRejection::class);
    let signature_class = match signature.class {
        Class::NotCompared if !request.require_signature => Class::Accepted,
        other => other,
    };
    AuditReport {
        path: path.to_owned(),
        class: chain_class.and(signature_class),
        chain,
        signature,
        has_secret: request.secret.is_some(),
        signed_entries,
    }
}

impl AuditReport {
    /// The JSON document of `verify-audit`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let valid = self.class == Class::Accepted;
        let accepted = self.chain.as_ref().ok();
        let mut errors: Vec<String> = Vec::new();
        if let Err(rejection) = &self.chain {
            errors.push(match rejection {
                AuditRejection::Line { line, reason, .. } => format!("line {line}: {reason}"),
                other => other.to_string(),
            });
        }
        if self.class != Class::Accepted && self.chain.is_ok() {
            errors.extend(self.signature.reason.clone());
        }
        json!({
            "success": valid,
            "valid": valid,
            "entries_count": accepted.map_or(0, |a| a.entries),
            "hmac_verified": self.has_secret.then(|| accepted.is_some_and(|a| a.hmac_verified > 0)),
            "checkpoints_verified": accepted.map_or(0, |a| a.checkpoints_verified),
            "hmac_verified_count": accepted.map_or(0, |a| a.hmac_verified),
            "errors": errors,
            "notes": accepted.map(|a| a.notes.clone()).unwrap_or_default(),
            "path": self.path.display().to_string(),
            "signature": self.signature.to_json(),
        })
    }

    /// The lines for people.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.chain {
            Ok(accepted) => {
                let hmac = if accepted.hmac_verified > 0 { " (HMAC validated)" } else { "" };
                if self.class == Class::Accepted {
                    lines.push(format!("OK: {} entries verified{hmac}", accepted.entries));
                } else {
                    let path = self.path.display().to_string();
                    lines.extend(signature_lines(&path, &self.signature));
                }
                lines.extend(accepted.notes.iter().map(|note| format!("  note: {note}")));
            }
            Err(AuditRejection::Line { line, reason, .. }) => {
                lines.push(format!("FAIL at line {line}: {reason}"));
                lines.push(format!("  in: {}", self.path.display()));
            }
            Err(other) => lines.push(format!("FAIL: {other}")),
        }
        if self.class == Class::Accepted {
            lines.push(match (&self.signature.state, &self.signature.reason) {
                (SignatureState::Valid, _) => format!(
                    "  checkpoint: signed by {}",
                    self.signature.keyid.as_deref().unwrap_or_default()
                ),
                (state, reason) => format!(
                    "  checkpoint: {}: {}",
                    state.as_str(),
                    reason.as_deref().unwrap_or_default()
                ),
            });
        }
        lines
    }
}
