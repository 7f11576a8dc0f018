//! S5: one person's decision, signed by their own key; and the signed head of the log after it (S4).
//!
//! The statement's subjects are what the person was shown: the run's report and attestation, by
//! digest. The predicate binds the model's root digest and the head of the audit log at that moment,
//! so that it can stand under no other model and in no other log.

use std::path::Path;

use forgelm_artifact::write;
use serde_json::{Value, json};

use super::requests::Request;
use crate::bundle::write::BundleError;
use crate::bundle::{ATTESTATION, COMPLIANCE_DIR};
use crate::checkpoint::{Checkpoint, write_checkpoint_of};
use crate::digest::{root_digest, sha256_hex};
use crate::documents::evidence::Builder;
use crate::documents::predicate::common_predicate;
use crate::documents::record::Identity;
use crate::dsse::statement::{PredicateType, Statement, Subject};
use crate::dsse::{Envelope, SUFFIX};
use crate::files::{self, FileProblem};
use crate::integrity::EXCLUDED;
use crate::keys::RunSigner;
use crate::strict_json::DOCUMENT_LIMITS;

/// The report of a run.
pub const REPORT: &str = "compliance/compliance_report.json";
/// What a person is shown of a run before they decide.
pub const SHOWN: [&str; 2] = [ATTESTATION, REPORT];
const PREFIX: &str = "compliance/approval.";

/// What somebody decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The model may be used.
    Approved,
    /// It may not.
    Rejected,
}

impl Verdict {
    /// The word in statements.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

/// Who decides on which run.
#[derive(Clone, Copy)]
pub struct Clerk<'a> {
    /// What is asked.
    pub request: &'a Request,
    /// Their operator's name.
    pub operator: &'a str,
    /// Version of the program.
    pub version: &'a str,
    /// What built it.
    pub builder: &'a Builder,
    /// When.
    pub signed_at: &'a str,
}

impl Clerk<'_> {
    fn identity(&self) -> Identity<'_> {
        Identity {
            run_id: &self.request.run_id,
            pipeline_run_id: None,
            forgelm_version: self.version,
            builder: self.builder,
            config_hash: &self.request.config_hash,
            operator: self.operator,
            compliance: None,
            risk_assessment: None,
        }
    }

    /// Signs the head of the log in `out_dir`, and writes it beside the log (S4).
    ///
    /// # Errors
    /// If the log does not verify or the file cannot be written.
    pub fn sign_head(&self, out_dir: &Path, signer: &RunSigner) -> Result<Checkpoint, BundleError> {
        write_checkpoint_of(out_dir, &self.identity(), signer, self.signed_at)
    }

    /// Signs a decision (S5), and writes it as [`file_name`] says; the file's SHA-256.
    ///
    /// # Errors
    /// If what was shown cannot be read, or the file cannot be written.
    pub fn sign_decision(
        &self,
        out_dir: &Path,
        decision: &Decision<'_>,
        signer: &RunSigner,
    ) -> Result<String, BundleError> {
        let mut subjects = Vec::new();
        for name in SHOWN {
            match files::digest(out_dir, name) {
                Ok(digest) => {
                    subjects.push(Subject { name: name.to_owned(), sha256: digest.sha256 });
                }
                // An unsigned run has no attestation.
                Err(FileProblem::Missing) if name == ATTESTATION => {}
                Err(problem) => {
                    let path = out_dir.join(name);
                    return Err(BundleError::File { path, reason: problem.reason() });
                }
            }
        }
        let mut predicate = common_predicate(&self.identity(), signer, self.signed_at);
        let comment = decision.comment.map(|text| sha256_hex(text.as_bytes()));
        let more = [
            ("decision", json!(decision.verdict.as_str())),
            ("approver", json!(self.operator)),
            ("role", json!(decision.role)),
            ("comment_sha256", json!(comment)),
            ("staging_path", json!(self.request.staging_path)),
            ("staging_root_digest", json!(decision.staging_root_digest)),
            ("audit_head_sha256", json!(decision.audit_head_sha256)),
            ("requested_at", json!(self.request.requested_at)),
            ("open_seconds", json!(decision.open_seconds)),
        ];
        predicate.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let kind = PredicateType::ApprovalDecision;
        let statement = Statement::new(subjects, kind, Value::Object(predicate));
        let bytes = Envelope::sign(statement.to_bytes(), &signer.key)?.to_bytes();
        write::atomic(&out_dir.join(decision.file), &bytes)?;
        Ok(sha256_hex(&bytes))
    }
}

