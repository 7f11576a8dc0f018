//! The pass down: from the gradient of the log-probabilities to the gradient of what trains.
//!
//! Where the base is frozen, only the gradient of the residual stream travels, and only as far down
//! as the lowest layer in which something trains; within that layer only as far as its lowest
//! trained module.

use forgelm_kernels_api::{SliceMut, Write};

use super::grads::Grads;
use super::{Decoder, Pass, Scored, Step};
use crate::activations::{Activations, Keep, Stage};
use crate::names::Role;
use crate::parts::Passage;
use crate::trainable::Trainable;

impl Decoder {
    /// Adds the gradient of `sum(dlogp * logp)` with respect to every trainable number to
    /// `grads`.
    ///
    /// `pass` and `scored` are those of [`Decoder::forward`] and [`Decoder::logprobs`] (or
    /// [`Decoder::logprobs_with_gradient`]), which came just before; `acts` is spent afterwards. Nothing is divided by anything: the caller scales
    /// once per optimizer step.
    ///
    /// Shapes: `dlogp` [R] read, `grads` as
    /// [`Trainable::params`](crate::Trainable::params), added to.
    ///
    /// # Panics
    /// If the passes before it are missing or kept nothing, or nothing trains: bugs of the caller.
    pub fn backward<'g>(
        &self,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scored: Scored<'_>,
        dlogp: &[f32],
        grads: impl Into<SliceMut<'g>>,
    ) {
        let grads = grads.into();
        let trainable = pass.adapter.expect("backward needs something that trains");
        assert_eq!(grads.len(), trainable.n_params(), "grads is not the numbers' shape");
        self.check_backward(pass, acts, dlogp.len());
        let (step, mut grads) = (self.step(pass), Grads::Whole(grads));
        self.head_backward(trainable, acts, (scored, dlogp), &mut grads);
        let mut layers = (trainable.first_layer()..self.dims.l).rev();
        // A layer in which the pass may end is the lowest.
        while layers.next().is_some_and(|l| step.layer_backward(l, pass, acts, &mut grads)) {}
        self.embedding_backward(pass, acts, &mut grads);
        acts.stage = Stage::Empty;
    }

    /// Panics when the passes before backward are missing.
    pub(super) fn check_backward(&self, pass: &Pass<'_>, acts: &Activations, n: usize) {
        assert!(acts.keep != Keep::Nothing, "these activations keep nothing for backward");
        let scored_rows = acts.stage == Stage::Scored(n) || acts.stage == Stage::Differentiated(n);
        assert!(scored_rows, "forward and logprobs come first");
        assert_eq!(acts.n_tokens, pass.batch.tokens.len(), "another batch went forward");
    }

    /// The gradient of the embedding, where it trains, from that of the residual stream below the
    /// first layer.
    pub(super) fn embedding_backward(
        &self,
        pass: &Pass<'_>,
        acts: &mut Activations,
        grads: &mut Grads<'_>,
    ) {
        let range = pass.adapter.and_then(|trainable| trainable.range(Role::Embedding));
        let Some(range) = range else { return };
        let mut dx = acts.ws.dx.get_mut(pass.batch.tokens.len());
        if let Some(scale) = self.config.embedding_scale {
            self.ops.scale(dx.reborrow(), scale);
        }
        self.ops.embedding_backward(grads.of(range), dx.as_slice(), pass.batch.tokens);
    }

    /// Says how much the balance loss of experts counts in the next backward pass: where a router
    /// trains, `router_aux_loss_coef` beside the mean of the terms, of which this pass has
    /// `n_terms`; not at all where none trains. The balance is that of one pass, and a step of
    /// several passes has the mean of theirs, weighted by their terms.
    pub fn weigh_balance(&self, trainable: &Trainable, n_terms: u64, acts: &mut Activations) {
        let experts = self.config.experts.as_ref().filter(|_| trainable.trains_router());
        let coefficient = experts.map_or(0.0, |experts| experts.router_aux_loss_coef);
        acts.ws.balance.weight = coefficient * n_terms as f32;
    }

    /// Gradient of the residual stream after the last layer, into `ws.dx`, and those of the head
    /// and the last norm where they train.
    pub(super) fn head_backward(
        &self,
        trainable: &Trainable,
        acts: &mut Activations,
        (scored, dlogp): (Scored<'_>, &[f32]),
        grads: &mut Grads<'_>,
    ) {
        let (n, t) = (dlogp.len(), acts.n_tokens);
        let head = &mut acts.head;
        // Formed in the pass up already, the gradient of the rows needs no head.
        let is_formed = acts.stage == Stage::Differentiated(n);
        let range = trainable.range(Role::Head);
        let head_weight = (!is_formed || range.is_some()).then(|| self.head(Some(trainable)));
        if let Some((range, head_weight)) = range.zip(head_weight.as_deref()) {
            self.ops.token_logprobs_head_backward(
                grads.of(range),
                dlogp.into(),
                head.lse.get(n),
                head.xn.get(n),
                head_weight,
                scored.labels,
                self.config.final_soft_cap,
            );
        }
        if is_formed {
            self.ops.scale_rows(head.dxn.get_mut(n), dlogp.into());
        } else if let Some(head_weight) = head_weight.as_deref() {
            self.ops.token_logprobs_backward(
                head.dxn.get_mut(n),
                dlogp.into(),
                head.lse.get(n),
                head.xn.get(n),
                head_weight,
                scored.labels,
                self.config.final_soft_cap,
            );
        }
        if let Some(range) = trainable.range(Role::FinalNorm) {
            let (dxn, x) = (head.dxn.get(n), head.x.get(n));
            self.ops.rms_norm_weight_backward(grads.of(range), dxn, x, head.inv_rms.get(n));
        }
        self.ops.rms_norm_backward(
            head.dx.get_mut(n),
            head.dxn.get(n),
            head.x.get(n),
            head.inv_rms.get(n),
            self.final_norm(Some(trainable)),
            Write::Replace,
        );
        self.ops.fill(acts.ws.dx.get_mut(t), 0.0);
        self.ops.scatter_rows(acts.ws.dx.get_mut(t), head.dx.get(n), scored.rows.into());
        self.weights.begin(Passage::Down(trainable.first_layer()));
    }
}

