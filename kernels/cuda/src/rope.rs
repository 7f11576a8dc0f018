//! Rotary embedding in place, half-split (NeoX) layout, and the same after a norm of each head.

use forgelm_kernels_api::{Format, Rotation};

use crate::call::{Call, Grid, Numbers, args};
use crate::cast::read_as;

/// Threads of a block.
const THREADS: usize = 256;

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("more than rope can count")
}

fn long(n: usize) -> i64 {
    i64::try_from(n).expect("a length of memory")
}

/// T and R/2 of `x` [T, n_heads * D], `cos` and `sin` [T, R/2]; without rows R is 0.
fn sizes(
    x: Numbers,
    cos: Numbers,
    sin: Numbers,
    n_heads: usize,
    head_dim: usize,
) -> (usize, usize) {
    assert!(x.len.is_multiple_of(n_heads * head_dim), "x is not [T, n_heads * D]");
    assert_eq!(cos.len, sin.len, "cos and sin differ in length");
    assert!(cos.format == Format::F32 && sin.format == Format::F32, "angles are f32");
    let t = x.len / (n_heads * head_dim);
    if t == 0 {
        return (0, 0);
    }
    assert!(cos.len.is_multiple_of(t), "cos is not [T, R/2]");
    let half = cos.len / t;
    assert!(half > 0 && 2 * half <= head_dim, "R is not between 2 and D");
    (t, half)
}

/// Shapes: `x` [T, n_heads * D] changed, `cos` and `sin` [T, R/2] read, R <= D.
pub(crate) fn rope(
    call: &Call<'_>,
    x: Numbers,
    cos: Numbers,
    sin: Numbers,
    n_heads: usize,
    head_dim: usize,
    direction: Rotation,
) {
    let (t, half) = sizes(x, cos, sin, n_heads, head_dim);
    if t == 0 {
        return;
    }
    let per_vector = 16 / x.format.n_bytes();
    let vector = [x, cos, sin].iter().all(|numbers| numbers.is_aligned())
        && head_dim.is_multiple_of(per_vector)
        && half.is_multiple_of(per_vector);
    let steps_per_token = n_heads * (half / if vector { per_vector } else { 1 });
    let tokens_per_block = (THREADS / steps_per_token).max(1);
    let sign: f32 = match direction {
        Rotation::Forward => 1.0,
        Rotation::Backward => -1.0,
    };
    let grid = Grid { blocks: [t.div_ceil(tokens_per_block), 1, 1], threads: 256, shared_bytes: 0 };
    call.launch(
        &call.variant("rope", &[x.format], vector),
        grid,
        &mut args![
            x.address,
            cos.address,
            sin.address,
            long(t),
            int(tokens_per_block),
            int(n_heads),
            int(head_dim),
            int(half),
            sign,
        ],
    );
}

/// RMSNorm of each head, then [`rope`] forward: one pass over `x`.
///
/// Shapes: `y` [T, n_heads * D] and `inv_rms` [T, n_heads] written; `x` [T, n_heads * D] (may be
/// `y`), `weight` [D], `cos` and `sin` [T, R/2] read.
pub(crate) fn norm_and_rotate(
    call: &Call<'_>,
    (y, inv_rms): (Numbers, Numbers),
    x: Numbers,
    weight: Numbers,
    (cos, sin): (Numbers, Numbers),
    n_heads: usize,
    eps: f32,
) {
    let head_dim = weight.len;
    let (t, half) = sizes(x, cos, sin, n_heads, head_dim);
    assert_eq!(y.len, x.len, "y is not [T, n_heads * D]");
    let x = read_as(call, y.format, x);
    assert_eq!(inv_rms.len, t * n_heads, "inv_rms is not [T, n_heads]");
    if t == 0 {
        return;
    }
    assert!(weight.format == Format::F32 && inv_rms.format == Format::F32, "norms are f32");
    let blocks = [(t * n_heads).div_ceil(THREADS / 32), 1, 1];
    call.launch(
        &call.variant("rope_qk_norm_forward", &[x.format], false),
        Grid { blocks, threads: 256, shared_bytes: 0 },
        &mut args![
            y.address,
            inv_rms.address,
            x.address,
            weight.address,
            cos.address,
            sin.address,
            long(t),
            int(n_heads),
            int(head_dim),
            int(half),
            eps,
        ],
    );
}
