//! Backward: scores are computed again from the stored log-sums.
//!
//! The grid: chunks of the queries of a sequence by key/value heads, long ones first. A task adds
//! the gradients of keys and values of its chunk in memory of its own; chunks are then added in
//! order. Within a chunk, blocks of 64 queries of one head meet blocks of 96 keys, so that
//! probabilities and their gradients stay in the second-level cache for the three products that
//! read them.
//!
//! With `p = e^(score - lse)`, `dp = dout v`, `delta = sum(dout * out)`:
//! `dscore = p (dp - delta)` (times the slope of the cap), `dq = scale * dscore k`,
//! `dk = dscore^T (scale * q)`, `dv = p^T dout`.

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
use crate::tile::{Left, PANEL, put};

/// Queries of a block.
const QUERIES: usize = 64;
/// Panels of keys of a block.
const BLOCK: usize = 2;
/// Keys of a block.
const KEYS: usize = BLOCK * PANEL;
/// Queries of a chunk, at least, and chunks of a sequence, at most.
const CHUNK: usize = 128;
const CHUNKS: usize = 8;

/// What backward reads. Shapes as [`forgelm_kernels_api::Ops::attention_backward`].
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub dout: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// Some queries of one sequence, and where its part of the gradients of keys lies.
struct Chunk {
    index: usize,
    sequence: Sequence,
    queries: Range<usize>,
    /// Keys that these queries see.
    keys: Range<usize>,
    /// First key in the memory of one head, in rows.
    first: usize,
}

/// Shapes: `dq` [T, H * D], `dk` and `dv` [T, H_kv * D] written.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
pub(crate) fn backward(
    pool: &Pool,
    isa: Isa,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    given: Given<'_>,
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let dims = Dims::new(shape);
    let (sequences, n_tokens) = sequences(segments);
    let (q_len, kv_len) = (n_tokens * dims.q_width(), n_tokens * dims.kv_width());
    for (name, len) in [
        ("q", given.q.len()),
        ("dq", dq.len()),
        ("dout", given.dout.len()),
        ("out", given.out.len()),
    ] {
        assert_eq!(len, q_len, "{name} is not [T, H * D]");
    }
    for (name, len) in
        [("k", given.k.len()), ("v", given.v.len()), ("dk", dk.len()), ("dv", dv.len())]
    {
        assert_eq!(len, kv_len, "{name} is not [T, H_kv * D]");
    }
    assert_eq!(given.lse.len(), n_tokens * shape.n_heads, "lse is not [T, H]");

    let keys = Panels::new(pool, isa, given.k, dims, &sequences, Layouts::Both);
    let values = Panels::new(pool, isa, given.v, dims, &sequences, Layouts::Turned);
    let chunks = cut(&sequences, dims);
    let n_rows = chunks.iter().map(|c| c.keys.len()).sum();
    // [H_kv][chunk][keys of the chunk][padded D], of dk and of dv
    let mut parts = [(); 2].map(|()| Scratch::<f32>::take(shape.n_kv_heads * n_rows * dims.padded));
    {
        let dq = Shared::new(dq);
        let parts = parts.each_mut().map(|part| Shared::new(part));
        pool.run(chunks.len() * shape.n_kv_heads, &|task| {
            let chunk = &chunks[chunks.len() - 1 - task / shape.n_kv_heads];
            let kv_head = task % shape.n_kv_heads;
            let first = (kv_head * n_rows + chunk.first) * dims.padded;
            let range = first..first + chunk.keys.len() * dims.padded;
            // SAFETY: each task has its own chunk of its own head.
            let [dk, dv] = parts.map(|part| unsafe { part.slice(range.clone()) });
            let job = Job { dims, given, keys: &keys, values: &values, chunk, kv_head, dq };
            on_isa!(isa, s => job.run(s, dk, dv));
        });
    }
    for (to, parts) in [dk, dv].into_iter().zip(&parts) {
        join(pool, isa, to, parts, dims, &chunks, n_rows);
    }
}

/// Chunks of queries, by sizes alone; those of one sequence follow each other.
fn cut(sequences: &[Sequence], dims: Dims) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut first = 0;
    for (index, &sequence) in sequences.iter().enumerate() {
        let n = sequence.n_queries;
        let len = n.div_ceil(CHUNKS).max(CHUNK).next_multiple_of(QUERIES);
        for start in (0..n).step_by(len) {
            let queries = start..(start + len).min(n);
            let keys = dims.visible(start).start / PANEL * PANEL..queries.end;
            first += keys.len();
            chunks.push(Chunk { index, sequence, queries, first: first - keys.len(), keys });
        }
    }
    chunks
}

