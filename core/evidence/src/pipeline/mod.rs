//! `verify-annex-iv --pipeline`: whether the manifest of a pipeline holds together, is what was
//! written, has the evidence of every stage beside it, and agrees with the audit log.
//!
//! Four layers, each over the whole manifest, so that one run of the verifier names everything:
//! [`structure`] (what must be there, the chain from stage to stage, the manifest's own hash and
//! signature), [`stages`] (the documents of each completed stage) and [`corroboration`] (what the log
//! says happened). What is verified is written by [`state`] and [`write`]. A folder is read and nothing else: evidence that lies elsewhere is no evidence of it.
//!
//! Exit classes, after the seed: 1 for a rule that the manifest breaks and for what could not be
//! compared, 2 for what could not be read, 6 for a digest, a signature or a log that differs.

mod corroboration;
mod stages;
pub mod state;
mod structure;
#[cfg(test)]
mod tests;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

pub use corroboration::{Corroboration, Outcome, Replay};

use crate::class::Class;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::SignatureReport;
use crate::files::{self, FileProblem};
use crate::keys::trust::TrustedKeys;
use crate::secret::Secret;
use crate::signature::verify_signature;
use crate::strict_json::{DOCUMENT_LIMITS, Limits, parse};
use crate::text::shown;

/// The manifest, in the folder of a pipeline.
pub const PIPELINE_MANIFEST: &str = "compliance/pipeline_manifest.json";
/// Limits of the manifest and of each document of a stage.
pub(crate) const LIMITS: Limits = Limits { size_bytes: 8 << 20, ..DOCUMENT_LIMITS };

/// What is accepted.
#[derive(Default)]
pub struct PipelineOptions<'a> {
    /// Whose signatures count.
    pub keys: TrustedKeys,
    /// The manifest and the documents of stages must be signed.
    pub require_signature: bool,
    /// The secret of the audit log's HMACs, if known.
    pub secret: Option<&'a Secret>,
    /// The audit log must be attested and agree.
    pub require_corroboration: bool,
}

/// The rules that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// There is no manifest that could be looked at.
    Input,
    /// A file that is there cannot be read.
    Unreadable,
    /// A member that must be there is not, or says nothing.
    RequiredKey,
    /// `stages` is no list of stages, or a stage is no object.
    Stages,
    /// A stage's `index` is not its place.
    StageIndex,
    /// A chained stage does not begin with what the one before it made.
    ChainLink,
    /// `stopped_at` names no stage that stopped.
    StoppedAt,
    /// A pipeline that has ended has a stage that runs.
    StillRunning,
    /// The content is not what `metadata.manifest_hash` was taken over.
    ManifestHash,
    /// The manifest's signature is not genuine, or of other bytes.
    SignatureDiffers,
    /// The manifest's signature does not count, or is not there and must be.
    SignatureNotTrusted,
    /// A status that no stage can have.
    StageStatus,
    /// A gate was passed by a stage that did not complete.
    GateNotCompleted,
    /// The pipeline completed, and none of its stages.
    NothingCompleted,
    /// A stage's evidence is named in no way that leads to a file of this folder.
    EvidencePointer,
    /// A stage's evidence is not there.
    EvidenceMissing,
    /// A stage's evidence cannot be taken for evidence: malformed, incomplete, not trusted.
    EvidenceIncomplete,
    /// A stage's evidence has nothing to be compared with.
    EvidenceUnverified,
    /// A stage's evidence differs from its hash or its signature.
    EvidenceDiffers,
    /// The audit log says something else, or was changed.
    AuditContradicts,
    /// The audit log does not show anything, and must.
    AuditUnattested,
}

