//! The MLP half of a layer: `x_out = x_mid + Down(act(Gate(n)) * Up(n))` with `n = norm(x_mid)`.

use forgelm_kernels_api::{Activation, Write};

use super::Step;
use crate::activations::{LayerBuffers, Workspace};
use crate::names::Linear;

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
        let (t, decoder, ops) = (self.t, self.decoder, &self.decoder.ops);
        let weights = &decoder.weights.layers[layer];
        let x_mid = buffers.x_mid.get(t);
        let xn = ws.xn.get_mut(t);
        let inv_rms = buffers.post_inv_rms.get_mut(t);
        let eps = decoder.config.rms_norm_eps;
        ops.rms_norm_forward(xn, inv_rms, x_mid, &weights.post_attention_norm, eps);
        for (linear, y) in [(Linear::Gate, &mut buffers.gate), (Linear::Up, &mut buffers.up)] {
            let y = y.get_mut(t);
            ops.linear_forward(y, xn, weights.linear(linear), Write::Replace);
            let u = &mut buffers.u[linear.index()];
            self.lora_forward((layer, linear), y, xn, u, &mut ws.dropped);
        }
        let down_is_adapted = self.adapted(layer, Linear::Down).is_some();
        if out.is_none() && !down_is_adapted {
            return;
        }
        let h = ws.h.get_mut(t);
        ops.glu_forward(h, buffers.gate.get(t), buffers.up.get(t), GATE);
        let u = &mut buffers.u[Linear::Down.index()];
        match out {
            Some(out) => {
                out.copy_from_slice(x_mid);
                ops.linear_forward(out, h, weights.linear(Linear::Down), Write::Add);
                self.lora_forward((layer, Linear::Down), out, h, u, &mut ws.dropped);
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
        let (t, decoder, ops) = (self.t, self.decoder, &self.decoder.ops);
        let weights = &decoder.weights.layers[layer];
        let place = (layer, Linear::Down);
        if self.adapted(layer, Linear::Down).is_some() {
            ops.glu_forward(ws.h.get_mut(t), buffers.gate.get(t), buffers.up.get(t), GATE);
            let given = (ws.dx.get(t), ws.h.get(t), &buffers.u[Linear::Down.index()]);
            self.lora_weight_gradients(place, grads, &mut ws.du[0], given, &mut ws.dropped);
        }
        if lowest == Some(Linear::Down) {
            return false;
        }
        let dh = ws.h.get_mut(t);
        ops.linear_backward(dh, ws.dx.get(t), weights.linear(Linear::Down), Write::Replace);
        self.lora_input_gradient(place, dh, &ws.du[0], &mut ws.dropped);
        ops.glu_backward(buffers.gate.get_mut(t), buffers.up.get_mut(t), dh, GATE);

        let parts = [(Linear::Gate, &buffers.gate), (Linear::Up, &buffers.up)];
        if parts.iter().any(|(linear, _)| self.adapted(layer, *linear).is_some()) {
            ops.rms_norm_forward(
                ws.xn.get_mut(t),
                ws.inv_rms.get_mut(t),
                buffers.x_mid.get(t),
                &weights.post_attention_norm,
                decoder.config.rms_norm_eps,
            );
            for ((linear, dy), du) in parts.iter().zip(&mut ws.du) {
                let given = (dy.get(t), ws.xn.get(t), &buffers.u[linear.index()]);
                self.lora_weight_gradients((layer, *linear), grads, du, given, &mut ws.dropped);
            }
        }
        if lowest.is_some_and(|linear| linear >= Linear::Gate) {
            return false;
        }
        let dxn = ws.xn.get_mut(t);
        for (i, ((linear, dy), du)) in parts.iter().zip(&ws.du).enumerate() {
            let write = if i == 0 { Write::Replace } else { Write::Add };
            ops.linear_backward(dxn, dy.get(t), weights.linear(*linear), write);
            self.lora_input_gradient((layer, *linear), dxn, du, &mut ws.dropped);
        }
        ops.rms_norm_backward(
            ws.dx.get_mut(t),
            dxn,
            buffers.x_mid.get(t),
            buffers.post_inv_rms.get(t),
            &weights.post_attention_norm,
            Write::Add,
        );
        true
    }
}
