//! Dropout whose mask is a function of numbers.
//!
//! Paper: Srivastava et al. 2014. The mask is defined at [`Dropout`]; the bits are those of
//! `forgelm_kernels_api::philox`, for many counters at a time.

use forgelm_kernels_api::{Dropout, Write};

use crate::math::load;
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::put;

/// Rows of a task.
const ROWS: usize = 16;
/// Counters at a time: 64 columns.
const COUNTERS: usize = 16;

/// Shapes: `y` [T, C] written or added to, `x` [T, C], `row_keys` [T] read.
pub(crate) fn dropout(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    row_keys: &[u64],
    dropout: &Dropout,
    write: Write,
) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert!((0.0..1.0).contains(&dropout.p), "dropout's chance is not in [0, 1)");
    if x.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(row_keys.len()), "x is not [T, C]");
    let c = x.len() / row_keys.len();
    pool.chunks(y, ROWS * c, |i, y| {
        let (x, row_keys) = (&x[i * ROWS * c..], &row_keys[i * ROWS..]);
        on_isa!(isa, s => rows(s, y, x, row_keys, dropout, write));
    });
}

#[inline(always)]
fn rows<S: Simd>(
    s: S,
    y: &mut [f32],
    x: &[f32],
    row_keys: &[u64],
    dropout: &Dropout,
    write: Write,
) {
    let c = y.len() / row_keys.len().min(ROWS);
    // p < 1, so the threshold fits 32 bits.
    let threshold = (f64::from(dropout.p) * 2.0_f64.powi(32)).ceil() as u32;
    let factor = (1.0 / (1.0 - f64::from(dropout.p))) as f32;
    for ((y, x), &row_key) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(row_keys) {
        let mut first = 0;
        while first < c {
            let bits = philox_block([row_key as u32, (row_key >> 32) as u32], first / 4, dropout);
            let mut factors = [0.0; 4 * COUNTERS];
            for (f, &bits) in factors.iter_mut().zip(&bits) {
                *f = if bits >= threshold { factor } else { 0.0 };
            }
            let end = (first + 4 * COUNTERS).min(c);
            for from in (first..end).step_by(S::LANES) {
                let i = from..(from + S::LANES).min(end);
                let kept = load(s, &factors[i.start - first..i.end - first]);
                let v = s.mul(load(s, &x[i.clone()]), kept);
                put(s, &mut y[i], v, write == Write::Add);
            }
            first = end;
        }
    }
}

/// The bits of columns `4 * first..`, in order: [`COUNTERS`] counters in the lanes of plain arrays,
/// which the compiler turns into vectors.
#[inline(always)]
fn philox_block(row_key: [u32; 2], first: usize, dropout: &Dropout) -> [u32; 4 * COUNTERS] {
    const MULTIPLIER: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut c0 = [row_key[0]; COUNTERS];
    let mut c1 = [row_key[1]; COUNTERS];
    let mut c2 = [0; COUNTERS];
    let mut c3 = [0; COUNTERS];
    for (i, c2) in c2.iter_mut().enumerate() {
        *c2 = (first + i) as u32;
    }
    let [mut k0, mut k1] = dropout.key;
    for _ in 0..10 {
        for i in 0..COUNTERS {
            let (product0, product1) =
                (MULTIPLIER[0] * u64::from(c0[i]), MULTIPLIER[1] * u64::from(c2[i]));
            let (high0, high1) = ((product0 >> 32) as u32, (product1 >> 32) as u32);
            c0[i] = high1 ^ c1[i] ^ k0;
            c1[i] = product1 as u32;
            c2[i] = high0 ^ c3[i] ^ k1;
            c3[i] = product0 as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    let mut bits = [0; 4 * COUNTERS];
    for i in 0..COUNTERS {
        bits[4 * i..4 * i + 4].copy_from_slice(&[c0[i], c1[i], c2[i], c3[i]]);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_kernels_api::philox::philox4x32;

    #[test]
    fn blocks_of_bits_are_those_of_philox() {
        let dropout = Dropout { p: 0.5, key: [0xdead_beef, 7] };
        let bits = philox_block([3, 4], 100, &dropout);
        for (i, bits) in bits.chunks_exact(4).enumerate() {
            assert_eq!(bits, philox4x32([3, 4, 100 + i as u32, 0], dropout.key));
        }
    }
}
