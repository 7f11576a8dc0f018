//! The main job: a config to a tuned model and its evidence.
//!
//! Read [`train`] from top to bottom: it is the order in which things happen. Everything that can
//! be refused is refused before the run's folder is made.

use crate::dossier::{self, Dossier};
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{
    Checkpoint, DataReady, Evaluation, Event, ModelLoaded, Observer, Started, Step, When,
};
use crate::metrics::MetricsFile;
use crate::model::{self, FoundModel, LoadedModel, ModelRequest};
use crate::output::Start;
use crate::plan::Plan;
use crate::resume::{self, Resume};
use crate::sample::{Question, Voice};
use crate::{memory, settings};
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::write::{self, StagedDir};
use forgelm_artifact::{Disk, UtcTime};
use forgelm_config::{EnvironmentKey, environment_keys};
use forgelm_data::{Dataset, RenderSettings, Rendered, Renderer};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_hub::Source;
use forgelm_model::{Adapter, PeftInfo};
use forgelm_plugin::Registry;
use forgelm_sdk::trainer::Trainer;
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_train::checkpoint::{self, View};
use forgelm_train::optimizer::Optimizer;
use forgelm_train::session::{self, Parts, Session, StepError};
use forgelm_train::state::{Identity, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How a run ended that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A tuned model and its evidence are in the run's folder.
    Completed(Completed),
    /// Stopped on request; this checkpoint is good.
    Interrupted {
        /// Its folder.
        checkpoint: PathBuf,
        /// Steps done.
        step: u64,
    },
    /// There was nothing left to do.
    AlreadyComplete {
        /// The tuned model.
        final_model: PathBuf,
    },
}

/// See [`Outcome::Completed`].
#[derive(Clone, Debug, PartialEq)]
pub struct Completed {
    /// Of this run.
    pub run_id: String,
    /// SHA-256 of the resolved config.
    pub config_hash: String,
    /// The tuned model.
    pub final_model: PathBuf,
    /// Final numbers.
    pub metrics: BTreeMap<String, f64>,
    /// Time, memory and devices.
    pub resource_usage: Value,
}

/// What was asked for besides the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Continue from a checkpoint.
    pub resume: Resume,
    /// Although the config changed.
    pub force_resume: bool,
    /// No network.
    pub offline: bool,
}

/// Runs a plan.
///
/// # Errors
/// Everything in [`RunError`]; the last checkpoint is good whatever happens.
pub fn train(
    plan: &Plan,
    request: &Request,
    registry: &Registry,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let started_at = env.clock.utc();
    for warning in &plan.warnings {
        observer.observe(&Event::Warning(warning.to_string()));
    }
    let start = if request.resume == Resume::No { Start::Fresh } else { Start::Resume };
    plan.output.check(&local_inputs(plan), start)?;
    let trainer_name = plan.run.training.trainer_type.to_string();
    let trainer = (registry.trainer(&trainer_name)?.build)(&[])?;
    check_variables(plan, env)?;
    let operator = dossier::operator(env)?;
    let key = dossier::signing_key(plan, env, observer)?;
    let from = resume::choose(&request.resume, &plan.output, observer)?;
    if let Some(outcome) = already_complete(plan, from.as_ref()) {
        return Ok(outcome);
    }
    let template_now = match &from {
        Some(from) => from.state.identity.template_now,
        None => template_now(plan, started_at),
    };

    let dataset = forgelm_data::open(&plan.run.data, plan.run.training.trainer_type)?;
    let model_request = model_request(plan, request);
    let load_start = env.clock.monotonic();
    let found = model::find(&model_request, env, observer)?;
    let data = TokenizedData::new(plan, &dataset, &found, template_now, observer)?;
    let loaded = model::load(&found, &model_request)?;
    let adapter = new_adapter(plan, &found)?;
    let optimizer = Optimizer::new(settings::optimizer(&plan.run), &adapter.slices())?;
    observer.observe(&Event::ModelLoaded(ModelLoaded {
        name: plan.run.model.name_or_path.clone(),
        n_params: loaded.decoder.config().n_parameters() as u64,
        n_trainable: adapter.params().len() as u64,
        kernels: loaded.decoder.ops().name().to_owned(),
        compute_dtype: model::compute_name(loaded.decoder.compute()),
        n_threads: loaded.decoder.ops().n_threads(),
        seconds: (env.clock.monotonic() - load_start).as_secs_f64(),
    }));
    let identity = identity(plan, env, &dataset, &loaded, template_now);
    let memory_planned = check_room(plan, &data, &loaded, &adapter, &optimizer)?;

    plan.output.create()?;
    let lock = RunLock::acquire(plan.output.root(), &identity.run_id, started_at)?;
    if let Some(kind) = lock.weak_file_system() {
        let text = format!("the run's folder is on {kind}: another machine may not see its lock");
        observer.observe(&Event::Warning(text));
    }
    // Another run may have filled the folder while this one was reading.
    plan.output.check(&local_inputs(plan), start)?;
    write::remove_leftovers(plan.output.root())?;
    let mut job = Job {
        plan,
        env,
        observer,
        found: &found,
        loaded: &loaded,
        trainer: trainer.as_ref(),
        dataset: &dataset,
        data: &data,
        peft: peft_info(plan, &found),
        stop_ids: model::stop_ids(&found.tokenizer, found.template.as_ref()),
        template_now,
        started_at,
        memory_planned,
    };
    let mut audit = job.open_audit(&identity.run_id, operator, &key)?;
    let result =
        job.run((adapter, optimizer), identity, from, request.force_resume, &key, &mut audit);
    if let Err(error) = &result {
        // The error itself matters more than a log that cannot take it.
        let _ = audit.append(&AuditEvent::PipelineFailed { error: error.chain() });
    }
    result
}

