//! Stored bytes to f32.
//!
//! Source: the block layouts of the GGUF format. Each value is formed with the same products in
//! the same order as the format's numpy reference (package `gguf`), all in f32 without fused
//! multiply-add, so that the results are equal to the last bit.

use crate::Dtype;
use forgelm_kernels_api::Float8;
use half::slice::HalfFloatSliceExt;

/// Why bytes could not be read as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DequantizeError {
    /// An integer format: no rule says what float it stands for.
    #[error("{dtype} holds integers; expected a floating-point or block format")]
    NotFloat {
        /// The format given.
        dtype: Dtype,
    },
    /// Number of values and number of bytes disagree.
    #[error("{n_values} values of {dtype} were asked of {n_bytes} bytes")]
    Length {
        /// The format given.
        dtype: Dtype,
        /// Values asked for.
        n_values: usize,
        /// Bytes given.
        n_bytes: usize,
    },
}

/// Writes the values of `bytes`, stored as `dtype`, to `out`.
///
/// Shapes: `bytes` whole blocks read, `out` [n] written, n a multiple of the block length.
///
/// **Numerics:** F32 passes through, BF16, F16 and floats of eight bits are exact, F64 is rounded to
/// nearest even, block formats as their reference computes them.
///
/// # Errors
/// If `dtype` is an integer format, or the lengths disagree. `out` is untouched then.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), DequantizeError> {
    if !dtype.is_float() {
        return Err(DequantizeError::NotFloat { dtype });
    }
    if dtype.row_bytes(out.len()) != Some(bytes.len()) {
        let (n_values, n_bytes) = (out.len(), bytes.len());
        return Err(DequantizeError::Length { dtype, n_values, n_bytes });
    }
    match dtype {
        Dtype::F32 => singles(bytes, out),
        Dtype::F64 => doubles(bytes, out),
        Dtype::F16 => halves(bytes, out),
        Dtype::Bf16 => brain_floats(bytes, out),
        Dtype::F8E4m3 => looked_up(Float8::E4m3.values(), bytes, out),
        Dtype::F8E5m2 => looked_up(Float8::E5m2.values(), bytes, out),
        Dtype::Q4_0 => blocks::<18, 32>(bytes, out, q4_0),
        Dtype::Q4_1 => blocks::<20, 32>(bytes, out, q4_1),
        Dtype::Q5_0 => blocks::<22, 32>(bytes, out, q5_0),
        Dtype::Q5_1 => blocks::<24, 32>(bytes, out, q5_1),
        Dtype::Q8_0 => blocks::<34, 32>(bytes, out, q8_0),
        Dtype::Q2K => blocks::<84, 256>(bytes, out, q2_k),
        Dtype::Q3K => blocks::<110, 256>(bytes, out, q3_k),
        Dtype::Q4K => blocks::<144, 256>(bytes, out, q4_k),
        Dtype::Q5K => blocks::<176, 256>(bytes, out, q5_k),
        Dtype::Q6K => blocks::<210, 256>(bytes, out, q6_k),
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 => {}
        Dtype::U64 | Dtype::U32 | Dtype::U16 | Dtype::U8 | Dtype::Bool => {}
    }
    Ok(())
}

/// Calls `one` with each block and its values. Sizes are constants so that the compiler can drop
/// every bounds check and use vector instructions.
#[inline]
fn blocks<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (values, values_rest) = out.as_chunks_mut::<VALUES>();
    assert!(rest.is_empty() && values_rest.is_empty(), "not whole blocks");
    for (block, values) in blocks.iter().zip(values) {
        one(block, values);
    }
}

