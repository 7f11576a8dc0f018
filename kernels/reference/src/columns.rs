//! Ops over the columns of a row-major matrix: a bias, a factor for each column, and the sums that
//! are their gradients.

use forgelm_kernels_api::Write;

use crate::put;

/// `y[t] += bias`. Shapes: `y` [T, N], `bias` [N].
pub(crate) fn add_bias(y: &mut [f32], bias: &[f32]) {
    assert!(y.len().is_multiple_of(bias.len()), "y is not [T, N]");
    for row in y.chunks_exact_mut(bias.len()) {
        for (y, &b) in row.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

/// `sums[n] += sum_t x[t, n]`. Shapes: `sums` [N], `x` [T, N].
pub(crate) fn sums(sums: &mut [f32], x: &[f32]) {
    let n = sums.len();
    assert!(x.len().is_multiple_of(n), "x is not [T, N]");
    for (column, sum) in sums.iter_mut().enumerate() {
        let added: f64 = x.chunks_exact(n).map(|row| f64::from(row[column])).sum();
        put(sum, added, Write::Add);
    }
}

/// `y[t, n] = x[t, n] * factors[n]`. Shapes: `y`, `x` [T, N], `factors` [N].
pub(crate) fn scale(y: &mut [f32], x: &[f32], factors: &[f32], write: Write) {
    let n = factors.len();
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert!(x.len().is_multiple_of(n), "x is not [T, N]");
    for (y, x) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
        for ((y, &x), &f) in y.iter_mut().zip(x).zip(factors) {
            put(y, f64::from(x) * f64::from(f), write);
        }
    }
}

/// `sums[n] += sum_t a[t, n] * b[t, n]`. Shapes: `sums` [N], `a`, `b` [T, N].
pub(crate) fn dots(sums: &mut [f32], a: &[f32], b: &[f32]) {
    let n = sums.len();
    assert_eq!(a.len(), b.len(), "a and b differ in length");
    assert!(a.len().is_multiple_of(n), "a is not [T, N]");
    for (column, sum) in sums.iter_mut().enumerate() {
        let rows = a.chunks_exact(n).zip(b.chunks_exact(n));
        let added: f64 = rows.map(|(a, b)| f64::from(a[column]) * f64::from(b[column])).sum();
        put(sum, added, Write::Add);
    }
}
