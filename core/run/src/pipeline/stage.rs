//! One stage: what it begins at, whether it is done already, its run, and what follows from that.

use super::What;
use super::desk::Desk;
use super::error::PipelineError;
use super::plan::StagePlan;
use super::standing::{Facts, Standing, difference};
use super::start_model::Folding;
use crate::environment::Environment;
use crate::error::RunError;
use crate::exit::Exit;
use crate::model;
use crate::plugins;
use crate::resume::Resume;
use crate::training::{self, Completed, Outcome, train};
use forgelm_artifact::hash::{sha256_bytes, sha256_file};
use forgelm_artifact::write;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::pipeline::state::{
    GateDecision, InputSource, StageRow, StageStatus, StartModel,
};
use forgelm_hub::ModelFiles;
use forgelm_model::ADAPTER_CONFIG;
use forgelm_outbound::notice::Notice;
use std::path::Path;
use std::time::Duration;

/// The evidence of a stage that the manifest names, below the stage's folder.
const SUMMARY: &str = "compliance/training_manifest.json";

/// At which model a stage begins.
struct Input {
    /// As the state names it.
    shown: String,
    source: InputSource,
    /// As its run names it; none for the model of its config.
    model: Option<String>,
    start: Option<StartModel>,
    /// SHA-256 of its weights, where it is known.
    sha256: Option<String>,
}

/// Why a stage has no model.
struct Failure {
    exit: Exit,
    /// In a word, for those that did not run because of it.
    cause: &'static str,
    error: String,
    is_reverted: bool,
}

impl Failure {
    fn of(error: &RunError) -> Self {
        let exit = error.exit();
        let cause = if exit == Exit::Config { "config error" } else { "training error" };
        Self { exit, cause, error: error.chain(), is_reverted: false }
    }
}

