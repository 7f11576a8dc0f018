//! What becomes of the tuned model: the gates' verdicts, and what follows from them.
//!
//! The model is saved before it is judged, and taken back by a gate only on a number that was
//! measured. That it is taken back is recorded first, so that a run that is killed in between says
//! what was going on; continued, it judges again and ends the same way.

use super::job::Job;
use crate::error::RunError;
use crate::event::Event;
use crate::gates::{self, LossGate, Verdict};
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::{self, CreatedDir};
use forgelm_evidence::approval::requests;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::AuditLog;
use forgelm_evidence::documents::evidence::{Gate, Outcome};
use forgelm_train::state::State;
use serde_json::Value;
use std::collections::BTreeSet;

/// What the gates said.
#[derive(Debug)]
pub(super) struct Gated {
    /// Each verdict, for the documents.
    pub(super) gates: Vec<Gate>,
    /// What becomes of the model.
    pub(super) outcome: Outcome,
}

impl Job<'_> {
    /// Asks the gates, and takes the model back where one rejects it and the config says so.
    pub(super) fn gate(
        &mut self,
        state: &State,
        saved: &CreatedDir,
        audit: &mut AuditLog,
    ) -> Result<Gated, RunError> {
        let verdicts: Vec<(&str, Verdict)> = self
            .loss_gate(state, audit)?
            .map(|verdict| (gates::LOSS, verdict))
            .into_iter()
            .collect();
        let is_revert_on =
            self.plan.run.evaluation.as_ref().is_some_and(|evaluation| evaluation.auto_revert);
        let mut outcome = match self.approval {
            Some(_) => Outcome::Staged,
            None => Outcome::Promoted,
        };
        for (gate, verdict) in &verdicts {
            let Verdict::Reject { source, .. } = verdict else { continue };
            let detail = verdict.reason().unwrap_or_default();
            if !is_revert_on {
                let text = format!("the {gate} gate rejects the model, which is kept: {detail}");
                self.observer.observe(&Event::Warning(text));
                continue;
            }
            audit.append(&AuditEvent::ModelReverted {
                reason: source.as_str().to_owned(),
                detail,
            })?;
            outcome = Outcome::Reverted;
        }
        if outcome == Outcome::Reverted {
            self.take_back(saved)?;
        }
        let gates = verdicts.iter().map(|(gate, verdict)| verdict.to_gate(gate)).collect();
        Ok(Gated { gates, outcome })
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

    /// The verdict on the validation loss; none where no gate asks, or nothing was measured.
    fn loss_gate(&self, state: &State, audit: &mut AuditLog) -> Result<Option<Verdict>, RunError> {
        let evaluation = self.plan.run.evaluation.as_ref();
        let gate = evaluation.and_then(|e| LossGate::of(e, gates::loss_before(state)));
        let (Some(gate), Some(eval_loss)) = (gate, gates::loss_after(state)) else {
            return Ok(None);
        };
        let verdict = gate.judge(eval_loss);
        audit.append(&AuditEvent::LossGateCompleted {
            passed: verdict.is_passed(),
            eval_loss,
            max_acceptable_loss: gate.max_acceptable_loss,
            baseline_loss: gate.baseline_loss,
        })?;
        Ok(Some(verdict))
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
