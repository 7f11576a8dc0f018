//! Forward: the queries of a task go over their keys in blocks, with a running maximum and sum.
//!
//! A block of keys stays in the second-level cache while all tiles of eight queries of all heads of
//! the group pass over it: with long sequences the keys of a head no longer fit any cache.

use std::ops::Range;

use forgelm_kernels_api::{AttentionShape, Compute, Segment};

use super::{
    Dims, Layouts, Panels, Sequence, TILE, accumulate, cap_scores, gather, pack_rows, scores,
    sequences,
};
use crate::math::{exp, for_vectors, load, store};
use crate::pool::Pool;
use crate::scratch::{Bits, Scratch};
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Grid, Isa, Simd};
use crate::tile::{Element, Left, PANEL};
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
    match dims.shape.compute {
        Compute::F32 => over_sequences_as::<f32>(pool, isa, out, lse, inputs, dims, sequences),
        Compute::Bf16 => over_sequences_as::<u32>(pool, isa, out, lse, inputs, dims, sequences),
    }
}

fn over_sequences_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
    inputs: Inputs<'_>,
    dims: Dims,
    sequences: &[Sequence],
) {
    let keys = Panels::<E>::new(pool, isa, inputs.k, dims, sequences, Layouts::Turned);
    let values = Panels::<E>::new(pool, isa, inputs.v, dims, sequences, Layouts::Rows);
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
        let (index, queries) = blocks[blocks.len() - 1 - task / n_kv_heads].clone();
        let job = Job {
            dims,
            keys: &keys,
            values: &values,
            index,
            sequence: sequences[index],
            kv_head: task % n_kv_heads,
            out,
            lse,
        };
        on_isa!(isa, s => job.run(s, inputs.q, queries.clone()));
    });
}

#[derive(Clone, Copy)]
struct Job<'a, E: Element> {
    dims: Dims,
    keys: &'a Panels<E>,
    values: &'a Panels<E>,
    /// Of the sequence.
    index: usize,
    sequence: Sequence,
    kv_head: usize,
    out: Shared<'a, f32>,
    lse: Option<Shared<'a, f32>>,
}

/// The queries of a task, of all heads of the group: row `h * n + i` is query `i` of head `h`.
struct Rows<E: Element> {
    n: usize,
    /// Position of the first query.
    first_position: usize,
    /// [group * n, padded D / TERMS], times the scale.
    q: Scratch<E>,
    /// [group * n, padded D]
    sums: Scratch<f32>,
    running: Vec<Running>,
}

/// One query's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl<E: Element> Job<'_, E> {
    /// Shapes: `q` [T, H * D] read.
    #[inline(always)]
    fn run<S: Simd>(self, s: S, q: &[f32], queries: Range<usize>) {
        let Self { dims, .. } = self;
        let mut rows = self.rows(s, q, &queries);
        let end = rows.first_position + rows.n;
        let panels = dims.visible(rows.first_position).start / PANEL..end.div_ceil(PANEL);
        let mut scores = Scratch::<f32>::take(TILE * BLOCK * PANEL);
        for first in panels.clone().step_by(BLOCK) {
            let panels = first..(first + BLOCK).min(panels.end);
            for head in 0..dims.group {
                for first in (0..rows.n).step_by(TILE) {
                    let tile = first..(first + TILE).min(rows.n);
                    self.tile(s, &mut rows, head, tile, panels.clone(), &mut scores);
                }
            }
        }
        for head in 0..dims.group {
            self.store(s, &rows, head, queries.start);
        }
    }

    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, q: &[f32], queries: &Range<usize>) -> Rows<E> {
        let Self { dims, sequence, .. } = *self;
        let n = queries.len();
        let mut gathered = Scratch::<f32>::take(dims.group * n * dims.padded);
        for (i, to) in gathered.chunks_exact_mut(n * dims.padded).enumerate() {
            let head = self.kv_head * dims.group + i;
            let at = (sequence.query_row + queries.start) * dims.q_width() + head * dims.d();
            gather(s, to, &q[at..], dims.q_width(), dims, dims.shape.scale);
        }
        let mut q = Scratch::<E>::take(gathered.len() / E::TERMS);
        pack_rows(s, &mut q, &gathered, dims);
        Rows {
            n,
            first_position: sequence.first_position + queries.start,
            q,
            sums: Scratch::zeroed(gathered.len()),
            running: vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; dims.group * n],
        }
    }

    /// Up to eight queries of one head, and a block of keys.
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        s: S,
        rows: &mut Rows<E>,
        head: usize,
        queries: Range<usize>,
        panels: Range<usize>,
        block_scores: &mut [f32],
    ) {
        let Self { dims, .. } = *self;
        let first_position = rows.first_position + queries.start;
        let keys = dims.visible(first_position).start..first_position + queries.len();
        let panels = panels.start.max(keys.start / PANEL)..panels.end.min(keys.end.div_ceil(PANEL));
        if panels.is_empty() {
            return;
        }
        let block = panels.start * PANEL..(panels.end * PANEL).min(keys.end);
        let stride = BLOCK * PANEL;
        let block_scores = &mut block_scores[..queries.len() * stride];
        let first_row = head * rows.n + queries.start;
        let elements = first_row * dims.padded..(first_row + queries.len()) * dims.padded;
        let q = &rows.q[elements.start / E::TERMS..elements.end / E::TERMS];
        for p in panels.clone() {
            let columns = (block.end - p * PANEL).min(PANEL);
            let to = &mut block_scores[(p - panels.start) * PANEL..];
            let panel = self.keys.turned(self.kv_head, self.index, p);
            scores(s, Grid { data: to, stride }, q, panel, columns, dims);
        }
        let sums = &mut rows.sums[elements];
        for (i, row) in block_scores.chunks_exact_mut(stride).enumerate() {
            let seen = dims.visible(first_position + i);
            let seen = seen.start.clamp(block.start, block.end) - block.start
                ..seen.end.clamp(block.start, block.end) - block.start;
            let sums = &mut sums[i * dims.padded..(i + 1) * dims.padded];
            let row = &mut row[..block.len()];
            rows.running[first_row + i].absorb(s, row, seen, sums, dims.shape.soft_cap);
            E::pack_in_place(s, row);
        }
        let values = self.values.rows(self.kv_head, self.index, block.start);
        let data = E::view(f32::bits(block_scores));
        let left = Left { data, row_stride: stride, step_stride: 1 };
        let steps = block.len().div_ceil(E::TERMS);
        accumulate(s, sums, left, queries.len(), values, steps, dims);
    }

    #[inline(always)]
    fn store<S: Simd>(&self, s: S, rows: &Rows<E>, head: usize, first_query: usize) {
        let Self { dims, sequence, .. } = *self;
        let h = self.kv_head * dims.group + head;
        for i in 0..rows.n {
            let running = rows.running[head * rows.n + i];
            let row = sequence.query_row + first_query + i;
            let at = row * dims.q_width() + h * dims.d();
            // SAFETY: this head of these rows is this task's alone, and the slices end here.
            let out = unsafe { self.out.slice(at..at + dims.d()) };
            let inverse = s.splat(1.0 / running.sum);
            let sums = &rows.sums[(head * rows.n + i) * dims.padded..];
            for_vectors!(s, out.len(), |i| {
                store(s, &mut out[i.clone()], s.mul(load(s, &sums[i]), inverse));
            },);
            if let Some(lse) = self.lse {
                let at = row * dims.shape.n_heads + h;
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
