//! The pass up: tokens to the residual stream after the last layer, and from there to
//! log-probabilities or logits of chosen rows.

use forgelm_kernels_api::{Slice, SliceMut, Write};

use super::{Decoder, EmbeddingNoise, PackedInput, Pass, Scored, Step};
use crate::activations::{Activations, Stage};
use crate::names::Role;
use crate::parts::Passage;
use crate::rope::Rotary;
use crate::trainable::Trainable;
use crate::weights::MatrixRef;

impl Decoder {
    /// Runs every layer over the packed rows; the result stays in `acts`.
    ///
    /// # Panics
    /// If the batch is not consistent, has a token outside the vocabulary, or is larger than
    /// `acts`: bugs of the caller.
    pub fn forward(&self, pass: &Pass<'_>, acts: &mut Activations) {
        self.forward_with(pass, None, acts);
    }

    /// [`Decoder::forward`], with noise on the token vectors where there is some.
    ///
    /// # Panics
    /// As [`Decoder::forward`]; and if there is noise but no row key for each row.
    pub fn forward_with(
        &self,
        pass: &Pass<'_>,
        noise: Option<EmbeddingNoise<'_>>,
        acts: &mut Activations,
    ) {
        let step = self.step(pass);
        check_batch(&pass.batch, self.dims.v, step.dropout.is_some());
        step.begin(&pass.batch, acts);
        if let Some(noise) = noise {
            let mut values = vec![0.0; step.t * self.dims.c];
            noise.add(&mut values, &pass.batch, self.dims.c);
            self.ops.add(acts.inputs[0].get_mut(step.t), (&values).into());
        }
        for layer in 0..self.dims.l {
            let weights = self.weights.layer(layer);
            let step = step.on(&weights);
            let (input, slot) = (acts.input(layer), acts.slot(layer));
            let buffers = &mut acts.layers[slot];
            let x = acts.inputs[input].get(step.t);
            step.attention_forward(layer, pass.batch.segments, x, buffers, &mut acts.ws);
            let output = acts.input(layer + 1);
            let buffers = &mut acts.layers[slot];
            let out = acts.inputs[output].get_mut(step.t);
            step.mlp_forward(layer, buffers, &mut acts.ws, Some(out));
        }
        acts.stage = Stage::Forwarded;
    }

    /// Log-probability of the label of each scored row, after [`Decoder::forward`].
    ///
    /// `pass` is that of the forward pass. Only these rows go through the last norm and the head; nothing [R, V] is stored.
    ///
    /// Shapes: `logp` [R] written.
    ///
    /// # Panics
    /// If there was no forward pass, or a row or label does not exist.
    pub fn logprobs(
        &self,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scored: Scored<'_>,
        logp: &mut [f32],
    ) {
        let n = self.norm_scored(pass, acts, scored, logp);
        let head = &mut acts.head;
        self.ops.token_logprobs_forward(
            logp.into(),
            head.lse.get_mut(n),
            head.xn.get(n),
            &*self.head(pass.adapter),
            scored.labels,
            self.config.final_soft_cap,
        );
        acts.stage = Stage::Scored(n);
    }

    /// As [`Decoder::logprobs`], for a micro-batch that goes backward: the gradient of each
    /// log-probability is formed in the same pass over the vocabulary.
    ///
    /// Shapes: `logp` [R] written.
    ///
    /// # Panics
    /// As [`Decoder::logprobs`].
    pub fn logprobs_with_gradient(
        &self,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scored: Scored<'_>,
        logp: &mut [f32],
    ) {
        let n = self.norm_scored(pass, acts, scored, logp);
        let head = &mut acts.head;
        self.ops.token_logprobs_with_gradient(
            logp.into(),
            head.lse.get_mut(n),
            head.dxn.get_mut(n),
            head.xn.get(n),
            &*self.head(pass.adapter),
            scored.labels,
            self.config.final_soft_cap,
        );
        acts.stage = Stage::Differentiated(n);
    }

    /// Norms the scored rows; their number, R.
    fn norm_scored(
        &self,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scored: Scored<'_>,
        logp: &[f32],
    ) -> usize {
        let n = scored.rows.len();
        assert_eq!(scored.labels.len(), n, "labels is not [R]");
        assert_eq!(logp.len(), n, "logp is not [R]");
        self.norm_rows(pass.adapter, acts, scored.rows);
        n
    }