/// The training and validation sequences of a run and the order in which they come.
struct TokenizedData {
    train: Rendered,
    validation: Rendered,
    plan: forgelm_data::Plan,
    question: Option<Question>,
}

impl TokenizedData {
    fn new(
        plan: &Plan,
        dataset: &Dataset,
        found: &FoundModel,
        template_now: i64,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let run = &plan.run;
        let split = forgelm_data::split(dataset.records.len(), run.data.validation_split);
        let settings = RenderSettings {
            max_length: run.model.max_length,
            train_on_all: run.data.train_on == forgelm_config::TrainOn::All,
            add_eos: run.data.add_eos,
            template_now: Some(template_now),
            threads: run.training.threads.unwrap_or_else(model::all_cores),
        };
        let renderer = Renderer::new(&found.tokenizer, found.template.as_ref(), settings);
        let train = renderer.render(&dataset.records, &split.train)?;
        let validation = renderer.render(&dataset.records, &split.validation)?;
        let lengths: Vec<usize> = train.sequences.iter().map(|s| s.tokens.len()).collect();
        let data_plan = forgelm_data::Plan::new(settings::data_plan(run), &lengths);
        let question = Question::first(split.validation.iter().map(|&i| &dataset.records[i]))
            .or_else(|| Question::first(&dataset.records));
        let data = Self { train, validation, plan: data_plan, question };
        data.report(dataset, observer);
        Ok(data)
    }

    fn report(&self, dataset: &Dataset, observer: &mut dyn Observer) {
        let statistics = &self.train.statistics;
        if !dataset.skipped.is_empty() {
            observer.observe(&Event::Warning(format!("rows left out: {}", dataset.skipped)));
        }
        if statistics.dropped > 0 {
            let text =
                format!("{} records have nothing to train and were left out", statistics.dropped);
            observer.observe(&Event::Warning(text));
        }
        if statistics.special_texts > 0 {
            let text = format!(
                "the data has {} texts that look like special tokens; they are kept as plain text",
                statistics.special_texts
            );
            observer.observe(&Event::Warning(text));
        }
        if self.validation.sequences.is_empty() {
            let text = "no validation split: there is no validation loss, and the last weights are \
                        kept rather than the best";
            observer.observe(&Event::Warning(text.to_owned()));
        }
        observer.observe(&Event::DataReady(DataReady {
            n_train: self.train.sequences.len(),
            n_validation: self.validation.sequences.len(),
            n_tokens: statistics.tokens,
            n_trained_tokens: statistics.trained_tokens,
            longest: statistics.longest,
            n_truncated: statistics.truncated,
        }));
    }
}

