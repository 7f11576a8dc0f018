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

use forgelm_kernels_api::{GemmDims, GemmLayout, LowRank, Write};

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
        (y, write): (&mut [f32], Write),
        x: &[f32],
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let (ops, factors) = (&self.decoder.ops, dora.2);
        if self.dropout.is_none() {
            self.dora_products((place, dora), None, x, kept, scratch);
            ops.scale_columns(y, kept.z(self.t, dora.1.n_out), &factors.factors, write);
            return;
        }
        ops.linear_forward(y, x, self.weight(place), write);
        self.dora_products((place, dora), Some(&mut *y), x, kept, scratch);
        ops.scale_columns(y, kept.z(self.t, dora.1.n_out), &factors.factors, Write::Add);
    }

    /// `u = x' A^T` and `z = W x' + s B u`; with `y` also `y -= W x'`.
    ///
    /// Shapes: `y` [T, n_out] added to, `x` [T, n_in] read; `kept` written.
    pub(super) fn dora_products(
        &self,
        (place, (trainable, module, factors)): (Place, Dora<'_>),
        y: Option<&mut [f32]>,
        x: &[f32],
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let x = self.after_dropout(trainable, module, x, &mut scratch.dropped);
        let dims = GemmDims { m: t, n: module.r, k: module.n_in };
        let u = &mut kept.u.get_mut(t)[..t * module.r];
        ops.gemm(u, x, trainable.a(module), GemmLayout::Nt, dims, 1.0, Write::Replace);
        let z = &mut kept.z.get_mut(t)[..t * module.n_out];
        let (weight, b) = (self.weight(place), trainable.b(module));
        // With dropout `y` needs `W x'` alone. A second forward pass, which has no `y`, must give the
        // same bits, so it goes the same way.
        if self.dropout.is_none() {
            let beside = LowRank { u, v: b, scale: module.scale };
            ops.linear_forward_low_rank(z, x, weight, beside, Write::Replace);
            return;
        }
        ops.linear_forward(z, x, weight, Write::Replace);
        if let Some(y) = y {
            ops.scale_columns(y, z, &factors.minus_ones, Write::Add);
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
        (dy, kept): (&[f32], &AdapterRows),
    ) -> &'b [f32] {
        let (t, ops) = (self.t, &self.decoder.ops);
        let dz = &mut dz.get_mut(t)[..t * module.n_out];
        // dy / |V| first: the sums over the rows can then be added to what is there.
        ops.scale_columns(dz, dy, &factors.inv_norms, Write::Replace);
        let range = module.magnitude.clone().expect("the magnitudes of this module train");
        ops.column_dots(grads.of(range), dz, kept.z(t, module.n_out));
        ops.scale_columns(dz, dy, &factors.factors, Write::Replace);
        dz
    }

    /// The gradient of the layer's input. Shapes: `dx` [T, n_in] written or added to, `dy`
    /// [T, n_out] and `du` [T, r] read.
    pub(super) fn dora_input_gradient(
        &self,
        (place, (trainable, module, factors)): (Place, Dora<'_>),
        (dx, write): (&mut [f32], Write),
        dy: &[f32],
        du: &Rows,
        scratch: &mut AdapterScratch,
    ) {
        let (t, ops, weight) = (self.t, &self.decoder.ops, self.weight(place));
        let dz = &mut scratch.dz.get_mut(t)[..t * module.n_out];
        let Some(mask) = self.mask(trainable, module) else {
            ops.scale_columns(dz, dy, &factors.factors, Write::Replace);
            let du = &du.get(t)[..t * module.r];
            let beside = LowRank { u: du, v: trainable.a(module), scale: 1.0 };
            ops.linear_backward_low_rank(dx, dz, weight, beside, write);
            return;
        };
        ops.linear_backward(dx, dy, weight, write);
        ops.scale_columns(dz, dy, &factors.factors_less_one, Write::Replace);
        let before = &mut scratch.dropped.get_mut(t)[..dx.len()];
        ops.linear_backward(before, dz, weight, Write::Replace);
        let dims = GemmDims { m: t, n: module.n_in, k: module.r };
        let (du, a) = (&du.get(t)[..t * module.r], trainable.a(module));
        ops.gemm(before, du, a, GemmLayout::Nn, dims, 1.0, Write::Add);
        ops.dropout(dx, before, self.row_keys, &mask, Write::Add);
    }
}
