//! The mixture of experts in the place of an MLP:
//! `x_out = x_mid + sum_e w_e Down_e(act(Gate_e(n)) * Up_e(n))` over the chosen experts of each
//! row, with `n = norm(x_mid)`, and beside it, in some families, an expert for every row whose
//! result is multiplied by `sigmoid(g n)`.
//!
//! The rows of an expert are gathered, so that its products are as large as they can be. A factor
//! on a result is put on the input of `Down`, which is linear: its gradient is then a dot product
//! of two rows that are at hand, and the results themselves are not kept.

use forgelm_kernels_api::{SliceMut, Write};

use super::Step;
use super::grads::Grads;
use super::routing::OfExpert;
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
        mut out: Option<SliceMut<'_>>,
    ) {
        let (t, e) = (self.t, experts.num_experts);
        let ops = &self.decoder.ops;
        let u = &mut buffers.u[Linear::Router.index()];
        let y = (buffers.probs.get_mut(t), Write::Replace);
        self.linear_forward((layer, Linear::Router), y, ws.xn.get(t), u, &mut ws.dropped);
        ops.softmax_rows(buffers.probs.get_mut(t), e);
        let balance = out.is_some().then_some(&mut ws.balance);
        let given = (experts, self.dropout_keys());
        ws.routing.choose(ops.as_ref(), buffers.probs.get(t), given, balance);
        if let Some(out) = &mut out {
            ops.copy(out.reborrow(), buffers.x_mid.get(t));
        }
        for expert in 0..e {
            let out = out.as_mut().map(SliceMut::reborrow);
            self.expert_forward((layer, expert), buffers, ws, out);
        }
        if experts.shared_intermediate_size.is_some() {
            self.shared_expert_forward(layer, buffers, ws, out);
        }
    }

    /// Names of the rows, where there is dropout that needs them.
    fn dropout_keys(&self) -> &[u64] {
        if self.dropout.is_some() { self.row_keys } else { &[] }
    }

    /// One expert over its rows.
    fn expert_forward(
        &self,
        (layer, expert): (usize, usize),
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        out: Option<SliceMut<'_>>,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let range = ws.routing.range(expert);
        let (n, f) = (range.len(), self.decoder.dims.f_expert);
        if n == 0 {
            return;
        }
        let OfExpert { rows, weights, row_keys, .. } = ws.routing.of(range.clone());
        let step = Step { t: n, row_keys, ..*self };
        let space = &mut ws.experts;
        ops.gather_rows(space.x.get_mut(n), ws.xn.get(t), rows);
        let at = range.start * f..range.end * f;
        let mut gate = buffers.expert_gate.get_mut(t).part(at.clone());
        let mut up = buffers.expert_up.get_mut(t).part(at);
        for (part, y) in [(ExpertPart::Gate, &mut gate), (ExpertPart::Up, &mut up)] {
            let place = (layer, Linear::Expert(expert as u16, part));
            let (y, x) = ((y.reborrow(), Write::Replace), space.x.get(n));
            step.linear_forward(place, y, x, &mut space.u, &mut ws.dropped);
        }
        let Some(out) = out else { return };
        let mut h = space.h.get_mut(n);
        let act = self.decoder.config.mlp.act;
        ops.glu_forward(h.reborrow(), gate.as_slice(), up.as_slice(), act);
        ops.scale_rows(h.reborrow(), weights);
        let place = (layer, Linear::Expert(expert as u16, ExpertPart::Down));
        // The gathered rows were read: their place takes the result.
        let y = (space.x.get_mut(n), Write::Replace);
        step.linear_forward(place, y, h.as_slice(), &mut space.u, &mut ws.dropped);
        ops.scatter_rows(out, space.x.get(n), rows);
    }

    /// The expert of every row.
    fn shared_expert_forward(
        &self,
        layer: usize,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        out: Option<SliceMut<'_>>,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let outputs = [
            (Linear::SharedGate, &mut buffers.shared_gate),
            (Linear::SharedUp, &mut buffers.shared_up),
            (Linear::SharedExpertGate, &mut buffers.shared_score),
        ];
        for (linear, y) in outputs {
            let u = &mut buffers.u[linear.index()];
            let y = (y.get_mut(t), Write::Replace);
            self.linear_forward((layer, linear), y, ws.xn.get(t), u, &mut ws.dropped);
        }
        let place = (layer, Linear::SharedDown);
        if out.is_none() && !self.is_trained(place) {
            return;
        }
        let mut h = ws.experts.shared_h.get_mut(t);
        let (gate, up) = (buffers.shared_gate.get(t), buffers.shared_up.get(t));
        ops.glu_forward(h.reborrow(), gate, up, self.decoder.config.mlp.act);
        ops.sigmoid_gate_forward(h.reborrow(), buffers.shared_score.get(t));
        let h = h.as_slice();
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
        let ops = self.decoder.ops.as_ref();
        let given = (experts, self.dropout_keys());
        ws.routing.choose(ops, buffers.probs.get(t), given, None);
        ops.fill(ws.experts.dxn.get_mut(t), 0.0);
        for expert in 0..experts.num_experts {
            self.expert_backward((layer, expert), buffers, ws, grads);
        }
        if experts.shared_intermediate_size.is_some() {
            self.shared_expert_backward(layer, buffers, ws, grads);
        }
        let balance = ws.balance.gradient();
        let dscores = ws.experts.dscores.get_mut(t);
        ws.routing.backward(ops, dscores, buffers.probs.get(t), balance, experts);
        let (dscores, xn, du) = (ws.experts.dscores.get(t), ws.xn.get(t), &mut ws.du[0]);
        let place = (layer, Linear::Router);
        let given = (dscores, xn, &buffers.u[Linear::Router.index()]);
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
        let (t, ops) = (self.t, &self.decoder.ops);
        let range = ws.routing.range(expert);
        let (n, f) = (range.len(), self.decoder.dims.f_expert);
        if n == 0 {
            return;
        }
        let OfExpert { rows, weights, dweights, row_keys } = ws.routing.of(range.clone());
        let step = Step { t: n, row_keys, ..*self };
        let ExpertSpace { x, dy, h, scaled_h, dh, u, dxn, .. } = &mut ws.experts;
        ops.gather_rows(x.get_mut(n), ws.xn.get(t), rows);
        ops.gather_rows(dy.get_mut(n), ws.dx.get(t), rows);
        let dy = dy.get(n);
        let at = range.start * f..range.end * f;
        let mut gate = buffers.expert_gate.get_mut(t).part(at.clone());
        let mut up = buffers.expert_up.get_mut(t).part(at);
        let act = self.decoder.config.mlp.act;
        ops.glu_forward(h.get_mut(n), gate.as_slice(), up.as_slice(), act);
        ops.copy(scaled_h.get_mut(n), h.get(n));
        ops.scale_rows(scaled_h.get_mut(n), weights);
        let (h, scaled) = (h.get(n), scaled_h.get(n));

        let part = |part| (layer, Linear::Expert(expert as u16, part));
        let [du_gate, du_up, _] = &mut ws.du;
        let place = part(ExpertPart::Down);
        if self.is_trained(place) {
            step.linear_kept(place, scaled, u, &mut ws.dropped);
            step.linear_weight_gradients(place, grads, du_gate, (dy, scaled, u), &mut ws.dropped);
        }
        let write = (dh.get_mut(n), Write::Replace);
        step.linear_input_gradient(place, write, dy, du_gate, &mut ws.dropped);
        ops.row_dots(dweights, h, dh.get(n));
        ops.scale_rows(dh.get_mut(n), weights);
        ops.glu_backward(gate.reborrow(), up.reborrow(), dh.get(n), act);
        let (gate, up) = (gate.as_slice(), up.as_slice());
        for (which, dy, du) in
            [(ExpertPart::Gate, gate, &mut *du_gate), (ExpertPart::Up, up, &mut *du_up)]
        {
            let (place, x) = (part(which), x.get(n));
            if self.is_trained(place) {
                step.linear_kept(place, x, u, &mut ws.dropped);
                step.linear_weight_gradients(place, grads, du, (dy, x, u), &mut ws.dropped);
            }
        }
        // The gathered rows were read: their place takes their gradient.
        let gate = (part(ExpertPart::Gate), gate, &*du_gate, Write::Replace);
        for (place, dy, du, write) in [gate, (part(ExpertPart::Up), up, &*du_up, Write::Add)] {
            step.linear_input_gradient(place, (x.get_mut(n), write), dy, du, &mut ws.dropped);
        }
        ops.scatter_rows(dxn.get_mut(t), x.get(n), rows);
    }

    /// The expert of every row: adds to `ws.experts.dxn`.
    fn shared_expert_backward(
        &self,
        layer: usize,
        buffers: &mut LayerBuffers,
        ws: &mut Workspace,
        grads: &mut Grads<'_>,
    ) {
        let (t, ops, act) = (self.t, &self.decoder.ops, self.decoder.config.mlp.act);
        let ExpertSpace { shared_h: h, shared_dh: dh, dxn, .. } = &mut ws.experts;
        ops.glu_forward(h.get_mut(t), buffers.shared_gate.get(t), buffers.shared_up.get(t), act);
        let dy = ws.dx.get(t);
        let place = (layer, Linear::SharedDown);
        let du = &mut ws.du[0];
        if self.is_trained(place) {
            ops.copy(dh.get_mut(t), h.get(t));
            ops.sigmoid_gate_forward(dh.get_mut(t), buffers.shared_score.get(t));
            let given = (dy, dh.get(t), &buffers.u[Linear::SharedDown.index()]);
            self.linear_weight_gradients(place, grads, du, given, &mut ws.dropped);
        }
        let write = (dh.get_mut(t), Write::Replace);
        self.linear_input_gradient(place, write, dy, du, &mut ws.dropped);
        // The score's place holds its gradient from here on.
        ops.sigmoid_gate_backward(dh.get_mut(t), buffers.shared_score.get_mut(t), h.get(t));
        let (gate, up) = (buffers.shared_gate.get_mut(t), buffers.shared_up.get_mut(t));
        ops.glu_backward(gate, up, dh.get(t), act);
        let parts = [
            (Linear::SharedGate, &buffers.shared_gate),
            (Linear::SharedUp, &buffers.shared_up),
            (Linear::SharedExpertGate, &buffers.shared_score),
        ];
        for (linear, dy) in parts {
            let (place, du, dy) = ((layer, linear), &mut ws.du[0], dy.get(t));
            let given = (dy, ws.xn.get(t), &buffers.u[linear.index()]);
            self.linear_weight_gradients(place, grads, du, given, &mut ws.dropped);
            let dx = (dxn.get_mut(t), Write::Add);
            self.linear_input_gradient(place, dx, dy, du, &mut ws.dropped);
        }
    }
}
