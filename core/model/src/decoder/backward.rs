//! The pass down: from the gradient of the log-probabilities to the gradient of the adapter.
//!
//! The base is frozen, so only the gradient of the residual stream travels, and only as far down
//! as the lowest adapted layer; within that layer only as far as its lowest adapted module.

use forgelm_kernels_api::Write;

use super::{Decoder, Pass, Scored, Step, scatter_rows};
use crate::activations::{Activations, Keep, Stage};
use crate::names::Linear;

impl Decoder {
    /// Adds the gradient of `sum(dlogp * logp)` with respect to every adapter number to `grads`.
    ///
    /// `pass` and `scored` are those of [`Decoder::forward`] and [`Decoder::logprobs`] (or
    /// [`Decoder::logprobs_with_gradient`]), which came just before; `acts` is spent afterwards. Nothing is divided by anything: the caller scales
    /// once per optimizer step.
    ///
    /// Shapes: `dlogp` [R] read, `grads` as [`Adapter::params`](crate::Adapter::params), added to.
    ///
    /// # Panics
    /// If the passes before it are missing or kept nothing, or there is no adapter: bugs of the
    /// caller.
    pub fn backward(
        &self,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scored: Scored<'_>,
        dlogp: &[f32],
        grads: &mut [f32],
    ) {
        let adapter = pass.adapter.expect("backward needs an adapter");
        assert!(acts.keep != Keep::Nothing, "these activations keep nothing for backward");
        let n = dlogp.len();
        let scored_rows = acts.stage == Stage::Scored(n) || acts.stage == Stage::Differentiated(n);
        assert!(scored_rows, "forward and logprobs come first");
        assert_eq!(acts.n_tokens, pass.batch.tokens.len(), "another batch went forward");
        assert_eq!(grads.len(), adapter.params().len(), "grads is not the adapter's shape");
        let step = self.step(pass);
        self.head_backward(acts, scored, dlogp);
        let first = adapter.first_layer();
        for layer in (first..self.dims.l).rev() {
            let lowest = lowest_linear(&step, layer, first);
            if acts.keep == Keep::LayerInputs {
                step.forward_again(layer, pass, acts);
            }
            let (input, slot) = (acts.input(layer), acts.slot(layer));
            let buffers = &mut acts.layers[slot];
            if !step.mlp_backward((layer, lowest), buffers, &mut acts.ws, grads) {
                break;
            }
            let x = acts.inputs[input].get(step.t);
            step.attention_backward(
                (layer, lowest),
                pass.batch.segments,
                x,
                buffers,
                &mut acts.ws,
                grads,
            );
        }
        acts.stage = Stage::Empty;
    }

    /// Gradient of the residual stream after the last layer, into `ws.dx`.
    fn head_backward(&self, acts: &mut Activations, scored: Scored<'_>, dlogp: &[f32]) {
        let (n, t) = (dlogp.len(), acts.n_tokens);
        let head = &mut acts.head;
        if acts.stage == Stage::Differentiated(n) {
            let rows = head.dxn.get_mut(n).chunks_exact_mut(self.dims.c);
            for (row, &dlogp) in rows.zip(dlogp) {
                row.iter_mut().for_each(|d| *d *= dlogp);
            }
        } else {
            self.ops.token_logprobs_backward(
                head.dxn.get_mut(n),
                dlogp,
                head.lse.get(n),
                head.xn.get(n),
                self.weights.head(),
                scored.labels,
                None,
            );
        }
        self.ops.rms_norm_backward(
            head.dx.get_mut(n),
            head.dxn.get(n),
            head.x.get(n),
            head.inv_rms.get(n),
            &self.weights.final_norm,
            Write::Replace,
        );
        let dx = acts.ws.dx.get_mut(t);
        dx.fill(0.0);
        scatter_rows(dx, head.dx.get(n), scored.rows, self.dims.c);
    }
}

/// The lowest adapted module of the lowest adapted layer; `None` for layers above it.
fn lowest_linear(step: &Step<'_>, layer: usize, first: usize) -> Option<Linear> {
    let adapted = |linear: &Linear| step.adapted(layer, *linear).is_some();
    if layer > first { None } else { Linear::ALL.into_iter().find(adapted) }
}

impl Step<'_> {
    /// Fills the shared buffers with what `layer` computed in the forward pass.
    fn forward_again(&self, layer: usize, pass: &Pass<'_>, acts: &mut Activations) {
        let (input, slot) = (acts.input(layer), acts.slot(layer));
        let buffers = &mut acts.layers[slot];
        let x = acts.inputs[input].get(self.t);
        self.attention_forward(layer, pass.batch.segments, x, buffers, &mut acts.ws);
        self.mlp_forward(layer, buffers, &mut acts.ws, None);
    }
}
