//! What becomes of the tuned model: what the gates measure, their verdicts, and what follows from them.
//!
//! The model is saved before it is judged, and taken back by a gate only on what was measured. That it
//! is taken back is recorded first, so that a run that is killed in between says what was going on;
//! continued, it judges again and ends the same way. Where evidence is wanting, the run fails and the
//! model stays.

use super::finish::Judged;
use super::job::Job;
use crate::error::RunError;
use crate::event::Event;
use crate::gates::examination::{Examined, Place};
use crate::gates::{self, LossGate};
use crate::metrics::MetricsFile;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::{self, CreatedDir};
use forgelm_evidence::approval::requests;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::AuditLog;
use forgelm_evidence::documents::evidence::{Gate, Outcome};
use forgelm_evidence::gate::{
    MEASUREMENTS_FILE, Measurement, Measurements, Policy, Source, Verdict, judge,
};
use forgelm_train::session::Session;
use forgelm_train::state::State;
use serde_json::Value;
use std::collections::BTreeSet;

/// What the gates said.
#[derive(Debug)]
pub(crate) struct Gated {
    /// Each verdict, for the documents.
    pub(crate) gates: Vec<Gate>,
    /// What became known beside the verdicts, by gate.
    pub(crate) examined: Vec<Examined>,
    /// Whether there is a [`MEASUREMENTS_FILE`].
    pub(crate) is_measured: bool,
    /// What becomes of the model.
    pub(crate) outcome: Outcome,
}

/// A gate that was judged.
struct Decided {
    measurement: Measurement,
    verdict: Verdict,
}

impl Decided {
    fn new(measurement: Measurement, policy: Policy) -> Self {
        Self { verdict: judge(&measurement, policy), measurement }
    }

    /// `nan_inf` or `threshold` for the loss, else the gate.
    fn revert_reason(&self) -> Option<&str> {
        let Verdict::Reject { source, .. } = &self.verdict else { return None };
        Some(match (self.measurement.gate.as_str(), source) {
            (gates::LOSS, Source::NanInf) => "nan_inf",
            (gates::LOSS, Source::Threshold) => "threshold",
            (gate, _) => gate,
        })
    }

    fn to_gate(&self) -> Gate {
        Gate {
            gate: self.measurement.gate.clone(),
            passed: self.verdict.is_passed(),
            reason: self.verdict.reason(),
            checks: self.measurement.checks.clone(),
        }
    }
}

