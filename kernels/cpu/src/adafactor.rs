//! Adafactor.
//!
//! Paper: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.
//!
//! Numerics: sums over a row in the lanes of a vector; over columns and over the whole update in
//! blocks of rows, added in order; factors in f64, elements in f32. The gradient is read three
//! times and nothing as large as it is stored.

use forgelm_kernels_api::{Adafactor, AdafactorMoments};

use crate::math::{for_vectors, load, store};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};

/// Elements of a task at least.
const CHUNK: usize = 16_384;
/// Blocks of rows at most: what partial sums of columns cost.
const BLOCKS: usize = 16;

/// Shapes: `param` [N, K] or [P] and `moments` changed, `grad` as `param` read.
pub(crate) fn step(
    pool: &Pool,
    isa: Isa,
    param: &mut [f32],
    moments: AdafactorMoments<'_>,
    grad: &[f32],
    constants: &Adafactor,
) {
    assert_eq!(grad.len(), param.len(), "grad and param differ in length");
    if param.is_empty() {
        return;
    }
    match moments {
        AdafactorMoments::Whole(v) => whole(pool, isa, param, v.on_host(), grad, constants),
        AdafactorMoments::Factored { rows, columns } => {
            let (rows, columns) = (rows.on_host(), columns.on_host());
            assert_eq!(param.len(), rows.len() * columns.len(), "param is not [rows, columns]");
            factored(pool, isa, param, (rows, columns), grad, constants);
        }
    }
}

/// What multiplies what.
struct Factors {
    grad_scale: f32,
    eps: f32,
    beta2: f32,
    rest2: f32,
}

impl Factors {
    fn new(constants: &Adafactor) -> Self {
        let beta2 = constants.beta2();
        Self {
            grad_scale: constants.grad_scale,
            eps: constants.eps,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
        }
    }

    fn follow(&self, old: f32, new: f64) -> f32 {
        self.beta2 * old + self.rest2 * new as f32
    }
}

/// What is kept of a parameter, and the factor on its update, whose squares sum up to `sum`.
fn applied(constants: &Adafactor, sum: f64, n: usize) -> (f32, f32) {
    let rms = (sum / n as f64).sqrt();
    let clip = (rms / f64::from(constants.clip_threshold)).max(1.0);
    let lr = f64::from(constants.lr);
    let keep = 1.0 - lr * f64::from(constants.weight_decay);
    (keep as f32, (-lr / clip) as f32)
}

fn whole(
    pool: &Pool,
    isa: Isa,
    param: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    constants: &Adafactor,
) {
    assert_eq!(v.len(), param.len(), "v and param differ in length");
    let factors = Factors::new(constants);
    let mut sums = vec![0.0_f64; param.len().div_ceil(CHUNK)];
    pool.chunks2(v, CHUNK, &mut sums, 1, |i, v, sum| {
        let grad = &grad[i * CHUNK..i * CHUNK + v.len()];
        sum[0] = on_isa!(isa, s => whole_moments(s, v, grad, &factors));
    });
    let (keep, size) = applied(constants, sums.into_iter().sum(), param.len());
    let v = &*v;
    pool.chunks(param, CHUNK, |i, param| {
        let part = i * CHUNK..i * CHUNK + param.len();
        let (grad, v) = (&grad[part.clone()], &v[part]);
        on_isa!(isa, s => for_vectors!(s, grad.len(), |i| {
            let g = s.mul(load(s, &grad[i.clone()]), s.splat(factors.grad_scale));
            let u = s.div(g, s.sqrt(load(s, &v[i.clone()])));
            let kept = s.mul(load(s, &param[i.clone()]), s.splat(keep));
            store(s, &mut param[i], s.mul_add(u, s.splat(size), kept));
        }));
    });
}

/// Brings `v` forward; returns the sum of squares of the update.
#[inline(always)]
fn whole_moments<S: Simd>(s: S, v: &mut [f32], grad: &[f32], factors: &Factors) -> f64 {
    let mut sum = s.splat(0.0);
    for_vectors!(s, grad.len(), |i| {
        let g = s.mul(load(s, &grad[i.clone()]), s.splat(factors.grad_scale));
        let square = s.mul(g, g);
        let old = s.mul(load(s, &v[i.clone()]), s.splat(factors.beta2));
        let new = s.mul_add(s.add(square, s.splat(factors.eps)), s.splat(factors.rest2), old);
        // Lanes beyond the end are 0 / eps: nothing.
        sum = s.add(sum, s.div(square, new));
        store(s, &mut v[i], new);
    });
    f64::from(s.sum(sum))
}

