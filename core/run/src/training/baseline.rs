//! The losses of the held-out rows under the final model, for `forgelm monitor`.

use super::Outcome;
use super::job::Job;
use crate::error::RunError;
use crate::event::Event;
use crate::monitor::{self, Sample};
use forgelm_evidence::audit::log::AuditLog;
use forgelm_train::session::Session;
use serde_json::Value;

/// What came of the measurement.
pub(super) enum Measured {
    /// The document, if there is one.
    Document(Option<Value>),
    /// The run was asked to stop meanwhile.
    Interrupted(Box<Outcome>),
}

impl Job<'_> {
    /// Whether a baseline is to be recorded and cannot be.
    pub(super) fn tell_missing_baseline(&mut self) {
        let is_on = self.plan.run.monitoring.as_ref().is_some_and(|m| m.enabled);
        if is_on && self.data.prepared.validation.is_empty() {
            let text = "nothing is held out: there will be no baseline, and `forgelm monitor` will \
                        refuse this run";
            self.observer.observe(&Event::Warning(text.to_owned()));
        }
    }

    /// The document of the baseline, where monitoring is on and rows are held out. What hinders it ends
    /// no run: the model is there, and the other documents are true without it.
    pub(super) fn baseline(
        &mut self,
        session: &Session<'_>,
        audit: &mut AuditLog,
    ) -> Result<Measured, RunError> {
        let is_on = self.plan.run.monitoring.as_ref().is_some_and(|m| m.enabled);
        let rows = &self.data.prepared.validation;
        if !is_on || rows.is_empty() {
            return Ok(Measured::Document(None));
        }
        let env = self.env;
        let is_stopped = || env.stop_requested();
        let subject = self.subject(session.adapter(), &is_stopped);
        let losses = match monitor::row_losses(subject, rows) {
            Ok(losses) => losses,
            Err(_) if env.stop_requested() => {
                return self.interrupt_after_steps(session, audit).map(Measured::Interrupted);
            }
            Err(error) => {
                let text = format!("there will be no baseline: {}", error.chain());
                self.observer.observe(&Event::Warning(text));
                return Ok(Measured::Document(None));
            }
        };
        let generated_at = self.env.clock.utc().to_string();
        let run_id = &session.state().identity.run_id;
        let held_out = Sample::of(&losses);
        let now = self.template_now;
        let document = monitor::document(self.plan, run_id, &generated_at, now, &held_out);
        Ok(Measured::Document(document))
    }
}
