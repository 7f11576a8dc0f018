//! The closed list of events, each with its name and its payload in a fixed order.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Everything that can be recorded. A new event is a variant here, a name and a payload below, and
/// a row in the catalogue.
#[derive(Clone, Debug, PartialEq)]
pub enum AuditEvent {
    /// `pipeline.initialized`: the run is set up and the model loaded.
    PipelineInitialized {
        /// The model as configured.
        model: String,
        /// The trainer's name.
        trainer_type: String,
    },
    /// `training.started`: the first step is next.
    TrainingStarted,
    /// `training.resumed`: the run goes on from a checkpoint.
    TrainingResumed {
        /// Folder of the checkpoint, relative to the output folder.
        from_checkpoint: String,
        /// Step of the checkpoint.
        step: u64,
        /// The run that wrote it.
        previous_run_id: Option<String>,
        /// What differs from that run, when it was forced: empty otherwise.
        changes: Vec<String>,
    },
    /// `training.interrupted`: asked to stop, and stopped with a good checkpoint.
    TrainingInterrupted {
        /// Steps completed.
        step: u64,
        /// The checkpoint that was saved.
        checkpoint: Option<String>,
    },
    /// `training.oom_recovery`: memory did not suffice, and the step is tried in smaller pieces.
    TrainingOomRecovery {
        /// Sequences in a micro-batch before.
        old_batch_size: u64,
        /// Sequences in a micro-batch now.
        new_batch_size: u64,
        /// Micro-batches in a step now.
        new_grad_accum: u64,
        /// Whether activations are computed again in the backward pass now.
        gradient_checkpointing: bool,
        /// Steps completed.
        step: u64,
        /// What was refused.
        reason: String,
    },
    /// `evaluation.loss_gate_completed`.
    LossGateCompleted {
        /// The verdict.
        passed: bool,
        /// Loss measured.
        eval_loss: f64,
        /// The limit, if configured.
        max_acceptable_loss: Option<f64>,
        /// The loss before training, if measured.
        baseline_loss: Option<f64>,
    },
    /// `evaluation.evaluator_completed`: an evaluator has judged the tuned model. The catalogue's events
    /// of benchmarks and judges say that a gate was passed; an evaluator has none.
    EvaluatorCompleted {
        /// Its name in the config.
        evaluator: String,
        /// The name; from the second of a name on, with a number.
        label: String,
        /// The library that it came from.
        library: String,
        /// SHA-256 of the library.
        library_sha256: String,
        /// The numbers of its report that stand in no list or object.
        scores: BTreeMap<String, f64>,
    },
    /// `pipeline.completed`.
    PipelineCompleted {
        /// Whether the run succeeded.
        success: bool,
        /// Final metrics.
        metrics_summary: BTreeMap<String, f64>,
    },
    /// `pipeline.failed`.
    PipelineFailed {
        /// The message.
        error: String,
    },
    /// `model.reverted`: recorded before the model folder is deleted.
    ModelReverted {
        /// `nan_inf`, `threshold`, `benchmark`, `safety` or `judge`.
        reason: String,
        /// Text for people.
        detail: String,
    },
    /// `model.integrity_verified`: `model_integrity.json` was written and read back.
    ModelIntegrityVerified {
        /// Number of files in it.
        artifacts: u64,
    },
    /// `compliance.artifacts_exported`.
    ComplianceArtifactsExported {
        /// The folder.
        output_dir: String,
        /// File names, sorted.
        files: Vec<String>,
        /// Whether the governance report is among them or was not due.
        governance_ok: bool,
    },
    /// `compliance.artifacts_export_failed`.
    ComplianceArtifactsExportFailed {
        /// The message.
        reason: String,
    },
    /// `signing.key_loaded`.
    SigningKeyLoaded {
        /// Key id.
        keyid: String,
        /// `provisioned` or `auto_generated`.
        key_origin: String,
    },
    /// `signing.bundle_signed`.
    SigningBundleSigned {
        /// Key id.
        keyid: String,
        /// SHA-256 of the canonical JSON of the attestation's subject list.
        bundle_sha256: String,
        /// Number of subjects.
        subject_count: u64,
    },
    /// `signing.skipped`.
    SigningSkipped {
        /// Why.
        reason: String,
    },
    /// `audit.checkpoint`: a signed head, in the log itself.
    AuditCheckpoint {
        /// Lines before this one.
        entries: u64,
        /// SHA-256 of the last of them.
        head_sha256: String,
        /// Key id.
        keyid: String,
        /// Base64 signature.
        sig: String,
    },
    /// `audit.recovered`: a torn last line was cut off; the bytes are kept.
    AuditRecovered {
        /// How many bytes were torn.
        torn_bytes: u64,
        /// Their SHA-256.
        torn_sha256: String,
        /// The bytes themselves in base64, up to 64 KiB.
        torn_base64: Option<String>,
        /// The file that keeps them when they are more.
        kept_in: Option<String>,
    },
    /// `risk.unacceptable_acknowledged`.
    RiskUnacceptableAcknowledged {
        /// `risk_assessment.risk_category`.
        risk_category: String,
        /// `compliance.risk_classification`.
        risk_classification: String,
    },
}

