//! A step that the processes of a run make together.
//!
//! The micro-batches of a step are the leaves of one tree of additions
//! ([`forgelm_collective::PairwiseSum`]): who computes which of them changes no bit. Everything
//! else is done by every process alike, from numbers that all of them have. The leader says what is
//! done next; the others are in [`Session::follow`].
//!
//! Papers: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 (what is shared out); Zhao et al.
//! 2023, arXiv:2304.11277, section 4.

use super::gradient::Gradient;
use super::input::{Estimate, StepInput};
use super::shares::{Shares, Sharing};
use super::summing::Summing;
use super::totals::Totals;
use super::{Cut, Session, StepError};
use crate::optimizer::{At, Optimizer, ScaledGradient};
use forgelm_artifact::Disk;
use forgelm_collective::{CollectiveError, Group, PairwiseSum};
use forgelm_kernels_api::{Buffer, Ops, Precision, SliceMut};
use forgelm_model::{
    Descent, Holders, Keep, MemoryPlan, OutOfMemory, PartialGradient, Places, Prefetch, Trainable,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Why there are no buffers.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// The system refused the memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// It did so on other processes.
    #[error("there is no memory for the buffers of a step on {}", ranks(.0))]
    OnOthers(Vec<usize>),
    /// The processes no longer speak to each other.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

fn ranks(of: &[usize]) -> String {
    let of: Vec<String> = of.iter().map(usize::to_string).collect();
    format!("rank {}", of.join(", "))
}

/// What a step that processes share takes besides, at most, by name and size: gradients that wait to be
/// added up, what is on its way, and what comes of it.
#[must_use]
pub fn shared_memory_plan(
    adapter: &Trainable,
    n_leaves: usize,
    (sharing, n_ranks): (Sharing, usize),
) -> MemoryPlan {
    let whole = adapter.n_params() * size_of::<f32>();
    let (share, on_its_way) = match sharing {
        Sharing::Nothing => (whole, whole),
        Sharing::Gradients => {
            (share_of(whole, n_ranks), PartialGradient::planned_bytes(adapter).min(whole))
        }
    };
    let mut plan = MemoryPlan::default();
    plan.add("gradients to be added up", share * PairwiseSum::n_held(n_leaves));
    plan.add("gradient between the processes", 2 * on_its_way);
    plan.add("summed gradient", share);
    plan
}

/// About what a process has of something that so many share out: parts differ by the pieces of which
/// they are made.
#[must_use]
pub fn share_of(whole: usize, n_ranks: usize) -> usize {
    (whole / n_ranks.max(1) + whole / 32).min(whole)
}

/// What the leader has the others do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Command {
    Step,
    Evaluate,
    Allocate {
        cut: Cut,
        recomputes: bool,
    },
    CollectState,
    CollectNumbers,
    DigestNumbers,
    /// The numbers of a checkpoint are those that train now.
    Restore {
        checkpoint: PathBuf,
    },
    /// A checkpoint is staged in a folder, for the part of each process.
    SaveShard {
        folder: PathBuf,
    },
    /// The leader runs passes alone.
    Accompany,
    End {
        exit_code: i32,
    },
}

/// How the processes of a group hold frozen weights together: all of them, or those that give the same
/// `host` without the others.
///
/// # Errors
/// If they do not tell each other where they are.
///
/// # Panics
/// Never: a command is plain data.
pub fn holders(
    group: &Group,
    host: Option<u32>,
    prefetch: Prefetch,
) -> Result<Holders, CollectiveError> {
    let everyone = group.members();
    let members = match host {
        None => everyone.clone(),
        Some(host) => group.members_with(host)?,
    };
    let call = serde_json::to_vec(&Command::Accompany).expect("plain data is serializable");
    Ok(Holders { everyone, members, prefetch, link: None, call })
}

/// Of the leader: lets the others go, who end with this exit code too.
///
/// # Errors
/// If they no longer listen.
pub fn dismiss(group: &Group, exit_code: i32) -> Result<(), CollectiveError> {
    group.tell_value(&Command::End { exit_code })
}

/// What all processes have of a list whose elements they share out: in the order of the first
/// numbers.
///
/// # Errors
/// If one does not give its part.
pub(crate) fn of_all<T: Serialize + DeserializeOwned>(
    group: &Group,
    own: &Vec<(usize, T)>,
) -> Result<Vec<(usize, T)>, CollectiveError> {
    let mut all: Vec<(usize, T)> = group.all_gather_values(own)?.into_iter().flatten().collect();
    all.sort_by_key(|(index, _)| *index);
    Ok(all)
}

