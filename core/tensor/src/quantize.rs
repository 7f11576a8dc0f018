//! f32 to the formats that files are written in.
//!
//! Source: the numpy reference of the GGUF format for `Q4_0`, `Q4_1`, `Q5_0` and `Q8_0`, ggml's
//! own for `Q4_K` and `Q6_K`, which numpy does not write; the bytes are equal to theirs.

use crate::{Dtype, k_quants};
use half::slice::HalfFloatSliceExt;

/// Why values could not be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    /// Nothing here writes this format.
    #[error("{dtype} can be read but not written")]
    NotWritten {
        /// The format asked for.
        dtype: Dtype,
    },
    /// Not whole blocks.
    #[error("{n_values} values are not whole blocks of {dtype}")]
    Length {
        /// The format asked for.
        dtype: Dtype,
        /// Values given.
        n_values: usize,
    },
}

/// The bytes of `values` in `dtype`: F32, F16, BF16, `Q4_0`, `Q4_1`, `Q5_0`, `Q8_0`,
/// `Q4_K` or `Q6_K`.
///
/// # Errors
/// For any other format, and when `values` are not whole blocks.
pub fn quantize(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>, QuantizeError> {
    let n_values = values.len();
    let n_bytes = dtype.row_bytes(n_values).ok_or(QuantizeError::Length { dtype, n_values })?;
    let mut out = vec![0; n_bytes];
    quantize_into(dtype, values, &mut out)?;
    Ok(out)
}

/// As [`quantize`], of whole blocks, to `out`, which has their length.
pub(crate) fn quantize_into(
    dtype: Dtype,
    values: &[f32],
    out: &mut [u8],
) -> Result<(), QuantizeError> {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => store_f32(dtype, values, out),
        Dtype::Q4_0 => blocks(values, out, q4_0),
        Dtype::Q4_1 => blocks(values, out, q4_1),
        Dtype::Q5_0 => blocks(values, out, q5_0),
        Dtype::Q8_0 => blocks(values, out, q8_0),
        Dtype::Q4K => blocks(values, out, k_quants::q4_k),
        Dtype::Q6K => blocks(values, out, k_quants::q6_k),
        _ => return Err(QuantizeError::NotWritten { dtype }),
    }
    Ok(())
}

/// Calls `one` with each block and its bytes.
fn blocks<const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut [u8],
    one: impl Fn(&[f32; VALUES], &mut [u8; BYTES]),
) {
    let (values, values_rest) = values.as_chunks::<VALUES>();
    let (blocks, rest) = out.as_chunks_mut::<BYTES>();
    assert!(rest.is_empty() && values_rest.is_empty(), "not whole blocks");
    values.iter().zip(blocks).for_each(|(values, block)| one(values, block));
}

/// Writes `values` in `dtype`, F32, F16 or BF16, to nearest even.
///
/// Shapes: `values` [n] read, `out` [n values of `dtype`] written.
///
/// # Panics
/// If `dtype` is another one, or `out` has another length: a bug in the caller.
pub fn store_f32(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), values.len() * dtype.block_bytes(), "values do not fit");
    match dtype {
        Dtype::F32 => {
            for (out, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *out = v.to_le_bytes();
            }
        }
        // In runs, so that the conversion instruction of the processor is used where there is one.
        Dtype::F16 => {
            let mut run = [half::f16::ZERO; 64];
            for (out, values) in out.chunks_mut(128).zip(values.chunks(64)) {
                run[..values.len()].convert_from_f32_slice(values);
                for (out, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(run) {
                    *out = v.to_le_bytes();
                }
            }
        }
        Dtype::Bf16 => {
            for (out, &v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = half::bf16::from_f32(v).to_le_bytes();
            }
        }
        other => panic!("{other} is no format of single numbers that is written"),
    }
}

/// Rounds values to half precision, to nearest even; what is too large becomes infinite.
pub fn round_to_f16(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
}

/// Rounds values to bfloat16, to nearest even.
pub fn round_to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn half_bytes(v: f32) -> [u8; 2] {
    half::f16::from_f32(v).to_le_bytes()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=max")]
fn whole(v: f64, max: f64) -> u8 {
    v.trunc().clamp(0.0, max) as u8
}

fn nibble(v: f64) -> u8 {
    whole(v, 15.0)
}

/// The value of largest magnitude, the first of them.
fn largest(block: &[f32; 32]) -> f32 {
    block.iter().fold(block[0], |largest, &v| if v.abs() > largest.abs() { v } else { largest })
}

/// d is the value of largest magnitude over -8. The product is formed in f64, as the reference
/// does to stand for a fused multiply-add.
fn q4_0(block: &[f32; 32], out: &mut [u8; 18]) {
    let d = largest(block) / -8.0;
    let id = f64::from(inverse(d));
    let q = |v: f32| nibble(f64::from(v) * id + 8.5);
    out[..2].copy_from_slice(&half_bytes(d));
    for j in 0..16 {
        out[2 + j] = q(block[j]) | q(block[j + 16]) << 4;
    }
}

fn q4_1(block: &[f32; 32], out: &mut [u8; 20]) {
    let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = block.iter().copied().fold(f32::INFINITY, f32::min);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    let q = |v: f32| nibble(f64::from((v - min) * id + 0.5));
    out[..2].copy_from_slice(&half_bytes(d));
    out[2..4].copy_from_slice(&half_bytes(min));
    for j in 0..16 {
        out[4 + j] = q(block[j]) | q(block[j + 16]) << 4;
    }
}

/// As `q4_0`, over -16; bit j of four bytes is the fifth bit of value j.
fn q5_0(block: &[f32; 32], out: &mut [u8; 22]) {
    let d = largest(block) / -16.0;
    let id = f64::from(inverse(d));
    let q = block.map(|v| whole(f64::from(v) * id + 16.5, 31.0));
    out[..2].copy_from_slice(&half_bytes(d));
    let high = q.iter().rev().fold(0_u32, |bits, q| bits << 1 | u32::from(q >> 4));
    out[2..6].copy_from_slice(&high.to_le_bytes());
    for j in 0..16 {
        out[6 + j] = q[j] & 15 | q[j + 16] << 4;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 127 in magnitude")]
fn q8_0(block: &[f32; 32], out: &mut [u8; 34]) {
    let d = block.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bytes(d));
    for (out, v) in out[2..].iter_mut().zip(block) {
        *out = ((v * id).round() as i8).cast_unsigned();
    }
}
