//! What comes after the last step: the best weights, a sample, the evaluators.

use super::Outcome;
use super::job::Job;
use crate::error::RunError;
use crate::evaluators::{Evaluated, Examined};
use crate::event::{Event, When};
use crate::metrics::MetricsFile;
use crate::sample::Voice;
use crate::subject::{Language, Subject};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::AuditLog;
use forgelm_model::Trainable;
use forgelm_train::checkpoint;
use forgelm_train::session::Session;

/// What came of asking the tuned model.
pub(super) enum Judged<T> {
    /// What was found.
    Completely(T),
    /// The run was asked to stop meanwhile.
    Interrupted(Box<Outcome>),
}

impl<'a> Job<'a> {
    /// The weights with the lowest validation loss, where there is one.
    pub(super) fn restore_best(&mut self, session: &mut Session<'_>) -> Result<(), RunError> {
        let state = session.state();
        let Some(best) = state.best_global_step.filter(|&best| best != state.global_step) else {
            return Ok(());
        };
        let path = checkpoint::path(self.plan.output.root(), best);
        let text = format!("step {best} had the lowest validation loss; its weights are kept");
        self.observer.observe(&Event::Notice(text));
        Ok(session.restore(&path)?)
    }

    pub(super) fn sample(
        &mut self,
        when: When,
        adapter: Option<&Trainable>,
    ) -> Result<(), RunError> {
        let (Some(question), Some(template)) = (&self.data.question, &self.found.template) else {
            return Ok(());
        };
        if self.processes.is_some_and(|processes| processes.n_holders() > 1) {
            if when == When::Before {
                let text = "no sample is asked: every token of it would gather the whole model";
                self.observer.observe(&Event::Notice(text.to_owned()));
            }
            return Ok(());
        }
        let voice = Voice {
            tokenizer: &self.found.tokenizer,
            template,
            stop_ids: self.stop_ids,
            now: Some(self.template_now),
        };
        let sample = question.ask(when, &self.loaded.decoder, adapter, &voice)?;
        self.samples.push(sample.clone());
        self.observer.observe(&Event::Sample(sample));
        Ok(())
    }

    /// The model with what was trained.
    pub(super) fn subject<'s>(
        &self,
        adapter: &'s Trainable,
        is_stopped: &'s dyn Fn() -> bool,
    ) -> Subject<'s>
    where
        'a: 's,
    {
        Subject {
            decoder: &self.loaded.decoder,
            adapter: Some(adapter),
            language: Language {
                tokenizer: &self.found.tokenizer,
                template: self.found.template.as_ref(),
                template_now: self.template_now,
                stop_ids: self.stop_ids,
            },
            is_stopped,
        }
    }

    /// Asks every evaluator about what was trained, once its folder is there: whatever becomes of
    /// them, the model is kept.
    pub(super) fn judge(
        &mut self,
        session: &Session<'_>,
        metrics: &mut MetricsFile,
        audit: &mut AuditLog,
    ) -> Result<Judged<Vec<Evaluated>>, RunError> {
        let chosen = std::mem::take(&mut self.evaluators);
        if chosen.is_empty() {
            return Ok(Judged::Completely(Vec::new()));
        }
        let (env, plugins) = (self.env, self.plugins);
        let is_stopped = || env.stop_requested();
        let subject = self.subject(session.adapter(), &is_stopped);
        let examined = Examined::new(subject, &self.data.prepared.validation)?;
        let mut evaluated = Vec::new();
        for chosen in chosen {
            let report = chosen.evaluator.evaluate(&examined.services());
            plugins.tell_lines(self.observer);
            let report = match report {
                Ok(report) => report,
                Err(_) if env.stop_requested() => {
                    return self.interrupt_after_steps(session, audit).map(Judged::Interrupted);
                }
                Err(source) => {
                    let final_model = self.model_dir.clone();
                    return Err(RunError::Evaluator { source, final_model });
                }
            };
            let found = Evaluated { used: chosen.used, label: chosen.label, report };
            metrics.evaluator(session.state(), &found)?;
            audit.append(&found.audit_event())?;
            self.observer.observe(&Event::Notice(found.line()));
            self.used.push(found.used.clone());
            evaluated.push(found);
        }
        Ok(Judged::Completely(evaluated))
    }

    /// The checkpoint of the last step is there; the weights in memory may be those of a better one.
    pub(super) fn interrupt_after_steps(
        &self,
        session: &Session<'_>,
        audit: &mut AuditLog,
    ) -> Result<Box<Outcome>, RunError> {
        let step = session.state().global_step;
        let checkpoint = checkpoint::path(self.plan.output.root(), step);
        audit.append(&AuditEvent::TrainingInterrupted {
            step,
            checkpoint: Some(checkpoint.display().to_string()),
        })?;
        Ok(Box::new(Outcome::Interrupted { checkpoint, step }))
    }

    /// The data must still be what was read: evidence about other bytes would be false.
    pub(super) fn check_unchanged(&self) -> Result<(), RunError> {
        for file in self.data.prepared.files.iter().flatten() {
            if forgelm_artifact::hash::sha256_file(&file.path)? != file.sha256 {
                return Err(RunError::Changed { path: file.path.clone() });
            }
        }
        Ok(())
    }
}
