//! A step that the processes of a run make together.
//!
//! The micro-batches of a step are the leaves of one tree of additions
//! ([`forgelm_collective::PairwiseSum`]): who computes which of them changes no bit. Everything
//! else is done by every process alike, from numbers that all of them have. The leader says what is
//! done next; the others are in [`Session::follow`].
//!
//! Papers: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 (what is shared out); Zhao et al.
//! 2023, arXiv:2304.11277, section 4.

use super::deal::{Deal, Places};
use super::input::{Estimate, StepInput};
use super::totals::Totals;
use super::{Cut, Session, StepError};
use crate::optimizer::{At, Optimizer, ScaledGradient};
use forgelm_artifact::Disk;
use forgelm_collective::{CollectiveError, Group, Line, PairwiseSum, Pending};
use forgelm_kernels_api::Ops;
use forgelm_model::{Holders, Keep, MemoryPlan, OutOfMemory, Prefetch, Trainable};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What the processes share out between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing: each has everything, and makes the whole update.
    Nothing,
    /// The summed gradient and the optimizer's state: each updates its part (ZeRO stage 2).
    Gradients,
}

/// The processes of a run, and what they share out.
#[derive(Clone, Copy)]
pub struct Team<'a> {
    /// The processes.
    pub group: &'a Group,
    /// What each has only a part of.
    pub sharing: Sharing,
    /// The kernels of the processor, where these update what trains and hold the optimizer's state,
    /// and those of a device do everything else.
    pub updates_on: Option<&'a Arc<dyn Ops>>,
}

/// Why processes cannot work on a step together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{n_ranks} processes share a step of {n_leaves} micro-batches\n  hint: start at most {n_leaves} \
     processes, or cut the step into more pieces: a smaller \
     `training.per_device_train_batch_size` and a larger `training.gradient_accumulation_steps`"
)]
pub struct TooManyRanks {
    /// Processes.
    pub n_ranks: usize,
    /// Micro-batches of a step.
    pub n_leaves: usize,
}

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
/// added up, one that is on its way, and what comes of them.
#[must_use]
pub fn shared_memory_plan(adapter: &Trainable, n_leaves: usize) -> MemoryPlan {
    let n_bytes = adapter.n_params() * size_of::<f32>();
    let mut plan = MemoryPlan::default();
    plan.add("gradients to be added up", n_bytes * PairwiseSum::n_held(n_leaves));
    plan.add("gradient between the processes", 2 * n_bytes);
    plan.add("summed gradient", n_bytes);
    plan
}

impl std::fmt::Debug for Team<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, sharing, updates_on } = self;
        f.debug_struct("Team")
            .field("group", group)
            .field("sharing", sharing)
            .field("updates_on", &updates_on.map(|ops| ops.name()))
            .finish()
    }
}

impl Team<'_> {
    /// Whether a step of so many micro-batches has one for every process.
    ///
    /// # Errors
    /// If it has not.
    pub fn check(&self, n_leaves: usize) -> Result<(), TooManyRanks> {
        let n_ranks = self.group.n_ranks();
        if n_ranks > n_leaves { Err(TooManyRanks { n_ranks, n_leaves }) } else { Ok(()) }
    }

    /// Whether a run of this many processes gives the bits of a run of one, and of any other number of
    /// which this holds.
    #[must_use]
    pub fn is_comparable(&self) -> bool {
        self.group.n_ranks().is_power_of_two()
    }
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
    Ok(Holders { everyone, members, prefetch, call })
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

/// See [`Team`]; with what follows from the parameters.
pub(super) struct Shares<'a> {
    group: &'a Group,
    sharing: Sharing,
    updates_on: Option<&'a Arc<dyn Ops>>,
    deal: Deal,
}

impl<'a> Shares<'a> {
    /// Of a team, over what trains, by the optimizer of all of it.
    pub(super) fn new(team: Team<'a>, adapter: &Trainable, optimizer: &Optimizer) -> Self {
        let Team { group, sharing, updates_on } = team;
        let deal = Deal::new(optimizer, adapter.descending_parts(), group.n_ranks());
        Self { group, sharing, updates_on, deal }
    }

