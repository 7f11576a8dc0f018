//! Products with a frozen weight.
//!
//! What is multiplied with a weight is first brought to the weight's format, unless it is stored in
//! it; a weight in blocks is unpacked for the time of the call. A product of low rank beside it is
//! a second product, added to the first.

use forgelm_kernels_api::{FrozenMatrix, GemmDims, GemmLayout, Write};

use crate::call::{Call, Numbers};
use crate::cast;
use crate::frozen::CudaMatrix;
use crate::gemm::{self, Matrix, Product};

/// `scale * u v`, as in the api.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRank {
    pub(crate) u: Numbers,
    pub(crate) v: Numbers,
    pub(crate) scale: f32,
}

/// `y = x w^T`, and `scale * u v^T`. Shapes: `y` [T, N], `x` [T, K], `w` [N, K], `u` [T, r],
/// `v` [N, r].
pub(crate) fn forward(
    call: &Call<'_>,
    y: Numbers,
    x: Numbers,
    w: &dyn FrozenMatrix,
    low_rank: Option<LowRank>,
    write: Write,
) {
    let w = CudaMatrix::of(w);
    let (n, k) = (w.n_rows(), w.n_cols());
    assert!(x.len.is_multiple_of(k), "x is not [T, K]");
    let t = x.len / k;
    assert_eq!(y.len, t * n, "y is not [T, N]");
    let weight = w.dense(call);
    let x = cast::read_as(call, weight.format, x);
    let product = Product {
        c: Matrix::new(y, n),
        a: Matrix::new(x, k),
        b: Matrix::new(weight, k),
        layout: GemmLayout::Nt,
        dims: GemmDims { m: t, n, k },
        alpha: 1.0,
        write,
    };
    gemm::multiply(call, &product);
    if let Some(LowRank { u, v, scale }) = low_rank {
        let dims = GemmDims { m: t, n, k: v.len / n };
        gemm::gemm(call, y, u, v, GemmLayout::Nt, dims, scale, Write::Add);
    }
}

/// `dx = dy w`, and `scale * u v`. Shapes: `dx` [T, K], `dy` [T, N], `w` [N, K], `u` [T, r],
/// `v` [r, K].
pub(crate) fn backward(
    call: &Call<'_>,
    dx: Numbers,
    dy: Numbers,
    w: &dyn FrozenMatrix,
    low_rank: Option<LowRank>,
    write: Write,
) {
    let w = CudaMatrix::of(w);
    let (n, k) = (w.n_rows(), w.n_cols());
    assert!(dy.len.is_multiple_of(n), "dy is not [T, N]");
    let t = dy.len / n;
    assert_eq!(dx.len, t * k, "dx is not [T, K]");
    let weight = w.dense(call);
    let dy = cast::read_as(call, weight.format, dy);
    let product = Product {
        c: Matrix::new(dx, k),
        a: Matrix::new(dy, n),
        b: Matrix::new(weight, k),
        layout: GemmLayout::Nn,
        dims: GemmDims { m: t, n: k, k: n },
        alpha: 1.0,
        write,
    };
    gemm::multiply(call, &product);
    if let Some(LowRank { u, v, scale }) = low_rank {
        let dims = GemmDims { m: t, n: k, k: v.len / k };
        gemm::gemm(call, dx, u, v, GemmLayout::Nn, dims, scale, Write::Add);
    }
}
