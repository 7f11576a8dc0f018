//! `verify-annex-iv`: whether one `annex_iv_metadata.json` says what it must, is the file that was
//! written, and was signed by a key that the reader trusts.
//!
//! Nothing counts as an answer because its key is not empty: blanks and placeholders are none, a point
//! that claims evidence must name some, and each point has one of three verdicts. Files that the
//! document names by content are compared where they lie beside it. Files of the earlier Python
//! implementation are read too; they have no points.

mod previous;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

pub use previous::{PreviousProblem, read_previous};

use crate::bundle::COMPLIANCE_DIR;
use crate::class::Class;
use crate::digest::unhex32;
use crate::documents::annex_iv::{REQUIRED_FIELDS, REQUIREMENTS, Status, answer, is_placeholder};
use crate::dsse::statement::{PredicateType, is_subject_name};
use crate::dsse::verify::{SignatureReport, SignatureState};
use crate::files::{self, FileProblem};
use crate::keys::trust::TrustedKeys;
use crate::manifest_hash::{manifest_hash, manifest_hash_canonical};
use crate::signature::verify_signature;
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::text::shown;

/// Members of `system_identification` that must say something.
const IDENTIFICATION: [&str; 3] = ["provider_name", "system_name", "intended_purpose"];
/// Sections that the earlier implementation fills with one sentence when it knows nothing.
const PLACEHOLDER_SECTIONS: [(&str, &str); 2] =
    [("computational_resources", "recorded"), ("risk_management", "art9_reference")];
/// Files that one document may name as evidence.
const FILES_MAX: usize = 256;
/// Tiers that leave no point open.
const STRICT_TIERS: [&str; 2] = ["high-risk", "unacceptable"];

/// What is accepted.
#[derive(Debug, Default)]
pub struct AnnexIvOptions {
    /// Whose signature counts.
    pub keys: TrustedKeys,
    /// A file without a signature is accepted.
    pub allow_unsigned: bool,
    /// So is one without a hash.
    pub allow_unhashed: bool,
    /// No point may be open, whatever the tier.
    pub strict: bool,
}

/// The verdict on one sub-point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointVerdict {
    /// Present, with evidence.
    Evidence,
    /// Present, as a statement only.
    Statement,
    /// Absent.
    Absent,
}

impl PointVerdict {
    /// The word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evidence => "evidence",
            Self::Statement => "statement",
            Self::Absent => "absent",
        }
    }
}

/// What `verify-annex-iv` found.
#[derive(Clone, Debug)]
pub struct AnnexIvReport {
    /// The exit class.
    pub class: Class,
    /// The file.
    pub path: PathBuf,
    /// Why, when it is not accepted.
    pub reason: Option<String>,
    /// Members that say nothing, in order; those of a section after a dot.
    pub missing_fields: Vec<String>,
    /// Each sub-point in order; empty for a file without points.
    pub points: Vec<(&'static str, PointVerdict)>,
    /// The hash that the file should have.
    pub hash_actual: Option<String>,
    /// The hash that it has.
    pub hash_expected: Option<String>,
    /// Its signature.
    pub signature: Option<SignatureReport>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl AnnexIvReport {
    fn new(path: &Path) -> Self {
        Self {
            class: Class::Accepted,
            path: path.to_owned(),
            reason: None,
            missing_fields: Vec::new(),
            points: Vec::new(),
            hash_actual: None,
            hash_expected: None,
            signature: None,
            notes: Vec::new(),
        }
    }

    /// One more finding: the worst class is the verdict, and the first reason of it the reason.
    fn finds(&mut self, class: Class, reason: String) {
        if class > self.class {
            self.class = class;
            if let Some(before) = self.reason.replace(reason) {
                self.notes.push(before);
            }
        } else {
            self.notes.push(reason);
        }
    }

    fn stopped(mut self, class: Class, reason: impl Into<String>) -> Self {
        self.finds(class, reason.into());
        self
    }

    /// Points with this verdict.
    #[must_use]
    pub fn n_points(&self, verdict: PointVerdict) -> usize {
        self.points.iter().filter(|(_, found)| *found == verdict).count()
    }

    /// The JSON document of the command.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let valid = self.class == Class::Accepted;
        let points: Map<String, Value> = self
            .points
            .iter()
            .map(|(point, verdict)| ((*point).to_owned(), json!(verdict.as_str())))
            .collect();
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        json!({
            "success": valid,
            "valid": valid,
            "reason": self.reason,
            "missing_fields": self.missing_fields,
            "manifest_hash_actual": self.hash_actual,
            "manifest_hash_expected": self.hash_expected,
            "path": path.display().to_string(),
            "points": points,
            "signature": self.signature.as_ref().map(SignatureReport::to_json),
            "notes": self.notes,
        })
    }

    /// The lines for people: the verdict first, then each point.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        let path = self.path.display();
        let mut lines = match &self.reason {
            None => vec![format!("OK: {path}")],
            Some(reason) => vec![format!("FAIL: {path}: {reason}")],
        };
        lines.extend(self.missing_fields.iter().map(|field| format!("  missing: {field}")));
        if !self.points.is_empty() {
            lines.push(format!(
                "  points of Annex IV: {} with evidence, {} as a statement only, {} absent",
                self.n_points(PointVerdict::Evidence),
                self.n_points(PointVerdict::Statement),
                self.n_points(PointVerdict::Absent),
            ));
        }
        for (point, verdict) in &self.points {
            let asked = REQUIREMENTS.iter().find(|asked| asked.point == *point);
            let asked = asked.map_or("", |asked| asked.requirement);
            lines.push(format!("  {point:<5} {:<9}  {asked}", verdict.as_str()));
        }
        lines.extend(self.signature.iter().map(SignatureReport::to_line));
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines
    }
}

