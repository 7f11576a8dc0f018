//! The evidence of each stage.
//!
//! Ours differs from the earlier implementation in two things. A pointer that is not relative is
//! followed only into the pipeline's own folder: what lies elsewhere does not travel with it. And each
//! completed stage has evidence of its own: two that name one file have it once.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::{LIMITS, PipelineOptions, PipelineReport, StageDisposition, ViolationKind, stage_name};
use crate::annex_iv::{AnnexIvOptions, AnnexIvReport, verify_annex_iv};
use crate::class::Class;
use crate::documents::annex_iv::is_placeholder;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::SignatureState;
use crate::files::{self, FileProblem};
use crate::signature::verify_signature;
use crate::strict_json::parse;
use crate::text::shown;

/// The disposition of a completed stage.
pub(super) const EXAMINED: &str = "examined";
/// The summary that every run writes.
const TRAINING_MANIFEST: &str = "training_manifest.json";
/// The technical documentation.
const ANNEX_IV: &str = "annex_iv_metadata.json";
/// Members of the manifest's `annex_iv` that say that stages have such a documentation.
const IDENTIFYING: [&str; 3] = ["provider_name", "system_name", "intended_purpose"];

/// What follows from a stage's status.
fn disposition(stage: &Map<String, Value>) -> &'static str {
    let text = |key: &str| stage.get(key).and_then(Value::as_str);
    let status = text("status");
    if status != Some("completed") && text("gate_decision") == Some("passed") {
        return "violation:gate_passed_but_not_completed";
    }
    match status {
        Some("completed") => EXAMINED,
        Some("pending") => "not_applicable:pending",
        Some("running") => "not_applicable:running",
        Some("failed") => "not_applicable:failed",
        Some("gated_pending_approval") => "not_applicable:gated",
        Some("skipped_by_filter") => "not_applicable:filtered",
        Some("skipped_due_to_prior_revert") => "not_applicable:chain_broken",
        _ => "violation:unrecognised_status",
    }
}

pub(super) fn check(
    dir: &Path,
    members: &Map<String, Value>,
    options: &PipelineOptions<'_>,
    report: &mut PipelineReport,
) {
    let stages = members.get("stages").and_then(Value::as_array);
    let stages: &[Value] = stages.map_or(&[], |stages| stages);
    let is_documented = is_documented(members);
    let mut seen = BTreeSet::new();
    for (at, stage) in stages.iter().enumerate() {
        let Some(stage) = stage.as_object() else {
            report.dispositions.push(StageDisposition {
                index: Value::from(at),
                name: Value::Null,
                status: Value::Null,
                disposition: "violation:not_an_object",
            });
            continue;
        };
        let of = |key: &str| stage.get(key).cloned().unwrap_or_default();
        let (name, disposition) = (stage_name(at, stage), disposition(stage));
        report.dispositions.push(StageDisposition {
            index: of("index"),
            name: of("name"),
            status: of("status"),
            disposition,
        });
        match disposition {
            EXAMINED => {
                let check = Stage { dir, name: &name, is_documented, options };
                check.evidence(stage, &mut seen, report);
                check.start_model(stage, report);
            }
            "violation:unrecognised_status" => {
                let status = of("status").to_string();
                let reason = format!("{name}: `status` is {}, which is none", shown(&status));
                report.breaks(ViolationKind::StageStatus, reason);
            }
            "violation:gate_passed_but_not_completed" => {
                let reason = format!("{name}: its gate is `passed`, and it did not complete");
                report.breaks(ViolationKind::GateNotCompleted, reason);
            }
            _ => {}
        }
    }
    let is_completed = members.get("final_status").and_then(Value::as_str) == Some("completed");
    if is_completed && report.stages_examined() == 0 {
        let reason = "`final_status` is `completed`, and no stage is";
        report.breaks(ViolationKind::NothingCompleted, reason);
    }
}

/// Whether the manifest says that its runs have a technical documentation.
fn is_documented(members: &Map<String, Value>) -> bool {
    let Some(annex) = members.get("annex_iv").and_then(Value::as_object) else { return false };
    IDENTIFYING.iter().any(|key| {
        let text = annex.get(*key).and_then(Value::as_str);
        text.is_some_and(|text| !is_placeholder(text))
    })
}

struct Stage<'a> {
    dir: &'a Path,
    name: &'a str,
    is_documented: bool,
    options: &'a PipelineOptions<'a>,
}