impl ViolationKind {
    /// The exit class.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Unreadable => Class::Unreadable,
            Self::ManifestHash
            | Self::SignatureDiffers
            | Self::EvidenceDiffers
            | Self::AuditContradicts => Class::Different,
            Self::Input
            | Self::RequiredKey
            | Self::Stages
            | Self::StageIndex
            | Self::ChainLink
            | Self::StoppedAt
            | Self::StillRunning
            | Self::SignatureNotTrusted
            | Self::StageStatus
            | Self::GateNotCompleted
            | Self::NothingCompleted
            | Self::EvidencePointer
            | Self::EvidenceMissing
            | Self::EvidenceIncomplete
            | Self::EvidenceUnverified
            | Self::AuditUnattested => Class::NotCompared,
        }
    }
}

/// One rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub kind: ViolationKind,
    /// Where, and what was found.
    pub reason: String,
}

/// Whether the manifest's own hash is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashState {
    /// It is.
    Verified,
    /// It is not.
    Mismatch,
    /// There is none, or nothing was looked at.
    Absent,
}

impl HashState {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Mismatch => "mismatch",
            Self::Absent => "absent",
        }
    }
}

/// What became of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageDisposition {
    /// Its `index`, as written.
    pub index: Value,
    /// Its name, as written.
    pub name: Value,
    /// Its status, as written.
    pub status: Value,
    /// `examined`, `not_applicable:…` or `violation:…`.
    pub disposition: &'static str,
}

/// What `verify-annex-iv --pipeline` found.
#[derive(Clone, Debug)]
pub struct PipelineReport {
    /// The folder.
    pub path: PathBuf,
    /// Everything that is wrong.
    pub violations: Vec<Violation>,
    /// The manifest's own hash.
    pub hash_state: HashState,
    /// Each stage.
    pub dispositions: Vec<StageDisposition>,
    /// Completed stages whose evidence agrees with its hash.
    pub evidence_verified: usize,
    /// Completed stages whose evidence has nothing to be compared with.
    pub evidence_unverified: usize,
    /// What the audit log says; `None` when there was no manifest to compare it with.
    pub corroboration: Option<Corroboration>,
    /// The manifest's signature; `None` when there was no manifest.
    pub signature: Option<SignatureReport>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl PipelineReport {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            violations: Vec::new(),
            hash_state: HashState::Absent,
            dispositions: Vec::new(),
            evidence_verified: 0,
            evidence_unverified: 0,
            corroboration: None,
            signature: None,
            notes: Vec::new(),
        }
    }

    fn breaks(&mut self, kind: ViolationKind, reason: impl Into<String>) {
        self.violations.push(Violation { kind, reason: reason.into() });
    }

    fn stopped(mut self, kind: ViolationKind, reason: impl Into<String>) -> Self {
        self.breaks(kind, reason);
        self
    }

    /// The exit class of everything together.
    #[must_use]
    pub fn class(&self) -> Class {
        let classes = self.violations.iter().map(|violation| violation.kind.class());
        classes.fold(Class::Accepted, Class::and)
    }

    /// Stages whose evidence was looked at.
    #[must_use]
    pub fn stages_examined(&self) -> usize {
        self.dispositions.iter().filter(|stage| stage.disposition == stages::EXAMINED).count()
    }

    /// The JSON document of the command.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut census: BTreeMap<String, u64> = BTreeMap::new();
        for stage in &self.dispositions {
            let word = stage.status.as_str().unwrap_or("unknown").to_owned();
            *census.entry(word).or_default() += 1;
        }
        let census: Map<String, Value> = census.into_iter().map(|(k, n)| (k, json!(n))).collect();
        let row = |stage: &StageDisposition| {
            json!({
                "index": stage.index,
                "name": stage.name,
                "status": stage.status,
                "disposition": stage.disposition,
            })
        };
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        json!({
            "success": self.violations.is_empty(),
            "mode": "pipeline",
            "path": path.display().to_string(),
            "violations": self.violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>(),
            "stages_total": self.dispositions.len(),
            "stages_examined": self.stages_examined(),
            "evidence_verified": self.evidence_verified,
            "evidence_unverified": self.evidence_unverified,
            "hash_state": self.hash_state.as_str(),
            "status_census": census,
            "stage_dispositions": self.dispositions.iter().map(row).collect::<Vec<_>>(),
            "audit_corroboration": self.corroboration.as_ref().map(Corroboration::to_json),
            "signature": self.signature.as_ref().map(SignatureReport::to_json),
        })
    }

    /// The lines for people: the verdict first.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        let path = self.path.display();
        let mut lines = vec![match (self.violations.len(), self.hash_state) {
            (0, HashState::Absent) => format!("OK (UNVERIFIED): {path}: the manifest has no hash"),
            (0, _) => format!("OK: {path}"),
            (n, _) => format!("FAIL: {path}: {n} violations"),
        }];
        lines.extend(self.violations.iter().map(|v| format!("  {}", v.reason)));
        lines.push(format!(
            "  stages: {} in all, {} examined; evidence: {} verified, {} unverified",
            self.dispositions.len(),
            self.stages_examined(),
            self.evidence_verified,
            self.evidence_unverified,
        ));
        if let Some(corroboration) = &self.corroboration {
            let (outcome, reason) = (corroboration.outcome.as_str(), corroboration.reason);
            lines.push(format!("  audit log: {outcome} ({reason})"));
        }
        lines.extend(self.signature.iter().map(SignatureReport::to_line));
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines
    }
}

