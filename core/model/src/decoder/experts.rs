//! The mixture of experts in the place of an MLP:
//! `x_out = x_mid + sum_e w_e Down_e(act(Gate_e(n)) * Up_e(n))` over the chosen experts of each
//! row, with `n = norm(x_mid)`, and beside it, in some families, an expert for every row whose
//! result is multiplied by `sigmoid(g n)`.
//!
//! The rows of an expert are gathered, so that its products are as large as they can be. A factor
//! on a result is put on the input of `Down`, which is linear: its gradient is then a dot product
//! of two rows that are at hand, and the results themselves are not kept.

use forgelm_kernels_api::Write;

use super::grads::Grads;
use super::routing::softmax_rows;
use super::{Step, gather_rows, scatter_rows};
use crate::activations::{ExpertSpace, LayerBuffers, Workspace};
use crate::config::Experts;
use crate::names::{ExpertPart, Linear};

impl Step<'_> {
    /// The whole half after its norm; without `out` only what backward reads is computed again.
    ///
    /// Shapes: `out` [T, C] written.
    pub(super) fn experts_forward(
        &self,
        (layer, experts): (usize, &Experts),
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        mut out: Option<&mut [f32]>,
    ) {
        let (t, e) = (self.t, experts.num_experts);
        let probs = buffers.probs.get_mut(t);
        let u = &mut buffers.u[Linear::Router.index()];
        let y = (&mut *probs, Write::Replace);
        self.linear_forward((layer, Linear::Router), y, ws.xn.get(t), u, &mut ws.dropped);
        softmax_rows(probs, e);
        ws.routing.choose(probs, experts);
        if let Some(out) = out.as_deref_mut() {
            ws.balance.add(&ws.routing, probs, e);
            out.copy_from_slice(buffers.x_mid.get(t));
        }
        for expert in 0..e {
            self.expert_forward((layer, expert), buffers, ws, out.as_deref_mut());
        }
        if experts.shared_intermediate_size.is_some() {
            self.shared_expert_forward(layer, buffers, ws, out);
        }
    }

    /// One expert over its rows.
    fn expert_forward(
        &self,
        (layer, expert): (usize, usize),
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        out: Option<&mut [f32]>,
    ) {
        let (t, dims, ops) = (self.t, &self.decoder.dims, &self.decoder.ops);
        let range = ws.routing.range(expert);
        let (n, f) = (range.len(), dims.f_expert);
        if n == 0 {
            return;
        }
        ws.routing.take_keys(range.clone(), self.row_keys);
        let step = Step { t: n, row_keys: &ws.routing.keys, ..*self };
        let (rows, space) = (ws.routing.rows(range.clone()), &mut ws.experts);
        let x = space.x.get_mut(n);
        gather_rows(x, ws.xn.get(t), rows, dims.c);
        let at = range.start * f..range.end * f;
        let gate = &mut buffers.expert_gate.get_mut(t)[at.clone()];
        let up = &mut buffers.expert_up.get_mut(t)[at];
        for (part, y) in [(ExpertPart::Gate, &mut *gate), (ExpertPart::Up, &mut *up)] {
            let place = (layer, Linear::Expert(expert as u16, part));
            step.linear_forward(place, (y, Write::Replace), x, &mut space.u, &mut ws.dropped);
        }
        let Some(out) = out else { return };
        let h = space.h.get_mut(n);
        ops.glu_forward(h, gate, up, self.decoder.config.mlp.act);
        scale_rows(h, ws.routing.weights(range), f);
        let (place, y) = ((layer, Linear::Expert(expert as u16, ExpertPart::Down)), x);
        let write = (&mut *y, Write::Replace);
        step.linear_forward(place, write, h, &mut space.u, &mut ws.dropped);
        scatter_rows(out, y, rows, dims.c);
    }

    /// The expert of every row.
    fn shared_expert_forward(
        &self,
        layer: usize,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        out: Option<&mut [f32]>,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let (gate, up) = (buffers.shared_gate.get_mut(t), buffers.shared_up.get_mut(t));
        let scores = buffers.shared_score.get_mut(t);
        let outputs = [
            (Linear::SharedGate, &mut *gate),
            (Linear::SharedUp, &mut *up),
            (Linear::SharedExpertGate, &mut *scores),
        ];
        for (linear, y) in outputs {
            let u = &mut buffers.u[linear.index()];
            let y = (y, Write::Replace);
            self.linear_forward((layer, linear), y, ws.xn.get(t), u, &mut ws.dropped);
        }
        let place = (layer, Linear::SharedDown);
        if out.is_none() && !self.is_trained(place) {
            return;
        }
        let h = ws.experts.shared_h.get_mut(t);
        ops.glu_forward(h, gate, up, self.decoder.config.mlp.act);
        let f = self.decoder.dims.f_shared;
        for (h, score) in h.chunks_exact_mut(f).zip(scores) {
            let factor = sigmoid(*score);
            h.iter_mut().for_each(|h| *h *= factor);
        }
        let u = &mut buffers.u[Linear::SharedDown.index()];
        match out {
            Some(out) => self.linear_forward(place, (out, Write::Add), h, u, &mut ws.dropped),
            None => self.linear_kept(place, h, u, &mut ws.dropped),
        }
    }

    /// Gradients of the half. `ws.dx` holds the gradient of the layer's output, `ws.xn` the normed
    /// rows; leaves the gradient of the normed rows in `ws.experts.dxn`.
    ///
    /// Shapes: `grads` as the adapter's buffer, added to.
    pub(super) fn experts_backward(
        &self,
        (layer, experts): (usize, &Experts),
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        grads: &mut Grads<'_>,
    ) {
        let t = self.t;
        ws.routing.choose(buffers.probs.get(t), experts);
        ws.experts.dxn.get_mut(t).fill(0.0);
        for expert in 0..experts.num_experts {
            self.expert_backward((layer, expert), buffers, ws, grads);
        }
        if experts.shared_intermediate_size.is_some() {
            self.shared_expert_backward(layer, buffers, ws, grads);
        }
        let dscores = ws.experts.dscores.get_mut(t);
        let balance = ws.balance.gradient();
        ws.routing.backward(dscores, buffers.probs.get(t), balance, experts);
        let (xn, du) = (ws.xn.get(t), &mut ws.du[0]);
        let place = (layer, Linear::Router);
        let given = (&*dscores, xn, &buffers.u[Linear::Router.index()]);
        self.linear_weight_gradients(place, grads, du, given, &mut ws.dropped);
        let dx = (ws.experts.dxn.get_mut(t), Write::Add);
        self.linear_input_gradient(place, dx, dscores, du, &mut ws.dropped);
    }

    /// One expert over its rows: adds to `ws.experts.dxn` and fills its part of the gradients of
    /// the factors.
    fn expert_backward(
        &self,
        (layer, expert): (usize, usize),
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        grads: &mut Grads<'_>,
    ) {
        let (t, dims, ops) = (self.t, &self.decoder.dims, &self.decoder.ops);
        let range = ws.routing.range(expert);
        let (n, f, c) = (range.len(), dims.f_expert, dims.c);
        if n == 0 {
            return;
        }
        ws.routing.take_keys(range.clone(), self.row_keys);
        let step = Step { t: n, row_keys: &ws.routing.keys, ..*self };
        let rows = ws.routing.rows(range.clone());
        let ExpertSpace { x, dy, h, scaled_h, dh, u, dxn, .. } = &mut ws.experts;
        let (x, dy) = (x.get_mut(n), dy.get_mut(n));
        gather_rows(x, ws.xn.get(t), rows, c);
        gather_rows(dy, ws.dx.get(t), rows, c);
        let at = range.start * f..range.end * f;
        let gate = &mut buffers.expert_gate.get_mut(t)[at.clone()];
        let up = &mut buffers.expert_up.get_mut(t)[at];
        let (h, scaled, dh) = (h.get_mut(n), scaled_h.get_mut(n), dh.get_mut(n));
        ops.glu_forward(h, gate, up, self.decoder.config.mlp.act);
        scaled.copy_from_slice(h);
        let weights = ws.routing.weights(range.clone());
        scale_rows(scaled, weights, f);

        let part = |part| (layer, Linear::Expert(expert as u16, part));
        let [du_gate, du_up, _] = &mut ws.du;
        let place = part(ExpertPart::Down);
        if self.is_trained(place) {
            step.linear_kept(place, scaled, u, &mut ws.dropped);
            step.linear_weight_gradients(place, grads, du_gate, (dy, scaled, u), &mut ws.dropped);
        }
        let write = (&mut *dh, Write::Replace);
        step.linear_input_gradient(place, write, dy, du_gate, &mut ws.dropped);
        let pairs = h.chunks_exact(f).zip(dh.chunks_exact(f));
        let dweights: Vec<f32> =
            pairs.map(|(h, dh)| h.iter().zip(dh).map(|(a, b)| a * b).sum()).collect();
        scale_rows(dh, weights, f);
        ops.glu_backward(gate, up, dh, self.decoder.config.mlp.act);
        for (which, dy, du) in
            [(ExpertPart::Gate, &*gate, &mut *du_gate), (ExpertPart::Up, &*up, &mut *du_up)]
        {
            let place = part(which);
            if self.is_trained(place) {
                step.linear_kept(place, x, u, &mut ws.dropped);
                step.linear_weight_gradients(place, grads, du, (dy, x, u), &mut ws.dropped);
            }
        }
        let dx = x;
        let gate = (part(ExpertPart::Gate), &*gate, &*du_gate, Write::Replace);
        for (place, dy, du, write) in [gate, (part(ExpertPart::Up), &*up, &*du_up, Write::Add)] {
            step.linear_input_gradient(place, (&mut *dx, write), dy, du, &mut ws.dropped);
        }
        scatter_rows(dxn.get_mut(t), dx, rows, c);
        ws.routing.dweights[range].copy_from_slice(&dweights);
    }

    /// The expert of every row: adds to `ws.experts.dxn`.
    fn shared_expert_backward(
        &self,
        layer: usize,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        grads: &mut Grads<'_>,
    ) {
        let (t, f, ops) = (self.t, self.decoder.dims.f_shared, &self.decoder.ops);
        let act = self.decoder.config.mlp.act;
        let (gate, up) = (buffers.shared_gate.get_mut(t), buffers.shared_up.get_mut(t));
        let scores = buffers.shared_score.get_mut(t);
        let ExpertSpace { shared_h, shared_dh, dxn, .. } = &mut ws.experts;
        let (h, dh, dxn) = (shared_h.get_mut(t), shared_dh.get_mut(t), dxn.get_mut(t));
        ops.glu_forward(h, gate, up, act);
        let dy = ws.dx.get(t);
        let place = (layer, Linear::SharedDown);
        let du = &mut ws.du[0];
        if self.is_trained(place) {
            let scaled = &mut *dh;
            for ((scaled, h), score) in
                scaled.chunks_exact_mut(f).zip(h.chunks_exact(f)).zip(&*scores)
            {
                let factor = sigmoid(*score);
                scaled.iter_mut().zip(h).for_each(|(scaled, h)| *scaled = factor * h);
            }
            let given = (dy, &*scaled, &buffers.u[Linear::SharedDown.index()]);
            self.linear_weight_gradients(place, grads, du, given, &mut ws.dropped);
        }
        self.linear_input_gradient(place, (&mut *dh, Write::Replace), dy, du, &mut ws.dropped);
        for ((dh, h), score) in dh.chunks_exact_mut(f).zip(h.chunks_exact(f)).zip(&mut *scores) {
            let factor = sigmoid(*score);
            let dfactor: f32 = dh.iter().zip(h).map(|(dh, h)| dh * h).sum();
            dh.iter_mut().for_each(|dh| *dh *= factor);
            // The score's place holds its gradient from here on.
            *score = dfactor * factor * (1.0 - factor);
        }
        ops.glu_backward(gate, up, dh, act);
        let parts = [
            (Linear::SharedGate, &*gate),
            (Linear::SharedUp, &*up),
            (Linear::SharedExpertGate, &*scores),
        ];
        for (linear, dy) in parts {
            let (place, du) = ((layer, linear), &mut ws.du[0]);
            let given = (dy, ws.xn.get(t), &buffers.u[linear.index()]);
            self.linear_weight_gradients(place, grads, du, given, &mut ws.dropped);
            let dx = (&mut *dxn, Write::Add);
            self.linear_input_gradient(place, dx, dy, du, &mut ws.dropped);
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Multiplies each row by its factor.
///
/// Shapes: `x` [R, F] changed, `factors` [R] read.
fn scale_rows(x: &mut [f32], factors: &[f32], f: usize) {
    for (row, factor) in x.chunks_exact_mut(f).zip(factors) {
        row.iter_mut().for_each(|v| *v *= factor);
    }
}
