//! How the last run in a folder ended, from its own evidence: for `--resume`, which must not do
//! again what is done.
//!
//! Nothing is verified here: this only decides what is said and that nothing is trained.

use crate::output::OutputDir;
use forgelm_evidence::audit::LOG_FILE;
use serde_json::Value;

/// A run that left all its evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its id.
    pub(crate) run_id: String,
    /// `promoted`, `staged` or `reverted`.
    pub(crate) outcome: String,
    /// Why gates rejected the model.
    pub(crate) reasons: Vec<String>,
}

/// The run whose documents are in the folder, if its last words are in the audit log.
pub(crate) fn last(output: &OutputDir) -> Option<Ended> {
    let report = output.root().join("compliance/compliance_report.json");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).ok()?).ok()?;
    let run_id = report["run_id"].as_str()?.to_owned();
    let log = std::fs::read_to_string(output.root().join(LOG_FILE)).ok()?;
    let is_last_word = |line: &str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        line.is_some_and(|line| {
            let event = line["event"].as_str();
            line["run_id"] == run_id.as_str()
                && matches!(event, Some("pipeline.completed" | "human_approval.required"))
        })
    };
    let gates = report["gates"].as_array().cloned().unwrap_or_default();
    let reasons = gates.iter().filter_map(|gate| gate["reason"].as_str().map(str::to_owned));
    log.lines().rev().any(is_last_word).then(|| Ended {
        outcome: report["outcome"].as_str().unwrap_or_default().to_owned(),
        reasons: reasons.collect(),
        run_id,
    })
}
