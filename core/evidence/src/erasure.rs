//! Signed statements of what was removed from a run's folder on purpose.
//!
//! The run's attestation still names what is gone, by digest. A statement of type `erasure/v1` names the
//! same files with the same digests, so that a verifier can tell what was erased, by whom and when, from
//! what is missing. It is signed before the first file goes: a machine that stops in between leaves files
//! that are named and there, never files that are gone and not named.

use std::collections::BTreeMap;
use std::path::Path;

use forgelm_artifact::write;
use serde_json::{Map, Value, json};

use crate::bundle::COMPLIANCE_DIR;
use crate::bundle::write::BundleError;
use crate::checkpoint::{Checkpoint, sign_checkpoint};
use crate::documents::evidence::Builder;
use crate::dsse::statement::{PredicateType, Statement, Subject, is_subject_name};
use crate::dsse::{Envelope, SUFFIX};
use crate::files::{self, EntryKind};
use crate::keys::RunSigner;

/// What the name of a statement begins with, below the folder of documents.
const PREFIX: &str = "compliance/erasure.";

/// What is said of an erasure.
#[derive(Clone, Copy)]
pub struct ErasureClaims<'a> {
    /// The run whose files they were.
    pub run_id: &'a str,
    /// `staging`, `artefacts` or `row`.
    pub kind: &'a str,
    /// Why.
    pub justification: Option<&'a str>,
    /// What signs it.
    pub builder: &'a Builder,
    /// Who.
    pub operator: &'a str,
    /// When.
    pub signed_at: &'a str,
}

impl ErasureClaims<'_> {
    fn predicate(&self, signer: &RunSigner) -> Map<String, Value> {
        let members = json!({
            "run_id": self.run_id,
            "pipeline_run_id": null,
            "forgelm_version": self.builder.version,
            "builder": self.builder.to_json(),
            "config_hash": null,
            "operator": self.operator,
            "signed_at": self.signed_at,
            "signer": signer.to_json(),
            "risk": {"compliance": null, "risk_assessment": null},
        });
        match members {
            Value::Object(members) => members,
            _ => Map::new(),
        }
    }
}

/// Whether a path below an output folder is that of a statement.
#[must_use]
pub fn is_statement(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The statements in an output folder, sorted.
pub(crate) fn statements(out_dir: &Path) -> Vec<String> {
    let found = files::list(&out_dir.join(COMPLIANCE_DIR)).unwrap_or_default();
    let names = found.into_keys().map(|name| format!("{COMPLIANCE_DIR}/{name}"));
    names.filter(|name| is_statement(name)).collect()
}

/// The files in or at `names` (paths below `out_dir`, with `/`) with their digests. Links are passed
/// over: nothing that they lead to is erased.
///
/// # Errors
/// If a folder cannot be listed, a file not read, or not be named in a statement.
pub fn subjects(out_dir: &Path, names: &[String]) -> Result<Vec<Subject>, BundleError> {
    let mut all: BTreeMap<String, EntryKind> = BTreeMap::new();
    for name in names {
        let path = out_dir.join(name);
        if path.is_dir() {
            let found = files::walk(out_dir, name);
            all.extend(found.map_err(|source| BundleError::List { path, source })?);
        } else {
            all.insert(name.clone(), EntryKind::File);
        }
    }
    all.retain(|_, kind| *kind == EntryKind::File);
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    let pairs = names.iter().zip(files::digests(out_dir, &names));
    pairs
        .map(|(name, digest)| {
            let refused = |reason| BundleError::File { path: out_dir.join(name), reason };
            if !is_subject_name(name) {
                return Err(refused("the name cannot be a subject of a statement".to_owned()));
            }
            let digest = digest.map_err(|problem| refused(problem.reason()))?;
            Ok(Subject { name: (*name).to_owned(), sha256: digest.sha256 })
        })
        .collect()
}

/// Signs that `subjects` are erased, and writes the statement into the folder of documents; returns its
/// path below `out_dir`.
///
/// # Errors
/// If it cannot be written.
///
/// # Panics
/// If there are no subjects: the caller's bug.
pub fn write_statement(
    out_dir: &Path,
    subjects: Vec<Subject>,
    claims: &ErasureClaims<'_>,
    signer: &RunSigner,
) -> Result<String, BundleError> {
    assert!(!subjects.is_empty(), "an erasure of nothing");
    let mut predicate = claims.predicate(signer);
    predicate.insert("kind".to_owned(), json!(claims.kind));
    predicate.insert("justification".to_owned(), json!(claims.justification));
    write::create_dir_all_durable(&out_dir.join(COMPLIANCE_DIR))?;
    let before = statements(out_dir);
    let name = (1..).map(|n| format!("{PREFIX}{n}{SUFFIX}")).find(|name| !before.contains(name));
    let name = name.unwrap_or_default();
    let statement = Statement::new(subjects, PredicateType::Erasure, Value::Object(predicate));
    let envelope = Envelope::sign(statement.to_bytes(), &signer.key)?;
    write::atomic(&out_dir.join(&name), &envelope.to_bytes())?;
    Ok(name)
}

/// Signs the head of the log in `out_dir`, once it says what was erased.
///
/// # Errors
/// If the log does not verify or the file cannot be written.
pub fn write_head(
    out_dir: &Path,
    claims: &ErasureClaims<'_>,
    signer: &RunSigner,
) -> Result<Checkpoint, BundleError> {
    sign_checkpoint(out_dir, claims.predicate(signer), signer)
}

/// What the statements of a folder say.
#[derive(Default)]
pub(crate) struct Erasures {
    /// By name and digest of a file: the statement, and whether a trusted key signed it.
    files: BTreeMap<(String, String), (String, bool)>,
}

impl Erasures {
    /// Takes in a statement whose signature is good.
    pub(crate) fn add(&mut self, name: &str, statement: Statement, is_trusted: bool) {
        for Subject { name: file, sha256 } in statement.subjects {
            let known =
                self.files.entry((file, sha256)).or_insert_with(|| (name.to_owned(), false));
            if is_trusted && !known.1 {
                *known = (name.to_owned(), true);
            }
        }
    }

    /// The statement that names a file with its digest, and whether a trusted key signed it.
    pub(crate) fn of(&self, subject: &Subject) -> Option<(&str, bool)> {
        let found = self.files.get(&(subject.name.clone(), subject.sha256.clone()));
        found.map(|(statement, is_trusted)| (statement.as_str(), *is_trusted))
    }
}
