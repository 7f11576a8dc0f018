//! `verify-bundle`: the attestation, every file it binds, the signatures beside the documents, the
//! audit chain against its checkpoints, and the model folder.
//!
//! Everything that can be compared is compared, also when the attestation itself is not good, so
//! that the report names each file.

mod decided;
mod judged;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use forgelm_artifact::lock::LOCK_FILE;
use serde_json::{Value, json};

use super::archive::is_weights;
use super::{ATTESTATION, COMPLIANCE_DIR, HOLD_FILE, PUBLIC_KEY, ROOT};
use crate::approval::decision;
use crate::audit::LOG_FILE;
use crate::audit::verify::{AuditAccepted, AuditOptions, ExpectedHead, verify_audit};
use crate::checkpoint::{CHECKPOINT_FILE, Checkpoint};
use crate::class::Class;
use crate::dsse::SUFFIX;
use crate::dsse::statement::{PredicateType, Statement, Subject};
use crate::dsse::verify::{SignatureReport, SignatureState};
use crate::erasure::{self, Erasures};
use crate::files::{self, FileProblem};
use crate::identifier::SALT_FILE;
use crate::integrity::{INTEGRITY_FILE, verify_integrity};
use crate::keys::PublicKey;
use crate::keys::file::load_public_key;
use crate::keys::trust::TrustedKeys;
use crate::model::{MODEL_SIGNATURE, verify_model};
use crate::secret::Secret;
use crate::signature::{check_envelope_file, signature_lines};
use crate::text::shown;

pub use decided::Moved;

/// What is asked.
#[derive(Clone, Default)]
pub struct BundleOptions<'a> {
    /// The trusted keys.
    pub keys: TrustedKeys,
    /// The secret of the audit log's HMACs, if known.
    pub secret: Option<&'a Secret>,
    /// `--require-hmac`.
    pub require_hmac: bool,
    /// Files of weights may be missing, as in an archive of the evidence alone: they are then not
    /// verified, and the report says so.
    pub weights_left_out: bool,
    /// `--allow-unsigned`: a run without an attestation is accepted if all else agrees.
    pub allow_unsigned: bool,
    /// Where the staged folder is by now, for who is about to record its promotion.
    pub moved: Option<Moved>,
}

/// What is wrong with one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// The bytes differ.
    Changed,
    /// It is gone.
    Missing,
    /// It is there and nobody signed it.
    Extra,
    /// It is gone, and its bytes lie under another name.
    Renamed,
    /// It is a link, a folder or a device.
    NotAFile,
    /// It could not be read.
    Unreadable,
    /// Its signature is not good.
    Signature,
    /// The audit chain is not good.
    Chain,
    /// What was measured says otherwise than the verdict.
    Verdict,
}

impl FindingKind {
    /// The word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Renamed => "renamed",
            Self::NotAFile => "not_a_file",
            Self::Unreadable => "unreadable",
            Self::Signature => "signature",
            Self::Chain => "chain",
            Self::Verdict => "verdict",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the output folder.
    pub file: String,
    /// What is wrong.
    pub kind: FindingKind,
    /// In words.
    pub reason: String,
    /// Its exit class.
    pub class: Class,
}

/// What `verify-bundle` found.
#[derive(Clone, Debug)]
pub struct BundleReport {
    /// The output folder.
    pub dir: PathBuf,
    /// The exit class of everything together.
    pub class: Class,
    /// The attestation's signature.
    pub signature: SignatureReport,
    /// Everything that is wrong, sorted by file.
    pub findings: Vec<Finding>,
    /// Number of files that are as the attestation says.
    pub subjects_verified: usize,
    /// Number of documents whose own signature is good (or as good as the attestation's).
    pub documents_verified: usize,
    /// The audit log, if it is accepted.
    pub audit: Option<AuditAccepted>,
    /// What became of the model: as signed, and for a staged one as people decided since.
    pub outcome: Option<String>,
    /// The run, as signed.
    pub run_id: Option<String>,
    /// The root digest of the model's files, as signed.
    pub model_root_digest: Option<String>,
    /// How many lines of the audit log a trusted key vouches for.
    pub signed_entries: u64,
    /// Files that are gone, each with the signed statement of its erasure.
    pub erased: Vec<(String, String)>,
    /// Things to know that are no failure.
    pub notes: Vec<String>,
}