fn singles(bytes: &[u8], out: &mut [f32]) {
    for (b, v) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *v = f32::from_le_bytes(*b);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is asked")]
fn doubles(bytes: &[u8], out: &mut [f32]) {
    for (b, v) in bytes.as_chunks::<8>().0.iter().zip(out) {
        *v = f64::from_le_bytes(*b) as f32;
    }
}

fn brain_floats(bytes: &[u8], out: &mut [f32]) {
    for (b, v) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *v = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

/// In runs of 64, so that the conversion instruction of the processor is used where there is one.
fn halves(bytes: &[u8], out: &mut [f32]) {
    let mut run = [half::f16::ZERO; 64];
    for (b, v) in bytes.chunks(128).zip(out.chunks_mut(64)) {
        for (h, b) in run.iter_mut().zip(b.as_chunks::<2>().0) {
            *h = half::f16::from_le_bytes(*b);
        }
        run[..v.len()].convert_to_f32_slice(v);
    }
}

fn looked_up(values: &[f32; 256], codes: &[u8], out: &mut [f32]) {
    for (v, &code) in out.iter_mut().zip(codes) {
        *v = values[usize::from(code)];
    }
}

#[inline]
pub(crate) fn scale(low: u8, high: u8) -> f32 {
    half::f16::from_le_bytes([low, high]).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block[0], block[1]);
    for j in 0..16 {
        let q = block[2 + j];
        out[j] = d * (f32::from(q & 15) - 8.0);
        out[j + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block[0], block[1]), scale(block[2], block[3]));
    for j in 0..16 {
        let q = block[4 + j];
        out[j] = d * f32::from(q & 15) + m;
        out[j + 16] = d * f32::from(q >> 4) + m;
    }
}

/// Value j of 32: low four bits from the nibbles, the fifth from bit j of `high`.
#[inline]
fn five_bits(high: u32, nibbles: &[u8; 16], j: usize) -> (f32, f32) {
    let bit = |j: usize| if high >> j & 1 == 1 { 16.0 } else { 0.0 };
    let q = nibbles[j];
    (f32::from(q & 15) + bit(j), f32::from(q >> 4) + bit(j + 16))
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block[0], block[1]);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let nibbles = block.last_chunk().expect("a block is longer than its nibbles");
    for j in 0..16 {
        let (a, b) = five_bits(high, nibbles, j);
        out[j] = d * (a - 16.0);
        out[j + 16] = d * (b - 16.0);
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block[0], block[1]), scale(block[2], block[3]));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    let nibbles = block.last_chunk().expect("a block is longer than its nibbles");
    for j in 0..16 {
        let (a, b) = five_bits(high, nibbles, j);
        out[j] = d * a + m;
        out[j + 16] = d * b + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block[0], block[1]);
    for j in 0..32 {
        out[j] = d * f32::from(block[2 + j].cast_signed());
    }
}

/// `scales[16], qs[64], d, dmin`. Per half of 128 values, byte l holds values l, l + 32, l + 64,
/// l + 96 at bits 0, 2, 4, 6.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block[80], block[81]), scale(block[82], block[83]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(block[group] & 15);
        let ml = dmin * f32::from(block[group] >> 4);
        let (byte, shift) = two_bit_place(group);
        for (l, v) in out.iter_mut().enumerate() {
            *v = dl * f32::from(block[16 + byte + l] >> shift & 3) - ml;
        }
    }
}

/// Where the 16 two-bit values of a group lie: first byte and bit.
#[inline]
pub(crate) const fn two_bit_place(group: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2)
}

/// `hmask[32], qs[64], scales[12], d`. A clear bit of `hmask` means minus four.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = scale(block[108], block[109]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if group < 8 { block[96 + group] & 15 } else { block[88 + group] >> 4 };
        let high = block[104 + group % 4] >> (group / 4 * 2) & 3;
        let dl = d * (f32::from(low | high << 4) - 32.0);
        let (byte, shift) = two_bit_place(group);
        for (l, v) in out.iter_mut().enumerate() {
            let place = group % 2 * 16 + l;
            let minus = if block[place] >> (group / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *v = dl * (f32::from(block[32 + byte + l] >> shift & 3) - minus);
        }
    }
}

