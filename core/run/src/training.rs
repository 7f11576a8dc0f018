//! The main job: a config to a tuned model and its evidence.
//!
//! Read [`train`] from top to bottom: it is the order in which things happen. Everything that can
//! be refused is refused before the run's folder is made.

mod baseline;
mod final_model;
mod finish;
mod job;
pub mod ledger;
pub(crate) mod outcome;
mod reference;
mod report;
pub(crate) mod room;
mod squeeze;
mod steps;
pub(crate) mod tokenized;
pub(crate) use reference::{ReferenceSource, prepare_references};
mod watch;

use crate::approval;
use crate::compliance::{self, NamedFiles};
use crate::cost::EnergyMeter;
use crate::data;
use crate::distributed::{Agreed, Processes};
use crate::dossier;
use crate::ended;
use crate::environment::Environment;
use crate::error::RunError;
use crate::evaluators;
use crate::event::{Event, ModelLoaded, Observer};
use crate::footprint;
use crate::gates;
use crate::kernels::{Chosen, Fallback, caught};
use crate::model::{self, FoundModel, LoadedModel};
use crate::outbound::{TimeStamps, Told};
use crate::output::Start;
use crate::pipeline::error::PipelineError;
use crate::plan::Plan;
use crate::plugins::{self, Plugins, Used};
use crate::resume::{self, Resume};
use crate::retention;
use crate::rewards::{self, RewardModel};
use crate::settings;
use forgelm_artifact::UtcTime;
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::write;
use forgelm_config::{EnvironmentKey, environment_keys};
use forgelm_evidence::approval::requests::{self, End, Status};
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::documents::evidence::Gate;
use forgelm_hub::Source;
use forgelm_model::{LoadError, PeftInfo, Trainable};
use forgelm_tensor::random::{Purpose, Stream};
use forgelm_train::optimizer::Optimizer;
use forgelm_train::session::Cut;
use forgelm_train::state::Identity;
use job::Job;
use ledger::{Expected, Ledger};
use room::{Inputs, check_room, configured_cut};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenized::TokenizedData;
use watch::Watch;

/// How a run ended that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A tuned model and its evidence are in the run's folder.
    Completed(Completed),
    /// A gate rejected the tuned model, which is deleted; the evidence says why.
    Reverted(Completed),
    /// A tuned model and its evidence are there, and people must approve before it has its final name.
    Staged(Completed),
    /// Stopped on request; this checkpoint is good.
    Interrupted {
        /// Its folder.
        checkpoint: PathBuf,
        /// Steps done.
        step: u64,
    },
    /// Every step that was to be compared with another run's is the same.
    Compared {
        /// Steps done.
        step: u64,
    },
    /// There was nothing left to do.
    AlreadyComplete {
        /// The tuned model.
        final_model: PathBuf,
    },
    /// The tuned model waits for people.
    Waiting {
        /// The run.
        run_id: String,
        /// The staged model.
        staging: PathBuf,
        /// Whether enough have approved, and its promotion was cut off.
        is_approved: bool,
    },
    /// Somebody has rejected the tuned model before.
    AlreadyRejected {
        /// The run.
        run_id: String,
        /// Who, and why.
        reason: String,
    },
    /// A gate has rejected the tuned model before.
    AlreadyReverted {
        /// The run that ended so.
        run_id: String,
        /// Why.
        reasons: Vec<String>,
    },
}

/// See [`Outcome::Completed`].
#[derive(Clone, Debug, PartialEq)]
pub struct Completed {
    /// Of this run.
    pub run_id: String,
    /// SHA-256 of the resolved config.
    pub config_hash: String,
    /// The tuned model, staged or not, or where it was.
    pub final_model: PathBuf,
    /// What the gates said.
    pub gates: Vec<Gate>,
    /// What each gate that asked the model found, as the documents have it.
    pub evaluations: Map<String, Value>,
    /// Final numbers.
    pub metrics: BTreeMap<String, f64>,
    /// Time, memory and devices.
    pub resource_usage: Value,
    /// Why the evidence is not complete, where it is not.
    pub export_error: Option<String>,
}

