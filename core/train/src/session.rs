//! The loop body: one optimizer step, one evaluation. Who calls them, and when, is core/run's
//! business.

mod deal;
mod devices;
mod gradient;
mod in_parts;
mod input;
mod layerwise;
mod linked;
mod not_finite;
mod sharded;
mod shares;
mod summing;
mod together;
mod totals;

use crate::feed::{Feed, Split};
use crate::flops::{Work, forward_flops, training_flops};
use crate::optimizer::{At, Optimizer, OptimizerMemory, ScaledGradient};
use crate::references::packed_input;
use crate::schedule::Schedule;
use crate::state::State;
use forgelm_collective::CollectiveError;
use forgelm_data::{PackedBatch, Plan};
use forgelm_model::{
    Activations, Decoder, DropoutStep, EmbeddingNoise, Engine, Keep, MemoryPlan, ModelConfig,
    OutOfMemory, PartialGradient, Pass, Scored, StepSize, Trainable,
};
use forgelm_sdk::Failed;
use forgelm_sdk::trainer::{Loss, StepTotals, Trainer};
use forgelm_tensor::random::{Purpose, Stream};
use gradient::Gradient;
pub use in_parts::{RestoreError, share_out};
use input::{Estimate, MicroBatch, Seen, StepInput};
pub use linked::{Linked, link_devices};
pub use not_finite::StepError;
use shares::Shares;
pub use shares::{Sharing, Team, TooManyRanks};
use std::borrow::Cow;
use std::collections::BTreeMap;
use together::Command;
pub(crate) use together::of_all;
pub use together::{AllocateError, dismiss, holders, share_of, shared_memory_plan};
use totals::Totals;

/// How a step is cut: sequences in a micro-batch (bins when packed), micro-batches in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Sequences in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
}

/// What training is told besides model and data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// Bound on the norm of the mean gradient.
    pub max_grad_norm: f64,
    /// Scale of the noise on token vectors; none without it.
    pub noise_alpha: Option<f64>,
    /// Seed of the dropout and the noise.
    pub seed: u64,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss over the step's terms.
    pub loss: f64,
    /// Learning rate that it used.
    pub learning_rate: f64,
    /// Norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens.
    pub n_tokens: u64,
    /// Trained tokens.
    pub n_trained_tokens: u64,
    /// The trainer's own metrics, each a mean.
    pub metrics: BTreeMap<String, f64>,
}

/// Means over the validation split.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationReport {
    /// Mean loss over its terms.
    pub loss: f64,
    /// Trained tokens.
    pub n_trained_tokens: u64,
    /// The trainer's own metrics, each a mean.
    pub metrics: BTreeMap<String, f64>,
}

/// Model, data and state of a run in progress.
pub struct Session<'a> {
    decoder: &'a Decoder,
    trainer: &'a dyn Trainer,
    feed: Feed<'a>,
    /// The feed's, as steps are cut now.
    plan: Cow<'a, Plan>,
    cut: Cut,
    /// See [`Feed::validation_groups`].
    validation_groups: Vec<Vec<Vec<usize>>>,
    settings: Settings,
    dropout: Stream,
    noise: Stream,
    adapter: Trainable,
    optimizer: Optimizer,
    state: State,
    gradient: Gradient,
    activations: Activations,
    buffers: RowBuffers,
    /// See [`Session::is_torn`].
    is_torn: bool,
    /// The processes that make each step together, where there are several.
    shares: Option<Shares<'a>>,
}

/// One number a scored row.
#[derive(Debug, Default)]
struct RowBuffers {
    logp: Vec<f32>,
    dlogp: Vec<f32>,
}

/// What a session is made of.
pub struct Parts<'a> {
    /// The base model.
    pub decoder: &'a Decoder,
    /// The objective.
    pub trainer: &'a dyn Trainer,
    /// The data, its order, and what the objective needs besides.
    pub feed: Feed<'a>,
    /// What the forward pass keeps for the backward pass; the bits do not depend on it.
    pub keep: Keep,
    /// Everything else.
    pub settings: Settings,
    /// What trains.
    pub adapter: Trainable,
    /// How it trains, with the optimizer's state.
    pub optimizer: Optimizer,
    /// Where the run stands.
    pub state: State,
    /// The processes that make each step together, where the run is shared between processes.
    pub team: Option<Team<'a>>,
}

