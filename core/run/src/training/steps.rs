//! The loop: steps, evaluations and checkpoints, and what is kept when a step fails.

use super::Outcome;
use super::job::Job;
use crate::distributed::{Different, Processes};
use crate::error::RunError;
use crate::event::{Checkpoint, Evaluation, Event, Step};
use crate::metrics::MetricsFile;
use crate::settings;
use forgelm_artifact::{Disk, write};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::AuditLog;
use forgelm_train::checkpoint::shards::{NotWritten, SaveError};
use forgelm_train::checkpoint::{self, View};
use forgelm_train::session::{Session, StepError};
use serde_json::json;
use std::path::{Path, PathBuf};

impl Job<'_> {
    /// Steps, evaluations and checkpoints until the end or a request to stop.
    pub(super) fn steps(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
        audit: &mut AuditLog,
    ) -> Result<Option<Outcome>, RunError> {
        let ended = self.all_steps(session, metrics, audit);
        if ended.is_err() {
            // Whatever failed: that the folder is gone says why.
            self.check_folder(session)?;
        }
        ended
    }

    fn all_steps(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
        audit: &mut AuditLog,
    ) -> Result<Option<Outcome>, RunError> {
        let training = &self.plan.run.training;
        let log_every = settings::logging_steps(&self.plan.run, self.data.prepared.train.len());
        while !session.state().is_finished() {
            if self.env.stop_requested() {
                return self.interrupt(session, audit).map(Some);
            }
            if self.ledger.is_compared() {
                return Ok(Some(Outcome::Compared { step: session.state().global_step }));
            }
            self.check_folder(session)?;
            self.cut_as_compared(session)?;
            self.make_room(session, audit)?;
            let stepped = self.step(session, metrics, audit, log_every);
            self.plugins.tell_lines(self.observer);
            stepped?;
            self.energy.sample();
            let step = session.state().global_step;
            let is_last = step >= session.state().max_steps;
            let is_save_due = step.is_multiple_of(training.save_steps) || is_last;
            let is_eval_due = step.is_multiple_of(training.eval_steps) || is_save_due;
            let is_best = is_eval_due && self.evaluate(session, metrics, audit)?;
            if is_save_due || is_best || session.state().is_stopped_early {
                self.checkpoint(session)?;
            }
        }
        Ok(None)
    }

    /// The run's folder must be where it was. Where it was removed or moved, nothing of the run would be
    /// found again: what there is of it is saved beside.
    fn check_folder(&self, session: &Session<'_>) -> Result<(), RunError> {
        if self.lock.is_in_place() {
            return Ok(());
        }
        let dir = self.plan.output.root();
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".rescued.{}", session.state().identity.run_id));
        let rescued = match self.save(session, &dir.with_file_name(name)) {
            Ok(path) => format!(
                "the state after step {} is in `{}`; `--resume {}` goes on from it, in an empty \
                 `training.output_dir`",
                session.state().global_step,
                path.display(),
                path.display()
            ),
            Err(error) => format!("the state could not be saved beside it: {error}"),
        };
        Err(RunError::FolderGone { dir: dir.to_owned(), rescued })
    }

    /// Writes a checkpoint, in the form that the config asks for.
    fn save(&self, session: &Session<'_>, root: &Path) -> Result<PathBuf, RunError> {
        if self.processes.is_some_and(Processes::saves_in_shards) {
            let saved = session.save_in_shards(&Disk::real(), root, &self.peft);
            return saved.map_err(|error| self.not_saved(error));
        }
        let (adapter, optimizer) = (session.whole_adapter()?, session.optimizer()?);
        let view = View {
            adapter: &adapter,
            peft: &self.peft,
            optimizer: &optimizer,
            state: session.state(),
        };
        Ok(checkpoint::save(&Disk::real(), root, view)?)
    }

    /// Why there is no checkpoint, with the host of each process that has no part in it.
    fn not_saved(&self, error: SaveError) -> RunError {
        let failed = match error {
            SaveError::Write(error) => return error.into(),
            SaveError::Collective(error) => return error.into(),
            SaveError::Shards(failed) => failed,
        };
        let no_room = failed.iter().all(|of| of.no_room);
        let of_rank = |NotWritten { rank, reason, .. }| Different {
            rank,
            host: self.agreed.as_ref().map_or("", |agreed| agreed.host(rank)).to_owned(),
            differences: vec![reason],
        };
        RunError::ShardsNotWritten { failed: failed.into_iter().map(of_rank).collect(), no_room }
    }

    /// A run that is compared with another cuts its next step as that one did.
    fn cut_as_compared(&mut self, session: &mut Session<'_>) -> Result<(), RunError> {
        let Some(cut) = self.ledger.expected_cut().filter(|cut| *cut != session.cut()) else {
            return Ok(());
        };
        session.allocate(cut, self.rung.keep)?;
        self.rung.cut = cut;
        session.state_mut().cut = (cut != self.configured).then_some(cut);
        Ok(())
    }

    fn step(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
        audit: &mut AuditLog,
        log_every: u64,
    ) -> Result<(), RunError> {
        let start = self.env.clock.monotonic();
        let report = match self.retried(session, audit, |session| session.step())? {
            Ok(report) => report,
            Err(error) => return Err(self.given_up(error)?),
        };
        self.ledger.step(session, &report, self.loaded.decoder.ops().n_threads())?;
        let state = session.state();
        let step = Step {
            step: state.global_step,
            epoch: state.epoch,
            loss: report.loss,
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            n_tokens: report.n_tokens,
            n_trained_tokens: report.n_trained_tokens,
            n_trained_tokens_total: state.n_trained_tokens,
            seconds: (self.env.clock.monotonic() - start).as_secs_f64(),
            log: state.global_step == 1 || state.global_step.is_multiple_of(log_every),
            metrics: report.metrics,
        };
        metrics.step(&step)?;
        let told = self.watch.look(&step)?;
        self.measured.clone_from(&step.metrics);
        self.observer.observe(&Event::Step(step));
        if let Some(text) = told {
            self.observer.observe(&Event::Warning(text));
        }
        Ok(())
    }

    /// Scores the validation split, if there is one; whether it is the best so far.
    pub(super) fn evaluate(
        &mut self,
        session: &mut Session<'_>,
        metrics: &mut MetricsFile,
        audit: &mut AuditLog,
    ) -> Result<bool, RunError> {
        let start = self.env.clock.monotonic();
        let report = match self.retried(session, audit, |session| session.evaluate())? {
            Ok(Some(report)) => report,
            Ok(None) => return Ok(false),
            Err(error) => return Err(self.given_up(error)?),
        };
        let patience = self.plan.run.training.early_stopping_patience;
        let measured = report.metrics.clone();
        let is_best = session.state_mut().record_evaluation(report.loss, measured, patience);
        let evaluation = Evaluation {
            step: session.state().global_step,
            epoch: session.state().epoch,
            loss: report.loss,
            n_trained_tokens: report.n_trained_tokens,
            seconds: (self.env.clock.monotonic() - start).as_secs_f64(),
            is_best,
            metrics: report.metrics,
        };
        metrics.evaluation(&evaluation)?;
        self.ledger.evaluation(evaluation.step, evaluation.loss)?;
        self.observer.observe(&Event::Evaluation(evaluation));
        if session.state().is_stopped_early {
            let text = format!("stopped early: no lower validation loss in {patience} evaluations");
            self.observer.observe(&Event::Notice(text));
        }
        Ok(is_best)
    }

    pub(super) fn checkpoint(&mut self, session: &Session<'_>) -> Result<PathBuf, RunError> {
        // It is not begun anew where it was taken away.
        self.check_folder(session)?;
        let root = self.plan.output.root();
        let path = self.save(session, root)?;
        self.ledger.checkpoint(session.state().global_step, &path)?;
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

    /// Keeps what is needed to look into a step that gave no finite number, and says what is known.
    fn given_up(&self, error: StepError) -> Result<RunError, RunError> {
        let (step, what, layer, value, records, is_torn) = match error {
            StepError::Data(error) => return Err(error.into()),
            StepError::Trainer(error) => return Err(error.into()),
            StepError::Collective(error) => return Err(error.into()),
            StepError::Restore(error) => return Err(error.into()),
            StepError::NotFinite { step, what, layer, value, records, is_torn } => {
                (step, what, layer, value, records, is_torn)
            }
        };
        let place_of = |record: &u64| {
            let (file, line) = self.data.prepared.train.origin(*record)?;
            Some(format!("{}:{line}", file.display()))
        };
        let rows: Vec<String> = records.iter().filter_map(place_of).collect();
        let replay = json!({
            "step": step,
            "what": what,
            "layer": layer,
            "layers_above_were_updated": is_torn,
            "value": value.to_string(),
            "records": records,
            "rows": rows,
            "data": self.plan.run.data.dataset_name_or_path,
        });
        let text = forgelm_artifact::json::pretty(&replay);
        let path = self.plan.output.replay(step);
        write::atomic(&path, text.as_bytes())?;
        Ok(RunError::NotFinite { step, what, value, rows: shortened(&rows), replay: path, is_torn })
    }
}

/// The first few places, and how many more there are.
fn shortened(rows: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = rows.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if rows.len() > SHOWN {
        text.push_str(&format!(" and {} more", rows.len() - SHOWN));
    }
    text
}
