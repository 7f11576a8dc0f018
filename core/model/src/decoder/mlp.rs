//! The MLP half of a layer: `x_out = x_mid + Down(act(Gate(n)) * Up(n))` with `n = norm(x_mid)`.
//! Options: one matrix for gate and up; a norm over the half's result before it is added.

use forgelm_kernels_api::{SliceMut, Write};

use super::grads::Grads;
use super::{Step, join_columns, split_columns};
use crate::activations::{LayerBuffers, Workspace};
use crate::names::{Linear, Norm};

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
        out: Option<SliceMut<'_>>,
    ) {
        let (t, ops, config) = (self.t, &self.decoder.ops, &self.decoder.config);
        let x_mid = buffers.x_mid.get(t);
        let inv_rms = buffers.post_inv_rms.get_mut(t);
        self.norm_forward((layer, config.mlp_norm()), ws.xn.get_mut(t), inv_rms, x_mid);
        if let Some(experts) = config.layer_experts(layer) {
            return self.experts_forward((layer, experts), buffers, ws, out);
        }
        let xn = ws.xn.get(t);
        if config.mlp.is_fused {
            let u = &mut buffers.u[Linear::GateUp.index()];
            let y = (ws.gate_up.get_mut(t), Write::Replace);
            self.linear_forward((layer, Linear::GateUp), y, xn, u, &mut ws.dropped);
            let parts = [buffers.gate.get_mut(t), buffers.up.get_mut(t)];
            split_columns(ops.as_ref(), parts, ws.gate_up.get(t), t);
        } else {
            for (linear, y) in [(Linear::Gate, &mut buffers.gate), (Linear::Up, &mut buffers.up)] {
                let y = (y.get_mut(t), Write::Replace);
                let u = &mut buffers.u[linear.index()];
                self.linear_forward((layer, linear), y, xn, u, &mut ws.dropped);
            }
        }
        let post_norm = config.norms.post_norms;
        if out.is_none() && !post_norm && !self.is_trained((layer, Linear::Down)) {
            return;
        }
        ops.glu_forward(ws.h.get_mut(t), buffers.gate.get(t), buffers.up.get(t), config.mlp.act);
        let h = ws.h.get(t);
        let (place, u) = ((layer, Linear::Down), &mut buffers.u[Linear::Down.index()]);
        match out {
            Some(mut out) if !post_norm => {
                ops.copy(out.reborrow(), x_mid);
                self.linear_forward(place, (out, Write::Add), h, u, &mut ws.dropped);
            }
            None if !post_norm => self.linear_kept(place, h, u, &mut ws.dropped),
            out => {
                let y = (buffers.mlp_out.get_mut(t), Write::Replace);
                self.linear_forward(place, y, h, u, &mut ws.dropped);
                let (y, inv_rms) = (ws.xn.get_mut(t), buffers.mlp_out_inv_rms.get_mut(t));
                let norm = (layer, Norm::PostFeedforward);
                self.norm_forward(norm, y, inv_rms, buffers.mlp_out.get(t));
                if let Some(mut out) = out {
                    ops.copy(out.reborrow(), x_mid);
                    ops.add(out, ws.xn.get(t));
                }
            }
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
        grads: &mut Grads<'_>,
    ) -> bool {
        let (t, ops, config) = (self.t, &self.decoder.ops, &self.decoder.config);
        let act = config.mlp.act;
        if let Some(experts) = config.layer_experts(layer) {
            let (xn, inv_rms) = (ws.xn.get_mut(t), ws.inv_rms.get_mut(t));
            self.norm_forward((layer, config.mlp_norm()), xn, inv_rms, buffers.x_mid.get(t));
            self.experts_backward((layer, experts), buffers, ws, grads);
            if lowest.is_some_and(Linear::is_mlp) {
                return false;
            }
            let (dx, x) = ((ws.dx.get_mut(t), Write::Add), buffers.x_mid.get(t));
            let given = (x, buffers.post_inv_rms.get(t));
            self.norm_backward((layer, config.mlp_norm()), grads, dx, ws.experts.dxn.get(t), given);
            return true;
        }
        if config.norms.post_norms {
            let given = (buffers.mlp_out.get(t), buffers.mlp_out_inv_rms.get(t));
            let dbranch = (ws.dbranch.get_mut(t), Write::Replace);
            self.norm_backward((layer, Norm::PostFeedforward), grads, dbranch, ws.dx.get(t), given);
        }
        let dy = if config.norms.post_norms { ws.dbranch.get(t) } else { ws.dx.get(t) };
        let place = (layer, Linear::Down);
        if self.is_trained(place) {
            ops.glu_forward(ws.h.get_mut(t), buffers.gate.get(t), buffers.up.get(t), act);
            let given = (dy, ws.h.get(t), &buffers.u[Linear::Down.index()]);
            self.linear_weight_gradients(place, grads, &mut ws.du[0], given, &mut ws.dropped);
        }
        if lowest == Some(Linear::Down) {
            return false;
        }
        let dh = (ws.h.get_mut(t), Write::Replace);
        self.linear_input_gradient(place, dh, dy, &ws.du[0], &mut ws.dropped);
        ops.glu_backward(buffers.gate.get_mut(t), buffers.up.get_mut(t), ws.h.get(t), act);
        if config.mlp.is_fused {
            let parts = [buffers.gate.get(t), buffers.up.get(t)];
            join_columns(ops.as_ref(), ws.gate_up.get_mut(t), parts, t);
        }

        let fused = [(Linear::GateUp, &ws.gate_up)];
        let apart = [(Linear::Gate, &buffers.gate), (Linear::Up, &buffers.up)];
        let parts = if config.mlp.is_fused { &fused[..] } else { &apart[..] };
        if parts.iter().any(|(linear, _)| self.is_trained((layer, *linear))) {
            let (xn, inv_rms) = (ws.xn.get_mut(t), ws.inv_rms.get_mut(t));
            self.norm_forward((layer, config.mlp_norm()), xn, inv_rms, buffers.x_mid.get(t));
            for ((linear, dy), du) in parts.iter().zip(&mut ws.du) {
                let given = (dy.get(t), ws.xn.get(t), &buffers.u[linear.index()]);
                self.linear_weight_gradients((layer, *linear), grads, du, given, &mut ws.dropped);
            }
        }
        if lowest.is_some_and(Linear::is_mlp) {
            return false;
        }
        for (i, ((linear, dy), du)) in parts.iter().zip(&ws.du).enumerate() {
            let dxn = (ws.xn.get_mut(t), if i == 0 { Write::Replace } else { Write::Add });
            self.linear_input_gradient((layer, *linear), dxn, dy.get(t), du, &mut ws.dropped);
        }
        let (dx, dxn) = ((ws.dx.get_mut(t), Write::Add), ws.xn.get(t));
        let given = (buffers.x_mid.get(t), buffers.post_inv_rms.get(t));
        self.norm_backward((layer, config.mlp_norm()), grads, dx, dxn, given);
        true
    }
}