/// Verifies one `annex_iv_metadata.json`. Nothing is written.
#[must_use]
pub fn verify_annex_iv(path: &Path, options: &AnnexIvOptions) -> AnnexIvReport {
    let report = AnnexIvReport::new(path);
    let bytes = match files::read_bounded(path, DOCUMENT_LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return report.stopped(Class::NotCompared, "larger than 16 MiB"),
        Err(FileProblem::Missing) => {
            return report.stopped(Class::NotCompared, "there is no such file");
        }
        Err(FileProblem::Unreadable(detail)) => {
            return report.stopped(Class::Unreadable, format!("cannot be read: {detail}"));
        }
        Err(problem) => return report.stopped(Class::NotCompared, problem.reason()),
    };
    let document = match parse(&bytes, DOCUMENT_LIMITS) {
        Ok(document) => document,
        Err(error) => return report.stopped(Class::NotCompared, error.to_string()),
    };
    let Some(members) = document.as_object() else {
        return report.stopped(Class::NotCompared, "not a JSON object");
    };
    let mut report = report;
    fields(members, &mut report);
    if members.get("standalone").is_some_and(|mark| *mark != json!(false)) {
        let reason = "made from a config alone: there was no training run".to_owned();
        report.finds(Class::NotCompared, reason);
    }
    points(members, options.strict, &mut report);
    // A file that says nothing needs no comparison of what it does not say.
    if report.missing_fields.is_empty() {
        hash(&document, options.allow_unhashed, &mut report);
    }
    evidence(path, members, &mut report);
    signature(path, &document, options, &mut report);
    report
}

/// The members that must say something.
fn fields(members: &Map<String, Value>, report: &mut AnnexIvReport) {
    let mut missing = Vec::new();
    for field in REQUIRED_FIELDS {
        let value = members.get(field);
        let is_sentence = PLACEHOLDER_SECTIONS.iter().any(|(name, key)| {
            let section = value.and_then(Value::as_object);
            *name == field && section.is_some_and(|s| s.len() == 1 && s.contains_key(*key))
        });
        if is_sentence || value.and_then(answer).is_none() {
            missing.push(field.to_owned());
        }
    }
    let identification = members.get("system_identification");
    if !missing.iter().any(|field| field == "system_identification") {
        for key in IDENTIFICATION {
            let text = identification.and_then(|section| section.get(key)).and_then(Value::as_str);
            if text.is_none_or(is_placeholder) {
                missing.push(format!("system_identification.{key}"));
            }
        }
    }
    let gaps = members.get("gaps").and_then(Value::as_array);
    for gap in gaps.into_iter().flatten().filter_map(Value::as_str) {
        if REQUIRED_FIELDS.contains(&gap) && !missing.iter().any(|field| field == gap) {
            missing.push(gap.to_owned());
        }
    }
    if !missing.is_empty() {
        let reason = format!("{} required fields say nothing", missing.len());
        report.finds(Class::NotCompared, reason);
    }
    report.missing_fields = missing;
}

