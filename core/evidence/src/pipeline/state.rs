//! The state of a pipeline: what its stages are, what each began at, and what came of it.
//!
//! `pipeline_state.json` is this as it stands, with the config that it belongs to; the manifest
//! ([`super::write`]) is made of the same rows. Paths of what a stage reads from another and writes are
//! relative to the pipeline's folder, with `/`, so that the folder can be moved; a model of the config
//! or the command line is named as it is there.

use std::collections::BTreeMap;
use std::path::Path;

use forgelm_artifact::json;
use forgelm_artifact::write::{self, WriteError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files::{self, FileProblem};
use crate::strict_json::parse;
use crate::text::shown;

/// Name of the state, in the folder of a pipeline.
pub const STATE_FILE: &str = "pipeline_state.json";

/// How a pipeline stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalStatus {
    /// It has not ended: it runs, was stopped, or has stages that nobody asked for yet.
    InProgress,
    /// Every stage has a model.
    Completed,
    /// A stage ended without one.
    StoppedAtStage,
    /// The model of a stage waits for people.
    GatedPendingApproval,
}

/// How a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageStatus {
    /// It has not begun.
    Pending,
    /// It has begun, and did not end.
    Running,
    /// It has a model.
    Completed,
    /// It ended without one.
    Failed,
    /// Its model waits for people.
    GatedPendingApproval,
    /// A stage before it ended without a model.
    SkippedDueToPriorRevert,
    /// Another stage was asked for.
    SkippedByFilter,
}

impl StageStatus {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::GatedPendingApproval => "gated_pending_approval",
            Self::SkippedDueToPriorRevert => "skipped_due_to_prior_revert",
            Self::SkippedByFilter => "skipped_by_filter",
        }
    }
}

/// Where the model comes from at which a stage begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSource {
    /// The root's `model`.
    Root,
    /// The stage before.
    Chain,
    /// The stage's own `model`.
    StageExplicit,
    /// `--input-model`.
    CliOverride,
}

impl InputSource {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Chain => "chain",
            Self::StageExplicit => "stage_explicit",
            Self::CliOverride => "cli_override",
        }
    }
}

/// What the gates of a stage said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateDecision {
    /// It has a model.
    Passed,
    /// It has none.
    Failed,
}

/// An adapter that was folded into its base, so that a stage can begin at both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartModel {
    /// Its folder, below the pipeline's.
    pub path: String,
    /// The base that the adapter names.
    pub base_model: String,
    /// SHA-256 of the adapter's weights.
    pub adapter_sha256: String,
    /// SHA-256 of what came of both: the base of what the stage trains.
    pub sha256: String,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRow {
    /// Its name in the config.
    pub name: String,
    /// Its place, from 0.
    pub index: usize,
    /// Its trainer.
    pub trainer_type: String,
    /// How it stands.
    pub status: StageStatus,
    /// What it begins at.
    #[serde(default)]
    pub input_model: Option<String>,
    /// Where that comes from.
    #[serde(default)]
    pub input_source: Option<InputSource>,
    /// What it trains on top of, where `input_model` is an adapter.
    #[serde(default)]
    pub start_model: Option<StartModel>,
    /// The tuned model, staged or not.
    #[serde(default)]
    pub output_model: Option<String>,
    /// When it began, the last time.
    #[serde(default)]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<String>,
    /// Between the two.
    #[serde(default)]
    pub duration_seconds: Option<f64>,
    /// Its summary, below the pipeline's folder.
    #[serde(default)]
    pub training_manifest: Option<String>,
    /// SHA-256 of that file.
    #[serde(default)]
    pub training_manifest_sha256: Option<String>,
    /// The run that it was, as its own audit log has it.
    #[serde(default)]
    pub run_id: Option<String>,
    /// Its final numbers; those that are not finite are left out.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// What its gates said.
    #[serde(default)]
    pub gate_decision: Option<GateDecision>,
    /// What gates said against a model that is kept all the same.
    #[serde(default)]
    pub gate_failures: Vec<String>,
    /// Whether a gate had the model deleted.
    #[serde(default)]
    pub auto_revert_triggered: bool,
    /// Why it did not run.
    #[serde(default)]
    pub skipped_reason: Option<String>,
    /// As if it had been a run of its own.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// Why it ended without a model.
    #[serde(default)]
    pub error: Option<String>,
}

impl StageRow {
    /// A stage that has not begun.
    #[must_use]
    pub fn new(index: usize, name: &str, trainer_type: &str) -> Self {
        Self {
            name: name.to_owned(),
            index,
            trainer_type: trainer_type.to_owned(),
            status: StageStatus::Pending,
            input_model: None,
            input_source: None,
            start_model: None,
            output_model: None,
            started_at: None,
            finished_at: None,
            duration_seconds: None,
            training_manifest: None,
            training_manifest_sha256: None,
            run_id: None,
            metrics: BTreeMap::new(),
            gate_decision: None,
            gate_failures: Vec::new(),
            auto_revert_triggered: false,
            skipped_reason: None,
            exit_code: None,
            error: None,
        }
    }

    /// Takes in final numbers, as far as JSON has them.
    pub fn measure(&mut self, metrics: &BTreeMap<String, f64>) {
        let finite = metrics.iter().filter(|(_, value)| value.is_finite());
        self.metrics = finite.map(|(name, value)| (name.clone(), *value)).collect();
    }
}

