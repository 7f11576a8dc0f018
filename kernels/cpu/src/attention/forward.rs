//! Forward: a tile of eight queries goes over its keys in blocks, with a running maximum and sum.

use std::ops::Range;

use forgelm_kernels_api::{AttentionShape, Segment};

use super::{
    Dims, Layouts, Panels, Sequence, TILE, accumulate, cap_scores, gather, scores, sequences,
};
use crate::math::{exp, for_vectors, load, store};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Grid, Isa, Simd};
use crate::tile::{Left, PANEL};
use crate::token_logprobs::largest;

/// Queries of a task, of each head of a group.
const QUERIES: usize = 64;
/// Panels of keys in a block: their scores with a tile stay in the nearest cache.
const BLOCK: usize = 10;

/// Shapes: `out` [T, H * D], `lse` [T, H] written; `q` [T, H * D], `k`, `v` [T, H_kv * D] read.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
pub(crate) fn forward(
    pool: &Pool,
    isa: Isa,
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let dims = Dims::new(shape);
    let (sequences, n_tokens) = sequences(segments);
    assert_eq!(q.len(), n_tokens * dims.q_width(), "q is not [T, H * D]");
    assert_eq!(k.len(), n_tokens * dims.kv_width(), "k is not [T, H_kv * D]");
    assert_eq!(v.len(), k.len(), "v is not [T, H_kv * D]");
    assert_eq!(out.len(), q.len(), "out is not [T, H * D]");
    assert_eq!(lse.len(), n_tokens * shape.n_heads, "lse is not [T, H]");
    over_sequences(pool, isa, out, Some(lse), Inputs { q, k, v }, dims, &sequences);
}

pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// The grid: blocks of queries by key/value heads, late (long) ones first.
pub(super) fn over_sequences(
    pool: &Pool,
    isa: Isa,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
    inputs: Inputs<'_>,
    dims: Dims,
    sequences: &[Sequence],
) {
    let keys = Panels::new(pool, isa, inputs.k, dims, sequences, Layouts::Turned);
    let values = Panels::new(pool, isa, inputs.v, dims, sequences, Layouts::Rows);
    let blocks: Vec<(usize, Range<usize>)> = sequences
        .iter()
        .enumerate()
        .flat_map(|(i, sequence)| {
            let n = sequence.n_queries;
            (0..n).step_by(QUERIES).map(move |q| (i, q..(q + QUERIES).min(n)))
        })
        .collect();
    let n_kv_heads = dims.shape.n_kv_heads;
    let out = Shared::new(out);
    let lse = lse.map(Shared::new);
    pool.run(blocks.len() * n_kv_heads, &|task| {
        let (i, queries) = &blocks[blocks.len() - 1 - task / n_kv_heads];
        let job = Job {
            dims,
            keys: &keys,
            values: &values,
            index: *i,
            sequence: sequences[*i],
            q: inputs.q,
            out,
            lse,
        };
        on_isa!(isa, s => job.run(s, task % n_kv_heads, queries.clone()));
    });
}

#[derive(Clone, Copy)]
struct Job<'a> {
    dims: Dims,
    keys: &'a Panels,
    values: &'a Panels,
    /// Of the sequence.
    index: usize,
    sequence: Sequence,
    q: &'a [f32],
    out: Shared<'a, f32>,
    lse: Option<Shared<'a, f32>>,
}

