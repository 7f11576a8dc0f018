//! What the kernel library has no op for, over its threads. Work is cut into blocks of fixed sizes,
//! and what blocks find is added in their order: the same bits on any number of threads.

use forgelm_kernels_api::Ops;
use std::sync::{Mutex, PoisonError};

/// Numbers of a block.
const BLOCK: usize = 1 << 14;
/// Sums that a block is added up in, so that additions need not wait for each other.
const LANES: usize = 8;

/// Gives each task its own chunk: `task(i, out[i * len..])`.
fn chunks<T: Send>(
    ops: &dyn Ops,
    out: &mut [T],
    len: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    let chunks: Vec<_> = out.chunks_mut(len).map(Mutex::new).collect();
    // Each lock is taken once: it hands a chunk to the thread that has its task.
    ops.parallel_for(chunks.len(), &|i| {
        task(i, &mut chunks[i].lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// What each block of n numbers gives, in order.
fn blocks<R: Send + Clone + Default>(
    ops: &dyn Ops,
    n: usize,
    of: impl Fn(std::ops::Range<usize>) -> R + Sync,
) -> Vec<R> {
    let mut results = vec![R::default(); n.div_ceil(BLOCK)];
    chunks(ops, &mut results, 1, |i, result| {
        result[0] = of(i * BLOCK..((i + 1) * BLOCK).min(n));
    });
    results
}

/// `y += a x`. Shapes: equal lengths.
pub(super) fn axpy(ops: &dyn Ops, y: &mut [f32], a: f32, x: &[f32]) {
    chunks(ops, y, BLOCK, |i, y| {
        y.iter_mut().zip(&x[i * BLOCK..]).for_each(|(y, x)| *y += a * x);
    });
}

/// Sum of products, each exact in f64. Shapes: equal lengths.
pub(super) fn dot(ops: &dyn Ops, x: &[f32], y: &[f32]) -> f64 {
    let of = |range: std::ops::Range<usize>| {
        let (x, x_rest) = x[range.clone()].as_chunks::<LANES>();
        let (y, y_rest) = y[range].as_chunks::<LANES>();
        let mut sums = [0.0_f64; LANES];
        for (x, y) in x.iter().zip(y) {
            for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
                *sum += f64::from(x) * f64::from(y);
            }
        }
        let rest = x_rest.iter().zip(y_rest).map(|(&x, &y)| f64::from(x) * f64::from(y));
        sums.into_iter().sum::<f64>() + rest.sum::<f64>()
    };
    blocks(ops, x.len(), of).into_iter().sum()
}

/// Sum.
pub(super) fn sum(ops: &dyn Ops, x: &[f32]) -> f64 {
    let of = |range: std::ops::Range<usize>| {
        let (x, rest) = x[range].as_chunks::<LANES>();
        let mut sums = [0.0_f64; LANES];
        for x in x {
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        sums.into_iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
    };
    blocks(ops, x.len(), of).into_iter().sum()
}

/// Bits of a magnitude: in the order of the numbers, and NaN above all.
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Largest magnitude; 0 of no numbers.
pub(super) fn max_abs(ops: &dyn Ops, x: &[f32]) -> f32 {
    let of = |range: std::ops::Range<usize>| x[range].iter().copied().map(magnitude).max();
    f32::from_bits(blocks(ops, x.len(), of).into_iter().flatten().max().unwrap_or(0))
}

/// The smallest of the k largest magnitudes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Threshold {
    pub(super) threshold: f32,
    /// Magnitudes above it: fewer than k.
    pub(super) n_above: usize,
}

/// Bits of a magnitude that a pass counts: bits below them, and values of them.
const PASSES: [(u32, usize); 3] = [(20, 1 << 11), (10, 1 << 10), (0, 1 << 10)];

/// k is 1 to the length of x. Three passes count the magnitudes by their upper 11, next 10 and last
/// 10 bits, each among those that the passes before left.
pub(super) fn top_k_threshold(ops: &dyn Ops, x: &[f32], k: usize) -> Threshold {
    let (mut known, mut n_above) = (0_u32, 0_usize);
    for (shift, n_bins) in PASSES {
        let upper = shift + n_bins.ilog2();
        let counts = Mutex::new(vec![0_usize; n_bins]);
        ops.parallel_for(x.len().div_ceil(BLOCK), &|block| {
            let mut own = vec![0_u32; n_bins];
            let x = &x[block * BLOCK..((block + 1) * BLOCK).min(x.len())];
            for bits in x.iter().copied().map(magnitude).filter(|bits| bits >> upper == known) {
                own[(bits >> shift) as usize % n_bins] += 1;
            }
            // Whole numbers: their order changes nothing.
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.iter_mut().zip(own).for_each(|(count, own)| *count += own as usize);
        });
        let counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut bin = n_bins - 1;
        while n_above + counts[bin] < k {
            n_above += counts[bin];
            bin -= 1;
        }
        known = known << n_bins.ilog2() | u32::try_from(bin).unwrap_or(0);
    }
    Threshold { threshold: f32::from_bits(known), n_above }
}

/// Shapes: `logp` [R] written, `logits` [R, V], `labels` [R] read, each below V.
#[expect(clippy::cast_possible_truncation, reason = "computed in f64 and stored as f32")]
pub(super) fn log_softmax_gather(ops: &dyn Ops, logp: &mut [f32], logits: &[f32], labels: &[u32]) {
    let n_vocab = logits.len() / labels.len().max(1);
    chunks(ops, logp, 1, |row, logp| {
        let logits = &logits[row * n_vocab..(row + 1) * n_vocab];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        logp[0] = (f64::from(logits[labels[row] as usize]) - log_sum) as f32;
    });
}
