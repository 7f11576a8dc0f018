//! Log-probabilities of labels under the softmax of `x head^T`, in tiles of logits that never
//! leave the cache.
//!
//! The grid: chunks of rows by slices of the vocabulary. Within a slice a task goes through blocks
//! of the vocabulary: logits of the block, then (forward) a running maximum and sum, or (backward)
//! the factors `onehot - softmax` and their product with the block's rows of `head`. Slices are
//! joined in order.
//!
//! Numerics: sums over a block in f32, one accumulator a lane; blocks added in order, rescaled when
//! the maximum grows; slices joined in f64. Backward rounds `onehot - softmax` (times the cap's
//! slope) as the head's format asks, and multiplies by `dlogp` at the end.

mod with_gradient;

use std::ops::Range;

use forgelm_kernels_api::FrozenMatrix;

pub(crate) use with_gradient::with_gradient;

use crate::frozen::{CpuMatrix, Packed};
use crate::linear::{PackedRows, part};
use crate::math::{exp, for_vectors, load, store, tanh};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::{Element, Left, PANEL, Right, Sizes, product, put};

/// Rows of a task, at most.
const ROWS: usize = 128;
/// Elements of packed rows that a task keeps in its cache.
const PACKED: usize = 131_072;
/// Panels of a block, for elements of one term.
const PANELS: usize = 4;
/// Tasks that the grid should have at least, if the vocabulary is large enough.
const TASKS: usize = 16;
/// Panels of a slice, at least.
const PANELS_SLICE: usize = 32;

/// What both directions read. Shapes: `x` [R, C], `labels` [R].
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub x: &'a [f32],
    pub labels: &'a [u32],
    pub soft_cap: Option<f32>,
}

/// Shapes: `logp`, `lse` [R] written; `head` [V, C] read.
pub(crate) fn forward(
    pool: &Pool,
    isa: Isa,
    logp: &mut [f32],
    lse: &mut [f32],
    rows: Rows<'_>,
    head: &dyn FrozenMatrix,
) {
    match CpuMatrix::of(head) {
        CpuMatrix::F32(head) => forward_as(pool, isa, logp, lse, rows, head),
        CpuMatrix::Bf16(head) => forward_as(pool, isa, logp, lse, rows, head),
        CpuMatrix::Blocks(head) => {
            let dense = CpuMatrix::pack(pool, isa, &**head, head.compute());
            forward(pool, isa, logp, lse, rows, &dense);
        }
    }
}

/// What backward reads besides. Shapes: [R].
#[derive(Clone, Copy)]
pub(crate) struct Upstream<'a> {
    pub dlogp: &'a [f32],
    pub lse: &'a [f32],
}

/// Shapes: `dx` [R, C] written.
pub(crate) fn backward(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    upstream: Upstream<'_>,
    rows: Rows<'_>,
    head: &dyn FrozenMatrix,
) {
    match CpuMatrix::of(head) {
        CpuMatrix::F32(head) => backward_as(pool, isa, dx, upstream, rows, head),
        CpuMatrix::Bf16(head) => backward_as(pool, isa, dx, upstream, rows, head),
        CpuMatrix::Blocks(head) => {
            let dense = CpuMatrix::pack(pool, isa, &**head, head.compute());
            backward(pool, isa, dx, upstream, rows, &dense);
        }
    }
}

/// The most slices that the vocabulary is cut into, for this many rows.
pub(crate) fn slices_max(n_rows: usize) -> usize {
    TASKS.div_ceil(n_rows.div_ceil(ROWS).max(1))
}

/// How the work is cut, by sizes alone.
#[derive(Clone, Copy)]
struct Cut {
    n_rows: usize,
    n_chunks: usize,
    n_slices: usize,
}

impl Cut {
    fn new<E: Element>(n_rows: usize, head: &Packed<E>) -> Self {
        let rows = (PACKED / head.steps() / 8 * 8).clamp(16, ROWS);
        let n_chunks = n_rows.div_ceil(rows);
        let n_slices = TASKS.div_ceil(n_chunks.max(1)).min(head.n_panels() / PANELS_SLICE).max(1);
        Self { n_rows, n_chunks, n_slices }
    }

