//! Log-probabilities and their gradients in one pass over the vocabulary.
//!
//! The gradient is a mean of the rows of `head` under the softmax, so it is formed as attention
//! forms its output: factors `e^(logit - max)` of a block (times the cap's slope) meet the block's
//! rows while both are in the cache, and the sum so far is rescaled when the maximum grows. Logits
//! are computed once; with [`super::backward`] after [`super::forward`] it would be twice.
//!
//! Numerics: as forward. Factors are rounded as the head's format asks; the label's own factor is
//! left out of the sum and added at the end in f32, as `1 - p` without cancellation.

use std::ops::Range;

use forgelm_kernels_api::FrozenMatrix;

use super::{Cut, PANELS, ROWS, Rows, Softmax, block_logits, blocks, check, join_softmax, largest};
use crate::frozen::{CpuMatrix, Packed};
use crate::linear::{PackedRows, part};
use crate::math::{exp, for_vectors, load, store};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::{Element, PANEL, put};

/// Shapes: `logp`, `lse` [R] written, `dx` [R, C] written: the gradient of each `logp` by its row.
pub(crate) fn with_gradient(
    pool: &Pool,
    isa: Isa,
    (logp, lse): (&mut [f32], &mut [f32]),
    dx: &mut [f32],
    rows: Rows<'_>,
    head: &dyn FrozenMatrix,
) {
    match CpuMatrix::of(head) {
        CpuMatrix::F32(head) => with_gradient_as(pool, isa, (logp, lse), dx, rows, head),
        CpuMatrix::Bf16(head) => with_gradient_as(pool, isa, (logp, lse), dx, rows, head),
        CpuMatrix::Blocks(head) => {
            let dense = CpuMatrix::pack(pool, isa, &**head, head.compute());
            with_gradient(pool, isa, (logp, lse), dx, rows, &dense);
        }
    }
}

fn with_gradient_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    (logp, lse): (&mut [f32], &mut [f32]),
    dx: &mut [f32],
    rows: Rows<'_>,
    head: &Packed<E>,
) {
    let (r, c) = (rows.labels.len(), head.k());
    check(r, rows, head);
    assert_eq!(dx.len(), r * c, "dx is not [R, C]");
    let cut = Cut::new(r, head);
    let mut parts = vec![Softmax::EMPTY; cut.n_slices * r];
    // [slice][R, C]: sums of factors times rows of head. The first slice's is formed in dx.
    let mut others = Scratch::<f32>::take((cut.n_slices - 1) * r * c);
    let (all_parts, first, later) =
        (Shared::new(&mut parts), Shared::new(&mut *dx), Shared::new(&mut others));
    pool.run(cut.n_tasks(), &|task| {
        let (chunk, slice) = (cut.rows(task), cut.slice(task));
        let elements = chunk.start * c..chunk.end * c;
        let at = slice * r + chunk.start;
        // SAFETY: each task has its own rows of its own slice, here and below.
        let parts = unsafe { all_parts.slice(at..at + chunk.len()) };
        let sums = if slice == 0 {
            // SAFETY: as above.
            unsafe { first.slice(elements) }
        } else {
            let at = (slice - 1) * r * c;
            // SAFETY: as above.
            unsafe { later.slice(at + elements.start..at + elements.end) }
        };
        let panels = part(slice, cut.n_slices, head.n_panels());
        let rows = rows.part(chunk, c);
        on_isa!(isa, s => sum_part(s, parts, sums, rows, head, panels));
    });
    join_softmax(&parts, cut, logp, lse);
    let lse = &*lse;
    pool.chunks(dx, ROWS / 8 * c, |i, dx| {
        let first = i * (ROWS / 8);
        let mut weight = Scratch::<f32>::take(c);
        for (row, dx) in (first..).zip(dx.chunks_exact_mut(c)) {
            head.read_rows(rows.labels[row] as usize, &mut weight);
            let parts = (0..cut.n_slices).map(|slice| {
                let sums = slice.checked_sub(1).map(|at| &others[(at * r + row) * c..][..c]);
                (parts[slice * r + row], sums)
            });
            on_isa!(isa, s => join_row(s, dx, parts, &weight, lse[row], rows.soft_cap));
        }
    });
}

