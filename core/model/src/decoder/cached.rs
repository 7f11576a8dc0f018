//! Generation: new tokens against cached keys and values.

mod stems;

use std::fmt;
use std::sync::Arc;

use forgelm_kernels_api::{Buffer, Ops, Precision, Segment, SliceMut};

use super::{Decoder, PackedInput, Step, check_current};
use crate::activations::{Activations, Engine, LayerBuffers, Stage};
use crate::config::ModelConfig;
use crate::trainable::Trainable;
pub use stems::Stem;

/// Positions by which the memory of a cache grows at least.
const BLOCK: usize = 256;

/// Keys and values of one sequence, for every layer.
///
/// Memory is taken as the sequence grows, in whole blocks of positions and by half of what there
/// is at a time, so that a long context costs nothing before it is used.
pub struct KvCache {
    ops: Arc<dyn Ops>,
    precision: Precision,
    /// By layer; [P, H_kv D] in use, room for `n_rows` rows.
    keys: Vec<Buffer>,
    values: Vec<Buffer>,
    width: usize,
    len: usize,
    n_rows: usize,
    capacity: usize,
}

impl KvCache {
    /// A cache that may hold up to `capacity` tokens; it holds no memory yet.
    #[must_use]
    pub fn new(decoder: &Decoder, capacity: usize) -> Self {
        let dims = &decoder.dims;
        let buffers = || (0..dims.l).map(|_| Buffer::default()).collect();
        Self {
            ops: Arc::clone(&decoder.ops),
            precision: Precision::Like(decoder.compute),
            keys: buffers(),
            values: buffers(),
            width: dims.kv_width(),
            len: 0,
            n_rows: 0,
            capacity,
        }
    }

    /// Memory of a cache of `n_tokens` tokens, in bytes.
    #[must_use]
    pub fn planned_bytes(model: &ModelConfig, n_tokens: usize, engine: Engine<'_>) -> usize {
        let dims = model.dims();
        let of_one = engine.ops.bytes_per_number(Precision::Like(engine.compute));
        n_tokens * 2 * dims.l * dims.kv_width() * of_one
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens: a conversation that continues another way.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Holds what the first `len` tokens left in another cache of this model, and nothing else.
    ///
    /// # Panics
    /// If the other holds fewer, or they do not fit: bugs of the caller.
    pub fn begin_as(&mut self, other: &Self, len: usize) {
        assert!(len <= other.len, "the other cache holds fewer tokens");
        self.len = 0;
        self.reach(len);
        let n = len * self.width;
        let mine = self.keys.iter_mut().chain(&mut self.values);
        for (mine, theirs) in mine.zip(other.keys.iter().chain(&other.values)) {
            self.ops.copy(mine.part_mut(0..n), theirs.part(0..n));
        }
        self.len = len;
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(Buffer::n_bytes).sum()
    }

    /// Takes the memory for `len` tokens.
    ///
    /// Ends with a [`Failure`](forgelm_kernels_api::Failure) if there is none.
    ///
    /// # Panics
    /// If the cache is full.
    fn reach(&mut self, len: usize) {
        assert!(len <= self.capacity, "the cache is full");
        if len <= self.n_rows {
            return;
        }
        let n_rows = len.max(self.n_rows + self.n_rows / 2).next_multiple_of(BLOCK);
        self.n_rows = n_rows.min(self.capacity);
        for rows in self.keys.iter_mut().chain(&mut self.values) {
            let more = self.ops.allocate(self.n_rows * self.width, self.precision);
            let more = more.unwrap_or_else(|refused| refused.end("keys and values of a sequence"));
            let old = std::mem::replace(rows, more);
            let held = self.len * self.width;
            self.ops.copy(rows.part_mut(0..held), old.part(0..held));
        }
    }
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvCache").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A sequence and the tokens that are new in it.
#[derive(Debug)]
pub struct CachedSequence<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// What came before them; they are added.
    pub cache: &'a mut KvCache,
}

impl Decoder {
    /// Runs the new tokens of each sequence and gives the logits after the last of each.
    ///
    /// Shapes: `logits` [n sequences, V] written.
    ///
    /// # Panics
    /// If a cache is full, a token is above V, a sequence has no new token, or `acts` is too
    /// small: bugs of the caller.
    pub fn forward_cached<'l>(
        &self,
        adapter: Option<&Trainable>,
        sequences: &mut [CachedSequence<'_>],
        acts: &mut Activations,
        logits: impl Into<SliceMut<'l>>,
    ) {
        check_current(adapter);
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let (mut segments, mut last_rows) = (Vec::new(), Vec::new());
        for sequence in sequences.iter_mut() {
            let (from, n) = (sequence.cache.len, sequence.tokens.len());
            assert!(n > 0, "a sequence has no new token");
            sequence.cache.reach(from + n);
            segments.push(Segment { start: tokens.len(), len: n });
            tokens.extend_from_slice(sequence.tokens);
            positions.extend((from..from + n).map(|p| p as u32));
            last_rows.push((tokens.len() - 1) as u32);
        }
        assert!(tokens.iter().all(|id| (*id as usize) < self.dims.v), "a token above V");
        let t = tokens.len();
        let step = Step { decoder: self, adapter, dropout: None, row_keys: &[], t, layer: None };
        let batch = PackedInput {
            tokens: &tokens,
            positions: &positions,
            segments: &segments,
            row_keys: &[],
        };
        step.forward(&batch, acts, &mut |layer, buffers| {
            step.attend_to_caches(layer, sequences, buffers);
        });
        for sequence in sequences {
            sequence.cache.len += sequence.tokens.len();
        }
        self.logits(adapter, acts, &last_rows, logits);
    }
}

impl Step<'_> {
    /// Runs a batch through every layer, where `attend` is what differs: it fills the attention of a
    /// layer from where the keys and values are.
    fn forward(
        &self,
        batch: &PackedInput<'_>,
        acts: &mut Activations,
        attend: &mut dyn FnMut(usize, &mut LayerBuffers),
    ) {
        self.begin(batch, acts);
        for layer in 0..self.decoder.dims.l {
            let (input, slot) = (acts.input(layer), acts.slot(layer));
            let buffers = &mut acts.layers[slot];
            let weights = self.decoder.weights.layer(layer);
            let step = self.on(&weights);
            let x = acts.inputs[input].get(self.t);
            step.project(layer, x, buffers, &mut acts.ws);
            attend(layer, buffers);
            step.project_output(layer, x, buffers, &mut acts.ws);
            let output = acts.input(layer + 1);
            let buffers = &mut acts.layers[slot];
            let out = acts.inputs[output].get_mut(self.t);
            step.mlp_forward(layer, buffers, &mut acts.ws, Some(out));
        }
        acts.stage = Stage::Forwarded;
    }

