//! What one optimizer step reads: micro-batches of whole units, what the reference model says of
//! them, and what they have together.

use crate::feed::{Feed, FeedError, Split};
use crate::rollouts::Rolled;
use forgelm_data::{PackedBatch, PackedSequence, Sequence, pack_scoring};
use forgelm_sdk::trainer::{self, Role, StepTotals};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Everything of one step, or of one part of the validation split.
#[derive(Debug, Default)]
pub(super) struct StepInput {
    pub(super) micro_batches: Vec<MicroBatch>,
    /// Prompts with others' answers: the objective sees them beside every micro-batch.
    pub(super) mismatched: Vec<MicroBatch>,
    pub(super) totals: StepTotals,
    /// What was measured of the policy's own answers.
    pub(super) measured: BTreeMap<String, f64>,
    /// Arithmetic that it took.
    pub(super) flops: f64,
}

/// Sequences that go through the model together.
#[derive(Debug)]
pub(super) struct MicroBatch {
    pub(super) batch: PackedBatch,
    /// [R] under the reference model, for objectives that ask for it.
    pub(super) ref_logp: Option<Vec<f32>>,
    /// One a sequence, where the policy's own answers were rewarded.
    pub(super) advantage: Option<Vec<f32>>,
}

impl StepInput {
    /// These micro-batches of a split.
    pub(super) fn read(
        feed: &Feed<'_>,
        split: Split,
        micro_batches: &[Vec<usize>],
    ) -> Result<Self, FeedError> {
        let mut input = Self::default();
        for units in micro_batches {
            let (own, mismatched) = read(feed, split, units)?;
            add_to_totals(&mut input.totals, &own.batch);
            input.micro_batches.push(own);
            if let Some(mismatched) = mismatched {
                add_to_totals(&mut input.totals, &mismatched.batch);
                input.mismatched.push(mismatched);
            }
        }
        Ok(input)
    }

    /// Answers of the policy, `batch_size` to a micro-batch.
    pub(super) fn rolled(feed: &Feed<'_>, rolled: &Rolled, batch_size: usize) -> Self {
        let mut input =
            Self { measured: rolled.measured.means(), flops: rolled.flops, ..Self::default() };
        let advantages = rolled.advantages.chunks(batch_size);
        for (answers, advantages) in rolled.sequences.chunks(batch_size).zip(advantages) {
            let refs: Vec<&Sequence> = answers.iter().collect();
            let batch = pack_scoring(&refs, feed.scored_rows());
            add_to_totals(&mut input.totals, &batch);
            let advantage = Some(advantages.to_vec());
            input.micro_batches.push(MicroBatch { batch, ref_logp: None, advantage });
        }
        input
    }

    /// Trained tokens of the step.
    pub(super) fn n_trained(&self) -> u64 {
        let trained = self.micro_batches.iter().flat_map(|of| &of.batch.trained);
        trained.map(|&trained| u64::from(trained)).sum()
    }
}

/// Some units as a micro-batch, and their mismatched pairs as another.
fn read(
    feed: &Feed<'_>,
    split: Split,
    units: &[usize],
) -> Result<(MicroBatch, Option<MicroBatch>), FeedError> {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    let (mut own_logp, mut others_logp) = (Vec::new(), Vec::new());
    for &unit in units {
        let sequences = feed.sequences(split).read(&[unit])?;
        if let Some(references) = feed.references {
            let logp = references.read(split, unit)?;
            let n_own = sequences.iter().map(|s| feed.scored_rows().count(s)).sum();
            let (of_own, of_other) = logp.split_at(n_own);
            own_logp.extend_from_slice(of_own);
            others_logp.extend_from_slice(of_other);
        }
        own.extend(sequences);
        others.extend(feed.mismatched_of(split, unit)?);
    }
    let has_references = feed.references.is_some();
    let micro_batch = |sequences: &[Sequence], logp| {
        let refs: Vec<&Sequence> = sequences.iter().collect();
        let batch = pack_scoring(&refs, feed.scored_rows());
        MicroBatch { batch, ref_logp: has_references.then_some(logp), advantage: None }
    };
    let mismatched = (!others.is_empty()).then(|| micro_batch(&others, others_logp));
    Ok((micro_batch(&own, own_logp), mismatched))
}