/// The eight six-bit (scale, min) pairs of `Q4_K` and `Q5_K`.
#[inline]
pub(crate) fn scale_and_min(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let s = scales[j + 4] & 15 | scales[j - 4] >> 6 << 4;
        let m = scales[j + 4] >> 4 | scales[j] >> 6 << 4;
        (s, m)
    }
}

/// `d, dmin, scales[12], qs[128]`. Per 64 values, byte l holds l (low) and l + 32 (high).
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block[0], block[1]), scale(block[2], block[3]));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = scale_and_min(&block[4..16], group);
        let (dl, ml) = (d * f32::from(sc), dmin * f32::from(m));
        let (byte, shift) = (16 + group / 2 * 32, group % 2 * 4);
        for (l, v) in out.iter_mut().enumerate() {
            *v = dl * f32::from(block[byte + l] >> shift & 15) - ml;
        }
    }
}

/// `d, dmin, scales[12], qh[32], qs[128]`. As `Q4_K`; bit `group` of `qh[l]` is the fifth bit.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block[0], block[1]), scale(block[2], block[3]));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = scale_and_min(&block[4..16], group);
        let (dl, ml) = (d * f32::from(sc), dmin * f32::from(m));
        let (byte, shift) = (48 + group / 2 * 32, group % 2 * 4);
        for (l, v) in out.iter_mut().enumerate() {
            let fifth = block[16 + l] >> group & 1;
            *v = dl * f32::from(block[byte + l] >> shift & 15 | fifth << 4) - ml;
        }
    }
}

/// `ql[128], qh[64], scales[16], d`. Per half of 128: low bits of l and l + 64 in byte l, of
/// l + 32 and l + 96 in byte l + 32; the upper two of all four in `qh[l]` at bits 0, 2, 4, 6.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = scale(block[208], block[209]);
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (run / 4, run % 4);
        let low_byte = half * 64 + quarter % 2 * 32;
        let low_shift = quarter / 2 * 4;
        for (l, v) in out.iter_mut().enumerate() {
            let dl = d * f32::from(block[192 + run * 2 + l / 16].cast_signed());
            let low = block[low_byte + l] >> low_shift & 15;
            let high = block[128 + half * 32 + l] >> (quarter * 2) & 3;
            *v = dl * (f32::from(low | high << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DequantizeError, dequantize};
    use crate::Dtype;

    #[test]
    fn lengths_that_disagree_are_refused() {
        let mut out = [0.0; 32];
        let wrong = dequantize(Dtype::Q4_0, &[0; 17], &mut out);
        let expected = DequantizeError::Length { dtype: Dtype::Q4_0, n_values: 32, n_bytes: 17 };
        assert_eq!(wrong, Err(expected));
        assert!(dequantize(Dtype::Q4_0, &[0; 18], &mut out[..31]).is_err());
        assert!(dequantize(Dtype::I32, &[0; 4], &mut out[..1]).is_err());
        assert_eq!(dequantize(Dtype::F16, &[], &mut []), Ok(()));
    }

    /// bf16 0xC040 is -3; f16 0x3555 is 0.333251953125; more than one run of 64 halves.
    #[test]
    #[expect(clippy::float_cmp, reason = "exact values")]
    fn plain_floats() {
        let mut one = [0.0];
        assert_eq!(dequantize(Dtype::Bf16, &[0x40, 0xC0], &mut one), Ok(()));
        assert_eq!(one, [-3.0]);
        let mut many = [0.0; 130];
        assert_eq!(dequantize(Dtype::F16, &[0x55, 0x35].repeat(130), &mut many), Ok(()));
        assert_eq!(many, [0.333_251_95; 130]);
        assert_eq!(dequantize(Dtype::F64, &0.1_f64.to_le_bytes(), &mut one), Ok(()));
        assert_eq!(one, [0.1_f32]);
    }
}