    /// See [`Team::updates_on`].
    pub(super) fn updates_on(&self) -> Option<&'a Arc<dyn Ops>> {
        self.updates_on
    }

    pub(super) fn group(&self) -> &'a Group {
        self.group
    }

    /// Where the elements of a process are.
    pub(super) fn ranges(&self, rank: usize) -> Vec<Range<usize>> {
        self.deal.ranges(rank)
    }

    fn own_ranges(&self) -> Vec<Range<usize>> {
        self.ranges(self.group.rank())
    }

    /// The elements that this process has moments of, where it has not all.
    pub(super) fn own_part(&self) -> Option<Vec<Range<usize>>> {
        match self.sharing {
            Sharing::Nothing => None,
            Sharing::Gradients => Some(self.own_ranges()),
        }
    }

    /// Elements of all processes, each where it belongs, from what this one has of them.
    fn of_all(&self, own: Vec<f32>) -> Result<Vec<f32>, CollectiveError> {
        let mut end = 0;
        let range = |len: usize| {
            let start = end;
            end += len;
            start..end
        };
        let ranges = self.deal.lens().into_iter().map(range).collect();
        Ok(self.deal.put_together(&self.group.all_gather_ranges(own, ranges)?))
    }

    /// The sum of all squares, piece by piece in their order, from those of this process.
    fn sum_of_squares(&self, of_own: impl Fn(Range<usize>) -> f64) -> Result<f64, CollectiveError> {
        let pieces = self.deal.own_pieces(self.group.rank());
        let of = |piece: Range<usize>| if piece.is_empty() { 0.0 } else { of_own(piece) };
        let own = pieces.into_iter().flat_map(|piece| of(piece).to_bits().to_le_bytes()).collect();
        let of_ranks = self.group.all_gather(own)?;
        let values = |bytes: &Vec<u8>| -> Vec<f64> {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&bits| f64::from_bits(u64::from_le_bytes(bits)))
                .collect()
        };
        let of_ranks: Vec<Vec<f64>> = of_ranks.iter().map(values).collect();
        Ok(self.deal.in_order(&of_ranks).into_iter().sum())
    }

    /// The micro-batch of this process in each round of a step that has `n` of them, where a whole step
    /// has `n_slots`. All processes go through the same rounds.
    fn leaves(&self, n: usize, n_slots: usize) -> Vec<Option<usize>> {
        let (rank, n_ranks) = (self.group.rank(), self.group.n_ranks());
        let leaf = |index: usize| (index < n).then_some(index);
        match self.sharing {
            Sharing::Nothing => self.block(rank, n, n_slots).map(leaf).collect(),
            // Sums of a round are made between the processes, so that each has its part alone.
            Sharing::Gradients => {
                (0..n.div_ceil(n_ranks)).map(|round| leaf(round * n_ranks + rank)).collect()
            }
        }
    }

    /// A whole subtree for each process, where their number allows it.
    fn block(&self, rank: usize, n: usize, n_slots: usize) -> Range<usize> {
        let n_ranks = self.group.n_ranks();
        let n_slots = if n_ranks.is_power_of_two() { n_slots.next_power_of_two() } else { n_slots };
        let bound = |rank: usize| (rank * n_slots / n_ranks).min(n);
        bound(rank)..bound(rank + 1)
    }
}

/// A gradient on its way to being summed over all micro-batches of a step.
struct Summing<'s> {
    shares: &'s Shares<'s>,
    /// By part: of this process alone, or of its share over all.
    sums: Arc<Mutex<Vec<PairwiseSum>>>,
    /// A part travels while the next is computed.
    on_its_way: Option<Pending<()>>,
    n: usize,
    n_slots: usize,
}

impl<'s> Summing<'s> {
    fn new(shares: &'s Shares<'s>, n: usize, n_slots: usize) -> Self {
        let sums = vec![PairwiseSum::default(); shares.deal.n_parts()];
        Self { shares, sums: Arc::new(Mutex::new(sums)), on_its_way: None, n, n_slots }
    }

