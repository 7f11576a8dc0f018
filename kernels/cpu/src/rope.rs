//! Rotary embedding, half-split (NeoX) layout.
//!
//! Paper: Su et al. 2021, arXiv:2104.09864, eq. 34.

use forgelm_kernels_api::Rotation;

use crate::math::{for_vectors, load, store};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};

/// Rows of a task.
const ROWS: usize = 32;

/// Cosines and sines [T, R/2].
#[derive(Clone, Copy)]
pub(crate) struct Angles<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// Widths within a row.
#[derive(Clone, Copy)]
struct Widths {
    /// All heads.
    row: usize,
    /// D.
    head: usize,
    /// R / 2.
    half: usize,
}

/// Shapes: `x` [T, n_heads * D] changed.
pub(crate) fn rope(
    pool: &Pool,
    isa: Isa,
    x: &mut [f32],
    angles: Angles<'_>,
    n_heads: usize,
    head_dim: usize,
    direction: Rotation,
) {
    let Angles { cos, sin } = angles;
    let row = n_heads * head_dim;
    assert!(x.len().is_multiple_of(row), "x is not [T, n_heads * D]");
    assert_eq!(cos.len(), sin.len(), "cos and sin differ in length");
    let t = x.len() / row;
    if t == 0 {
        return;
    }
    assert!(cos.len().is_multiple_of(t), "cos is not [T, R/2]");
    let half = cos.len() / t;
    assert!(half > 0 && 2 * half <= head_dim, "R is not between 2 and D");
    let widths = Widths { row, head: head_dim, half };
    pool.chunks(x, ROWS * row, |i, x| {
        let angles = Angles { cos: &cos[i * ROWS * half..], sin: &sin[i * ROWS * half..] };
        on_isa!(isa, s => rows(s, x, angles, widths, direction));
    });
}

#[inline(always)]
fn rows<S: Simd>(s: S, x: &mut [f32], angles: Angles<'_>, widths: Widths, direction: Rotation) {
    let half = widths.half;
    let sign = s.splat(match direction {
        Rotation::Forward => 1.0,
        Rotation::Backward => -1.0,
    });
    let angles = angles.cos.chunks_exact(half).zip(angles.sin.chunks_exact(half));
    for (x, (cos, sin)) in x.chunks_exact_mut(widths.row).zip(angles) {
        for head in x.chunks_exact_mut(widths.head) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for_vectors!(s, half, |i| {
                let cos = load(s, &cos[i.clone()]);
                let sin = s.mul(load(s, &sin[i.clone()]), sign);
                let (a, b) = (load(s, &first[i.clone()]), load(s, &second[i.clone()]));
                let minus_b = s.sub(s.splat(0.0), b);
                store(s, &mut first[i.clone()], s.mul_add(a, cos, s.mul(minus_b, sin)));
                store(s, &mut second[i], s.mul_add(b, cos, s.mul(a, sin)));
            },);
        }
    }
}
