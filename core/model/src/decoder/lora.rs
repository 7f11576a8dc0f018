//! The low-rank path beside a frozen linear layer.
//!
//! Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3: `y = W x + s B A dropout(x)`.
//!
//! With `x'` the input after dropout, u = x' A^T (kept by forward), and dy given:
//!
//! ```text
//! dB += s dy^T u      du = s dy B      dA += du^T x'      dx += dropout'(du A)
//! ```
//!
//! Magnitudes for each output are in `dora`.

use forgelm_kernels_api::{Dropout, GemmDims, GemmLayout, LowRank, Slice, SliceMut, Write};

use super::Step;
use super::grads::Grads;
use crate::activations::{AdapterRows, AdapterScratch, Rows};
use crate::adapter::AdaptedModule;
use crate::names::Linear;
use crate::trainable::Trainable;

impl<'a> Step<'a> {
    /// The adapter's part of a linear layer, if it has one.
    pub(super) fn adapted(
        &self,
        layer: usize,
        linear: Linear,
    ) -> Option<(&'a Trainable, &'a AdaptedModule)> {
        let adapter = self.adapter?;
        adapter.module(layer, linear).map(|module| (adapter, module))
    }

    /// The mask of a module's input in this step.
    pub(super) fn mask(&self, adapter: &Trainable, module: &AdaptedModule) -> Option<Dropout> {
        self.dropout.map(|dropout| Dropout {
            p: adapter.dropout(),
            key: dropout.stream.dropout_key(dropout.step, module.index()),
        })
    }

    /// `u = dropout(x) A^T`; nothing when the layer is not adapted.
    ///
    /// Shapes: `kept.u` [T, r] written, `x` [T, n_in] read.
    pub(super) fn lora_products(
        &self,
        (layer, linear): (usize, Linear),
        x: Slice<'_>,
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let Some((adapter, module)) = self.adapted(layer, linear) else { return };
        let x = self.after_dropout(adapter, module, x, &mut scratch.dropped);
        let dims = GemmDims { m: self.t, n: module.r, k: module.n_in };
        let u = kept.u.get_mut(self.t).part(0..self.t * module.r);
        let ops = &self.decoder.ops;
        ops.gemm(u, x, adapter.a(module), GemmLayout::Nt, dims, 1.0, Write::Replace);
    }

    /// `s u B^T`, after [`Step::lora_products`]; `None` when the layer is not adapted.
    pub(super) fn lora_forward<'b>(
        &self,
        (layer, linear): (usize, Linear),
        kept: &'b AdapterRows,
    ) -> Option<LowRank<'b>>
    where
        'a: 'b,
    {
        let (adapter, module) = self.adapted(layer, linear)?;
        let u = kept.u.get(self.t).part(0..self.t * module.r);
        Some(LowRank { u, v: adapter.b(module), scale: module.scale })
    }

    /// The input of A: `x` itself, or what dropout leaves of it.
    pub(super) fn after_dropout<'b>(
        &self,
        adapter: &Trainable,
        module: &AdaptedModule,
        x: Slice<'b>,
        dropped: &'b mut Rows,
    ) -> Slice<'b> {
        let Some(mask) = self.mask(adapter, module) else { return x };
        let len = x.len();
        let to = dropped.get_mut(self.t).part(0..len);
        self.decoder.ops.dropout(to, x, self.row_keys, &mask, Write::Replace);
        dropped.get(self.t).part(0..len)
    }

    /// Adds the gradients of A and B, and leaves the gradient of `u` for
    /// [`Step::lora_input_gradient`].
    ///
    /// Shapes: `grads` as the trainable numbers, added to; `du` [T, r] written; `dy` [T, n_out],
    /// `x` [T, n_in] and `kept.u` [T, r] read.
    pub(super) fn lora_weight_gradients(
        &self,
        (layer, linear): (usize, Linear),
        grads: &mut Grads<'_>,
        du: &mut Rows,
        (dy, x, kept): (Slice<'_>, Slice<'_>, &AdapterRows),
        dropped: &mut Rows,
    ) {
        let Some((adapter, module)) = self.adapted(layer, linear) else { return };
        let (t, ops) = (self.t, &self.decoder.ops);
        let u = kept.u.get(t).part(0..t * module.r);
        let mut du = du.get_mut(t).part(0..t * module.r);
        let dims = GemmDims { m: module.n_out, n: module.r, k: t };
        let db = grads.of(module.b.clone());
        ops.gemm(db, dy, u, GemmLayout::Tn, dims, module.scale, Write::Add);
        let dims = GemmDims { m: t, n: module.r, k: module.n_out };
        let (nn, b) = (GemmLayout::Nn, adapter.b(module));
        ops.gemm(du.reborrow(), dy, b, nn, dims, module.scale, Write::Replace);
        let x = self.after_dropout(adapter, module, x, dropped);
        let dims = GemmDims { m: module.r, n: module.n_in, k: t };
        let da = grads.of(module.a.clone());
        ops.gemm(da, du.as_slice(), x, GemmLayout::Tn, dims, 1.0, Write::Add);
    }

    /// `dx = W^T dy + dropout'(du A)`, or added to `dx`; without the second term when the layer is
    /// not adapted.
    ///
    /// Shapes: `dx` [T, n_in] written or added to, `dy` [T, n_out] and `du` [T, r] read.
    pub(super) fn lora_input_gradient(
        &self,
        place: (usize, Linear),
        (mut dx, write): (SliceMut<'_>, Write),
        dy: Slice<'_>,
        du: &Rows,
        scratch: &mut AdapterScratch,
    ) {
        let (t, ops, weight) = (self.t, &self.decoder.ops, self.weight(place));
        let Some((adapter, module)) = self.adapted(place.0, place.1) else {
            ops.linear_backward(dx, dy, weight, write);
            return;
        };
        let du = du.get(t).part(0..t * module.r);
        let a = adapter.a(module);
        match self.mask(adapter, module) {
            None => {
                let beside = LowRank { u: du, v: a, scale: 1.0 };
                ops.linear_backward_low_rank(dx, dy, weight, beside, write);
            }
            Some(mask) => {
                ops.linear_backward(dx.reborrow(), dy, weight, write);
                let dims = GemmDims { m: t, n: module.n_in, k: module.r };
                let mut before = scratch.dropped.get_mut(t).part(0..dx.len());
                ops.gemm(before.reborrow(), du, a, GemmLayout::Nn, dims, 1.0, Write::Replace);
                ops.dropout(dx, before.as_slice(), self.row_keys, &mask, Write::Add);
            }
        }
    }
}
