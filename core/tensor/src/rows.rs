//! Rows of a matrix in fewer bytes, each row by itself: the formats of the quantizers.
//!
//! The block functions are those that the engine keeps its own weights with: [`FourBitTensor`],
//! [`Int8Rows`], and the block formats of GGUF in [`dequantize`](crate::dequantize()). A row's bytes
//! are, with n numbers:
//!
//! | format | bytes |
//! |---|---|
//! | nf4, fp4 | ceil(n / 2) of codes, the earlier number in the upper half; then an f32 for each 64 numbers |
//! | int8 | n codes, signed; then an f32 |
//! | others | the blocks of GGUF, end to end |
//!
//! [`FourBitTensor`]: crate::FourBitTensor
//! [`Int8Rows`]: crate::Int8Rows

use crate::{Dtype, FOUR_BIT_BLOCK, FourBit, four_bit, int8, quantize::quantize_into};

/// A format of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// Four bits by quantiles of the normal distribution, blocks of 64.
    Nf4,
    /// Four-bit floats, blocks of 64.
    Fp4,
    /// Whole numbers, one scale a row.
    Int8,
    /// [`Dtype::Q8_0`].
    Q8_0,
    /// [`Dtype::Q4_0`].
    Q4_0,
    /// [`Dtype::Q4_1`].
    Q4_1,
    /// [`Dtype::Q4K`].
    Q4K,
    /// [`Dtype::Q6K`].
    Q6K,
}

/// How the numbers of a format lie.
enum Kind {
    FourBit(FourBit),
    Int8,
    Block(Dtype),
}

/// Why rows could not be converted.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum RowError {
    /// Rows of no numbers, or not of whole blocks.
    #[error("rows of {n_cols} numbers in {format}; expected {expected}", format = .format.name())]
    Width {
        /// The format asked for.
        format: RowFormat,
        /// Numbers of a row.
        n_cols: usize,
        /// What rows it has.
        expected: &'static str,
    },
    /// The two sides do not have the same rows.
    #[error("{n_values} numbers and {n_bytes} bytes are not the same rows of {n_cols} numbers in {format}", format = .format.name())]
    Length {
        /// The format asked for.
        format: RowFormat,
        /// Numbers of a row.
        n_cols: usize,
        /// Numbers given.
        n_values: usize,
        /// Bytes given.
        n_bytes: usize,
    },
    /// A number that the format has nothing for.
    #[error("row {row}, column {column}: {value} in {format}; expected finite numbers up to {max:e}", format = .format.name())]
    Value {
        /// The format asked for.
        format: RowFormat,
        /// Where, from 0.
        row: usize,
        /// Where, from 0.
        column: usize,
        /// The number.
        value: f32,
        /// The largest size that it has room for.
        max: f32,
    },
}

impl RowFormat {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::Nf4,
        Self::Fp4,
        Self::Int8,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q4K,
        Self::Q6K,
    ];

    /// As configurations write it: `nf4`, `q4_k`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Int8 => "int8",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    /// The format with this [`name`](RowFormat::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Nf4 => Kind::FourBit(FourBit::Nf4),
            Self::Fp4 => Kind::FourBit(FourBit::Fp4),
            Self::Int8 => Kind::Int8,
            Self::Q8_0 => Kind::Block(Dtype::Q8_0),
            Self::Q4_0 => Kind::Block(Dtype::Q4_0),
            Self::Q4_1 => Kind::Block(Dtype::Q4_1),
            Self::Q4K => Kind::Block(Dtype::Q4K),
            Self::Q6K => Kind::Block(Dtype::Q6K),
        }
    }

    /// The largest size of a number: scales of block formats are half precision.
    fn max(self) -> f32 {
        match self.kind() {
            Kind::Block(_) => half::f16::MAX.to_f32(),
            Kind::FourBit(_) | Kind::Int8 => f32::MAX,
        }
    }
}

