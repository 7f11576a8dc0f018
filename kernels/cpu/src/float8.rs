//! Floats of eight bits, times the scales of their blocks.
//!
//! The grid: some rows a task. What a code stands for is looked up: taken apart with vectors, codes
//! below the smallest normal number go through denormal floats, which processors are slow with.

use forgelm_kernels_api::{Float8Layout, Float8Rows};

use crate::pool::Pool;

/// Elements of a task.
const CHUNK: usize = 65_536;

/// `y[n, k] = value(codes[n, k]) * scale`. Shapes: `y`, `codes` [N, K], `scales`
/// [ceil(N / `block_rows`), ceil(K / `block_cols`)].
pub(crate) fn cast(pool: &Pool, y: &mut [f32], codes: &[u8], scales: &[f32], layout: Float8Layout) {
    assert_eq!(y.len(), codes.len(), "y and codes differ in length");
    assert_eq!(scales.len(), layout.n_scales(layout.n_rows(codes.len())), "scales");
    let rows = Float8Rows { layout, codes, scales };
    let n_rows = (CHUNK / layout.n_cols).max(1);
    pool.chunks(y, n_rows * layout.n_cols, |i, y| rows.read_rows(i * n_rows, y));
}
