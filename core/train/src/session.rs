//! The loop body: one optimizer step, one evaluation. Who calls them, and when, is core/run's
//! business.

use crate::optimizer::{At, Optimizer, ScaledGradient};
use crate::schedule::Schedule;
use crate::state::State;
use forgelm_data::{PackedBatch, PackedSequence, Plan, Sequence, evaluation_batches, pack};
use forgelm_model::{
    Activations, Adapter, Decoder, DropoutStep, Keep, MemoryPlan, OutOfMemory, PackedInput, Pass,
    Scored, StepSize,
};
use forgelm_sdk::trainer::{self, Loss, Role, Trainer};
use forgelm_tensor::random::{Purpose, Stream};
use std::collections::BTreeMap;

/// Sequences of a micro-batch of the validation split.
const EVAL_BATCH_SIZE: usize = 8;

/// What training is told besides model and data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// Bound on the norm of the mean gradient.
    pub max_grad_norm: f64,
    /// Seed of the dropout.
    pub seed: u64,
}

/// Why a step did not happen. The adapter and the optimizer are as before it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// The loss or a gradient is not a finite number.
    #[error(
        "step {step}: {what} is {value}; nothing was updated (records of the step, by line: \
         {records:?})\n  hint: a lower `training.learning_rate` often helps; the last checkpoint \
         is good"
    )]
    NotFinite {
        /// 1-based number of the step.
        step: u64,
        /// `the loss` or a parameter's gradient.
        what: String,
        /// The value.
        value: f64,
        /// Records of the step.
        records: Vec<u64>,
    },
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
    train: &'a [Sequence],
    validation: &'a [Sequence],
    plan: &'a Plan,
    settings: Settings,
    dropout: Stream,
    adapter: Adapter,
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
    pub train: &'a [Sequence],
    /// Sequences held out.
    pub validation: &'a [Sequence],
    /// Which sequences each micro-batch has.
    pub plan: &'a Plan,
    /// Everything else.
    pub settings: Settings,
    /// What trains.
    pub adapter: Adapter,
    /// How it trains, with the optimizer's state.
    pub optimizer: Optimizer,
    /// Where the run stands.
    pub state: State,
}

/// The largest micro-batch that a plan has, training and validation together.
#[must_use]
pub fn largest_step(train: &[Sequence], validation: &[Sequence], plan: &Plan) -> StepSize {
    let mut size = StepSize { tokens_max: 1, scored_rows_max: 1 };
    let mut take = |sequences: &mut dyn Iterator<Item = &Sequence>| {
        let (mut tokens, mut scored) = (0, 0);
        for sequence in sequences {
            tokens += sequence.tokens.len();
            scored += sequence.n_trained();
        }
        size.tokens_max = size.tokens_max.max(tokens);
        size.scored_rows_max = size.scored_rows_max.max(scored);
    };
    for step in 0..plan.n_steps() {
        for micro_batch in plan.step(step) {
            take(&mut micro_batch.iter().map(|&i| &train[i]));
        }
    }
    for micro_batch in validation_batches(validation) {
        take(&mut micro_batch.iter().map(|&i| &validation[i]));
    }
    size
}

/// The validation split in micro-batches.
fn validation_batches(validation: &[Sequence]) -> Vec<Vec<usize>> {
    let lengths: Vec<usize> = validation.iter().map(|sequence| sequence.tokens.len()).collect();
    evaluation_batches(&lengths, EVAL_BATCH_SIZE, None)
}

fn packed(sequences: &[Sequence], numbers: &[usize]) -> PackedBatch {
    let chosen: Vec<&Sequence> = numbers.iter().map(|&i| &sequences[i]).collect();
    pack(&chosen)
}

/// Every buffer of a session, by name and size.
#[must_use]
pub fn memory_plan(
    decoder: &Decoder,
    adapter: &Adapter,
    optimizer: &Optimizer,
    size: StepSize,
) -> MemoryPlan {
    let config = decoder.config();
    let mut plan = Activations::memory_plan(config, Some(adapter), size, Keep::Everything);
    let n_params = size_of_val(adapter.params());
    plan.add("packed weights", decoder.weights_bytes());
    plan.add("adapter", n_params);
    plan.add("gradient of the adapter", n_params);
    plan.add("optimizer state", optimizer.n_bytes());
    plan.add("optimizer scratch", optimizer.scratch_bytes(decoder.ops().n_threads()));
    plan
}

