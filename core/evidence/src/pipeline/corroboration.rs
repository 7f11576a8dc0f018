//! What the audit log of the pipeline says of its stages, against what the manifest says.
//!
//! A log counts when it is attested: every line by an HMAC under the secret, or all of it by a signed
//! checkpoint of a trusted key. One that is not says nothing, which is no violation unless it must.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{PipelineOptions, PipelineReport, ViolationKind};
use crate::audit::LOG_FILE;
use crate::audit::verify::{AuditOptions, verify_audit};
use crate::checkpoint::{CHECKPOINT_FILE, Checkpoint};
use crate::class::Class;
use crate::dsse::statement::PredicateType;
use crate::dsse::verify::SignatureState;
use crate::files::{self, FileProblem};
use crate::signature::{check_envelope_file, neighbouring_key};
use crate::strict_json::{Limits, parse};

/// A pipeline's log that is read into memory.
const LOG_LIMITS: Limits = Limits { size_bytes: 32 << 20, depth: 64 };

/// Whether the log agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It does.
    Corroborated,
    /// It says something else, or was changed.
    Contradicted,
    /// It shows nothing.
    Unattested,
}

impl Outcome {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Corroborated => "corroborated",
            Self::Contradicted => "contradicted",
            Self::Unattested => "unattested",
        }
    }
}

/// What the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corroboration {
    /// Whether it agrees.
    pub outcome: Outcome,
    /// Why, as one word.
    pub reason: &'static str,
    /// Events of this pipeline that were looked at.
    pub events_examined: usize,
    /// Stages that passed their gates, as the log says.
    pub stages_asserted: usize,
}

impl Corroboration {
    const fn new(outcome: Outcome, reason: &'static str) -> Self {
        Self { outcome, reason, events_examined: 0, stages_asserted: 0 }
    }

    /// The member of the JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "outcome": self.outcome.as_str(),
            "reason": self.reason,
            "events_examined": self.events_examined,
            "stages_asserted": self.stages_asserted,
        })
    }
}

pub(super) fn check(
    dir: &Path,
    members: &Map<String, Value>,
    options: &PipelineOptions<'_>,
    report: &mut PipelineReport,
) {
    let mut detail = String::new();
    let found = corroborate(dir, members, options, &mut detail);
    let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
    let reason = format!("{LOG_FILE}: {} ({}){detail}", found.outcome.as_str(), found.reason);
    match found.outcome {
        Outcome::Corroborated => {}
        Outcome::Contradicted => report.breaks(ViolationKind::AuditContradicts, reason),
        Outcome::Unattested if found.reason == "audit_log_unreadable" => {
            report.breaks(ViolationKind::Unreadable, reason);
        }
        Outcome::Unattested if options.require_corroboration => {
            report.breaks(ViolationKind::AuditUnattested, reason);
        }
        Outcome::Unattested => report.notes.push(reason),
    }
    report.corroboration = Some(found);
}

/// In the order of the specification's table. `detail` is what a person is told beside the word.
fn corroborate(
    dir: &Path,
    members: &Map<String, Value>,
    options: &PipelineOptions<'_>,
    detail: &mut String,
) -> Corroboration {
    let unattested = |reason| Corroboration::new(Outcome::Unattested, reason);
    let contradicted = |reason| Corroboration::new(Outcome::Contradicted, reason);
    let run_id = members.get("pipeline_run_id").and_then(Value::as_str);
    let Some(run_id) = run_id.filter(|id| !id.trim().is_empty()) else {
        return unattested("manifest_has_no_run_id");
    };
    let path = dir.join(LOG_FILE);
    if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return unattested("audit_log_absent");
    }
    let checkpoint = checkpoint(dir, &path, options, detail);
    let checkpoint = match checkpoint {
        Ok(checkpoint) => checkpoint,
        Err(Class::Different) => return contradicted("audit_log_integrity"),
        Err(_) => return unattested("audit_log_unreadable"),
    };
    if options.secret.is_none() && checkpoint.is_none() {
        return unattested("no_audit_secret");
    }
    let bytes = match files::read_below(dir, LOG_FILE, LOG_LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return unattested("audit_log_oversize"),
        Err(FileProblem::Unreadable(reason)) => {
            *detail = reason;
            return unattested("audit_log_unreadable");
        }
        Err(problem) => {
            *detail = problem.reason();
            return unattested("audit_log_not_found");
        }
    };
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return contradicted("audit_log_encoding");
    };
    if text.trim().is_empty() {
        return unattested("audit_log_empty");
    }
    let mut events = Vec::new();
    for (at, line) in text.lines().enumerate() {
        match parse(line.as_bytes(), LOG_LIMITS) {
            Ok(Value::Object(event)) => events.push(event),
            Ok(_) | Err(_) => {
                *detail = format!("line {} is not a JSON object", at + 1);
                return contradicted("audit_log_malformed");
            }
        }
    }
    let is_tagged = events.iter().all(|event| event.contains_key("_hmac"));
    let has_secret = options.secret.is_some();
    let is_covered = checkpoint.as_ref().is_some_and(|head| head.entries == events.len() as u64);
    let is_attested = is_covered || (is_tagged && has_secret);
    if !is_attested {
        return unattested("audit_log_unsigned");
    }
    let audit = AuditOptions {
        secret: options.secret,
        require_hmac: has_secret && is_tagged,
        expected_heads: checkpoint.into_iter().collect(),
        keys: Some(&options.keys),
    };
    if let Err(rejection) = verify_audit(&path, &audit) {
        *detail = rejection.to_string();
        return match rejection.class() {
            Class::Unreadable => unattested("audit_log_unreadable"),
            _ => contradicted("audit_log_integrity"),
        };
    }
    census(run_id, members, &events, detail)
}

