//! Ops over the columns of a row-major matrix: a bias, a factor for each column, and the sums that
//! are their gradients.
//!
//! The grid of the sums: groups of columns; a task goes through all rows of its own.
//!
//! Numerics: rows are summed in f32 in blocks of [`ROWS`], in order, and so are the blocks.

use forgelm_kernels_api::Write;

use crate::math::{for_vectors, load};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::put;

/// Columns of a task.
const COLUMNS: usize = 128;
/// Rows that are summed before they are added to the rest.
const ROWS: usize = 64;
/// Elements of a task that changes each element.
const CHUNK: usize = 32_768;

/// What is summed: `a`, times `b`, times a factor for each row.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// [T, N]
    pub a: &'a [f32],
    /// [T, N]
    pub b: Option<&'a [f32]>,
    /// [T]
    pub row_factors: Option<&'a [f32]>,
}

/// `sums[n] += sum_t x[t, n]`. Shapes: `sums` [N], `x` [T, N].
pub(crate) fn sums(pool: &Pool, isa: Isa, sums: &mut [f32], x: &[f32]) {
    add_rows(pool, isa, sums, Terms { a: x, b: None, row_factors: None });
}

/// `sums[n] += sum_t a[t, n] * b[t, n]`. Shapes: `sums` [N], `a`, `b` [T, N].
pub(crate) fn dots(pool: &Pool, isa: Isa, sums: &mut [f32], a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "a and b differ in length");
    add_rows(pool, isa, sums, Terms { a, b: Some(b), row_factors: None });
}

/// Adds the terms of every row. Shapes: `sums` [N] added to.
pub(crate) fn add_rows(pool: &Pool, isa: Isa, sums: &mut [f32], terms: Terms<'_>) {
    let n = sums.len();
    assert!(terms.a.len().is_multiple_of(n), "the terms are not [T, N]");
    pool.chunks(sums, COLUMNS, |i, sums| {
        on_isa!(isa, s => part(s, sums, terms, n, i * COLUMNS));
    });
}

#[inline(always)]
fn part<S: Simd>(s: S, sums: &mut [f32], terms: Terms<'_>, n: usize, first: usize) {
    let width = sums.len();
    let n_rows = terms.a.len() / n;
    for block in (0..n_rows).step_by(ROWS) {
        let mut block_sums = [0.0_f32; COLUMNS];
        let block_sums = &mut block_sums[..width];
        for row in block..(block + ROWS).min(n_rows) {
            let at = row * n + first;
            let a = &terms.a[at..at + width];
            let b = terms.b.map(|b| &b[at..at + width]);
            let factor = terms.row_factors.map(|f| s.splat(f[row]));
            for_vectors!(s, width, |i| {
                let mut term = load(s, &a[i.clone()]);
                if let Some(b) = b {
                    term = s.mul(term, load(s, &b[i.clone()]));
                }
                if let Some(factor) = factor {
                    term = s.mul(term, factor);
                }
                put(s, &mut block_sums[i], term, true);
            },);
        }
        for_vectors!(s, width, |i| {
            put(s, &mut sums[i.clone()], load(s, &block_sums[i]), true);
        },);
    }
}

/// `y[t] += bias`. Shapes: `y` [T, N], `bias` [N].
pub(crate) fn add_bias(pool: &Pool, isa: Isa, y: &mut [f32], bias: &[f32]) {
    let n = bias.len();
    assert!(y.len().is_multiple_of(n), "y is not [T, N]");
    pool.chunks(y, (CHUNK / n).max(1) * n, |_, y| {
        on_isa!(isa, s => for row in y.chunks_exact_mut(n) {
            for_vectors!(s, n, |i| put(s, &mut row[i.clone()], load(s, &bias[i]), true),);
        });
    });
}

/// `y[t, n] = x[t, n] * factors[n]`. Shapes: `y`, `x` [T, N], `factors` [N].
pub(crate) fn scale(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    factors: &[f32],
    write: Write,
) {
    let n = factors.len();
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert!(x.len().is_multiple_of(n), "x is not [T, N]");
    let chunk = (CHUNK / n).max(1) * n;
    pool.chunks(y, chunk, |i, y| {
        let x = &x[i * chunk..i * chunk + y.len()];
        let add = write == Write::Add;
        on_isa!(isa, s => for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            for_vectors!(s, n, |i| {
                let v = s.mul(load(s, &x[i.clone()]), load(s, &factors[i.clone()]));
                put(s, &mut y[i], v, add);
            },);
        });
    });
}
