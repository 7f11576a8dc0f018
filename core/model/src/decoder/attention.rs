//! The attention half of a layer: `x_mid = x + O(attention(rope(Q(n)), rope(K(n)), V(n)))` with
//! `n = norm(x)`. Options: one matrix for Q, K and V; a norm over each query and key head before
//! the rotation; a norm over the half's result before it is added.

use forgelm_kernels_api::{Rotation, Segment, Slice, Write};

use super::grads::Grads;
use super::{Step, join_columns, split_columns};
use crate::activations::{LayerBuffers, Workspace};
use crate::names::{Linear, Norm};

impl Step<'_> {
    /// Norm, projections and rotation.
    ///
    /// Shapes: `x` [T, C] read; writes `q`, `k`, `v` of `buffers`.
    pub(super) fn project(
        &self,
        layer: usize,
        x: Slice<'_>,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
    ) {
        let (t, decoder, ops) = (self.t, self.decoder, &self.decoder.ops);
        let options = &decoder.config.attention;
        let inv_rms = buffers.input_inv_rms.get_mut(t);
        self.norm_forward((layer, Norm::Input), ws.xn.get_mut(t), inv_rms, x);
        let xn = ws.xn.get(t);
        // What is normed before it is rotated goes through buffers of its own.
        let (q, k) = match options.qk_norm {
            true => (&mut buffers.raw_q, &mut buffers.raw_k),
            false => (&mut buffers.q, &mut buffers.k),
        };
        if options.is_fused {
            let u = &mut buffers.u[Linear::Qkv.index()];
            let y = (ws.qkv.get_mut(t), Write::Replace);
            self.linear_forward((layer, Linear::Qkv), y, xn, u, &mut ws.dropped);
            let parts = [q.get_mut(t), k.get_mut(t), buffers.v.get_mut(t)];
            split_columns(ops.as_ref(), parts, ws.qkv.get(t), t);
        } else {
            for (linear, y) in [(Linear::Q, q), (Linear::K, k), (Linear::V, &mut buffers.v)] {
                let y = (y.get_mut(t), Write::Replace);
                let u = &mut buffers.u[linear.index()];
                self.linear_forward((layer, linear), y, xn, u, &mut ws.dropped);
            }
        }
        let ((cos, sin), dims) = (self.tables(layer, ws), &decoder.dims);
        if options.qk_norm {
            let heads = [
                (Norm::Query, &mut buffers.q, &mut buffers.q_inv_rms, &buffers.raw_q, dims.h),
                (Norm::Key, &mut buffers.k, &mut buffers.k_inv_rms, &buffers.raw_k, dims.h_kv),
            ];
            for (norm, y, inv_rms, x, n_heads) in heads {
                let (y, inv_rms) = (y.get_mut(t), inv_rms.get_mut(t));
                let (weight, eps) = (self.norm_weight((layer, norm)), decoder.config.rms_norm_eps);
                ops.rms_norm_rope(y, inv_rms, x.get(t), weight, eps, cos, sin, n_heads);
            }
            return;
        }
        ops.rope(buffers.q.get_mut(t), cos, sin, dims.h, dims.d, Rotation::Forward);
        ops.rope(buffers.k.get_mut(t), cos, sin, dims.h_kv, dims.d, Rotation::Forward);
    }

    /// Cosines and sines of a layer.
    fn tables<'b>(&self, layer: usize, ws: &'b Workspace) -> (Slice<'b>, Slice<'b>) {
        let decoder = self.decoder;
        if decoder.local_rotary.is_some() && decoder.config.is_windowed(layer) {
            return (ws.local_cos.get(self.t), ws.local_sin.get(self.t));
        }
        (ws.cos.get(self.t), ws.sin.get(self.t))
    }

    /// Output projection and residual.
    ///
    /// Shapes: `x` [T, C] read; writes `x_mid` of `buffers`.
    pub(super) fn project_output(
        &self,
        layer: usize,
        x: Slice<'_>,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
    ) {
        let (t, place) = (self.t, (layer, Linear::O));
        let (mut x_mid, attn) = (buffers.x_mid.get_mut(t), buffers.attn.get(t));
        self.decoder.ops.copy(x_mid.reborrow(), x);
        let u = &mut buffers.u[Linear::O.index()];
        if !self.decoder.config.norms.post_norms {
            self.linear_forward(place, (x_mid, Write::Add), attn, u, &mut ws.dropped);
            return;
        }
        let y = (buffers.attn_out.get_mut(t), Write::Replace);
        self.linear_forward(place, y, attn, u, &mut ws.dropped);
        let (y, inv_rms) = (ws.xn.get_mut(t), buffers.attn_out_inv_rms.get_mut(t));
        self.norm_forward((layer, Norm::PostAttention), y, inv_rms, buffers.attn_out.get(t));
        self.decoder.ops.add(x_mid, ws.xn.get(t));
    }

    /// The whole half.
    pub(super) fn attention_forward(
        &self,
        layer: usize,
        segments: &[Segment],
        x: Slice<'_>,
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
            &self.decoder.attention_shape(layer),
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
        x: Slice<'_>,
        buffers: &LayerBuffers,
        ws: &mut Workspace,
        grads: &mut Grads<'_>,
    ) {
        let (t, decoder, ops) = (self.t, self.decoder, &self.decoder.ops);
        let (attn, dims) = (buffers.attn.get(t), &decoder.dims);
        let options = &decoder.config.attention;

        if decoder.config.norms.post_norms {
            let given = (buffers.attn_out.get(t), buffers.attn_out_inv_rms.get(t));
            let dbranch = (ws.dbranch.get_mut(t), Write::Replace);
            self.norm_backward((layer, Norm::PostAttention), grads, dbranch, ws.dx.get(t), given);
        }
        let dy = if decoder.config.norms.post_norms { ws.dbranch.get(t) } else { ws.dx.get(t) };
        let place = (layer, Linear::O);
        let given = (dy, attn, &buffers.u[Linear::O.index()]);
        self.linear_weight_gradients(place, grads, &mut ws.du[0], given, &mut ws.dropped);
        if lowest == Some(Linear::O) {
            return;
        }
        let dattn = (ws.dattn.get_mut(t), Write::Replace);
        self.linear_input_gradient(place, dattn, dy, &ws.du[0], &mut ws.dropped);

        ops.attention_backward(
            ws.dq.get_mut(t),
            ws.dk.get_mut(t),
            ws.dv.get_mut(t),
            ws.dattn.get(t),
            attn,
            buffers.lse.get(t),
            buffers.q.get(t),
            buffers.k.get(t),
            buffers.v.get(t),
            &decoder.attention_shape(layer),
            segments,
        );
        let (mut dq, mut dk) = (std::mem::take(&mut ws.dq), std::mem::take(&mut ws.dk));
        let (cos, sin) = self.tables(layer, ws);
        ops.rope(dq.get_mut(t), cos, sin, dims.h, dims.d, Rotation::Backward);
        ops.rope(dk.get_mut(t), cos, sin, dims.h_kv, dims.d, Rotation::Backward);
        (ws.dq, ws.dk) = (dq, dk);
        if options.qk_norm {
            self.head_norms_backward(layer, buffers, ws, grads);
        }
        if options.is_fused {
            let parts = [ws.dq.get(t), ws.dk.get(t), ws.dv.get(t)];
            join_columns(ops.as_ref(), ws.qkv.get_mut(t), parts, t);
        }

        let fused = [(Linear::Qkv, &ws.qkv)];
        let apart = [(Linear::Q, &ws.dq), (Linear::K, &ws.dk), (Linear::V, &ws.dv)];
        let parts = if options.is_fused { &fused[..] } else { &apart[..] };
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
        for (i, ((linear, dy), du)) in parts.iter().zip(&ws.du).enumerate() {
            let dxn = (ws.xn.get_mut(t), if i == 0 { Write::Replace } else { Write::Add });
            self.linear_input_gradient((layer, *linear), dxn, dy.get(t), du, &mut ws.dropped);
        }
        let (dx, dxn) = ((ws.dx.get_mut(t), Write::Add), ws.xn.get(t));
        self.norm_backward((layer, Norm::Input), grads, dx, dxn, (x, buffers.input_inv_rms.get(t)));
    }

    /// Gradients of `ws.dq` and `ws.dk` through the norms of the heads, in place.
    fn head_norms_backward(
        &self,
        layer: usize,
        buffers: &LayerBuffers,
        ws: &mut Workspace,
        grads: &mut Grads<'_>,
    ) {
        let t = self.t;
        let heads = [
            (Norm::Query, &mut ws.dq, &buffers.raw_q, &buffers.q_inv_rms),
            (Norm::Key, &mut ws.dk, &buffers.raw_k, &buffers.k_inv_rms),
        ];
        for (norm, dy, x, inv_rms) in heads {
            let dy = dy.get_mut(t);
            // The gradient of attention's output was read; its buffer is the larger of the two.
            let mut dx = ws.dattn.get_mut(t).part(0..dy.len());
            let (given, to) = ((x.get(t), inv_rms.get(t)), (dx.reborrow(), Write::Replace));
            self.norm_backward((layer, norm), grads, to, dy.as_slice(), given);
            self.decoder.ops.copy(dy, dx.as_slice());
        }
    }
}
