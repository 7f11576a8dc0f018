//! What is said of a pipeline when it stops.

use super::plan::PipelinePlan;
use crate::exit::Exit;
use forgelm_evidence::pipeline::PIPELINE_MANIFEST;
use forgelm_evidence::pipeline::state::{PipelineState, StageRow, StageStatus};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// A pipeline that stopped: ended, or waiting, or interrupted.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// As it is written.
    pub state: PipelineState,
    /// Its folder.
    pub dir: PathBuf,
    /// How the program ends.
    pub exit: Exit,
    is_signed: bool,
}

impl Ended {
    pub(super) fn of(plan: &PipelinePlan, state: PipelineState, exit: Exit) -> Self {
        let is_signed = plan.root.run.signing().enabled;
        Self { state, dir: plan.dir.clone(), exit, is_signed }
    }

    /// The stage that stopped it, or runs still.
    fn stopped(&self) -> Option<&StageRow> {
        let is_it = |row: &&StageRow| {
            self.state.stopped_at.as_deref() == Some(&row.name)
                || row.status == StageStatus::Running
        };
        self.state.stages.iter().find(is_it)
    }

    /// Why it ended without a model, if it did.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let row = self.stopped().filter(|_| self.exit != Exit::Success);
        match (self.exit, row) {
            (Exit::Success | Exit::AwaitingApproval, _) => None,
            (Exit::Interrupted, row) => {
                let place = row.map_or_else(String::new, |row| format!(" in stage `{}`", row.name));
                let detail = row.and_then(|row| row.error.clone());
                let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
                Some(format!(
                    "interrupted{place}{detail}\n  hint: `--resume` goes on where it stopped"
                ))
            }
            (_, row) => Some(match row {
                Some(row) => {
                    let detail = row.error.as_deref().unwrap_or("it has no model");
                    match detail.starts_with("stage `") {
                        true => detail.to_owned(),
                        false => format!("stage `{}`: {detail}", row.name),
                    }
                }
                None => "a stage failed".to_owned(),
            }),
        }
    }

    /// The result for a program: the state, and whether it went well.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let is_well = matches!(self.exit, Exit::Success | Exit::AwaitingApproval);
        let mut json = json!({"success": is_well, "output_dir": self.dir});
        if let (Value::Object(members), Some(all)) = (self.state.to_json(), json.as_object_mut()) {
            all.extend(members);
        }
        json
    }

    /// The result for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let width = self.state.stages.iter().map(|row| row.name.len()).max().unwrap_or(0);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "pipeline  {}", self.state.pipeline_run_id);
        for row in &self.state.stages {
            let exit = row.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string());
            let output = row.output_model.as_ref().map(|below| self.dir.join(below));
            let output = output.map_or_else(|| "-".to_owned(), |path| path.display().to_string());
            let _ = writeln!(
                text,
                "{} {:width$}  {:5} {:<27} exit {exit}  {output}",
                row.index + 1,
                row.name,
                row.trainer_type,
                row.status.as_str(),
            );
        }
        let dir = self.dir.display();
        let signed = if self.is_signed { " (signed)" } else { "" };
        let _ = writeln!(text, "manifest  {dir}/{PIPELINE_MANIFEST}{signed}");
        let _ = writeln!(text, "verify    forgelm verify-annex-iv --pipeline {dir}");
        let gated =
            self.state.stages.iter().find(|r| r.status == StageStatus::GatedPendingApproval);
        if let Some(row) = gated.filter(|_| self.exit == Exit::AwaitingApproval) {
            let folder =
                row.training_manifest.as_deref().and_then(|path| path.split("/compliance/").next());
            let (run, folder) = (row.run_id.as_deref().unwrap_or("RUN"), folder.unwrap_or(""));
            let _ = writeln!(
                text,
                "waits     for approval: forgelm approve {run} --output-dir {dir}/{folder}; then go on \
                 with --resume"
            );
        }
        text
    }
}