/// The gradient of one row from the sums of all slices.
///
/// Shapes: `dx` [C] holds the sums of the first slice, and is written; `weight` [C] is the row of
/// `head` of the label.
#[inline(always)]
fn join_row<'a, S: Simd>(
    s: S,
    dx: &mut [f32],
    parts: impl Iterator<Item = (Softmax, Option<&'a [f32]>)>,
    weight: &[f32],
    lse: f32,
    soft_cap: Option<f32>,
) {
    let mut own = 0.0;
    for (part, sums) in parts {
        let factor = -(f64::from(part.max) - f64::from(lse)).exp() as f32;
        let factor = s.splat(factor);
        match sums {
            None => for_vectors!(s, dx.len(), |i| {
                let v = s.mul(load(s, &dx[i.clone()]), factor);
                store(s, &mut dx[i], v);
            }),
            Some(sums) => for_vectors!(s, dx.len(), |i| {
                put(s, &mut dx[i.clone()], s.mul(load(s, &sums[i]), factor), true);
            }),
        }
        if let Some(z) = part.label {
            let slope = soft_cap.map_or(1.0, |cap| 1.0 - (z / cap).powi(2));
            // 1 - p = -(e^(z - lse) - 1), without cancellation when p is near 1.
            own = -(f64::from(z) - f64::from(lse)).exp_m1() as f32 * slope;
        }
    }
    let own = s.splat(own);
    for_vectors!(s, dx.len(), |i| {
        put(s, &mut dx[i.clone()], s.mul(load(s, &weight[i]), own), true);
    });
}

/// Shapes: `parts` [rows] and `sums` [rows, C] written.
#[inline(always)]
fn sum_part<S: Simd, E: Element>(
    s: S,
    parts: &mut [Softmax],
    sums: &mut [f32],
    rows: Rows<'_>,
    head: &Packed<E>,
    panels: Range<usize>,
) {
    let (n_rows, c) = (rows.labels.len(), head.k());
    let packed = PackedRows::<E>::new(s, rows.x, c, 0..c);
    let stride = PANELS * E::TERMS * PANEL;
    let mut logits = Scratch::<f32>::take(n_rows * stride);
    let mut turned = Scratch::<E>::take(stride / E::TERMS * PANEL);
    sums.fill(0.0);
    for block in blocks::<E>(panels) {
        let columns = block.start * PANEL..(block.end * PANEL).min(head.n());
        block_logits(s, &mut logits, stride, &packed, head, block.clone(), rows.soft_cap);
        let mut factors = PackedRows::<E>::sized::<S>(n_rows, columns.len().div_ceil(E::TERMS));
        for (row, logits) in logits.chunks_exact_mut(stride).enumerate() {
            let logits = &mut logits[..columns.len()];
            let label = (rows.labels[row] as usize).checked_sub(columns.start);
            let label = label.filter(|&label| label < columns.len());
            let sums = &mut sums[row * c..(row + 1) * c];
            parts[row].absorb_factors(s, logits, label, sums, rows.soft_cap);
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
                    put(s, &mut sums[at..at + width], sum, true);
                },
            );
        }
    }
}

impl Softmax {
    /// As [`Softmax::absorb`]; logits become factors of their rows of `head`, that of the label
    /// 0, and `sums` is rescaled to the new maximum.
    #[inline(always)]
    fn absorb_factors<S: Simd>(
        &mut self,
        s: S,
        logits: &mut [f32],
        label: Option<usize>,
        sums: &mut [f32],
        soft_cap: Option<f32>,
    ) {
        if let Some(label) = label {
            self.label = Some(logits[label]);
        }
        let max = largest(s, logits).max(self.max);
        let (minus_max, one) = (s.splat(-max), s.splat(1.0));
        let mut total = s.splat(0.0);
        let mut rest = 0.0;
        for_vectors!(s, logits.len(), |i| {
            let z = load(s, &logits[i.clone()]);
            let e = exp(s, s.add(z, minus_max));
            let mut factor = e;
            if let Some(cap) = soft_cap {
                let t = s.mul(z, s.splat(1.0 / cap));
                factor = s.mul(e, s.sub(one, s.mul(t, t)));
            }
            if i.len() == S::LANES {
                total = s.add(total, e);
            } else {
                let mut part = [0.0; 16];
                store(s, &mut part[..i.len()], e);
                rest = part.iter().sum();
            }
            store(s, &mut logits[i], factor);
        });
        if let Some(label) = label {
            logits[label] = 0.0;
        }
        let shrink = (self.max - max).exp();
        if max > self.max && self.sum > 0.0 {
            let shrink = s.splat(shrink);
            for_vectors!(s, sums.len(), |i| {
                let v = s.mul(load(s, &sums[i.clone()]), shrink);
                store(s, &mut sums[i], v);
            });
        }
        self.sum = self.sum * shrink + (s.sum(total) + rest);
        self.max = max;
    }
}
