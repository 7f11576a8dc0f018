//! What is said about a step that gave no finite number: which tensor, of which layer, and from
//! which rows. Costs at most one more pass over the step, and only then.

use super::Session;
use super::gradient::Gradient;
use super::in_parts::RestoreError;
use super::input::{Estimate, StepInput};
use crate::feed::FeedError;
use forgelm_collective::CollectiveError;
use forgelm_data::PackedBatch;
use forgelm_model::Descent;
use forgelm_sdk::Failed;

/// What is said of a slice of the gradient: which it is, its layer, the number that is not finite.
pub(super) type BadSlice = (String, Option<usize>, f64);

/// Why a step did not happen. What trains and the optimizer are as before it, unless it is torn.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The step's sequences could not be read.
    #[error(transparent)]
    Data(#[from] FeedError),
    /// The trainer gave up.
    #[error(transparent)]
    Trainer(#[from] Failed),
    /// The processes of the run could not make it together.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Numbers of an earlier step could not take the place of those that train.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The loss or a gradient is not a finite number.
    #[error(
        "step {step}: {what} is {value}; {} (records {records:?})\n  hint: a lower \
         `training.learning_rate` often helps; the last checkpoint is good",
        if *is_torn { "the layers above it are already updated" } else { "nothing was updated" }
    )]
    NotFinite {
        /// 1-based number of the step.
        step: u64,
        /// The tensor, with its layer.
        what: String,
        /// The layer, where the tensor belongs to one.
        layer: Option<usize>,
        /// The value.
        value: f64,
        /// Records from which it comes, as narrow as it can be said.
        records: Vec<u64>,
        /// Whether layers above it were updated before it was found: only with layer-wise updates.
        is_torn: bool,
    },
}

impl Session<'_> {
    /// The first number that is not finite on the way of this batch, which just went forward.
    fn bad_activation(&self, step: u64, batch: &PackedBatch) -> Option<StepError> {
        let found = self.activations.first_not_finite()?;
        let place = found.layer.map(|layer| format!(" of layer {layer}")).unwrap_or_default();
        let row = found.row;
        Some(StepError::NotFinite {
            step: step + 1,
            what: format!("`{}`{place} at row {row}", found.tensor),
            layer: found.layer,
            value: f64::from(found.value),
            records: record_of_row(batch, row).into_iter().collect(),
            is_torn: false,
        })
    }

    /// The loss of this batch, which just went forward, is not finite.
    pub(super) fn bad_loss(&self, step: u64, batch: &PackedBatch, loss: f64) -> StepError {
        if let Some(error) = self.bad_activation(step, batch) {
            return error;
        }
        let own = &self.buffers.logp[..batch.labels.len()];
        let bad = own.iter().position(|logp| !logp.is_finite());
        if let Some(scored) = bad {
            let row = batch.scored_rows[scored] as usize;
            return StepError::NotFinite {
                step: step + 1,
                what: format!("the log-probability of row {row}"),
                layer: None,
                value: f64::from(self.buffers.logp[scored]),
                records: record_of_row(batch, row).into_iter().collect(),
                is_torn: false,
            };
        }
        let what = "the loss".to_owned();
        let (layer, value, is_torn, records) = (None, loss, false, records(batch));
        StepError::NotFinite { step: step + 1, what, layer, value, records, is_torn }
    }

    /// A number that all processes know, of which no more is known here.
    pub(super) fn not_finite(&self, what: String, value: f64) -> StepError {
        let step = self.state.global_step + 1;
        StepError::NotFinite { step, what, layer: None, value, records: Vec::new(), is_torn: false }
    }

    /// The norm of the step's gradient is not finite: each micro-batch is run again, and the first on
    /// whose way, or in whose own gradient, a number is not finite is named. (Attention can lose such a
    /// number on the way to the loss: a score of -inf has no weight.)
    pub(super) fn bad_gradient(
        &mut self,
        step: u64,
        norm: f64,
        input: &StepInput,
        estimate: &Estimate,
    ) -> StepError {
        // The sum over the micro-batches is there only as a whole.
        let of_sum = match &self.gradient {
            Gradient::Whole(_) => self.bad_slice_of_whole(),
            Gradient::ByPart(_) => None,
        };
        for micro_batch in &input.micro_batches {
            let batch = &micro_batch.batch;
            if let Err(failed) = self.forward(micro_batch, estimate, &input.totals, Some(step)) {
                return failed.into();
            }
            if let Some(error) = self.bad_activation(step, batch) {
                return error;
            }
            if let Some((what, layer, value)) = self.bad_slice_of(batch, step) {
                let records = records(batch);
                let (step, is_torn) = (step + 1, false);
                return StepError::NotFinite { step, what, layer, value, records, is_torn };
            }
        }
        let (what, layer, value) =
            of_sum.unwrap_or(("the norm of the gradient".to_owned(), None, norm));
        // Finite one by one: only their sum is not.
        let records = input.micro_batches.iter().flat_map(|of| records(&of.batch)).collect();
        StepError::NotFinite { step: step + 1, what, layer, value, records, is_torn: false }
    }

    /// [`Session::bad_slice`] of the gradient of this batch, which just went forward.
    fn bad_slice_of(&mut self, batch: &PackedBatch, step: u64) -> Option<BadSlice> {
        if let Gradient::Whole(values) = &mut self.gradient {
            self.decoder.ops().fill(values.all_mut(), 0.0);
            self.backward(batch, step);
            return self.bad_slice_of_whole();
        }
        let (mut descent, mut found) = (Descent::begin(), None);
        while let Some(slices) = self.descend(&mut descent, batch, step) {
            // The lowest layer has the first slices.
            found = self.bad_slice(&slices).or(found);
        }
        found
    }

    fn bad_slice_of_whole(&self) -> Option<BadSlice> {
        self.bad_slice(std::slice::from_ref(&(0..self.adapter.n_params())))
    }
}

/// The record that a row belongs to.
fn record_of_row(batch: &PackedBatch, row: usize) -> Option<u64> {
    let mut sequences = batch.segments.iter().zip(&batch.sequences);
    let owner = sequences
        .find(|(segment, _)| (segment.start..segment.start + segment.len).contains(&row))?;
    Some(owner.1.record)
}

/// The records of a batch, each once.
fn records(batch: &PackedBatch) -> Vec<u64> {
    let mut records: Vec<u64> = batch.sequences.iter().map(|sequence| sequence.record).collect();
    records.dedup();
    records
}

/// The decoder layer in the name of a weight.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok())
}
