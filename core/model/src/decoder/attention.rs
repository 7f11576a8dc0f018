//! The attention half of a layer: `x_mid = x + O(attention(rope(Q(n)), rope(K(n)), V(n)))` with
//! `n = norm(x)`.

use forgelm_kernels_api::{Rotation, Segment, Write};

use super::Step;
use crate::activations::{LayerBuffers, Workspace};
use crate::names::{Linear, Norm};

impl Step<'_> {
    /// Norm, projections and rotation.
    ///
    /// Shapes: `x` [T, C] read; writes `q`, `k`, `v` of `buffers`.
    pub(super) fn project(
        &self,
        layer: usize,
        x: &[f32],
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
    ) {
        let (t, decoder, ops) = (self.t, self.decoder, &self.decoder.ops);
        let xn = ws.xn.get_mut(t);
        self.norm_forward((layer, Norm::Input), xn, buffers.input_inv_rms.get_mut(t), x);
        let outputs =
            [(Linear::Q, &mut buffers.q), (Linear::K, &mut buffers.k), (Linear::V, &mut buffers.v)];
        for (linear, y) in outputs {
            let y = (y.get_mut(t), Write::Replace);
            let u = &mut buffers.u[linear.index()];
            self.linear_forward((layer, linear), y, xn, u, &mut ws.dropped);
        }
        let (cos, sin, dims) = (ws.cos.get(t), ws.sin.get(t), &decoder.dims);
        ops.rope(buffers.q.get_mut(t), cos, sin, dims.h, dims.d, Rotation::Forward);
        ops.rope(buffers.k.get_mut(t), cos, sin, dims.h_kv, dims.d, Rotation::Forward);
    }

    /// Output projection and residual.
    ///
    /// Shapes: `x` [T, C] read; writes `x_mid` of `buffers`.
    pub(super) fn project_output(
        &self,
        layer: usize,
        x: &[f32],
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
    ) {
        let (x_mid, attn) = (buffers.x_mid.get_mut(self.t), buffers.attn.get(self.t));
        x_mid.copy_from_slice(x);
        let u = &mut buffers.u[Linear::O.index()];
        self.linear_forward((layer, Linear::O), (x_mid, Write::Add), attn, u, &mut ws.dropped);
    }

    /// The whole half.
    pub(super) fn attention_forward(
        &self,
        layer: usize,
        segments: &[Segment],
        x: &[f32],
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
    ) {
        let t = self.t;
        self.project(layer, x, buffers, ws);
        self.decoder.ops.attention_forward(
            buffers.attn.get_mut(t),
            buffers.lse.get_mut(t),
            buffers.q.get(t),
            buffers.k.get(t),
            buffers.v.get(t),
            &self.decoder.attention_shape(),
            segments,
        );
        self.project_output(layer, x, buffers, ws);
    }

    /// Gradients of the half. `ws.dx` holds the gradient of `x_mid` and, on return, that of `x`,
    /// unless `lowest` says that nothing below the layer needs it.
    ///
    /// Shapes: `grads` as the adapter's buffer, added to; `x` [T, C] read.
    pub(super) fn attention_backward(
        &self,
        (layer, lowest): (usize, Option<Linear>),
        segments: &[Segment],
        x: &[f32],
        buffers: &LayerBuffers,
        ws: &mut Workspace,
        grads: &mut [f32],
    ) {
        let (t, decoder, ops) = (self.t, self.decoder, &self.decoder.ops);
        let (attn, dims) = (buffers.attn.get(t), &decoder.dims);

        let given = (ws.dx.get(t), attn, &buffers.u[Linear::O.index()]);
        let place = (layer, Linear::O);
        self.linear_weight_gradients(place, grads, &mut ws.du[0], given, &mut ws.dropped);
        if lowest == Some(Linear::O) {
            return;
        }
        let dattn = ws.dattn.get_mut(t);
        let (dy, du) = (ws.dx.get(t), &ws.du[0]);
        self.linear_input_gradient(place, (&mut *dattn, Write::Replace), dy, du, &mut ws.dropped);

        ops.attention_backward(
            ws.dq.get_mut(t),
            ws.dk.get_mut(t),
            ws.dv.get_mut(t),
            dattn,
            attn,
            buffers.lse.get(t),
            buffers.q.get(t),
            buffers.k.get(t),
            buffers.v.get(t),
            &decoder.attention_shape(),
            segments,
        );
        let (cos, sin) = (ws.cos.get(t), ws.sin.get(t));
        ops.rope(ws.dq.get_mut(t), cos, sin, dims.h, dims.d, Rotation::Backward);
        ops.rope(ws.dk.get_mut(t), cos, sin, dims.h_kv, dims.d, Rotation::Backward);

        let parts = [(Linear::Q, &ws.dq), (Linear::K, &ws.dk), (Linear::V, &ws.dv)];
        if parts.iter().any(|(linear, _)| self.is_trained((layer, *linear))) {
            // The normed rows were not kept: one pass over them costs less than holding them.
            self.norm_forward((layer, Norm::Input), ws.xn.get_mut(t), ws.inv_rms.get_mut(t), x);
            for ((linear, dy), du) in parts.iter().zip(&mut ws.du) {
                let given = (dy.get(t), ws.xn.get(t), &buffers.u[linear.index()]);
                self.linear_weight_gradients((layer, *linear), grads, du, given, &mut ws.dropped);
            }
        }
        if lowest.is_some() {
            return;
        }
        let dxn = ws.xn.get_mut(t);
        for (i, ((linear, dy), du)) in parts.iter().zip(&ws.du).enumerate() {
            let write = if i == 0 { Write::Replace } else { Write::Add };
            let place = (layer, *linear);
            self.linear_input_gradient(place, (&mut *dxn, write), dy.get(t), du, &mut ws.dropped);
        }
        let dx = (ws.dx.get_mut(t), Write::Add);
        self.norm_backward((layer, Norm::Input), dx, dxn, (x, buffers.input_inv_rms.get(t)));
    }
}