/// Bytes of a row of `n_cols` numbers.
///
/// # Errors
/// If the format has no such rows.
pub fn bytes_per_row(format: RowFormat, n_cols: usize) -> Result<usize, RowError> {
    let width = |expected| RowError::Width { format, n_cols, expected };
    if n_cols == 0 {
        return Err(width("at least one"));
    }
    let too_large = width("a size that fits into memory");
    match format.kind() {
        Kind::FourBit(_) => {
            let scales = n_cols.div_ceil(FOUR_BIT_BLOCK).checked_mul(4);
            scales.and_then(|scales| scales.checked_add(n_cols.div_ceil(2))).ok_or(too_large)
        }
        Kind::Int8 => n_cols.checked_add(4).ok_or(too_large),
        Kind::Block(dtype) => match dtype.block_len() {
            32 if n_cols.is_multiple_of(32) => dtype.row_bytes(n_cols).ok_or(too_large),
            256 if n_cols.is_multiple_of(256) => dtype.row_bytes(n_cols).ok_or(too_large),
            32 => Err(width("a multiple of 32")),
            _ => Err(width("a multiple of 256")),
        },
    }
}

/// Numbers to bytes.
///
/// Shapes: `rows` [R, C] read, `bytes` [R, B] written, B as [`bytes_per_row`] says.
///
/// # Errors
/// If the shapes do not fit, or a number is not finite or too large. `bytes` is untouched then.
///
/// # Panics
/// Never: the shapes were checked.
pub fn quantize(
    format: RowFormat,
    rows: &[f32],
    n_cols: usize,
    bytes: &mut [u8],
) -> Result<(), RowError> {
    let n_bytes = check(format, rows.len(), n_cols, bytes.len())?;
    check_values(format, rows, n_cols)?;
    let pairs = rows.chunks_exact(n_cols).zip(bytes.chunks_exact_mut(n_bytes));
    match format.kind() {
        Kind::Block(dtype) => {
            quantize_into(dtype, rows, bytes).expect("whole blocks of a format that is written");
        }
        Kind::FourBit(kind) => pairs.for_each(|(row, bytes)| {
            let (codes, scales) = bytes.split_at_mut(n_cols.div_ceil(2));
            let blocks = row.chunks(FOUR_BIT_BLOCK).zip(codes.chunks_mut(FOUR_BIT_BLOCK / 2));
            for ((block, codes), scale) in blocks.zip(scales.as_chunks_mut::<4>().0) {
                *scale = four_bit::quantize_block(kind, block, codes).to_le_bytes();
            }
        }),
        Kind::Int8 => pairs.for_each(|(row, bytes)| {
            let (codes, scale) = bytes.split_at_mut(n_cols);
            let of_row = int8::scale(row);
            scale.copy_from_slice(&of_row.to_le_bytes());
            for (code, &v) in codes.iter_mut().zip(row) {
                *code = int8::code(v, of_row).cast_unsigned();
            }
        }),
    }
    Ok(())
}

/// Bytes to numbers.
///
/// Shapes: `bytes` [R, B] read, `rows` [R, C] written, B as [`bytes_per_row`] says.
///
/// # Errors
/// If the shapes do not fit. `rows` is untouched then.
///
/// # Panics
/// Never: the shapes were checked.
pub fn dequantize(
    format: RowFormat,
    bytes: &[u8],
    n_cols: usize,
    rows: &mut [f32],
) -> Result<(), RowError> {
    let n_bytes = check(format, rows.len(), n_cols, bytes.len())?;
    let pairs = rows.chunks_exact_mut(n_cols).zip(bytes.chunks_exact(n_bytes));
    match format.kind() {
        Kind::Block(dtype) => {
            crate::dequantize(dtype, bytes, rows).expect("whole blocks of a format of numbers");
        }
        Kind::FourBit(kind) => pairs.for_each(|(row, bytes)| {
            let (codes, scales) = bytes.split_at(n_cols.div_ceil(2));
            let blocks = row.chunks_mut(FOUR_BIT_BLOCK).zip(codes.chunks(FOUR_BIT_BLOCK / 2));
            for ((block, codes), scale) in blocks.zip(scales.as_chunks::<4>().0) {
                four_bit::dequantize_run(kind, codes, 0, f32::from_le_bytes(*scale), block);
            }
        }),
        Kind::Int8 => pairs.for_each(|(row, bytes)| {
            let (codes, scale) = bytes.split_at(n_cols);
            let scale = f32::from_le_bytes(*scale.first_chunk().expect("four bytes of scale"));
            for (v, code) in row.iter_mut().zip(codes) {
                *v = int8::value(code.cast_signed(), scale);
            }
        }),
    }
    Ok(())
}

