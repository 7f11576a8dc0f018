//! A trainer is an objective over per-token log-probabilities.
//!
//! It never sees logits, a model, a tokenizer or a device: the host renders, packs, runs the
//! model and hands over one number a scored token. What comes back is a sum, its number of terms
//! and the gradient of the sum.

use crate::Failed;
use crate::options::{OptionValue, OptionsError};
use std::ops::Range;

/// What part a sequence plays in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// The record is this one sequence (SFT).
    Sole = 0,
    /// The preferred answer of a pair, or a single answer that is desirable (KTO).
    Chosen = 1,
    /// The other answer of a pair, or a single answer that is not desirable (KTO).
    Rejected = 2,
    /// A mismatched pair that estimates a KL term (KTO). The host puts those of a whole step behind
    /// the sequences of each of its micro-batches; no gradient goes through them.
    Kl = 3,
    /// An answer that the policy generated (GRPO).
    Rollout = 4,
}

impl Role {
    /// Number of roles.
    pub const COUNT: usize = 5;
}

/// One sequence of the batch: the scored rows `start..start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sequence {
    /// Its part in the record.
    pub role: Role,
    /// Number of the record in the data set; sequences of one record have the same, and the two
    /// answers of a pair lie side by side, the chosen one first.
    pub record: u64,
    /// First scored row.
    pub start: usize,
    /// Number of scored rows.
    pub len: usize,
}

impl Sequence {
    /// Its rows.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// How much of one role a whole optimizer step has, over all its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RoleTotals {
    /// Sequences.
    pub n_sequences: u64,
    /// Scored rows.
    pub n_scored: u64,
    /// Trained rows.
    pub n_trained: u64,
}

/// What a whole optimizer step has, by [`Role`]: for a loss whose parts have different
/// denominators. Known before its first micro-batch, and the same however it is split into them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct StepTotals(pub [RoleTotals; Role::COUNT]);

impl StepTotals {
    /// Of one role.
    #[must_use]
    pub fn of(&self, role: Role) -> RoleTotals {
        self.0[role as usize]
    }

    /// Adds what other micro-batches have.
    pub fn join(&mut self, other: &Self) {
        for (sum, of) in self.0.iter_mut().zip(&other.0) {
            sum.n_sequences += of.n_sequences;
            sum.n_scored += of.n_scored;
            sum.n_trained += of.n_trained;
        }
    }

    /// Adds the sequences of one micro-batch.
    pub fn add(&mut self, sequences: &[Sequence], trained: &[u8]) {
        for sequence in sequences {
            let totals = &mut self.0[sequence.role as usize];
            totals.n_sequences += 1;
            totals.n_scored += sequence.len as u64;
            let n_trained = trained[sequence.rows()].iter().filter(|&&t| t != 0).count();
            totals.n_trained += n_trained as u64;
        }
    }
}

/// What a trainer reads. R is the number of scored rows: tokens whose log-probability was
/// computed, sequence after sequence.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// The sequences, end to end: together they are all R rows.
    pub sequences: &'a [Sequence],
    /// [R] the token that was predicted.
    pub labels: &'a [u32],
    /// [R] 1 where the row belongs to the trained text, 0 where it was only scored.
    pub trained: &'a [u8],
    /// [R] log-probability of the label under the policy.
    pub logp: &'a [f32],
    /// [R] the same under the reference model, for trainers that ask for it.
    pub ref_logp: Option<&'a [f32]>,
    /// One number a sequence, for trainers that learn from rewards.
    pub advantage: Option<&'a [f32]>,
    /// [R] the same under the policy that generated the rollouts.
    pub old_logp: Option<&'a [f32]>,
    /// What the whole step has.
    pub step: &'a StepTotals,
}

