//! What a run leaves for its documents: plain data, filled by the run as its stages finish.

use std::collections::BTreeMap;

use forgelm_artifact::UtcTime;
use serde_json::{Map, Value, json};

use super::facts::TechnicalFacts;
use crate::BUILDER_NAME;
use crate::gate::Check;

/// Everything the documents of one run are made from.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// `fg-` and 12 hex digits.
    pub run_id: String,
    /// The pipeline this run is a stage of.
    pub pipeline_run_id: Option<String>,
    /// Version of the program.
    pub forgelm_version: String,
    /// What built the program.
    pub builder: Builder,
    /// `sha256:` and 64 hex digits, of the config as loaded.
    pub config_hash: String,
    /// Who ran it.
    pub operator: String,
    /// When the run began.
    pub started_at: UtcTime,
    /// When its last stage ended.
    pub finished_at: UtcTime,
    /// Time in the documents.
    pub generated_at: UtcTime,
    /// Which model, how adapted.
    pub model_lineage: ModelLineage,
    /// How it was trained.
    pub training_parameters: TrainingParameters,
    /// On what.
    pub data_provenance: DataProvenance,
    /// Final numbers, gate metrics included.
    pub metrics: BTreeMap<String, f64>,
    /// Results of other evaluations: `safety`, `llm_judge`, `benchmark`.
    pub evaluations: Map<String, Value>,
    /// The `compliance` section, if configured.
    pub compliance: Option<Map<String, Value>>,
    /// The `risk_assessment` section, if configured.
    pub risk_assessment: Option<Map<String, Value>>,
    /// The `monitoring` object, if enabled.
    pub monitoring: Option<Map<String, Value>>,
    /// What `forgelm monitor` compares with, if it was measured.
    pub monitoring_baseline: Option<Value>,
    /// The webhook section without its `url`, if configured.
    pub webhook_config: Option<Map<String, Value>>,
    /// Time, memory and devices, if collected.
    pub resource_usage: Option<Map<String, Value>>,
    /// What became of the model.
    pub outcome: Outcome,
    /// The gates that were decided.
    pub gates: Vec<Gate>,
    /// The config with every default, without secrets.
    pub config: Value,
    /// Plugins that took part: name, file digest and more, as the run recorded them.
    pub plugins: Vec<Value>,
    /// What the technical documentation says beside all this.
    pub technical: TechnicalFacts,
}

/// What built the program.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    /// Version.
    pub version: String,
    /// Commit, if known.
    pub commit: Option<String>,
    /// Target triple.
    pub target: String,
}

impl Builder {
    /// As predicates name it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": BUILDER_NAME,
            "version": self.version,
            "commit": self.commit,
            "target": self.target,
        })
    }
}

/// The base model and what was done to it.
#[derive(Clone, Debug)]
pub struct ModelLineage {
    /// The model as configured.
    pub base_model: String,
    /// Which revision of it.
    pub base_model_revision: RevisionRecord,
    /// All models loaded, with their roles.
    pub component_revisions: Vec<ComponentRevision>,
    /// The engine.
    pub backend: String,
    /// For instance `LoRA + r=8`; see [`adapter_method`].
    pub adapter_method: String,
    /// `none`, or what was really loaded.
    pub quantization: String,
    /// As configured; no code of a model folder can run either way.
    pub trust_remote_code: bool,
}

/// How a model's revision was found.
#[derive(Clone, Debug, Default)]
pub struct RevisionRecord {
    /// The model's name.
    pub repo_id: String,
    /// The revision in the config.
    pub revision_requested: Option<String>,
    /// The exact revision: a commit, or the SHA-256 of a package.
    pub revision_resolved: Option<String>,
    /// `local_path`, `resolved`, `pinned_resolved`, `cache`, `pinned_unverified`, `unresolved`.
    pub resolution_source: String,
    /// The exact text given to the loader.
    pub revision_pinned: Option<String>,
    /// SHA-256 of the weights file that was read, when it is one file.
    pub sha256: Option<String>,
}

/// A loaded model with its role.
#[derive(Clone, Debug)]
pub struct ComponentRevision {
    /// `base_model`, `safety_classifier`, `llm_judge`, ...
    pub role: String,
    /// Its revision.
    pub revision: RevisionRecord,
}

/// How the model was trained.
#[derive(Clone, Debug)]
pub struct TrainingParameters {
    /// The trainer's name.
    pub trainer_type: String,
    /// Passes over the data.
    pub epochs: f64,
    /// Sequences per micro-batch.
    pub batch_size: u64,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Longest sequence, in tokens.
    pub max_length: u64,
    /// Rank.
    pub lora_r: u64,
    /// Alpha.
    pub lora_alpha: f64,
    /// Dropout.
    pub lora_dropout: f64,
    /// Whether DoRA was in effect.
    pub dora: bool,
    /// Adapted modules.
    pub target_modules: Vec<String>,
    /// Seed of all random numbers.
    pub seed: u64,
    /// More parameters of ours, after the ones above.
    pub more: Map<String, Value>,
}

/// On what the model was trained.
#[derive(Clone, Debug)]
pub struct DataProvenance {
    /// The data set as configured.
    pub primary_dataset: String,
    /// Its fingerprint.
    pub fingerprint: DatasetFingerprint,
    /// Whether rows were shuffled.
    pub shuffle: bool,
    /// Whether text was cleaned.
    pub clean_text: bool,
    /// Further data sets.
    pub extra_datasets: Vec<(String, DatasetFingerprint)>,
}

