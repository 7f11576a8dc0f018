//! Layer-wise updates: each layer is updated as soon as the pass down has left it.
//!
//! Paper: Lv et al. 2023, arXiv:2306.09782, algorithm 1; with GaLore in Zhao et al. 2024,
//! arXiv:2403.03507, sec. 4.3.
//!
//! The gradient of one layer exists at a time. A step is therefore one micro-batch, and neither
//! the norm of the whole gradient nor whether all of it is finite is known before the first
//! update: nothing is clipped, and a number that is not finite stops a step that has changed the
//! layers above it. The session is of no use then; the last checkpoint is.

use super::{Session, StepError};
use crate::optimizer::At;
use forgelm_data::PackedBatch;
use forgelm_model::Descent;
use std::ops::Range;

impl Session<'_> {
    /// Backward over the only micro-batch of a step, and the update; the norm of the mean gradient.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub(super) fn update_by_layer(
        &mut self,
        batch: &PackedBatch,
        step: u64,
        n_terms: u64,
    ) -> Result<f64, StepError> {
        assert_eq!(self.cut().accumulation, 1, "a layer is updated after one micro-batch");
        let ops = self.decoder.ops().clone();
        let mean = 1.0 / n_terms.max(1) as f64;
        let learning_rate = self.settings.schedule.at(step);
        let at = At { step: step + 1, learning_rate, grad_scale: mean };
        let (mut descent, mut squares) = (Descent::begin(), 0.0);
        while let Some(slices) = self.descend(&mut descent, batch, step) {
            let grads = self.gradient.by_part();
            let sum: f64 = slices.iter().map(|s| ops.sum_of_squares(grads.of(s.clone()))).sum();
            if !sum.is_finite() {
                return Err(self.bad_slices(step, batch, &slices));
            }
            squares += sum;
            self.is_torn |= !slices.is_empty();
            let optimizer = &mut self.optimizer;
            self.decoder.change(&mut self.adapter, &slices, |params| {
                optimizer.step_slices(ops.as_ref(), &slices, params, |range| grads.of(range), at);
            });
        }
        Ok(squares.sqrt() * mean)
    }

    fn bad_slices(&self, step: u64, batch: &PackedBatch, slices: &[Range<usize>]) -> StepError {
        // Each may be finite, but not their squares.
        let of_layer = || ("the norm of the gradient of a layer".to_owned(), None, f64::INFINITY);
        let (what, layer, value) = self.bad_slice(slices).unwrap_or_else(of_layer);
        let records = batch.sequences.iter().map(|sequence| sequence.record).collect();
        let is_torn = self.is_torn;
        StepError::NotFinite { step: step + 1, what, layer, value, records, is_torn }
    }
}