/// Verifies the pipeline in the folder `dir`. Nothing is written.
#[must_use]
pub fn verify_pipeline(dir: &Path, options: &PipelineOptions<'_>) -> PipelineReport {
    let report = PipelineReport::new(dir);
    let path = dir.join(PIPELINE_MANIFEST);
    let place = PIPELINE_MANIFEST;
    let bytes = match files::read_below(dir, place, LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            return report.stopped(ViolationKind::Input, format!("{place}: larger than 8 MiB"));
        }
        Err(FileProblem::Unreadable(detail)) => {
            let reason = format!("{place}: cannot be read: {detail}");
            return report.stopped(ViolationKind::Unreadable, reason);
        }
        Err(problem) => {
            let reason = format!("{place}: {}", problem.reason());
            return report.stopped(ViolationKind::Input, reason);
        }
    };
    let manifest = match parse(&bytes, LIMITS) {
        Ok(manifest) => manifest,
        Err(error) => return report.stopped(ViolationKind::Input, format!("{place}: {error}")),
    };
    let Some(members) = manifest.as_object() else {
        return report.stopped(ViolationKind::Input, format!("{place}: not a JSON object"));
    };
    let mut report = report;
    structure::check(members, &mut report);
    structure::check_hash(&manifest, &mut report);
    signature(&path, options, &mut report);
    stages::check(dir, members, options, &mut report);
    corroboration::check(dir, members, options, &mut report);
    report
}

/// A signature that is there must be genuine and of these bytes; whether one must be there is an option.
fn signature(path: &Path, options: &PipelineOptions<'_>, report: &mut PipelineReport) {
    let kind = PredicateType::ComplianceManifest;
    let found = verify_signature(path, None, &options.keys, kind).signature;
    let state = found.state.as_str();
    let reason = found.reason.as_deref().unwrap_or_default();
    let reason = format!("signature of {PIPELINE_MANIFEST}: {state}: {reason}");
    match found.class {
        Class::Accepted => {}
        Class::Different => report.breaks(ViolationKind::SignatureDiffers, reason),
        Class::Unreadable => report.breaks(ViolationKind::Unreadable, reason),
        Class::NotCompared if options.require_signature => {
            report.breaks(ViolationKind::SignatureNotTrusted, reason);
        }
        Class::NotCompared => report.notes.push(reason),
    }
    report.signature = Some(found);
}

/// How a stage is called in a message.
fn stage_name(at: usize, stage: &Map<String, Value>) -> String {
    match stage.get("name").and_then(Value::as_str) {
        Some(name) => format!("stage {at} `{}`", shown(name)),
        None => format!("stage {at}"),
    }
}
