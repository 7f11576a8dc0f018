//! Products with a frozen weight.

use forgelm_kernels_api::{FrozenMatrix, LowRank, Write};

use crate::frozen::PlainMatrix;
use crate::{dot, put};

/// `y = x w^T`, and `scale * u v^T`. Shapes: `y` [T, N], `x` [T, K], `w` [N, K], `u` [T, r],
/// `v` [N, r].
pub(crate) fn forward(
    y: &mut [f32],
    x: &[f32],
    w: &dyn FrozenMatrix,
    low_rank: Option<LowRank<'_>>,
    write: Write,
) {
    let w = PlainMatrix::of(w);
    let (n, k) = (w.n_rows(), w.n_cols());
    assert!(x.len().is_multiple_of(k), "x is not [T, K]");
    assert_eq!(y.len() / n, x.len() / k, "y and x differ in T");
    assert!(y.len().is_multiple_of(n), "y is not [T, N]");
    let x = w.rounded(x);
    for (t, (y_t, x_t)) in y.chunks_exact_mut(n).zip(x.chunks_exact(k)).enumerate() {
        for (j, y_tj) in y_t.iter_mut().enumerate() {
            let beside = low_rank.map_or(0.0, |LowRank { u, v, scale }| {
                let (u, v) = (u.on_host(), v.on_host());
                let r = v.len() / n;
                f64::from(scale) * dot(&u[t * r..(t + 1) * r], &v[j * r..(j + 1) * r])
            });
            put(y_tj, dot(x_t, w.row(j)) + beside, write);
        }
    }
}

/// `dx = dy w`, and `scale * u v`. Shapes: `dx` [T, K], `dy` [T, N], `w` [N, K], `u` [T, r],
/// `v` [r, K].
pub(crate) fn backward(
    dx: &mut [f32],
    dy: &[f32],
    w: &dyn FrozenMatrix,
    low_rank: Option<LowRank<'_>>,
    write: Write,
) {
    let w = PlainMatrix::of(w);
    let (n, k) = (w.n_rows(), w.n_cols());
    assert!(dy.len().is_multiple_of(n), "dy is not [T, N]");
    assert_eq!(dx.len() / k, dy.len() / n, "dx and dy differ in T");
    assert!(dx.len().is_multiple_of(k), "dx is not [T, K]");
    let dy = w.rounded(dy);
    let mut sums = vec![0.0_f64; k];
    for (t, (dx_t, dy_t)) in dx.chunks_exact_mut(k).zip(dy.chunks_exact(n)).enumerate() {
        sums.fill(0.0);
        if let Some(LowRank { u, v, scale }) = low_rank {
            let (u, v) = (u.on_host(), v.on_host());
            let r = v.len() / k;
            for (&u_ti, v_i) in u[t * r..(t + 1) * r].iter().zip(v.chunks_exact(k)) {
                for (sum, &v_ic) in sums.iter_mut().zip(v_i) {
                    *sum += f64::from(scale) * f64::from(u_ti) * f64::from(v_ic);
                }
            }
        }
        for (j, &dy_tj) in dy_t.iter().enumerate() {
            for (sum, &w_jc) in sums.iter_mut().zip(w.row(j)) {
                *sum += f64::from(dy_tj) * f64::from(w_jc);
            }
        }
        for (dx_tc, &sum) in dx_t.iter_mut().zip(&sums) {
            put(dx_tc, sum, write);
        }
    }
}
