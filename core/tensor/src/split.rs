//! The block formats of GGUF taken apart into codes and factors, for kernels that keep weights
//! quantized.
//!
//! Put together again as [`BlockFormat`] says, they are the values of [`dequantize`] to the last
//! bit (core/artifact: `tests/golden.rs`).
//!
//! [`dequantize`]: crate::dequantize

use forgelm_kernels_api::{BlockFormat, BlockRows, Codes, Factor, FactorRows, Factors, Rounding};

use crate::Dtype;
use crate::dequantize::{scale, scale_and_min, two_bit_place};

/// What the codes and factors of a block format stand for; `None` for other formats.
#[must_use]
pub fn block_format(dtype: Dtype) -> Option<BlockFormat> {
    // A byte's factor: its unsigned number less `bias`, or its signed number.
    let nested = |outer_len, number: fn(u8) -> f32| Factors::Nested {
        values: Box::new(std::array::from_fn(|b| number(u8::try_from(b).unwrap_or(0)))),
        outer_len,
        offset: None,
    };
    let four = |bias: u8| Codes::Four {
        values: std::array::from_fn(|c| f32::from(u8::try_from(c).unwrap_or(0)) - f32::from(bias)),
    };
    let whole = |b: u8| f32::from(b);
    let (codes, group_len, scale, min) = match dtype {
        Dtype::Q4_0 => (four(8), 32, Factors::Plain, None),
        Dtype::Q4_1 => (four(0), 32, Factors::Plain, Some(Factors::Plain)),
        Dtype::Q5_0 | Dtype::Q8_0 => (Codes::Eight, 32, Factors::Plain, None),
        Dtype::Q5_1 => (Codes::Eight, 32, Factors::Plain, Some(Factors::Plain)),
        Dtype::Q2K => (four(0), 16, nested(16, whole), Some(nested(16, whole))),
        Dtype::Q3K => (four(4), 16, nested(16, |b| f32::from(b) - 32.0), None),
        Dtype::Q4K => (four(0), 32, nested(8, whole), Some(nested(8, whole))),
        Dtype::Q5K => (Codes::Eight, 32, nested(8, whole), Some(nested(8, whole))),
        Dtype::Q6K => (Codes::Eight, 16, nested(16, |b| f32::from(b.cast_signed())), None),
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 => return None,
        Dtype::F8E4m3 | Dtype::F8E5m2 => return None,
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 => return None,
        Dtype::U64 | Dtype::U32 | Dtype::U16 | Dtype::U8 | Dtype::Bool => return None,
    };
    Some(BlockFormat { codes, group_len, scale, min, rounding: Rounding::Exact })
}

/// No rows of a format, with room for `n_values`.
#[must_use]
pub fn no_rows(format: &BlockFormat, n_values: usize) -> BlockRows {
    let factors = |factors: &Factors| match factors {
        Factors::Plain => FactorRows::Plain(Vec::with_capacity(n_values / format.group_len)),
        Factors::Nested { .. } => {
            FactorRows::Nested(Vec::with_capacity(n_values / format.group_len))
        }
    };
    BlockRows {
        codes: Vec::with_capacity(n_values),
        scale: factors(&format.scale),
        min: format.min.as_ref().map(factors),
    }
}

/// Appends the codes and factors of whole blocks.
///
/// # Panics
/// If `dtype` is no block format, `bytes` are not whole blocks, or `rows` are of another format: a
/// bug in the caller.
pub fn split_blocks(dtype: Dtype, bytes: &[u8], rows: &mut BlockRows) {
    assert!(bytes.len().is_multiple_of(dtype.block_bytes()), "not whole blocks of {dtype}");
    for block in bytes.chunks_exact(dtype.block_bytes()) {
        match dtype {
            Dtype::Q4_0 | Dtype::Q4_1 => nibbles(&block[block.len() - 16..], &mut rows.codes),
            Dtype::Q5_0 => five_bits(block, 16, &mut rows.codes),
            Dtype::Q5_1 => five_bits(block, 0, &mut rows.codes),
            Dtype::Q8_0 => rows.codes.extend_from_slice(&block[2..]),
            Dtype::Q2K => q2_k(block, rows),
            Dtype::Q3K => q3_k(block, rows),
            Dtype::Q4K => q4_k(block, rows),
            Dtype::Q5K => q5_k(block, rows),
            Dtype::Q6K => q6_k(block, rows),
            other => panic!("{other} is no block format"),
        }
        if let FactorRows::Plain(scales) = &mut rows.scale {
            scales.push(scale(block[0], block[1]));
        }
        if let Some(FactorRows::Plain(mins)) = &mut rows.min {
            mins.push(scale(block[2], block[3]));
        }
    }
}