/// What was asked for besides the config.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Continue from a checkpoint.
    pub resume: Resume,
    /// Although the config changed.
    pub force_resume: bool,
    /// No network.
    pub offline: bool,
    /// The steps of another run that this one must repeat.
    pub expected: Option<Expected>,
    /// No point of the technical documentation may stay open.
    pub strict_compliance: bool,
    /// The pipeline of which this is a stage.
    pub pipeline_run_id: Option<String>,
}

/// Runs a plan.
///
/// # Errors
/// Everything in [`RunError`]; the last checkpoint is good whatever happens.
pub fn train(
    plan: &Plan,
    request: &Request,
    plugins: &mut Plugins,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let processes = Processes::alone(plan, plugins)?;
    train_with(plan, request, plugins, env, processes.as_ref(), observer)
}

/// [`train`] as the leader of these processes, where the config asks for several.
///
/// # Errors
/// As [`train`].
pub fn train_with(
    plan: &Plan,
    request: &Request,
    plugins: &mut Plugins,
    env: &Environment,
    processes: Option<&Processes>,
    observer: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    if plan.run.pipeline.is_some() {
        let text = "a config with a `pipeline` section is no single training\n  hint: `forgelm --config` runs it";
        let text = text.to_owned();
        return Err(PipelineError::Flags(text).into());
    }
    let mut told = Told::open(plan, request.offline, env, observer)?;
    let result = caught(|| run(plan, request, plugins, env, processes, &mut told));
    told.end(&result);
    result
}