    /// Takes what this process has of a part in a round, or nothing.
    fn push(
        &mut self,
        round: usize,
        part: usize,
        gradient: Vec<f32>,
    ) -> Result<(), CollectiveError> {
        if self.shares.sharing == Sharing::Nothing {
            lock(&self.sums)[part].push(gradient);
            return Ok(());
        }
        self.wait()?;
        let n_ranks = self.shares.group.n_ranks();
        let n_with = (self.n - round * n_ranks).min(n_ranks);
        let (ranges, sums) = (self.shares.deal.shares(part), Arc::clone(&self.sums));
        self.on_its_way = Some(self.shares.group.start(move |line| {
            let own = line.reduce_scatter(&gradient, &ranges, n_with)?;
            lock(&sums)[part].push(own);
            Ok(())
        }));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), CollectiveError> {
        self.on_its_way.take().map_or(Ok(()), Pending::wait)
    }

    /// The sum of what this process has, part by part.
    fn finish(mut self) -> Result<Vec<f32>, CollectiveError> {
        self.wait()?;
        let sums = std::mem::take(&mut *lock(&self.sums));
        let sums = sums.into_iter().map(|sum| sum.finish().unwrap_or_default());
        if self.shares.sharing == Sharing::Gradients {
            return Ok(sums.flatten().collect());
        }
        let shares = self.shares;
        let with = |&rank: &usize| !shares.block(rank, self.n, self.n_slots).is_empty();
        let n_with = (0..shares.group.n_ranks()).filter(with).count();
        let mut own = Vec::new();
        for (part, sum) in sums.enumerate() {
            let ranges = shares.deal.shares(part);
            let of_all = move |line: &mut Line| line.reduce_scatter(&sum, &ranges, n_with);
            own.extend(shares.group.start(of_all).wait()?);
        }
        Ok(own)
    }
}