/// Names of all events, in the order in which they came to be.
pub const EVENT_NAMES: [&str; 19] = [
    "pipeline.initialized",
    "training.started",
    "training.resumed",
    "training.interrupted",
    "evaluation.loss_gate_completed",
    "pipeline.completed",
    "pipeline.failed",
    "model.reverted",
    "model.integrity_verified",
    "compliance.artifacts_exported",
    "compliance.artifacts_export_failed",
    "signing.key_loaded",
    "signing.bundle_signed",
    "signing.skipped",
    "audit.checkpoint",
    "audit.recovered",
    "risk.unacceptable_acknowledged",
    "training.oom_recovery",
    "evaluation.evaluator_completed",
];

impl AuditEvent {
    /// The dotted name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        EVENT_NAMES[match self {
            Self::PipelineInitialized { .. } => 0,
            Self::TrainingStarted => 1,
            Self::TrainingResumed { .. } => 2,
            Self::TrainingInterrupted { .. } => 3,
            Self::LossGateCompleted { .. } => 4,
            Self::PipelineCompleted { .. } => 5,
            Self::PipelineFailed { .. } => 6,
            Self::ModelReverted { .. } => 7,
            Self::ModelIntegrityVerified { .. } => 8,
            Self::ComplianceArtifactsExported { .. } => 9,
            Self::ComplianceArtifactsExportFailed { .. } => 10,
            Self::SigningKeyLoaded { .. } => 11,
            Self::SigningBundleSigned { .. } => 12,
            Self::SigningSkipped { .. } => 13,
            Self::AuditCheckpoint { .. } => 14,
            Self::AuditRecovered { .. } => 15,
            Self::RiskUnacceptableAcknowledged { .. } => 16,
            Self::TrainingOomRecovery { .. } => 17,
            Self::EvaluatorCompleted { .. } => 18,
        }]
    }

    /// The payload, in its fixed order. Numbers that are not finite become text.
    #[must_use]
    pub fn payload(&self) -> Vec<(&'static str, Value)> {
        match self {
            Self::PipelineInitialized { model, trainer_type } => {
                vec![("model", json!(model)), ("trainer_type", json!(trainer_type))]
            }
            Self::TrainingStarted => vec![],
            Self::TrainingResumed { from_checkpoint, step, previous_run_id, changes } => vec![
                ("from_checkpoint", json!(from_checkpoint)),
                ("step", json!(step)),
                ("previous_run_id", json!(previous_run_id)),
                ("changes", json!(changes)),
            ],
            Self::TrainingInterrupted { step, checkpoint } => {
                vec![("step", json!(step)), ("checkpoint", json!(checkpoint))]
            }
            Self::TrainingOomRecovery {
                old_batch_size,
                new_batch_size,
                new_grad_accum,
                gradient_checkpointing,
                step,
                reason,
            } => vec![
                ("old_batch_size", json!(old_batch_size)),
                ("new_batch_size", json!(new_batch_size)),
                ("new_grad_accum", json!(new_grad_accum)),
                ("gradient_checkpointing", json!(gradient_checkpointing)),
                ("step", json!(step)),
                ("reason", json!(reason)),
            ],
            Self::LossGateCompleted { passed, eval_loss, max_acceptable_loss, baseline_loss } => {
                let optional = |v: &Option<f64>| v.map_or(Value::Null, number);
                vec![
                    ("passed", json!(passed)),
                    ("eval_loss", number(*eval_loss)),
                    ("max_acceptable_loss", optional(max_acceptable_loss)),
                    ("baseline_loss", optional(baseline_loss)),
                ]
            }
            Self::EvaluatorCompleted { evaluator, label, library, library_sha256, scores } => vec![
                ("evaluator", json!(evaluator)),
                ("label", json!(label)),
                ("library", json!(library)),
                ("library_sha256", json!(library_sha256)),
                ("scores", Value::Object(numbers(scores))),
            ],
            Self::PipelineCompleted { success, metrics_summary } => vec![
                ("success", json!(success)),
                ("metrics_summary", Value::Object(numbers(metrics_summary))),
            ],
            Self::PipelineFailed { error } => vec![("error", json!(error))],
            Self::ModelReverted { reason, detail } => {
                vec![("reason", json!(reason)), ("detail", json!(detail))]
            }
            Self::ModelIntegrityVerified { artifacts } => vec![("artifacts", json!(artifacts))],
            Self::ComplianceArtifactsExported { output_dir, files, governance_ok } => vec![
                ("output_dir", json!(output_dir)),
                ("files", json!(files)),
                ("governance_ok", json!(governance_ok)),
            ],
            Self::ComplianceArtifactsExportFailed { reason } | Self::SigningSkipped { reason } => {
                vec![("reason", json!(reason))]
            }
            Self::SigningKeyLoaded { keyid, key_origin } => {
                vec![("keyid", json!(keyid)), ("key_origin", json!(key_origin))]
            }
            Self::SigningBundleSigned { keyid, bundle_sha256, subject_count } => vec![
                ("keyid", json!(keyid)),
                ("bundle_sha256", json!(bundle_sha256)),
                ("subject_count", json!(subject_count)),
            ],
            Self::AuditCheckpoint { entries, head_sha256, keyid, sig } => vec![
                ("entries", json!(entries)),
                ("head_sha256", json!(head_sha256)),
                ("keyid", json!(keyid)),
                ("sig", json!(sig)),
            ],
            Self::AuditRecovered { torn_bytes, torn_sha256, torn_base64, kept_in } => vec![
                ("torn_bytes", json!(torn_bytes)),
                ("torn_sha256", json!(torn_sha256)),
                ("torn_base64", json!(torn_base64)),
                ("kept_in", json!(kept_in)),
            ],
            Self::RiskUnacceptableAcknowledged { risk_category, risk_classification } => vec![
                ("risk_category", json!(risk_category)),
                ("risk_classification", json!(risk_classification)),
            ],
        }
    }
}