    fn n_tasks(self) -> usize {
        self.n_chunks * self.n_slices
    }

    fn rows(self, task: usize) -> Range<usize> {
        part(task % self.n_chunks, self.n_chunks, self.n_rows)
    }

    fn slice(self, task: usize) -> usize {
        task / self.n_chunks
    }
}

/// The part of a row's softmax that one slice of the vocabulary gives.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    /// Of `e^(logit - max)`.
    sum: f32,
    /// The label's logit, if the label lies in the slice.
    label: Option<f32>,
}

fn forward_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    logp: &mut [f32],
    lse: &mut [f32],
    rows: Rows<'_>,
    head: &Packed<E>,
) {
    let r = rows.labels.len();
    check(r, rows, head);
    let cut = Cut::new(r, head);
    let mut parts = vec![Softmax::EMPTY; cut.n_slices * r];
    let shared = Shared::new(&mut parts);
    pool.run(cut.n_tasks(), &|task| {
        let chunk = cut.rows(task);
        let at = cut.slice(task) * r + chunk.start;
        // SAFETY: each task has its own rows of its own slice.
        let parts = unsafe { shared.slice(at..at + chunk.len()) };
        let panels = part(cut.slice(task), cut.n_slices, head.n_panels());
        let rows = rows.part(chunk, head.k());
        on_isa!(isa, s => forward_part(s, parts, rows, head, panels));
    });
    join_softmax(&parts, cut, logp, lse);
}

/// Joins the slices. Shapes: `parts` [slices, R], `logp`, `lse` [R] written.
fn join_softmax(parts: &[Softmax], cut: Cut, logp: &mut [f32], lse: &mut [f32]) {
    let r = cut.n_rows;
    assert_eq!(logp.len(), r, "logp is not [R]");
    assert_eq!(lse.len(), r, "lse is not [R]");
    for (row, (logp, lse)) in logp.iter_mut().zip(lse).enumerate() {
        let parts = || (0..cut.n_slices).map(|slice| parts[slice * r + row]);
        let max = parts().map(|p| p.max).fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 =
            parts().map(|p| f64::from(p.sum) * (f64::from(p.max) - f64::from(max)).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let label = parts().find_map(|p| p.label).expect("a label outside of the vocabulary");
        *lse = log_sum as f32;
        *logp = (f64::from(label) - log_sum) as f32;
    }
}

impl<'a> Rows<'a> {
    fn part(self, rows: Range<usize>, c: usize) -> Rows<'a> {
        Rows { x: &self.x[rows.start * c..rows.end * c], labels: &self.labels[rows], ..self }
    }
}

fn check<E: Element>(r: usize, rows: Rows<'_>, head: &Packed<E>) {
    assert_eq!(rows.x.len(), r * head.k(), "x is not [R, C]");
    let v = head.n();
    assert!(rows.labels.iter().all(|&l| (l as usize) < v), "a label outside of the vocabulary");
}

/// Blocks of panels that a slice is worked through in.
fn blocks<E: Element>(panels: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let step = PANELS * E::TERMS;
    panels.clone().step_by(step).map(move |p| p..(p + step).min(panels.end))
}

#[inline(always)]
fn forward_part<S: Simd, E: Element>(
    s: S,
    parts: &mut [Softmax],
    rows: Rows<'_>,
    head: &Packed<E>,
    panels: Range<usize>,
) {
    let packed = PackedRows::<E>::new(s, rows.x, head.k(), 0..head.k());
    let stride = PANELS * E::TERMS * PANEL;
    let mut logits = Scratch::<f32>::take(parts.len() * stride);
    for block in blocks::<E>(panels) {
        let columns = block.start * PANEL..(block.end * PANEL).min(head.n());
        block_logits(s, &mut logits, stride, &packed, head, block, rows.soft_cap);
        let logits = logits.chunks_exact(stride);
        for ((part, logits), &label) in parts.iter_mut().zip(logits).zip(rows.labels) {
            let logits = &logits[..columns.len()];
            part.absorb(s, logits);
            if columns.contains(&(label as usize)) {
                part.label = Some(logits[label as usize - columns.start]);
            }
        }
    }
}

