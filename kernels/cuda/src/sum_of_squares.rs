//! Sum of squares.
//!
//! Numerics: f64; blocks of a fixed length, which are then added by one block of threads.

use forgelm_kernels_api::Format;

use crate::call::{Call, Numbers, args};
use crate::cast::read_as;
use crate::chunk::{blocks, is_wide, long};

/// Elements of a block.
const BLOCK_ELEMENTS: usize = 16_384;

pub(crate) fn sum_of_squares(call: &Call<'_>, x: Numbers) -> f64 {
    if x.len == 0 {
        return 0.0;
    }
    let x = read_as(call, Format::F32, x);
    let n_blocks = x.len.div_ceil(BLOCK_ELEMENTS);
    let (partials, sum) = (doubles(call, n_blocks), doubles(call, 1));
    let name = call.variant("sum_of_squares_partials", &[x.format], is_wide(x.len, &[x]));
    call.launch(&name, blocks(n_blocks), &mut args![partials.address, x.address, long(x.len)]);
    let mut arguments = args![sum.address, partials.address, long(n_blocks)];
    call.launch("sum_of_squares_total", blocks(1), &mut arguments);
    call.fetch(sum)[0]
}

/// Memory for numbers of 64 bits, which are no format of the interface.
pub(crate) fn doubles(call: &Call<'_>, n: usize) -> Numbers {
    call.scratch(Format::U8, n * size_of::<f64>())
}