/// Whether numbers and bytes are the same rows; the bytes of one.
fn check(
    format: RowFormat,
    n_values: usize,
    n_cols: usize,
    n_bytes: usize,
) -> Result<usize, RowError> {
    let of_row = bytes_per_row(format, n_cols)?;
    let expected = (n_values / n_cols).checked_mul(of_row);
    if n_values.is_multiple_of(n_cols) && expected == Some(n_bytes) {
        return Ok(of_row);
    }
    Err(RowError::Length { format, n_cols, n_values, n_bytes })
}

fn check_values(format: RowFormat, rows: &[f32], n_cols: usize) -> Result<(), RowError> {
    let max = format.max();
    let is_held = |v: f32| v.abs() <= max;
    // Without a way out in the middle, so that it becomes vector instructions.
    if rows.iter().fold(true, |all, &v| all & is_held(v)) {
        return Ok(());
    }
    let place = rows.iter().position(|&v| !is_held(v)).expect("one of them is not held");
    let (row, column) = (place / n_cols, place % n_cols);
    Err(RowError::Value { format, row, column, value: rows[place], max })
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
mod tests {
    use super::{RowError, RowFormat, bytes_per_row, dequantize, quantize};
    use crate::{BlockScales, FourBit, FourBitTensor, Int8Rows};

    fn waves(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + i as f32 / 300.0)).collect()
    }

    fn there(format: RowFormat, rows: &[f32], n_cols: usize) -> Vec<u8> {
        let mut bytes = vec![0; rows.len() / n_cols * bytes_per_row(format, n_cols).unwrap()];
        quantize(format, rows, n_cols, &mut bytes).unwrap();
        bytes
    }

    fn back(format: RowFormat, bytes: &[u8], n_cols: usize) -> Vec<f32> {
        let n_rows = bytes.len() / bytes_per_row(format, n_cols).unwrap();
        let mut rows = vec![9.0; n_rows * n_cols];
        dequantize(format, bytes, n_cols, &mut rows).unwrap();
        rows
    }

    #[test]
    fn names_are_found_again() {
        for format in RowFormat::ALL {
            assert_eq!(RowFormat::from_name(format.name()), Some(format));
        }
        assert_eq!(RowFormat::from_name("q3_k"), None);
    }

    /// 100 numbers in four bits are 50 bytes and 2 scales; 512 in `q4_k` 2 blocks of 144.
    #[test]
    fn bytes_of_rows_by_hand() {
        let of = |format, n_cols| bytes_per_row(format, n_cols).unwrap();
        assert_eq!(of(RowFormat::Nf4, 100), 58);
        assert_eq!(of(RowFormat::Fp4, 1), 5);
        assert_eq!(of(RowFormat::Int8, 7), 11);
        assert_eq!(of(RowFormat::Q4_1, 64), 40);
        assert_eq!(of(RowFormat::Q4K, 512), 288);
        assert_eq!(of(RowFormat::Q6K, 256), 210);
    }

    #[test]
    fn four_bits_are_those_of_a_tensor_of_one_row() {
        for (format, kind) in [(RowFormat::Nf4, FourBit::Nf4), (RowFormat::Fp4, FourBit::Fp4)] {
            for n in [1, 63, 64, 65, 192, 1001] {
                let row = waves(n);
                let tensor = FourBitTensor::quantize(kind, &row, false);
                let BlockScales::Single(scales) = &tensor.scales else { panic!("plain scales") };
                let mut expected = tensor.packed.clone();
                expected.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
                let bytes = there(format, &row, n);
                assert_eq!(bytes, expected, "{kind:?} {n}");
                let mut values = vec![0.0; n];
                tensor.dequantize(0, &mut values);
                assert_eq!(back(format, &bytes, n), values, "{kind:?} {n}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_those_of_the_engine() {
        let rows = waves(21);
        let mut expected = Int8Rows::new(7);
        expected.push(&rows);
        let bytes = there(RowFormat::Int8, &rows, 7);
        for (r, row) in bytes.chunks(11).enumerate() {
            let codes: Vec<i8> = row[..7].iter().map(|b| b.cast_signed()).collect();
            assert_eq!(codes, expected.codes[r * 7..][..7]);
            assert_eq!(row[7..], expected.scales[r].to_le_bytes());
        }
        let mut values = vec![0.0; 21];
        expected.dequantize(0, &mut values);
        assert_eq!(back(RowFormat::Int8, &bytes, 7), values);
    }

    /// The largest error as a share of the largest size: half a step, and what rounding the scales
    /// to half precision (or to six bits) adds.
    #[test]
    fn errors_are_within_half_a_step_and_a_row_does_not_depend_on_the_others() {
        let bounds = [
            (RowFormat::Nf4, 0.152),
            (RowFormat::Fp4, 0.167),
            (RowFormat::Int8, 0.5 / 127.0),
            (RowFormat::Q8_0, 0.5 / 127.0 + 0.0005),
            (RowFormat::Q4_0, 0.126),
            (RowFormat::Q4_1, 0.07),
            (RowFormat::Q4K, 0.1),
            (RowFormat::Q6K, 0.04),
        ];
        let rows = waves(768);
        let max = rows.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
        for (format, bound) in bounds {
            let bytes = there(format, &rows, 256);
            let found = back(format, &bytes, 256);
            for (found, v) in found.iter().zip(&rows) {
                assert!((found - v).abs() <= bound * max, "{format:?}: {v} became {found}");
            }
            let second = bytes.len() / 3..bytes.len() / 3 * 2;
            assert_eq!(there(format, &rows[256..512], 256), bytes[second], "{format:?}");
            assert!(back(format, &there(format, &[0.0; 256], 256), 256).iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn bad_rows_are_refused_with_their_place() {
        let mut bytes = [7; 144];
        let said = |format, rows: &[f32], n_cols, bytes: &mut [u8]| {
            quantize(format, rows, n_cols, bytes).unwrap_err().to_string()
        };
        assert_eq!(
            said(RowFormat::Q4K, &[0.0; 64], 64, &mut bytes),
            "rows of 64 numbers in q4_k; expected a multiple of 256"
        );
        assert_eq!(
            said(RowFormat::Nf4, &[], 0, &mut bytes),
            "rows of 0 numbers in nf4; expected at least one"
        );
        assert_eq!(
            said(RowFormat::Q4_0, &[0.0; 64], 32, &mut bytes[..35]),
            "64 numbers and 35 bytes are not the same rows of 32 numbers in q4_0"
        );
        let mut rows = [0.5; 512];
        rows[300] = f32::NAN;
        let two = &mut [7; 288];
        assert_eq!(
            said(RowFormat::Q4K, &rows, 256, two),
            "row 1, column 44: NaN in q4_k; expected finite numbers up to 6.5504e4"
        );
        assert_eq!(two, &[7; 288]);
        rows[300] = -1e6;
        assert!(quantize(RowFormat::Q8_0, &rows, 256, &mut [0; 544]).is_err());
        assert!(quantize(RowFormat::Int8, &rows, 256, &mut [0; 520]).is_ok());
        let width = bytes_per_row(RowFormat::Int8, usize::MAX).unwrap_err();
        assert!(matches!(width, RowError::Width { .. }), "{width}");
        assert!(dequantize(RowFormat::Q6K, &[0; 210], 256, &mut [0.0; 255]).is_err());
    }
}