impl Step<'_> {
    /// Gradients of one layer, and that of its input into `ws.dx`; whether anything below needs
    /// that.
    pub(super) fn layer_backward(
        &self,
        layer: usize,
        pass: &Pass<'_>,
        acts: &mut Activations,
        grads: &mut Grads<'_>,
    ) -> bool {
        let weights = self.decoder.weights.layer(layer);
        let step = self.on(&weights);
        let trainable = pass.adapter.expect("backward needs something that trains");
        let lowest = trainable.lowest_linear(layer, &self.decoder.config);
        if acts.keep == Keep::LayerInputs {
            step.forward_again(layer, pass, acts);
        }
        let (input, slot) = (acts.input(layer), acts.slot(layer));
        let buffers = &mut acts.layers[slot];
        if !step.mlp_backward((layer, lowest), buffers, &mut acts.ws, grads) {
            return false;
        }
        let (x, segments) = (acts.inputs[input].get(self.t), pass.batch.segments);
        step.attention_backward((layer, lowest), segments, x, buffers, &mut acts.ws, grads);
        true
    }

    /// Fills the shared buffers with what `layer` computed in the forward pass.
    fn forward_again(&self, layer: usize, pass: &Pass<'_>, acts: &mut Activations) {
        let (input, slot) = (acts.input(layer), acts.slot(layer));
        let buffers = &mut acts.layers[slot];
        let x = acts.inputs[input].get(self.t);
        self.attention_forward(layer, pass.batch.segments, x, buffers, &mut acts.ws);
        self.mlp_forward(layer, buffers, &mut acts.ws, None);
    }
}