impl Job<'_> {
    /// Asks the gates in their order, and takes the model back where one rejects it and the config says
    /// so: the ones after it have nothing to judge then.
    pub(super) fn gate(
        &mut self,
        session: &Session<'_>,
        metrics: &mut MetricsFile,
        saved: &CreatedDir,
        audit: &mut AuditLog,
    ) -> Result<Judged<Gated>, RunError> {
        let evaluation = self.plan.run.evaluation.as_ref();
        let is_revert_on = evaluation.is_some_and(|evaluation| evaluation.auto_revert);
        let policy = gates::policy(evaluation);
        let mut examined = Vec::new();
        let mut decided: Vec<Decided> = Vec::new();
        if let Some(measurement) = self.measure_loss(session.state(), policy, audit)? {
            decided.push(Decided::new(measurement, policy));
        }
        let is_rejected = |decided: &[Decided]| {
            is_revert_on && decided.iter().any(|decided| decided.revert_reason().is_some())
        };
        let mut examinations = std::mem::take(&mut self.examinations).into_iter();
        while let Some(mut examination) = examinations.next().filter(|_| !is_rejected(&decided)) {
            let env = self.env;
            let is_stopped = || env.stop_requested();
            let subject = self.subject(session.adapter(), &is_stopped);
            let mut place = Place {
                root: self.plan.output.root(),
                policy,
                env,
                record: &mut |event| Ok(audit.append(event)?),
                observer: self.observer,
            };
            let found = match examination.examine(&subject, &mut place) {
                Ok(found) => found,
                Err(_) if env.stop_requested() => {
                    return self.interrupt_after_steps(session, audit).map(Judged::Interrupted);
                }
                Err(error) => return Err(error),
            };
            metrics.gate(session.state(), &found.measurement.gate, &found.metrics)?;
            decided.push(Decided::new(found.measurement.clone(), policy));
            examined.push(found);
        }
        if !decided.is_empty() {
            self.write_measurements(&decided, policy)?;
        }
        let outcome = self.follow(&decided, is_revert_on, saved, audit)?;
        let gates = decided.iter().map(Decided::to_gate).collect();
        let is_measured = !decided.is_empty();
        Ok(Judged::Completely(Gated { gates, examined, is_measured, outcome }))
    }

    /// What follows from the verdicts.
    fn follow(
        &mut self,
        decided: &[Decided],
        is_revert_on: bool,
        saved: &CreatedDir,
        audit: &mut AuditLog,
    ) -> Result<Outcome, RunError> {
        let mut unknown = Vec::new();
        let mut outcome = match self.approval {
            Some(_) => Outcome::Staged,
            None => Outcome::Promoted,
        };
        for Decided { measurement: Measurement { gate, .. }, verdict } in decided {
            let detail = verdict.reason().unwrap_or_default();
            match verdict {
                Verdict::Accept => {}
                Verdict::NotEnoughEvidence { .. } => unknown.push(format!("{gate}: {detail}")),
                Verdict::Reject { .. } if is_revert_on => outcome = Outcome::Reverted,
                Verdict::Reject { .. } => {
                    let text =
                        format!("the {gate} gate rejects the model, which is kept: {detail}");
                    self.observer.observe(&Event::Warning(text));
                }
            }
        }
        if outcome == Outcome::Reverted {
            for decided in decided {
                if let Some(reason) = decided.revert_reason() {
                    audit.append(&AuditEvent::ModelReverted {
                        reason: reason.to_owned(),
                        detail: decided.verdict.reason().unwrap_or_default(),
                    })?;
                }
            }
            self.take_back(saved)?;
            return Ok(outcome);
        }
        match unknown.is_empty() {
            true => Ok(outcome),
            false => Err(RunError::NotEnoughEvidence {
                gates: unknown,
                final_model: self.model_dir.clone(),
            }),
        }
    }

    /// What was measured, and how much evidence was asked for: whoever judges it again comes to the same
    /// verdicts.
    fn write_measurements(&self, decided: &[Decided], policy: Policy) -> Result<(), RunError> {
        let gates = decided.iter().map(|decided| decided.measurement.clone()).collect();
        let document = Measurements { policy, gates }.to_json();
        let path = self.plan.output.root().join(MEASUREMENTS_FILE);
        if let Some(dir) = path.parent() {
            write::create_dir_all_durable(dir)?;
        }
        Ok(write::atomic(&path, format!("{document:#}\n").as_bytes())?)
    }

    /// Removes the staged models of runs in this folder that were killed before they asked anybody: what
    /// they staged is of no run that ended.
    pub(super) fn remove_unfinished(&mut self, run_id: &str) -> Result<(), RunError> {
        if self.approval.is_none() && !self.strictness.is_strict() {
            return Ok(());
        }
        let path = self.plan.output.root().join(LOG_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| OpenError::Io { path: path.clone(), source })?;
        let asked = requests::read(&path)?;
        let runs: BTreeSet<String> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| line["run_id"].as_str().map(str::to_owned))
            .filter(|other| other != run_id && asked.of(other).is_none())
            .collect();
        for other in runs {
            let staged = self.plan.output.model_of(&other, true);
            if staged.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                write::remove_dir(&staged)?;
                let text = format!("`{}` of a run that did not end is removed", staged.display());
                self.observer.observe(&Event::Notice(text));
            }
        }
        Ok(())
    }

    /// The validation loss beside its limits; none where no gate asks, or nothing was measured.
    fn measure_loss(
        &self,
        state: &State,
        policy: Policy,
        audit: &mut AuditLog,
    ) -> Result<Option<Measurement>, RunError> {
        let evaluation = self.plan.run.evaluation.as_ref();
        let gate = evaluation.and_then(|e| LossGate::of(e, gates::loss_before(state)));
        let (Some(gate), Some(eval_loss)) = (gate, gates::loss_after(state)) else {
            return Ok(None);
        };
        let n_records = self.data.prepared.statistics[1].rows;
        let measurement = gate.measurement(eval_loss, n_records);
        audit.append(&AuditEvent::LossGateCompleted {
            passed: judge(&measurement, policy).is_passed(),
            eval_loss,
            max_acceptable_loss: gate.max_acceptable_loss,
            baseline_loss: gate.baseline_loss,
        })?;
        Ok(Some(measurement))
    }

    /// Removes the model's folder, and says what of it is not ours and stays.
    fn take_back(&mut self, saved: &CreatedDir) -> Result<(), RunError> {
        let foreign = saved.remove()?;
        if let Some(first) = foreign.first() {
            let text = format!(
                "`{}` was put there by somebody else ({} in all): it stays, without the model",
                saved.path().join(first).display(),
                foreign.len()
            );
            self.observer.observe(&Event::Warning(text));
        }
        Ok(())
    }
}
