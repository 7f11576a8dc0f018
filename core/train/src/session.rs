//! The loop body: one optimizer step, one evaluation. Who calls them, and when, is core/run's
//! business.

mod not_finite;

use crate::flops::{Work, training_flops};
use crate::optimizer::{At, Optimizer, OptimizerMemory, ScaledGradient};
use crate::schedule::Schedule;
use crate::state::State;
use forgelm_data::{
    PackedBatch, PackedSequence, Plan, Sequence, Sequences, StoreError, evaluation_batches, pack,
};
use forgelm_model::{
    Activations, Decoder, DropoutStep, EmbeddingNoise, Keep, MemoryPlan, ModelConfig, OutOfMemory,
    PackedInput, Pass, Scored, StepSize, Trainable,
};
use forgelm_sdk::Failed;
use forgelm_sdk::trainer::{self, Loss, StepTotals, Trainer};
use forgelm_tensor::random::{Purpose, Stream};
pub use not_finite::StepError;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Sequences of a micro-batch of the validation split, at most.
const EVAL_BATCH_SIZE: usize = 8;

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
    /// Terms of the loss.
    pub n_terms: u64,
    /// The trainer's own metrics, each a mean.
    pub metrics: BTreeMap<&'static str, f64>,
}

/// Mean loss over the validation split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationReport {
    /// Mean loss over its terms.
    pub loss: f64,
    /// Terms.
    pub n_terms: u64,
}

/// Model, data and state of a run in progress.
pub struct Session<'a> {
    decoder: &'a Decoder,
    trainer: &'a dyn Trainer,
    train: &'a Sequences,
    validation: &'a Sequences,
    plan: Cow<'a, Plan>,
    validation_batches: Vec<Vec<usize>>,
    settings: Settings,
    dropout: Stream,
    noise: Stream,
    adapter: Trainable,
    optimizer: Optimizer,
    state: State,
    grad: Vec<f32>,
    activations: Activations,
    buffers: RowBuffers,
}

/// One number a scored row.
#[derive(Debug, Default)]
struct RowBuffers {
    logp: Vec<f32>,
    dlogp: Vec<f32>,
    trained: Vec<u8>,
}

/// What a session is made of.
pub struct Parts<'a> {
    /// The base model.
    pub decoder: &'a Decoder,
    /// The objective.
    pub trainer: &'a dyn Trainer,
    /// Sequences to train on.
    pub train: &'a Sequences,
    /// Sequences held out.
    pub validation: &'a Sequences,
    /// Which sequences each micro-batch has.
    pub plan: &'a Plan,
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
}

/// The largest micro-batch that a plan has, training and validation together.
#[must_use]
pub fn largest_step(train: &Sequences, validation: &Sequences, plan: &Plan) -> StepSize {
    let mut size = largest_training_step(train, plan);
    for micro_batch in validation_batches(validation, size.tokens_max) {
        widen(&mut size, validation, &micro_batch);
    }
    size
}

fn largest_training_step(train: &Sequences, plan: &Plan) -> StepSize {
    let mut size = StepSize { tokens_max: 1, scored_rows_max: 1 };
    for step in 0..plan.n_steps() {
        for micro_batch in plan.step(step) {
            widen(&mut size, train, &micro_batch);
        }
    }
    size
}

/// Widens `size` until a micro-batch of these units fits.
fn widen(size: &mut StepSize, sequences: &Sequences, units: &[usize]) {
    let tokens = units.iter().map(|&unit| sequences.n_tokens(unit)).sum();
    let scored = units.iter().map(|&unit| sequences.n_trained(unit)).sum();
    size.tokens_max = size.tokens_max.max(tokens);
    size.scored_rows_max = size.scored_rows_max.max(scored);
}