impl Softmax {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, label: None };

    #[inline(always)]
    fn absorb<S: Simd>(&mut self, s: S, logits: &[f32]) {
        let max = largest(s, logits).max(self.max);
        let minus_max = s.splat(-max);
        let mut sums = s.splat(0.0);
        let mut rest = 0.0;
        for_vectors!(s, logits.len(), |i| {
            let e = exp(s, s.add(load(s, &logits[i.clone()]), minus_max));
            if i.len() == S::LANES {
                sums = s.add(sums, e);
            } else {
                let mut part = [0.0; 16];
                store(s, &mut part[..i.len()], e);
                rest = part.iter().sum();
            }
        },);
        self.sum = self.sum * (self.max - max).exp() + (s.sum(sums) + rest);
        self.max = max;
    }
}

/// The largest of some numbers; there is at least one.
#[inline(always)]
pub(crate) fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let whole = x.len() / S::LANES * S::LANES;
    let rest = x[whole..].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut max = s.splat(f32::NEG_INFINITY);
    for_vectors!(s, whole, |i| max = s.max(max, s.load(&x[i])),);
    s.largest(max).max(rest)
}

/// Logits of one block of the vocabulary, capped. Shapes: `logits` [rows, stride] written.
#[inline(always)]
fn block_logits<S: Simd, E: Element>(
    s: S,
    logits: &mut [f32],
    stride: usize,
    packed: &PackedRows<E>,
    head: &Packed<E>,
    panels: Range<usize>,
    soft_cap: Option<f32>,
) {
    for (i, p) in panels.enumerate() {
        packed.multiply(
            s,
            head.panel(p),
            PANEL,
            #[inline(always)]
            |row, column, sum, width| {
                let at = row * stride + i * PANEL + column;
                put(s, &mut logits[at..at + width], sum, false);
            },
        );
    }
    if let Some(cap) = soft_cap {
        let (cap, inverse) = (s.splat(cap), s.splat(1.0 / cap));
        for_vectors!(s, logits.len(), |i| {
            let v = tanh(s, s.mul(load(s, &logits[i.clone()]), inverse));
            store(s, &mut logits[i], s.mul(v, cap));
        },);
    }
}

fn backward_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    upstream: Upstream<'_>,
    rows: Rows<'_>,
    head: &Packed<E>,
) {
    let (r, c) = (rows.labels.len(), head.k());
    check(r, rows, head);
    assert_eq!(dx.len(), r * c, "dx is not [R, C]");
    assert_eq!(upstream.dlogp.len(), r, "dlogp is not [R]");
    assert_eq!(upstream.lse.len(), r, "lse is not [R]");
    let cut = Cut::new(r, head);
    // The first slice's part is formed in dx itself.
    let mut others = Scratch::<f32>::take((cut.n_slices - 1) * r * c);
    let (first, later) = (Shared::new(dx), Shared::new(&mut others));
    pool.run(cut.n_tasks(), &|task| {
        let chunk = cut.rows(task);
        let elements = chunk.start * c..chunk.end * c;
        let slice = cut.slice(task);
        let dx = if slice == 0 {
            // SAFETY: each task has its own rows of its own slice.
            unsafe { first.slice(elements) }
        } else {
            let at = (slice - 1) * r * c;
            // SAFETY: as above.
            unsafe { later.slice(at + elements.start..at + elements.end) }
        };
        let panels = part(slice, cut.n_slices, head.n_panels());
        let upstream =
            Upstream { dlogp: &upstream.dlogp[chunk.clone()], lse: &upstream.lse[chunk.clone()] };
        let rows = rows.part(chunk, c);
        on_isa!(isa, s => backward_part(s, dx, upstream, rows, head, panels));
    });
    pool.chunks(dx, ROWS * c, |i, dx| {
        let at = i * ROWS * c;
        for slice in others.chunks_exact(r * c) {
            let part = &slice[at..at + dx.len()];
            on_isa!(isa, s => for_vectors!(s, dx.len(), |i| {
                put(s, &mut dx[i.clone()], load(s, &part[i]), true);
            }));
        }
    });
}

