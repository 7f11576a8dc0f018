//! A linear layer of the decoder with everything that hangs on it: the base product and what is
//! trained beside it. Every linear layer goes through these functions, forward and backward;
//! the halves of a layer know nothing of adapters.
//!
//! A weight of the base that trains: `dW += dy^T x`, in f32 whatever the format of the products.

use forgelm_kernels_api::{FrozenMatrix, GemmDims, GemmLayout, Slice, SliceMut, Write};

use super::Step;
use super::grads::Grads;
use crate::activations::{AdapterRows, AdapterScratch, Rows};
use crate::names::{Linear, Role};

/// A linear layer: decoder layer and which one of it.
pub(super) type Place = (usize, Linear);

impl<'a> Step<'a> {
    /// The weight of a linear layer: the trained one, else the decoder's own.
    pub(super) fn weight(&self, (layer, linear): Place) -> &'a dyn FrozenMatrix {
        let trained = self.adapter.and_then(|t| t.matrix(Role::Linear(layer, linear)));
        trained.unwrap_or_else(|| self.weights().linear(linear))
    }

    /// `y = W x + bias`, or added to `y`, and the adapter's part.
    ///
    /// Shapes: `y` [T, n_out] written or added to, `x` [T, n_in] read; `kept` written.
    pub(super) fn linear_forward(
        &self,
        place: Place,
        (mut y, write): (SliceMut<'_>, Write),
        x: Slice<'_>,
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        match self.dora(place) {
            Some(dora) => {
                self.dora_forward((place, dora), (y.reborrow(), write), x, kept, scratch);
            }
            None => {
                self.lora_products(place, x, kept, scratch);
                let (ops, weight) = (&self.decoder.ops, self.weight(place));
                match self.lora_forward(place, kept) {
                    None => ops.linear_forward(y.reborrow(), x, weight, write),
                    Some(beside) => {
                        ops.linear_forward_low_rank(y.reborrow(), x, weight, beside, write);
                    }
                }
            }
        }
        if let Some(bias) = self.bias(place) {
            self.decoder.ops.add_bias(y, bias);
        }
    }

    /// The bias of a linear layer: the trained one, else the decoder's own.
    fn bias(&self, (layer, linear): Place) -> Option<Slice<'a>> {
        let trained = self.adapter.and_then(|t| t.vector(Role::Bias(layer, linear)));
        trained.or_else(|| self.weights().bias(linear))
    }

    /// What [`Step::linear_forward`] keeps for backward, without the product itself: for a layer
    /// that runs forward again only to have its buffers back.
    ///
    /// Shapes: `x` [T, n_in] read; `kept` written.
    pub(super) fn linear_kept(
        &self,
        place: Place,
        x: Slice<'_>,
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        match self.dora(place) {
            Some(dora) => self.dora_products((place, dora), None, x, kept, scratch),
            None => self.lora_products(place, x, kept, scratch),
        }
    }

    /// Whether anything of the layer itself is trained: its gradient needs the layer's input.
    pub(super) fn is_trained(&self, (layer, linear): Place) -> bool {
        self.adapter.is_some_and(|trainable| trainable.trains(layer, linear))
    }

    /// Adds the gradients of what is trained in the layer, and leaves in `du` what
    /// [`Step::linear_input_gradient`] needs. Nothing when the layer is not trained.
    ///
    /// Shapes: `grads` as the trainable numbers, added to; `du` [T, r] written; `dy` [T, n_out],
    /// `x` [T, n_in] and `kept` read.
    pub(super) fn linear_weight_gradients(
        &self,
        place: Place,
        grads: &mut Grads<'_>,
        du: &mut Rows,
        (dy, x, kept): (Slice<'_>, Slice<'_>, &AdapterRows),
        scratch: &mut AdapterScratch,
    ) {
        let Some(trainable) = self.adapter else { return };
        if let Some(range) = trainable.range(Role::Linear(place.0, place.1)) {
            let weight = self.weight(place);
            let dims = GemmDims { m: weight.n_rows(), n: weight.n_cols(), k: self.t };
            let dw = grads.of(range);
            self.decoder.ops.gemm(dw, dy, x, GemmLayout::Tn, dims, 1.0, Write::Add);
        }
        if let Some(range) = trainable.range(Role::Bias(place.0, place.1)) {
            self.decoder.ops.column_sums(grads.of(range), dy);
        }
        let AdapterScratch { dropped, dz } = scratch;
        let dy = match self.dora(place) {
            Some(dora) => self.dora_output_gradient(dora, grads, dz, (dy, kept)),
            None => dy,
        };
        self.lora_weight_gradients(place, grads, du, (dy, x, kept), dropped);
    }

    /// `dx = W^T dy`, or added to `dx`, and the adapter's part.
    ///
    /// Shapes: `dx` [T, n_in] written or added to, `dy` [T, n_out] and `du` [T, r] read.
    pub(super) fn linear_input_gradient(
        &self,
        place: Place,
        (dx, write): (SliceMut<'_>, Write),
        dy: Slice<'_>,
        du: &Rows,
        scratch: &mut AdapterScratch,
    ) {
        if let Some(dora) = self.dora(place) {
            self.dora_input_gradient((place, dora), (dx, write), dy, du, scratch);
            return;
        }
        self.lora_input_gradient(place, (dx, write), dy, du, scratch);
    }
}