/// The head that a trusted key signed, if there is one; a class if the checkpoint is no good.
fn checkpoint(
    dir: &Path,
    log: &Path,
    options: &PipelineOptions<'_>,
    detail: &mut String,
) -> Result<Option<crate::audit::verify::ExpectedHead>, Class> {
    let (keys, neighbour) = (&options.keys, neighbouring_key(log));
    let (path, kind) = (dir.join(CHECKPOINT_FILE), PredicateType::AuditCheckpoint);
    let checked = check_envelope_file(&path, CHECKPOINT_FILE, keys, neighbour.as_ref(), kind);
    if checked.report.class > Class::NotCompared {
        *detail = checked.report.reason.unwrap_or_default();
        return Err(checked.report.class);
    }
    let is_valid = checked.report.state == SignatureState::Valid;
    let statement = checked.statement.filter(|_| is_valid);
    Ok(statement.and_then(|s| Checkpoint::head_of(&s.predicate, "the checkpoint").ok()))
}

/// What the events of a log say of a pipeline, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Events of this pipeline.
    pub n_events: usize,
    /// Those of its stages.
    pub n_stage_events: usize,
    /// Whether it says that the pipeline ended.
    pub has_ended: bool,
    /// The stages that have passed and did not begin again, nor one before them, with their places.
    pub live: BTreeMap<String, Option<u64>>,
}

impl Replay {
    /// Of the events of the pipeline `run_id`.
    #[must_use]
    pub fn of(events: &[Map<String, Value>], run_id: &str) -> Self {
        let text = |event: &Map<String, Value>, key: &str| {
            event.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        let is_of_run = |event: &&Map<String, Value>| {
            let is = |key: &str| event.get(key).and_then(Value::as_str) == Some(run_id);
            is("run_id") || is("pipeline_run_id")
        };
        let (mut found, mut places) = (Self::default(), BTreeMap::new());
        for event in events.iter().filter(is_of_run) {
            found.n_events += 1;
            let name = text(event, "event").unwrap_or_default();
            found.has_ended |= name == "pipeline.completed";
            if !name.starts_with("pipeline.stage_") {
                continue;
            }
            found.n_stage_events += 1;
            let stage = text(event, "stage_name").unwrap_or_default();
            let place = event.get("stage_index").and_then(Value::as_u64);
            if name == "pipeline.stage_started" {
                if let Some(place) = place {
                    found.live.retain(|_, other| other.is_none_or(|other| other < place));
                    places.insert(stage.clone(), place);
                }
                found.live.remove(&stage);
            } else if name == "pipeline.stage_completed"
                && text(event, "gate_decision").as_deref() == Some("passed")
            {
                let place = places.get(&stage).copied();
                found.live.insert(stage, place);
            } else {
                found.live.remove(&stage);
            }
        }
        found
    }

    /// Of the log in a pipeline's folder, as far as it can be read: nothing is verified.
    #[must_use]
    pub fn of_log(dir: &Path, run_id: &str) -> Self {
        let text = std::fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default();
        let events: Vec<Map<String, Value>> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Self::of(&events, run_id)
    }
}

/// Replays what the log says of the stages, and looks for each that passed in the manifest.
fn census(
    run_id: &str,
    members: &Map<String, Value>,
    events: &[Map<String, Value>],
    detail: &mut String,
) -> Corroboration {
    let mut found = Corroboration::new(Outcome::Corroborated, "stage_census_agrees");
    let Replay { n_events, n_stage_events, has_ended, live } = Replay::of(events, run_id);
    found.events_examined = n_events;
    found.stages_asserted = live.len();
    let unattested = |found: Corroboration, reason| Corroboration {
        outcome: Outcome::Unattested,
        reason,
        ..found
    };
    if n_stage_events == 0 {
        return unattested(found, "no_events_for_run_id");
    }
    let final_status = members.get("final_status").and_then(Value::as_str);
    if matches!(final_status, Some("completed" | "stopped_at_stage")) && !has_ended {
        return unattested(found, "run_terminal_event_absent");
    }
    let stages = members.get("stages").and_then(Value::as_array);
    let completed: Vec<&str> = stages
        .into_iter()
        .flatten()
        .filter(|stage| stage.get("status").and_then(Value::as_str) == Some("completed"))
        .filter_map(|stage| stage.get("name")?.as_str())
        .collect();
    if let Some(stage) = live.keys().find(|stage| !completed.contains(&stage.as_str())) {
        *detail = format!(
            "the log says that stage `{}` passed, and the manifest does not",
            crate::text::shown(stage)
        );
        return Corroboration {
            outcome: Outcome::Contradicted,
            reason: "stage_census_mismatch",
            ..found
        };
    }
    if live.is_empty() {
        found.reason = "no_passed_stage_assertions";
    }
    found
}