/// Shapes: `dx` [rows, C] written.
#[inline(always)]
fn backward_part<S: Simd, E: Element>(
    s: S,
    dx: &mut [f32],
    upstream: Upstream<'_>,
    rows: Rows<'_>,
    head: &Packed<E>,
    panels: Range<usize>,
) {
    let c = head.k();
    let n_rows = rows.labels.len();
    let packed = PackedRows::<E>::new(s, rows.x, c, 0..c);
    let stride = PANELS * E::TERMS * PANEL;
    let mut logits = Scratch::<f32>::take(n_rows * stride);
    let mut turned = Scratch::<E>::take(stride / E::TERMS * PANEL);
    dx.fill(0.0);
    for block in blocks::<E>(panels) {
        let columns = block.start * PANEL..(block.end * PANEL).min(head.n());
        block_logits(s, &mut logits, stride, &packed, head, block.clone(), rows.soft_cap);
        let steps = columns.len().div_ceil(E::TERMS);
        let mut factors = PackedRows::<E>::sized::<S>(n_rows, steps);
        for (row, logits) in logits.chunks_exact_mut(stride).enumerate() {
            let logits = &mut logits[..columns.len()];
            let label = (rows.labels[row] as usize).checked_sub(columns.start);
            softmax_gradient(s, logits, label, upstream.lse[row], rows.soft_cap);
            E::pack(s, factors.row_mut(row), logits);
        }
        let turned = &mut turned[..block.len() * PANEL / E::TERMS * PANEL];
        for q in 0..c.div_ceil(PANEL) {
            head.turned(s, turned, block.clone(), q);
            factors.multiply(
                s,
                turned,
                (c - q * PANEL).min(PANEL),
                #[inline(always)]
                |row, column, sum, width| {
                    let at = row * c + q * PANEL + column;
                    put(s, &mut dx[at..at + width], sum, true);
                },
            );
        }
    }
    for (dx, &dlogp) in dx.chunks_exact_mut(c).zip(upstream.dlogp) {
        let dlogp = s.splat(dlogp);
        for_vectors!(s, c, |i| {
            let v = s.mul(load(s, &dx[i.clone()]), dlogp);
            store(s, &mut dx[i], v);
        },);
    }
}

/// Panels of the vocabulary of a task of the head's gradient.
const PANELS_TASK: usize = 16;

/// The head's gradient. The grid: parts of the vocabulary, each with all rows, in chunks.
///
/// Numerics: factors and rows in f32 whatever the head's format; each chunk's sums in f32, chunks
/// added in order.
///
/// Shapes: `dhead` [V, C] added to.
pub(crate) fn head_backward(
    pool: &Pool,
    isa: Isa,
    dhead: &mut [f32],
    upstream: Upstream<'_>,
    rows: Rows<'_>,
    head: &dyn FrozenMatrix,
) {
    match CpuMatrix::of(head) {
        CpuMatrix::F32(head) => head_backward_as(pool, isa, dhead, upstream, rows, head),
        CpuMatrix::Bf16(head) => head_backward_as(pool, isa, dhead, upstream, rows, head),
        CpuMatrix::Blocks(head) => {
            let dense = CpuMatrix::pack(pool, isa, &**head, head.compute());
            head_backward(pool, isa, dhead, upstream, rows, &dense);
        }
    }
}

fn head_backward_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    dhead: &mut [f32],
    upstream: Upstream<'_>,
    rows: Rows<'_>,
    head: &Packed<E>,
) {
    let (r, c) = (rows.labels.len(), head.k());
    check(r, rows, head);
    assert_eq!(dhead.len(), head.n() * c, "dhead is not [V, C]");
    assert_eq!(upstream.dlogp.len(), r, "dlogp is not [R]");
    assert_eq!(upstream.lse.len(), r, "lse is not [R]");
    let chunk = (PACKED / c / 8 * 8).clamp(16, ROWS);
    pool.chunks(dhead, PANELS_TASK * PANEL * c, |task, dhead| {
        let first = task * PANELS_TASK;
        let panels = first..(first + PANELS_TASK).min(head.n_panels());
        for start in (0..r).step_by(chunk) {
            let at = start..(start + chunk).min(r);
            let upstream =
                Upstream { dlogp: &upstream.dlogp[at.clone()], lse: &upstream.lse[at.clone()] };
            let rows = rows.part(at, c);
            let panels = panels.clone();
            on_isa!(isa, s => head_backward_part(s, dhead, upstream, rows, head, panels));
        }
    });
}

