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
use crate::tile::{Element, Left, PANEL, put};

/// Queries of a block.
const QUERIES: usize = 64;
/// Panels of keys of a block.
const BLOCK: usize = 2;
/// Keys of a block.
const KEYS: usize = BLOCK * PANEL;
/// Queries of a chunk, at least, and chunks of a sequence, at most.
pub(crate) const CHUNK: usize = 128;
pub(crate) const CHUNKS: usize = 8;

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
    match shape.compute {
        Compute::F32 => backward_as::<f32>(pool, isa, dq, dk, dv, given, shape, segments),
        Compute::Bf16 => backward_as::<u32>(pool, isa, dq, dk, dv, given, shape, segments),
    }
}

#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
fn backward_as<E: Element>(
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

    let keys = Panels::<E>::new(pool, isa, given.k, dims, &sequences, Layouts::Both);
    let values = Panels::<E>::new(pool, isa, given.v, dims, &sequences, Layouts::Turned);
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

struct Job<'a, E: Element> {
    dims: Dims,
    given: Given<'a>,
    keys: &'a Panels<E>,
    values: &'a Panels<E>,
    chunk: &'a Chunk,
    kv_head: usize,
    dq: Shared<'a, f32>,
}

/// A block of queries of one head.
struct Queries<E: Element> {
    /// Positions in the sequence.
    positions: Range<usize>,
    /// Times the scale.
    q: Factor<E>,
    dout: Factor<E>,
    dq: Scratch<f32>,
    delta: [f32; QUERIES],
    lse: [f32; QUERIES],
}

/// Rows of queries in the two forms that products need.
struct Factor<E: Element> {
    /// [n, padded D / TERMS], paired along D: for sums over D.
    left: Scratch<E>,
    /// [ceil(n / TERMS), padded D], paired along the queries: for sums over queries.
    right: Scratch<E>,
}

impl<E: Element> Factor<E> {
    /// Shapes: `x` [n, padded D].
    #[inline(always)]
    fn new<S: Simd>(s: S, x: &[f32], dims: Dims) -> Self {
        let n = x.len() / dims.padded;
        let mut left = Scratch::take(x.len() / E::TERMS);
        pack_rows(s, &mut left, x, dims);
        let mut right = Scratch::take(n.div_ceil(E::TERMS) * dims.padded);
        join_rows(s, &mut right, x, dims.padded);
        Self { left, right }
    }
}

/// Joins neighboring rows. Shapes: `x` [n, width], `to` [ceil(n / TERMS), width] written.
#[inline(always)]
fn join_rows<S: Simd, E: Element>(s: S, to: &mut [E], x: &[f32], width: usize) {
    for (to, x) in to.chunks_exact_mut(width).zip(x.chunks(E::TERMS * width)) {
        let (first, second) = x.split_at(width);
        E::join(s, to, first, (!second.is_empty()).then_some(second));
    }
}

/// Probabilities and gradients of scores of a block of queries and keys.
struct Block<E: Element> {
    /// [QUERIES, KEYS]
    p: Scratch<f32>,
    dscore: Scratch<f32>,
    /// [QUERIES / TERMS, KEYS], paired along the queries; empty where elements are single numbers,
    /// as the others then serve.
    joined: [Scratch<E>; 2],
}

impl<E: Element> Block<E> {
    fn new() -> Self {
        let joined = if E::TERMS == 1 { 0 } else { QUERIES / E::TERMS * KEYS };
        Self {
            p: Scratch::take(QUERIES * KEYS),
            dscore: Scratch::take(QUERIES * KEYS),
            joined: [Scratch::take(joined), Scratch::take(joined)],
        }
    }

    /// `p` and `dscore` as left factors of sums over queries. Shapes: [QUERIES / TERMS, KEYS].
    #[inline(always)]
    fn over_queries(&self) -> [&[E]; 2] {
        if E::TERMS == 1 {
            [E::view(f32::bits(&self.p)), E::view(f32::bits(&self.dscore))]
        } else {
            [&self.joined[0], &self.joined[1]]
        }
    }

    /// Rows of queries (a whole number of pairs, unless they are the last) are done: rounds them.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        if E::TERMS == 1 {
            return;
        }
        let from = rows.start * KEYS..rows.end * KEYS;
        let to = from.start / E::TERMS..rows.end.div_ceil(E::TERMS) * KEYS;
        join_rows(s, &mut self.joined[0][to.clone()], &self.p[from.clone()], KEYS);
        join_rows(s, &mut self.joined[1][to], &self.dscore[from.clone()], KEYS);
        for row in self.dscore[from].chunks_exact_mut(KEYS) {
            E::pack_in_place(s, row);
        }
    }
}