/// Adds the sequences of a batch to what those of a step have together.
pub(super) fn add_to_totals(totals: &mut StepTotals, batch: &PackedBatch) {
    totals.add(&sequences(batch, 0), &batch.trained);
}

/// The sequences of a batch as the objective sees them, their rows counted from `first`.
pub(super) fn sequences(batch: &PackedBatch, first: usize) -> Vec<trainer::Sequence> {
    let sequence = |packed: &PackedSequence| trainer::Sequence {
        role: packed.role,
        record: packed.record,
        start: first + packed.start,
        len: packed.len,
    };
    batch.sequences.iter().map(sequence).collect()
}

/// What the policy says of the mismatched pairs of a step: it holds for every micro-batch, whose own
/// sequences alone are trained.
#[derive(Debug, Default)]
pub(super) struct Estimate {
    pub(super) sequences: Vec<trainer::Sequence>,
    pub(super) labels: Vec<u32>,
    pub(super) logp: Vec<f32>,
    pub(super) ref_logp: Vec<f32>,
}

impl Estimate {
    /// Takes in a batch of pairs and what the policy says of them.
    pub(super) fn add(&mut self, pairs: &MicroBatch, logp: &[f32]) {
        debug_assert!(pairs.batch.sequences.iter().all(|sequence| sequence.role == Role::Kl));
        self.sequences.extend(sequences(&pairs.batch, self.labels.len()));
        self.labels.extend_from_slice(&pairs.batch.labels);
        self.logp.extend_from_slice(logp);
        self.ref_logp.extend(pairs.ref_logp.iter().flatten());
    }
}

/// What an objective sees: the rows of a micro-batch, and behind them those of the estimate.
pub(super) struct Seen<'a> {
    sequences: Vec<trainer::Sequence>,
    pub(super) labels: Cow<'a, [u32]>,
    trained: Cow<'a, [u8]>,
    logp: Cow<'a, [f32]>,
    ref_logp: Option<Cow<'a, [f32]>>,
    advantage: Option<&'a [f32]>,
}

impl<'a> Seen<'a> {
    /// Shapes: `logp` [R], of the micro-batch.
    pub(super) fn new(own: &'a MicroBatch, estimate: &Estimate, logp: &'a [f32]) -> Self {
        let batch = &own.batch;
        let first = batch.labels.len();
        let behind = estimate
            .sequences
            .iter()
            .map(|sequence| trainer::Sequence { start: first + sequence.start, ..*sequence });
        let ref_logp = own.ref_logp.as_deref();
        Self {
            sequences: sequences(batch, 0).into_iter().chain(behind).collect(),
            labels: joined(&batch.labels, &estimate.labels),
            trained: joined(&batch.trained, &vec![1; estimate.labels.len()]),
            logp: joined(logp, &estimate.logp),
            ref_logp: ref_logp.map(|own| joined(own, &estimate.ref_logp)),
            advantage: own.advantage.as_deref(),
        }
    }

    pub(super) fn scored<'s>(&'s self, step: &'s StepTotals) -> trainer::Scored<'s> {
        trainer::Scored {
            sequences: &self.sequences,
            labels: &self.labels,
            trained: &self.trained,
            logp: &self.logp,
            ref_logp: self.ref_logp.as_deref(),
            advantage: self.advantage,
            // Every answer is used for one step: the policy that gave it is the one that learns.
            old_logp: self.advantage.map(|_| &*self.logp),
            step,
        }
    }
}

/// One behind the other; nothing is copied where there is nothing to add.
fn joined<'a, T: Copy>(own: &'a [T], behind: &[T]) -> Cow<'a, [T]> {
    if behind.is_empty() { Cow::Borrowed(own) } else { Cow::Owned([own, behind].concat()) }
}
