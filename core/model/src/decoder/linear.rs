//! A linear layer of the decoder with everything that hangs on it: the base product and what is
//! trained beside it. Every linear layer goes through these three functions, forward and backward;
//! the halves of a layer know nothing of adapters.

use forgelm_kernels_api::Write;

use super::Step;
use crate::activations::Rows;
use crate::names::Linear;

/// A linear layer: decoder layer and which one of it.
pub(super) type Place = (usize, Linear);

impl Step<'_> {
    /// `y = W x`, or added to `y`, and the adapter's part.
    ///
    /// Shapes: `y` [T, n_out] written or added to, `x` [T, n_in] read, `u` [T, r] written.
    pub(super) fn linear_forward(
        &self,
        place: Place,
        (y, write): (&mut [f32], Write),
        x: &[f32],
        u: &mut Rows,
        dropped: &mut Rows,
    ) {
        let weight = self.decoder.weights.layers[place.0].linear(place.1);
        self.decoder.ops.linear_forward(y, x, weight, write);
        self.lora_forward(place, y, x, u, dropped);
    }

    /// Whether anything of the layer itself is trained: its gradient needs the layer's input.
    pub(super) fn is_trained(&self, place: Place) -> bool {
        self.adapted(place.0, place.1).is_some()
    }

    /// Adds the gradients of what is trained in the layer, and leaves in `du` what
    /// [`Step::linear_input_gradient`] needs. Nothing when the layer is not trained.
    ///
    /// Shapes: `grads` as the adapter's buffer, added to; `du` [T, r] written; `dy` [T, n_out],
    /// `x` [T, n_in] and `u` [T, r] read.
    pub(super) fn linear_weight_gradients(
        &self,
        place: Place,
        grads: &mut [f32],
        du: &mut Rows,
        given: (&[f32], &[f32], &Rows),
        dropped: &mut Rows,
    ) {
        self.lora_weight_gradients(place, grads, du, given, dropped);
    }

    /// `dx = W^T dy`, or added to `dx`, and the adapter's part.
    ///
    /// Shapes: `dx` [T, n_in] written or added to, `dy` [T, n_out] and `du` [T, r] read.
    pub(super) fn linear_input_gradient(
        &self,
        place: Place,
        (dx, write): (&mut [f32], Write),
        dy: &[f32],
        du: &Rows,
        dropped: &mut Rows,
    ) {
        let weight = self.decoder.weights.layers[place.0].linear(place.1);
        self.decoder.ops.linear_backward(dx, dy, weight, write);
        self.lora_input_gradient(place, dx, du, dropped);
    }
}
