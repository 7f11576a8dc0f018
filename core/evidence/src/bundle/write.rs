//! Writing and signing the evidence of a run, in the order in which each step covers the ones
//! before it.
//!
//! Model card, instructions for use, `model_integrity.json`; documents; a signature beside each document (S1); the final
//! audit events; the signed head of the audit log (S4); the attestation that binds everything
//! (S2). The attestation of an earlier run in the same folder goes first: from then until the new
//! one is there, the folder verifies as unsigned, never as something it is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forgelm_artifact::Clock;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::{self, WriteError};
use serde_json::Value;

use super::{ATTESTATION, COMPLIANCE_DIR, PUBLIC_KEY, ROOT};
use crate::audit::GENESIS_FILE;
use crate::audit::event::AuditEvent;
use crate::audit::log::{AuditError, AuditLog};
use crate::audit::verify::AuditRejection;
use crate::checkpoint::{CHECKPOINT_FILE, write_checkpoint};
use crate::digest::{root_digest, sha256_hex};
use crate::documents::INSTRUCTIONS_FILE;
use crate::documents::annex_iv::{ANNEX_IV, Surroundings};
use crate::documents::facts::Governance;
use crate::documents::governance::GOVERNANCE_REPORT;
use crate::documents::predicate::{RunClaims, manifest_predicate, run_predicate};
use crate::documents::record::{FileRecord, Record};
use crate::dsse::statement::{PredicateType, Statement, Subject, is_subject_name, subjects_json};
use crate::dsse::{Envelope, SUFFIX};
use crate::files::{self, EntryKind, FileDigest};
use crate::integrity::{EXCLUDED, INTEGRITY_FILE, IntegrityError, write_model_integrity};
use crate::keys::p256::P256Key;
use crate::keys::{KeyError, RunSigner};
use crate::model::{MODEL_SIGNATURE, ModelSigner, sign_model};
use crate::sign::{FileClaims, SignFileError};
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::text::canonical_json;
use crate::timestamp::attach::{Kind, Stamping, Unstamped};

/// File name of the model card inside the model folder.
pub const MODEL_CARD: &str = "README.md";

/// What is to be written and signed.
pub struct BundleRequest<'a> {
    /// The output folder.
    pub out_dir: &'a Path,
    /// Where the model is.
    pub model: ModelPlace<'a>,
    /// Other files of the run, relative to the output folder (`metrics.jsonl`, evaluation
    /// results). They must be finished.
    pub extra_files: &'a [String],
    /// What the documents are made from.
    pub record: Record<'a>,
    /// The key, or why nothing is signed.
    pub signer: Result<&'a RunSigner, &'a str>,
    /// A P-256 key that signs the model's folder in the place of `signer`.
    pub model_key: Option<&'a P256Key>,
    /// Who is asked for time stamps, if anybody is.
    pub stamping: Option<Stamping<'a>>,
    /// Recorded after the documents and before the checkpoint (`pipeline.completed`).
    pub final_events: &'a [AuditEvent],
}

/// Where a run's model lies.
#[derive(Clone, Copy, Debug)]
pub enum ModelPlace<'a> {
    /// There is none: a gate took it back.
    None,
    /// In a folder of its own, which gets a model card and a `model_integrity.json`.
    Folder {
        /// Relative to the output folder, with `/`.
        name: &'a str,
        /// How documents name it.
        shown: &'a str,
    },
    /// In the output folder itself, beside the evidence: these files, and a model card.
    Root {
        /// Their names.
        files: &'a [String],
    },
}