    /// Logits of some rows, after [`Decoder::forward`] with the same
    /// `adapter`: for tests and generation.
    ///
    /// Shapes: `logits` [R, V] written; [R, labels] of a classifier.
    ///
    /// # Panics
    /// If there was no forward pass, or a row does not exist.
    pub fn logits<'l>(
        &self,
        adapter: Option<&Trainable>,
        acts: &mut Activations,
        rows: &[u32],
        logits: impl Into<SliceMut<'l>>,
    ) {
        let mut logits = logits.into();
        assert_eq!(logits.len(), rows.len() * self.dims.n_out, "logits is not [R, V]");
        self.norm_rows(adapter, acts, rows);
        let xn = acts.head.xn.get(rows.len());
        self.ops.linear_forward(logits.reborrow(), xn, &*self.head(adapter), Write::Replace);
        if let Some(cap) = self.config.final_soft_cap {
            self.ops.soft_cap(logits, cap);
        }
        // The scored rows of an earlier `logprobs` are gone.
        acts.stage = Stage::Forwarded;
    }

    /// The output head: the trained one, else the decoder's own.
    pub(super) fn head<'a>(&'a self, adapter: Option<&'a Trainable>) -> MatrixRef<'a> {
        let trained = adapter.and_then(|t| t.matrix(Role::Head));
        trained.map_or_else(|| self.weights.head(), MatrixRef::Here)
    }

    /// The weight of the last norm: the trained one, else the decoder's own.
    pub(super) fn final_norm<'a>(&'a self, adapter: Option<&'a Trainable>) -> Slice<'a> {
        adapter.and_then(|t| t.vector(Role::FinalNorm)).unwrap_or(self.weights.final_norm.all())
    }

    /// Gathers rows of the residual stream and norms them.
    fn norm_rows(&self, adapter: Option<&Trainable>, acts: &mut Activations, rows: &[u32]) {
        assert!(acts.stage != Stage::Empty, "there was no forward pass");
        let (n, last) = (rows.len(), acts.input(self.dims.l));
        assert!(n <= acts.size.scored_rows_max, "more scored rows than planned");
        let stream = acts.inputs[last].get(acts.n_tokens);
        let head = &mut acts.head;
        self.ops.gather_rows(head.x.get_mut(n), stream, rows.into());
        self.ops.rms_norm_forward(
            head.xn.get_mut(n),
            head.inv_rms.get_mut(n),
            head.x.get(n),
            self.final_norm(adapter),
            self.config.rms_norm_eps,
        );
    }
}

impl Step<'_> {
    /// Rotary tables and token vectors.
    pub(super) fn begin(&self, batch: &PackedInput<'_>, acts: &mut Activations) {
        let (t, decoder) = (self.t, self.decoder);
        assert!(t > 0, "a batch of no rows");
        assert!(t <= acts.size.tokens_max, "{t} rows, but {} were planned", acts.size.tokens_max);
        let ws = &mut acts.ws;
        let local = decoder.local_rotary.as_ref();
        let tables = [
            (Some(&decoder.rotary), &mut ws.cos, &mut ws.sin),
            (local, &mut ws.local_cos, &mut ws.local_sin),
        ];
        for (rotary, cos, sin) in tables {
            let Some(rotary) = rotary else { continue };
            rotary_tables(rotary, batch, cos.get_mut(t), sin.get_mut(t));
        }
        decoder.weights.begin(Passage::Up);
        let trained = self.adapter.and_then(|t| t.matrix(Role::Embedding));
        let embedding = trained.map_or_else(|| decoder.weights.embedding(), MatrixRef::Here);
        let mut x = acts.inputs[0].get_mut(t);
        decoder.ops.embedding_forward(x.reborrow(), batch.tokens, &*embedding);
        if let Some(scale) = decoder.config.embedding_scale {
            decoder.ops.scale(x, scale);
        }
        acts.ws.balance.clear();
        acts.stage = Stage::Empty;
        acts.n_tokens = t;
    }
}

/// Cosines and sines of each row.
///
/// Shapes: `cos` and `sin` [T, R / 2] written.
fn rotary_tables(
    rotary: &Rotary,
    batch: &PackedInput<'_>,
    mut cos: SliceMut<'_>,
    mut sin: SliceMut<'_>,
) {
    let half = cos.len() / batch.tokens.len();
    let write = |cos: &mut [f32], sin: &mut [f32]| {
        for segment in batch.segments {
            let rows = segment.start..segment.start + segment.len;
            let at = rows.start * half..rows.end * half;
            rotary.write(&mut cos[at.clone()], &mut sin[at], &batch.positions[rows]);
        }
    };
    if let (SliceMut::Host(cos), SliceMut::Host(sin)) = (&mut cos, &mut sin) {
        return write(cos, sin);
    }
    let mut tables = [vec![0.0; cos.len()], vec![0.0; sin.len()]];
    let [on_host, sin_on_host] = &mut tables;
    write(on_host, sin_on_host);
    cos.copy_from_host(&tables[0]);
    sin.copy_from_host(&tables[1]);
}

fn check_batch(batch: &PackedInput<'_>, vocab_size: usize, has_dropout: bool) {
    let t = batch.tokens.len();
    assert_eq!(batch.positions.len(), t, "positions is not [T]");
    assert!(!has_dropout || batch.row_keys.len() == t, "row_keys is not [T]");
    let mut end = 0;
    for segment in batch.segments {
        assert_eq!(segment.start, end, "segments do not lie end to end");
        end += segment.len;
    }
    assert_eq!(end, t, "segments do not cover the rows");
    assert!(batch.tokens.iter().all(|id| (*id as usize) < vocab_size), "a token above V");
}