/// The validation split in micro-batches. But for a sequence that is longer by itself, none has
/// more than `tokens_max` tokens: evaluation needs no more memory than training.
fn validation_batches(validation: &Sequences, tokens_max: usize) -> Vec<Vec<usize>> {
    evaluation_batches(&validation.lengths(), EVAL_BATCH_SIZE, tokens_max)
}

fn no_activations(model: &ModelConfig) -> Result<Activations, OutOfMemory> {
    let nothing = StepSize { tokens_max: 0, scored_rows_max: 0 };
    Activations::new(model, None, nothing, Keep::Nothing)
}

/// Adds some sequences to what the micro-batches of a step have together.
fn add_to_totals(totals: &mut StepTotals, sequences: &[Sequence]) {
    for sequence in sequences {
        let n_rows = sequence.n_trained() as u64;
        let of_role = &mut totals.0[sequence.role as usize];
        of_role.n_sequences += 1;
        of_role.n_scored += n_rows;
        of_role.n_trained += n_rows;
    }
}

fn packed(sequences: &[Sequence]) -> PackedBatch {
    let refs: Vec<&Sequence> = sequences.iter().collect();
    pack(&refs)
}

/// Every buffer of a session, by name and size; the weights, which it borrows, are not among them.
#[must_use]
pub fn memory_plan(
    model: &ModelConfig,
    adapter: &Trainable,
    optimizer: OptimizerMemory,
    size: StepSize,
    keep: Keep,
) -> MemoryPlan {
    let mut plan = Activations::memory_plan(model, Some(adapter), size, keep);
    let n_params = size_of_val(adapter.params());
    plan.add("trained numbers", n_params);
    plan.add("trained numbers as the kernels read them", adapter.derived_bytes());
    plan.add("gradient of the trained numbers", n_params);
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
        session.allocate(session.cut(), keep)?;
        Ok(session)
    }

    /// A session that cannot step before [`Session::allocate`].
    ///
    /// # Errors
    /// If there is no memory for the gradient.
    pub fn without_buffers(parts: Parts<'a>) -> Result<Self, OutOfMemory> {
        let n_params = parts.adapter.params().len();
        let n_bytes = size_of_val(parts.adapter.params());
        let mut grad = Vec::new();
        grad.try_reserve_exact(n_params).map_err(|_| OutOfMemory {
            buffer: "gradient of the trained numbers".to_owned(),
            bytes: n_bytes,
            total: n_bytes,
        })?;
        grad.resize(n_params, 0.0);
        let mut adapter = parts.adapter;
        parts.decoder.refresh(&mut adapter);
        Ok(Self {
            decoder: parts.decoder,
            trainer: parts.trainer,
            train: parts.train,
            validation: parts.validation,
            validation_batches: Vec::new(),
            plan: Cow::Borrowed(parts.plan),
            settings: parts.settings,
            dropout: Stream::new(parts.settings.seed, Purpose::Dropout),
            noise: Stream::new(parts.settings.seed, Purpose::EmbeddingNoise),
            grad,
            adapter,
            optimizer: parts.optimizer,
            state: parts.state,
            activations: no_activations(parts.decoder.config())?,
            buffers: RowBuffers::default(),
        })
    }

    /// Gives back the buffers of a step and makes those of this cut of the same steps; returns the
    /// bytes given back and the bytes made. What trains and its moments stay as they are.
    ///
    /// # Errors
    /// If there is no memory for one. The session then has no buffers and cannot step before this
    /// function succeeds, with a smaller cut.
    pub fn allocate(&mut self, cut: Cut, keep: Keep) -> Result<(u64, u64), OutOfMemory> {
        let model = self.decoder.config();
        let plan = self.recut(cut);
        let train_size = largest_training_step(self.train, &plan);
        let size = largest_step(self.train, self.validation, &plan);
        let before = self.activations.n_bytes() as u64;
        self.buffers = RowBuffers::default();
        self.activations = no_activations(model)?;
        self.activations = Activations::new(model, Some(&self.adapter), size, keep)?;
        self.validation_batches = validation_batches(self.validation, train_size.tokens_max);
        self.plan = Cow::Owned(plan);
        Ok((before, self.activations.n_bytes() as u64))
    }

    /// How a step is cut.
    #[must_use]
    pub fn cut(&self) -> Cut {
        let (batch_size, accumulation) = self.plan.cut();
        Cut { batch_size, accumulation }
    }

    /// The largest micro-batch that the buffers hold.
    #[must_use]
    pub fn size(&self) -> StepSize {
        self.activations.size()
    }

    fn recut(&self, cut: Cut) -> Plan {
        self.plan.recut(cut.batch_size, cut.accumulation)
    }

    /// What trains, as it stands.
    #[must_use]
    pub fn adapter(&self) -> &Trainable {
        &self.adapter
    }

    /// Puts other numbers in the place of those that train: better ones of an earlier step.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn replace_params(&mut self, params: &[f32]) {
        self.adapter.params_mut().copy_from_slice(params);
        self.decoder.refresh(&mut self.adapter);
    }

    /// The optimizer, with its state.
    #[must_use]
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
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

    /// One optimizer step.
    ///
    /// The loss of every micro-batch is summed, and so are the gradients; both are divided by the
    /// number of terms once.
    ///
    /// # Errors
    /// If the loss or the gradient is not finite, the trainer gives up, or the data cannot be read:
    /// nothing is changed then.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn step(&mut self) -> Result<StepReport, StepError> {
        let step = self.state.global_step;
        self.grad.fill(0.0);
        let mut total = Loss::default();
        let (mut n_tokens, mut n_flops) = (0, 0.0);
        let (micro_batches, totals) = self.read_step(step)?;
        for sequences in micro_batches {
            let batch = packed(&sequences);
            n_tokens += batch.tokens.len() as u64;
            n_flops += training_flops(self.decoder.config(), &self.adapter, Work::of(&batch));
            let loss = self.forward(&batch, &totals, Some(step))?;
            if !loss.loss_sum.is_finite() {
                return Err(self.bad_loss(step, &batch, loss.loss_sum));
            }
            self.decoder.weigh_balance(&self.adapter, loss.n_terms, &mut self.activations);
            self.backward(&batch, step);
            add_loss(&mut total, loss);
        }
        let ops = self.decoder.ops().as_ref();
        let max_norm = self.optimizer.settings().max_grad_norm(self.settings.max_grad_norm);
        let gradient = ScaledGradient::new(ops, &self.grad, total.n_terms, max_norm);
        if !gradient.norm.is_finite() {
            return Err(self.bad_gradient(step, gradient.norm));
        }
        let learning_rate = self.settings.schedule.at(step);
        let at = At { step: step + 1, learning_rate, grad_scale: gradient.scale };
        let params = self.adapter.params_mut();
        self.optimizer.step(ops, params, &self.grad, at);
        self.decoder.refresh(&mut self.adapter);
        self.state.global_step = step + 1;
        self.state.epoch = self.plan.epoch_after(step + 1);
        self.state.n_tokens += n_tokens;
        self.state.flops += n_flops;
        self.state.n_trained_tokens += total.n_terms;
        Ok(StepReport {
            loss: total.loss_sum / total.n_terms.max(1) as f64,
            learning_rate,
            grad_norm: gradient.norm,
            n_tokens,
            n_terms: total.n_terms,
            metrics: means(&total),
        })
    }

    /// The sequences of each micro-batch of a step, and what they have together.
    fn read_step(&self, step: u64) -> Result<(Vec<Vec<Sequence>>, StepTotals), StoreError> {
        let mut totals = StepTotals::default();
        let mut micro_batches = Vec::new();
        for units in self.plan.step(step) {
            let sequences = self.train.read(&units)?;
            add_to_totals(&mut totals, &sequences);
            micro_batches.push(sequences);
        }
        Ok((micro_batches, totals))
    }

    /// Mean loss over the validation split, without dropout. `None` when there is none.
    ///
    /// # Errors
    /// If the data cannot be read, or the trainer gives up.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn evaluate(&mut self) -> Result<Option<EvaluationReport>, StepError> {
        let mut total = Loss::default();
        let micro_batches = self.validation_batches.clone();
        // Read twice: a split need not fit into memory.
        let mut totals = StepTotals::default();
        for units in &micro_batches {
            add_to_totals(&mut totals, &self.validation.read(units)?);
        }
        for units in micro_batches {
            let batch = packed(&self.validation.read(&units)?);
            let loss = self.forward(&batch, &totals, None)?;
            add_loss(&mut total, loss);
        }
        Ok((total.n_terms > 0).then(|| EvaluationReport {
            loss: total.loss_sum / total.n_terms as f64,
            n_terms: total.n_terms,
        }))
    }

    /// Runs the model and the objective; leaves `dlogp` for [`Session::backward`].
    /// With the number of a step, as training does it: with dropout and noise.
    fn forward(
        &mut self,
        batch: &PackedBatch,
        totals: &StepTotals,
        training_step: Option<u64>,
    ) -> Result<Loss, Failed> {
        let n_rows = batch.labels.len();
        let buffers = &mut self.buffers;
        buffers.logp.resize(n_rows, 0.0);
        buffers.dlogp.resize(n_rows, 0.0);
        buffers.trained.clear();
        buffers.trained.resize(n_rows, 1);
        let dropout = training_step.map(|step| DropoutStep { stream: &self.dropout, step });
        let noise = training_step.zip(self.settings.noise_alpha);
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
        let sequences = scored_sequences(batch);
        let scored = trainer::Scored {
            sequences: &sequences,
            labels: &batch.labels,
            trained: &buffers.trained,
            logp: &buffers.logp,
            ref_logp: None,
            advantage: None,
            old_logp: None,
            step: totals,
        };
        self.trainer.loss(&scored, &mut buffers.dlogp)
    }

    fn backward(&mut self, batch: &PackedBatch, step: u64) {
        let dropout = Some(DropoutStep { stream: &self.dropout, step });
        let pass = pass(&self.adapter, batch, dropout);
        let scored = Scored { rows: &batch.scored_rows, labels: &batch.labels };
        let dlogp = &self.buffers.dlogp;
        self.decoder.backward(&pass, &mut self.activations, scored, dlogp, &mut self.grad);
    }
}