/// A change of the config that somebody forced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForcedResume {
    /// When.
    pub at: String,
    /// Who.
    pub operator: String,
    /// The config so far.
    pub old_config_hash: String,
    /// And from then on.
    pub new_config_hash: String,
}

/// A pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineState {
    /// `pl_`, the day, and six hex digits.
    pub pipeline_run_id: String,
    /// `sha256:` and the digest of the bytes of its config.
    pub pipeline_config_hash: String,
    /// The program that wrote this.
    pub forgelm_version: String,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<String>,
    /// How it stands.
    pub final_status: FinalStatus,
    /// The stage that stopped it.
    #[serde(default)]
    pub stopped_at: Option<String>,
    /// Its stages, in order.
    pub stages: Vec<StageRow>,
    /// Changes of the config that were forced.
    #[serde(default)]
    pub forced_resumes: Vec<ForcedResume>,
    /// The config, without addresses and secrets: what a later one is compared with.
    #[serde(default)]
    pub config: Value,
}

/// Why there is no state to go on from.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is none.
    #[error("{STATE_FILE}: missing")]
    Missing,
    /// It is none.
    #[error("{STATE_FILE}: {0}")]
    Malformed(String),
    /// The system refuses to read it.
    #[error("{STATE_FILE}: cannot be read: {0}")]
    Unreadable(String),
}

impl PipelineState {
    /// The state in the folder of a pipeline. Members that this version does not know are passed over,
    /// and those that it could do without may be missing.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(dir: &Path) -> Result<Self, StateError> {
        let bytes = match files::read_below(dir, STATE_FILE, super::LIMITS.size_bytes) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(StateError::Malformed("larger than 8 MiB".to_owned())),
            Err(FileProblem::Missing) => return Err(StateError::Missing),
            Err(FileProblem::Unreadable(detail)) => return Err(StateError::Unreadable(detail)),
            Err(problem) => return Err(StateError::Malformed(problem.reason())),
        };
        let value =
            parse(&bytes, super::LIMITS).map_err(|e| StateError::Malformed(e.to_string()))?;
        let malformed = |e: serde_json::Error| StateError::Malformed(shown(&e.to_string()).into());
        let state: Self = serde_json::from_value(value).map_err(malformed)?;
        match state.stages.iter().enumerate().find(|(i, stage)| stage.index != *i) {
            None => Ok(state),
            Some((i, stage)) => {
                let name = shown(&stage.name);
                let text = format!("stage `{name}` has the index {}; expected {i}", stage.index);
                Err(StateError::Malformed(text))
            }
        }
    }

    /// Writes the state into the folder of its pipeline.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, dir: &Path) -> Result<(), WriteError> {
        let text = json::pretty(&json!(self));
        write::atomic(&dir.join(STATE_FILE), text.as_bytes())
    }

    /// The state as programs are shown it: without the config.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = json!(self);
        if let Some(members) = value.as_object_mut() {
            members.shift_remove("config");
        }
        value
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test damages a file")]
mod tests {
    use super::*;

    fn state() -> PipelineState {
        let mut stage = StageRow::new(0, "first", "sft");
        stage.measure(&[("loss".to_owned(), 0.5), ("bad".to_owned(), f64::NAN)].into());
        PipelineState {
            pipeline_run_id: "pl_2026-01-01_a1b2c3".to_owned(),
            pipeline_config_hash: format!("sha256:{}", "0".repeat(64)),
            forgelm_version: "0.0.0".to_owned(),
            started_at: "2026-01-01T00:00:00+00:00".to_owned(),
            finished_at: None,
            final_status: FinalStatus::InProgress,
            stopped_at: None,
            stages: vec![stage, StageRow::new(1, "second", "dpo")],
            forced_resumes: Vec::new(),
            config: json!({"model": {"name_or_path": "m"}}),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_bad_ones_say_why() {
        let dir = tempfile::tempdir().unwrap();
        let read = || PipelineState::read(dir.path()).map_err(|error| error.to_string());
        assert_eq!(read().unwrap_err(), "pipeline_state.json: missing");
        state().write(dir.path()).unwrap();
        assert_eq!(read().unwrap(), state());
        assert_eq!(state().stages[0].metrics.len(), 1, "what is not finite is left out");
        assert!(state().to_json().get("config").is_none());
        let path = dir.path().join(STATE_FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        for (from, to, said) in [
            ("\"in_progress\"", "\"over\"", "unknown variant `over`"),
            ("\"pending\"", "7", "invalid type"),
            ("\"index\": 1", "\"index\": 0", "stage `second` has the index 0; expected 1"),
            ("{", "[", "expected"),
            ("\"stages\"", "\"stadia\"", "missing field `stages`"),
        ] {
            assert!(good.contains(from), "{from}");
            std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let error = read().unwrap_err();
            assert!(error.contains(said), "{from}: {error}");
        }
        // Members of a later version are passed over, and those of an earlier one may be missing.
        let lean = good.replacen("{", "{\"later\": 1,", 1).replace("\"gate_failures\": [],", "");
        std::fs::write(&path, lean).unwrap();
        assert_eq!(read().unwrap(), state());
    }
}
