//! A norm of a decoder layer. Every norm goes through these two functions, forward and backward.

use forgelm_kernels_api::{Slice, SliceMut, Write};

use super::Step;
use super::grads::Grads;
use crate::names::{Norm, Role};

impl<'a> Step<'a> {
    /// The weight of a norm: the trained one, else the decoder's own.
    pub(super) fn norm_weight(&self, (layer, norm): (usize, Norm)) -> Slice<'a> {
        let trained = self.adapter.and_then(|t| t.vector(Role::Norm(layer, norm)));
        trained.unwrap_or_else(|| self.weights().norm(norm))
    }

    /// `y = norm(x)`.
    ///
    /// Shapes: `y` [T, C] and `inv_rms` [T] written, `x` [T, C] read.
    pub(super) fn norm_forward(
        &self,
        (layer, norm): (usize, Norm),
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
    ) {
        let weight = self.norm_weight((layer, norm));
        let eps = self.decoder.config.rms_norm_eps;
        self.decoder.ops.rms_norm_forward(y, inv_rms, x, weight, eps);
    }

    /// Gradient of the norm's input, and of its weight where that trains.
    ///
    /// Shapes: `grads` as the trainable numbers, added to; `dx` [T, C] written or added to; `dy` [T, C], `x` [T, C] and `inv_rms` [T] read.
    pub(super) fn norm_backward(
        &self,
        (layer, norm): (usize, Norm),
        grads: &mut Grads<'_>,
        (dx, write): (SliceMut<'_>, Write),
        dy: Slice<'_>,
        (x, inv_rms): (Slice<'_>, Slice<'_>),
    ) {
        if let Some(range) = self.adapter.and_then(|t| t.range(Role::Norm(layer, norm))) {
            self.decoder.ops.rms_norm_weight_backward(grads.of(range), dy, x, inv_rms);
        }
        let weight = self.norm_weight((layer, norm));
        self.decoder.ops.rms_norm_backward(dx, dy, x, inv_rms, weight, write);
    }
}