/// Appends the outer factors of whole blocks; nothing if the format's factors are plain.
///
/// # Panics
/// If `bytes` are not whole blocks.
pub fn outer_factors(dtype: Dtype, bytes: &[u8], factor: Factor, out: &mut Vec<f32>) {
    assert!(bytes.len().is_multiple_of(dtype.block_bytes()), "not whole blocks of {dtype}");
    let place = match (dtype, factor) {
        (Dtype::Q2K, Factor::Scale) => 80,
        (Dtype::Q2K, Factor::Min) => 82,
        (Dtype::Q3K, Factor::Scale) => 108,
        (Dtype::Q4K | Dtype::Q5K, Factor::Scale) => 0,
        (Dtype::Q4K | Dtype::Q5K, Factor::Min) => 2,
        (Dtype::Q6K, Factor::Scale) => 208,
        _ => return,
    };
    let sign = if factor == Factor::Min { -1.0 } else { 1.0 };
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    out.extend(blocks.map(|block| sign * scale(block[place], block[place + 1])));
}

/// Byte l holds values l (low) and l + 16 (high) of 32.
fn nibbles(bytes: &[u8], codes: &mut Vec<u8>) {
    codes.extend(bytes.iter().map(|q| q & 15));
    codes.extend(bytes.iter().map(|q| q >> 4));
}

/// As [`nibbles`]; bit j of the four bytes before them is the fifth bit of value j.
fn five_bits(block: &[u8], bias: u8, codes: &mut Vec<u8>) {
    let (head, low) = block.split_at(block.len() - 16);
    let high = &head[head.len() - 4..];
    let fifth = |j: usize| high[j / 8] >> (j % 8) & 1;
    codes.extend((0..16).map(|j| (low[j] & 15 | fifth(j) << 4).wrapping_sub(bias)));
    codes.extend((0..16).map(|j| (low[j] >> 4 | fifth(j + 16) << 4).wrapping_sub(bias)));
}

fn push(factors: &mut FactorRows, byte: u8) {
    let FactorRows::Nested(bytes) = factors else { panic!("rows of another format") };
    bytes.push(byte);
}

fn push_both(rows: &mut BlockRows, scale: u8, min: u8) {
    push(&mut rows.scale, scale);
    push(rows.min.as_mut().expect("a format with mins"), min);
}

fn q2_k(block: &[u8], rows: &mut BlockRows) {
    for (group, factors) in block[..16].iter().enumerate() {
        let (byte, shift) = two_bit_place(group);
        rows.codes.extend(block[16 + byte..][..16].iter().map(|q| q >> shift & 3));
        push_both(rows, factors & 15, factors >> 4);
    }
}

/// Codes are the three bits, the bit of `hmask` above the others: less four, the value.
fn q3_k(block: &[u8], rows: &mut BlockRows) {
    for group in 0..16 {
        let low = if group < 8 { block[96 + group] & 15 } else { block[88 + group] >> 4 };
        let high = block[104 + group % 4] >> (group / 4 * 2) & 3;
        push(&mut rows.scale, low | high << 4);
        let (byte, shift) = two_bit_place(group);
        rows.codes.extend((0..16).map(|l| {
            let third = block[group % 2 * 16 + l] >> (group / 2) & 1;
            block[32 + byte + l] >> shift & 3 | third << 2
        }));
    }
}

fn q4_k(block: &[u8], rows: &mut BlockRows) {
    for group in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], group);
        push_both(rows, scale, min);
        let (byte, shift) = (16 + group / 2 * 32, group % 2 * 4);
        rows.codes.extend(block[byte..][..32].iter().map(|q| q >> shift & 15));
    }
}

fn q5_k(block: &[u8], rows: &mut BlockRows) {
    for group in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], group);
        push_both(rows, scale, min);
        let (byte, shift) = (48 + group / 2 * 32, group % 2 * 4);
        rows.codes.extend(
            (0..32).map(|l| block[byte + l] >> shift & 15 | (block[16 + l] >> group & 1) << 4),
        );
    }
}

fn q6_k(block: &[u8], rows: &mut BlockRows) {
    block[192..208].iter().for_each(|&b| push(&mut rows.scale, b));
    for run in 0..8 {
        let (half, quarter) = (run / 4, run % 4);
        let (byte, shift) = (half * 64 + quarter % 2 * 32, quarter / 2 * 4);
        rows.codes.extend((0..32).map(|l| {
            let low = block[byte + l] >> shift & 15;
            let high = block[128 + half * 32 + l] >> (quarter * 2) & 3;
            (low | high << 4).wrapping_sub(32)
        }));
    }
}
