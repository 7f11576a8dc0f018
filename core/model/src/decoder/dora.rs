//! Magnitudes beside a low-rank adapter: each output of the adapted layer is brought to a length
//! that trains.
//!
//! Paper: Liu et al. 2024, arXiv:2402.09353, eq. 5 and 11. With `V = W + s B A`, `g = m / |V|` for
//! each row, and `x'` the input after dropout:
//!
//! ```text
//! z = W x' + s B A x'        y = W x - W x' + g * z        (y = g * z without dropout)
//! dm += (dy . z) / |V|       dz = g * dy                   |V| is constant in backward
//! dA, dB, du as in `lora`, with dz in the place of dy
//! dx += W^T dy + dropout'(W^T ((g - 1) * dy) + du A)
//! ```

use forgelm_kernels_api::{GemmDims, GemmLayout, LowRank, Slice, SliceMut, Write};

use super::Step;
use super::grads::Grads;
use super::linear::Place;
use crate::activations::{AdapterRows, AdapterScratch, Rows};
use crate::adapter::AdaptedModule;
use crate::trainable::{DoraFactors, Trainable};

/// A module whose magnitudes train.
type Dora<'a> = (&'a Trainable, &'a AdaptedModule, &'a DoraFactors);

impl<'a> Step<'a> {
    /// What a layer whose magnitudes train has; `None` for others.
    pub(super) fn dora(&self, (layer, linear): Place) -> Option<Dora<'a>> {
        let (trainable, module) = self.adapted(layer, linear)?;
        trainable.dora(module).map(|factors| (trainable, module, factors))
    }

    /// The whole layer. Shapes: `y` [T, n_out] written or added to, `x` [T, n_in] read; `kept`
    /// written.
    pub(super) fn dora_forward(
        &self,
        (place, dora): (Place, Dora<'_>),
        (mut y, write): (SliceMut<'_>, Write),
        x: Slice<'_>,
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let (ops, factors) = (&self.decoder.ops, dora.2);
        if self.dropout.is_none() {
            self.dora_products((place, dora), None, x, kept, scratch);
            ops.scale_columns(y, kept.z(self.t, dora.1.n_out), factors.factors.all(), write);
            return;
        }
        ops.linear_forward(y.reborrow(), x, self.weight(place), write);
        self.dora_products((place, dora), Some(y.reborrow()), x, kept, scratch);
        ops.scale_columns(y, kept.z(self.t, dora.1.n_out), factors.factors.all(), Write::Add);
    }

    /// `u = x' A^T` and `z = W x' + s B u`; with `y` also `y -= W x'`.
    ///
    /// Shapes: `y` [T, n_out] added to, `x` [T, n_in] read; `kept` written.
    pub(super) fn dora_products(
        &self,
        (place, (trainable, module, factors)): (Place, Dora<'_>),
        y: Option<SliceMut<'_>>,
        x: Slice<'_>,
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let x = self.after_dropout(trainable, module, x, &mut scratch.dropped);
        let dims = GemmDims { m: t, n: module.r, k: module.n_in };
        let mut u = kept.u.get_mut(t).part(0..t * module.r);
        ops.gemm(u.reborrow(), x, trainable.a(module), GemmLayout::Nt, dims, 1.0, Write::Replace);
        let u = u.as_slice();
        let mut z = kept.z.get_mut(t).part(0..t * module.n_out);
        let (weight, b) = (self.weight(place), trainable.b(module));
        // With dropout `y` needs `W x'` alone. A second forward pass, which has no `y`, must give the
        // same bits, so it goes the same way.
        if self.dropout.is_none() {
            let beside = LowRank { u, v: b, scale: module.scale };
            ops.linear_forward_low_rank(z, x, weight, beside, Write::Replace);
            return;
        }
        ops.linear_forward(z.reborrow(), x, weight, Write::Replace);
        if let Some(y) = y {
            ops.scale_columns(y, z.as_slice(), factors.minus_ones.all(), Write::Add);
        }
        let dims = GemmDims { m: t, n: module.n_out, k: module.r };
        ops.gemm(z, u, b, GemmLayout::Nt, dims, module.scale, Write::Add);
    }

    /// Adds the gradient of the magnitudes, and gives `g * dy` for the low-rank path.
    ///
    /// Shapes: `grads` as the trainable numbers, added to; `dy` [T, n_out] read; result
    /// [T, n_out].
    pub(super) fn dora_output_gradient<'b>(
        &self,
        (_, module, factors): Dora<'_>,
        grads: &mut Grads<'_>,
        dz: &'b mut Rows,
        (dy, kept): (Slice<'_>, &AdapterRows),
    ) -> Slice<'b> {
        let (t, ops) = (self.t, &self.decoder.ops);
        let len = t * module.n_out;
        let mut to = dz.get_mut(t).part(0..len);
        // dy / |V| first: the sums over the rows can then be added to what is there.
        ops.scale_columns(to.reborrow(), dy, factors.inv_norms.all(), Write::Replace);
        let range = module.magnitude.clone().expect("the magnitudes of this module train");
        ops.column_dots(grads.of(range), to.as_slice(), kept.z(t, module.n_out));
        ops.scale_columns(to, dy, factors.factors.all(), Write::Replace);
        dz.get(t).part(0..len)
    }

    /// The gradient of the layer's input. Shapes: `dx` [T, n_in] written or added to, `dy`
    /// [T, n_out] and `du` [T, r] read.
    pub(super) fn dora_input_gradient(
        &self,
        (place, (trainable, module, factors)): (Place, Dora<'_>),
        (mut dx, write): (SliceMut<'_>, Write),
        dy: Slice<'_>,
        du: &Rows,
        scratch: &mut AdapterScratch,
    ) {
        let (t, ops, weight) = (self.t, &self.decoder.ops, self.weight(place));
        let mut dz = scratch.dz.get_mut(t).part(0..t * module.n_out);
        let Some(mask) = self.mask(trainable, module) else {
            ops.scale_columns(dz.reborrow(), dy, factors.factors.all(), Write::Replace);
            let du = du.get(t).part(0..t * module.r);
            let beside = LowRank { u: du, v: trainable.a(module), scale: 1.0 };
            ops.linear_backward_low_rank(dx, dz.as_slice(), weight, beside, write);
            return;
        };
        ops.linear_backward(dx.reborrow(), dy, weight, write);
        ops.scale_columns(dz.reborrow(), dy, factors.factors_less_one.all(), Write::Replace);
        let mut before = scratch.dropped.get_mut(t).part(0..dx.len());
        ops.linear_backward(before.reborrow(), dz.as_slice(), weight, Write::Replace);
        let dims = GemmDims { m: t, n: module.n_in, k: module.r };
        let (du, a) = (du.get(t).part(0..t * module.r), trainable.a(module));
        ops.gemm(before.reborrow(), du, a, GemmLayout::Nn, dims, 1.0, Write::Add);
        ops.dropout(dx, before.as_slice(), self.row_keys, &mask, Write::Add);
    }
}
