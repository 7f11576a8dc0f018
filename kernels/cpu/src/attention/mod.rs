//! Causal attention within segments, in tiles.
//!
//! Papers: Vaswani et al. 2017, eq. 1; blocks of keys with a running maximum, and the gradient from
//! stored log-sums: Dao 2023, arXiv:2307.08691; grouped heads: Ainslie et al. 2023.
//!
//! Every op here first lays the keys and values of each key/value head out for
//! [`tile`](crate::tile): transposed in panels of 48 keys (for scores) and as contiguous rows (for
//! sums over keys). Query heads that share a key/value head share these. Head sizes are padded to
//! whole vectors. What the mask hides is skipped by vectors of keys and rows of eight queries.
//!
//! Everything is generic over the elements that products are formed of: f32, or pairs of bfloat16
//! when [`AttentionShape::compute`] says so. Factors are paired along what a product sums over, so
//! gradients need the same numbers paired in two directions.
//!
//! Numerics: sums are f32, over D and over keys in the order of the index, blocks added in order. In
//! bfloat16 the factors of all seven products are rounded (`scale * q`, k, v, dout, probabilities and
//! gradients of scores); the exponential, its sum, log-sums and `delta` stay f32.

pub(crate) mod backward;
mod cached;
mod forward;

use std::ops::Range;

use forgelm_kernels_api::{AttentionShape, Segment};

pub(crate) use backward::{Given, backward};
pub(crate) use cached::cached;
pub(crate) use forward::forward;

use crate::math::{for_vectors, load, store, tanh};
use crate::pool::Pool;
use crate::scratch::{Bits, Scratch};
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Grid, Isa, Simd};
use crate::tile::{Element, Left, PANEL, Right, Sizes, product, put};

/// Queries of one head that are worked on together.
const TILE: usize = 8;

/// Sizes that several functions need.
#[derive(Clone, Copy)]
struct Dims {
    shape: AttentionShape,
    /// D, padded to whole vectors of any instruction set.
    padded: usize,
    /// Query heads of one key/value head.
    group: usize,
}

impl Dims {
    fn new(shape: &AttentionShape) -> Self {
        let (h, h_kv) = (shape.n_heads, shape.n_kv_heads);
        assert!(h.is_multiple_of(h_kv), "query heads are no multiple of key/value heads");
        assert!(shape.window != Some(0), "a window of 0 sees nothing");
        Self { shape: *shape, padded: shape.head_dim.next_multiple_of(16), group: h / h_kv }
    }

    fn d(&self) -> usize {
        self.shape.head_dim
    }

    /// Width of a row of queries.
    fn q_width(&self) -> usize {
        self.shape.n_heads * self.shape.head_dim
    }

    /// Width of a row of keys.
    fn kv_width(&self) -> usize {
        self.shape.n_kv_heads * self.shape.head_dim
    }

    /// Keys that the query at a position of its sequence sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }
}

/// Queries `first..first + n_queries` of a sequence of `n_keys` positions: the unit of the mask.
#[derive(Clone, Copy)]
struct Sequence {
    /// First row of the keys.
    key_row: usize,
    n_keys: usize,
    /// First row of the queries.
    query_row: usize,
    n_queries: usize,
    /// Position of the first query.
    first_position: usize,
}

/// Checks that segments lie end to end, and returns them with T.
fn sequences(segments: &[Segment]) -> (Vec<Sequence>, usize) {
    let mut end = 0;
    let sequences = segments
        .iter()
        .map(|&Segment { start, len }| {
            assert_eq!(start, end, "segments do not lie end to end");
            end += len;
            Sequence {
                key_row: start,
                n_keys: len,
                query_row: start,
                n_queries: len,
                first_position: 0,
            }
        })
        .collect();
    (sequences, end)
}

/// Keys or values of all sequences, laid out head by head.
struct Panels<E: Element> {
    /// [H_kv][panel][ceil(D / TERMS), PANEL]: transposed, paired along D. Keys past the end are
    /// zero.
    turned: Scratch<E>,
    /// [H_kv][ceil(keys / TERMS) of each sequence][padded D]: paired along the keys; columns past D
    /// are zero. Empty if it was not asked for.
    rows: Scratch<E>,
    /// First panel and first of `rows` of each sequence.
    first: Vec<(usize, usize)>,
    n_panels: usize,
    n_rows: usize,
    dims: Dims,
}