/// One query's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl Job<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S, kv_head: usize, queries: Range<usize>) {
        let group = self.dims.group;
        for first in queries.clone().step_by(TILE) {
            for head in kv_head * group..(kv_head + 1) * group {
                self.tile(s, kv_head, head, first..(first + TILE).min(queries.end));
            }
        }
    }

    /// Up to eight queries of one head.
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, kv_head: usize, head: usize, queries: Range<usize>) {
        let Self { dims, sequence, .. } = self;
        let n = queries.len();
        let first_position = sequence.first_position + queries.start;
        let keys = dims.visible(first_position).start..first_position + n;
        let mut q = Scratch::<f32>::take(n * dims.padded);
        let first_row = sequence.query_row + queries.start;
        let at = first_row * dims.q_width() + head * dims.d();
        gather(s, &mut q, &self.q[at..], dims.q_width(), dims, dims.shape.scale);
        let mut sums = Scratch::<f32>::zeroed(n * dims.padded);
        let mut running = [Running { max: f32::NEG_INFINITY, sum: 0.0 }; TILE];
        let stride = BLOCK * PANEL;
        let mut block_scores = Scratch::<f32>::take(n * stride);
        let panels = keys.start / PANEL..keys.end.div_ceil(PANEL);
        for first_panel in panels.clone().step_by(BLOCK) {
            let end_panel = (first_panel + BLOCK).min(panels.end);
            let block = first_panel * PANEL..(end_panel * PANEL).min(keys.end);
            for p in first_panel..end_panel {
                let columns = (block.end - p * PANEL).min(PANEL);
                let to = &mut block_scores[(p - first_panel) * PANEL..];
                let panel = self.keys.turned(kv_head, self.index, p);
                scores(s, Grid { data: to, stride }, &q, panel, columns, dims);
            }
            for (i, row) in block_scores.chunks_exact_mut(stride).enumerate() {
                let seen = dims.visible(first_position + i);
                let seen = seen.start.clamp(block.start, block.end) - block.start
                    ..seen.end.clamp(block.start, block.end) - block.start;
                let sums = &mut sums[i * dims.padded..(i + 1) * dims.padded];
                let row = &mut row[..block.len()];
                running[i].absorb(s, row, seen, sums, dims.shape.soft_cap);
            }
            let values = self.values.rows(kv_head, sequence.key_row + block.start);
            let left = Left { data: &block_scores, row_stride: stride, step_stride: 1 };
            accumulate(s, &mut sums, left, n, values, block.len(), dims);
        }
        for (i, running) in running.into_iter().enumerate().take(n) {
            let row = first_row + i;
            let at = row * dims.q_width() + head * dims.d();
            // SAFETY: this head of these rows is this task's alone, and the slices end here.
            let out = unsafe { self.out.slice(at..at + dims.d()) };
            let inverse = s.splat(1.0 / running.sum);
            let sums = &sums[i * dims.padded..];
            for_vectors!(s, out.len(), |i| {
                store(s, &mut out[i.clone()], s.mul(load(s, &sums[i]), inverse));
            },);
            if let Some(lse) = self.lse {
                let at = row * dims.shape.n_heads + head;
                // SAFETY: as above.
                let lse = unsafe { lse.slice(at..at + 1) };
                lse[0] = running.max + running.sum.ln();
            }
        }
    }
}

impl Running {
    /// Scores become `e^(score - max)`, and 0 outside of what is seen; `sums` is rescaled to the
    /// new maximum.
    #[inline(always)]
    fn absorb<S: Simd>(
        &mut self,
        s: S,
        row: &mut [f32],
        seen: Range<usize>,
        sums: &mut [f32],
        soft_cap: Option<f32>,
    ) {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
        if seen.is_empty() {
            return;
        }
        let scores = &mut row[seen];
        if let Some(cap) = soft_cap {
            cap_scores(s, scores, cap);
        }
        let max = largest(s, scores).max(self.max);
        let minus_max = s.splat(-max);
        let mut total = s.splat(0.0);
        let mut rest = 0.0;
        for_vectors!(s, scores.len(), |i| {
            let e = exp(s, s.add(load(s, &scores[i.clone()]), minus_max));
            store(s, &mut scores[i.clone()], e);
            if i.len() == S::LANES {
                total = s.add(total, e);
            } else {
                rest = scores[i].iter().sum();
            }
        },);
        let total = s.sum(total) + rest;
        if max > self.max && self.sum > 0.0 {
            let shrink = (self.max - max).exp();
            self.sum *= shrink;
            let shrink = s.splat(shrink);
            for_vectors!(s, sums.len(), |i| {
                let v = s.mul(load(s, &sums[i.clone()]), shrink);
                store(s, &mut sums[i], v);
            },);
        }
        self.sum += total;
        self.max = max;
    }
}