/// [`train`], with everyone who listens.
fn run(
    plan: &Plan,
    request: &Request,
    plugins: &mut Plugins,
    env: &Environment,
    processes: Option<&Processes>,
    observer: &mut Told<'_>,
) -> Result<Outcome, RunError> {
    let started_at = env.clock.utc();
    for warning in &plan.warnings {
        observer.observe(&Event::Warning(warning.to_string()));
    }
    let strictness = compliance::check(plan, request.strict_compliance)?;
    let named = NamedFiles::read(plan, env)?;
    let start = if request.resume == Resume::No { Start::Fresh } else { Start::Resume };
    plan.output.check(&local_inputs(plan), start)?;
    plugins.tell(observer);
    let plugins = &*plugins;
    let plugin = plugins.trainer(plan)?;
    if !plugin.needs.rollouts {
        rewards::check_none(plan)?;
    }
    let (trainer, used) = plugins::build_trainer(plan, plugin)?;
    let evaluators = evaluators::build(plan, plugins)?;
    check_variables(plan, env)?;
    let examinations = gates::examinations(plan, request.offline, env, observer)?;
    let approval = approval::policy(plan)?;
    let operator = dossier::operator(env)?;
    let stamps = TimeStamps::open(&plan.run, request.offline, env, observer)?;
    let key = dossier::signing_key(plan, env, observer)?;
    // Read again when it is used: what cannot be read now is found out before the work.
    dossier::model_key(plan)?;
    observer.sign_with(key.as_ref());
    let from = resume::choose(&request.resume, &plan.output, observer)?;
    if let Some(outcome) = already_complete(plan, from.as_ref(), env.clock.utc()) {
        if let Outcome::Waiting { run_id, .. } = &outcome {
            // Who decides refuses a log with a torn line; opening it for writing mends that.
            dossier::open_audit(plan, env, run_id, operator)?;
        }
        return Ok(outcome);
    }
    if let Some(previous) = from.as_ref().and_then(|_| resume::ended_silently(&plan.output)) {
        observer.observe(&Event::Warning(previous));
    }
    retention::enforce::before_start(plan, &operator, env, observer)?;
    let template_now = match (&request.expected, &from) {
        (Some(expected), _) => expected.start.template_now,
        (None, Some(from)) => from.state.identity.template_now,
        (None, None) => template_now(plan, started_at),
    };

    if let Some(processes) = processes {
        processes.start(template_now, from.as_ref().map(|from| from.path.clone()), observer)?;
    }
    let sources = data::find(plan, request.offline, env, observer)?;
    let model_request = model::request_of(plan, request.offline);
    let found = model::find(&model_request, env, observer)?;
    if found.adapter.is_some() {
        let what =
            "`model.name_or_path` is an adapter, and training goes on from whole models only";
        return Err(RunError::NotAvailable(what.to_owned()));
    }
    if plan.run.model.moe.is_some() && found.open.config().experts.is_none() {
        let text = "`model.moe` has no effect: this model has no experts";
        observer.observe(&Event::Warning(text.to_owned()));
    }
    let needs = plugins.trainer(plan)?.needs;
    let method = (plan, plugins);
    let reward_model = RewardModel::find(method, request.offline, template_now, env, observer)?;
    let models = (&found, reward_model);
    let data = TokenizedData::new(method, &sources, models, template_now, env, observer)?;
    if !evaluators.is_empty() && data.prepared.validation.is_empty() {
        let text = "nothing is held out: an evaluator that reads held-out records will fail when \
                    training has ended";
        observer.observe(&Event::Warning(text.to_owned()));
    }
    check_measurable(plan, needs.rollouts, data.prepared.validation.is_empty(), observer)?;
    let mut adapter = new_trainable(plan, &found)?;
    let Chosen { ops, fallback } = plugins.choose()?;
    if let Some(fallback) = &fallback {
        fallback.tell(observer);
    }
    let compute = model::compute(model_request.compute, ops.as_ref());
    let optimizer = settings::optimizer(&plan.run);
    let slices = adapter.slices();
    let optimizer_memory = Optimizer::planned_memory(&optimizer, &slices, ops.n_threads())?;
    let optimizer_memory =
        processes.map_or(optimizer_memory, |of| of.optimizer_memory(optimizer_memory));
    let options = settings::load_options(&plan.run, compute);
    let configured = configured_cut(plan);
    let start_cut = match optimizer_memory.is_layerwise {
        // One micro-batch a step, whatever another run with this checkpoint did.
        true => configured,
        false => cut_of(from.as_ref(), configured),
    };
    let fit = {
        let inputs = Inputs {
            plan,
            data: &data,
            found: &found,
            adapter: &adapter,
            optimizer: optimizer_memory,
            options,
            ops: ops.as_ref(),
            held: footprint::held_beside(ops.as_ref()),
            n_holders: processes.map_or(1, Processes::n_holders),
            parts_on_host: processes.is_some_and(Processes::parts_are_on_hosts),
            n_ranks: processes.map_or(1, Processes::n_ranks),
        };
        check_room(&inputs, start_cut)?
    };
    let load_start = env.clock.monotonic();
    let holders = processes.and_then(Processes::holders);
    let mut loaded = model::load_with(&found, ops, options, holders)?;
    let store = found.open.store();
    let optimizer = Optimizer::new(optimizer, &slices)?;
    if let Some(processes) = processes {
        processes.share_out(&mut adapter, &optimizer);
    }
    loaded.decoder.begin_alone(&mut adapter, store).map_err(LoadError::from)?;
    observer.observe(&Event::ModelLoaded(ModelLoaded {
        name: plan.run.model.name_or_path.clone(),
        n_params: loaded.decoder.config().n_parameters() as u64,
        n_trainable: adapter.n_params() as u64,
        kernels: loaded.decoder.ops().name().to_owned(),
        compute_dtype: model::compute_name(loaded.decoder.compute()),
        n_threads: loaded.decoder.ops().n_threads(),
        seconds: (env.clock.monotonic() - load_start).as_secs_f64(),
    }));
    let identity = identity(plan, env, &data, &loaded, template_now);
    let used: Vec<Used> = std::iter::once(used).chain(data.rewards().iter().cloned()).collect();
    let agreed = match processes {
        None => None,
        Some(processes) => {
            let n_leaves = data.feed(&found.tokenizer).n_micro_batches(configured);
            Some(processes.compare(&identity, &used, n_leaves, env)?)
        }
    };

    plan.output.create()?;
    let lock = RunLock::acquire(plan.output.root(), &identity.run_id, started_at)?;
    if let Some(kind) = lock.weak_file_system() {
        let text = format!("the run's folder is on {kind}: another machine may not see its lock");
        observer.observe(&Event::Warning(text));
    }
    // Another run may have filled the folder while this one was reading.
    plan.output.check(&local_inputs(plan), start)?;
    write::remove_leftovers(plan.output.root())?;
    let stop_ids = model::stop_ids(&found.tokenizer, found.template.as_ref());
    let mut job = Job {
        plan,
        model_dir: plan.output.model_of(&identity.run_id, approval.is_some()),
        approval,
        stamps,
        env,
        observer,
        found: &found,
        loaded: &loaded,
        trainer: trainer.as_ref(),
        plugins,
        used,
        examinations,
        evaluators,
        sources: &sources,
        data: &data,
        peft: peft_info(plan, &found),
        stop_ids: &stop_ids,
        template_now,
        started_at,
        memory_planned: fit.bytes_planned,
        configured,
        rung: fit.rung,
        tried: fit.tried,
        kept: 0,
        energy: EnergyMeter::default(),
        watch: Watch::of(needs),
        measured: BTreeMap::new(),
        samples: Vec::new(),
        ledger: Ledger::new(request.expected.clone()),
        lock: &lock,
        named,
        objective: format!("{} ({})", plugin.summary, plugin.source),
        strictness,
        pipeline_run_id: request.pipeline_run_id.as_deref(),
        processes,
        agreed,
    };
    let mut audit = job.open_audit(&identity.run_id, operator, &key)?;
    if let Some(event) = compliance::acknowledged(plan, job.observer) {
        audit.append(&event)?;
    }
    if let Some(Fallback::Failed(reason)) = fallback {
        let kernels = job.loaded.decoder.ops().name().to_owned();
        audit.append(&AuditEvent::TrainingDeviceFallback { kernels, reason })?;
    }
    if let Some(agreed) = job.agreed.as_ref().map(Agreed::audit_event) {
        audit.append(&agreed)?;
    }
    let begun = (adapter, optimizer);
    let result = caught(|| job.run(begun, identity, from, request.force_resume, &key, &mut audit));
    if let Err(error) = &result {
        // The error itself matters more than a log that cannot take it.
        let _ = audit.append(&AuditEvent::PipelineFailed { error: error.chain() });
    }
    result
}

