//! The dense product.

use forgelm_kernels_api::{GemmDims, GemmLayout, Write};

use crate::put;

/// `c = alpha op(a) op(b)`. Shapes: see [`GemmLayout`].
pub(crate) fn gemm(
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    layout: GemmLayout,
    dims: GemmDims,
    alpha: f32,
    write: Write,
) {
    let GemmDims { m, n, k } = dims;
    assert_eq!(c.len(), m * n, "c is not [M, N]");
    assert_eq!(a.len(), m * k, "a does not have M * K elements");
    assert_eq!(b.len(), n * k, "b does not have N * K elements");
    // (step along the result, step along the sum) of each factor
    let ((a_m, a_k), (b_n, b_k)) = match layout {
        GemmLayout::Nn => ((k, 1), (1, n)),
        GemmLayout::Nt => ((k, 1), (k, 1)),
        GemmLayout::Tn => ((1, m), (1, n)),
    };
    for i in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k)
                .map(|l| f64::from(a[i * a_m + l * a_k]) * f64::from(b[j * b_n + l * b_k]))
                .sum();
            put(&mut c[i * n + j], f64::from(alpha) * sum, write);
        }
    }
}
