//! A run from its first event to its documents.

use super::Outcome;
use super::baseline::Measured;
use super::finish::Judged;
use super::ledger::{LEDGER_FILE, Ledger};
use super::room::Try;
use super::tokenized::TokenizedData;
use super::watch::Watch;
use crate::compliance::{NamedFiles, Strictness};
use crate::cost::{EnergyMeter, Usage, seconds_between};
use crate::data::Sources;
use crate::distributed::{Agreed, Processes};
use crate::dossier::{self, Dossier};
use crate::environment::Environment;
use crate::error::RunError;
use crate::evaluators::Chosen;
use crate::event::{Event, Observer, Sample, Started, When};
use crate::footprint;
use crate::gates::examination::Examination;
use crate::kernels::caught;
use crate::memory::Reserve;
use crate::metrics::MetricsFile;
use crate::model::{FoundModel, LoadedModel};
use crate::outbound::TimeStamps;
use crate::plan::Plan;
use crate::plugins::{Plugins, Used};
use crate::recovery::Rung;
use crate::{gates, resume, settings};
use forgelm_artifact::UtcTime;
use forgelm_artifact::lock::RunLock;
use forgelm_artifact::write::{self, CreatedDir};
use forgelm_evidence::approval::policy::Policy;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::AuditLog;
use forgelm_evidence::documents::evidence;
use forgelm_evidence::keys::lookup::FoundKey;
use forgelm_model::{OutOfMemory, PeftInfo, Trainable};
use forgelm_sdk::trainer::Trainer;
use forgelm_train::checkpoint;
use forgelm_train::feed::Feed;
use forgelm_train::optimizer::Optimizer;
use forgelm_train::session::{Cut, Parts, Session};
use forgelm_train::state::{Identity, State};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A run whose inputs are all in memory.
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    /// Where the tuned model goes.
    pub(super) model_dir: PathBuf,
    /// Who may approve it, where somebody must.
    pub(super) approval: Option<Policy>,
    /// Who is asked for time stamps, if anybody is.
    pub(super) stamps: Option<TimeStamps>,
    pub(super) env: &'a Environment,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) found: &'a FoundModel,
    pub(super) loaded: &'a LoadedModel,
    pub(super) trainer: &'a dyn Trainer,
    pub(super) plugins: &'a Plugins,
    /// Plugins that take part.
    pub(super) used: Vec<Used>,
    /// The gates that ask the tuned model.
    pub(super) examinations: Vec<Box<dyn Examination>>,
    /// Who judges the tuned model.
    pub(super) evaluators: Vec<Chosen>,
    pub(super) sources: &'a Sources,
    pub(super) data: &'a TokenizedData,
    pub(super) peft: PeftInfo,
    pub(super) stop_ids: &'a [u32],
    pub(super) template_now: i64,
    pub(super) started_at: UtcTime,
    pub(super) memory_planned: u64,
    /// As the config cuts a step.
    pub(super) configured: Cut,
    /// How steps are made now.
    pub(super) rung: Rung,
    /// What was tried before the start.
    pub(super) tried: Vec<Try>,
    /// Bytes that the allocator holds free since buffers were given back.
    pub(super) kept: u64,
    /// What the processors use.
    pub(super) energy: EnergyMeter,
    /// What stands out from step to step.
    pub(super) watch: Watch,
    /// What the objective measured in the last step.
    pub(super) measured: BTreeMap<String, f64>,
    /// Answers before and after.
    pub(super) samples: Vec<Sample>,
    /// What each step read and made.
    pub(super) ledger: Ledger,
    /// Of the run's folder.
    pub(super) lock: &'a RunLock,
    /// The files that the config names as answers.
    pub(super) named: NamedFiles,
    /// What the objective is, in words.
    pub(super) objective: String,
    /// Whether points of the documentation may stay open.
    pub(super) strictness: Strictness,
    /// The pipeline of which this is a stage.
    pub(super) pipeline_run_id: Option<&'a str>,
    /// The processes that this one leads, where the config asks for several.
    pub(super) processes: Option<&'a Processes>,
    /// What the evidence says of them.
    pub(super) agreed: Option<Agreed>,
}