/// What trains and is here, where the update is made.
fn to_update<'a>(adapter: &'a mut Trainable, shares: &Shares<'_>) -> SliceMut<'a> {
    match shares.updates_on() {
        // They go back to the device when the step is made.
        Some(_) => adapter.params_mut().into(),
        None => adapter.numbers_mut(),
    }
}

impl Session<'_> {
    /// Of the leader: has the others do what this process does now.
    pub(super) fn lead(&self, command: Command) -> Result<(), CollectiveError> {
        match &self.shares {
            Some(shares) if shares.group().is_leader() => {
                self.decoder.let_go()?;
                shares.group().tell_value(&command)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Of the leader: that is done.
    pub(super) fn led(&self) {
        if let Some(shares) = self.shares.as_ref().filter(|shares| shares.group().is_leader()) {
            shares.group().told();
        }
    }

    /// Whether this process tells what goes wrong on all of them.
    fn leads(&self) -> bool {
        self.shares.as_ref().is_none_or(|shares| shares.group().is_leader())
    }

    /// Of the others: does what the leader does, until it lets them go; the exit code that it gives
    /// them.
    ///
    /// # Errors
    /// If something fails on this process, or the processes no longer speak to each other. Steps that
    /// give no finite number are for the leader to tell.
    pub fn follow(&mut self) -> Result<i32, StepError> {
        let group = match &self.shares {
            Some(shares) => shares.group(),
            None => return Ok(0),
        };
        loop {
            match group.listen_for()? {
                Command::Step => match self.step_as_all() {
                    Ok(_) | Err(StepError::NotFinite { .. }) => {}
                    Err(error) => return Err(error),
                },
                Command::Evaluate => match self.evaluate_as_all() {
                    Ok(_) | Err(StepError::NotFinite { .. }) => {}
                    Err(error) => return Err(error),
                },
                Command::Allocate { cut, recomputes } => {
                    let keep = if recomputes { Keep::LayerInputs } else { Keep::Everything };
                    match self.allocate_as_all(cut, keep) {
                        Ok(_) | Err(AllocateError::OutOfMemory(_) | AllocateError::OnOthers(_)) => {
                        }
                        Err(AllocateError::Collective(error)) => return Err(error.into()),
                    }
                }
                Command::CollectState => {
                    self.collect_state()?;
                }
                Command::CollectNumbers => {
                    self.collect_numbers()?;
                }
                Command::DigestNumbers => {
                    self.digest_numbers()?;
                }
                Command::Restore { checkpoint } => self.restore_as_all(&checkpoint)?,
                Command::SaveShard { folder } => {
                    // What could not be written, the leader tells.
                    self.write_shard(&Disk::real(), &folder)?;
                }
                Command::Accompany => self.decoder.accompany()?,
                Command::End { exit_code } => return Ok(exit_code),
            }
        }
    }

    /// Whether a part of work that is shared out by number is for this process.
    pub(super) fn is_mine(&self, index: usize) -> bool {
        let of = |shares: &Shares<'_>| index % shares.group().n_ranks() == shares.group().rank();
        self.shares.as_ref().is_none_or(of)
    }

    /// What all processes have of such work.
    pub(super) fn of_all<T: Serialize + DeserializeOwned>(
        &self,
        own: Vec<(usize, T)>,
    ) -> Result<Vec<(usize, T)>, CollectiveError> {
        match &self.shares {
            None => Ok(own),
            Some(shares) => of_all(shares.group(), &own),
        }
    }

    /// Buffers on every process, or on none that could be used.
    pub(super) fn allocate_as_all(
        &mut self,
        cut: Cut,
        keep: Keep,
    ) -> Result<(u64, u64), AllocateError> {
        if self.adapter.is_in_parts() && !self.adapter.is_current() {
            // It was read from a checkpoint.
            self.renew()?;
        }
        let made = self.allocate_alone(cut, keep);
        let Some(shares) = &self.shares else { return Ok(made?) };
        let all = shares.group().all_gather(vec![u8::from(made.is_ok())])?;
        let made = made?;
        let without = |(rank, ok): (usize, &Vec<u8>)| (ok != &[1]).then_some(rank);
        let without: Vec<usize> = all.iter().enumerate().filter_map(without).collect();
        if without.is_empty() { Ok(made) } else { Err(AllocateError::OnOthers(without)) }
    }

    /// The optimizer of all parameters.
    pub(super) fn collect_state(&self) -> Result<Cow<'_, Optimizer>, CollectiveError> {
        let shares = self.shares.as_ref().filter(|shares| shares.own_part().is_some());
        let Some(shares) = shares else { return Ok(Cow::Borrowed(&self.optimizer)) };
        let parts = shares.group().all_gather(self.optimizer.state_bytes())?;
        let settings = self.optimizer.settings().clone();
        let mut all = Optimizer::new(settings, &self.adapter.slices())
            .expect("it was made for these parameters before");
        for (rank, bytes) in parts.iter().enumerate() {
            all.fill(&shares.ranges(rank), bytes);
        }
        Ok(Cow::Owned(all))
    }

    /// Micro-batches of a whole step.
    fn n_slots(&self) -> usize {
        self.feed.n_micro_batches(self.cut)
    }

    /// Gradient and update of a step that all processes make together: the sums over its micro-batches,
    /// and the norm of the mean gradient.
    pub(super) fn update_together(
        &mut self,
        step: u64,
        input: &StepInput,
        estimate: &Estimate,
    ) -> Result<(Totals, f64), StepError> {
        let (total, sum) = self.sum_together(step, input, estimate)?;
        let shares = self.shares.as_ref().expect("the step is shared");
        let ops = Arc::clone(shares.updates_on().unwrap_or(self.decoder.ops()));
        let sum = match sum {
            Buffer::Host(sum) => ops.place(sum),
            on_device @ Buffer::Device(_) => Ok(on_device),
        }
        .unwrap_or_else(|refused| refused.end("the summed gradient"));
        let squares = shares.sum_of_squares(|piece| ops.sum_of_squares(sum.part(piece)))?;
        let max_norm = self.optimizer.settings().max_grad_norm(self.settings.max_grad_norm);
        let gradient = ScaledGradient::from_squares(squares, total.n_terms, max_norm);
        if !gradient.norm.is_finite() {
            let error = match self.leads() {
                true => self.bad_gradient(step, gradient.norm, input, estimate),
                false => self.not_finite("the norm of the gradient".to_owned(), gradient.norm),
            };
            self.decoder.accompany()?;
            return Err(error);
        }
        let learning_rate = self.settings.schedule.at(step);
        let at = At { step: step + 1, learning_rate, grad_scale: gradient.scale };
        self.is_torn = true;
        match shares.sharing() {
            Sharing::Nothing => self.update_all(ops.as_ref(), sum, at)?,
            Sharing::Gradients => self.update_own(ops.as_ref(), &sum, at)?,
        }
        Ok((total, gradient.norm))
    }

    /// Makes the whole update, as every other process does.
    ///
    /// Shapes: `own` [numbers of this process]: what it has of the summed gradient.
    fn update_all(&mut self, ops: &dyn Ops, own: Buffer, at: At) -> Result<(), CollectiveError> {
        let shares = self.shares.as_ref().expect("the step is shared");
        let sum = ops.allocate(self.adapter.n_params(), Precision::Exact);
        let mut sum = sum.unwrap_or_else(|refused| refused.end("the summed gradient"));
        shares.gather(own, sum.all_mut())?;
        self.optimizer.step(ops, to_update(&mut self.adapter, shares), sum.all(), at);
        self.decoder.refresh(&mut self.adapter);
        Ok(())
    }

    /// Updates the numbers of this process, and brings together what all have updated. Shapes: as
    /// [`Session::update_all`].
    fn update_own(&mut self, ops: &dyn Ops, sum: &Buffer, at: At) -> Result<(), CollectiveError> {
        let is_in_parts = self.adapter.is_in_parts();
        let shares = self.shares.as_ref().expect("the step is shared");
        let own = shares.own_ranges();
        let places = Places::new(&own);
        let place =
            |range: &Range<usize>| if is_in_parts { places.of(range) } else { range.clone() };
        let grad = |range| sum.part(places.of(&range));
        let mut params = to_update(&mut self.adapter, shares);
        self.optimizer.step_by(ops, (params.reborrow(), &place), grad, at);
        if is_in_parts {
            return self.renew();
        }
        let updated = params.as_slice();
        let updated: Vec<_> = own.into_iter().map(|range| updated.part(range)).collect();
        shares.gather(shares.taken(&updated), params)?;
        self.decoder.refresh(&mut self.adapter);
        Ok(())
    }

    /// The losses of all micro-batches, and the sum of their gradients: all of it, or the part of this
    /// process.
    fn sum_together(
        &mut self,
        step: u64,
        input: &StepInput,
        estimate: &Estimate,
    ) -> Result<(Totals, Buffer), StepError> {
        let (n, n_slots) = (input.micro_batches.len(), self.n_slots());
        let shares = self.shares.take().expect("the step is shared");
        let mut summing = Summing::new(&shares, n, n_slots);
        let mut losses = Vec::new();
        let summed = || {
            for (round, leaf) in shares.leaves(n, n_slots).into_iter().enumerate() {
                let has_gradient = match leaf {
                    None => false,
                    Some(leaf) => {
                        let of = (&mut summing, round);
                        let (loss, has_gradient) = self.leaf(step, leaf, input, estimate, of)?;
                        losses.push((leaf, loss));
                        has_gradient
                    }
                };
                // A process without a gradient gives something where the others do.
                let mut push = |part| summing.push_nothing(round, part, leaf.is_some());
                self.decoder.accompany_descent(&self.adapter, &mut push)?;
                if !has_gradient && !self.decoder.is_in_parts() {
                    (0..shares.deal.n_parts()).try_for_each(push)?;
                }
            }
            let sum = summing.finish()?;
            Ok::<_, StepError>((of_all(shares.group(), &losses)?, sum))
        };
        let summed = summed();
        self.shares = Some(shares);
        let (losses, sum) = summed?;
        let mut total = Totals::default();
        for (leaf, loss) in losses {
            if !loss.loss_sum().is_finite() {
                return Err(self.bad_leaf(step, leaf, input, estimate, loss.loss_sum()));
            }
            total.add(loss);
        }
        Ok((total, sum))
    }

    /// The loss of one micro-batch. Its gradient goes to the sum of a round, if it has one: whether it
    /// has.
    fn leaf(
        &mut self,
        step: u64,
        leaf: usize,
        input: &StepInput,
        estimate: &Estimate,
        (summing, round): (&mut Summing<'_>, usize),
    ) -> Result<(Totals, bool), StepError> {
        let micro_batch = &input.micro_batches[leaf];
        let batch = &micro_batch.batch;
        let loss = self.forward(micro_batch, estimate, &input.totals, Some(step))?;
        if !loss.loss_sum.is_finite() {
            return Ok((loss.into(), false));
        }
        self.decoder.weigh_balance(&self.adapter, loss.n_terms, &mut self.activations);
        if let Gradient::Whole(grad) = &mut self.gradient {
            self.decoder.ops().fill(grad.all_mut(), 0.0);
            self.backward(batch, step);
            summing.push_whole(round, self.gradient.whole().all())?;
            return Ok((loss.into(), true));
        }
        let (mut descent, mut part) = (Descent::begin(), 0);
        while let Some(slices) = self.descend(&mut descent, batch, step) {
            if !slices.is_empty() {
                let gradient = self.gradient.by_part();
                let slices: Vec<_> = slices.into_iter().map(|slice| gradient.of(slice)).collect();
                summing.push(round, part, &slices)?;
                part += 1;
            }
        }
        Ok((loss.into(), true))
    }

    /// The loss of a micro-batch is not finite: the leader looks at it, whoever found it.
    fn bad_leaf(
        &mut self,
        step: u64,
        leaf: usize,
        input: &StepInput,
        estimate: &Estimate,
        loss: f64,
    ) -> StepError {
        let error = self.look_at_leaf(step, leaf, input, estimate, loss);
        // How many passes that took is the leader's to know.
        self.decoder.accompany().map_or_else(StepError::from, |()| error)
    }

    fn look_at_leaf(
        &mut self,
        step: u64,
        leaf: usize,
        input: &StepInput,
        estimate: &Estimate,
        loss: f64,
    ) -> StepError {
        if !self.leads() {
            return self.not_finite(format!("the loss of micro-batch {}", leaf + 1), loss);
        }
        let micro_batch = &input.micro_batches[leaf];
        match self.forward(micro_batch, estimate, &input.totals, Some(step)) {
            Err(failed) => failed.into(),
            Ok(_) => self.bad_loss(step, &micro_batch.batch, loss),
        }
    }
}