/// Verifies the evidence in the output folder `dir`.
#[must_use]
pub fn verify_bundle(dir: &Path, options: &BundleOptions<'_>) -> BundleReport {
    let mut check = Check {
        dir,
        options,
        neighbour: load_public_key(&dir.join(PUBLIC_KEY)).ok(),
        findings: Vec::new(),
        erasures: Erasures::default(),
        erased: Vec::new(),
        notes: Vec::new(),
        n_left_out: 0,
        moved: None,
        signed_entries: 0,
    };
    check.read_erasures();
    let checked = check.envelope(ATTESTATION, PredicateType::TrainingRun);
    let signature = checked.0;
    let statement = checked.1;
    // First what the log says: it decides where the files are.
    let audit = check.audit(statement.as_ref(), signature.class);
    let outcome = statement.as_ref().and_then(|s| check.decided(s, audit.is_some()));
    let subjects_verified = statement.as_ref().map_or(0, |s| check.subjects(s));
    if let Some(statement) = &statement {
        check.judged(statement);
    }
    let documents_verified = check.documents();
    check.model_folders(statement.as_ref());
    let signature_class = match signature.state {
        SignatureState::Absent if options.allow_unsigned => {
            check.notes.push("unsigned, which was allowed".to_owned());
            Class::Accepted
        }
        _ => signature.class,
    };
    let mut findings = check.findings;
    findings.sort_by(|a, b| (&a.file, a.kind, &a.reason).cmp(&(&b.file, b.kind, &b.reason)));
    findings.dedup();
    let class = findings.iter().fold(signature_class, |class, finding| class.and(finding.class));
    let signed = |pointer: &str| {
        let found = statement.as_ref().and_then(|s| s.predicate.pointer(pointer)?.as_str());
        found.map(str::to_owned)
    };
    BundleReport {
        dir: dir.to_owned(),
        class,
        outcome,
        run_id: signed("/run_id"),
        model_root_digest: signed("/model/root_digest"),
        signed_entries: check.signed_entries,
        signature,
        findings,
        subjects_verified,
        documents_verified,
        audit,
        erased: check.erased,
        notes: check.notes,
    }
}

/// Files beside a model in an output folder that are checked in other ways than as subjects.
/// The last three hold nothing that a run says: a lock, a mark, and bytes that were drawn.
const OF_EVIDENCE: [&str; 5] = [LOG_FILE, CHECKPOINT_FILE, LOCK_FILE, HOLD_FILE, SALT_FILE];

struct Check<'a> {
    dir: &'a Path,
    options: &'a BundleOptions<'a>,
    neighbour: Option<PublicKey>,
    findings: Vec<Finding>,
    erasures: Erasures,
    erased: Vec<(String, String)>,
    notes: Vec<String>,
    /// Files of weights that are not here, which was allowed.
    n_left_out: usize,
    /// Where the model's folder is, when it has another name than was signed.
    moved: Option<Moved>,
    /// Lines of the log up to the newest checkpoint of a trusted key.
    signed_entries: u64,
}