/// The tier of the system: the stricter of the two fields.
fn is_strict_tier(members: &Map<String, Value>) -> bool {
    let tiers =
        [("system_identification", "risk_classification"), ("risk_management", "risk_category")];
    tiers.iter().any(|(section, key)| {
        let tier = members.get(*section).and_then(|section| section.get(*key));
        tier.and_then(Value::as_str).is_some_and(|tier| STRICT_TIERS.contains(&tier))
    })
}

fn points(members: &Map<String, Value>, strict: bool, report: &mut AnnexIvReport) {
    let is_strict = strict || is_strict_tier(members);
    let Some(found) = members.get("points").and_then(Value::as_object) else {
        let text = "it has no points: only the fields of the earlier format were looked at";
        if is_strict {
            report.finds(Class::NotCompared, format!("{text}, and its tier leaves none open"));
        } else {
            report.notes.push(text.to_owned());
        }
        return;
    };
    for asked in &REQUIREMENTS {
        let (verdict, problem) = verdict(found.get(asked.point));
        if let Some(problem) = problem {
            report.finds(Class::NotCompared, format!("point {}: {problem}", asked.point));
        }
        report.points.push((asked.point, verdict));
    }
    let is_known = |point: &&String| REQUIREMENTS.iter().any(|asked| asked.point == point.as_str());
    let n_unknown = found.keys().filter(|point| !is_known(point)).count();
    if n_unknown > 0 {
        report.notes.push(format!("{n_unknown} points that Annex IV does not have"));
    }
    let absent: Vec<&str> = report
        .points
        .iter()
        .filter(|(_, verdict)| *verdict == PointVerdict::Absent)
        .map(|(point, _)| *point)
        .collect();
    if is_strict && !absent.is_empty() {
        let reason = format!("{} points are absent: {}", absent.len(), absent.join(", "));
        report.finds(Class::NotCompared, reason);
    }
}

/// The verdict on a point, and what contradicts what it claims.
fn verdict(point: Option<&Value>) -> (PointVerdict, Option<&'static str>) {
    let Some(point) = point else { return (PointVerdict::Absent, Some("missing")) };
    let status = point.get("status").and_then(Value::as_str).and_then(Status::from_word);
    let has_answer = point.get("answer").and_then(answer).is_some();
    let shown = point.get("evidence").and_then(Value::as_array);
    let has_evidence = shown.is_some_and(|items| {
        !items.is_empty()
            && items.iter().all(|item| {
                let text = |key: &str| item.get(key).and_then(Value::as_str);
                let digest = text("sha256").is_some_and(|hex| unhex32(hex.as_bytes()).is_some());
                let event = text("event").is_some_and(|name| !name.trim().is_empty());
                text("file").is_some_and(|file| !file.trim().is_empty()) && (digest || event)
            })
    });
    match status {
        None => (PointVerdict::Absent, Some("its `status` is none of the three words")),
        Some(Status::NotProvided) => (PointVerdict::Absent, None),
        Some(_) if !has_answer => {
            (PointVerdict::Absent, Some("it claims an answer and has a placeholder or nothing"))
        }
        Some(Status::Statement) => (PointVerdict::Statement, None),
        Some(Status::Evidence) if has_evidence => (PointVerdict::Evidence, None),
        Some(Status::Evidence) => {
            (PointVerdict::Statement, Some("it claims evidence and names none by content"))
        }
    }
}

