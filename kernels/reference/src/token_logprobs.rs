//! Log-probabilities of labels under the softmax of `x head^T`, one row of logits at a time.

use forgelm_kernels_api::{Compute, FrozenMatrix, Write};

use crate::frozen::PlainMatrix;
use crate::{dot, put};

/// What backward reads. Shapes: `dlogp`, `lse`, `labels` [R], `x` [R, C].
pub(crate) struct Given<'a> {
    pub dlogp: &'a [f32],
    pub lse: &'a [f32],
    pub x: &'a [f32],
    pub labels: &'a [u32],
}

/// Shapes: `logp`, `lse` [R] written; `x` [R, C], `head` [V, C], `labels` [R] read.
pub(crate) fn forward(
    logp: &mut [f32],
    lse: &mut [f32],
    x: &[f32],
    head: &dyn FrozenMatrix,
    labels: &[u32],
    soft_cap: Option<f32>,
) {
    let head = PlainMatrix::of(head);
    let c = head.n_cols();
    assert_eq!(logp.len(), labels.len(), "logp is not [R]");
    assert_eq!(lse.len(), labels.len(), "lse is not [R]");
    assert_eq!(x.len(), labels.len() * c, "x is not [R, C]");
    let x = head.rounded(x);
    for (r, x_r) in x.chunks_exact(c).enumerate() {
        let logits: Vec<f64> =
            (0..head.n_rows()).map(|v| capped(dot(x_r, head.row(v)), soft_cap)).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
        lse[r] = log_sum as f32;
        logp[r] = (logits[labels[r] as usize] - log_sum) as f32;
    }
}

/// The factor of a row of `head` is `onehot - softmax` (times the cap's slope), rounded as the
/// head's format asks; `dlogp` multiplies the finished sum.
///
/// Shapes: `dx` [R, C] written.
pub(crate) fn backward(
    dx: &mut [f32],
    given: &Given<'_>,
    head: &dyn FrozenMatrix,
    soft_cap: Option<f32>,
) {
    let head = PlainMatrix::of(head);
    let c = head.n_cols();
    let &Given { dlogp, lse, x, labels } = given;
    assert_eq!(dlogp.len(), labels.len(), "dlogp is not [R]");
    assert_eq!(lse.len(), labels.len(), "lse is not [R]");
    assert_eq!(x.len(), labels.len() * c, "x is not [R, C]");
    assert_eq!(dx.len(), x.len(), "dx is not [R, C]");
    let x = head.rounded(x);
    let mut sums = vec![0.0_f64; c];
    for (r, (x_r, dx_r)) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)).enumerate() {
        sums.fill(0.0);
        for v in 0..head.n_rows() {
            let logit = capped(dot(x_r, head.row(v)), soft_cap);
            let slope = soft_cap.map_or(1.0, |cap| 1.0 - (logit / f64::from(cap)).powi(2));
            let one_hot = if labels[r] as usize == v { 1.0 } else { 0.0 };
            let factor = (one_hot - (logit - f64::from(lse[r])).exp()) * slope;
            let factor = match head.compute() {
                Compute::F32 => factor,
                Compute::Bf16 => half::bf16::from_f32(factor as f32).to_f64(),
            };
            for (sum, &w) in sums.iter_mut().zip(head.row(v)) {
                *sum += factor * f64::from(w);
            }
        }
        for (dx, &sum) in dx_r.iter_mut().zip(&sums) {
            *dx = (f64::from(dlogp[r]) * sum) as f32;
        }
    }
}

/// The sums over R are of factors in f64, whatever the head's format; its logits are those of
/// forward.
///
/// Shapes: `dhead` [V, C] added to.
pub(crate) fn head_backward(
    dhead: &mut [f32],
    given: &Given<'_>,
    head: &dyn FrozenMatrix,
    soft_cap: Option<f32>,
) {
    let head = PlainMatrix::of(head);
    let c = head.n_cols();
    let &Given { dlogp, lse, x, labels } = given;
    assert_eq!(dlogp.len(), labels.len(), "dlogp is not [R]");
    assert_eq!(lse.len(), labels.len(), "lse is not [R]");
    assert_eq!(x.len(), labels.len() * c, "x is not [R, C]");
    assert_eq!(dhead.len(), head.n_rows() * c, "dhead is not [V, C]");
    let rounded = head.rounded(x);
    let mut sums = vec![0.0_f64; c];
    for (v, dhead_v) in dhead.chunks_exact_mut(c).enumerate() {
        sums.fill(0.0);
        for (r, &label) in labels.iter().enumerate() {
            let row = r * c..(r + 1) * c;
            let logit = capped(dot(&rounded[row.clone()], head.row(v)), soft_cap);
            let slope = soft_cap.map_or(1.0, |cap| 1.0 - (logit / f64::from(cap)).powi(2));
            let one_hot = if label as usize == v { 1.0 } else { 0.0 };
            let factor = (one_hot - (logit - f64::from(lse[r])).exp()) * slope;
            for (sum, &x) in sums.iter_mut().zip(&x[row]) {
                *sum += f64::from(dlogp[r]) * factor * f64::from(x);
            }
        }
        for (dhead, &sum) in dhead_v.iter_mut().zip(&sums) {
            put(dhead, sum, Write::Add);
        }
    }
}

fn capped(logit: f64, soft_cap: Option<f32>) -> f64 {
    soft_cap.map_or(logit, |cap| f64::from(cap) * (logit / f64::from(cap)).tanh())
}