impl Check<'_> {
    fn add(&mut self, file: &str, kind: FindingKind, class: Class, reason: impl Into<String>) {
        let reason = reason.into();
        self.findings.push(Finding { file: file.to_owned(), kind, reason, class });
    }

    fn envelope(
        &self,
        name: &str,
        expected: PredicateType,
    ) -> (SignatureReport, Option<Statement>) {
        self.envelope_by(name, &self.options.keys, expected)
    }

    fn envelope_by(
        &self,
        name: &str,
        keys: &TrustedKeys,
        expected: PredicateType,
    ) -> (SignatureReport, Option<Statement>) {
        let path = self.dir.join(name);
        let checked = check_envelope_file(&path, name, keys, self.neighbour.as_ref(), expected);
        (checked.report, checked.statement)
    }

    fn problem(&mut self, file: &str, problem: &FileProblem) {
        let (kind, class) = match problem {
            FileProblem::Missing => (FindingKind::Missing, Class::Different),
            FileProblem::Symlink | FileProblem::NotAFile(_) => {
                (FindingKind::NotAFile, Class::Different)
            }
            FileProblem::Unreadable(_) => (FindingKind::Unreadable, Class::Unreadable),
        };
        self.add(file, kind, class, problem.reason());
    }

    /// The statements of what was removed on purpose. Each must be good itself.
    fn read_erasures(&mut self) {
        for name in erasure::statements(self.dir) {
            let (report, statement) = self.envelope(&name, PredicateType::Erasure);
            let is_of_this_check = match report.class {
                Class::Accepted => Some(true),
                // As for the attestation: signed well, by a key that nobody named.
                Class::NotCompared if statement.is_some() => Some(false),
                Class::NotCompared | Class::Unreadable | Class::Different => None,
            };
            match (is_of_this_check, statement) {
                (Some(is_trusted), Some(statement)) => {
                    self.erasures.add(&name, statement, is_trusted);
                }
                _ => {
                    let reason = self.signature_reason(&report);
                    self.add(&name, FindingKind::Signature, report.class, reason);
                }
            }
        }
    }

    /// A file that is gone: erased with a signed statement, or missing.
    fn gone(&mut self, subject: &Subject) {
        match self.erasures.of(subject) {
            Some((statement, true)) => {
                let statement = statement.to_owned();
                self.erased.push((subject.name.clone(), statement));
            }
            Some((statement, false)) => {
                let reason = format!(
                    "missing; `{statement}` says that it was erased, by a key that is not trusted"
                );
                self.add(&subject.name, FindingKind::Missing, Class::NotCompared, reason);
            }
            None => self.problem(&subject.name, &FileProblem::Missing),
        }
    }

    /// Every subject, and every file in the signed folders.
    fn subjects(&mut self, statement: &Statement) -> usize {
        let subjects: Vec<Subject> = statement
            .subjects
            .iter()
            .map(|s| Subject { name: self.place(&s.name), sha256: s.sha256.clone() })
            .collect();
        let names: Vec<&str> = subjects.iter().map(|s| s.name.as_str()).collect();
        let digests = files::digests(self.dir, &names);
        let mut n_verified = 0;
        let mut missing = Vec::new();
        for (subject, digest) in subjects.iter().zip(digests) {
            match digest {
                Ok(found) if found.sha256 == subject.sha256 => n_verified += 1,
                Ok(_) => {
                    let reason = "the bytes were changed after signing";
                    self.add(&subject.name, FindingKind::Changed, Class::Different, reason);
                }
                Err(FileProblem::Missing)
                    if self.options.weights_left_out && is_weights(&subject.name) =>
                {
                    self.n_left_out += 1;
                }
                Err(FileProblem::Missing) => missing.push(subject),
                Err(problem) => self.problem(&subject.name, &problem),
            }
        }
        if self.n_left_out > 0 {
            let text = "files of weights are not here, and were not compared";
            self.notes.push(format!("{} {text}", self.n_left_out));
        }
        let extra = self.extra(statement, &names.into_iter().collect());
        self.missing_and_extra(&missing, extra);
        n_verified
    }

    fn extra(&mut self, statement: &Statement, known: &BTreeSet<&str>) -> Vec<String> {
        let mut extra = Vec::new();
        let scope = statement.predicate.get("scope").and_then(Value::as_array);
        for folder in scope.into_iter().flatten().filter_map(Value::as_str) {
            let folder = self.place(folder);
            let folder = folder.as_str();
            let found = match folder {
                ROOT => files::list(self.dir).map(|mut found| {
                    found.retain(|name, _| !OF_EVIDENCE.contains(&name.as_str()));
                    found
                }),
                _ if crate::dsse::statement::is_subject_name(folder) => {
                    files::walk(self.dir, folder)
                }
                _ => continue,
            };
            match found {
                Ok(found) => {
                    // Checked by itself in each of these folders: `model_signature`.
                    let signature = format!("{folder}/{MODEL_SIGNATURE}");
                    let is_extra = |n: &String| {
                        // Checked with what the log says of them.
                        let is_decision = decision::is_file_name(n);
                        let is_said = is_decision || erasure::is_statement(n);
                        let is_own = is_said || n == ATTESTATION || *n == signature;
                        !is_own && !known.contains(n.as_str())
                    };
                    extra.extend(found.into_keys().filter(is_extra));
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    let reason = format!("cannot be listed: {e}");
                    self.add(folder, FindingKind::Unreadable, Class::Unreadable, reason);
                }
            }
        }
        extra
    }

    /// A missing file whose bytes are found under a new name was renamed.
    fn missing_and_extra(&mut self, missing: &[&Subject], extra: Vec<String>) {
        let names: Vec<&str> = extra.iter().map(String::as_str).collect();
        // Only to find what was renamed: whoever adds a file does not decide how long this takes.
        let digests =
            if missing.is_empty() { Vec::new() } else { files::digests(self.dir, &names) };
        let mut by_digest = BTreeMap::new();
        for (name, digest) in names.iter().zip(&digests) {
            if let Ok(digest) = digest {
                by_digest.insert(digest.sha256.as_str(), *name);
            }
        }
        for subject in missing {
            match by_digest.get(subject.sha256.as_str()) {
                Some(now) => {
                    let reason = format!("its bytes now lie in `{}`", shown(now));
                    self.add(&subject.name, FindingKind::Renamed, Class::Different, reason);
                }
                None => self.gone(subject),
            }
        }
        for name in names {
            self.add(name, FindingKind::Extra, Class::Different, "not in the attestation");
        }
    }

    /// S1: the signature beside each document.
    fn documents(&mut self) -> usize {
        let Ok(found) = files::walk(self.dir, COMPLIANCE_DIR) else { return 0 };
        let mut n_good = 0;
        let is_other = |name: &str| {
            name == ATTESTATION || decision::is_file_name(name) || erasure::is_statement(name)
        };
        let envelopes = found.keys().filter(|name| name.ends_with(SUFFIX) && !is_other(name));
        for name in envelopes.cloned().collect::<Vec<_>>() {
            let (report, statement) = self.envelope(&name, PredicateType::ComplianceManifest);
            let document = name.strip_suffix(SUFFIX).unwrap_or(&name).to_owned();
            let Some(statement) = statement else {
                let reason = self.signature_reason(&report);
                self.add(&name, FindingKind::Signature, report.class, reason);
                continue;
            };
            let subject = statement.subjects.iter().find(|s| s.name == document);
            match (subject, files::digest(self.dir, &document)) {
                (None, _) => {
                    let reason = "the signature is for another file";
                    self.add(&name, FindingKind::Signature, Class::Different, reason);
                }
                (Some(_), Err(problem)) => self.problem(&document, &problem),
                (Some(subject), Ok(found)) if subject.sha256 != found.sha256 => {
                    let reason = "the bytes were changed after signing";
                    self.add(&document, FindingKind::Changed, Class::Different, reason);
                }
                (Some(_), Ok(_)) if report.class > Class::NotCompared => {
                    let reason = self.signature_reason(&report);
                    self.add(&name, FindingKind::Signature, report.class, reason);
                }
                (Some(_), Ok(_)) => n_good += 1,
            }
        }
        n_good
    }

    fn signature_reason(&self, report: &SignatureReport) -> String {
        let reason = report.reason.as_deref().unwrap_or_default();
        format!("{}: {reason}", report.state.as_str())
    }

    /// The chain, against the checkpoint in the attestation and the one beside the log.
    fn audit(&mut self, statement: Option<&Statement>, signature: Class) -> Option<AuditAccepted> {
        let mut heads: Vec<ExpectedHead> = Vec::new();
        if let Some(claimed) = statement.and_then(|s| s.predicate.get("audit_checkpoint")) {
            match Checkpoint::head_of(claimed, "the attestation") {
                Ok(head) => {
                    if signature == Class::Accepted {
                        self.signed_entries = head.entries;
                    }
                    heads.push(head);
                }
                Err(reason) => {
                    self.add(ATTESTATION, FindingKind::Signature, Class::NotCompared, reason);
                }
            }
        }
        let (report, checkpoint) = self.envelope(CHECKPOINT_FILE, PredicateType::AuditCheckpoint);
        match checkpoint {
            Some(checkpoint) => {
                match Checkpoint::head_of(&checkpoint.predicate, "the checkpoint") {
                    Ok(head) => {
                        self.compare_heads(&heads, &head);
                        if report.class == Class::Accepted {
                            self.signed_entries = self.signed_entries.max(head.entries);
                        }
                        heads.push(head);
                        if report.class > Class::NotCompared {
                            let reason = self.signature_reason(&report);
                            self.add(CHECKPOINT_FILE, FindingKind::Signature, report.class, reason);
                        }
                    }
                    Err(reason) => {
                        self.add(
                            CHECKPOINT_FILE,
                            FindingKind::Signature,
                            Class::NotCompared,
                            reason,
                        );
                    }
                }
            }
            // The attestation holds the same head; a missing file beside the log loses nothing
            // but is not how a run ends.
            None if report.state == SignatureState::Absent && statement.is_none() => {}
            None => {
                let reason = self.signature_reason(&report);
                self.add(CHECKPOINT_FILE, FindingKind::Signature, report.class, reason);
            }
        }
        let options = AuditOptions {
            secret: self.options.secret,
            require_hmac: self.options.require_hmac,
            expected_heads: heads,
            keys: Some(&self.options.keys),
        };
        match verify_audit(&self.dir.join(LOG_FILE), &options) {
            Ok(accepted) => {
                self.notes.extend(accepted.notes.iter().cloned());
                Some(accepted)
            }
            Err(rejection) => {
                // A log that an attestation speaks of and that is gone was removed.
                let is_gone = rejection.class() == Class::NotCompared && statement.is_some();
                let class = if is_gone { Class::Different } else { rejection.class() };
                let line = rejection.line().map_or_else(String::new, |n| format!("line {n}: "));
                let text = rejection.to_string();
                let reason = text.rsplit_once(": ").map_or(text.as_str(), |(_, reason)| reason);
                self.add(LOG_FILE, FindingKind::Chain, class, format!("{line}{reason}"));
                None
            }
        }
    }

    /// A newer checkpoint may cover more lines than the attestation, never fewer.
    fn compare_heads(&mut self, attested: &[ExpectedHead], head: &ExpectedHead) {
        for other in attested {
            let is_older = head.entries < other.entries;
            let contradicts =
                head.entries == other.entries && head.head_sha256 != other.head_sha256;
            if is_older || contradicts {
                let reason = "an older or other checkpoint than the attestation's";
                self.add(CHECKPOINT_FILE, FindingKind::Signature, Class::Different, reason);
            }
        }
    }

    /// The signature of the folder must be good. One by a key that is not known here says nothing more
    /// than the attestation does, where that binds it; one that was added later must be of a known key.
    fn model_signature(&mut self, folder: &str, dir: &Path, statement: Option<&Statement>) {
        let report = verify_model(dir, None, &self.options.keys, self.neighbour.as_ref());
        let file = format!("{folder}/{MODEL_SIGNATURE}");
        let is_bound = statement.is_some_and(|s| s.subjects.iter().any(|s| s.name == file));
        if is_bound && report.state == SignatureState::UntrustedKey {
            let key = report.keyid.unwrap_or_default();
            self.notes.push(format!("{file}: by the key {key}, which is not among those named"));
        } else if report.class != Class::Accepted {
            let reason = self.signature_reason(&report);
            self.add(&file, FindingKind::Signature, report.class, reason);
        }
    }

    /// `model_integrity.json` of each signed folder that has one.
    fn model_folders(&mut self, statement: Option<&Statement>) {
        let scope = statement.and_then(|s| s.predicate.get("scope")?.as_array().cloned());
        let scope = scope.unwrap_or_else(|| vec![json!("final_model")]);
        for folder in scope.iter().filter_map(Value::as_str) {
            let folder = self.place(folder);
            let folder = folder.as_str();
            let dir = self.dir.join(folder);
            let is_safe = crate::dsse::statement::is_subject_name(folder);
            // Its bytes are subjects; what it says of weights cannot be compared without them.
            if is_safe
                && self.n_left_out == 0
                && dir.join(MODEL_SIGNATURE).symlink_metadata().is_ok()
            {
                self.model_signature(folder, &dir, statement);
            }
            if !is_safe || dir.join(INTEGRITY_FILE).symlink_metadata().is_err() {
                continue;
            }
            let mut report = verify_integrity(&dir);
            if self.n_left_out > 0 {
                // Their digests are in the attestation, and that they are gone is in a note.
                report.removed.retain(|name| !is_weights(name));
            }
            let lists = [
                (&report.changed, FindingKind::Changed, "differs from model_integrity.json"),
                (&report.removed, FindingKind::Missing, "listed in model_integrity.json"),
                (&report.added, FindingKind::Extra, "not in model_integrity.json"),
            ];
            for (list, kind, reason) in lists {
                for file in list {
                    self.add(&format!("{folder}/{file}"), kind, Class::Different, reason);
                }
            }
            let is_listed = report.class == Class::Different;
            if let Some(reason) = report.reason.filter(|_| !is_listed) {
                let file = format!("{folder}/{INTEGRITY_FILE}");
                self.add(&file, FindingKind::Unreadable, report.class, reason);
            }
        }
    }
}

