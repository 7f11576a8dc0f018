//! Rotary embedding, half-split (NeoX) layout.
//!
//! Paper: Su et al. 2021, arXiv:2104.09864, eq. 34.

use forgelm_kernels_api::Rotation;

/// Shapes: `x` [T, n_heads * D] changed, `cos` and `sin` [T, R/2] read, R <= D.
pub(crate) fn rope(
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    n_heads: usize,
    head_dim: usize,
    direction: Rotation,
) {
    assert!(x.len().is_multiple_of(n_heads * head_dim), "x is not [T, n_heads * D]");
    assert_eq!(cos.len(), sin.len(), "cos and sin differ in length");
    let t = x.len() / (n_heads * head_dim);
    if t == 0 {
        return;
    }
    assert!(cos.len().is_multiple_of(t), "cos is not [T, R/2]");
    let half = cos.len() / t;
    assert!(half > 0 && 2 * half <= head_dim, "R is not between 2 and D");
    let rows = x.chunks_exact_mut(n_heads * head_dim);
    for (x_t, (cos_t, sin_t)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
        for head in x_t.chunks_exact_mut(head_dim) {
            for j in 0..half {
                let (a, b) = (f64::from(head[j]), f64::from(head[j + half]));
                let (cos, sin) = (f64::from(cos_t[j]), f64::from(sin_t[j]));
                let sin = match direction {
                    Rotation::Forward => sin,
                    Rotation::Backward => -sin,
                };
                head[j] = (a * cos - b * sin) as f32;
                head[j + half] = (b * cos + a * sin) as f32;
            }
        }
    }
}