/// A run whose inputs are all in memory.
struct Job<'a> {
    plan: &'a Plan,
    env: &'a Environment,
    observer: &'a mut dyn Observer,
    found: &'a FoundModel,
    loaded: &'a LoadedModel,
    trainer: &'a dyn Trainer,
    dataset: &'a Dataset,
    data: &'a TokenizedData,
    peft: PeftInfo,
    stop_ids: Vec<u32>,
    template_now: i64,
    started_at: UtcTime,
    memory_planned: u64,
}

impl Job<'_> {
    fn open_audit(
        &self,
        run_id: &str,
        operator: String,
        key: &Option<FoundKey>,
    ) -> Result<AuditLog, RunError> {
        let identity = AuditIdentity {
            run_id: run_id.to_owned(),
            operator,
            secret: self.env.audit_secret.as_ref().and_then(dossier::to_evidence),
            allow_reroot: self.env.allow_audit_reroot,
        };
        let mut audit = AuditLog::open(self.plan.output.root(), identity, self.env.clock.clone())?;
        audit.append(&match key {
            Some(found) => AuditEvent::SigningKeyLoaded {
                keyid: found.signer.key.id().as_str().to_owned(),
                key_origin: found.signer.origin.as_str().to_owned(),
            },
            None => AuditEvent::SigningSkipped { reason: "signing.enabled is false".to_owned() },
        })?;
        audit.append(&AuditEvent::PipelineInitialized {
            model: self.plan.run.model.name_or_path.clone(),
            trainer_type: self.plan.run.training.trainer_type.to_string(),
        })?;
        Ok(audit)
    }

    fn run(
        &mut self,
        (fresh, optimizer): (Adapter, Optimizer),
        identity: Identity,
        from: Option<resume::From>,
        force_resume: bool,
        key: &Option<FoundKey>,
        audit: &mut AuditLog,
    ) -> Result<Outcome, RunError> {
        let run_id = identity.run_id.clone();
        let (adapter, optimizer, state) = match &from {
            None => (fresh, optimizer, State::new(self.data.plan.n_steps(), identity)),
            Some(from) => {
                let fresh = (&fresh, optimizer);
                self.continued(from, fresh, identity, force_resume, audit)?
            }
        };
        let n_steps_done = state.global_step;
        let mut metrics = MetricsFile::open(&self.plan.output.metrics(), n_steps_done)?;
        let mut session = Session::new(Parts {
            decoder: &self.loaded.decoder,
            trainer: self.trainer,
            train: &self.data.train.sequences,
            validation: &self.data.validation.sequences,
            plan: &self.data.plan,
            settings: settings::training(&self.plan.run, self.data.plan.n_steps()),
            adapter,
            optimizer,
            state,
        })?;
        self.observer.observe(&Event::Started(Started {
            run_id: run_id.clone(),
            n_steps: self.data.plan.n_steps(),
            n_steps_done,
            output_dir: self.plan.output.root().to_owned(),
            memory_bytes_planned: self.memory_planned,
        }));
        audit.append(&AuditEvent::TrainingStarted)?;
        if n_steps_done == 0 {
            self.sample(When::Before, None)?;
            self.evaluate(&mut session, &mut metrics)?;
        }
        let train_start = self.env.clock.monotonic();
        if let Some(interrupted) = self.steps(&mut session, &mut metrics, audit)? {
            return Ok(interrupted);
        }
        let train_seconds = (self.env.clock.monotonic() - train_start).as_secs_f64();
        self.restore_best(&mut session)?;
        self.sample(When::After, Some(session.adapter()))?;
        self.check_unchanged()?;
        self.save_final_model(&session)?;
        let dossier = Dossier {
            plan: self.plan,
            env: self.env,
            found: self.found,
            loaded: self.loaded,
            dataset: self.dataset,
            statistics: [self.data.train.statistics, self.data.validation.statistics],
            state: session.state(),
            run_id: &run_id,
            started_at: self.started_at,
            train_seconds,
            template_now: self.template_now,
        };
        let completed = dossier.write(key.as_ref(), audit)?;
        Ok(Outcome::Completed(completed))
    }

    /// Adapter, moments and state out of a checkpoint, once it is sure that they belong to this
    /// run.
    fn continued(
        &mut self,
        from: &resume::From,
        (fresh, optimizer): (&Adapter, Optimizer),
        identity: Identity,
        force_resume: bool,
        audit: &mut AuditLog,
    ) -> Result<(Adapter, Optimizer, State), RunError> {
        let differences = from.state.identity.differences(&identity);
        if !differences.is_empty() && !force_resume {
            return Err(RunError::OtherRun { checkpoint: from.path.clone(), differences });
        }
        let model = self.loaded.decoder.config();
        let loaded = checkpoint::load(&from.path, fresh.config(), model, optimizer)?;
        let previous = loaded.state.identity.run_id.clone();
        audit.append(&AuditEvent::TrainingResumed {
            from_checkpoint: from.path.display().to_string(),
            step: loaded.state.global_step,
            previous_run_id: Some(previous),
            changes: differences.clone(),
        })?;
        let text = format!("continuing from `{}`", from.path.display());
        self.observer.observe(&Event::Notice(text));
        for difference in differences {
            self.observer.observe(&Event::Warning(format!("forced although {difference}")));
        }
        let mut state = loaded.state;
        state.max_steps = self.data.plan.n_steps();
        state.identity = identity;
        Ok((loaded.adapter, loaded.optimizer, state))
    }

    /// Steps, evaluations and checkpoints until the end or a request to stop.
    fn steps(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
        audit: &mut AuditLog,
    ) -> Result<Option<Outcome>, RunError> {
        let training = &self.plan.run.training;
        let log_every = settings::logging_steps(&self.plan.run, self.data.train.sequences.len());
        while !session.state().is_finished() {
            if self.env.stop_requested() {
                return self.interrupt(session, audit).map(Some);
            }
            self.step(session, metrics, log_every)?;
            let step = session.state().global_step;
            let is_last = step >= session.state().max_steps;
            let is_save_due = step.is_multiple_of(training.save_steps) || is_last;
            let is_eval_due = step.is_multiple_of(training.eval_steps) || is_save_due;
            let is_best = is_eval_due && self.evaluate(session, metrics)?;
            if is_save_due || is_best || session.state().is_stopped_early {
                self.checkpoint(session)?;
            }
        }
        Ok(None)
    }

    fn step(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
        log_every: u64,
    ) -> Result<(), RunError> {
        let start = self.env.clock.monotonic();
        let report = match session.step() {
            Ok(report) => report,
            Err(error) => {
                self.write_replay(&error)?;
                return Err(error.into());
            }
        };
        let state = session.state();
        let step = Step {
            step: state.global_step,
            epoch: state.epoch,
            loss: report.loss,
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            n_tokens: report.n_tokens,
            n_trained_tokens: report.n_terms,
            n_trained_tokens_total: state.n_trained_tokens,
            seconds: (self.env.clock.monotonic() - start).as_secs_f64(),
            log: state.global_step == 1 || state.global_step.is_multiple_of(log_every),
        };
        metrics.step(&step, &report.metrics)?;
        self.observer.observe(&Event::Step(step));
        Ok(())
    }

    /// Scores the validation split, if there is one; whether it is the best so far.
    fn evaluate(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
    ) -> Result<bool, RunError> {
        let start = self.env.clock.monotonic();
        let Some(report) = session.evaluate() else { return Ok(false) };
        let patience = self.plan.run.training.early_stopping_patience;
        let is_best = session.state_mut().record_evaluation(report.loss, patience);
        let evaluation = Evaluation {
            step: session.state().global_step,
            epoch: session.state().epoch,
            loss: report.loss,
            n_trained_tokens: report.n_terms,
            seconds: (self.env.clock.monotonic() - start).as_secs_f64(),
            is_best,
        };
        metrics.evaluation(&evaluation)?;
        self.observer.observe(&Event::Evaluation(evaluation));
        if session.state().is_stopped_early {
            let text = format!("stopped early: no lower validation loss in {patience} evaluations");
            self.observer.observe(&Event::Notice(text));
        }
        Ok(is_best)
    }

    fn checkpoint(&mut self, session: &Session<'_>) -> Result<PathBuf, RunError> {
        let view = View {
            adapter: session.adapter(),
            peft: &self.peft,
            optimizer: session.optimizer(),
            state: session.state(),
        };
        let root = self.plan.output.root();
        let path = checkpoint::save(&Disk::real(), root, view)?;
        let best = session.state().best_global_step;
        checkpoint::rotate(root, self.plan.run.training.save_total_limit, best)?;
        let step = session.state().global_step;
        self.observer.observe(&Event::Checkpoint(Checkpoint { step, path: path.clone() }));
        Ok(path)
    }

    fn interrupt(
        &mut self,
        session: &Session<'_>,
        audit: &mut AuditLog,
    ) -> Result<Outcome, RunError> {
        let step = session.state().global_step;
        let checkpoint = self.checkpoint(session)?;
        audit.append(&AuditEvent::TrainingInterrupted {
            step,
            checkpoint: Some(checkpoint.display().to_string()),
        })?;
        Ok(Outcome::Interrupted { checkpoint, step })
    }

    /// The weights with the lowest validation loss, where there is one.
    fn restore_best(&mut self, session: &mut Session<'_>) -> Result<(), RunError> {
        let state = session.state();
        let Some(best) = state.best_global_step.filter(|&best| best != state.global_step) else {
            return Ok(());
        };
        let path = checkpoint::path(self.plan.output.root(), best);
        let (config, model) = (session.adapter().config(), self.loaded.decoder.config());
        let best_adapter = checkpoint::load_adapter(&path, config, model)?;
        let text = format!("step {best} had the lowest validation loss; its weights are kept");
        self.observer.observe(&Event::Notice(text));
        session.adapter_mut().params_mut().copy_from_slice(best_adapter.params());
        Ok(())
    }

    fn sample(&mut self, when: When, adapter: Option<&Adapter>) -> Result<(), RunError> {
        let (Some(question), Some(template)) = (&self.data.question, &self.found.template) else {
            return Ok(());
        };
        let voice = Voice {
            tokenizer: &self.found.tokenizer,
            template,
            stop_ids: &self.stop_ids,
            now: Some(self.template_now),
        };
        let sample = question.ask(when, &self.loaded.decoder, adapter, &voice)?;
        self.observer.observe(&Event::Sample(sample));
        Ok(())
    }

    /// The data must still be what was read: evidence about other bytes would be false.
    fn check_unchanged(&self) -> Result<(), RunError> {
        for file in &self.dataset.files {
            if forgelm_artifact::hash::sha256_file(&file.path)? != file.sha256 {
                return Err(RunError::Changed { path: file.path.clone() });
            }
        }
        Ok(())
    }

    fn save_final_model(&self, session: &Session<'_>) -> Result<(), RunError> {
        let mut dir = StagedDir::new(self.plan.output.final_model())?;
        for (name, bytes) in session.adapter().to_files(&self.peft) {
            dir.write(name, &bytes)?;
        }
        for (name, text) in self.found.tokenizer.files()? {
            dir.write(&name, text.as_bytes())?;
        }
        dir.commit_replacing()?;
        Ok(())
    }

    /// What is needed to look into a step that gave no finite number.
    fn write_replay(&self, error: &StepError) -> Result<(), RunError> {
        let StepError::NotFinite { step, what, value, records } = error;
        let line_of =
            |record: &u64| usize::try_from(*record).ok().map(|i| self.dataset.records[i].line);
        let replay = json!({
            "step": step,
            "what": what,
            "value": value.to_string(),
            "records": records,
            "lines": records.iter().map(line_of).collect::<Vec<_>>(),
            "data": self.plan.run.data.dataset_name_or_path,
        });
        let text = forgelm_artifact::json::pretty(&replay);
        write::atomic(&self.plan.output.replay(*step), text.as_bytes())?;
        Ok(())
    }
}

