//! Sum of squares.
//!
//! Numerics: f64; blocks of a fixed length, eight accumulators each, blocks added in order.

use crate::pool::Pool;
use crate::simd::Isa;
use crate::simd::on_isa;

/// Elements of a block.
const BLOCK: usize = 16_384;

pub(crate) fn sum_of_squares(pool: &Pool, isa: Isa, x: &[f32]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(BLOCK)];
    pool.chunks(&mut sums, 1, |i, sum| {
        let x = &x[i * BLOCK..((i + 1) * BLOCK).min(x.len())];
        sum[0] = on_isa!(isa, _s => block(x));
    });
    sums.into_iter().sum()
}

#[inline(always)]
fn block(x: &[f32]) -> f64 {
    let (groups, rest) = x.as_chunks::<8>();
    let mut sums = [0.0_f64; 8];
    for group in groups {
        for (sum, &x) in sums.iter_mut().zip(group) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    sums.into_iter().sum::<f64>() + rest
}
