//! Ops that copy, scale and gather rows and columns.

use forgelm_kernels_api::{Columns, Format, Slice};

use crate::call::{Call, Numbers, args};
use crate::cast::{change_as, common_format, read_as};
use crate::chunk::{chunks, int, is_wide, long, warps, width};

/// Shapes: `y` [T, `to.width`] written, `x` [T, `from.width`] read.
pub(crate) fn copy_columns(
    call: &Call<'_>,
    (y, to): (Numbers, Columns),
    (x, from): (Numbers, Columns),
    n: usize,
) {
    let t = y.len / to.width;
    assert_eq!(t, x.len / from.width, "y and x differ in T");
    assert!(to.first + n <= to.width && from.first + n <= from.width, "no such columns");
    if t == 0 {
        return;
    }
    let (first_y, first_x) = (y.part(to.first, 0), x.part(from.first, 0));
    let is_wide = [n, to.width, from.width].iter().all(|&n| is_wide(n, &[first_y, first_x]));
    let name = call.variant("rows_copy_columns", &[x.format, y.format], is_wide);
    let mut arguments =
        args![first_y.address, first_x.address, long(t), int(n), int(to.width), int(from.width)];
    call.launch(&name, chunks(t, n), &mut arguments);
}

/// `y[r] = x[rows[r]]`. Shapes: `y` [R, C] written, `x` [T, C] read.
pub(crate) fn gather(call: &Call<'_>, y: Numbers, x: Numbers, rows: Slice<'_, u32>) {
    let c = width(y, rows.len());
    let rows = rows_of(call, rows, x, c);
    let name = call.variant("rows_gather", &[x.format, y.format], is_wide(c, &[y, x]));
    let mut arguments = args![y.address, x.address, rows.address, long(rows.len), int(c)];
    call.launch(&name, chunks(rows.len, c), &mut arguments);
}

/// `y[rows[r]] += x[r]`, of rows that differ. Shapes: `y` [T, C] added to, `x` [R, C] read.
pub(crate) fn scatter(call: &Call<'_>, y: Numbers, x: Numbers, rows: Slice<'_, u32>) {
    let c = width(x, rows.len());
    let rows = rows_of(call, rows, y, c);
    let name = call.variant("rows_scatter", &[x.format, y.format], is_wide(c, &[y, x]));
    let mut arguments = args![y.address, x.address, rows.address, long(rows.len), int(c)];
    call.launch(&name, chunks(rows.len, c), &mut arguments);
}

/// Rows of a matrix, on the device. Kernels do not check: what comes from the host is checked here,
/// what lies on the device was written by a routing.
fn rows_of(call: &Call<'_>, rows: Slice<'_, u32>, matrix: Numbers, c: usize) -> Numbers {
    if let Slice::Host(rows) = rows {
        let inside = |&row: &u32| (row as usize + 1) * c <= matrix.len;
        assert!(rows.iter().all(inside), "a row is not in the matrix");
    }
    let rows = call.read_indices(rows);
    assert_eq!(rows.format, Format::U32, "rows are indices");
    rows
}

/// `x[r] *= factors[r]`. Shapes: `x` [R, C] changed, `factors` [R] read.
pub(crate) fn scale_each(call: &Call<'_>, x: Numbers, factors: Numbers) {
    let (r, c) = (factors.len, width(x, factors.len));
    let factors = read_as(call, Format::F32, factors);
    let name = call.variant("rows_scale", &[x.format], is_wide(c, &[x]));
    let mut arguments = args![x.address, factors.address, long(r), int(c)];
    call.launch(&name, chunks(r, c), &mut arguments);
}

/// `dots[r] = a[r] . b[r]`. Shapes: `dots` [R] written, `a` and `b` [R, C] read.
pub(crate) fn dots(call: &Call<'_>, dots: Numbers, a: Numbers, b: Numbers) {
    assert_eq!(a.len, b.len, "a and b differ in length");
    let (r, c) = (dots.len, width(a, dots.len));
    let format = common_format(&[a, b]);
    let (a, b) = (read_as(call, format, a), read_as(call, format, b));
    change_as(call, Format::F32, dots, |dots| {
        let name = call.variant("rows_dots", &[format], is_wide(c, &[a, b]));
        let mut arguments = args![dots.address, a.address, b.address, long(r), int(c)];
        call.launch(&name, warps(r), &mut arguments);
    });
}

/// Shapes: `x` [R, C] changed.
pub(crate) fn softmax(call: &Call<'_>, x: Numbers, n_cols: usize) {
    assert!(x.len.is_multiple_of(n_cols), "x is not [R, C]");
    let r = x.len / n_cols;
    let name = call.variant("rows_softmax", &[x.format], false);
    call.launch(&name, warps(r), &mut args![x.address, long(r), int(n_cols)]);
}

/// Shapes: `h` [R, C] changed, `scores` [R] read.
pub(crate) fn sigmoid_gate_forward(call: &Call<'_>, h: Numbers, scores: Numbers) {
    let (r, c) = (scores.len, width(h, scores.len));
    let scores = if h.format == Format::F32 { read_as(call, h.format, scores) } else { scores };
    let name = call.variant("rows_gate_forward", &[h.format, scores.format], is_wide(c, &[h]));
    let mut arguments = args![h.address, scores.address, long(r), int(c)];
    call.launch(&name, chunks(r, c), &mut arguments);
}

/// Shapes: `dh` [R, C] and `scores` [R] changed, `h` [R, C] read.
pub(crate) fn sigmoid_gate_backward(call: &Call<'_>, dh: Numbers, scores: Numbers, h: Numbers) {
    assert_eq!(dh.len, h.len, "dh and h differ in length");
    let (r, c) = (scores.len, width(h, scores.len));
    let format = common_format(&[dh, h]);
    let of_scores = if format == Format::F32 { format } else { scores.format };
    let h = read_as(call, format, h);
    change_as(call, format, dh, |dh| {
        change_as(call, of_scores, scores, |scores| {
            let formats = [format, of_scores];
            let name = call.variant("rows_gate_backward", &formats, is_wide(c, &[dh, h]));
            let mut arguments = args![dh.address, scores.address, h.address, long(r), int(c)];
            call.launch(&name, warps(r), &mut arguments);
        });
    });
}
