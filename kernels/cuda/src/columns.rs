//! Ops over the columns of a row-major matrix: a bias, a factor for each column, and the sums that
//! are their gradients.
//!
//! Numerics of the sums: f32, in blocks of 64 rows; then the sums of blocks are summed in the same
//! way, until one block is left.

use forgelm_kernels_api::{Format, Write};

use crate::call::{Call, Numbers, args};
use crate::cast::{change_as, common_format, read_as};
use crate::chunk::{blocks, chunks, int, is_wide, long};

/// Rows of a block of the sums.
const BLOCK_ROWS: usize = 64;
/// Columns of a block of the sums.
const BLOCK_COLUMNS: usize = 256;

/// What is summed: `a`, times `b`, times a factor for each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// [T, N]
    pub(crate) a: Numbers,
    /// [T, N]
    pub(crate) b: Option<Numbers>,
    /// [T]; only with `b`.
    pub(crate) row_factors: Option<Numbers>,
}

/// `sums[n] += sum_t x[t, n]`. Shapes: `sums` [N], `x` [T, N].
pub(crate) fn sums(call: &Call<'_>, sums: Numbers, x: Numbers) {
    add_rows(call, sums, Terms { a: x, b: None, row_factors: None }, Write::Add);
}

/// `sums[n] += sum_t a[t, n] * b[t, n]`. Shapes: `sums` [N], `a`, `b` [T, N].
pub(crate) fn dots(call: &Call<'_>, sums: Numbers, a: Numbers, b: Numbers) {
    assert_eq!(a.len, b.len, "a and b differ in length");
    add_rows(call, sums, Terms { a, b: Some(b), row_factors: None }, Write::Add);
}

/// Sums the terms of all rows. Shapes: `sums` [N] written or added to.
pub(crate) fn add_rows(call: &Call<'_>, sums: Numbers, terms: Terms, write: Write) {
    let n = sums.len;
    assert!(terms.a.len.is_multiple_of(n), "the terms are not [T, N]");
    assert_eq!(sums.format, Format::F32, "sums over rows are of what trains");
    let n_rows = terms.a.len / n;
    if n_rows == 0 {
        match write {
            Write::Replace => call.clear(sums),
            Write::Add => {}
        }
        return;
    }
    let mut left = sum_blocks(call, sums, terms, n_rows, write);
    while let Some(partials) = left {
        let terms = Terms { a: partials, b: None, row_factors: None };
        left = sum_blocks(call, sums, terms, partials.len / n, write);
    }
}

/// Bytes of the partial sums over rows. Shapes: [T, N] are summed.
pub(crate) fn partials_bytes(n_rows: usize, n: usize) -> usize {
    // What is left of the blocks is summed in blocks again.
    2 * n_rows.div_ceil(BLOCK_ROWS) * n * size_of::<f32>()
}

/// Sums each block of rows: of one block into `sums`, else what it returns is left to be summed.
fn sum_blocks(
    call: &Call<'_>,
    sums: Numbers,
    terms: Terms,
    n_rows: usize,
    write: Write,
) -> Option<Numbers> {
    let n = sums.len;
    let n_blocks = n_rows.div_ceil(BLOCK_ROWS);
    let is_last = n_blocks == 1;
    let to = if is_last { sums } else { call.scratch(Format::F32, n_blocks * n) };
    let add = i32::from(is_last && write == Write::Add);
    let grid = blocks(n_blocks * n.div_ceil(BLOCK_COLUMNS));
    if let Some(b) = terms.b {
        // The product is the same in either order, and kernels were made for one.
        let is_swapped = (terms.a.format, b.format) == (Format::F32, Format::Bf16);
        let (a, b) = if is_swapped { (b, terms.a) } else { (terms.a, b) };
        let factors = terms.row_factors.map_or(0, |factors| factors.address);
        let name = call.variant("columns_dots", &[a.format, b.format], is_wide(n, &[a, b]));
        let mut arguments =
            args![to.address, a.address, b.address, factors, long(n_rows), int(n), add];
        call.launch(&name, grid, &mut arguments);
    } else {
        let a = terms.a;
        let name = call.variant("columns_sums", &[a.format], is_wide(n, &[a]));
        let mut arguments = args![to.address, a.address, long(n_rows), int(n), add];
        call.launch(&name, grid, &mut arguments);
    }
    (!is_last).then_some(to)
}

/// `y[t] += bias`. Shapes: `y` [T, N], `bias` [N].
pub(crate) fn add_bias(call: &Call<'_>, y: Numbers, bias: Numbers) {
    let n = bias.len;
    assert!(y.len.is_multiple_of(n), "y is not [T, N]");
    let (t, bias) = (y.len / n, read_as(call, Format::F32, bias));
    let name = call.variant("columns_add_bias", &[y.format], is_wide(n, &[y, bias]));
    call.launch(&name, chunks(t, n), &mut args![y.address, bias.address, long(t), int(n)]);
}

/// `y[t, n] = x[t, n] * factors[n]`. Shapes: `y`, `x` [T, N], `factors` [N].
pub(crate) fn scale(call: &Call<'_>, y: Numbers, x: Numbers, factors: Numbers, write: Write) {
    let n = factors.len;
    assert_eq!(y.len, x.len, "y and x differ in length");
    assert!(x.len.is_multiple_of(n), "x is not [T, N]");
    let t = x.len / n;
    let format = common_format(&[y, x]);
    let (x, factors) = (read_as(call, format, x), read_as(call, Format::F32, factors));
    change_as(call, format, y, |y| {
        let name = call.variant("columns_scale", &[format], is_wide(n, &[y, x, factors]));
        let add = i32::from(write == Write::Add);
        let mut arguments = args![y.address, x.address, factors.address, long(t), int(n), add];
        call.launch(&name, chunks(t, n), &mut arguments);
    });
}