fn factored(
    pool: &Pool,
    isa: Isa,
    param: &mut [f32],
    (rows, columns): (&mut [f32], &mut [f32]),
    grad: &[f32],
    constants: &Adafactor,
) {
    let (n, k) = (rows.len(), columns.len());
    let factors = Factors::new(constants);
    let block = n.div_ceil(BLOCKS).max(CHUNK.div_ceil(k)).min(n);
    let n_blocks = n.div_ceil(block);
    let of_block = |i: usize| &grad[i * block * k..(i * block * k + block * k).min(n * k)];

    let mut partial = vec![0.0_f32; n_blocks * k];
    pool.chunks2(rows, block, &mut partial, k, |i, rows, partial| {
        on_isa!(isa, s => squares(s, rows, partial, of_block(i), &factors));
    });
    pool.chunks(columns, CHUNK, |i, columns| {
        for (c, column) in columns.iter_mut().enumerate() {
            let c = i * CHUNK + c;
            let sum: f64 = (0..n_blocks).map(|b| f64::from(partial[b * k + c])).sum();
            *column = factors.follow(*column, sum / n as f64);
        }
    });

    let mean = rows.iter().map(|&r| f64::from(r)).sum::<f64>() / n as f64;
    let row_factors: Vec<f32> = rows
        .iter()
        .map(|&r| (f64::from(constants.grad_scale) / (f64::from(r) / mean).sqrt()) as f32)
        .collect();
    let column_factors: Vec<f32> =
        columns.iter().map(|&c| (1.0 / f64::from(c).sqrt()) as f32).collect();
    let mut sums = vec![0.0_f64; n_blocks];
    pool.chunks(&mut sums, 1, |i, sum| {
        let row_factors = &row_factors[i * block..n.min((i + 1) * block)];
        sum[0] = on_isa!(isa, s => update_squares(s, row_factors, &column_factors, of_block(i)));
    });

    let (keep, size) = applied(constants, sums.into_iter().sum(), n * k);
    pool.chunks(param, block * k, |i, param| {
        let row_factors = &row_factors[i * block..n.min((i + 1) * block)];
        for ((param, grad), r) in param.chunks_mut(k).zip(of_block(i).chunks(k)).zip(row_factors) {
            let size = size * r;
            on_isa!(isa, s => for_vectors!(s, k, |i| {
                let u = s.mul(load(s, &grad[i.clone()]), load(s, &column_factors[i.clone()]));
                let kept = s.mul(load(s, &param[i.clone()]), s.splat(keep));
                store(s, &mut param[i], s.mul_add(u, s.splat(size), kept));
            }));
        }
    });
}

/// Brings the moments of rows forward, and adds up squares by column.
#[inline(always)]
fn squares<S: Simd>(s: S, rows: &mut [f32], partial: &mut [f32], grad: &[f32], factors: &Factors) {
    let k = partial.len();
    for (row, grad) in rows.iter_mut().zip(grad.chunks(k)) {
        let mut sum = s.splat(0.0);
        for_vectors!(s, k, |i| {
            let g = s.mul(load(s, &grad[i.clone()]), s.splat(factors.grad_scale));
            let square = s.mul(g, g);
            sum = s.add(sum, square);
            let with_eps = s.add(square, s.splat(factors.eps));
            let partial = &mut partial[i];
            store(s, partial, s.add(load(s, partial), with_eps));
        });
        let mean = f64::from(s.sum(sum)) / k as f64 + f64::from(factors.eps);
        *row = factors.follow(*row, mean);
    }
}

#[inline(always)]
fn update_squares<S: Simd>(s: S, row_factors: &[f32], column_factors: &[f32], grad: &[f32]) -> f64 {
    let mut total = 0.0;
    for (grad, &r) in grad.chunks(column_factors.len()).zip(row_factors) {
        let mut sum = s.splat(0.0);
        for_vectors!(s, grad.len(), |i| {
            let u = s.mul(load(s, &grad[i.clone()]), load(s, &column_factors[i]));
            let u = s.mul(u, s.splat(r));
            sum = s.mul_add(u, u, sum);
        });
        total += f64::from(s.sum(sum));
    }
    total
}