impl BundleReport {
    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let valid = self.class == Class::Accepted;
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|f| {
                let exit = f.class.exit_code();
                json!({"file": f.file, "kind": f.kind.as_str(), "reason": f.reason, "exit": exit})
            })
            .collect();
        let erased = self.erased.iter();
        let erased: Vec<Value> =
            erased.map(|(file, statement)| json!({"file": file, "statement": statement})).collect();
        json!({
            "success": valid,
            "valid": valid,
            "state": self.signature.state.as_str(),
            "path": self.dir.display().to_string(),
            "outcome": self.outcome,
            "subjects_verified": self.subjects_verified,
            "documents_verified": self.documents_verified,
            "audit_entries": self.audit.as_ref().map(|a| a.entries),
            "findings": findings,
            "erased": erased,
            "notes": self.notes,
            "signature": self.signature.to_json(),
        })
    }

    /// The lines for people.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.class == Class::Accepted {
            let entries = self.audit.as_ref().map_or(0, |a| a.entries);
            lines.push(format!(
                "OK: {}: {} files, {} signed documents, {entries} audit entries verified",
                self.dir.display(),
                self.subjects_verified,
                self.documents_verified,
            ));
        } else {
            lines.push(format!("FAIL: {}", self.dir.display()));
        }
        let signature = signature_lines(ATTESTATION, &self.signature);
        lines.extend(signature.into_iter().map(|line| format!("  {line}")));
        let rows = self.findings.iter();
        let row = |f: &Finding| format!("  {}: {}: {}", f.kind.as_str(), shown(&f.file), f.reason);
        lines.extend(rows.map(row));
        for (file, statement) in &self.erased {
            let (file, statement) = (shown(file), shown(statement));
            lines.push(format!("  erased: {file}: signed in {statement}"));
        }
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines
    }
}