/// Shapes: `dhead` [columns of the panels, C] added to.
#[inline(always)]
fn head_backward_part<S: Simd, E: Element>(
    s: S,
    dhead: &mut [f32],
    upstream: Upstream<'_>,
    rows: Rows<'_>,
    head: &Packed<E>,
    panels: Range<usize>,
) {
    let (c, n_rows) = (head.k(), rows.labels.len());
    let packed = PackedRows::<E>::new(s, rows.x, c, 0..c);
    // Whole vectors of the rows are read: the last one reaches past them.
    let x_stride = c.next_multiple_of(PANEL);
    let mut x = Scratch::<f32>::take(n_rows * x_stride);
    for (to, from) in x.chunks_exact_mut(x_stride).zip(rows.x.chunks_exact(c)) {
        to[..c].copy_from_slice(from);
        to[c..].fill(0.0);
    }
    let stride = PANELS * E::TERMS * PANEL;
    let mut logits = Scratch::<f32>::take(n_rows * stride);
    let first = panels.start * PANEL;
    for block in blocks::<E>(panels) {
        let columns = block.start * PANEL..(block.end * PANEL).min(head.n());
        block_logits(s, &mut logits, stride, &packed, head, block, rows.soft_cap);
        for (row, logits) in logits.chunks_exact_mut(stride).enumerate() {
            let logits = &mut logits[..columns.len()];
            let label = (rows.labels[row] as usize).checked_sub(columns.start);
            softmax_gradient(s, logits, label, upstream.lse[row], rows.soft_cap);
            let dlogp = s.splat(upstream.dlogp[row]);
            for_vectors!(s, logits.len(), |i| {
                let v = s.mul(load(s, &logits[i.clone()]), dlogp);
                store(s, &mut logits[i], v);
            },);
        }
        let sizes = Sizes { rows: columns.len(), columns: c, steps: n_rows };
        let a = Left { data: &logits, row_stride: 1, step_stride: stride };
        let b = Right { data: &x, step_stride: x_stride };
        product(
            s,
            sizes,
            a,
            b,
            #[inline(always)]
            |row, column, sum, width| {
                let at = (columns.start - first + row) * c + column;
                put(s, &mut dhead[at..at + width], sum, true);
            },
        );
    }
}

/// Logits become `(onehot - softmax)` times the slope of the cap.
#[inline(always)]
fn softmax_gradient<S: Simd>(
    s: S,
    logits: &mut [f32],
    label: Option<usize>,
    lse: f32,
    soft_cap: Option<f32>,
) {
    let at_label = label.and_then(|label| logits.get(label).copied().map(|z| (label, z)));
    let (minus_lse, zero, one) = (s.splat(-lse), s.splat(0.0), s.splat(1.0));
    for_vectors!(s, logits.len(), |i| {
        let z = load(s, &logits[i.clone()]);
        let mut v = s.sub(zero, exp(s, s.add(z, minus_lse)));
        if let Some(cap) = soft_cap {
            let t = s.mul(z, s.splat(1.0 / cap));
            v = s.mul(v, s.sub(one, s.mul(t, t)));
        }
        store(s, &mut logits[i], v);
    },);
    if let Some((label, z)) = at_label {
        let slope = soft_cap.map_or(1.0, |cap| 1.0 - (z / cap).powi(2));
        // 1 - p = -(e^(z - lse) - 1), without cancellation when p is near 1.
        logits[label] = -(f64::from(z) - f64::from(lse)).exp_m1() as f32 * slope;
    }
}
