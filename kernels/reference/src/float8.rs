//! Floats of eight bits, times the scales of their blocks.

use forgelm_kernels_api::Float8Layout;

/// `y[n, k] = value(codes[n, k]) * scale`. Shapes: `y`, `codes` [N, K], `scales`
/// [ceil(N / `block_rows`), ceil(K / `block_cols`)].
pub(crate) fn cast(y: &mut [f32], codes: &[u8], scales: &[f32], layout: Float8Layout) {
    let Float8Layout { format, n_cols, block_rows, block_cols } = layout;
    assert_eq!(y.len(), codes.len(), "y and codes differ in length");
    assert_eq!(scales.len(), layout.n_scales(layout.n_rows(codes.len())), "scales");
    for (i, (y, &code)) in y.iter_mut().zip(codes).enumerate() {
        let (row, column) = (i / n_cols, i % n_cols);
        let scale = scales[row / block_rows * layout.scales_per_row() + column / block_cols];
        *y = (f64::from(format.value(code)) * f64::from(scale)) as f32;
    }
}