impl<'a> Scored<'a> {
    /// The pairs, in order.
    ///
    /// # Panics
    /// If a chosen answer is not followed by the rejected one of its record: a bug of the host.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a Sequence, &'a Sequence)> {
        self.sequences.chunks(2).map(|pair| match pair {
            [chosen, rejected]
                if chosen.role == Role::Chosen
                    && rejected.role == Role::Rejected
                    && chosen.record == rejected.record =>
            {
                (chosen, rejected)
            }
            _ => panic!("answers that are not pairs: {pair:?}"),
        })
    }

    /// Sum of `values` [R] over the trained rows of a sequence, in f64, in order.
    #[must_use]
    pub fn sum(&self, values: &[f32], sequence: &Sequence) -> f64 {
        let rows = sequence.rows();
        let trained = &self.trained[rows.clone()];
        let values = values[rows].iter().zip(trained).filter(|(_, t)| **t != 0);
        values.map(|(&v, _)| f64::from(v)).sum()
    }

    /// Trained rows of a sequence, at least one: what a mean over it is divided by.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rows of a sequence stay far below 2^53")]
    pub fn n_trained(&self, sequence: &Sequence) -> f64 {
        let trained = &self.trained[sequence.rows()];
        trained.iter().filter(|&&t| t != 0).count().max(1) as f64
    }

    /// Writes the same derivative to every trained row of a sequence, and zero to the others.
    #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
    pub fn spread(&self, dlogp: &mut [f32], sequence: &Sequence, derivative: f64) {
        let rows = sequence.rows();
        for (d, &trained) in dlogp[rows.clone()].iter_mut().zip(&self.trained[rows]) {
            *d = if trained == 0 { 0.0 } else { derivative as f32 };
        }
    }
}

/// What a trainer returns beside the gradient.
///
/// The host adds `loss_sum` and `n_terms` over every micro-batch of a step and divides once:
/// a trainer must never average.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of the loss over its terms.
    pub loss_sum: f64,
    /// Number of terms: trained tokens, or pairs.
    pub n_terms: u64,
    /// Sums for the metrics file, each with its own count; the host divides.
    pub metrics: Vec<Metric>,
}

/// One named sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// As it appears in `metrics.jsonl`.
    pub name: &'static str,
    /// Sum over the terms.
    pub sum: f64,
    /// Number of terms.
    pub n_terms: u64,
}

impl Loss {
    /// Adds one term of this value to the metric of this name.
    pub fn measure(&mut self, name: &'static str, value: f64) {
        self.measure_sum(name, value, 1);
    }

    /// Adds a sum of terms to the metric of this name.
    pub fn measure_sum(&mut self, name: &'static str, sum: f64, n_terms: u64) {
        match self.metrics.iter_mut().find(|metric| metric.name == name) {
            Some(metric) => {
                metric.sum += sum;
                metric.n_terms += n_terms;
            }
            None => self.metrics.push(Metric { name, sum, n_terms }),
        }
    }
}

/// What the host must prepare for a trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The shape of its records.
    pub records: Records,
    /// Log-probabilities of the reference model.
    pub reference: bool,
    /// Answers generated by the policy, with rewards.
    pub rollouts: bool,
    /// Log-probabilities of prompt tokens too (rows that are scored and not trained); of a pair, once:
    /// with the chosen answer.
    pub prompts: bool,
    /// Whether dropout acts while training. Methods that compare two passes switch it off.
    pub dropout: bool,
}

/// The shape of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// One text or conversation.
    Text,
    /// A prompt with a chosen and a rejected answer.
    Preference,
    /// An answer with a label: desirable or not.
    Labelled,
    /// A prompt alone.
    Prompt,
}

/// An objective.
pub trait Trainer: Send + Sync {
    /// The loss of one micro-batch and its gradient.
    ///
    /// Shapes: `dlogp` [R] written: the derivative of `loss_sum` with respect to each `logp`
    /// (zero where a row is not trained).
    ///
    /// # Errors
    /// If the method gives up: the run ends, and its last checkpoint is good.
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed>;
}

/// The entry of one trainer in its library's list.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Value of `training.trainer_type`; equals the file's name.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where the method was published: authors, year, arXiv number, equation.
    pub source: &'static str,
    /// What the host must prepare.
    pub needs: Needs,
    /// Builds the trainer from its options, which come out of the `training` section.
    pub build: Build,
}

/// Makes a trainer from its options.
pub type Build = fn(options: &[(&str, OptionValue)]) -> Result<Box<dyn Trainer>, OptionsError>;
