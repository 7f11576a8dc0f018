//! The closed list of events, each with its name and its payload in a fixed order.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Writes the list: a variant for each event, its name, and its fields as its payload.
macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $name:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {
        /// Everything that can be recorded. A new event is an entry here and a row in
        /// `docs/formats/audit_log.md`.
        #[derive(Clone, Debug, PartialEq)]
        pub enum AuditEvent {
            $($(#[$doc])* $event { $($(#[$field_doc])* $field: $type,)* },)*
        }

        /// Every event: its name and the keys of its payload, in order.
        pub const EVENTS: &[(&str, &[&str])] = &[$(($name, &[$(stringify!($field)),*])),*];

        impl AuditEvent {
            /// The dotted name.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$event { .. } => $name,)*
                }
            }

            /// The payload, in its fixed order. Numbers that are not finite become text.
            #[must_use]
            pub fn payload(&self) -> Vec<(&'static str, Value)> {
                match self {
                    $(Self::$event { $($field),* } => {
                        vec![$((stringify!($field), Member::to_json($field))),*]
                    })*
                }
            }
        }
    };
}

events! {
    /// `pipeline.initialized`: the run is set up and the model loaded.
    PipelineInitialized = "pipeline.initialized" {
        /// The model as configured.
        model: String,
        /// The trainer's name.
        trainer_type: String,
    }
    /// `training.started`: the first step is next, and the gates that will judge its result are fixed.
    TrainingStarted = "training.started" {
        /// The thresholds in force; none without an `evaluation` section.
        gates: Option<Value>,
        /// SHA-256 of the canonical JSON (RFC 8785) of that section, defaults filled in.
        gates_sha256: Option<String>,
    }
    /// `training.resumed`: the run goes on from a checkpoint.
    TrainingResumed = "training.resumed" {
        /// Folder of the checkpoint, relative to the output folder.
        from_checkpoint: String,
        /// Step of the checkpoint.
        step: u64,
        /// The run that wrote it.
        previous_run_id: Option<String>,
        /// What differs from that run, when it was forced: empty otherwise.
        changes: Vec<String>,
    }
    /// `training.interrupted`: asked to stop, and stopped with a good checkpoint.
    TrainingInterrupted = "training.interrupted" {
        /// Steps completed.
        step: u64,
        /// The checkpoint that was saved.
        checkpoint: Option<String>,
    }
    /// `training.distributed`: the run has several processes, which were compared and do the same.
    TrainingDistributed = "training.distributed" {
        /// What they share out.
        strategy: String,
        /// What carries numbers between them, with its version.
        collective: String,
        /// What carries numbers from device to device, with its version; none where they go
        /// through hosts.
        device_link: Option<String>,
        /// The plugin library of the collective; none where there is one process.
        library: Option<String>,
        /// SHA-256 of that library's bytes.
        library_sha256: Option<String>,
        /// The host of each, by rank.
        hosts: Vec<String>,
        /// Whether another number of processes of which this is true gives the same bits.
        comparable: bool,
    }
    /// `training.device_fallback`: `training.device` is `auto`, and the device that is there cannot be
    /// used: the processor computes.
    TrainingDeviceFallback = "training.device_fallback" {
        /// What computes instead.
        kernels: String,
        /// What the device's driver said.
        reason: String,
    }
    /// `training.oom_recovery`: memory did not suffice, and the step is tried in smaller pieces.
    TrainingOomRecovery = "training.oom_recovery" {
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
    }
    /// `evaluation.evaluator_completed`: an evaluator has judged the tuned model. The catalogue's events
    /// of benchmarks and judges say that a gate was passed; an evaluator has none.
    EvaluatorCompleted = "evaluation.evaluator_completed" {
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
    }
    /// `evaluation.loss_gate_completed`: the validation loss was judged.
    LossGateCompleted = "evaluation.loss_gate_completed" {
        /// The verdict.
        passed: bool,
        /// Of the weights that are kept.
        eval_loss: f64,
        /// The highest that is accepted, as configured.
        max_acceptable_loss: Option<f64>,
        /// The loss that may not be exceeded, as configured or measured before the first step.
        baseline_loss: Option<f64>,
    }
    /// `benchmark.evaluation_completed`: benchmarks have judged the tuned model.
    BenchmarkCompleted = "benchmark.evaluation_completed" {
        /// The verdict.
        passed: bool,
        /// The plain mean of the scores; none without any.
        average: Option<f64>,
        /// Each score by its task.
        scores: BTreeMap<String, f64>,
    }
    /// `safety.evaluation_completed`: a classifier has judged the answers of the tuned model.
    SafetyEvaluationCompleted = "safety.evaluation_completed" {
        /// The verdict.
        passed: bool,
        /// Share of the answers that are safe.
        safe_ratio: f64,
        /// Answers.
        total_count: u64,
        /// Whether there is evidence for a verdict.
        evaluation_completed: bool,
        /// Answers that were read as unsafe.
        scored_unsafe_count: u64,
        /// Answers without a verdict of the classifier, which count as unsafe.
        unscored_count: u64,
        /// As `evaluation.safety.scoring` counts.
        safety_score: f64,
        /// How often each hazard was named.
        categories: Value,
    }
    /// `audit.classifier_load_failed`: the safety classifier could not be loaded, or was refused.
    ClassifierLoadFailed = "audit.classifier_load_failed" {
        /// As configured.
        classifier: String,
        /// Why, up to 500 characters.
        reason: String,
    }
    /// `judge.evaluation_completed`: the judge has scored answers of the tuned model, or could not.
    JudgeEvaluationCompleted = "judge.evaluation_completed" {
        /// The verdict.
        passed: bool,
        /// Over the answers that were scored; none where nothing follows from them.
        average_score: Option<f64>,
    }
    /// `model.reverted`: a gate rejected the model, whose folder is deleted next.
    ModelReverted = "model.reverted" {
        /// `nan_inf` or `threshold`.
        reason: String,
        /// In words.
        detail: String,
    }
    /// `human_approval.required`: the model is staged, and waits for people.
    ApprovalRequired = "human_approval.required" {
        /// `final_model`.
        gate: String,
        /// Why.
        reason: String,
        /// Final metrics.
        metrics: BTreeMap<String, f64>,
        /// Why gates rejected the model, where they did and it was kept.
        gate_failures: Vec<String>,
        /// The staged folder, relative to the output folder.
        staging_path: String,
        /// Of the run.
        config_hash: String,
        /// Who may decide: fixed from here on.
        policy: Value,
    }
    /// `human_approval.approved`: one person has approved; the folder is renamed once enough have.
    ApprovalApproved = "human_approval.approved" {
        /// `final_model`.
        gate: String,
        /// Who.
        approver: String,
        /// In which role.
        role: Option<String>,
        /// Why.
        comment: Option<String>,
        /// Their key.
        keyid: Option<String>,
        /// SHA-256 of the report that they were shown.
        report_sha256: Option<String>,
        /// The signed decision, relative to the output folder.
        decision_file: Option<String>,
        /// Its SHA-256.
        decision_sha256: Option<String>,
        /// Of how many different people with this one.
        approvals: u64,
        /// How many are needed.
        quorum: u64,
    }
    /// `human_approval.granted`: the staged folder has its final name.
    ApprovalGranted = "human_approval.granted" {
        /// `final_model`.
        gate: String,
        /// Who approved last.
        approver: String,
        /// Their reason.
        comment: Option<String>,
        /// `rename`.
        promote_strategy: String,
        /// The name that the folder had, relative to the output folder.
        staging_path: String,
        /// The name that it has.
        final_path: String,
        /// The root digest of its files.
        model_root_sha256: String,
        /// For how long the request was open.
        open_seconds: u64,
    }
    /// `human_approval.rejected`: a person said no; the folder stays where it is.
    ApprovalRejected = "human_approval.rejected" {
        /// `final_model`.
        gate: String,
        /// Who.
        approver: String,
        /// In which role.
        role: Option<String>,
        /// Why.
        comment: Option<String>,
        /// Their key.
        keyid: Option<String>,
        /// SHA-256 of the report that they were shown.
        report_sha256: Option<String>,
        /// The signed decision, relative to the output folder.
        decision_file: Option<String>,
        /// Its SHA-256.
        decision_sha256: Option<String>,
        /// The folder, relative to the output folder.
        staging_path: String,
        /// For how long the request was open.
        open_seconds: u64,
    }
    /// `human_approval.refused`: somebody may not decide, or not any more.
    ApprovalRefused = "human_approval.refused" {
        /// `final_model`.
        gate: String,
        /// `approved` or `rejected`: what they wanted.
        decision: String,
        /// Why it does not count.
        reason: String,
    }
    /// `human_approval.expired`: nobody approved in time.
    ApprovalExpired = "human_approval.expired" {
        /// Since the request.
        age_days: u64,
    }
    /// `pipeline.completed`.
    PipelineCompleted = "pipeline.completed" {
        /// Whether the run succeeded.
        success: bool,
        /// Final metrics.
        metrics_summary: BTreeMap<String, f64>,
    }
    /// `pipeline.completed` of a pipeline, which a run id that begins with `pl_` tells from that of a
    /// run.
    PipelineEnded = "pipeline.completed" {
        /// The pipeline.
        pipeline_run_id: String,
        /// `completed` or `stopped_at_stage`.
        final_status: String,
        /// The stage that stopped it.
        stopped_at: Option<String>,
    }
    /// `pipeline.started`: the first stage of a pipeline is next.
    PipelineStarted = "pipeline.started" {
        /// The pipeline.
        pipeline_run_id: String,
        /// SHA-256 of the bytes of its config.
        config_hash: String,
        /// How many stages it has.
        stage_count: u64,
        /// Their names, in order.
        stage_names: Vec<String>,
    }
    /// `pipeline.stage_started`.
    PipelineStageStarted = "pipeline.stage_started" {
        /// The pipeline.
        pipeline_run_id: String,
        /// The stage.
        stage_name: String,
        /// Its place, from 0.
        stage_index: u64,
        /// What it begins at.
        input_model: String,
        /// `root`, `chain`, `stage_explicit` or `cli_override`.
        input_source: String,
    }
    /// `pipeline.stage_completed`: a stage ended, with a model or without one.
    PipelineStageCompleted = "pipeline.stage_completed" {
        /// The pipeline.
        pipeline_run_id: String,
        /// The stage.
        stage_name: String,
        /// `passed` or `failed`.
        gate_decision: String,
        /// Its final numbers, where it passed.
        metrics: Option<BTreeMap<String, f64>>,
        /// Where it failed: false.
        auto_revert_triggered: Option<bool>,
    }
    /// `pipeline.stage_gated`: the model of a stage waits for people, and the pipeline with it.
    PipelineStageGated = "pipeline.stage_gated" {
        /// The pipeline.
        pipeline_run_id: String,
        /// The stage.
        stage_name: String,
        /// `approval_pending`.
        gate_decision: String,
        /// Where the model is, below the pipeline's folder.
        staging_path: String,
    }
    /// `pipeline.stage_reverted`: a gate rejected the model of a stage.
    PipelineStageReverted = "pipeline.stage_reverted" {
        /// The pipeline.
        pipeline_run_id: String,
        /// The stage.
        stage_name: String,
        /// `failed`.
        gate_decision: String,
        /// True.
        auto_revert_triggered: bool,
    }
    /// `pipeline.stage_superseded`: what a stage left is kept under another name, and the stage runs
    /// again.
    PipelineStageSuperseded = "pipeline.stage_superseded" {
        /// The pipeline.
        pipeline_run_id: String,
        /// The stage.
        stage_name: String,
        /// Its folder's new name, below the pipeline's folder.
        moved_to: String,
        /// Why it runs again.
        reason: String,
    }
    /// `pipeline.force_resume`: the pipeline goes on although its config changed.
    PipelineForceResume = "pipeline.force_resume" {
        /// The pipeline.
        pipeline_run_id: String,
        /// SHA-256 of the config's bytes so far.
        old_config_hash: String,
        /// And from here on.
        new_config_hash: String,
    }
    /// `pipeline.resume_refused`: a stage before the one that was asked for has no model that may be
    /// used.
    PipelineResumeRefused = "pipeline.resume_refused" {
        /// The pipeline.
        pipeline_run_id: String,
        /// The stage that was asked for.
        requested_stage: String,
        /// The one that is in the way.
        blocking_stage: String,
        /// What it is.
        blocking_status: String,
    }
    /// `pipeline.failed`.
    PipelineFailed = "pipeline.failed" {
        /// The message.
        error: String,
    }
    /// `model.integrity_verified`: `model_integrity.json` was written and read back.
    ModelIntegrityVerified = "model.integrity_verified" {
        /// Number of files in it.
        artifacts: u64,
    }
    /// `compliance.artifacts_exported`.
    ComplianceArtifactsExported = "compliance.artifacts_exported" {
        /// The folder.
        output_dir: String,
        /// File names, sorted.
        files: Vec<String>,
        /// Whether the governance report is among them or was not due.
        governance_ok: bool,
    }
    /// `compliance.artifacts_export_failed`: the documents are not complete.
    ComplianceArtifactsExportFailed = "compliance.artifacts_export_failed" {
        /// Why.
        reason: String,
    }
    /// `compliance.governance_exported`: the governance report is written.
    ComplianceGovernanceExported = "compliance.governance_exported" {
        /// The file, relative to the output folder.
        output_path: String,
        /// Number of data sets.
        dataset_count: u64,
    }
    /// `compliance.governance_section_missing`: the governance report has no data audit.
    ComplianceGovernanceSectionMissing = "compliance.governance_section_missing" {
        /// Which section.
        section: String,
        /// Where it was expected.
        expected_path: String,
    }
    /// `compliance.governance_failed`: there is no governance report.
    ComplianceGovernanceFailed = "compliance.governance_failed" {
        /// Why.
        reason: String,
    }
    /// `risk.unacceptable_acknowledged`: the run begins although its config names practices that
    /// Article 5 prohibits.
    RiskUnacceptableAcknowledged = "risk.unacceptable_acknowledged" {
        /// `risk_assessment.risk_category`, if configured.
        risk_category: Option<String>,
        /// `compliance.risk_classification`, if configured.
        risk_classification: Option<String>,
    }
    /// `signing.key_loaded`.
    SigningKeyLoaded = "signing.key_loaded" {
        /// Key id.
        keyid: String,
        /// `provisioned` or `auto_generated`.
        key_origin: String,
    }
    /// `signing.key_rotated`: another key signs in this folder than before.
    SigningKeyRotated = "signing.key_rotated" {
        /// Key id of the last `signing.key_loaded`.
        old_keyid: String,
        /// Key id.
        new_keyid: String,
    }
    /// `signing.bundle_signed`.
    SigningBundleSigned = "signing.bundle_signed" {
        /// Key id.
        keyid: String,
        /// SHA-256 of the canonical JSON of the attestation's subject list.
        bundle_sha256: String,
        /// Number of subjects.
        subject_count: u64,
    }
    /// `signing.skipped`.
    SigningSkipped = "signing.skipped" {
        /// Why.
        reason: String,
    }
    /// `signing.timestamp_failed`: a signature got no token of a time stamp authority.
    SigningTimestampFailed = "signing.timestamp_failed" {
        /// Its file.
        file: String,
        /// Why.
        reason: String,
    }
    /// `audit.checkpoint`: a signed head, in the log itself.
    AuditCheckpoint = "audit.checkpoint" {
        /// Lines before this one.
        entries: u64,
        /// SHA-256 of the last of them.
        head_sha256: String,
        /// Key id.
        keyid: String,
        /// Base64 signature.
        sig: String,
    }
    /// `monitoring.check_completed`: fresh rows were compared with the held-out ones.
    MonitoringCheckCompleted = "monitoring.check_completed" {
        /// `drift`, `no_drift` or `too_few_rows`.
        verdict: String,
        /// Held-out rows of the run.
        baseline_rows: u64,
        /// The mean of their losses.
        baseline_mean: f64,
        /// Fresh rows.
        fresh_rows: u64,
        /// The mean of their losses.
        fresh_mean: f64,
        /// Fresh mean less baseline mean.
        difference: f64,
        /// Lower bound of the difference.
        interval_low: Option<f64>,
        /// Upper bound of the difference.
        interval_high: Option<f64>,
        /// Of the interval.
        confidence: f64,
        /// SHA-256 over the digests of the files of fresh rows.
        data_sha256: String,
    }
    /// `webhook.delivery_failed`: a notice did not arrive.
    WebhookDeliveryFailed = "webhook.delivery_failed" {
        /// The event that it was about.
        notice: String,
        /// Scheme and host of the receiver.
        destination: String,
        /// Times that it was tried.
        tries: u64,
        /// Why it did not arrive.
        reason: String,
    }
    /// `retention.policy_violation`: something is older than its horizon when a run starts.
    RetentionPolicyViolation = "retention.policy_violation" {
        /// What it is, as `purge --check-policy` calls it.
        artefact_kind: String,
        /// Where it is.
        path: String,
        /// Its age in days, to a tenth.
        age_days: f64,
        /// The most that the config allows.
        horizon_days: u64,
        /// `audit` or `mtime`.
        age_source: String,
        /// The value of `retention.enforce`.
        enforce: String,
    }
    /// `retention.hold_placed`: nothing of the folder may be purged from here on.
    RetentionHoldPlaced = "retention.hold_placed" {
        /// The file that says so.
        path: String,
        /// Why.
        reason: String,
    }
    /// `retention.hold_released`.
    RetentionHoldReleased = "retention.hold_released" {
        /// The file that said so.
        path: String,
        /// Why.
        reason: String,
        /// The reason that it was placed for.
        held_for: Option<String>,
    }
    /// `data.erasure_requested`: something is to be removed.
    DataErasureRequested = "data.erasure_requested" {
        /// `row`, `staging` or `artefacts`.
        target_kind: String,
        /// The keyed digest of the row's id; or the run.
        target_id: String,
        /// How a row's id was hashed.
        hash_scheme: Option<String>,
        /// What the key of that came from.
        salt_source: Option<String>,
        /// The data file, of a row.
        corpus_path: Option<String>,
        /// The run's folder.
        output_dir: String,
        /// Why, as whoever asked wrote it, with personal data masked.
        justification: Option<String>,
        /// Whether nothing is removed.
        dry_run: bool,
    }
    /// `data.erasure_completed`: it is removed.
    DataErasureCompleted = "data.erasure_completed" {
        /// `row`, `staging` or `artefacts`.
        target_kind: String,
        /// The keyed digest of the row's id; or the run.
        target_id: String,
        /// How a row's id was hashed.
        hash_scheme: Option<String>,
        /// What the key of that came from.
        salt_source: Option<String>,
        /// The data file, of a row.
        corpus_path: Option<String>,
        /// The run's folder.
        output_dir: String,
        /// Why, as whoever asked wrote it, with personal data masked.
        justification: Option<String>,
        /// Whether nothing is removed.
        dry_run: bool,
        /// By how much smaller files are.
        bytes_freed: u64,
        /// What was written anew or removed.
        files_modified: Vec<String>,
        /// The line of the first row that was removed, from 1.
        pre_erasure_line_number: Option<u64>,
        /// How many rows were.
        match_count: Option<u64>,
        /// SHA-256 of the data file before.
        corpus_sha256_before: Option<String>,
        /// And after.
        corpus_sha256_after: Option<String>,
        /// Where more of it is known to be: what purge did not remove.
        copies: Vec<String>,
        /// The signed statement of what was removed.
        statement: Option<String>,
    }
    /// `data.erasure_failed`: it is not, or not all of it.
    DataErasureFailed = "data.erasure_failed" {
        /// `row`, `staging` or `artefacts`.
        target_kind: String,
        /// The keyed digest of the row's id; or the run.
        target_id: String,
        /// How a row's id was hashed.
        hash_scheme: Option<String>,
        /// What the key of that came from.
        salt_source: Option<String>,
        /// The data file, of a row.
        corpus_path: Option<String>,
        /// The run's folder.
        output_dir: String,
        /// Why, as whoever asked wrote it, with personal data masked.
        justification: Option<String>,
        /// Whether nothing is removed.
        dry_run: bool,
        /// What went wrong, in a word.
        error_class: String,
        /// And in a sentence, with personal data masked.
        error_message: String,
        /// How many rows match.
        match_count: Option<u64>,
        /// What was removed before.
        files_modified: Vec<String>,
    }
    /// `data.erasure_warning_memorisation`: weights were trained on what was removed.
    DataErasureWarningMemorisation = "data.erasure_warning_memorisation" {
        /// `row`, `staging` or `artefacts`.
        target_kind: String,
        /// The keyed digest of the row's id; or the run.
        target_id: String,
        /// The data file.
        corpus_path: String,
        /// The runs that trained on it.
        affected_run_ids: Vec<String>,
        /// Where their weights are.
        weights: Vec<String>,
    }
    /// `data.erasure_warning_synthetic_data_present`: texts that were made from the data may repeat it.
    DataErasureWarningSyntheticDataPresent = "data.erasure_warning_synthetic_data_present" {
        /// `row`, `staging` or `artefacts`.
        target_kind: String,
        /// The keyed digest of the row's id; or the run.
        target_id: String,
        /// The data file.
        corpus_path: String,
        /// Files of such texts.
        synthetic_files: Vec<String>,
    }
    /// `data.erasure_warning_external_copies`: others may have been told.
    DataErasureWarningExternalCopies = "data.erasure_warning_external_copies" {
        /// `row`, `staging` or `artefacts`.
        target_kind: String,
        /// The keyed digest of the row's id; or the run.
        target_id: String,
        /// The data file.
        corpus_path: String,
        /// Where messages went, without their paths.
        webhook_targets: Vec<String>,
    }
    /// `data.access_request_query`: someone was looked for in data.
    DataAccessRequestQuery = "data.access_request_query" {
        /// The keyed digest of what was looked for.
        query_hash: String,
        /// How it was hashed.
        hash_scheme: String,
        /// What kind of identifier it is.
        identifier_type: String,
        /// `plaintext` or `hash`.
        scan_mode: String,
        /// What the key of the digest that was searched for came from; `plaintext` where the text was.
        salt_source: String,
        /// The files.
        files_scanned: Vec<String>,
        /// Lines with it; null if not all could be read.
        match_count: Option<u64>,
        /// What went wrong, in a word.
        error_class: Option<String>,
        /// And in a sentence, with personal data masked.
        error_message: Option<String>,
    }
    /// `audit.recovered`: a torn last line was cut off; the bytes are kept.
    AuditRecovered = "audit.recovered" {
        /// How many bytes were torn.
        torn_bytes: u64,
        /// Their SHA-256.
        torn_sha256: String,
        /// The bytes themselves in base64, up to 64 KiB.
        torn_base64: Option<String>,
        /// The file that keeps them when they are more.
        kept_in: Option<String>,
    }
}

