//! Rows to fewer bytes and back, with the bits of the processor's (core/tensor). See `quantize.cu`.

use forgelm_kernels_api::Format;

use crate::call::{Call, Grid, Numbers, args};
use crate::chunk::{int, long};

/// Numbers that share a scale in four bits.
const FOUR_BIT_BLOCK: usize = 64;
/// Threads of a block, and its warps.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

/// Bytes of a row of `n_cols` numbers in four bits.
pub(crate) fn four_bit_row(n_cols: usize) -> usize {
    n_cols.div_ceil(2) + 4 * n_cols.div_ceil(FOUR_BIT_BLOCK)
}

/// Bytes of a row of `n_cols` numbers in eight bits.
pub(crate) fn int8_row(n_cols: usize) -> usize {
    n_cols + 4
}

/// The middles between the sixteen values in ascending order, and their codes in that order. Of
/// equal values the lower code comes first, as bitsandbytes sorts them.
fn ascending(values: &[f32; 16]) -> ([f32; 15], [u32; 16]) {
    let mut order: [u32; 16] = std::array::from_fn(|code| code as u32);
    let value = |code: u32| values[code as usize];
    // -0 and 0 are equal: a total order would tell them apart.
    order
        .sort_by(|&a, &b| value(a).partial_cmp(&value(b)).expect("values of a format are numbers"));
    (std::array::from_fn(|i| (value(order[i]) + value(order[i + 1])) / 2.0), order)
}

fn blocks(n: usize) -> Grid {
    Grid { blocks: [n, 1, 1], threads: THREADS as u32, shared_bytes: 0 }
}

/// A place that counts numbers which are not finite.
fn counter(call: &Call<'_>) -> Numbers {
    let n_bad = call.scratch(Format::U8, size_of::<u32>());
    call.clear(n_bad);
    n_bad
}

/// How many numbers of the rows are not finite: the bytes are then not to be used. Waits for the
/// device.
///
/// Shapes: `bytes` [R, [`four_bit_row`]] written, `rows` [R, `n_cols`], `values` by code.
pub(crate) fn four_bit(
    call: &Call<'_>,
    bytes: Numbers,
    rows: Numbers,
    n_cols: usize,
    values: &[f32; 16],
) -> u32 {
    let n_rows = rows.len / n_cols;
    let (middles, order) = ascending(values);
    let n_bad = counter(call);
    let n_blocks = n_rows * n_cols.div_ceil(FOUR_BIT_BLOCK);
    call.launch(
        "quantize_four_bit",
        blocks(n_blocks.div_ceil(WARPS)),
        &mut args![
            bytes.address,
            rows.address,
            call.array(&middles),
            call.indices(&order),
            n_bad.address,
            long(n_rows),
            int(n_cols)
        ],
    );
    call.fetch::<u32>(n_bad)[0]
}

/// The way back of [`four_bit`].
pub(crate) fn four_bit_back(
    call: &Call<'_>,
    rows: Numbers,
    bytes: Numbers,
    n_cols: usize,
    values: &[f32; 16],
) {
    let (n_rows, values) = (rows.len / n_cols, call.array(values));
    call.launch(
        "quantize_four_bit_back",
        blocks(rows.len.div_ceil(THREADS)),
        &mut args![rows.address, bytes.address, values, long(n_rows), int(n_cols)],
    );
}

/// As [`four_bit`]. Shapes: `bytes` [R, [`int8_row`]] written, `rows` [R, `n_cols`].
pub(crate) fn int8(call: &Call<'_>, bytes: Numbers, rows: Numbers, n_cols: usize) -> u32 {
    let n_bad = counter(call);
    call.launch(
        "quantize_int8",
        blocks(rows.len / n_cols),
        &mut args![bytes.address, rows.address, n_bad.address, int(n_cols)],
    );
    call.fetch::<u32>(n_bad)[0]
}

