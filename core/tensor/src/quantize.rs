//! f32 to block formats: those that tests and small files need.
//!
//! Source: the numpy reference of the GGUF format; the bytes are equal to its bytes.

use crate::Dtype;
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

/// The bytes of `values` in `dtype`: F32, F16, BF16, `Q4_0`, `Q4_1` or `Q8_0`.
///
/// # Errors
/// For any other format, and when `values` are not whole blocks.
pub fn quantize(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>, QuantizeError> {
    let n_values = values.len();
    let n_bytes = dtype.row_bytes(n_values).ok_or(QuantizeError::Length { dtype, n_values })?;
    let mut out = Vec::with_capacity(n_bytes);
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => {
            out.resize(n_bytes, 0);
            store_f32(dtype, values, &mut out);
        }
        Dtype::Q4_0 => values.as_chunks().0.iter().for_each(|block| q4_0(block, &mut out)),
        Dtype::Q4_1 => values.as_chunks().0.iter().for_each(|block| q4_1(block, &mut out)),
        Dtype::Q8_0 => values.as_chunks().0.iter().for_each(|block| q8_0(block, &mut out)),
        _ => return Err(QuantizeError::NotWritten { dtype }),
    }
    Ok(out)
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

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn half_bytes(v: f32) -> [u8; 2] {
    half::f16::from_f32(v).to_le_bytes()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=15")]
fn nibble(v: f64) -> u8 {
    v.trunc().clamp(0.0, 15.0) as u8
}

/// d is the value of largest magnitude over -8. The product is formed in f64, as the reference
/// does to stand for a fused multiply-add.
fn q4_0(block: &[f32; 32], out: &mut Vec<u8>) {
    let mut largest = block[0];
    for &v in block {
        if v.abs() > largest.abs() {
            largest = v;
        }
    }
    let d = largest / -8.0;
    let id = f64::from(inverse(d));
    let q = |v: f32| nibble(f64::from(v) * id + 8.5);
    out.extend(half_bytes(d));
    out.extend((0..16).map(|j| q(block[j]) | q(block[j + 16]) << 4));
}

fn q4_1(block: &[f32; 32], out: &mut Vec<u8>) {
    let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = block.iter().copied().fold(f32::INFINITY, f32::min);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    let q = |v: f32| nibble(f64::from((v - min) * id + 0.5));
    out.extend(half_bytes(d));
    out.extend(half_bytes(min));
    out.extend((0..16).map(|j| q(block[j]) | q(block[j + 16]) << 4));
}

#[expect(clippy::cast_possible_truncation, reason = "at most 127 in magnitude")]
fn q8_0(block: &[f32; 32], out: &mut Vec<u8>) {
    let d = block.iter().fold(0.0_f32, |max, v| max.max(v.abs())) / 127.0;
    let id = inverse(d);
    out.extend(half_bytes(d));
    out.extend(block.iter().map(|v| ((v * id).round() as i8).cast_unsigned()));
}
