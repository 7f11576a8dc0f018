//! Ops that copy, scale and gather rows and columns: bound by memory, so plain loops over rows.
//!
//! Numerics: a row is worked on by one task, and its sums run from left to right.

use forgelm_kernels_api::Columns;

use crate::pool::Pool;

/// Elements of a task.
const CHUNK: usize = 32_768;

/// `y = x`.
pub(crate) fn copy(pool: &Pool, y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    pool.chunks(y, CHUNK, |i, y| y.copy_from_slice(&x[i * CHUNK..][..y.len()]));
}

/// Puts `value` everywhere.
pub(crate) fn fill(pool: &Pool, y: &mut [f32], value: f32) {
    pool.chunks(y, CHUNK, |_, y| y.fill(value));
}

/// `y *= factor`.
pub(crate) fn scale(pool: &Pool, y: &mut [f32], factor: f32) {
    pool.chunks(y, CHUNK, |_, y| y.iter_mut().for_each(|y| *y *= factor));
}

/// `y = cap tanh(y / cap)`.
pub(crate) fn soft_cap(pool: &Pool, y: &mut [f32], cap: f32) {
    pool.chunks(y, CHUNK, |_, y| y.iter_mut().for_each(|y| *y = cap * (*y / cap).tanh()));
}

/// Shapes: `y` [T, `to.width`] written, `x` [T, `from.width`] read.
pub(crate) fn copy_columns(
    pool: &Pool,
    (y, to): (&mut [f32], Columns),
    (x, from): (&[f32], Columns),
    n: usize,
) {
    assert_eq!(y.len() / to.width, x.len() / from.width, "y and x differ in T");
    each_row(pool, y, to.width, |row, y| {
        let first = row * from.width + from.first;
        y[to.first..to.first + n].copy_from_slice(&x[first..first + n]);
    });
}

/// Shapes: `y` [R, C] written, `x` [T, C] read.
pub(crate) fn gather(pool: &Pool, y: &mut [f32], x: &[f32], rows: &[u32]) {
    let c = width(y, rows.len());
    each_row(pool, y, c, |r, y| y.copy_from_slice(&x[rows[r] as usize * c..][..c]));
}

/// Shapes: `y` [T, C] added to, `x` [R, C] read.
pub(crate) fn scatter(y: &mut [f32], x: &[f32], rows: &[u32]) {
    let c = width(x, rows.len());
    for (r, &row) in rows.iter().enumerate() {
        let y = &mut y[row as usize * c..][..c];
        y.iter_mut().zip(&x[r * c..(r + 1) * c]).for_each(|(y, x)| *y += x);
    }
}

/// Shapes: `x` [R, C] changed, `factors` [R] read.
pub(crate) fn scale_each(pool: &Pool, x: &mut [f32], factors: &[f32]) {
    let c = width(x, factors.len());
    each_row(pool, x, c, |r, x| x.iter_mut().for_each(|x| *x *= factors[r]));
}

/// Shapes: `dots` [R] written, `a` and `b` [R, C] read.
pub(crate) fn dots(pool: &Pool, dots: &mut [f32], a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "a and b differ in length");
    let c = width(a, dots.len());
    each_row(pool, dots, 1, |r, dot| {
        let at = r * c..(r + 1) * c;
        dot[0] = row_dot(&a[at.clone()], &b[at]);
    });
}

/// Shapes: `x` [R, C] changed.
pub(crate) fn softmax(pool: &Pool, x: &mut [f32], n_cols: usize) {
    assert!(x.len().is_multiple_of(n_cols), "x is not [R, C]");
    each_row(pool, x, n_cols, |_, row| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for x in row.iter_mut() {
            *x = (*x - largest).exp();
            sum += *x;
        }
        row.iter_mut().for_each(|x| *x /= sum);
    });
}

/// Shapes: `h` [R, C] changed, `scores` [R] read.
pub(crate) fn sigmoid_gate_forward(pool: &Pool, h: &mut [f32], scores: &[f32]) {
    let c = width(h, scores.len());
    each_row(pool, h, c, |r, h| {
        let gate = sigmoid(scores[r]);
        h.iter_mut().for_each(|h| *h *= gate);
    });
}

/// Shapes: `dh` [R, C] and `scores` [R] changed, `h` [R, C] read.
pub(crate) fn sigmoid_gate_backward(pool: &Pool, dh: &mut [f32], scores: &mut [f32], h: &[f32]) {
    assert_eq!(dh.len(), h.len(), "dh and h differ in length");
    let c = width(h, scores.len());
    let gates: Vec<f32> = scores.iter().map(|&score| sigmoid(score)).collect();
    each_row(pool, scores, 1, |r, score| {
        let at = r * c..(r + 1) * c;
        score[0] = row_dot(&dh[at.clone()], &h[at]) * gates[r] * (1.0 - gates[r]);
    });
    scale_each(pool, dh, &gates);
}

fn row_dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Calls `task` with each row and its number.
fn each_row(pool: &Pool, x: &mut [f32], width: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    let rows = (CHUNK / width).max(1);
    pool.chunks(x, rows * width, |i, x| {
        x.chunks_exact_mut(width).enumerate().for_each(|(r, x)| task(i * rows + r, x));
    });
}

/// C of a matrix of `n_rows`; any of none.
fn width(x: &[f32], n_rows: usize) -> usize {
    let c = x.len() / n_rows.max(1);
    assert_eq!(x.len(), n_rows * c, "not [R, C]");
    c
}
