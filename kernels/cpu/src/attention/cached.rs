//! Attention of a few new positions over all that are cached.
//!
//! A few queries are limited by reading keys and values once, so these are read where they lie;
//! many queries (the prompt) go through the tiles of [`forward`](mod@super::forward).
//!
//! A task is one query head: with three key/value heads, tasks by these would leave the second of
//! two threads idle for a third of the time. Heads of a group read the same keys one after the
//! other, from the cache.
//!
//! Numerics: f32; sums over keys in order, in one accumulator for each number.

use forgelm_kernels_api::AttentionShape;

use super::forward::{Inputs, over_sequences};
use super::{Dims, Sequence, cap_scores};
use crate::math::{exp, for_vectors, load, store};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::token_logprobs::largest;

/// Keys that one query is multiplied with side by side, to hide the latency.
const AT_ONCE: usize = 4;

/// From this many queries on, laying out the keys pays.
const MANY: usize = 8;

/// Shapes: `out` and `q` [n, H * D]; `k` and `v` [P, H_kv * D].
pub(crate) fn cached(
    pool: &Pool,
    isa: Isa,
    out: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
) {
    let dims = Dims::new(shape);
    assert_eq!(out.len(), q.len(), "out is not [n, H * D]");
    assert!(q.len().is_multiple_of(dims.q_width()), "q is not [n, H * D]");
    assert!(k.len().is_multiple_of(dims.kv_width()), "k is not [P, H_kv * D]");
    assert_eq!(k.len(), v.len(), "k and v differ in length");
    let (n, p) = (q.len() / dims.q_width(), k.len() / dims.kv_width());
    assert!(p >= n, "fewer cached positions than queries");
    if n >= MANY {
        let sequence =
            Sequence { key_row: 0, n_keys: p, query_row: 0, n_queries: n, first_position: p - n };
        over_sequences(pool, isa, out, None, Inputs { q, k, v }, dims, &[sequence]);
        return;
    }
    let (shared, h) = (Shared::new(out), shape.n_heads);
    pool.run(n * h, &|task| {
        let (query, head) = (task / h, task % h);
        let at = query * dims.q_width() + head * dims.d();
        // SAFETY: each task has its own head of its own row.
        let out = unsafe { shared.slice(at..at + dims.d()) };
        let inputs = Inputs { q: &q[at..at + dims.d()], k, v };
        on_isa!(isa, s => one(s, out, inputs, dims, head / dims.group, p - n + query));
    });
}

/// One query head at one position. Shapes: `out`, `q` [D].
#[inline(always)]
fn one<S: Simd>(
    s: S,
    out: &mut [f32],
    inputs: Inputs<'_>,
    dims: Dims,
    kv_head: usize,
    position: usize,
) {
    let (d, width) = (dims.d(), dims.kv_width());
    let keys = dims.visible(position);
    let rows = keys.start * width + kv_head * d..keys.end * width;
    let (k, v) = (&inputs.k[rows.clone()], &inputs.v[rows]);
    let mut scores = Scratch::<f32>::take(keys.len());
    for (i, scores) in scores.chunks_mut(AT_ONCE).enumerate() {
        let k = &k[i * AT_ONCE * width..];
        let scale = dims.shape.scale;
        if let Ok(scores) = <&mut [f32; AT_ONCE]>::try_from(&mut *scores) {
            *scores = dots(s, inputs.q, k, width).map(|dot| scale * dot);
        } else {
            for (score, k) in scores.iter_mut().zip(k.chunks(width)) {
                *score = scale * dots::<_, 1>(s, inputs.q, k, width)[0];
            }
        }
    }
    if let Some(cap) = dims.shape.soft_cap {
        cap_scores(s, &mut scores, cap);
    }
    let minus_max = s.splat(-largest(s, &scores));
    for_vectors!(s, scores.len(), |i| {
        let e = exp(s, s.add(load(s, &scores[i.clone()]), minus_max));
        store(s, &mut scores[i], e);
    },);
    let inverse = 1.0 / scores.iter().sum::<f32>();
    let mut column = 0;
    while column < d {
        column += match (d - column) / S::LANES {
            4.. => weighted::<_, 4>(s, &mut out[column..], &scores, &v[column..], width, inverse),
            2..4 => weighted::<_, 2>(s, &mut out[column..], &scores, &v[column..], width, inverse),
            1 => weighted::<_, 1>(s, &mut out[column..], &scores, &v[column..], width, inverse),
            0 => rest(s, &mut out[column..], &scores, &v[column..], width, inverse),
        };
    }
}

/// Products of one query and `N` keys that lie `width` apart. Shapes: `q` [D].
#[inline(always)]
fn dots<S: Simd, const N: usize>(s: S, q: &[f32], k: &[f32], width: usize) -> [f32; N] {
    let mut sums = [s.splat(0.0); N];
    for_vectors!(s, q.len(), |i| {
        let q = load(s, &q[i.clone()]);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = s.mul_add(q, load(s, &k[n * width + i.start..n * width + i.end]), *sum);
        }
    },);
    sums.map(
        #[inline(always)]
        |sum| s.sum(sum),
    )
}

/// The first `N` vectors of `factor * sum of p[i] v[i]`, the rows of `v` lying `width` apart; gives
/// how many numbers they are.
#[inline(always)]
fn weighted<S: Simd, const N: usize>(
    s: S,
    out: &mut [f32],
    p: &[f32],
    v: &[f32],
    width: usize,
    factor: f32,
) -> usize {
    let mut sums = [s.splat(0.0); N];
    for (i, &p) in p.iter().enumerate() {
        let (p, v) = (s.splat(p), &v[i * width..]);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = s.mul_add(p, s.load(&v[n * S::LANES..]), *sum);
        }
    }
    for (n, &sum) in sums.iter().enumerate() {
        s.store(&mut out[n * S::LANES..], s.mul(sum, s.splat(factor)));
    }
    N * S::LANES
}

/// As [`weighted`], for the last few numbers, fewer than a vector.
#[inline(always)]
fn rest<S: Simd>(s: S, out: &mut [f32], p: &[f32], v: &[f32], width: usize, factor: f32) -> usize {
    let n = out.len();
    let mut sum = s.splat(0.0);
    for (i, &p) in p.iter().enumerate() {
        sum = s.mul_add(s.splat(p), s.load_part(&v[i * width..i * width + n]), sum);
    }
    s.store_part(out, s.mul(sum, s.splat(factor)));
    n
}