fn lock(sums: &Mutex<Vec<PairwiseSum>>) -> std::sync::MutexGuard<'_, Vec<PairwiseSum>> {
    // A thread that panicked ends the run.
    sums.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session<'_> {
    /// Of the leader: has the others do what this process does now.
    pub(super) fn lead(&self, command: Command) -> Result<(), CollectiveError> {
        match &self.shares {
            Some(shares) if shares.group.is_leader() => {
                self.decoder.let_go()?;
                shares.group.tell_value(&command)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Of the leader: that is done.
    pub(super) fn led(&self) {
        if let Some(shares) = self.shares.as_ref().filter(|shares| shares.group.is_leader()) {
            shares.group.told();
        }
    }

    /// Whether this process tells what goes wrong on all of them.
    fn leads(&self) -> bool {
        self.shares.as_ref().is_none_or(|shares| shares.group.is_leader())
    }

    /// Of the others: does what the leader does, until it lets them go; the exit code that it gives
    /// them.
    ///
    /// # Errors
    /// If something fails on this process, or the processes no longer speak to each other. Steps that
    /// give no finite number are for the leader to tell.
    pub fn follow(&mut self) -> Result<i32, StepError> {
        let group = match &self.shares {
            Some(shares) => shares.group,
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
        let of = |shares: &Shares<'_>| index % shares.group.n_ranks() == shares.group.rank();
        self.shares.as_ref().is_none_or(of)
    }

    /// What all processes have of such work.
    pub(super) fn of_all<T: Serialize + DeserializeOwned>(
        &self,
        own: Vec<(usize, T)>,
    ) -> Result<Vec<(usize, T)>, CollectiveError> {
        match &self.shares {
            None => Ok(own),
            Some(shares) => of_all(shares.group, &own),
        }
    }

    /// Buffers on every process, or on none that could be used.
    pub(super) fn allocate_as_all(
        &mut self,
        cut: Cut,
        keep: Keep,
    ) -> Result<(u64, u64), AllocateError> {
        let made = self.allocate_alone(cut, keep);
        let Some(shares) = &self.shares else { return Ok(made?) };
        let all = shares.group.all_gather(vec![u8::from(made.is_ok())])?;
        let made = made?;
        let without = |(rank, ok): (usize, &Vec<u8>)| (ok != &[1]).then_some(rank);
        let without: Vec<usize> = all.iter().enumerate().filter_map(without).collect();
        if without.is_empty() { Ok(made) } else { Err(AllocateError::OnOthers(without)) }
    }

    /// The optimizer of all parameters.
    pub(super) fn collect_state(&self) -> Result<Cow<'_, Optimizer>, CollectiveError> {
        let shares = self.shares.as_ref().filter(|shares| shares.own_part().is_some());
        let Some(shares) = shares else { return Ok(Cow::Borrowed(&self.optimizer)) };
        let parts = shares.group.all_gather(self.optimizer.state_bytes())?;
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
        let place =
            |sum| ops.place(sum).unwrap_or_else(|refused| refused.end("the summed gradient"));
        let mut sum = place(sum);
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
        if shares.sharing == Sharing::Nothing {
            sum = place(shares.of_all(sum.all().to_host().into_owned())?);
        }
        let mut params = match shares.updates_on() {
            // They go back to the device when the step is made.
            Some(_) => self.adapter.params_mut().into(),
            None => self.adapter.numbers_mut(),
        };
        match shares.sharing {
            Sharing::Nothing => self.optimizer.step(ops.as_ref(), params, sum.all(), at),
            Sharing::Gradients => {
                let own = shares.own_ranges();
                let places = Places::new(&own);
                let grad = |range| sum.part(places.of(&range));
                self.optimizer.step_by(ops.as_ref(), params.reborrow(), grad, at);
                let numbers =
                    |range| params.reborrow().part(range).as_slice().to_host().into_owned();
                let all = shares.of_all(own.into_iter().flat_map(numbers).collect())?;
                params.copy_from_host(&all);
            }
        }
        self.decoder.refresh(&mut self.adapter);
        Ok((total, gradient.norm))
    }

    /// The losses of all micro-batches, and the sum of their gradients: all of it, or the part of this
    /// process.
    fn sum_together(
        &mut self,
        step: u64,
        input: &StepInput,
        estimate: &Estimate,
    ) -> Result<(Totals, Vec<f32>), StepError> {
        let (n, n_slots) = (input.micro_batches.len(), self.n_slots());
        let shares = self.shares.take().expect("the step is shared");
        let mut summing = Summing::new(&shares, n, n_slots);
        let mut losses = Vec::new();
        let summed = || {
            for (round, leaf) in shares.leaves(n, n_slots).into_iter().enumerate() {
                let gradient = match leaf {
                    None => None,
                    Some(leaf) => {
                        let (loss, gradient) = self.leaf(step, leaf, input, estimate)?;
                        losses.push((leaf, loss));
                        Some(gradient)
                    }
                };
                self.decoder.accompany()?;
                for part in 0..shares.deal.n_parts() {
                    let of_part = gradient.as_ref().map(|all| shares.deal.take(part, all));
                    summing.push(round, part, of_part.unwrap_or_default())?;
                }
            }
            let sum = summing.finish()?;
            Ok::<_, StepError>((of_all(shares.group, &losses)?, sum))
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

    /// Loss and gradient of one micro-batch.
    fn leaf(
        &mut self,
        step: u64,
        leaf: usize,
        input: &StepInput,
        estimate: &Estimate,
    ) -> Result<(Totals, Vec<f32>), StepError> {
        let micro_batch = &input.micro_batches[leaf];
        let loss = self.forward(micro_batch, estimate, &input.totals, Some(step))?;
        self.decoder.ops().fill(self.grad.all_mut(), 0.0);
        if loss.loss_sum.is_finite() {
            self.decoder.weigh_balance(&self.adapter, loss.n_terms, &mut self.activations);
            self.backward(&micro_batch.batch, step);
        }
        Ok((loss.into(), self.grad.all().to_host().into_owned()))
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
