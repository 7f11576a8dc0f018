//! Ops that copy, scale and gather rows and columns.

use forgelm_kernels_api::Columns;

/// `y = x`.
pub(crate) fn copy(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    y.copy_from_slice(x);
}

/// `y *= factor`.
pub(crate) fn scale(y: &mut [f32], factor: f32) {
    y.iter_mut().for_each(|y| *y *= factor);
}

/// `y = cap tanh(y / cap)`.
pub(crate) fn soft_cap(y: &mut [f32], cap: f32) {
    let cap = f64::from(cap);
    y.iter_mut().for_each(|y| *y = (cap * (f64::from(*y) / cap).tanh()) as f32);
}

/// Shapes: `y` [T, `to.width`] written, `x` [T, `from.width`] read.
pub(crate) fn copy_columns((y, to): (&mut [f32], Columns), (x, from): (&[f32], Columns), n: usize) {
    assert_eq!(y.len() / to.width, x.len() / from.width, "y and x differ in T");
    for (y, x) in y.chunks_exact_mut(to.width).zip(x.chunks_exact(from.width)) {
        y[to.first..to.first + n].copy_from_slice(&x[from.first..from.first + n]);
    }
}

/// Shapes: `y` [R, C] written, `x` [T, C] read.
pub(crate) fn gather(y: &mut [f32], x: &[f32], rows: &[u32]) {
    let c = width(y, rows.len());
    for (r, &row) in rows.iter().enumerate() {
        y[r * c..(r + 1) * c].copy_from_slice(&x[row as usize * c..][..c]);
    }
}

/// Shapes: `y` [T, C] added to, `x` [R, C] read.
pub(crate) fn scatter(y: &mut [f32], x: &[f32], rows: &[u32]) {
    let c = width(x, rows.len());
    for (r, &row) in rows.iter().enumerate() {
        let y = &mut y[row as usize * c..][..c];
        y.iter_mut().zip(&x[r * c..]).for_each(|(y, x)| *y += x);
    }
}

/// Shapes: `x` [R, C] changed, `factors` [R] read.
pub(crate) fn scale_each(x: &mut [f32], factors: &[f32]) {
    let c = width(x, factors.len());
    for (i, x) in x.iter_mut().enumerate() {
        *x *= factors[i / c];
    }
}

/// Shapes: `dots` [R] written, `a` and `b` [R, C] read.
pub(crate) fn dots(dots: &mut [f32], a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "a and b differ in length");
    let c = width(a, dots.len());
    for (r, dot) in dots.iter_mut().enumerate() {
        let at = r * c..(r + 1) * c;
        *dot = crate::dot(&a[at.clone()], &b[at]) as f32;
    }
}

/// Shapes: `x` [R, C] changed.
pub(crate) fn softmax(x: &mut [f32], n_cols: usize) {
    assert!(x.len().is_multiple_of(n_cols), "x is not [R, C]");
    for row in x.chunks_exact_mut(n_cols) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |x: f32| (f64::from(x) - f64::from(largest)).exp();
        let sum: f64 = row.iter().map(|&x| exp(x)).sum();
        row.iter_mut().for_each(|x| *x = (exp(*x) / sum) as f32);
    }
}

/// Shapes: `h` [R, C] changed, `scores` [R] read.
pub(crate) fn sigmoid_gate_forward(h: &mut [f32], scores: &[f32]) {
    let c = width(h, scores.len());
    for (i, h) in h.iter_mut().enumerate() {
        *h = (f64::from(*h) * sigmoid(scores[i / c])) as f32;
    }
}

/// Shapes: `dh` [R, C] and `scores` [R] changed, `h` [R, C] read.
pub(crate) fn sigmoid_gate_backward(dh: &mut [f32], scores: &mut [f32], h: &[f32]) {
    assert_eq!(dh.len(), h.len(), "dh and h differ in length");
    let c = width(h, scores.len());
    for (r, score) in scores.iter_mut().enumerate() {
        let at = r * c..(r + 1) * c;
        let gate = sigmoid(*score);
        let slope = gate * (1.0 - gate);
        *score = (crate::dot(&dh[at.clone()], &h[at.clone()]) * slope) as f32;
        dh[at].iter_mut().for_each(|dh| *dh = (f64::from(*dh) * gate) as f32);
    }
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

/// C of a matrix of `n_rows`; any of none.
fn width(x: &[f32], n_rows: usize) -> usize {
    let c = x.len() / n_rows.max(1);
    assert_eq!(x.len(), n_rows * c, "not [R, C]");
    c
}