fn no_activations(decoder: &Decoder) -> Result<Activations, OutOfMemory> {
    let nothing = StepSize { tokens_max: 0, scored_rows_max: 0 };
    Activations::new(decoder, None, nothing, Keep::Nothing)
}

/// Every buffer of a session, by name and size; the weights, which it borrows, are not among them.
#[must_use]
pub fn memory_plan(
    model: &ModelConfig,
    adapter: &Trainable,
    optimizer: OptimizerMemory,
    size: StepSize,
    keep: Keep,
    engine: Engine<'_>,
) -> MemoryPlan {
    let mut plan = Activations::memory_plan(model, Some(adapter), size, keep, engine);
    let n_params = adapter.n_params() * size_of::<f32>();
    plan.add("trained numbers", share_of(n_params, optimizer.n_owners));
    plan.add("trained numbers as the kernels read them", adapter.derived_bytes());
    if optimizer.gradient_is_by_part {
        plan.add("gradient of a layer", PartialGradient::planned_bytes(adapter));
    } else {
        plan.add("gradient of the trained numbers", n_params);
    }
    plan.add("optimizer state", optimizer.state_bytes);
    plan.add("optimizer scratch", optimizer.scratch_bytes);
    plan
}

impl<'a> Session<'a> {
    /// A session with every buffer of the run.
    ///
    /// # Errors
    /// If there is no memory for one.
    pub fn new(parts: Parts<'a>) -> Result<Self, OutOfMemory> {
        let keep = parts.keep;
        let mut session = Self::without_buffers(parts)?;
        session.allocate_alone(session.cut(), keep)?;
        Ok(session)
    }

    /// A session that cannot step before [`Session::allocate`].
    ///
    /// # Errors
    /// If there is no memory for the gradient.
    pub fn without_buffers(parts: Parts<'a>) -> Result<Self, OutOfMemory> {
        let is_layerwise = parts.optimizer.settings().is_layerwise();
        let shares_gradients = |team: &Team<'_>| team.sharing == Sharing::Gradients;
        let is_by_part = is_layerwise || parts.team.as_ref().is_some_and(shares_gradients);
        let ops = parts.decoder.ops();
        let gradient = Gradient::new(&parts.adapter, ops.as_ref(), is_by_part)?;
        let mut optimizer = parts.optimizer;
        let shares = parts.team.map(|team| Shares::new(team, &parts.adapter, &optimizer, ops));
        if let Some(own) = shares.as_ref().and_then(Shares::own_part) {
            optimizer = optimizer.part(&own);
        }
        let state_bytes = optimizer.n_bytes();
        let updates_on = shares.as_ref().and_then(Shares::updates_on).map(AsRef::as_ref);
        optimizer.place(updates_on.unwrap_or(ops.as_ref())).map_err(|refused| OutOfMemory {
            buffer: "optimizer state".to_owned(),
            bytes: refused.bytes,
            total: state_bytes,
        })?;
        let mut adapter = parts.adapter;
        parts.decoder.refresh(&mut adapter);
        Ok(Self {
            decoder: parts.decoder,
            trainer: parts.trainer,
            validation_groups: Vec::new(),
            plan: Cow::Borrowed(parts.feed.plan),
            cut: parts.feed.cut(),
            feed: parts.feed,
            settings: parts.settings,
            dropout: Stream::new(parts.settings.seed, Purpose::Dropout),
            noise: Stream::new(parts.settings.seed, Purpose::EmbeddingNoise),
            gradient,
            adapter,
            optimizer,
            state: parts.state,
            activations: no_activations(parts.decoder)?,
            buffers: RowBuffers::default(),
            is_torn: false,
            shares,
        })
    }

    /// Gives back the buffers of a step and makes those of this cut of the same steps; returns the
    /// bytes given back and the bytes made. What trains and its moments stay as they are.
    ///
    /// # Errors
    /// If there is no memory for one, on any process. The session then has no buffers and cannot step
    /// before this function succeeds, with a smaller cut.
    pub fn allocate(&mut self, cut: Cut, keep: Keep) -> Result<(u64, u64), AllocateError> {
        self.lead(Command::Allocate { cut, recomputes: keep == Keep::LayerInputs })?;
        let made = self.allocate_as_all(cut, keep);
        self.led();
        made
    }