impl<'a> Session<'a> {
    /// Allocates every buffer of the run.
    ///
    /// # Errors
    /// If there is no memory for one.
    pub fn new(parts: Parts<'a>) -> Result<Self, OutOfMemory> {
        let size = largest_step(parts.train, parts.validation, parts.plan);
        let activations =
            Activations::new(parts.decoder.config(), Some(&parts.adapter), size, Keep::Everything)?;
        Ok(Self {
            decoder: parts.decoder,
            trainer: parts.trainer,
            train: parts.train,
            validation: parts.validation,
            plan: parts.plan,
            settings: parts.settings,
            dropout: Stream::new(parts.settings.seed, Purpose::Dropout),
            grad: vec![0.0; parts.adapter.params().len()],
            adapter: parts.adapter,
            optimizer: parts.optimizer,
            state: parts.state,
            activations,
            buffers: RowBuffers::default(),
        })
    }

    /// What trains, as it stands.
    #[must_use]
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// What trains, to be replaced by better weights.
    pub fn adapter_mut(&mut self) -> &mut Adapter {
        &mut self.adapter
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
    /// If the loss or the gradient is not finite: nothing is changed then.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn step(&mut self) -> Result<StepReport, StepError> {
        let step = self.state.global_step;
        self.grad.fill(0.0);
        let mut total = Loss::default();
        let mut n_tokens = 0;
        for micro_batch in self.plan.step(step) {
            let batch = packed(self.train, &micro_batch);
            n_tokens += batch.tokens.len() as u64;
            let loss = self.forward(&batch, Some(step));
            if !loss.loss_sum.is_finite() {
                return Err(self.not_finite(step, "the loss", loss.loss_sum));
            }
            self.backward(&batch, step);
            add_loss(&mut total, loss);
        }
        let ops = self.decoder.ops().as_ref();
        let max_norm = self.optimizer.settings().max_grad_norm(self.settings.max_grad_norm);
        let gradient = ScaledGradient::new(ops, &self.grad, total.n_terms, max_norm);
        if !gradient.norm.is_finite() {
            let what = self.first_bad_gradient();
            return Err(self.not_finite(step, &what, gradient.norm));
        }
        let learning_rate = self.settings.schedule.at(step);
        let at = At { step: step + 1, learning_rate, grad_scale: gradient.scale };
        let params = self.adapter.params_mut();
        self.optimizer.step(ops, params, &self.grad, at);
        self.state.global_step = step + 1;
        self.state.epoch = self.plan.epoch_after(step + 1);
        self.state.n_tokens += n_tokens;
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

    /// Mean loss over the validation split, without dropout. `None` when there is none.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn evaluate(&mut self) -> Option<EvaluationReport> {
        let mut total = Loss::default();
        for micro_batch in validation_batches(self.validation) {
            let batch = packed(self.validation, &micro_batch);
            let loss = self.forward(&batch, None);
            add_loss(&mut total, loss);
        }
        (total.n_terms > 0).then(|| EvaluationReport {
            loss: total.loss_sum / total.n_terms as f64,
            n_terms: total.n_terms,
        })
    }

    /// Runs the model and the objective; leaves `dlogp` for [`Session::backward`].
    fn forward(&mut self, batch: &PackedBatch, dropout_step: Option<u64>) -> Loss {
        let n_rows = batch.labels.len();
        let buffers = &mut self.buffers;
        buffers.logp.resize(n_rows, 0.0);
        buffers.dlogp.resize(n_rows, 0.0);
        buffers.trained.clear();
        buffers.trained.resize(n_rows, 1);
        let dropout = dropout_step.map(|step| DropoutStep { stream: &self.dropout, step });
        let pass = pass(&self.adapter, batch, dropout);
        let scored = Scored { rows: &batch.scored_rows, labels: &batch.labels };
        self.decoder.forward(&pass, &mut self.activations);
        self.decoder.logprobs(&mut self.activations, scored, &mut buffers.logp);
        let sequences = scored_sequences(batch);
        let scored = trainer::Scored {
            sequences: &sequences,
            labels: &batch.labels,
            trained: &buffers.trained,
            logp: &buffers.logp,
            ref_logp: None,
            advantage: None,
            old_logp: None,
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

    fn not_finite(&self, step: u64, what: &str, value: f64) -> StepError {
        let records = self.plan.step(step).into_iter().flatten();
        let records = records.map(|i| self.train[i].record).collect();
        StepError::NotFinite { step: step + 1, what: what.to_owned(), value, records }
    }

    fn first_bad_gradient(&self) -> String {
        let is_bad = |slice: &forgelm_model::NamedSlice| {
            self.grad[slice.range.clone()].iter().any(|d| !d.is_finite())
        };
        let named = self.adapter.slices().into_iter().find(is_bad);
        named.map_or_else(
            || "the norm of the gradient".to_owned(),
            |slice| format!("the gradient of `{}`", slice.name),
        )
    }
}

fn pass<'a>(
    adapter: &'a Adapter,
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
        role: Role::Sole,
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