/// Every variable that the config names must be there before anything starts.
fn check_variables(plan: &Plan, env: &Environment) -> Result<(), RunError> {
    for EnvironmentKey { key, name } in environment_keys(&plan.run) {
        if (env.variable)(&name).is_none() {
            return Err(RunError::Variable { key, name });
        }
    }
    Ok(())
}

/// What the run reads that is a folder or file of its own on this machine.
fn local_inputs(plan: &Plan) -> Vec<&Path> {
    match &plan.source {
        Source::LocalFolder(path) | Source::GgufFile(path) => vec![path],
        Source::Hub { .. } | Source::Pypi { .. } => Vec::new(),
    }
}

fn model_request(plan: &Plan, request: &Request) -> ModelRequest {
    let run = &plan.run;
    ModelRequest {
        name: run.model.name_or_path.clone(),
        revision: run.model.revision.clone(),
        adapter: None,
        offline: run.model.offline || request.offline,
        token: run.auth.as_ref().and_then(|auth| auth.hf_token.clone()),
        compute: run.training.compute_dtype,
        threads: run.training.threads,
        chat_template: run.model.chat_template.clone(),
    }
}

fn new_adapter(plan: &Plan, found: &FoundModel) -> Result<Adapter, RunError> {
    let stream = Stream::new(plan.run.training.seed, Purpose::LoraInit);
    Ok(Adapter::new(settings::lora(&plan.run), found.open.config(), &stream)?)
}

