//! RMSNorm over the last axis.
//!
//! Paper: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
//! Ours differs in one thing: `eps` is added inside the root, as Llama does.

use forgelm_kernels_api::Write;

use crate::{dot, put};

/// Shapes: `y` [T, C] written, `inv_rms` [T] written, `x` [T, C], `weight` [C] read.
pub(crate) fn forward(y: &mut [f32], inv_rms: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let c = weight.len();
    assert_eq!(x.len(), inv_rms.len() * c, "x is not [T, C]");
    assert_eq!(y.len(), x.len(), "y is not [T, C]");
    for (r, (x_r, y_r)) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).enumerate() {
        let inv = 1.0 / (dot(x_r, x_r) / c as f64 + f64::from(eps)).sqrt();
        inv_rms[r] = inv as f32;
        for i in 0..c {
            y_r[i] = (f64::from(x_r[i]) * inv * f64::from(weight[i])) as f32;
        }
    }
}

/// With `g = dy * weight` and `s = inv_rms`:
/// `dx = s * (g - x * s^2 * mean(g * x))`.
///
/// Shapes: `dx` [T, C] written or added to; `dy`, `x` [T, C], `inv_rms` [T], `weight` [C] read.
pub(crate) fn backward(
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
    for (r, &inv) in inv_rms.iter().enumerate() {
        let row = r * c..(r + 1) * c;
        let (dx_r, dy_r, x_r) = (&mut dx[row.clone()], &dy[row.clone()], &x[row]);
        let inv = f64::from(inv);
        let g = |i: usize| f64::from(dy_r[i]) * f64::from(weight[i]);
        let mean = (0..c).map(|i| g(i) * f64::from(x_r[i])).sum::<f64>() / c as f64;
        for i in 0..c {
            put(&mut dx_r[i], inv * (g(i) - f64::from(x_r[i]) * inv * inv * mean), write);
        }
    }
}

/// `dweight[c] += sum_t dy[t, c] * x[t, c] * inv_rms[t]`.
///
/// Shapes: `dweight` [C] added to; `dy`, `x` [T, C], `inv_rms` [T] read.
pub(crate) fn weight_backward(dweight: &mut [f32], dy: &[f32], x: &[f32], inv_rms: &[f32]) {
    let c = dweight.len();
    assert_eq!(x.len(), inv_rms.len() * c, "x is not [T, C]");
    assert_eq!(dy.len(), x.len(), "dy is not [T, C]");
    for (i, dweight) in dweight.iter_mut().enumerate() {
        let term = |(r, &inv): (usize, &f32)| {
            f64::from(dy[r * c + i]) * f64::from(x[r * c + i]) * f64::from(inv)
        };
        put(dweight, inv_rms.iter().enumerate().map(term).sum(), Write::Add);
    }
}
