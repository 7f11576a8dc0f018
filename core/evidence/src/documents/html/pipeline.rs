//! The report of a pipeline, from its manifest alone.

use maud::{Markup, html};
use serde_json::Value;
use std::path::{Component, Path};

use super::REPORT;
use super::number::{count, member, real, seconds, value, words};
use super::page::{Part, command, page, pairs, table};

/// File name of a pipeline's report, beside its manifest in `compliance/`.
pub const PIPELINE_REPORT: &str = "pipeline_report.html";

/// The page of a pipeline: the chain, and each stage with its gate and a link to its own report.
///
/// `manifest` is `pipeline_manifest.json`; what it does not say is shown as not known. Paths in it are
/// below the pipeline's folder, and the page is for `compliance/` in that folder.
#[must_use]
pub fn pipeline_report(manifest: &Value) -> String {
    let text = |key: &str| manifest.get(key).and_then(Value::as_str).unwrap_or("not known");
    let stages = manifest.get("stages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let title = format!("Pipeline report: {}", text("pipeline_run_id"));
    let keys = [
        ("pipeline", "pipeline_run_id"),
        ("status", "final_status"),
        ("stopped at", "stopped_at"),
        ("started", "started_at"),
        ("finished", "finished_at"),
        ("config", "pipeline_config_hash"),
    ];
    let rows: Vec<(String, String)> = keys
        .into_iter()
        .filter_map(|(name, key)| Some((name, manifest.get(key).filter(|of| !of.is_null())?)))
        .map(|(name, of)| (name.to_owned(), value(of)))
        .collect();
    let parts = [
        Part { id: "summary", title: "Summary", body: pairs("The pipeline", &rows) },
        Part { id: "chain", title: "Chain", body: chain(stages) },
        Part {
            id: "stages",
            title: "Stages",
            body: html! { @for stage in stages { (one(stage)) } @if stages.is_empty() { p { "None." } } },
        },
        Part {
            id: "verify",
            title: "Verify",
            body: html! {
                p { "This page repeats " code { "compliance/pipeline_manifest.json" } ". In the pipeline's folder, the manifest, \
                     the chain and the evidence of every stage are verified by" }
                (command("forgelm verify-annex-iv --pipeline . --key signer.pub"))
            },
        },
    ];
    let foot = html! { p { "Made by ForgeLM " (text("forgelm_version")) " at " (text("generated_at")) "." } };
    page(&title, &verdict(manifest, stages), &parts, &foot)
}

fn verdict(manifest: &Value, stages: &[Value]) -> Markup {
    let status = manifest.get("final_status").and_then(Value::as_str).unwrap_or_default();
    let n_done = stages.iter().filter(|stage| stage["status"] == "completed").count();
    let (class, word) = match status {
        "completed" => ("good", "Completed."),
        "gated_pending_approval" => ("wait", "Waits for approval."),
        "stopped_at_stage" => ("bad", "Stopped."),
        "in_progress" => ("wait", "In progress."),
        _ => ("wait", "Its end is not known."),
    };
    html! {
        div class={ "verdict " (class) } {
            p { b class=(class) { (word) } " " (count(n_done as u64)) " of " (count(stages.len() as u64)) " stages are completed." }
        }
    }
}

/// A path for people, or that there is none.
fn shown(stage: &Value, key: &str) -> String {
    stage.get(key).filter(|of| !of.is_null()).map_or_else(|| "–".to_owned(), value)
}

fn chain(stages: &[Value]) -> Markup {
    let rows: Vec<Vec<String>> = stages
        .iter()
        .enumerate()
        .map(|(i, stage)| {
            let mut row = vec![count(i as u64 + 1)];
            let keys =
                ["name", "trainer_type", "input_model", "output_model", "status", "gate_decision"];
            row.extend(keys.map(|key| shown(stage, key)));
            row
        })
        .collect();
    table(
        "Each stage begins with the model that the one before it made, unless it names another",
        &["", "stage", "trainer", "from", "to", "status", "gates"],
        &[true],
        &rows,
    )
}

fn one(stage: &Value) -> Markup {
    let name = shown(stage, "name");
    let keys = [
        "status",
        "trainer_type",
        "input_model",
        "input_source",
        "output_model",
        "started_at",
        "finished_at",
        "gate_decision",
        "auto_revert_triggered",
        "skipped_reason",
        "exit_code",
        "error",
    ];
    let mut rows: Vec<(String, String)> = keys
        .into_iter()
        .filter_map(|key| Some((key, stage.get(key).filter(|of| !of.is_null())?)))
        .map(|(key, of)| (words(key), value(of)))
        .collect();
    rows.extend(member(stage, "duration_seconds").map(|s| ("took".to_owned(), seconds(s))));
    let metrics = stage.get("metrics").and_then(Value::as_object);
    let metrics: Vec<Vec<String>> = metrics
        .into_iter()
        .flatten()
        .map(|(name, of)| vec![name.clone(), of.as_f64().map_or_else(|| value(of), real)])
        .collect();
    html! {
        h3 { (name) }
        (pairs("The stage", &rows))
        @if !metrics.is_empty() { (table("Its numbers", &["name", "value"], &[false, true], &metrics)) }
        @match report_of(stage) {
            Some(link) => p { a href=(link) { "The report of this stage" } },
            None => p.note { "There is no report of this stage below this folder." },
        }
    }
}

/// Where the report of a completed stage is, as seen from `compliance/`: beside its other documents. A
/// path that leaves the pipeline's folder is no link.
fn report_of(stage: &Value) -> Option<String> {
    let is_ended = matches!(
        stage.get("status").and_then(Value::as_str),
        Some("completed" | "gated_pending_approval")
    );
    let documents =
        Path::new(stage.get("training_manifest")?.as_str().filter(|_| is_ended)?).parent()?;
    let mut link = "..".to_owned();
    for part in documents.components() {
        match part {
            Component::Normal(name) => link = format!("{link}/{}", encoded(name.to_str()?)),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(format!("{link}/{REPORT}"))
}

/// A name as a part of an address.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