impl Stage<'_> {
    fn evidence(
        &self,
        stage: &Map<String, Value>,
        seen: &mut BTreeSet<String>,
        report: &mut PipelineReport,
    ) {
        let pointer = stage.get("training_manifest").and_then(Value::as_str);
        let pointer = pointer.filter(|pointer| !pointer.trim().is_empty());
        let Some(pointer) = pointer else {
            let reason = format!("{}: `training_manifest` names no file", self.name);
            return report.breaks(ViolationKind::EvidencePointer, reason);
        };
        let Some(below) = self.below(pointer) else {
            let reason = format!(
                "{}: `training_manifest` is `{}`, which is not in the pipeline's folder",
                self.name,
                shown(pointer)
            );
            return report.breaks(ViolationKind::EvidencePointer, reason);
        };
        if !seen.insert(below.clone()) {
            let reason = format!("{}: {}: the evidence of another stage", self.name, shown(&below));
            return report.breaks(ViolationKind::EvidencePointer, reason);
        }
        let (folder, file) = below.rsplit_once('/').unwrap_or(("", &below));
        let beside = |name: &str| match folder {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        };
        // A pointer may name either. Only runs with a `compliance` section have the second.
        let expected = stage.get("training_manifest_sha256").and_then(Value::as_str);
        let Some(is_compared) = self.summary(&beside(TRAINING_MANIFEST), expected, report) else {
            return;
        };
        let annex = if file == TRAINING_MANIFEST { beside(ANNEX_IV) } else { below.clone() };
        self.annex_iv(&annex, is_compared, report);
    }

    /// Where a stage says which adapter it was begun with, that must be the one that the stage before it
    /// left: a chain of bytes, and not of names alone. Weights that are not there are not compared.
    fn start_model(&self, stage: &Map<String, Value>, report: &mut PipelineReport) {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let is_chained = text(stage.get("input_source")).as_deref() == Some("chain");
        let start = stage.get("start_model").and_then(Value::as_object);
        let expected = text(start.and_then(|start| start.get("adapter_sha256")));
        let input = text(stage.get("input_model")).and_then(|input| self.below(&input));
        let (true, Some(expected), Some(input)) = (is_chained, expected, input) else { return };
        let file = format!("{input}/adapter_model.safetensors");
        let place = format!("{}: {}", self.name, shown(&file));
        match files::digest(self.dir, &file) {
            Ok(found) if found.sha256 == expected => {}
            Ok(found) => {
                let (found, expected) = (found.sha256, shown(&expected));
                let reason = format!("{place}: began at {expected}; the stage before left {found}");
                report.breaks(ViolationKind::EvidenceDiffers, reason);
            }
            Err(FileProblem::Unreadable(detail)) => {
                report.breaks(
                    ViolationKind::Unreadable,
                    format!("{place}: cannot be read: {detail}"),
                );
            }
            Err(problem) => {
                report.notes.push(format!("{place}: {}: not compared", problem.reason()))
            }
        }
    }

    /// A pointer as a path below the folder, with `/`.
    fn below(&self, pointer: &str) -> Option<String> {
        let path = Path::new(pointer);
        let relative: PathBuf = if path.is_absolute() {
            let dir = std::path::absolute(self.dir).ok()?;
            path.strip_prefix(dir).ok()?.to_owned()
        } else {
            path.to_owned()
        };
        let mut parts = Vec::new();
        for part in relative.components() {
            match part {
                Component::CurDir => {}
                Component::Normal(part) => parts.push(part.to_str()?),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
            }
        }
        (!parts.is_empty()).then(|| parts.join("/"))
    }

    /// Reads a document of the stage.
    fn read(&self, file: &str, report: &mut PipelineReport) -> Read {
        let place = format!("{}: {}", self.name, shown(file));
        let bytes = match files::read_below(self.dir, file, LIMITS.size_bytes) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let reason = format!("{place}: larger than 8 MiB");
                report.breaks(ViolationKind::EvidenceIncomplete, reason);
                return Read::Refused;
            }
            Err(FileProblem::Missing) => return Read::Missing,
            Err(FileProblem::Unreadable(detail)) => {
                let reason = format!("{place}: cannot be read: {detail}");
                report.breaks(ViolationKind::Unreadable, reason);
                return Read::Refused;
            }
            Err(problem) => {
                let reason = format!("{place}: {}", problem.reason());
                report.breaks(ViolationKind::EvidencePointer, reason);
                return Read::Refused;
            }
        };
        match parse(&bytes, LIMITS) {
            Ok(document) if document.is_object() => Read::Document,
            Ok(_) => {
                let reason = format!("{place}: not a JSON object");
                report.breaks(ViolationKind::EvidenceIncomplete, reason);
                Read::Refused
            }
            Err(error) => {
                report.breaks(ViolationKind::EvidenceIncomplete, format!("{place}: {error}"));
                Read::Refused
            }
        }
    }

    /// The summary must be there, the one of which the manifest has the digest, where it has one; where
    /// it is signed, by its own signature. Whether it was compared with one of the two.
    fn summary(
        &self,
        file: &str,
        expected: Option<&str>,
        report: &mut PipelineReport,
    ) -> Option<bool> {
        match self.read(file, report) {
            Read::Document => {}
            Read::Refused => return None,
            Read::Missing => {
                let reason = format!("{}: {}: missing", self.name, shown(file));
                report.breaks(ViolationKind::EvidenceMissing, reason);
                return None;
            }
        }
        let actual = files::digest(self.dir, file).ok().map(|found| found.sha256);
        if let (Some(expected), Some(actual)) = (expected, &actual)
            && expected != actual
        {
            let (file, expected) = (shown(file), shown(expected));
            let reason = format!("{}: {file}: SHA-256 is {actual}; expected {expected}", self.name);
            report.breaks(ViolationKind::EvidenceDiffers, reason);
            return None;
        }
        let kind = PredicateType::ComplianceManifest;
        let path = self.dir.join(file);
        let found = verify_signature(&path, None, &self.options.keys, kind).signature;
        let reason = found.reason.as_deref().unwrap_or_default();
        let reason = format!("{}: {}: {}: {reason}", self.name, shown(file), found.state.as_str());
        match found.class {
            Class::Accepted => return Some(true),
            Class::Different => report.breaks(ViolationKind::EvidenceDiffers, reason),
            Class::Unreadable => report.breaks(ViolationKind::Unreadable, reason),
            Class::NotCompared if self.options.require_signature => {
                report.breaks(ViolationKind::EvidenceIncomplete, reason);
            }
            Class::NotCompared => {
                report.notes.push(reason);
                return Some(expected.is_some());
            }
        }
        None
    }

    fn annex_iv(&self, file: &str, is_compared: bool, report: &mut PipelineReport) {
        let place = format!("{}: {}", self.name, shown(file));
        match self.read(file, report) {
            Read::Document => {}
            Read::Refused => return,
            Read::Missing if self.is_documented => {
                let reason = format!("{place}: missing, and the manifest says there is one");
                return report.breaks(ViolationKind::EvidenceMissing, reason);
            }
            // The summary is all there is of a run without a `compliance` section.
            Read::Missing if is_compared => {
                report.evidence_verified += 1;
                return;
            }
            Read::Missing => {
                report.evidence_unverified += 1;
                let reason = format!("{place}: missing: the stage has nothing to be compared with");
                return report.breaks(ViolationKind::EvidenceUnverified, reason);
            }
        }
        let options = AnnexIvOptions {
            keys: self.options.keys.clone(),
            allow_unsigned: !self.options.require_signature,
            allow_unhashed: true,
            strict: false,
        };
        let found = verify_annex_iv(&self.dir.join(file), &options);
        let is_signed = found
            .signature
            .as_ref()
            .is_some_and(|signature| signature.state == SignatureState::Valid);
        if found.class == Class::Accepted && found.hash_expected.is_none() && !is_signed {
            report.evidence_unverified += 1;
            let reason = format!("{place}: has no hash: damage was not looked for");
            return report.breaks(ViolationKind::EvidenceUnverified, reason);
        }
        let kind = match found.class {
            Class::Accepted => {
                report.evidence_verified += 1;
                return;
            }
            Class::Different => ViolationKind::EvidenceDiffers,
            Class::Unreadable => ViolationKind::Unreadable,
            Class::NotCompared => ViolationKind::EvidenceIncomplete,
        };
        report.breaks(kind, format!("{place}: {}", why(&found)));
    }
}

/// What became of a document.
enum Read {
    Document,
    Missing,
    /// It is in the report.
    Refused,
}

fn why(found: &AnnexIvReport) -> String {
    let reason = found.reason.clone().unwrap_or_default();
    match found.missing_fields.as_slice() {
        [] => reason,
        fields => format!("{reason}: {}", fields.join(", ")),
    }
}