impl Job<'_> {
    pub(super) fn open_audit(
        &self,
        run_id: &str,
        operator: String,
        key: &Option<FoundKey>,
    ) -> Result<AuditLog, RunError> {
        let last_keyid = dossier::last_keyid(self.plan.output.root());
        let mut audit = dossier::open_audit(self.plan, self.env, run_id, operator)?;
        dossier::begin_audit(&self.plan.run, (&mut audit, last_keyid), key.as_ref())?;
        audit.append(&AuditEvent::PipelineInitialized {
            model: self.plan.run.model.name_or_path.clone(),
            trainer_type: self.plan.trainer_name(),
        })?;
        Ok(audit)
    }

    pub(super) fn run(
        &mut self,
        (fresh, optimizer): (Trainable, Optimizer),
        identity: Identity,
        from: Option<resume::From>,
        force_resume: bool,
        key: &Option<FoundKey>,
        audit: &mut AuditLog,
    ) -> Result<Outcome, RunError> {
        let run_id = identity.run_id.clone();
        let references = self.references(&fresh, &identity)?;
        let (adapter, optimizer, state) = match &from {
            None => (fresh, optimizer, State::new(self.data.plan.n_steps(), identity)),
            Some(from) => {
                let begun = (&fresh, optimizer);
                let continued = self.continued(from, begun, identity, force_resume, audit)?;
                // What trains is held once from here on.
                drop(fresh);
                continued
            }
        };
        let n_steps_done = state.global_step;
        let mut metrics = MetricsFile::open(&self.plan.output.metrics(), n_steps_done)?;
        self.measured = metrics.measured_in(n_steps_done);
        if let Some(processes) = self.processes {
            processes.ready(&self.loaded.decoder)?;
        }
        let end_reserve = end_reserve()?;
        let mut session = Session::without_buffers(Parts {
            decoder: &self.loaded.decoder,
            trainer: self.trainer,
            feed: Feed { references: references.as_ref(), ..self.data.feed(&self.found.tokenizer) },
            keep: self.rung.keep,
            settings: settings::training(&self.plan.run, self.data.plan.n_steps()),
            adapter,
            optimizer,
            state,
            team: self.processes.map(Processes::team),
        })?;
        self.allocate(&mut session, audit)?;
        let ledger = self.plan.output.root().join(LEDGER_FILE);
        self.ledger.begin(&ledger, &session, self.loaded.decoder.ops().n_threads())?;
        self.observer.observe(&Event::Started(Started {
            run_id: run_id.clone(),
            n_steps: self.data.plan.n_steps(),
            n_steps_done,
            output_dir: self.plan.output.root().to_owned(),
            memory_bytes_planned: self.memory_planned,
        }));
        let schedule = settings::training(&self.plan.run, self.data.plan.n_steps()).schedule;
        if schedule.n_warmup_steps >= schedule.n_steps {
            let text = format!(
                "the learning rate rises in all of the {} steps and never reaches \
                 `training.learning_rate`; a lower `training.warmup_ratio` or more steps help",
                schedule.n_steps
            );
            self.observer.observe(&Event::Warning(text));
        }
        self.tell_missing_baseline();
        let (gates, gates_sha256) = gates::fixed(self.plan);
        audit.append(&AuditEvent::TrainingStarted { gates, gates_sha256 })?;
        if n_steps_done == 0 {
            self.sample(When::Before, Some(session.adapter()))?;
            self.evaluate(&mut session, &mut metrics, audit)?;
        }
        let train_start = (self.env.clock.monotonic(), (self.env.cpu_time)());
        self.energy = EnergyMeter::start();
        if let Some(interrupted) = self.steps(&mut session, &mut metrics, audit)? {
            return Ok(interrupted);
        }
        self.energy.sample();
        let usage = Usage {
            wall_seconds: (self.env.clock.monotonic() - train_start.0).as_secs_f64(),
            cpu_seconds: seconds_between(train_start.1, (self.env.cpu_time)()),
            energy_joules: self.energy.joules(),
        };
        // No step follows: what comes now has the room of steps, and its own.
        session.give_back_buffers()?;
        drop(end_reserve);
        self.restore_best(&mut session)?;
        self.sample(When::After, Some(session.adapter()))?;
        self.check_unchanged()?;
        self.remove_unfinished(&run_id)?;
        let merge_metrics = self.save_final_model(&session)?;
        let saved = CreatedDir::remember(&self.model_dir)?;
        let gated = caught(|| self.gate(&session, &mut metrics, &saved, audit));
        let gated = match gated {
            Ok(Judged::Completely(gated)) => gated,
            Ok(Judged::Interrupted(outcome)) => return Ok(*outcome),
            Err(error) => {
                self.withhold(evidence::Outcome::Promoted, &run_id);
                return Err(error);
            }
        };
        let evaluated = match gated.outcome {
            // There is nothing left to judge.
            evidence::Outcome::Reverted => Vec::new(),
            evidence::Outcome::Promoted | evidence::Outcome::Staged => {
                match self.judge(&session, &mut metrics, audit)? {
                    Judged::Completely(evaluated) => evaluated,
                    Judged::Interrupted(outcome) => return Ok(*outcome),
                }
            }
        };
        let baseline = match self.baseline(&session, audit)? {
            Measured::Document(baseline) => baseline,
            Measured::Interrupted(outcome) => return Ok(*outcome),
        };
        let dossier = Dossier {
            plan: self.plan,
            env: self.env,
            found: self.found,
            loaded: self.loaded,
            reward_model: self.data.reward_model(),
            data: &self.data.prepared,
            sources: self.sources,
            state: session.state(),
            run_id: &run_id,
            started_at: self.started_at,
            usage,
            rung: self.rung,
            merge_metrics: &merge_metrics,
            measured: &self.measured,
            template_now: self.template_now,
            plugins: &self.used,
            evaluated: &evaluated,
            samples: &self.samples,
            baseline,
            named: &self.named,
            objective: &self.objective,
            strictness: self.strictness,
            gated: &gated,
            model_dir: &self.model_dir,
            approval: self.approval.as_ref(),
            stamps: self.stamps.as_ref(),
            pipeline_run_id: self.pipeline_run_id,
            agreed: self.agreed.as_ref(),
        };
        let completed = match dossier.write(key.as_ref(), audit, self.observer) {
            Ok(completed) => completed,
            Err(error) => {
                self.withhold(gated.outcome, &run_id);
                return Err(error);
            }
        };
        Ok(match gated.outcome {
            evidence::Outcome::Reverted => Outcome::Reverted(completed),
            evidence::Outcome::Staged => Outcome::Staged(completed),
            evidence::Outcome::Promoted => Outcome::Completed(completed),
        })
    }

    /// The model of a strict tier does not get its final name without its evidence: it lies where
    /// staged ones do, and the next run in this folder makes it again.
    fn withhold(&mut self, outcome: evidence::Outcome, run_id: &str) {
        if !self.strictness.is_strict() || outcome != evidence::Outcome::Promoted {
            return;
        }
        let place = self.plan.output.model_of(run_id, true);
        let text = match write::rename_new(&self.model_dir, &place) {
            Ok(()) => format!("the tuned model is withheld, in `{}`", place.display()),
            Err(error) => format!("the tuned model has its name without evidence: {error}"),
        };
        self.observer.observe(&Event::Warning(text));
    }

    /// What trains, optimizer and state out of a checkpoint, once it is sure that they belong to this
    /// run.
    fn continued(
        &mut self,
        from: &resume::From,
        (fresh, optimizer): (&Trainable, Optimizer),
        identity: Identity,
        force_resume: bool,
        audit: &mut AuditLog,
    ) -> Result<(Trainable, Optimizer, State), RunError> {
        // What must be the same of a run that is compared was looked at by its ledger.
        let differences = match self.ledger.is_comparing() {
            true => Vec::new(),
            false => from.state.identity.differences(&identity),
        };
        if !differences.is_empty() && !force_resume {
            return Err(RunError::OtherRun { checkpoint: from.path.clone(), differences });
        }
        let loaded = checkpoint::load(&from.path, fresh, optimizer)?;
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
}

/// Holds back what the end of a run needs, so that no run does all its steps and then finds no room
/// to save its model. What a device computes in is not asked: documents are written on the host.
fn end_reserve() -> Result<Reserve, OutOfMemory> {
    let bytes = footprint::END_BYTES;
    Reserve::of(bytes).ok_or_else(|| {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let buffer = "room for what follows the last step".to_owned();
        OutOfMemory { buffer, bytes, total: bytes }
    })
}
