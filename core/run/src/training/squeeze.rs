//! A run under a memory ceiling: the buffers of its steps, made in smaller pieces when memory is
//! refused, before the first step, at any later one, or on a device within one.

use super::job::Job;
use super::room::Try;
use crate::error::RunError;
use crate::event::Event;
use crate::footprint;
use crate::memory::{self, Room};
use crate::recovery::{Ladder, Rung};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::AuditLog;
use forgelm_model::Keep;
use forgelm_train::session::Session;

impl Job<'_> {
    /// Makes the buffers of the session, in smaller pieces where the config allows it and the
    /// system refuses the memory.
    pub(super) fn allocate(
        &mut self,
        session: &mut Session<'_>,
        audit: &mut AuditLog,
    ) -> Result<(), RunError> {
        for tried in std::mem::take(&mut self.tried) {
            self.record(session, audit, &tried)?;
        }
        loop {
            match session.allocate(self.rung.cut, self.rung.keep) {
                Ok(_) => break,
                Err(error) => {
                    let Some(to) = Ladder::of(&self.plan.run).below(self.rung) else {
                        return Err(error.into());
                    };
                    let tried = Try { from: self.rung, to, reason: error.to_string() };
                    self.record(session, audit, &tried)?;
                }
            }
        }
        Ok(())
    }

    /// Before a step: when what the step allocates besides its buffers cannot be had, gives back
    /// the buffers and makes smaller ones, until it can. A step that was squeezed is saved, so that
    /// a run that is killed later continues with the same pieces.
    pub(super) fn make_room(
        &mut self,
        session: &mut Session<'_>,
        audit: &mut AuditLog,
    ) -> Result<(), RunError> {
        if !self.plan.run.training.oom_recovery {
            return Ok(());
        }
        let mut is_squeezed = false;
        while let Some(room) = memory::refused(self.headroom(session), self.kept) {
            self.squeeze(session, audit, room)?;
            is_squeezed = true;
        }
        if is_squeezed && session.state().global_step > 0 {
            self.checkpoint(session)?;
        }
        Ok(())
    }

    /// What a step or an evaluation gives. Where the memory of a device is full before anything was
    /// changed, all of it is done again in smaller pieces.
    pub(super) fn retried<T>(
        &mut self,
        session: &mut Session<'_>,
        audit: &mut AuditLog,
        work: impl Fn(&mut Session<'_>) -> T,
    ) -> Result<T, RunError> {
        loop {
            let failed = match forgelm_kernels_api::caught(|| work(session)) {
                Ok(made) => return Ok(made),
                Err(failed) => failed,
            };
            let may_be_repeated = failed.is_out_of_memory() && !session.is_torn();
            let below = Ladder::of(&self.plan.run).below(self.rung);
            let Some(to) = below.filter(|_| may_be_repeated) else {
                return Err(failed.into());
            };
            self.record(session, audit, &Try { from: self.rung, to, reason: failed.to_string() })?;
            self.allocate(session, audit)?;
            if session.state().global_step > 0 {
                self.checkpoint(session)?;
            }
        }
    }

    fn headroom(&self, session: &Session<'_>) -> u64 {
        let params = 4 * session.adapter().n_params() as u64;
        let rollouts = self.data.feed(&self.found.tokenizer).rollouts.map_or(0, |rollouts| {
            let n_answers = self.rung.cut.batch_size * self.rung.cut.accumulation;
            let model = self.found.open.config();
            let engine = session.engine();
            rollouts.memory_plan(model, session.adapter(), n_answers, engine).total_bytes()
        });
        2 * params + footprint::step_slack(session.size()) + rollouts as u64
    }

    fn squeeze(
        &mut self,
        session: &mut Session<'_>,
        audit: &mut AuditLog,
        room: Room,
    ) -> Result<(), RunError> {
        let pages = || memory::pages_room().unwrap_or(u64::MAX / 2);
        loop {
            let Some(to) = Ladder::of(&self.plan.run).below(self.rung) else {
                return Err(RunError::OutOfRoom {
                    step: session.state().global_step + 1,
                    needed: self.headroom(session),
                    available: room.bytes,
                    ceiling: room.ceiling.name(),
                    batch_size: self.rung.cut.batch_size,
                });
            };
            let reason = format!("{} leaves {} bytes", room.ceiling.name(), room.bytes);
            self.record(session, audit, &Try { from: self.rung, to, reason })?;
            let before = pages();
            if let Ok((given_back, made)) = session.allocate(self.rung.cut, self.rung.keep) {
                // What the allocator kept for itself is there for the next step.
                let expected = before.saturating_add(given_back).saturating_sub(made);
                self.kept = expected.saturating_sub(pages()).min(given_back);
                return Ok(());
            }
        }
    }

    /// Goes down a rung, in the state, the audit log and to whoever watches.
    fn record(
        &mut self,
        session: &mut Session<'_>,
        audit: &mut AuditLog,
        tried: &Try,
    ) -> Result<(), RunError> {
        let Try { from, to, reason } = tried;
        let step = session.state().global_step;
        audit.append(&AuditEvent::TrainingOomRecovery {
            old_batch_size: from.cut.batch_size as u64,
            new_batch_size: to.cut.batch_size as u64,
            new_grad_accum: to.cut.accumulation as u64,
            gradient_checkpointing: to.keep == Keep::LayerInputs,
            step,
            reason: reason.clone(),
        })?;
        self.rung = *to;
        session.state_mut().cut = (to.cut != self.configured).then_some(to.cut);
        let text = format!("memory is short before step {}: {reason}; {}", step + 1, told(*to));
        self.observer.observe(&Event::Warning(text));
        Ok(())
    }
}

fn told(rung: Rung) -> String {
    let recompute = match rung.keep {
        Keep::LayerInputs => ", activations are computed again in the backward pass",
        Keep::Everything | Keep::Nothing => "",
    };
    let cut = rung.cut;
    format!("going on with batch {} x {}{recompute}", cut.batch_size, cut.accumulation)
}
