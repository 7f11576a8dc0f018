//! Texts that begin alike, each beginning computed once: a cached base, stems after it, and branches
//! from the end of each stem.

use forgelm_kernels_api::{AttentionShape, Segment};

use super::KvCache;
use crate::activations::{Activations, LayerBuffers};
use crate::decoder::{Decoder, PackedInput, Step, check_current};
use crate::trainable::Trainable;

/// Tokens after a base, and what follows them in different ways.
#[derive(Clone, Debug)]
pub struct Stem<'a> {
    /// What the branches share; may be empty.
    pub tokens: &'a [u32],
    /// Each goes on from the end of the stem; may be empty.
    pub branches: Vec<&'a [u32]>,
}

impl Stem<'_> {
    /// Rows that it takes: those of the stem, then those of each branch.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.tokens.len() + self.branches.iter().map(|branch| branch.len()).sum::<usize>()
    }

    /// Tokens of its longest text.
    fn n_longest(&self) -> usize {
        self.tokens.len() + self.branches.iter().map(|branch| branch.len()).max().unwrap_or(0)
    }
}

/// Some rows of one text, and how many positions stand before them.
#[derive(Clone, Copy)]
struct Span {
    n_before: usize,
    start: usize,
    len: usize,
}

impl Decoder {
    /// Runs every layer over stems and branches that go on from what `base` holds; the result stays in
    /// `acts`, for [`Decoder::logprobs`] and [`Decoder::logits`]. Rows lie as [`Stem::n_rows`] says, stem
    /// after stem. `base` holds the same tokens afterwards.
    ///
    /// A layer attends to one stem after another and writes the keys and values of each over those of
    /// the last, behind the base: nothing of a branch is needed once its rows are through the layer.
    ///
    /// # Panics
    /// If there is no row, a token is above V, or the cache or `acts` are too small: bugs of the caller.
    pub fn forward_stems(
        &self,
        adapter: Option<&Trainable>,
        base: &mut KvCache,
        stems: &[Stem<'_>],
        acts: &mut Activations,
    ) {
        check_current(adapter);
        base.reach(base.len + stems.iter().map(Stem::n_longest).max().unwrap_or(0));
        let (mut tokens, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for stem in stems {
            let after_stem = base.len + stem.tokens.len();
            let parts = std::iter::once((base.len, stem.tokens));
            for (n_before, of) in parts.chain(stem.branches.iter().map(|of| (after_stem, *of))) {
                if of.is_empty() {
                    continue;
                }
                spans.push(Span { n_before, start: tokens.len(), len: of.len() });
                tokens.extend_from_slice(of);
                positions.extend((n_before..n_before + of.len()).map(|p| p as u32));
            }
        }
        assert!(tokens.iter().all(|id| (*id as usize) < self.dims.v), "a token above V");
        let segments: Vec<Segment> =
            spans.iter().map(|span| Segment { start: span.start, len: span.len }).collect();
        let t = tokens.len();
        let step = Step { decoder: self, adapter, dropout: None, row_keys: &[], t, layer: None };
        let batch = PackedInput {
            tokens: &tokens,
            positions: &positions,
            segments: &segments,
            row_keys: &[],
        };
        step.forward(&batch, acts, &mut |layer, buffers| {
            step.attend_to_base(layer, base, &spans, buffers);
        });
    }
}

impl Step<'_> {
    /// Attends to the base, the own stem, and what came before in the own branch.
    fn attend_to_base(
        &self,
        layer: usize,
        base: &mut KvCache,
        spans: &[Span],
        buffers: &mut LayerBuffers,
    ) {
        let (t, ops, dims) = (self.t, &self.decoder.ops, &self.decoder.dims);
        let shape: AttentionShape = self.decoder.attention_shape(layer);
        let (q_width, kv_width) = (dims.q_width(), dims.kv_width());
        let (q, k, v) = (buffers.q.get(t), buffers.k.get(t), buffers.v.get(t));
        let (mut attn, mut lse) = (buffers.attn.get_mut(t), buffers.lse.get_mut(t));
        let (keys, values) = (&mut base.keys[layer], &mut base.values[layer]);
        for &Span { n_before, start, len } in spans {
            let rows = start..start + len;
            let new = rows.start * kv_width..rows.end * kv_width;
            let place = n_before * kv_width..(n_before + len) * kv_width;
            ops.copy(keys.part_mut(place.clone()), k.part(new.clone()));
            ops.copy(values.part_mut(place.clone()), v.part(new.clone()));
            let of_rows = rows.start * q_width..rows.end * q_width;
            let (q, out) = (q.part(of_rows.clone()), attn.reborrow().part(of_rows));
            if n_before == 0 {
                let of_rows = rows.start * shape.n_heads..rows.end * shape.n_heads;
                let lse = lse.reborrow().part(of_rows);
                let (k, v) = (k.part(new.clone()), v.part(new));
                ops.attention_forward(out, lse, q, k, v, &shape, &[Segment { start: 0, len }]);
            } else {
                let (keys, values) = (keys.part(0..place.end), values.part(0..place.end));
                ops.attention_cached(out, q, keys, values, &shape);
            }
        }
    }
}