impl Desk<'_> {
    /// Runs a stage, or takes it as it is; how it ended.
    pub(super) fn stage(&mut self, index: usize) -> Result<Exit, RunError> {
        let stage = &self.plan.stages[index];
        if index < self.begun.from
            && let Some(facts) = self.before(stage)?
        {
            return self.adopt(stage, facts);
        }
        let input = match self.input(stage) {
            Ok(input) => input,
            Err(error) => {
                self.attempt(stage, None);
                return self.failed(stage, Failure::of(&error));
            }
        };
        let is_there = self.is_there(stage, &input);
        match is_there {
            Ok((Some(facts), _)) => {
                self.begin_at(index, &input);
                self.adopt(stage, facts)
            }
            Ok((None, resume)) => self.run_stage(stage, &input, resume),
            Err(error) => {
                self.attempt(stage, Some(&input));
                self.failed(stage, Failure::of(&error))
            }
        }
    }

    /// What a stage before the one that was asked for has come to: it is kept if it has a model, and
    /// must be decided on if people are asked.
    fn before(&mut self, stage: &StagePlan) -> Result<Option<Facts>, RunError> {
        let standing = self.standing(stage, &stage.plan(None)?)?;
        let row = &self.state.stages[stage.index];
        let status = match &standing {
            Standing::Done(_) => None,
            Standing::Ended(how) if matches!(**how, Outcome::Waiting { .. }) => {
                Some("waiting for approval")
            }
            Standing::Ended(how) if matches!(**how, Outcome::AlreadyRejected { .. }) => {
                Some("rejected")
            }
            _ if row.status == StageStatus::GatedPendingApproval => Some("not approved"),
            _ => None,
        };
        if let Some(status) = status {
            return Err(self.refuse(stage, status)?);
        }
        match standing {
            Standing::Done(facts) => Ok(Some(facts)),
            Standing::Nothing
            | Standing::Unfinished
            | Standing::Ended(_)
            | Standing::Incomplete(_) => {
                let text = format!(
                    "stage `{}` has no model that can be used, and runs first although a later one was \
                     asked for",
                    stage.name
                );
                self.warn(text);
                Ok(None)
            }
        }
    }

    fn refuse(&mut self, stage: &StagePlan, status: &'static str) -> Result<RunError, RunError> {
        let requested = match &self.request.what {
            What::From(name) => name.clone(),
            What::Whole | What::Rest | What::Only { .. } => String::new(),
        };
        let row = &self.state.stages[stage.index];
        let (run, folder) =
            (row.run_id.clone().unwrap_or_default(), self.plan.dir.join(&stage.folder));
        self.record(&AuditEvent::PipelineResumeRefused {
            pipeline_run_id: self.state.pipeline_run_id.clone(),
            requested_stage: requested.clone(),
            blocking_stage: stage.name.clone(),
            blocking_status: self.state.stages[stage.index].status.as_str().to_owned(),
        })?;
        self.seal()?;
        let hint = format!("`forgelm approve {run} --output-dir {}` approves it", folder.display());
        let blocking = stage.name.clone();
        Ok(PipelineError::ResumeRefused { requested, blocking, status, hint }.into())
    }

    /// The model that a stage begins at, ready to be loaded.
    fn input(&mut self, stage: &StagePlan) -> Result<Input, RunError> {
        let given = match &self.request.what {
            What::Only { input_model, .. } => input_model.clone(),
            What::Whole | What::Rest | What::From(_) => None,
        };
        let (shown, source, place) = match (given, stage.source()) {
            (Some(path), _) => (path.clone(), InputSource::CliOverride, path),
            (None, InputSource::Chain) => self.of_before(stage)?,
            (None, source) => {
                let name = stage.run.model.name_or_path.clone();
                (name.clone(), source, name)
            }
        };
        let dir = Path::new(&place);
        let is_own = matches!(source, InputSource::Root | InputSource::StageExplicit);
        if dir.join(ADAPTER_CONFIG).is_file() {
            let own = stage.plan((!is_own).then_some(&place))?;
            let before =
                (source == InputSource::Chain).then(|| &self.plan.stages[stage.index - 1].run);
            let folding = Folding {
                dir: &self.plan.dir,
                stage: &stage.name,
                adapter: dir,
                request: model::ModelRequest {
                    revision: None,
                    overrides: crate::overrides::Overrides::default(),
                    chat_template: None,
                    ..model::request_of(&own, self.request.offline)
                },
                trained_by: before,
            };
            let start = folding.prepare(self.env, self.observer)?;
            let model = self.plan.dir.join(&start.path).display().to_string();
            let sha256 = Some(start.sha256.clone());
            return Ok(Input { shown, source, model: Some(model), start: Some(start), sha256 });
        }
        let sha256 = match source {
            InputSource::Chain => Some(model::weights_sha256(&ModelFiles::Folder(dir.to_owned()))?),
            InputSource::Root | InputSource::StageExplicit | InputSource::CliOverride => None,
        };
        Ok(Input { shown, source, model: (!is_own).then_some(place), start: None, sha256 })
    }

    /// The model of the stage before: below the pipeline's folder, and from here.
    fn of_before(&mut self, stage: &StagePlan) -> Result<(String, InputSource, String), RunError> {
        let before = &self.plan.stages[stage.index - 1];
        let row = &mut self.state.stages[before.index];
        let output = match (&row.output_model, row.status) {
            (Some(output), StageStatus::Completed) => output.clone(),
            _ => before.final_model(),
        };
        let path = self.plan.dir.join(&output);
        if !path.is_dir() {
            return Err(PipelineError::NoInput {
                stage: stage.name.clone(),
                before: before.name.clone(),
                path,
            }
            .into());
        }
        row.output_model = Some(output.clone());
        Ok((output, InputSource::Chain, path.display().to_string()))
    }

    /// What the stage is kept as, if it is done; else how its run begins. What another run left in its
    /// folder is moved out of the way: nothing is overwritten.
    fn is_there(
        &mut self,
        stage: &StagePlan,
        input: &Input,
    ) -> Result<(Option<Facts>, Resume), RunError> {
        if self.begun.is_new && self.begun.only.is_none() {
            return Ok((None, Resume::No));
        }
        let plan = stage.plan(input.model.as_deref())?;
        let reason = difference(&plan, input.sha256.as_deref())?;
        let standing = match reason {
            Some(reason) => Standing::Incomplete(reason),
            None => self.standing(stage, &plan)?,
        };
        match standing {
            Standing::Nothing => Ok((None, Resume::No)),
            Standing::Unfinished | Standing::Ended(_) => Ok((None, Resume::Newest)),
            Standing::Done(facts) => Ok((Some(facts), Resume::Newest)),
            Standing::Incomplete(reason) => {
                self.supersede(stage, reason)?;
                Ok((None, Resume::No))
            }
        }
    }

    /// Keeps what a stage left under another name.
    fn supersede(&mut self, stage: &StagePlan, reason: String) -> Result<(), RunError> {
        let folder = |n: u32| format!("{}.superseded.{n}", stage.folder);
        let is_free = |n: &u32| self.plan.dir.join(folder(*n)).symlink_metadata().is_err();
        let moved_to = folder((1..).find(is_free).unwrap_or(1));
        self.warn(format!(
            "stage `{}` runs again: {reason}; what it left is in `{moved_to}`",
            stage.name
        ));
        write::rename_new(&self.plan.dir.join(&stage.folder), &self.plan.dir.join(&moved_to))?;
        self.record(&AuditEvent::PipelineStageSuperseded {
            pipeline_run_id: self.state.pipeline_run_id.clone(),
            stage_name: stage.name.clone(),
            moved_to,
            reason,
        })
    }

    /// A new attempt at a stage.
    fn attempt(&mut self, stage: &StagePlan, input: Option<&Input>) {
        self.reopen();
        let trainer = stage.run.training.trainer_type.to_string();
        let started_at = Some(self.now());
        let row = &mut self.state.stages[stage.index];
        *row = StageRow { started_at, ..StageRow::new(stage.index, &stage.name, &trainer) };
        row.status = StageStatus::Running;
        // What was made from what this stage made before is taken as done only once it is compared.
        let following = self.plan.stages[stage.index + 1..].iter();
        for follower in following.take_while(|other| other.source() == InputSource::Chain) {
            let row = &mut self.state.stages[follower.index];
            if row.status == StageStatus::Completed {
                *row = StageRow::new(row.index, &row.name, &row.trainer_type);
                if self.begun.only.is_some() {
                    row.status = StageStatus::SkippedByFilter;
                }
            }
        }
        if let Some(input) = input {
            self.begin_at(stage.index, input);
        }
    }

    fn begin_at(&mut self, index: usize, input: &Input) {
        let row = &mut self.state.stages[index];
        row.input_model = Some(input.shown.clone());
        row.input_source = Some(input.source);
        row.start_model.clone_from(&input.start);
    }

    fn run_stage(
        &mut self,
        stage: &StagePlan,
        input: &Input,
        resume: Resume,
    ) -> Result<Exit, RunError> {
        let start = self.env.clock.monotonic();
        self.attempt(stage, Some(input));
        self.record(&AuditEvent::PipelineStageStarted {
            pipeline_run_id: self.state.pipeline_run_id.clone(),
            stage_name: stage.name.clone(),
            stage_index: stage.index as u64,
            input_model: input.shown.clone(),
            input_source: input.source.as_str().to_owned(),
        })?;
        self.save()?;
        let (n, trainer) = (self.plan.stages.len(), &stage.run.training.trainer_type);
        let text = format!("stage {} of {n}: {} ({trainer})", stage.index + 1, stage.name);
        self.notice(text);
        let result = self.trained(stage, input, resume);
        let seconds = self.env.clock.monotonic().saturating_sub(start);
        self.ended(stage, result, seconds)
    }

    fn trained(
        &mut self,
        stage: &StagePlan,
        input: &Input,
        resume: Resume,
    ) -> Result<Outcome, RunError> {
        let plan = stage.plan(input.model.as_deref())?;
        let env = Environment { random_bits: self.bits(stage.index), ..self.env.clone() };
        let mut plugins = plugins::load(&plan, &env)?;
        let request = training::Request {
            resume,
            force_resume: false,
            offline: self.request.offline,
            expected: None,
            strict_compliance: self.request.strict_compliance,
            pipeline_run_id: Some(self.state.pipeline_run_id.clone()),
        };
        train(&plan, &request, &mut plugins, &env, self.observer)
    }

    /// Bits for the id of a stage's run, which another stage has not.
    fn bits(&self, index: usize) -> u128 {
        let text = format!("{:032x}/{index}", self.env.random_bits);
        let digest = sha256_bytes(text.as_bytes());
        u128::from_str_radix(&digest.as_str()[..32], 16).unwrap_or(self.env.random_bits)
    }

    /// What follows from how the run of a stage ended.
    fn ended(
        &mut self,
        stage: &StagePlan,
        result: Result<Outcome, RunError>,
        seconds: Duration,
    ) -> Result<Exit, RunError> {
        let folder = self.plan.dir.join(&stage.folder);
        let finished_at = Some(self.now());
        let row = &mut self.state.stages[stage.index];
        row.finished_at = finished_at;
        row.duration_seconds = Some(seconds.as_secs_f64());
        let rejected = |exit, cause, error| Failure { exit, cause, error, is_reverted: false };
        let reverted = |reasons: String| Failure {
            exit: Exit::Gate,
            cause: "auto_revert",
            error: format!("its model was reverted: {reasons}"),
            is_reverted: true,
        };
        match result {
            Ok(Outcome::Completed(completed)) => {
                row.error.clone_from(&completed.export_error);
                self.completed(stage, facts_of(&completed))
            }
            Ok(Outcome::AlreadyComplete { .. }) => self.completed(stage, Facts::of(&folder)),
            Ok(Outcome::Staged(completed)) => {
                self.gated(stage, facts_of(&completed), &completed.final_model)
            }
            Ok(Outcome::Waiting { run_id, staging, .. }) => {
                let facts = Facts { run_id: Some(run_id), ..Facts::of(&folder) };
                self.gated(stage, facts, &staging)
            }
            Ok(Outcome::Reverted(completed)) => {
                self.know(stage, facts_of(&completed));
                let failed = completed.gates.iter().filter_map(|gate| gate.reason.clone());
                self.failed(stage, reverted(failed.collect::<Vec<_>>().join("; ")))
            }
            Ok(Outcome::AlreadyReverted { run_id, reasons }) => {
                let facts = Facts { run_id: Some(run_id), ..Facts::of(&folder) };
                self.know(stage, facts);
                self.failed(stage, reverted(reasons.join("; ")))
            }
            Ok(Outcome::AlreadyRejected { run_id, reason }) => {
                let facts = Facts { run_id: Some(run_id), ..Facts::of(&folder) };
                self.know(stage, facts);
                let error = format!("its model was rejected {reason}");
                self.failed(stage, rejected(Exit::Gate, "evaluation gate", error))
            }
            Ok(Outcome::Interrupted { step, .. }) => {
                self.interrupted(stage, format!("after step {step}, with a good checkpoint"))
            }
            // A stage is compared with nothing.
            Ok(Outcome::Compared { step }) => {
                let error = format!("it ended after step {step} without a model");
                self.failed(stage, rejected(Exit::Runtime, "training error", error))
            }
            Err(error) if error.exit() == Exit::Interrupted => {
                self.interrupted(stage, error.chain())
            }
            Err(error) => self.failed(stage, Failure::of(&error)),
        }
    }

    fn know(&mut self, stage: &StagePlan, facts: Facts) {
        let file = format!("{}/{SUMMARY}", stage.folder);
        let sha256 = sha256_file(&self.plan.dir.join(&file)).ok().map(|sha256| sha256.to_string());
        let row = &mut self.state.stages[stage.index];
        row.run_id = facts.run_id;
        row.measure(&facts.metrics);
        row.gate_failures = facts.gate_failures;
        row.training_manifest = Some(file);
        row.training_manifest_sha256 = sha256;
    }

    /// Takes a stage that is done as it is; the log gets the line that it lacks after a kill.
    pub(super) fn adopt(&mut self, stage: &StagePlan, facts: Facts) -> Result<Exit, RunError> {
        let row = &self.state.stages[stage.index];
        let is_known = row.status == StageStatus::Completed && self.log_has_passed(&stage.name);
        if is_known {
            let text =
                format!("stage `{}` is done, and everything that it signed verifies", stage.name);
            self.notice(text);
            return Ok(Exit::Success);
        }
        self.notice(format!("stage `{}` is done, which was not recorded yet", stage.name));
        self.reopen();
        self.completed(stage, facts)
    }

    fn completed(&mut self, stage: &StagePlan, facts: Facts) -> Result<Exit, RunError> {
        self.know(stage, facts);
        let finished_at = self.now();
        let row = &mut self.state.stages[stage.index];
        row.status = StageStatus::Completed;
        row.output_model = Some(stage.final_model());
        row.gate_decision = Some(GateDecision::Passed);
        row.exit_code = Some(Exit::Success.code());
        row.finished_at.get_or_insert(finished_at);
        let metrics = row.metrics.clone();
        self.save()?;
        self.record(&AuditEvent::PipelineStageCompleted {
            pipeline_run_id: self.state.pipeline_run_id.clone(),
            stage_name: stage.name.clone(),
            gate_decision: "passed".to_owned(),
            metrics: Some(metrics),
            auto_revert_triggered: None,
        })?;
        Ok(Exit::Success)
    }

    fn gated(&mut self, stage: &StagePlan, facts: Facts, staging: &Path) -> Result<Exit, RunError> {
        self.know(stage, facts);
        let name = staging.file_name().unwrap_or_default().to_string_lossy();
        // Beside the final one, which may lie deeper in the folder.
        let beside = stage.final_model();
        let beside = beside.rsplit_once('/').map_or(stage.folder.as_str(), |(beside, _)| beside);
        let staging_path = format!("{beside}/{name}");
        let row = &mut self.state.stages[stage.index];
        row.status = StageStatus::GatedPendingApproval;
        row.output_model = Some(staging_path.clone());
        row.exit_code = Some(Exit::AwaitingApproval.code());
        self.state.stopped_at = Some(stage.name.clone());
        self.record(&AuditEvent::PipelineStageGated {
            pipeline_run_id: self.state.pipeline_run_id.clone(),
            stage_name: stage.name.clone(),
            gate_decision: "approval_pending".to_owned(),
            staging_path,
        })?;
        self.save()?;
        Ok(Exit::AwaitingApproval)
    }

    fn interrupted(&mut self, stage: &StagePlan, error: String) -> Result<Exit, RunError> {
        let row = &mut self.state.stages[stage.index];
        row.exit_code = Some(Exit::Interrupted.code());
        row.error = Some(error);
        self.save()?;
        Ok(Exit::Interrupted)
    }

    fn failed(&mut self, stage: &StagePlan, failure: Failure) -> Result<Exit, RunError> {
        let finished_at = self.now();
        let row = &mut self.state.stages[stage.index];
        row.status = StageStatus::Failed;
        row.finished_at.get_or_insert(finished_at);
        row.gate_decision = Some(GateDecision::Failed);
        row.auto_revert_triggered = failure.is_reverted;
        row.exit_code = Some(failure.exit.code());
        row.error = Some(failure.error.clone());
        self.state.stopped_at = Some(stage.name.clone());
        if self.begun.only.is_none() {
            let reason =
                format!("Stage '{}' {}; downstream stages did not run.", stage.name, failure.cause);
            for row in &mut self.state.stages[stage.index + 1..] {
                *row = StageRow::new(row.index, &row.name, &row.trainer_type);
                row.status = StageStatus::SkippedDueToPriorRevert;
                row.skipped_reason = Some(reason.clone());
            }
        }
        let (pipeline_run_id, stage_name) =
            (self.state.pipeline_run_id.clone(), stage.name.clone());
        let gate_decision = "failed".to_owned();
        let event = match failure.is_reverted {
            true => AuditEvent::PipelineStageReverted {
                pipeline_run_id,
                stage_name,
                gate_decision,
                auto_revert_triggered: true,
            },
            false => AuditEvent::PipelineStageCompleted {
                pipeline_run_id,
                stage_name,
                gate_decision,
                metrics: None,
                auto_revert_triggered: Some(false),
            },
        };
        self.record(&event)?;
        self.save()?;
        if failure.is_reverted {
            let (stage_name, reason) = (stage.name.clone(), failure.error);
            self.tell(&Notice::StageReverted { stage_name, reason });
        }
        Ok(failure.exit)
    }
}

/// What a run that has just ended says of itself.
fn facts_of(completed: &Completed) -> Facts {
    let failed = completed.gates.iter().filter(|gate| !gate.passed);
    Facts {
        run_id: Some(completed.run_id.clone()),
        metrics: completed.metrics.clone(),
        gate_failures: failed.filter_map(|gate| gate.reason.clone()).collect(),
    }
}