/// The way back of [`int8`].
pub(crate) fn int8_back(call: &Call<'_>, rows: Numbers, bytes: Numbers, n_cols: usize) {
    let n_rows = rows.len / n_cols;
    call.launch(
        "quantize_int8_back",
        blocks(rows.len.div_ceil(THREADS)),
        &mut args![rows.address, bytes.address, long(n_rows), int(n_cols)],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::in_all_orders;

    /// Code c stands for (c - 8) / 8.
    fn eighths() -> [f32; 16] {
        std::array::from_fn(|code| (code as f32 - 8.0) / 8.0)
    }

    #[test]
    fn of_equal_values_the_lower_code_comes_first() {
        let mut values = eighths();
        (values[8], values[9]) = (0.0, -0.0);
        let (middles, order) = ascending(&values);
        assert_eq!(order, std::array::from_fn::<u32, 16, _>(|code| code as u32));
        assert_eq!(middles[7..10], [-0.0625, 0.0, 0.125]);
    }

    /// Two rows of 67 numbers: a whole block, and one of three.
    #[test]
    fn four_bits_there_and_back_by_hand() {
        let mut rows = vec![0.0_f32; 2 * 67];
        rows[..4].copy_from_slice(&[-16.0, 8.0, 15.0, 1.0]);
        rows[64..67].copy_from_slice(&[0.5, -0.25, 0.0]);
        let result = in_all_orders(|call| {
            let (rows, n) = (call.read((&rows).into()), rows.len());
            let bytes = call.scratch(Format::U8, 2 * four_bit_row(67));
            assert_eq!(four_bit(call, bytes, rows, 67, &eighths()), 0);
            let back = call.scratch(Format::F32, n);
            four_bit_back(call, back, bytes, 67, &eighths());
            (call.fetch::<u8>(bytes), call.fetch::<f32>(back))
        });
        let Some((bytes, back)) = result else { return };
        // -16/16 is code 0, 8/16 is 12; 15/16 lies above every middle; 1/16 lies midway between 0
        // and 1/8: the lower one
        assert_eq!(bytes[..2], [0x0C, 0xF8]);
        assert_eq!(bytes[2..32], [0x88; 30]);
        // 0.5/0.5 lies above every middle, -0.25/0.5 is code 4; an odd row ends with a code of 0
        assert_eq!(bytes[32..34], [0xF4, 0x88]);
        assert_eq!(bytes[34..42], [16.0_f32.to_le_bytes(), 0.5_f32.to_le_bytes()].concat());
        assert_eq!(back[..4], [-16.0, 8.0, 14.0, 0.0]);
        assert_eq!(back[64..67], [0.4375, -0.25, 0.0]);
        assert_eq!(bytes[42..76], [0x88; 34]);
        assert_eq!(bytes[76..84], [0.0_f32.to_le_bytes(), 1e-38_f32.to_le_bytes()].concat());
        assert_eq!(back[67..], [0.0; 67]);
    }

    #[test]
    fn eight_bits_there_and_back_by_hand() {
        // steps of 1/2: what lies in the middle of one goes away from zero
        let mut rows = vec![0.0_f32; 2 * 300];
        rows[..4].copy_from_slice(&[0.25, -0.25, 1.0, 0.7]);
        rows[299] = -63.5;
        let result = in_all_orders(|call| {
            let (rows, n) = (call.read((&rows).into()), rows.len());
            let bytes = call.scratch(Format::U8, 2 * int8_row(300));
            assert_eq!(int8(call, bytes, rows, 300), 0);
            let back = call.scratch(Format::F32, n);
            int8_back(call, back, bytes, 300);
            (call.fetch::<u8>(bytes), call.fetch::<f32>(back))
        });
        let Some((bytes, back)) = result else { return };
        assert_eq!(bytes[..4], [1, 255, 2, 1]);
        assert_eq!(bytes[299..304], [&[129][..], &0.5_f32.to_le_bytes()].concat());
        assert_eq!((&back[..4], back[299]), (&[0.5, -0.5, 1.0, 0.5][..], -63.5));
        assert_eq!(bytes[304..], [0; 304]);
    }

    #[test]
    fn numbers_that_are_not_finite_are_counted() {
        let rows = [1.0, f32::NAN, f32::INFINITY, -2.0, f32::NEG_INFINITY, 0.0];
        let counted = in_all_orders(|call| {
            let rows = call.read((&rows).into());
            let bytes = call.scratch(Format::U8, 2 * four_bit_row(3));
            let in_four = four_bit(call, bytes, rows, 3, &eighths());
            (in_four, int8(call, call.scratch(Format::U8, 2 * int8_row(3)), rows, 3))
        });
        assert!(counted.is_none_or(|counted| counted == (3, 3)));
    }
}