fn hash(document: &Value, allow_unhashed: bool, report: &mut AnnexIvReport) {
    let metadata = document.get("metadata");
    let v1 = metadata.and_then(|m| m.get("manifest_hash"));
    let v2 = metadata.and_then(|m| m.get("manifest_hash_v2"));
    if v1.is_none() && v2.is_none() {
        let text = "it has no `metadata.manifest_hash`: damage was not looked for";
        if allow_unhashed {
            report.notes.push(text.to_owned());
        } else {
            report.finds(Class::NotCompared, text.to_owned());
        }
        return;
    }
    if let Some(expected) = v1 {
        let actual = manifest_hash(document);
        report.hash_expected = expected.as_str().map(str::to_owned);
        if report.hash_expected.as_deref() != Some(&actual) {
            let reason = "its content is not what `metadata.manifest_hash` was taken over";
            report.finds(Class::Different, reason.to_owned());
        }
        report.hash_actual = Some(actual);
    }
    if let Some(expected) = v2 {
        let text = |key: &str| expected.get(key).and_then(Value::as_str);
        if text("profile") != Some("rfc8785") {
            let reason = "`metadata.manifest_hash_v2` is of a profile that is not known";
            return report.finds(Class::NotCompared, reason.to_owned());
        }
        let actual = manifest_hash_canonical(document);
        if text("sha256") != actual.as_deref() {
            let reason = "its content is not what `metadata.manifest_hash_v2` was taken over";
            report.finds(Class::Different, reason.to_owned());
        }
        if v1.is_none() {
            report.hash_expected = text("sha256").map(str::to_owned);
            report.hash_actual = actual;
        }
    }
}

/// Files that are named by content and lie where the document says, in the run's folder.
fn evidence(path: &Path, members: &Map<String, Value>, report: &mut AnnexIvReport) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let own = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    if own.file_name().is_none_or(|name| name != COMPLIANCE_DIR) {
        return;
    }
    let Some(root) = own.parent() else { return };
    let items = members.get("points").and_then(Value::as_object).into_iter().flatten();
    let items = items.filter_map(|(_, point)| point.get("evidence")?.as_array()).flatten();
    let mut named: BTreeMap<&str, &str> = BTreeMap::new();
    for item in items.filter(|item| item.get("is_input").is_none()) {
        let text = |key: &str| item.get(key).and_then(Value::as_str);
        let (Some(file), Some(sha256)) = (text("file"), text("sha256")) else { continue };
        if !is_subject_name(file) {
            let reason = format!("`{}` is no path within the run's folder", shown(file));
            return report.finds(Class::NotCompared, reason);
        }
        if named.insert(file, sha256).is_some_and(|other| other != sha256) {
            let reason = format!("{}: two points name it with different digests", shown(file));
            return report.finds(Class::NotCompared, reason);
        }
        if named.len() > FILES_MAX {
            let reason = format!("it names more than {FILES_MAX} files");
            return report.finds(Class::NotCompared, reason);
        }
    }
    let mut n_not_there = 0;
    for (file, sha256) in named {
        match files::digest(root, file) {
            Ok(found) if found.sha256 == sha256 => {}
            Ok(_) => {
                let reason = format!("{}: is not the file that was named as evidence", shown(file));
                report.finds(Class::Different, reason);
            }
            Err(FileProblem::Unreadable(detail)) => {
                report
                    .finds(Class::Unreadable, format!("{}: cannot be read: {detail}", shown(file)));
            }
            Err(_) => n_not_there += 1,
        }
    }
    if n_not_there > 0 {
        report.notes.push(format!("{n_not_there} files of evidence are not beside it"));
    }
}

fn signature(path: &Path, document: &Value, options: &AnnexIvOptions, report: &mut AnnexIvReport) {
    let expected = PredicateType::ComplianceManifest;
    let found = verify_signature(path, None, &options.keys, expected).signature;
    let pointer = document.pointer("/metadata/manifest_signature");
    match found.state {
        SignatureState::Valid => {
            let claimed = pointer.and_then(|pointer| pointer.get("keyid")).and_then(Value::as_str);
            if claimed.is_some() && claimed != found.keyid.as_deref() {
                let text =
                    "`metadata.manifest_signature` names another key than the one that signed";
                report.notes.push(text.to_owned());
            }
        }
        SignatureState::Absent => {
            let text = match pointer {
                Some(_) => "there is no signature, and it says that there was one",
                None => "there is no signature",
            };
            let text = format!("{text}: {}", shown(&found.place));
            if options.allow_unsigned {
                report.notes.push(text);
            } else {
                report.finds(Class::NotCompared, text);
            }
        }
        _ => {
            let reason = found.reason.clone().unwrap_or_default();
            let state = found.state.as_str();
            let place = shown(&found.place);
            report.finds(found.class, format!("signature: {state}: {place}: {reason}"));
        }
    }
    report.signature = Some(found);
}