/// What is said of a model.
#[derive(Clone, Copy)]
pub struct Decision<'a> {
    /// Yes or no.
    pub verdict: Verdict,
    /// In which role.
    pub role: Option<&'a str>,
    /// Why; the statement has its digest.
    pub comment: Option<&'a str>,
    /// The root digest of the staged folder.
    pub staging_root_digest: &'a str,
    /// SHA-256 of the last line of the log before the one that records this.
    pub audit_head_sha256: &'a str,
    /// For how long the request was open.
    pub open_seconds: u64,
    /// Where the envelope goes, relative to the output folder.
    pub file: &'a str,
}

/// The file of the `n`th signed decision on a run, from 1, relative to its output folder.
#[must_use]
pub fn file_name(run_id: &str, n: usize) -> String {
    match n {
        1 => format!("{PREFIX}{run_id}{SUFFIX}"),
        n => format!("{PREFIX}{run_id}.{n}{SUFFIX}"),
    }
}

/// The key that signed the run in `out_dir`, as its attestation says; not verified.
#[must_use]
pub fn run_signer(out_dir: &Path) -> Option<String> {
    let bytes =
        files::read_bounded(&out_dir.join(ATTESTATION), DOCUMENT_LIMITS.size_bytes).ok()??;
    let statement = Statement::parse(&Envelope::parse(&bytes).ok()?.payload).ok()?;
    statement.predicate.pointer("/signer/keyid")?.as_str().map(str::to_owned)
}

/// Whether a name is one of [`file_name`].
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    name.starts_with(PREFIX)
        && name.ends_with(SUFFIX)
        && !name[COMPLIANCE_DIR.len() + 1..].contains('/')
}

/// The root digest of the files of a model folder, as an attestation has it.
///
/// # Errors
/// If the folder cannot be listed, or one of its entries is no file or cannot be read.
pub fn root_of_folder(dir: &Path) -> Result<String, BundleError> {
    let found = files::walk(dir, "")
        .map_err(|source| BundleError::List { path: dir.to_owned(), source })?;
    let names: Vec<&str> =
        found.keys().map(String::as_str).filter(|name| !EXCLUDED.contains(name)).collect();
    let mut digests = Vec::with_capacity(names.len());
    for (name, digest) in names.iter().zip(files::digests(dir, &names)) {
        let digest = digest.map_err(|problem| BundleError::File {
            path: dir.join(name),
            reason: problem.reason(),
        })?;
        digests.push(digest.sha256);
    }
    Ok(root_digest(digests.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::{file_name, is_file_name, root_of_folder};
    use forgelm_artifact::write::atomic;

    #[test]
    fn decisions_have_names_of_their_own() {
        assert_eq!(file_name("fg-1", 1), "compliance/approval.fg-1.dsse.json");
        assert_eq!(file_name("fg-1", 2), "compliance/approval.fg-1.2.dsse.json");
        assert!(is_file_name(&file_name("fg-1", 3)));
        for other in ["compliance/a.dsse.json", "compliance/approval.x/y.dsse.json", "approval.x"] {
            assert!(!is_file_name(other), "{other}");
        }
    }

    /// The vector of the specification: the files `a` and `b` with these bytes.
    #[test]
    fn the_root_of_a_folder_is_that_of_the_specification() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            atomic(&dir.path().join(name), name.as_bytes()).unwrap();
        }
        let expected = "e5a01fee14e0ed5c48714f22180f25ad8365b53f9779f79dc4a3d7e93963f94a";
        assert_eq!(root_of_folder(dir.path()).unwrap(), expected);
        atomic(&dir.path().join("model.sig"), b"{}").unwrap();
        assert_eq!(
            root_of_folder(dir.path()).unwrap(),
            expected,
            "a signature is not of the model"
        );
    }
}
