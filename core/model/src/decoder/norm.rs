//! A norm of a decoder layer. Every norm goes through these two functions, forward and backward.

use forgelm_kernels_api::Write;

use super::Step;
use crate::names::Norm;

impl Step<'_> {
    /// `y = norm(x)`.
    ///
    /// Shapes: `y` [T, C] and `inv_rms` [T] written, `x` [T, C] read.
    pub(super) fn norm_forward(
        &self,
        (layer, norm): (usize, Norm),
        y: &mut [f32],
        inv_rms: &mut [f32],
        x: &[f32],
    ) {
        let weight = self.decoder.weights.layers[layer].norm(norm);
        let eps = self.decoder.config.rms_norm_eps;
        self.decoder.ops.rms_norm_forward(y, inv_rms, x, weight, eps);
    }

    /// Gradient of the norm's input.
    ///
    /// Shapes: `dx` [T, C] written or added to; `dy` [T, C], `x` [T, C] and `inv_rms` [T] read.
    pub(super) fn norm_backward(
        &self,
        (layer, norm): (usize, Norm),
        (dx, write): (&mut [f32], Write),
        dy: &[f32],
        (x, inv_rms): (&[f32], &[f32]),
    ) {
        let weight = self.decoder.weights.layers[layer].norm(norm);
        self.decoder.ops.rms_norm_backward(dx, dy, x, inv_rms, weight, write);
    }
}
