//! The MLP half of a layer: `x_out = x_mid + Down(act(Gate(n)) * Up(n))` with `n = norm(x_mid)`.

use forgelm_kernels_api::{Activation, Write};

use super::Step;
use crate::activations::{LayerBuffers, Workspace};
use crate::names::{Linear, Norm};

/// The gate of every family that runs.
const GATE: Activation = Activation::Silu;

impl Step<'_> {
    /// The whole half; without `out` the last product is left out, for a layer that runs forward
    /// again only to have its buffers back.
    ///
    /// Shapes: `out` [T, C] written.
    pub(super) fn mlp_forward(
        &self,
        layer: usize,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        out: Option<&mut [f32]>,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let x_mid = buffers.x_mid.get(t);
        let xn = ws.xn.get_mut(t);
        let inv_rms = buffers.post_inv_rms.get_mut(t);
        self.norm_forward((layer, Norm::PostAttention), xn, inv_rms, x_mid);
        for (linear, y) in [(Linear::Gate, &mut buffers.gate), (Linear::Up, &mut buffers.up)] {
            let y = (y.get_mut(t), Write::Replace);
            let u = &mut buffers.u[linear.index()];
            self.linear_forward((layer, linear), y, xn, u, &mut ws.dropped);
        }
        let down_is_trained = self.is_trained((layer, Linear::Down));
        if out.is_none() && !down_is_trained {
            return;
        }
        let h = ws.h.get_mut(t);
        ops.glu_forward(h, buffers.gate.get(t), buffers.up.get(t), GATE);
        let u = &mut buffers.u[Linear::Down.index()];
        match out {
            Some(out) => {
                out.copy_from_slice(x_mid);
                let y = (out, Write::Add);
                self.linear_forward((layer, Linear::Down), y, h, u, &mut ws.dropped);
            }
            None => self.lora_products((layer, Linear::Down), h, u, &mut ws.dropped),
        }
    }

    /// Gradients of the half. `ws.dx` holds the gradient of the layer's output and, on return,
    /// that of `x_mid`. Returns whether anything below still needs it.
    ///
    /// Shapes: `grads` as the adapter's buffer, added to.
    pub(super) fn mlp_backward(
        &self,
        (layer, lowest): (usize, Option<Linear>),
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        grads: &mut [f32],
    ) -> bool {
        let (t, ops) = (self.t, &self.decoder.ops);
        let place = (layer, Linear::Down);
        if self.is_trained(place) {
            ops.glu_forward(ws.h.get_mut(t), buffers.gate.get(t), buffers.up.get(t), GATE);
            let given = (ws.dx.get(t), ws.h.get(t), &buffers.u[Linear::Down.index()]);
            self.linear_weight_gradients(place, grads, &mut ws.du[0], given, &mut ws.dropped);
        }
        if lowest == Some(Linear::Down) {
            return false;
        }
        let dh = ws.h.get_mut(t);
        let (dy, du) = (ws.dx.get(t), &ws.du[0]);
        self.linear_input_gradient(place, (&mut *dh, Write::Replace), dy, du, &mut ws.dropped);
        ops.glu_backward(buffers.gate.get_mut(t), buffers.up.get_mut(t), dh, GATE);

        let parts = [(Linear::Gate, &buffers.gate), (Linear::Up, &buffers.up)];
        if parts.iter().any(|(linear, _)| self.is_trained((layer, *linear))) {
            let (xn, inv_rms) = (ws.xn.get_mut(t), ws.inv_rms.get_mut(t));
            self.norm_forward((layer, Norm::PostAttention), xn, inv_rms, buffers.x_mid.get(t));
            for ((linear, dy), du) in parts.iter().zip(&mut ws.du) {
                let given = (dy.get(t), ws.xn.get(t), &buffers.u[linear.index()]);
                self.linear_weight_gradients((layer, *linear), grads, du, given, &mut ws.dropped);
            }
        }
        if lowest.is_some_and(|linear| linear >= Linear::Gate) {
            return false;
        }
        let dxn = ws.xn.get_mut(t);
        for (i, ((linear, dy), du)) in parts.iter().zip(&ws.du).enumerate() {
            let write = if i == 0 { Write::Replace } else { Write::Add };
            let place = (layer, *linear);
            self.linear_input_gradient(place, (&mut *dxn, write), dy.get(t), du, &mut ws.dropped);
        }
        let (dx, x) = ((ws.dx.get_mut(t), Write::Add), buffers.x_mid.get(t));
        let inv_rms = buffers.post_inv_rms.get(t);
        self.norm_backward((layer, Norm::PostAttention), dx, dxn, (x, inv_rms));
        true
    }
}