fn pass<'a>(
    adapter: &'a Trainable,
    batch: &'a PackedBatch,
    dropout: Option<DropoutStep<'a>>,
) -> Pass<'a> {
    let batch = PackedInput {
        tokens: &batch.tokens,
        positions: &batch.positions,
        segments: &batch.segments,
        row_keys: &batch.row_keys,
    };
    Pass { adapter: Some(adapter), batch, dropout }
}

fn scored_sequences(batch: &PackedBatch) -> Vec<trainer::Sequence> {
    let sequence = |packed: &PackedSequence| trainer::Sequence {
        role: packed.role,
        record: packed.record,
        start: packed.start,
        len: packed.len,
    };
    batch.sequences.iter().map(sequence).collect()
}

fn add_loss(total: &mut Loss, loss: Loss) {
    total.loss_sum += loss.loss_sum;
    total.n_terms += loss.n_terms;
    for metric in loss.metrics {
        match total.metrics.iter_mut().find(|other| other.name == metric.name) {
            Some(other) => {
                other.sum += metric.sum;
                other.n_terms += metric.n_terms;
            }
            None => total.metrics.push(metric),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn means(total: &Loss) -> BTreeMap<&'static str, f64> {
    let mean = |metric: &trainer::Metric| (metric.name, metric.sum / metric.n_terms.max(1) as f64);
    total.metrics.iter().map(mean).collect()
}