/// A number for a JSON document; one that is not finite becomes `"nan"`, `"inf"` or `"-inf"`.
#[must_use]
pub fn number(value: f64) -> Value {
    if value.is_finite() {
        json!(value)
    } else if value.is_nan() {
        json!("nan")
    } else if value > 0.0 {
        json!("inf")
    } else {
        json!("-inf")
    }
}

/// A flat map of numbers for a JSON document.
#[must_use]
pub fn numbers(values: &BTreeMap<String, f64>) -> Map<String, Value> {
    values.iter().map(|(key, value)| (key.clone(), number(*value))).collect()
}

#[cfg(test)]
mod tests {
    use super::{AuditEvent, EVENT_NAMES, number};

    #[test]
    fn names_are_unique_dotted_lower_case() {
        let mut names = EVENT_NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EVENT_NAMES.len());
        for name in names {
            assert!(name.contains('.'), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_'));
        }
        assert_eq!(AuditEvent::TrainingStarted.name(), "training.started");
    }

    #[test]
    fn numbers_that_are_not_json_become_text() {
        assert_eq!(number(f64::NAN), "nan");
        assert_eq!(number(f64::NEG_INFINITY), "-inf");
        assert_eq!(number(0.5), 0.5);
        let event = AuditEvent::LossGateCompleted {
            passed: false,
            eval_loss: f64::INFINITY,
            max_acceptable_loss: None,
            baseline_loss: Some(1.0),
        };
        assert_eq!(event.payload()[1].1, "inf");
        assert!(event.payload()[2].1.is_null());
    }
}