/// Adds the chunks' gradients of keys (or values), in order. Shapes: `to` [T, H_kv * D] written.
fn join(
    pool: &Pool,
    isa: Isa,
    to: &mut [f32],
    parts: &[f32],
    dims: Dims,
    chunks: &[Chunk],
    n_rows: usize,
) {
    const ROWS: usize = 64;
    let d = dims.d();
    pool.chunks(to, ROWS * dims.kv_width(), |i, to| {
        to.fill(0.0);
        let rows = i * ROWS..i * ROWS + to.len() / dims.kv_width();
        for chunk in chunks {
            let keys =
                chunk.sequence.key_row + chunk.keys.start..chunk.sequence.key_row + chunk.keys.end;
            for row in rows.start.max(keys.start)..rows.end.min(keys.end) {
                for head in 0..dims.shape.n_kv_heads {
                    let from = (head * n_rows + chunk.first + (row - keys.start)) * dims.padded;
                    let at = (row - rows.start) * dims.kv_width() + head * d;
                    let (to, from) = (&mut to[at..at + d], &parts[from..from + d]);
                    on_isa!(isa, s => for_vectors!(s, d, |i| {
                        put(s, &mut to[i.clone()], load(s, &from[i]), true);
                    }));
                }
            }
        }
    });
}

struct Job<'a> {
    dims: Dims,
    given: Given<'a>,
    keys: &'a Panels,
    values: &'a Panels,
    chunk: &'a Chunk,
    kv_head: usize,
    dq: Shared<'a, f32>,
}

/// A block of queries of one head.
struct Queries {
    /// Positions in the sequence.
    positions: Range<usize>,
    /// [n, padded D], times the scale.
    q: Scratch<f32>,
    dout: Scratch<f32>,
    dq: Scratch<f32>,
    delta: [f32; QUERIES],
    lse: [f32; QUERIES],
}

impl Job<'_> {
    /// Shapes: `dk`, `dv` [keys of the chunk, padded D] written.
    #[inline(always)]
    fn run<S: Simd>(self, s: S, dk: &mut [f32], dv: &mut [f32]) {
        dk.fill(0.0);
        dv.fill(0.0);
        let Self { dims, chunk, .. } = &self;
        let mut p = Scratch::<f32>::take(QUERIES * KEYS);
        let mut dscore = Scratch::<f32>::take(QUERIES * KEYS);
        for start in chunk.queries.clone().step_by(QUERIES) {
            let queries = start..(start + QUERIES).min(chunk.queries.end);
            for head in self.kv_head * dims.group..(self.kv_head + 1) * dims.group {
                let mut block = self.queries(s, head, queries.clone());
                let first_key = dims.visible(queries.start).start / PANEL * PANEL;
                for key in (first_key..queries.end).step_by(KEYS) {
                    let keys = key..(key + KEYS).min(queries.end);
                    self.block(s, &mut block, keys.clone(), &mut p, &mut dscore);
                    let at = (key - chunk.keys.start) * dims.padded;
                    let n = keys.len();
                    let (dk, dv) = (&mut dk[at..], &mut dv[at..]);
                    gradient_of_keys(s, dk, &dscore, &block.q, n, key, &queries, *dims);
                    gradient_of_keys(s, dv, &p, &block.dout, n, key, &queries, *dims);
                }
                self.store_dq(s, head, &block);
            }
        }
    }

    #[inline(always)]
    fn queries<S: Simd>(&self, s: S, head: usize, positions: Range<usize>) -> Queries {
        let dims = self.dims;
        let n = positions.len();
        let row = self.chunk.sequence.query_row + positions.start;
        let at = row * dims.q_width() + head * dims.d();
        let width = dims.q_width();
        let mut q = Scratch::take(n * dims.padded);
        gather(s, &mut q, &self.given.q[at..], width, dims, dims.shape.scale);
        let mut dout = Scratch::take(n * dims.padded);
        gather(s, &mut dout, &self.given.dout[at..], width, dims, 1.0);
        let mut delta = [0.0; QUERIES];
        let mut lse = [0.0; QUERIES];
        for i in 0..n {
            let out = &self.given.out[at + i * width..at + i * width + dims.d()];
            let dout = &dout[i * dims.padded..];
            let mut sum = s.splat(0.0);
            for_vectors!(s, dims.d(), |i| {
                sum = s.mul_add(load(s, &out[i.clone()]), load(s, &dout[i]), sum);
            },);
            delta[i] = s.sum(sum);
            lse[i] = self.given.lse[(row + i) * dims.shape.n_heads + head];
        }
        let dq = Scratch::zeroed(n * dims.padded);
        Queries { positions, q, dout, dq, delta, lse }
    }

    /// Probabilities and gradients of the scores of one block, and its part of dq.
    ///
    /// Shapes: `p`, `dscore` [queries, KEYS] written; 0 where the mask hides.
    #[inline(always)]
    fn block<S: Simd>(
        &self,
        s: S,
        block: &mut Queries,
        keys: Range<usize>,
        p: &mut [f32],
        dscore: &mut [f32],
    ) {
        let dims = self.dims;
        let n = block.positions.len();
        for first in (0..n).step_by(TILE) {
            let rows = first..(first + TILE).min(n);
            let elements = rows.start * dims.padded..rows.end * dims.padded;
            let last_key = (block.positions.start + rows.end).min(keys.end);
            let n_keys = last_key.saturating_sub(keys.start);
            for column in (0..n_keys).step_by(PANEL) {
                let columns = (n_keys - column).min(PANEL);
                let panel = (keys.start + column) / PANEL;
                let at = rows.start * KEYS + column;
                let turned = self.keys.turned(self.kv_head, self.chunk.index, panel);
                let to = Grid { data: &mut p[at..], stride: KEYS };
                scores(s, to, &block.q[elements.clone()], turned, columns, dims);
                let turned = self.values.turned(self.kv_head, self.chunk.index, panel);
                let to = Grid { data: &mut dscore[at..], stride: KEYS };
                scores(s, to, &block.dout[elements.clone()], turned, columns, dims);
            }
            for row in rows.clone() {
                let seen = dims.visible(block.positions.start + row);
                let seen = seen.start.clamp(keys.start, keys.end) - keys.start
                    ..seen.end.clamp(keys.start, keys.end) - keys.start;
                let at = row * KEYS..(row + 1) * KEYS;
                let (p, dscore) = (&mut p[at.clone()], &mut dscore[at]);
                for x in [&mut *p, &mut *dscore] {
                    x[..seen.start].fill(0.0);
                    x[seen.end..].fill(0.0);
                }
                let (p, dscore) = (&mut p[seen.clone()], &mut dscore[seen]);
                let (delta, lse) = (block.delta[row], block.lse[row]);
                gradient_of_scores(s, p, dscore, delta, lse, dims.shape.soft_cap);
            }
            let left =
                Left { data: &dscore[rows.start * KEYS..], row_stride: KEYS, step_stride: 1 };
            let rows_of_keys =
                self.keys.rows(self.kv_head, self.chunk.sequence.key_row + keys.start);
            accumulate(s, &mut block.dq[elements], left, rows.len(), rows_of_keys, n_keys, dims);
        }
    }

    #[inline(always)]
    fn store_dq<S: Simd>(&self, s: S, head: usize, block: &Queries) {
        let dims = self.dims;
        let scale = s.splat(dims.shape.scale);
        let row = self.chunk.sequence.query_row + block.positions.start;
        for (i, sums) in block.dq.chunks_exact(dims.padded).enumerate() {
            let at = (row + i) * dims.q_width() + head * dims.d();
            // SAFETY: this head of these rows is this task's alone, and the slice ends here.
            let dq = unsafe { self.dq.slice(at..at + dims.d()) };
            for_vectors!(s, dq.len(), |i| {
                store(s, &mut dq[i.clone()], s.mul(load(s, &sums[i]), scale));
            },);
        }
    }
}