    fn allocate_alone(&mut self, cut: Cut, keep: Keep) -> Result<(u64, u64), OutOfMemory> {
        let size = self.feed.largest_step(cut);
        let tokens_max = self.feed.largest_training_step(cut).tokens_max;
        let before = self.activations.n_bytes() as u64;
        self.buffers = RowBuffers::default();
        self.activations = no_activations(self.decoder)?;
        self.activations = Activations::new(self.decoder, Some(&self.adapter), size, keep)?;
        self.validation_groups = self.feed.validation_groups(tokens_max);
        self.plan = Cow::Owned(self.feed.plan_as(cut));
        self.cut = cut;
        Ok((before, self.activations.n_bytes() as u64))
    }

    /// Gives back the buffers of a step, for what comes after the last one. The session has none
    /// then, and can neither step nor evaluate.
    ///
    /// # Errors
    /// If there is no memory for buffers of no rows.
    pub fn give_back_buffers(&mut self) -> Result<(), OutOfMemory> {
        self.buffers = RowBuffers::default();
        self.activations = no_activations(self.decoder)?;
        Ok(())
    }

    /// Whether a step has changed some of what trains and did not come to its end: it cannot be made
    /// again from here.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// How a step is cut.
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// The largest micro-batch that the buffers hold.
    #[must_use]
    pub fn size(&self) -> StepSize {
        self.activations.size()
    }

