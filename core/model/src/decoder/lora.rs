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

use forgelm_kernels_api::{Dropout, GemmDims, GemmLayout, Write};

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
        x: &[f32],
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let Some((adapter, module)) = self.adapted(layer, linear) else { return };
        let x = self.after_dropout(adapter, module, x, &mut scratch.dropped);
        let dims = GemmDims { m: self.t, n: module.r, k: module.n_in };
        let u = &mut kept.u.get_mut(self.t)[..self.t * module.r];
        let ops = &self.decoder.ops;
        ops.gemm(u, x, adapter.a(module), GemmLayout::Nt, dims, 1.0, Write::Replace);
    }

    /// `u = dropout(x) A^T`, `y += s u B^T`; nothing when the layer is not adapted.
    ///
    /// Shapes: `y` [T, n_out] added to, `kept.u` [T, r] written, `x` [T, n_in] read.
    pub(super) fn lora_forward(
        &self,
        (layer, linear): (usize, Linear),
        y: &mut [f32],
        x: &[f32],
        kept: &mut AdapterRows,
        scratch: &mut AdapterScratch,
    ) {
        let Some((adapter, module)) = self.adapted(layer, linear) else { return };
        self.lora_products((layer, linear), x, kept, scratch);
        let u = &kept.u.get(self.t)[..self.t * module.r];
        let dims = GemmDims { m: self.t, n: module.n_out, k: module.r };
        let (ops, b) = (&self.decoder.ops, adapter.b(module));
        ops.gemm(y, u, b, GemmLayout::Nt, dims, module.scale, Write::Add);
    }

    /// The input of A: `x` itself, or what dropout leaves of it.
    pub(super) fn after_dropout<'b>(
        &self,
        adapter: &Trainable,
        module: &AdaptedModule,
        x: &'b [f32],
        dropped: &'b mut Rows,
    ) -> &'b [f32] {
        let Some(mask) = self.mask(adapter, module) else { return x };
        let dropped = &mut dropped.get_mut(self.t)[..x.len()];
        self.decoder.ops.dropout(dropped, x, self.row_keys, &mask, Write::Replace);
        dropped
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
        (dy, x, kept): (&[f32], &[f32], &AdapterRows),
        dropped: &mut Rows,
    ) {
        let Some((adapter, module)) = self.adapted(layer, linear) else { return };
        let (t, ops) = (self.t, &self.decoder.ops);
        let u = &kept.u.get(t)[..t * module.r];
        let du = &mut du.get_mut(t)[..t * module.r];
        let dims = GemmDims { m: module.n_out, n: module.r, k: t };
        let db = grads.of(module.b.clone());
        ops.gemm(db, dy, u, GemmLayout::Tn, dims, module.scale, Write::Add);
        let dims = GemmDims { m: t, n: module.r, k: module.n_out };
        ops.gemm(du, dy, adapter.b(module), GemmLayout::Nn, dims, module.scale, Write::Replace);
        let x = self.after_dropout(adapter, module, x, dropped);
        let dims = GemmDims { m: module.r, n: module.n_in, k: t };
        let da = grads.of(module.a.clone());
        ops.gemm(da, du, x, GemmLayout::Tn, dims, 1.0, Write::Add);
    }

    /// `dx += dropout'(du A)`; nothing when the layer is not adapted.
    ///
    /// Shapes: `dx` [T, n_in] added to, `du` [T, r] read.
    pub(super) fn lora_input_gradient(
        &self,
        (layer, linear): (usize, Linear),
        dx: &mut [f32],
        du: &Rows,
        scratch: &mut AdapterScratch,
    ) {
        let Some((adapter, module)) = self.adapted(layer, linear) else { return };
        let (t, ops) = (self.t, &self.decoder.ops);
        let du = &du.get(t)[..t * module.r];
        let dims = GemmDims { m: t, n: module.n_in, k: module.r };
        let a = adapter.a(module);
        match self.mask(adapter, module) {
            None => ops.gemm(dx, du, a, GemmLayout::Nn, dims, 1.0, Write::Add),
            Some(mask) => {
                let before = &mut scratch.dropped.get_mut(t)[..dx.len()];
                ops.gemm(before, du, a, GemmLayout::Nn, dims, 1.0, Write::Replace);
                ops.dropout(dx, before, self.row_keys, &mask, Write::Add);
            }
        }
    }
}
