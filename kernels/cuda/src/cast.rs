//! Copies from one format to another; filling, scaling and capping; what an op does where its numbers have
//! formats that its kernels were not made for.

use forgelm_kernels_api::Format;

use crate::call::{Call, Numbers, args};
use crate::chunk::{chunks, is_wide, long};

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

/// `y = cap tanh(y / cap)`.
pub(crate) fn soft_cap(call: &Call<'_>, y: Numbers, cap: f32) {
    let name = call.variant("cast_soft_cap", &[y.format], is_wide(y.len, &[y]));
    call.launch(&name, chunks(1, y.len), &mut args![y.address, cap, long(y.len)]);
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
mod tests {
    use super::*;
    use crate::trial::{in_all_orders, put};

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