    /// What its buffers are made for.
    #[must_use]
    pub fn engine(&self) -> Engine<'_> {
        self.decoder.engine()
    }

    /// What trains, as it stands: with its numbers ([`Session::whole_adapter`]), or this process's part of
    /// them.
    #[must_use]
    pub fn adapter(&self) -> &Trainable {
        &self.adapter
    }

    /// The optimizer, with its state; put together where processes have parts of it.
    ///
    /// # Errors
    /// If a process does not give its part.
    pub fn optimizer(&self) -> Result<Cow<'_, Optimizer>, CollectiveError> {
        self.lead(Command::CollectState)?;
        let collected = self.collect_state();
        self.led();
        collected
    }

    /// Where the run stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where the run stands, for who records evaluations.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// What each micro-batch of a step reads, as steps are cut now: indices of units of the training
    /// split.
    #[must_use]
    pub fn units(&self, step: u64) -> Vec<Vec<usize>> {
        self.plan.step(step)
    }

    /// One optimizer step.
    ///
    /// The loss of every micro-batch is summed, and so are the gradients; both are divided by the
    /// number of terms once.
    ///
    /// # Errors
    /// If the loss or the gradient is not finite, the trainer gives up, or the data cannot be read:
    /// nothing is changed then, unless layers are updated one by one and the error says that some
    /// were.
    pub fn step(&mut self) -> Result<StepReport, StepError> {
        self.lead(Command::Step)?;
        let stepped = self.step_as_all();
        self.led();
        stepped
    }

    /// What every process of a run does in a step.
    fn step_as_all(&mut self) -> Result<StepReport, StepError> {
        let step = self.state.global_step;
        let input = self.read(step)?;
        let (estimate, flops) = self.estimate(&input)?;
        let (total, grad_norm) = match &self.shares {
            None => self.update_alone(step, &input, &estimate)?,
            Some(_) => self.update_together(step, &input, &estimate)?,
        };
        let (mut n_tokens, mut n_flops) = (0, input.flops + flops);
        for MicroBatch { batch, .. } in &input.micro_batches {
            n_tokens += batch.tokens.len() as u64;
            n_flops += training_flops(self.decoder.config(), &self.adapter, Work::of(batch));
        }
        self.is_torn = false;
        self.state.global_step = step + 1;
        self.state.epoch = self.plan.epoch_after(step + 1);
        self.state.n_tokens += n_tokens;
        self.state.flops += n_flops;
        self.state.n_trained_tokens += input.n_trained();
        Ok(StepReport {
            loss: total.mean_loss(),
            learning_rate: self.settings.schedule.at(step),
            grad_norm,
            n_tokens,
            n_trained_tokens: input.n_trained(),
            metrics: input.measured.into_iter().chain(total.means()).collect(),
        })
    }

    /// Gradient and update of a step that this process makes alone: the sums over its micro-batches,
    /// and the norm of the mean gradient.
    fn update_alone(
        &mut self,
        step: u64,
        input: &StepInput,
        estimate: &Estimate,
    ) -> Result<(Totals, f64), StepError> {
        if let Gradient::Whole(values) = &mut self.gradient {
            self.decoder.ops().fill(values.all_mut(), 0.0);
        }
        let (mut total, mut norm_by_layer) = (Totals::default(), None);
        for micro_batch in &input.micro_batches {
            let batch = &micro_batch.batch;
            let loss = self.forward(micro_batch, estimate, &input.totals, Some(step))?;
            if !loss.loss_sum.is_finite() {
                return Err(self.bad_loss(step, batch, loss.loss_sum));
            }
            self.decoder.weigh_balance(&self.adapter, loss.n_terms, &mut self.activations);
            match self.gradient {
                Gradient::Whole(_) => self.backward(batch, step),
                Gradient::ByPart(_) => {
                    norm_by_layer = Some(self.update_by_layer(batch, step, loss.n_terms)?);
                }
            }
            total.add(loss.into());
        }
        let grad_norm = match norm_by_layer {
            Some(norm) => norm,
            None => self.update(step, total.n_terms, input, estimate)?,
        };
        Ok((total, grad_norm))
    }

    /// Everything of a step: its units, or the policy's answers to them.
    fn read(&self, step: u64) -> Result<StepInput, StepError> {
        let units = self.units(step);
        let Some(rollouts) = &self.feed.rollouts else {
            return Ok(StepInput::read(&self.feed, Split::Train, &units)?);
        };
        let policy = (self.decoder, &self.adapter);
        let group = self.shares.as_ref().map(Shares::group);
        let rolled = rollouts.answer(policy, &self.feed, step, &units.concat(), group)?;
        Ok(StepInput::rolled(&self.feed, &rolled, self.cut.batch_size))
    }

    /// The update of a step whose gradient is whole; the norm of the mean gradient.
    fn update(
        &mut self,
        step: u64,
        n_terms: u64,
        input: &StepInput,
        estimate: &Estimate,
    ) -> Result<f64, StepError> {
        let ops = self.decoder.ops().as_ref();
        let max_norm = self.optimizer.settings().max_grad_norm(self.settings.max_grad_norm);
        let grad = self.gradient.whole().all();
        let gradient = ScaledGradient::new(ops, grad, n_terms, max_norm);
        if !gradient.norm.is_finite() {
            return Err(self.bad_gradient(step, gradient.norm, input, estimate));
        }
        let learning_rate = self.settings.schedule.at(step);
        let at = At { step: step + 1, learning_rate, grad_scale: gradient.scale };
        self.is_torn = true;
        self.optimizer.step(ops, self.adapter.numbers_mut(), grad, at);
        self.decoder.refresh(&mut self.adapter);
        Ok(gradient.norm)
    }

    /// Means over the validation split, without dropout. `None` when there is none.
    ///
    /// # Errors
    /// If the data cannot be read, or the trainer gives up.
    pub fn evaluate(&mut self) -> Result<Option<EvaluationReport>, StepError> {
        self.lead(Command::Evaluate)?;
        let evaluated = self.evaluate_as_all();
        self.led();
        evaluated
    }

    fn evaluate_as_all(&mut self) -> Result<Option<EvaluationReport>, StepError> {
        if self.feed.rollouts.is_some() {
            // Rewards are no loss to compare.
            return Ok(None);
        }
        let groups = self.validation_groups.clone();
        // Read twice: a split need not fit into memory.
        let mut totals = StepTotals::default();
        let mut n_trained_tokens = 0;
        for units in groups.iter().flatten() {
            let input =
                StepInput::read(&self.feed, Split::Validation, std::slice::from_ref(units))?;
            totals.join(&input.totals);
            n_trained_tokens += input.n_trained();
        }
        let mut of_batches = Vec::new();
        let mut index = 0;
        for group in &groups {
            // Without mismatched pairs a group is the whole split, and its batches come one by one.
            let parts = if self.feed.mismatched.is_some() { group.len() } else { 1 };
            for batches in group.chunks(parts.max(1)) {
                let input = StepInput::read(&self.feed, Split::Validation, batches)?;
                let (estimate, _) = self.estimate(&input)?;
                for micro_batch in &input.micro_batches {
                    index += 1;
                    if !self.is_mine(index - 1) {
                        continue;
                    }
                    let loss = self.forward(micro_batch, &estimate, &totals, None)?;
                    // Processes first tell each other: all of them must come to the same calls.
                    if !loss.loss_sum.is_finite() && self.shares.is_none() {
                        let step = self.state.global_step;
                        return Err(self.bad_loss(step, &micro_batch.batch, loss.loss_sum));
                    }
                    of_batches.push((index - 1, Totals::from(loss)));
                }
            }
        }
        self.decoder.accompany()?;
        let mut total = Totals::default();
        for (index, of) in self.of_all(of_batches)? {
            if !of.loss_sum().is_finite() {
                let what = format!("the loss of micro-batch {} of the validation split", index + 1);
                return Err(self.not_finite(what, of.loss_sum()));
            }
            total.add(of);
        }
        Ok((total.n_terms > 0).then(|| EvaluationReport {
            loss: total.mean_loss(),
            n_trained_tokens,
            metrics: total.means(),
        }))
    }

    /// What the policy says of the mismatched pairs of a step, and the arithmetic that it took.
    fn estimate(&mut self, input: &StepInput) -> Result<(Estimate, f64), StepError> {
        let mut n_flops = 0.0;
        let mut of_pairs = Vec::new();
        for (index, pairs) in input.mismatched.iter().enumerate() {
            n_flops += forward_flops(self.decoder.config(), &self.adapter, Work::of(&pairs.batch));
            if !self.is_mine(index) {
                continue;
            }
            let pass = pass(&self.adapter, &pairs.batch, None);
            let scored = Scored { rows: &pairs.batch.scored_rows, labels: &pairs.batch.labels };
            let mut logp = vec![0.0; pairs.batch.labels.len()];
            self.decoder.forward(&pass, &mut self.activations);
            self.decoder.logprobs(&pass, &mut self.activations, scored, &mut logp);
            let bits: Vec<u32> = logp.into_iter().map(f32::to_bits).collect();
            of_pairs.push((index, bits));
        }
        self.decoder.accompany()?;
        let mut estimate = Estimate::default();
        for (index, bits) in self.of_all(of_pairs)? {
            let logp: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            estimate.add(&input.mismatched[index], &logp);
        }
        Ok((estimate, n_flops))
    }

    /// Runs the model and the objective; leaves `dlogp` for [`Session::backward`].
    /// With the number of a step, as training does it: with dropout and noise, where the objective
    /// has a use for them.
    fn forward(
        &mut self,
        micro_batch: &MicroBatch,
        estimate: &Estimate,
        totals: &StepTotals,
        training_step: Option<u64>,
    ) -> Result<Loss, Failed> {
        let batch = &micro_batch.batch;
        let n_rows = batch.labels.len();
        let buffers = &mut self.buffers;
        buffers.logp.resize(n_rows, 0.0);
        let noisy = training_step.filter(|_| self.feed.needs.dropout);
        let dropout = noisy.map(|step| DropoutStep { stream: &self.dropout, step });
        let noise = noisy.zip(self.settings.noise_alpha);
        let noise = noise.map(|(step, alpha)| EmbeddingNoise { stream: &self.noise, step, alpha });
        let pass = pass(&self.adapter, batch, dropout);
        let scored = Scored { rows: &batch.scored_rows, labels: &batch.labels };
        self.decoder.forward_with(&pass, noise, &mut self.activations);
        let (decoder, acts, logp) = (self.decoder, &mut self.activations, &mut buffers.logp);
        if training_step.is_some() {
            decoder.logprobs_with_gradient(&pass, acts, scored, logp);
        } else {
            decoder.logprobs(&pass, acts, scored, logp);
        }
        let seen = Seen::new(micro_batch, estimate, &buffers.logp);
        buffers.dlogp.resize(seen.labels.len(), 0.0);
        self.trainer.loss(&seen.scored(totals), &mut buffers.dlogp)
    }
}

fn pass<'a>(
    adapter: &'a Trainable,
    batch: &'a PackedBatch,
    dropout: Option<DropoutStep<'a>>,
) -> Pass<'a> {
    Pass { adapter: Some(adapter), batch: packed_input(batch), dropout }
}