/// What of [`Panels`] is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layouts {
    Turned,
    Rows,
    Both,
}

impl<E: Element> Panels<E> {
    /// Shapes: `x` [T, H_kv * D].
    fn new(
        pool: &Pool,
        isa: Isa,
        x: &[f32],
        dims: Dims,
        sequences: &[Sequence],
        layouts: Layouts,
    ) -> Self {
        let n_heads = dims.shape.n_kv_heads;
        // (first row of x, keys, first of `rows`) of each panel
        let mut pieces = Vec::new();
        let mut first = Vec::with_capacity(sequences.len());
        let mut n_rows = 0;
        for sequence in sequences {
            first.push((pieces.len(), n_rows));
            for key in (0..sequence.n_keys).step_by(PANEL) {
                let n = (sequence.n_keys - key).min(PANEL);
                pieces.push((sequence.key_row + key, n, n_rows));
                n_rows += n.div_ceil(E::TERMS);
            }
        }
        let n_panels = pieces.len();
        let d = dims.d();
        let turned_len = if layouts == Layouts::Rows { 0 } else { d.div_ceil(E::TERMS) * PANEL };
        let rows_len = if layouts == Layouts::Turned { 0 } else { dims.padded };
        let mut turned = Scratch::take(n_heads * n_panels * turned_len);
        let mut rows = Scratch::take(n_heads * n_rows * rows_len);
        let (turned_parts, row_parts) = (Shared::new(&mut turned), Shared::new(&mut rows));
        pool.run(n_heads * n_panels, &|task| {
            let (head, panel) = (task / n_panels, task % n_panels);
            let (first_row, n, first_of_rows) = pieces[panel];
            let at = first_row * dims.kv_width() + head * d;
            let from = Grid { data: &x[at..], stride: dims.kv_width() };
            let first = head * n_rows + first_of_rows;
            let to_rows = first * rows_len..(first + n.div_ceil(E::TERMS)) * rows_len;
            let to_turned = task * turned_len..(task + 1) * turned_len;
            // SAFETY: each task has its own panel of its own head, in both layouts.
            let (turned, rows) =
                unsafe { (turned_parts.slice(to_turned), row_parts.slice(to_rows)) };
            on_isa!(isa, s => lay_out(s, turned, rows, from, n, dims));
        });
        Self { turned, rows, first, n_panels, n_rows, dims }
    }

    /// Panel `p` of a sequence. Shapes: [ceil(D / TERMS), PANEL].
    #[inline(always)]
    fn turned(&self, head: usize, sequence: usize, p: usize) -> &[E] {
        let len = self.dims.d().div_ceil(E::TERMS) * PANEL;
        let panel = head * self.n_panels + self.first[sequence].0 + p;
        &self.turned[panel * len..(panel + 1) * len]
    }

    /// Keys `first_key..` of a sequence, the first of a pair. Shapes: [.., padded D].
    #[inline(always)]
    fn rows(&self, head: usize, sequence: usize, first_key: usize) -> &[E] {
        let row = head * self.n_rows + self.first[sequence].1 + first_key / E::TERMS;
        &self.rows[row * self.dims.padded..]
    }
}