/// A value of a payload.
trait Member {
    /// As the log has it.
    fn to_json(&self) -> Value;
}

macro_rules! plain_members {
    ($($type:ty),*) => {
        $(impl Member for $type {
            fn to_json(&self) -> Value {
                json!(self)
            }
        })*
    };
}

plain_members!(bool, u64, String, Vec<String>, Value);

impl Member for f64 {
    fn to_json(&self) -> Value {
        number(*self)
    }
}

impl Member for BTreeMap<String, f64> {
    fn to_json(&self) -> Value {
        Value::Object(numbers(self))
    }
}

impl<T: Member> Member for Option<T> {
    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_json)
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
    use super::{AuditEvent, EVENTS, number};

    #[test]
    fn names_are_unique_dotted_lower_case() {
        let mut names: Vec<&str> = EVENTS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        // `pipeline.completed` is said of a run and of a pipeline.
        assert_eq!(names.len() + 1, EVENTS.len());
        for name in names {
            assert!(name.contains('.'), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_'));
        }
        assert_eq!(AuditEvent::SigningSkipped { reason: String::new() }.name(), "signing.skipped");
    }

    #[test]
    fn numbers_that_are_not_json_become_text() {
        assert_eq!(number(f64::NAN), "nan");
        assert_eq!(number(f64::NEG_INFINITY), "-inf");
        assert_eq!(number(0.5), 0.5);
        let metrics_summary = [("loss".to_owned(), f64::INFINITY)].into();
        let event = AuditEvent::PipelineCompleted { success: true, metrics_summary };
        assert_eq!(event.payload()[1].1["loss"], "inf");
    }
}