/// What pins a data set.
#[derive(Clone, Debug, Default)]
pub struct DatasetFingerprint {
    /// The path as configured.
    pub path: String,
    /// When it was looked at.
    pub timestamp: String,
    /// The real path, when it differs.
    pub resolved_path: Option<String>,
    /// Size of a file.
    pub size_bytes: Option<u64>,
    /// Last modification of a file.
    pub modified: Option<String>,
    /// SHA-256 of a file, or of a folder's files.
    pub sha256: Option<String>,
    /// Rows used.
    pub rows: Option<u64>,
    /// `local_directory`, `huggingface_hub`, `unknown`; none for a file.
    pub source: Option<String>,
    /// `loaded`, `unverified`, `local_path`, `unresolved`.
    pub hf_revision_source: String,
    /// A commit.
    pub hf_revision: Option<String>,
    /// Why there is none.
    pub hf_revision_reason: Option<String>,
}

/// What became of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in its final place.
    Promoted,
    /// It waits for an approval.
    Staged,
    /// A gate took it back.
    Reverted,
}

impl Outcome {
    /// The word in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Staged => "staged",
            Self::Reverted => "reverted",
        }
    }
}

/// A gate's verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// Its name.
    pub gate: String,
    /// The verdict.
    pub passed: bool,
    /// Why, for people.
    pub reason: Option<String>,
    /// What it was decided by.
    pub checks: Vec<Check>,
}

/// The text of `adapter_method`: method, then ` + DoRA`, ` + GaLore (<optimizer>)`, ` + r=<r>`.
#[must_use]
pub fn adapter_method(method: &str, dora: bool, galore: Option<&str>, r: u64) -> String {
    let dora = if dora { " + DoRA" } else { "" };
    let galore = galore.map_or_else(String::new, |optimizer| format!(" + GaLore ({optimizer})"));
    format!("{method}{dora}{galore} + r={r}")
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Map, Value, json};

    use super::{
        Builder, DataProvenance, DatasetFingerprint, Evidence, Gate, ModelLineage, Outcome,
        RevisionRecord, TechnicalFacts, TrainingParameters, adapter_method,
    };

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    /// The example run of the specification.
    pub(crate) fn evidence() -> Evidence {
        let time = |text: &str| text.parse().unwrap();
        Evidence {
            run_id: "fg-0123456789ab".to_owned(),
            pipeline_run_id: None,
            forgelm_version: "0.1.0".to_owned(),
            builder: Builder {
                version: "0.1.0".to_owned(),
                commit: None,
                target: "x86_64-unknown-linux-gnu".to_owned(),
            },
            config_hash: format!("sha256:{}", "ab".repeat(32)),
            operator: "alice@host".to_owned(),
            started_at: time("2026-01-01T00:00:00.000001Z"),
            finished_at: time("2026-01-01T01:00:00Z"),
            generated_at: time("2026-01-01T01:00:00.000001Z"),
            model_lineage: ModelLineage {
                base_model: "org/base-7b".to_owned(),
                base_model_revision: RevisionRecord {
                    repo_id: "org/base-7b".to_owned(),
                    revision_resolved: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
                    resolution_source: "resolved".to_owned(),
                    ..RevisionRecord::default()
                },
                component_revisions: vec![],
                backend: "native".to_owned(),
                adapter_method: adapter_method("LoRA", false, None, 8),
                quantization: "none".to_owned(),
                trust_remote_code: false,
            },
            training_parameters: TrainingParameters {
                trainer_type: "sft".to_owned(),
                epochs: 3.0,
                batch_size: 4,
                gradient_accumulation_steps: 2,
                learning_rate: 2e-5,
                max_length: 2048,
                lora_r: 8,
                lora_alpha: 16.0,
                lora_dropout: 0.1,
                dora: false,
                target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
                seed: 42,
                more: Map::new(),
            },
            data_provenance: DataProvenance {
                primary_dataset: "data/train.jsonl".to_owned(),
                fingerprint: DatasetFingerprint {
                    path: "data/train.jsonl".to_owned(),
                    timestamp: "2026-01-01T00:00:00.000001+00:00".to_owned(),
                    size_bytes: Some(10),
                    sha256: Some(
                        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
                            .to_owned(),
                    ),
                    hf_revision_source: "local_path".to_owned(),
                    ..DatasetFingerprint::default()
                },
                shuffle: true,
                clean_text: true,
                extra_datasets: vec![],
            },
            metrics: [("eval_loss", 0.42), ("benchmark/x", 0.5), ("perplexity", f64::NAN)]
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            evaluations: Map::new(),
            compliance: Some(map(
                json!({"provider_name": "Acme GmbH", "risk_classification": "limited-risk"}),
            )),
            risk_assessment: Some(map(
                json!({"intended_use": "support", "risk_category": "limited-risk"}),
            )),
            monitoring: None,
            monitoring_baseline: None,
            webhook_config: None,
            resource_usage: Some(map(json!({"training_duration_seconds": 3600.0}))),
            outcome: Outcome::Promoted,
            config: json!({"model": {"name_or_path": "org/base-7b"}}),
            gates: vec![Gate {
                gate: "loss".to_owned(),
                passed: true,
                reason: None,
                checks: vec![],
            }],
            plugins: vec![],
            technical: TechnicalFacts::default(),
        }
    }

    #[test]
    fn adapter_methods_are_spelled_in_order() {
        assert_eq!(
            adapter_method("rsLoRA", true, Some("adamw"), 16),
            "rsLoRA + DoRA + GaLore (adamw) + r=16"
        );
        assert_eq!(adapter_method("LoRA", false, None, 8), "LoRA + r=8");
    }
}
