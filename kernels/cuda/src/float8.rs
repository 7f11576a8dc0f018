//! Floats of eight bits, times the scales of their blocks: a weight in FP8 becomes one in the format
//! of its products on the device, which is sent half or a quarter of the bytes.

use forgelm_kernels_api::{Float8, Float8Layout, Format};

use crate::call::{Call, Numbers, args};
use crate::chunk::{chunks, int, is_wide, long};

/// `y[n, k] = value(codes[n, k]) * scale`, of rows `first_row` and so on of a matrix.
///
/// Shapes: `y`, `codes` [n, K], `scales` of the whole matrix.
pub(crate) fn cast(
    call: &Call<'_>,
    y: Numbers,
    (codes, first_row): (Numbers, usize),
    scales: Numbers,
    layout: Float8Layout,
) {
    assert_eq!((codes.len, codes.format), (y.len, Format::U8), "codes is not as y");
    assert_eq!(scales.format, Format::F32, "scales are exact");
    let n_rows = layout.n_rows(codes.len);
    assert!(layout.n_scales(first_row + n_rows) <= scales.len, "scales");
    // Larger blocks than there is say the same, and fit what a kernel counts with.
    let Float8Layout { format, n_cols, block_rows, block_cols } = layout;
    let block_rows = block_rows.min((first_row + n_rows).max(1));
    let kernel = match format {
        Float8::E4m3 => "float8_e4m3",
        Float8::E5m2 => "float8_e5m2",
    };
    let name = call.variant(kernel, &[y.format], is_wide(n_cols, &[y, codes]));
    let mut arguments = args![
        y.address,
        codes.address,
        scales.address,
        long(first_row),
        long(n_rows),
        int(n_cols),
        int(block_rows),
        int(block_cols.min(n_cols)),
        int(layout.scales_per_row())
    ];
    call.launch(&name, chunks(n_rows, n_cols), &mut arguments);
}
