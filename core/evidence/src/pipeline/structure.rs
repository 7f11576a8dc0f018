//! What a manifest must have, the chain from stage to stage, and its own hash.

use serde_json::{Map, Value};

use super::{HashState, PipelineReport, ViolationKind, stage_name};
use crate::manifest_hash::manifest_hash;
use crate::text::shown;

/// Members that must say something, `stages` aside.
const REQUIRED: [&str; 5] =
    ["forgelm_version", "pipeline_run_id", "pipeline_config_hash", "started_at", "final_status"];
/// Where a stage's model comes from when it is the one before's.
const CHAIN: &str = "chain";
/// The status of a pipeline that has not ended.
const IN_PROGRESS: &str = "in_progress";

pub(super) fn check(members: &Map<String, Value>, report: &mut PipelineReport) {
    for key in REQUIRED {
        let text = members.get(key).and_then(Value::as_str);
        if text.is_none_or(|text| text.trim().is_empty()) {
            let reason = format!("`{key}` is missing or says nothing; expected text");
            report.breaks(ViolationKind::RequiredKey, reason);
        }
    }
    let stages = match members.get("stages") {
        Some(Value::Array(stages)) => stages,
        Some(_) => {
            return report.breaks(ViolationKind::Stages, "`stages` is not a list of stages");
        }
        None => return report.breaks(ViolationKind::RequiredKey, "`stages` is missing"),
    };
    for (at, stage) in stages.iter().enumerate() {
        let Some(stage) = stage.as_object() else {
            report.breaks(ViolationKind::Stages, format!("stage {at} is not an object"));
            continue;
        };
        let name = stage_name(at, stage);
        if stage.get("index").and_then(Value::as_u64) != Some(at as u64) {
            let found = stage.get("index").unwrap_or(&Value::Null);
            let reason = format!("{name}: `index` is {}; expected {at}", value(found));
            report.breaks(ViolationKind::StageIndex, reason);
        }
        if stage.get("input_source").and_then(Value::as_str) == Some(CHAIN) {
            let before = at.checked_sub(1).and_then(|before| stages.get(before));
            chain_link(&name, stage, before, report);
        }
    }
    stopped_at(members, stages, report);
    let final_status = members.get("final_status").and_then(Value::as_str);
    if final_status.is_some_and(|status| status != IN_PROGRESS) {
        for (at, stage) in stages.iter().enumerate().filter(|(_, s)| status(s) == Some("running")) {
            let name = stage.as_object().map_or_else(String::new, |s| stage_name(at, s));
            let reason = format!("{name} is `running`, and the pipeline has ended");
            report.breaks(ViolationKind::StillRunning, reason);
        }
    }
}

/// A value in a message: short, and never a line of its own.
fn value(value: &Value) -> String {
    let text: String = value.to_string().chars().take(80).collect();
    shown(&text).into_owned()
}

fn status(stage: &Value) -> Option<&str> {
    stage.get("status").and_then(Value::as_str)
}

fn chain_link(
    name: &str,
    stage: &Map<String, Value>,
    before: Option<&Value>,
    report: &mut PipelineReport,
) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let Some(before) = before else {
        let reason = format!("{name} is chained, and no stage comes before it");
        return report.breaks(ViolationKind::ChainLink, reason);
    };
    let Some(made) = text(before.get("output_model")).filter(|made| !made.is_empty()) else {
        let reason = format!("{name} is chained, and the stage before it has no `output_model`");
        return report.breaks(ViolationKind::ChainLink, reason);
    };
    let takes = text(stage.get("input_model"));
    if takes.as_deref() != Some(&made) {
        let takes = takes.as_deref().unwrap_or("nothing");
        let reason = format!(
            "{name}: `input_model` is `{}`; expected `{}`, which the stage before it made",
            shown(takes),
            shown(&made)
        );
        report.breaks(ViolationKind::ChainLink, reason);
    }
}

fn stopped_at(members: &Map<String, Value>, stages: &[Value], report: &mut PipelineReport) {
    let Some(stopped) = members.get("stopped_at").filter(|stopped| !stopped.is_null()) else {
        return;
    };
    let named = stages.iter().filter(|stage| stage.get("name") == Some(stopped));
    let states: Vec<Option<&str>> = named.map(status).collect();
    let has_stopped = |s: &Option<&str>| matches!(s, Some("failed" | "gated_pending_approval"));
    if !states.iter().any(has_stopped) {
        let what = if states.is_empty() { "no stage" } else { "a stage that did not stop" };
        let reason = format!(
            "`stopped_at` is {}, {what}; expected one that is `failed` or `gated_pending_approval`",
            value(stopped)
        );
        report.breaks(ViolationKind::StoppedAt, reason);
    }
}

/// The hash of the manifest within itself.
pub(super) fn check_hash(manifest: &Value, report: &mut PipelineReport) {
    let expected = manifest.get("metadata").and_then(|metadata| metadata.get("manifest_hash"));
    let Some(expected) = expected.filter(|hash| !hash.is_null()) else { return };
    let actual = manifest_hash(manifest);
    if expected.as_str() == Some(&actual) {
        report.hash_state = HashState::Verified;
        return;
    }
    report.hash_state = HashState::Mismatch;
    let reason = format!(
        "the manifest's content is not what `metadata.manifest_hash` was taken over: {actual}; \
         expected {}",
        value(expected)
    );
    report.breaks(ViolationKind::ManifestHash, reason);
}