/// Every variable that the config names must be there before anything starts.
pub(crate) fn check_variables(plan: &Plan, env: &Environment) -> Result<(), RunError> {
    // The teacher of synthetic rows is asked by `--generate-data` alone.
    let needed = environment_keys(&plan.run).into_iter();
    for EnvironmentKey { key, name } in needed.filter(|of| of.key != "synthetic.api_key_env") {
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

/// What trains, as it stands before the weights are there: with PiSSA, `Decoder::begin` puts its
/// numbers in.
pub(crate) fn new_trainable(plan: &Plan, found: &FoundModel) -> Result<Trainable, RunError> {
    let stream = Stream::new(plan.run.training.seed, Purpose::LoraInit);
    let selection = settings::selection(&plan.run, found.open.config())?;
    Ok(Trainable::new(selection, found.open.config(), &stream)?)
}

/// The base as the adapter's config file names it; for a wheel the revision is its SHA-256.
fn peft_info(plan: &Plan, found: &FoundModel) -> PeftInfo {
    PeftInfo {
        base_model_name_or_path: plan.run.model.name_or_path.clone(),
        revision: found.resolved.revision.revision_resolved.clone(),
    }
}

pub(crate) fn identity(
    plan: &Plan,
    env: &Environment,
    data: &TokenizedData,
    loaded: &LoadedModel,
    template_now: i64,
) -> Identity {
    Identity {
        run_id: env.run_id(),
        config_hash: plan.config_hash.clone(),
        config: plan.identity(),
        data_sha256: data.prepared.fingerprint().as_str().to_owned(),
        model_sha256: loaded.sha256.clone(),
        reward_model_sha256: data.reward_model().map(|model| model.digest.clone()),
        compute_dtype: model::compute_name(loaded.decoder.compute()).to_owned(),
        kernels: loaded.decoder.ops().name().to_owned(),
        template_now,
    }
}

/// What chat templates take for the present: `data.template_now`, else the day of the run.
#[must_use]
pub fn template_now(plan: &Plan, started_at: UtcTime) -> i64 {
    const SECONDS_PER_DAY: i64 = 86_400;
    let configured = plan.run.data.template_now.as_ref();
    let date = configured.and_then(|date| format!("{date}T00:00:00Z").parse::<UtcTime>().ok());
    let seconds = date.unwrap_or(started_at).0.div_euclid(1_000_000);
    seconds.div_euclid(SECONDS_PER_DAY) * SECONDS_PER_DAY
}

/// How steps are cut: as the checkpoint's run did in the end, else as configured.
fn cut_of(from: Option<&resume::From>, configured: Cut) -> Cut {
    let effective = |cut: &Cut| cut.batch_size * cut.accumulation;
    let kept = from.and_then(|from| from.state.cut);
    kept.filter(|cut| effective(cut) == effective(&configured)).unwrap_or(configured)
}

/// What became of a staged model; none where its request cannot be answered any more, so that the
/// run asks once more.
fn staged(plan: &Plan, run_id: &str, now: UtcTime) -> Option<Outcome> {
    let found = requests::read(&plan.output.root().join(LOG_FILE)).ok()?;
    let request = found.of(run_id)?;
    let status = request.status(now);
    let run_id = run_id.to_owned();
    match (status, &request.end) {
        (Status::Pending | Status::Approved, _) => Some(Outcome::Waiting {
            run_id,
            staging: plan.output.root().join(&request.staging_path),
            is_approved: status == Status::Approved,
        }),
        (_, Some(End::Rejected { approver, comment, .. })) => {
            let comment = comment.as_ref().map(|text| format!(": {text}"));
            let reason = format!("by {approver}{}", comment.unwrap_or_default());
            Some(Outcome::AlreadyRejected { run_id, reason })
        }
        (Status::Granted, _) => {
            Some(Outcome::AlreadyComplete { final_model: plan.output.final_model().to_owned() })
        }
        (Status::Rejected | Status::Expired | Status::Superseded, _) => None,
    }
}

/// A loss that cannot be measured can neither pass nor fail.
fn check_measurable(
    plan: &Plan,
    has_rollouts: bool,
    is_nothing_held_out: bool,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let Some(evaluation) = &plan.run.evaluation else { return Ok(()) };
    let is_asked = evaluation.auto_revert || gates::has_threshold(evaluation);
    let text = match (is_asked, has_rollouts, is_nothing_held_out) {
        (false, _, _) | (true, false, false) => return Ok(()),
        (true, true, _) => "training on rewards has no validation loss",
        (true, false, true) if gates::has_threshold(evaluation) => {
            return Err(RunError::NothingToJudge);
        }
        (true, false, true) => "nothing is held out",
    };
    observer.observe(&Event::Warning(format!("{text}: the loss gate judges nothing")));
    Ok(())
}

/// A run whose last step and evidence are there, and its model where it kept one.
fn already_complete(plan: &Plan, from: Option<&resume::From>, now: UtcTime) -> Option<Outcome> {
    let state = &from?.state;
    if !state.is_finished() || state.identity.config != plan.identity() {
        return None;
    }
    how_it_ended(plan, now)
}

/// What became of the last run in the folder of a plan, if it left all its evidence, whatever config
/// it had.
pub(crate) fn how_it_ended(plan: &Plan, now: UtcTime) -> Option<Outcome> {
    let is_signed = dossier::attestation(plan).is_file() || !plan.run.signing().enabled;
    let ended = ended::last(&plan.output).filter(|_| is_signed)?;
    let final_model = plan.output.final_model();
    match ended.outcome.as_str() {
        "reverted" => {
            Some(Outcome::AlreadyReverted { run_id: ended.run_id, reasons: ended.reasons })
        }
        "staged" => staged(plan, &ended.run_id, now),
        _ if final_model.join("model_integrity.json").is_file() => {
            Some(Outcome::AlreadyComplete { final_model: final_model.to_owned() })
        }
        _ => None,
    }
}
