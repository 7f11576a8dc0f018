//! Copies from one format to another; filling and scaling; what an op does where its numbers have
//! formats that its kernels were not made for.

use forgelm_kernels_api::Format;

use crate::call::{Call, Numbers, args};
use crate::chunk::{blocks, chunks, is_wide, long};

/// Elements of a block of the largest size.
const BLOCK_ELEMENTS: usize = 16_384;

/// `y = x`. Shapes: equal lengths.
pub(crate) fn copy(call: &Call<'_>, y: Numbers, x: Numbers) {
    assert_eq!(y.len, x.len, "y and x differ in length");
    if y.format == x.format {
        return call.copy(y, x);
    }
    let name = call.variant("cast", &[x.format, y.format], is_wide(y.len, &[y, x]));
    let mut arguments = args![y.address, x.address, long(y.len)];
    call.launch(&name, chunks(1, y.len), &mut arguments);
}

/// Puts one value everywhere.
pub(crate) fn fill(call: &Call<'_>, y: Numbers, value: f32) {
    let name = call.variant("cast_fill", &[y.format], is_wide(y.len, &[y]));
    call.launch(&name, chunks(1, y.len), &mut args![y.address, value, long(y.len)]);
}

/// `y *= factor`.
pub(crate) fn scale(call: &Call<'_>, y: Numbers, factor: f32) {
    let name = call.variant("cast_scale", &[y.format], is_wide(y.len, &[y]));
    call.launch(&name, chunks(1, y.len), &mut args![y.address, factor, long(y.len)]);
}

/// To 8 bits (e4m3), with a scale for all: `y = x * 448 / amax`.
///
/// Shapes: `y` of bytes and `amax` [1] written, `x` read.
#[cfg_attr(not(test), expect(dead_code, reason = "no product reads 8 bits yet"))]
pub(crate) fn to_fp8(call: &Call<'_>, y: Numbers, amax: Numbers, x: Numbers) {
    assert_eq!(y.len, x.len, "y and x differ in length");
    assert_eq!((y.format, amax.format), (Format::U8, Format::F32), "formats of 8-bit numbers");
    let is_wide = is_wide(x.len, &[x]);
    let n_blocks = x.len.div_ceil(BLOCK_ELEMENTS);
    let partials = call.scratch(Format::F32, n_blocks);
    let name = call.variant("cast_amax_partials", &[x.format], is_wide);
    call.launch(&name, blocks(n_blocks), &mut args![partials.address, x.address, long(x.len)]);
    let mut arguments = args![amax.address, partials.address, long(n_blocks)];
    call.launch("cast_amax_total", blocks(1), &mut arguments);
    let name = call.variant("cast_fp8", &[x.format], is_wide);
    let mut arguments = args![y.address, x.address, amax.address, long(x.len)];
    call.launch(&name, chunks(1, x.len), &mut arguments);
}

/// The format of all of these, or f32 where they differ: it holds the numbers of each exactly.
pub(crate) fn common_format(arrays: &[Numbers]) -> Format {
    let first = arrays[0].format;
    if arrays.iter().all(|numbers| numbers.format == first) { first } else { Format::F32 }
}

/// The same numbers in a format, until the call is closed.
pub(crate) fn read_as(call: &Call<'_>, format: Format, x: Numbers) -> Numbers {
    if x.format == format {
        return x;
    }
    let converted = call.scratch(format, x.len);
    copy(call, converted, x);
    converted
}

/// Lets `change` see and change numbers in a format.
pub(crate) fn change_as(call: &Call<'_>, format: Format, y: Numbers, change: impl FnOnce(Numbers)) {
    let converted = read_as(call, format, y);
    change(converted);
    if converted != y {
        copy(call, y, converted);
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values that are exact")]
mod tests {
    use super::*;
    use crate::trial::{in_all_orders, numbers, put};

    /// Sign, 4 bits of exponent with bias 7, 3 bits of mantissa.
    fn from_e4m3(code: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let size = match exponent {
            0 => mantissa / 8.0 * 2.0_f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
        };
        if code < 128 { size } else { -size }
    }

    #[test]
    fn eight_bits_are_within_half_a_step_of_the_scaled_number() {
        for n in [1, 48, 16_385, 40_000] {
            for format in [Format::F32, Format::Bf16] {
                in_all_orders(|call| {
                    let values = numbers(9, n);
                    let x = put(call, &values, format, false);
                    let (y, amax) = (call.scratch(Format::U8, n), call.scratch(Format::F32, 1));
                    to_fp8(call, y, amax, x);
                    let largest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                    let amax = call.fetch::<f32>(amax)[0];
                    assert!(amax == largest, "the largest of {n} is {largest}, not {amax}");
                    let codes = call.fetch::<u8>(y);
                    for (&code, value) in codes.iter().zip(&values) {
                        let scaled = value * (448.0 / largest);
                        let bound = (scaled.abs() / 16.0).max(2.0_f32.powi(-10)) * 1.000_001;
                        let error = (from_e4m3(code) - scaled).abs();
                        assert!(error <= bound, "{scaled} became {}", from_e4m3(code));
                    }
                    codes
                });
            }
        }
    }

    #[test]
    fn halves_of_a_step_go_to_the_even_number() {
        // Between 1 and 1 + 2^-7, and between that and 1 + 2^-6.
        let values = [1.0 + 2.0_f32.powi(-8), 1.0 + 3.0 * 2.0_f32.powi(-8), -0.0, f32::INFINITY];
        let found = in_all_orders(|call| {
            let x = put(call, &values, Format::Bf16, false);
            call.fetch::<f32>(read_as(call, Format::F32, x))
        });
        let expected = vec![1.0, 1.0 + 2.0_f32.powi(-6), -0.0, f32::INFINITY];
        assert!(found.is_none_or(|found| found == expected));
    }
}