impl<E: Element> Job<'_, E> {
    /// Shapes: `dk`, `dv` [keys of the chunk, padded D] written.
    #[inline(always)]
    fn run<S: Simd>(self, s: S, dk: &mut [f32], dv: &mut [f32]) {
        dk.fill(0.0);
        dv.fill(0.0);
        let Self { dims, chunk, .. } = &self;
        let mut block = Block::<E>::new();
        for start in chunk.queries.clone().step_by(QUERIES) {
            let positions = start..(start + QUERIES).min(chunk.queries.end);
            for head in self.kv_head * dims.group..(self.kv_head + 1) * dims.group {
                let mut queries = self.queries(s, head, positions.clone());
                let first_key = dims.visible(positions.start).start / PANEL * PANEL;
                for key in (first_key..positions.end).step_by(KEYS) {
                    let keys = key..(key + KEYS).min(positions.end);
                    self.block(s, &mut queries, keys.clone(), &mut block);
                    let at = (key - chunk.keys.start) * dims.padded;
                    let (dk, dv) = (&mut dk[at..], &mut dv[at..]);
                    let [p, dscore] = block.over_queries();
                    gradient_of_keys(s, dk, dscore, &queries.q.right, &keys, &positions, *dims);
                    gradient_of_keys(s, dv, p, &queries.dout.right, &keys, &positions, *dims);
                }
                self.store_dq(s, head, &queries);
            }
        }
    }

    #[inline(always)]
    fn queries<S: Simd>(&self, s: S, head: usize, positions: Range<usize>) -> Queries<E> {
        let dims = self.dims;
        let n = positions.len();
        let row = self.chunk.sequence.query_row + positions.start;
        let at = row * dims.q_width() + head * dims.d();
        let width = dims.q_width();
        let mut gathered = Scratch::<f32>::take(n * dims.padded);
        gather(s, &mut gathered, &self.given.q[at..], width, dims, dims.shape.scale);
        let q = Factor::new(s, &gathered, dims);
        gather(s, &mut gathered, &self.given.dout[at..], width, dims, 1.0);
        let mut delta = [0.0; QUERIES];
        let mut lse = [0.0; QUERIES];
        for i in 0..n {
            let out = &self.given.out[at + i * width..at + i * width + dims.d()];
            let dout = &gathered[i * dims.padded..];
            let mut sum = s.splat(0.0);
            for_vectors!(s, dims.d(), |i| {
                sum = s.mul_add(load(s, &out[i.clone()]), load(s, &dout[i]), sum);
            },);
            delta[i] = s.sum(sum);
            lse[i] = self.given.lse[(row + i) * dims.shape.n_heads + head];
        }
        let dout = Factor::new(s, &gathered, dims);
        let dq = Scratch::zeroed(n * dims.padded);
        Queries { positions, q, dout, dq, delta, lse }
    }

    /// Probabilities and gradients of the scores of one block (0 where the mask hides), and its
    /// part of dq.
    #[inline(always)]
    fn block<S: Simd>(
        &self,
        s: S,
        queries: &mut Queries<E>,
        keys: Range<usize>,
        block: &mut Block<E>,
    ) {
        let dims = self.dims;
        let n = queries.positions.len();
        let (head, index) = (self.kv_head, self.chunk.index);
        for first in (0..n).step_by(TILE) {
            let rows = first..(first + TILE).min(n);
            let elements = rows.start * dims.padded..rows.end * dims.padded;
            let left = elements.start / E::TERMS..elements.end / E::TERMS;
            let last_key = (queries.positions.start + rows.end).min(keys.end);
            let n_keys = last_key.saturating_sub(keys.start);
            for column in (0..n_keys).step_by(PANEL) {
                let columns = (n_keys - column).min(PANEL);
                let panel = (keys.start + column) / PANEL;
                let at = rows.start * KEYS + column;
                let turned = self.keys.turned(head, index, panel);
                let to = Grid { data: &mut block.p[at..], stride: KEYS };
                scores(s, to, &queries.q.left[left.clone()], turned, columns, dims);
                let turned = self.values.turned(head, index, panel);
                let to = Grid { data: &mut block.dscore[at..], stride: KEYS };
                scores(s, to, &queries.dout.left[left.clone()], turned, columns, dims);
            }
            for row in rows.clone() {
                let seen = dims.visible(queries.positions.start + row);
                let seen = seen.start.clamp(keys.start, keys.end) - keys.start
                    ..seen.end.clamp(keys.start, keys.end) - keys.start;
                let at = row * KEYS..(row + 1) * KEYS;
                let (p, dscore) = (&mut block.p[at.clone()], &mut block.dscore[at]);
                for x in [&mut *p, &mut *dscore] {
                    x[..seen.start].fill(0.0);
                    x[seen.end..].fill(0.0);
                }
                let (p, dscore) = (&mut p[seen.clone()], &mut dscore[seen]);
                let (delta, lse) = (queries.delta[row], queries.lse[row]);
                gradient_of_scores(s, p, dscore, delta, lse, dims.shape.soft_cap);
            }
            block.pack(s, rows.clone());
            let data = &E::view(f32::bits(&block.dscore))[rows.start * KEYS..];
            let left = Left { data, row_stride: KEYS, step_stride: 1 };
            let rows_of_keys = self.keys.rows(head, index, keys.start);
            let steps = n_keys.div_ceil(E::TERMS);
            let dq = &mut queries.dq[elements];
            accumulate(s, dq, left, rows.len(), rows_of_keys, steps, dims);
        }
    }

    #[inline(always)]
    fn store_dq<S: Simd>(&self, s: S, head: usize, block: &Queries<E>) {
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
/// Shapes: `to` [n keys, padded D] added to, `x` [ceil(queries / TERMS), KEYS],
/// `y` [ceil(queries / TERMS), padded D].
#[inline(always)]
fn gradient_of_keys<S: Simd, E: Element>(
    s: S,
    to: &mut [f32],
    x: &[E],
    y: &[E],
    keys: &Range<usize>,
    queries: &Range<usize>,
    dims: Dims,
) {
    for key in (0..keys.len()).step_by(TILE) {
        let rows = (keys.len() - key).min(TILE);
        let first = (keys.start + key).saturating_sub(queries.start) / E::TERMS;
        let steps = queries.len().div_ceil(E::TERMS).saturating_sub(first);
        if steps == 0 {
            continue;
        }
        let left = Left { data: &x[first * KEYS + key..], row_stride: 1, step_stride: KEYS };
        let to = &mut to[key * dims.padded..(key + rows) * dims.padded];
        accumulate(s, to, left, rows, &y[first * dims.padded..], steps, dims);
    }
}
