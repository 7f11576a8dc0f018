//! RMSNorm over the last axis.
//!
//! Paper: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
//! Ours differs in one thing: `eps` is added inside the root, as Llama does.
//!
//! Numerics: the sum over C in f32, one accumulator a lane, lanes added at the end.

use forgelm_kernels_api::Write;

use crate::columns::{Terms, add_rows};
use crate::math::{for_vectors, load};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::put;

/// Rows of a task.
const ROWS: usize = 32;

/// Shapes: `y` [T, C] written, `inv_rms` [T] written, `x` [T, C], `weight` [C] read.
pub(crate) fn forward(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    inv_rms: &mut [f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
) {
    let c = weight.len();
    assert_eq!(x.len(), inv_rms.len() * c, "x is not [T, C]");
    assert_eq!(y.len(), x.len(), "y is not [T, C]");
    pool.chunks2(y, ROWS * c, inv_rms, ROWS, |i, y, inv_rms| {
        let x = &x[i * ROWS * c..];
        on_isa!(isa, s => forward_rows(s, y, inv_rms, x, weight, eps));
    });
}

#[inline(always)]
fn forward_rows<S: Simd>(
    s: S,
    y: &mut [f32],
    inv_rms: &mut [f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
) {
    let c = weight.len();
    for ((y, x), inv_rms) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(inv_rms) {
        let mean = dot3(s, x, x, None) / c as f32;
        let inv = 1.0 / (mean + eps).sqrt();
        *inv_rms = inv;
        let inv = s.splat(inv);
        for_vectors!(s, c, |i| {
            let scaled = s.mul(load(s, &x[i.clone()]), inv);
            put(s, &mut y[i.clone()], s.mul(scaled, load(s, &weight[i])), false);
        },);
    }
}

/// `sum a b c`, in two accumulators of vectors. Shapes: equal lengths.
#[inline(always)]
fn dot3<S: Simd>(s: S, a: &[f32], b: &[f32], c: Option<&[f32]>) -> f32 {
    let mut sums = [s.splat(0.0); 2];
    let mut n = 0;
    for_vectors!(s, a.len(), |i| {
        let mut term = load(s, &a[i.clone()]);
        if let Some(c) = c {
            term = s.mul(term, load(s, &c[i.clone()]));
        }
        sums[n % 2] = s.mul_add(term, load(s, &b[i]), sums[n % 2]);
        n += 1;
    },);
    s.sum(s.add(sums[0], sums[1]))
}

/// With `g = dy * weight` and `s = inv_rms`: `dx = s * (g - x * s^2 * mean(g * x))`.
///
/// Shapes: `dx` [T, C] written or added to; `dy`, `x` [T, C], `inv_rms` [T], `weight` [C] read.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
pub(crate) fn backward(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    inv_rms: &[f32],
    weight: &[f32],
    write: Write,
) {
    let c = weight.len();
    assert_eq!(x.len(), inv_rms.len() * c, "x is not [T, C]");
    assert_eq!(dx.len(), x.len(), "dx is not [T, C]");
    assert_eq!(dy.len(), x.len(), "dy is not [T, C]");
    pool.chunks(dx, ROWS * c, |i, dx| {
        let (dy, x, inv_rms) = (&dy[i * ROWS * c..], &x[i * ROWS * c..], &inv_rms[i * ROWS..]);
        on_isa!(isa, s => backward_rows(s, dx, dy, x, inv_rms, weight, write));
    });
}

#[inline(always)]
fn backward_rows<S: Simd>(
    s: S,
    dx: &mut [f32],
    dy: &[f32],
    x: &[f32],
    inv_rms: &[f32],
    weight: &[f32],
    write: Write,
) {
    let c = weight.len();
    let rows = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c));
    for (((dx, dy), x), &inv) in rows.zip(inv_rms) {
        let mean = dot3(s, dy, x, Some(weight)) / c as f32;
        let along_x = s.splat(-inv * inv * mean);
        let inv = s.splat(inv);
        for_vectors!(s, c, |i| {
            let g = s.mul(load(s, &dy[i.clone()]), load(s, &weight[i.clone()]));
            let g = s.mul_add(load(s, &x[i.clone()]), along_x, g);
            put(s, &mut dx[i], s.mul(g, inv), write == Write::Add);
        },);
    }
}

/// `dweight[c] += sum_t dy[t, c] * x[t, c] * inv_rms[t]`.
///
/// Shapes: `dweight` [C] added to; `dy`, `x` [T, C], `inv_rms` [T] read.
pub(crate) fn weight_backward(
    pool: &Pool,
    isa: Isa,
    dweight: &mut [f32],
    dy: &[f32],
    x: &[f32],
    inv_rms: &[f32],
) {
    assert_eq!(x.len(), inv_rms.len() * dweight.len(), "x is not [T, C]");
    assert_eq!(dy.len(), x.len(), "dy is not [T, C]");
    let terms = Terms { a: dy, b: Some(x), row_factors: Some(inv_rms) };
    add_rows(pool, isa, dweight, terms);
}