impl<'a> ModelPlace<'a> {
    /// The folder of which every file is signed.
    fn scope(self) -> Option<&'a str> {
        match self {
            Self::None => None,
            Self::Folder { name, .. } => Some(name),
            Self::Root { .. } => Some(ROOT),
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Documents, relative to the output folder, sorted.
    pub documents: Vec<String>,
    /// The key that signed.
    pub keyid: Option<String>,
    /// Number of files the attestation binds.
    pub subject_count: usize,
    /// Lines in the audit log that the checkpoint covers.
    pub audit_entries: u64,
    /// Signatures that got no time stamp.
    pub unstamped: Vec<Unstamped>,
}

/// Why the evidence is not complete. What was written so far is kept.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The key gave no signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A signature got no time stamp, and must have one.
    #[error("{file}: no time stamp, which `signing.require_timestamp` demands: {reason}")]
    TimeStamp {
        /// The file of the signature.
        file: String,
        /// Why.
        reason: String,
    },
    /// The model's folder cannot be signed.
    #[error(transparent)]
    Model(#[from] SignFileError),
    /// Recording failed.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The model folder cannot be recorded.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// The audit log does not verify, so its head is not signed.
    #[error("the audit log does not verify, so it is not signed")]
    Log(#[source] AuditRejection),
    /// Reading back failed.
    #[error(transparent)]
    Open(OpenError),
    /// A folder cannot be listed.
    #[error("{}: cannot be listed", .path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file of the run cannot be bound.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
}

/// Writes and signs the evidence of a run.
///
/// # Errors
/// [`BundleError`]; there is no attestation then. The log says so, if it can.
pub fn write_bundle(
    request: &BundleRequest<'_>,
    audit: &mut AuditLog,
    clock: &dyn Clock,
) -> Result<Bundle, BundleError> {
    let mut has_ended = false;
    let written = write_all(request, audit, clock, &mut has_ended);
    if let Err(error) = &written {
        // The error itself matters more than a log that cannot take it.
        let _ = audit.append(&failure(error));
    }
    written
}

/// As [`write_bundle`] for a run that counts as finished without its evidence: the log says that the
/// export failed, and has the final events all the same. The inner error is why it failed.
///
/// # Errors
/// If the audit log cannot be written: what needs the record does not happen. If the key gives no
/// signature: nothing unsigned passes for a run that signs.
pub fn try_write_bundle(
    request: &BundleRequest<'_>,
    audit: &mut AuditLog,
    clock: &dyn Clock,
) -> Result<Result<Bundle, BundleError>, BundleError> {
    let mut has_ended = false;
    match write_all(request, audit, clock, &mut has_ended) {
        Ok(bundle) => Ok(Ok(bundle)),
        Err(
            error @ (BundleError::Audit(_)
            | BundleError::Key(_)
            | BundleError::TimeStamp { .. }
            | BundleError::Model(SignFileError::Key(_))),
        ) => Err(error),
        Err(error) => {
            audit.append(&failure(&error))?;
            for event in request.final_events.iter().filter(|_| !has_ended) {
                audit.append(event)?;
            }
            Ok(Err(error))
        }
    }
}

fn failure(error: &BundleError) -> AuditEvent {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    AuditEvent::ComplianceArtifactsExportFailed { reason }
}

fn write_all(
    request: &BundleRequest<'_>,
    audit: &mut AuditLog,
    clock: &dyn Clock,
    has_ended: &mut bool,
) -> Result<Bundle, BundleError> {
    let out_dir = request.out_dir;
    write::create_dir_all_durable(&out_dir.join(COMPLIANCE_DIR))?;
    write::remove_file(&out_dir.join(ATTESTATION))?;
    let mut around = Surroundings::default();
    let mut unstamped = Vec::new();
    let card =
        |dir: &Path| write::atomic(&dir.join(MODEL_CARD), request.record.model_card().as_bytes());
    match request.model {
        ModelPlace::None => {}
        ModelPlace::Root { .. } => card(out_dir)?,
        ModelPlace::Folder { name, shown } => {
            let dir = out_dir.join(name);
            card(&dir)?;
            let mut own = vec![INTEGRITY_FILE];
            if let Some(text) = request.record.instructions(shown) {
                write::atomic(&dir.join(INSTRUCTIONS_FILE), text.as_bytes())?;
                own.push(INSTRUCTIONS_FILE);
            }
            let written = write_model_integrity(&dir, shown, clock.utc())?;
            let artifacts = written.artifacts.len() as u64;
            around.model_files.extend(written.artifacts.into_iter().map(|of| FileRecord {
                name: format!("{name}/{}", of.file),
                sha256: of.sha256,
                size_bytes: of.size_bytes,
            }));
            audit.append(&AuditEvent::ModelIntegrityVerified { artifacts })?;
            for file in own.into_iter().map(|file| format!("{name}/{file}")) {
                around.digests.insert(file.clone(), digest(out_dir, &file)?.sha256);
            }
            around.model_dir = Some(name.to_owned());
            sign_model_folder(request, &dir, &clock.utc().to_string())?;
            if request.signer.is_ok() {
                let file = format!("{name}/{MODEL_SIGNATURE}");
                unstamped.extend(stamp(request, &file, Kind::Model)?);
            }
        }
    }
    for file in request.extra_files {
        around.digests.insert(file.clone(), digest(out_dir, file)?.sha256);
    }
    around.keyid = request.signer.ok().map(|signer| signer.key.id().to_string());
    let documents = write_documents(request, &around)?;
    let governance_ok = record_governance(request.record.governance(), audit)?;
    let exported = AuditEvent::ComplianceArtifactsExported {
        output_dir: COMPLIANCE_DIR.to_owned(),
        files: documents.clone(),
        governance_ok,
    };
    let mut bundle =
        Bundle { documents, keyid: None, subject_count: 0, audit_entries: 0, unstamped };
    match request.signer {
        Err(reason) => {
            audit.append(&exported)?;
            audit.append(&AuditEvent::SigningSkipped { reason: reason.to_owned() })?;
            for event in request.final_events {
                audit.append(event)?;
            }
            *has_ended = true;
        }
        Ok(signer) => {
            let signed_at = clock.utc().to_string();
            sign_documents(request, signer, &signed_at, &bundle.documents)?;
            audit.append(&exported)?;
            let signing = Signing { signer, signed_at: &signed_at };
            sign_run(request, &signing, audit, &mut bundle, has_ended)?;
        }
    }
    Ok(bundle)
}

/// Asks for a time stamp over the signature in a file that was just written.
fn stamp(
    request: &BundleRequest<'_>,
    file: &str,
    kind: Kind,
) -> Result<Option<Unstamped>, BundleError> {
    match &request.stamping {
        None => Ok(None),
        Some(stamping) => stamping.attach(request.out_dir, file, kind),
    }
}

/// Says in the log what became of the governance report; whether it is there or was not due.
fn record_governance(governance: &Governance, audit: &mut AuditLog) -> Result<bool, AuditError> {
    match governance {
        Governance::NotDue => Ok(true),
        Governance::Failed { reason } => {
            audit.append(&AuditEvent::ComplianceGovernanceFailed { reason: reason.clone() })?;
            Ok(false)
        }
        Governance::Report { n_datasets, missing_audit, .. } => {
            if let Some(expected_path) = missing_audit {
                audit.append(&AuditEvent::ComplianceGovernanceSectionMissing {
                    section: "data_audit_report".to_owned(),
                    expected_path: expected_path.clone(),
                })?;
            }
            audit.append(&AuditEvent::ComplianceGovernanceExported {
                output_path: format!("{COMPLIANCE_DIR}/{GOVERNANCE_REPORT}"),
                dataset_count: *n_datasets,
            })?;
            Ok(true)
        }
    }
}

/// Writes the documents and removes those of an earlier run that this one does not have.
fn write_documents(
    request: &BundleRequest<'_>,
    around: &Surroundings,
) -> Result<Vec<String>, BundleError> {
    let mut documents = Vec::new();
    for (name, bytes) in request.record.documents(around) {
        let name = format!("{COMPLIANCE_DIR}/{name}");
        let path = request.out_dir.join(&name);
        write::remove_file(&request.out_dir.join(format!("{name}{SUFFIX}")))?;
        match bytes {
            Some(bytes) => {
                write::atomic(&path, &bytes)?;
                documents.push(name);
            }
            None => write::remove_file(&path)?,
        }
    }
    let public_key = request.out_dir.join(PUBLIC_KEY);
    match request.signer {
        Ok(signer) => write::atomic(&public_key, signer.key.public().to_pem().as_bytes())?,
        Err(_) => write::remove_file(&public_key)?,
    }
    documents.sort();
    Ok(documents)
}

/// S3: the model's folder, by the key of the run or the one for models.
fn sign_model_folder(
    request: &BundleRequest<'_>,
    dir: &Path,
    signed_at: &str,
) -> Result<(), BundleError> {
    // That of an earlier run in this folder.
    write::remove_file(&dir.join(MODEL_SIGNATURE))?;
    let signer = match (request.signer, request.model_key) {
        (Err(_), _) => return Ok(()),
        (Ok(_), Some(key)) => ModelSigner::P256(key),
        (Ok(signer), None) => ModelSigner::Run(signer),
    };
    let identity = request.record.identity();
    let claims = FileClaims {
        kind: PredicateType::ModelFolder,
        builder: identity.builder,
        operator: identity.operator,
        signed_at,
    };
    sign_model(dir, &claims, signer)?;
    Ok(())
}

/// S1: a signature beside each document.
fn sign_documents(
    request: &BundleRequest<'_>,
    signer: &RunSigner,
    signed_at: &str,
    documents: &[String],
) -> Result<(), BundleError> {
    for name in documents {
        let FileDigest { sha256, .. } = digest(request.out_dir, name)?;
        let file = name.rsplit('/').next().unwrap_or(name);
        let kind = file.split('.').next().unwrap_or(file);
        let mut predicate = manifest_predicate(&request.record, signer, signed_at, kind);
        if file == ANNEX_IV
            && let Some(hash) = own_hash(&request.out_dir.join(name))
        {
            predicate["manifest_hash"] = hash;
        }
        let subject = Subject { name: name.clone(), sha256 };
        let statement = Statement::new(vec![subject], PredicateType::ComplianceManifest, predicate);
        let envelope = Envelope::sign(statement.to_bytes(), &signer.key)?;
        write::atomic(&request.out_dir.join(format!("{name}{SUFFIX}")), &envelope.to_bytes())?;
    }
    Ok(())
}

/// The `metadata.manifest_hash` of a document that was just written.
fn own_hash(path: &Path) -> Option<Value> {
    let bytes = files::read_bounded(path, DOCUMENT_LIMITS.size_bytes).ok()??;
    parse(&bytes, DOCUMENT_LIMITS).ok()?.pointer("/metadata/manifest_hash").cloned()
}

/// Who signs, and when.
struct Signing<'a> {
    signer: &'a RunSigner,
    signed_at: &'a str,
}

/// The last events, S4 and S2.
fn sign_run(
    request: &BundleRequest<'_>,
    &Signing { signer, signed_at }: &Signing<'_>,
    audit: &mut AuditLog,
    bundle: &mut Bundle,
    has_ended: &mut bool,
) -> Result<(), BundleError> {
    let scope: Vec<String> =
        std::iter::once(COMPLIANCE_DIR).chain(request.model.scope()).map(str::to_owned).collect();
    let subjects = subjects(request, &scope)?;
    let keyid = signer.key.id().to_string();
    audit.append(&AuditEvent::SigningBundleSigned {
        keyid: keyid.clone(),
        bundle_sha256: sha256_hex(&canonical_json(&subjects_json(&subjects))),
        subject_count: subjects.len() as u64,
    })?;
    for event in request.final_events {
        audit.append(event)?;
    }
    *has_ended = true;
    let checkpoint = write_checkpoint(request.out_dir, &request.record, signer, signed_at)?;
    bundle.unstamped.extend(stamp(request, CHECKPOINT_FILE, Kind::Envelope)?);
    let (model_root_digest, model_files) = match request.model {
        ModelPlace::None => (None, 0),
        ModelPlace::Folder { name, .. } => {
            let prefix = format!("{name}/");
            model_root(&subjects, |name| name.strip_prefix(prefix.as_str()))
        }
        ModelPlace::Root { files } => {
            let is_model = |name: &&str| files.iter().any(|f| f == name) || *name == MODEL_CARD;
            model_root(&subjects, |name| Some(name).filter(is_model))
        }
    };
    let claims =
        RunClaims { checkpoint: &checkpoint, model_root_digest, model_files, scope: &scope };
    let predicate = run_predicate(&request.record, signer, signed_at, &claims);
    bundle.subject_count = subjects.len();
    bundle.audit_entries = checkpoint.entries;
    bundle.keyid = Some(keyid);
    let statement = Statement::new(subjects, PredicateType::TrainingRun, predicate);
    let envelope = Envelope::sign(statement.to_bytes(), &signer.key)?;
    let attestation = request.out_dir.join(ATTESTATION);
    write::atomic(&attestation, &envelope.to_bytes())?;
    match stamp(request, ATTESTATION, Kind::Envelope) {
        Ok(unstamped) => bundle.unstamped.extend(unstamped),
        Err(error) => {
            write::remove_file(&attestation)?;
            return Err(error);
        }
    }
    // After the signed head: what it covers must be complete before anything is stamped.
    for Unstamped { file, reason } in &bundle.unstamped {
        let (file, reason) = (file.clone(), reason.clone());
        audit.append(&AuditEvent::SigningTimestampFailed { file, reason })?;
    }
    Ok(())
}

/// Every file in the folders of `scope`, the genesis manifest and the extra files, with digests.
fn subjects(request: &BundleRequest<'_>, scope: &[String]) -> Result<Vec<Subject>, BundleError> {
    let root = request.out_dir;
    let mut names: BTreeMap<String, EntryKind> = BTreeMap::new();
    for dir in scope.iter().filter(|dir| *dir != ROOT) {
        let found = files::walk(root, dir)
            .map_err(|source| BundleError::List { path: root.join(dir), source })?;
        names.extend(found);
    }
    names.insert(GENESIS_FILE.to_owned(), EntryKind::File);
    let mut single: Vec<String> = request.extra_files.to_vec();
    if let ModelPlace::Root { files } = request.model {
        single.extend(files.iter().cloned().chain([MODEL_CARD.to_owned()]));
    }
    names.extend(single.into_iter().map(|name| (name, EntryKind::File)));
    names.remove(ATTESTATION);
    let listed: Vec<&str> = names.keys().map(String::as_str).collect();
    if let Some(bad) = listed.iter().find(|name| !is_subject_name(name)) {
        let reason = "the name cannot be a subject of a statement".to_owned();
        return Err(BundleError::File { path: root.join(bad), reason });
    }
    let digests = files::digests(root, &listed);
    let pairs = listed.iter().zip(digests);
    pairs
        .map(|(name, digest)| {
            let FileDigest { sha256, .. } = digest.map_err(|problem| BundleError::File {
                path: root.join(name),
                reason: problem.reason(),
            })?;
            Ok(Subject { name: (*name).to_owned(), sha256 })
        })
        .collect()
}

fn digest(root: &Path, name: &str) -> Result<FileDigest, BundleError> {
    files::digest(root, name)
        .map_err(|problem| BundleError::File { path: root.join(name), reason: problem.reason() })
}

/// The root digest of the files of the model, and how many they are. `name_in_model` gives a file's
/// name within the model, if it is of the model.
fn model_root<'a>(
    subjects: &'a [Subject],
    name_in_model: impl Fn(&'a str) -> Option<&'a str>,
) -> (Option<String>, usize) {
    let is_of_model = |subject: &&'a Subject| {
        name_in_model(&subject.name).is_some_and(|name| !EXCLUDED.contains(&name))
    };
    let digests: Vec<&str> =
        subjects.iter().filter(is_of_model).map(|subject| subject.sha256.as_str()).collect();
    ((!digests.is_empty()).then(|| root_digest(digests.iter().copied())), digests.len())
}

#[cfg(test)]
mod tests {
    use super::model_root;
    use crate::digest::sha256_hex;
    use crate::dsse::statement::Subject;

    #[test]
    fn the_root_digest_equals_the_vector_of_the_specification() {
        let subject =
            |name: &str, bytes: &[u8]| Subject { name: name.to_owned(), sha256: sha256_hex(bytes) };
        let subjects =
            [subject("final_model/a", b"a"), subject("final_model/b", b"b"), subject("x", b"x")];
        let (root, n_files) = model_root(&subjects, |name| name.strip_prefix("final_model/"));
        assert_eq!(n_files, 2);
        let expected = "e5a01fee14e0ed5c48714f22180f25ad8365b53f9779f79dc4a3d7e93963f94a";
        assert_eq!(root.as_deref(), Some(expected));
    }
}