/// Scores become probabilities, and gradients of probabilities those of scores.
#[inline(always)]
fn gradient_of_scores<S: Simd>(
    s: S,
    p: &mut [f32],
    dscore: &mut [f32],
    delta: f32,
    lse: f32,
    soft_cap: Option<f32>,
) {
    if let Some(cap) = soft_cap {
        cap_scores(s, p, cap);
    }
    let (minus_lse, minus_delta) = (s.splat(-lse), s.splat(-delta));
    for_vectors!(s, p.len(), |i| {
        let score = load(s, &p[i.clone()]);
        let e = exp(s, s.add(score, minus_lse));
        let mut d = s.mul(e, s.add(load(s, &dscore[i.clone()]), minus_delta));
        if let Some(cap) = soft_cap {
            let t = s.mul(score, s.splat(1.0 / cap));
            d = s.mul(d, s.sub(s.splat(1.0), s.mul(t, t)));
        }
        store(s, &mut p[i.clone()], e);
        store(s, &mut dscore[i], d);
    },);
}

/// `to += x^T y`, for tiles of keys, over the queries that can see them.
///
/// Shapes: `to` [n keys, padded D] added to, `x` [queries, KEYS], `y` [queries, padded D].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one product, with its mask")]
fn gradient_of_keys<S: Simd>(
    s: S,
    to: &mut [f32],
    x: &[f32],
    y: &[f32],
    n_keys: usize,
    first_key: usize,
    queries: &Range<usize>,
    dims: Dims,
) {
    for key in (0..n_keys).step_by(TILE) {
        let rows = (n_keys - key).min(TILE);
        let first = (first_key + key).saturating_sub(queries.start);
        let steps = queries.len().saturating_sub(first);
        if steps == 0 {
            continue;
        }
        let left = Left { data: &x[first * KEYS + key..], row_stride: 1, step_stride: KEYS };
        let to = &mut to[key * dims.padded..(key + rows) * dims.padded];
        accumulate(s, to, left, rows, &y[first * dims.padded..], steps, dims);
    }
}