    /// Moves the new keys and values to the caches and attends to all of them.
    fn attend_to_caches(
        &self,
        layer: usize,
        sequences: &mut [CachedSequence<'_>],
        buffers: &mut LayerBuffers,
    ) {
        let (t, ops) = (self.t, &self.decoder.ops);
        let shape = self.decoder.attention_shape(layer);
        let (q_width, kv_width) = (self.decoder.dims.q_width(), self.decoder.dims.kv_width());
        let (q, k, v) = (buffers.q.get(t), buffers.k.get(t), buffers.v.get(t));
        let (mut attn, mut lse) = (buffers.attn.get_mut(t), buffers.lse.get_mut(t));
        let mut row = 0;
        for sequence in sequences {
            let (old, n) = (sequence.cache.len, sequence.tokens.len());
            let new = row * kv_width..(row + n) * kv_width;
            let place = old * kv_width..(old + n) * kv_width;
            let keys = &mut sequence.cache.keys[layer];
            let values = &mut sequence.cache.values[layer];
            ops.copy(keys.part_mut(place.clone()), k.part(new.clone()));
            ops.copy(values.part_mut(place), v.part(new.clone()));
            let q = q.part(row * q_width..(row + n) * q_width);
            let out = attn.reborrow().part(row * q_width..(row + n) * q_width);
            if old == 0 {
                // A whole prompt: the blocked kernel of training is made for this.
                let heads = shape.n_heads;
                let lse = lse.reborrow().part(row * heads..(row + n) * heads);
                let segment = [Segment { start: 0, len: n }];
                let (k, v) = (k.part(new.clone()), v.part(new));
                ops.attention_forward(out, lse, q, k, v, &shape, &segment);
            } else {
                let end = (old + n) * kv_width;
                ops.attention_cached(out, q, keys.part(0..end), values.part(0..end), &shape);
            }
            row += n;
        }
    }
}
