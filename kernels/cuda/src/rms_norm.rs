//! RMSNorm over the last axis.
//!
//! Numerics: f32; the order of additions within a row depends on C alone.

use forgelm_kernels_api::{Format, Write};

use crate::call::{Call, Grid, Numbers, args};
use crate::cast::{change_as, read_as};
use crate::chunk::{blocks, int, is_wide, long, warps};
use crate::columns::{Terms, add_rows};

/// Columns up to which a warp is enough for a row.
const NARROW: usize = 1024;

/// Shapes: `y` [T, C] written, `inv_rms` [T] written, `x` [T, C], `weight` [C] read.
pub(crate) fn forward(
    call: &Call<'_>,
    y: Numbers,
    inv_rms: Numbers,
    x: Numbers,
    weight: Numbers,
    eps: f32,
) {
    let (t, c) = check_shapes(x, inv_rms, weight);
    assert_eq!(y.len, x.len, "y is not [T, C]");
    let x = if y.format == Format::F32 { read_as(call, Format::F32, x) } else { x };
    let (kernel, grid) = rows("rms_norm_forward", t, c);
    let name = call.variant(&kernel, &[x.format, y.format], is_wide(c, &[y, x, weight]));
    let mut arguments =
        args![y.address, inv_rms.address, x.address, weight.address, long(t), int(c), eps];
    call.launch(&name, grid, &mut arguments);
}

/// With `g = dy * weight` and `s = inv_rms`: `dx = s * (g - x * s^2 * mean(g * x))`.
///
/// Shapes: `dx` [T, C] written or added to; `dy`, `x` [T, C], `inv_rms` [T], `weight` [C] read.
pub(crate) fn backward(
    call: &Call<'_>,
    dx: Numbers,
    dy: Numbers,
    x: Numbers,
    inv_rms: Numbers,
    weight: Numbers,
    write: Write,
) {
    let (t, c) = check_shapes(x, inv_rms, weight);
    assert_eq!(dx.len, x.len, "dx is not [T, C]");
    assert_eq!(dy.len, x.len, "dy is not [T, C]");
    let is_made = dx.format == x.format && (x.format == Format::F32 || dy.format == Format::Bf16);
    let format = if is_made { x.format } else { Format::F32 };
    let x = read_as(call, format, x);
    change_as(call, format, dx, |dx| {
        let (kernel, grid) = rows("rms_norm_backward", t, c);
        let name = call.variant(&kernel, &[x.format, dy.format], is_wide(c, &[dx, dy, x, weight]));
        let mut arguments = args![
            dx.address,
            dy.address,
            x.address,
            inv_rms.address,
            weight.address,
            long(t),
            int(c),
            i32::from(write == Write::Add)
        ];
        call.launch(&name, grid, &mut arguments);
    });
}

/// `dweight[c] += sum_t dy[t, c] * x[t, c] * inv_rms[t]`.
///
/// Shapes: `dweight` [C] added to; `dy`, `x` [T, C], `inv_rms` [T] read.
pub(crate) fn weight_backward(
    call: &Call<'_>,
    dweight: Numbers,
    dy: Numbers,
    x: Numbers,
    inv_rms: Numbers,
) {
    check_shapes(x, inv_rms, dweight);
    assert_eq!(dy.len, x.len, "dy is not [T, C]");
    let terms = Terms { a: dy, b: Some(x), row_factors: Some(inv_rms) };
    add_rows(call, dweight, terms, Write::Add);
}

/// T and C.
fn check_shapes(x: Numbers, inv_rms: Numbers, weight: Numbers) -> (usize, usize) {
    let (t, c) = (inv_rms.len, weight.len);
    assert_eq!(x.len, t * c, "x is not [T, C]");
    assert_eq!((inv_rms.format, weight.format), (Format::F32, Format::F32), "formats of a norm");
    (t, c)
}

/// The kernel for rows of this width, and its grid.
fn rows(kernel: &str, t: usize, c: usize) -> (String, Grid) {
    if c <= NARROW { (format!("{kernel}_narrow"), warps(t)) } else { (kernel.into(), blocks(t)) }
}