/// Shapes: `turned` [ceil(D / TERMS), PANEL] written unless empty, `rows`
/// [ceil(n / TERMS), padded D] written unless empty.
#[inline(always)]
fn lay_out<S: Simd, E: Element>(
    s: S,
    turned: &mut [E],
    rows: &mut [E],
    from: Grid<&[f32]>,
    n: usize,
    dims: Dims,
) {
    let d = dims.d();
    let row = |i: usize| &from.data[i * from.stride..i * from.stride + d];
    for (i, to) in rows.chunks_exact_mut(dims.padded).enumerate() {
        let (first, second) = (i * E::TERMS, i * E::TERMS + 1);
        let second = (E::TERMS > 1 && second < n).then(|| row(second));
        E::join(s, &mut to[..d], row(first), second);
        to[d..].fill(E::ZERO);
    }
    if turned.is_empty() {
        return;
    }
    if n < PANEL {
        turned.fill(E::ZERO);
    }
    let to = Grid { data: E::bits_mut(turned), stride: PANEL };
    if E::TERMS == 1 {
        s.transpose(to, Grid { data: f32::bits(from.data), stride: from.stride }, n, d);
        return;
    }
    let steps = d.div_ceil(E::TERMS);
    let mut packed = Scratch::<E>::take(n * steps);
    for (i, to) in packed.chunks_exact_mut(steps).enumerate() {
        E::pack(s, to, row(i));
    }
    s.transpose(to, Grid { data: E::bits(&packed), stride: steps }, n, steps);
}

/// Copies rows of one head, times a factor, padded. Shapes: `to` [n, padded D] written.
#[inline(always)]
fn gather<S: Simd>(s: S, to: &mut [f32], x: &[f32], width: usize, dims: Dims, factor: f32) {
    let d = dims.d();
    let factor = s.splat(factor);
    for (row, to) in to.chunks_exact_mut(dims.padded).enumerate() {
        let x = &x[row * width..row * width + d];
        for_vectors!(s, d, |i| store(s, &mut to[i.clone()], s.mul(load(s, &x[i]), factor)),);
        to[d..].fill(0.0);
    }
}

/// Packs gathered rows along D: the left factor of [`scores`].
/// Shapes: `to` [n, padded D / TERMS] written, `x` [n, padded D].
#[inline(always)]
fn pack_rows<S: Simd, E: Element>(s: S, to: &mut [E], x: &[f32], dims: Dims) {
    let rows = to.chunks_exact_mut(dims.padded / E::TERMS);
    for (to, x) in rows.zip(x.chunks_exact(dims.padded)) {
        E::pack(s, to, x);
    }
}

/// `to[row, ..] = a[row, ..] panel`: scores of some queries and keys.
/// Shapes: `a` [rows, padded D / TERMS], `panel` [ceil(D / TERMS), PANEL], `to` [rows, stride]
/// written in whole vectors that cover `columns`.
#[inline(always)]
fn scores<S: Simd, E: Element>(
    s: S,
    to: Grid<&mut [f32]>,
    a: &[E],
    panel: &[E],
    columns: usize,
    dims: Dims,
) {
    let row_stride = dims.padded / E::TERMS;
    let sizes = Sizes { rows: a.len() / row_stride, columns, steps: dims.d().div_ceil(E::TERMS) };
    let left = Left { data: a, row_stride, step_stride: 1 };
    let right = Right { data: panel, step_stride: PANEL };
    product(
        s,
        sizes,
        left,
        right,
        #[inline(always)]
        |row, column, sum, _| {
            s.store(&mut to.data[row * to.stride + column..], sum);
        },
    );
}

/// `to += a b`. Shapes: `b` [steps, padded D] read, `to` [rows, padded D] added to.
#[inline(always)]
fn accumulate<S: Simd, E: Element>(
    s: S,
    to: &mut [f32],
    a: Left<'_, E>,
    rows: usize,
    b: &[E],
    steps: usize,
    dims: Dims,
) {
    let sizes = Sizes { rows, columns: dims.padded, steps };
    let right = Right { data: b, step_stride: dims.padded };
    product(
        s,
        sizes,
        a,
        right,
        #[inline(always)]
        |row, column, sum, width| {
            let at = row * dims.padded + column;
            put(s, &mut to[at..at + width], sum, true);
        },
    );
}

/// Scores become `cap * tanh(score / cap)`.
#[inline(always)]
fn cap_scores<S: Simd>(s: S, scores: &mut [f32], cap: f32) {
    let (size, inverse) = (s.splat(cap), s.splat(1.0 / cap));
    for_vectors!(s, scores.len(), |i| {
        let t = tanh(s, s.mul(load(s, &scores[i.clone()]), inverse));
        store(s, &mut scores[i], s.mul(t, size));
    },);
}