/// The base as the adapter's config file names it; for a wheel the revision is its SHA-256.
fn peft_info(plan: &Plan, found: &FoundModel) -> PeftInfo {
    PeftInfo {
        base_model_name_or_path: plan.run.model.name_or_path.clone(),
        revision: found.resolved.revision.revision_resolved.clone(),
    }
}

fn identity(
    plan: &Plan,
    env: &Environment,
    dataset: &Dataset,
    loaded: &LoadedModel,
    template_now: i64,
) -> Identity {
    Identity {
        run_id: env.run_id(),
        config_hash: plan.config_hash.clone(),
        config: plan.identity(),
        data_sha256: dataset.fingerprint().as_str().to_owned(),
        model_sha256: loaded.sha256.clone(),
        compute_dtype: model::compute_name(loaded.decoder.compute()).to_owned(),
        kernels: loaded.decoder.ops().name().to_owned(),
        template_now,
    }
}

/// What chat templates take for the present: `data.template_now`, else the day of the run.
fn template_now(plan: &Plan, started_at: UtcTime) -> i64 {
    const SECONDS_PER_DAY: i64 = 86_400;
    let configured = plan.run.data.template_now.as_ref();
    let date = configured.and_then(|date| format!("{date}T00:00:00Z").parse::<UtcTime>().ok());
    let seconds = date.unwrap_or(started_at).0.div_euclid(1_000_000);
    seconds.div_euclid(SECONDS_PER_DAY) * SECONDS_PER_DAY
}

/// A run whose last step, model and attestation are there.
fn already_complete(plan: &Plan, from: Option<&resume::From>) -> Option<Outcome> {
    let final_model = plan.output.final_model();
    let state = &from?.state;
    let is_complete = state.is_finished()
        && state.identity.config == plan.identity()
        && final_model.join("model_integrity.json").is_file()
        && dossier::attestation(plan).is_file();
    is_complete.then(|| Outcome::AlreadyComplete { final_model: final_model.to_owned() })
}

/// Refuses a run that does not fit into memory or onto the disk; returns the planned memory.
fn check_room(
    plan: &Plan,
    data: &TokenizedData,
    loaded: &LoadedModel,
    adapter: &Adapter,
    optimizer: &Optimizer,
) -> Result<u64, RunError> {
    let size = session::largest_step(&data.train.sequences, &data.validation.sequences, &data.plan);
    let memory_plan = session::memory_plan(&loaded.decoder, adapter, optimizer, size);
    let needed = memory_plan.total_bytes() as u64;
    let held = loaded.decoder.weights_bytes() as u64;
    if let Some(available) = memory::available().filter(|&free| free < needed - held) {
        let mut buffers = memory_plan.buffers;
        buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
        let named = |buffer: &forgelm_model::PlannedBuffer| {
            format!("{} ({} bytes)", buffer.name, buffer.bytes)
        };
        let largest = buffers.iter().take(3).map(named).collect::<Vec<_>>().join(", ");
        let hint = "halve `training.per_device_train_batch_size` and double \
                    `training.gradient_accumulation_steps`: the result is the same"
            .to_owned();
        return Err(RunError::Memory { needed: needed - held, available, largest, hint });
    }
    let n_bytes = size_of_val(adapter.params()) + optimizer.n_bytes();
    let checkpoint_bytes = n_bytes as u64 + (1 << 20);
    let n_checkpoints = plan.run.training.save_total_limit as u64 + 3;
    let needed_on_disk = n_checkpoints * checkpoint_bytes + (32 << 20);
    let dir = plan.output.root();
    match write::free_bytes(dir) {
        Ok(available) if available < needed_on_disk => {
            Err(RunError::Disk { dir: dir.to_owned(), needed: needed_on_disk, available })
        }
        // A system that does not say how much is free cannot be asked.
        Ok(_) | Err(_) => Ok(needed),
    }
}
