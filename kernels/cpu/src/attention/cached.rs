//! Attention of a few new positions over all that are cached.
//!
//! A few queries are limited by reading keys and values once, so these are read where they lie;
//! many queries (the prompt) go through the tiles of [`forward`](mod@super::forward).

use forgelm_kernels_api::AttentionShape;

use super::forward::{Inputs, over_sequences};
use super::{Dims, Sequence, cap_scores};
use crate::math::{exp, for_vectors, load, store};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::put;
use crate::token_logprobs::largest;

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
    let shared = Shared::new(out);
    let h_kv = shape.n_kv_heads;
    pool.run(n * h_kv, &|task| {
        let (query, kv_head) = (task / h_kv, task % h_kv);
        let width = dims.group * dims.d();
        let at = query * dims.q_width() + kv_head * width;
        // SAFETY: each task has its own heads of its own row.
        let out = unsafe { shared.slice(at..at + width) };
        let inputs = Inputs { q: &q[at..at + width], k, v };
        on_isa!(isa, s => group(s, out, inputs, dims, kv_head, p - n + query));
    });
}

/// The query heads of one key/value head at one position. Shapes: `out`, `q` [group * D].
#[inline(always)]
fn group<S: Simd>(
    s: S,
    out: &mut [f32],
    inputs: Inputs<'_>,
    dims: Dims,
    kv_head: usize,
    position: usize,
) {
    let (d, width) = (dims.d(), dims.kv_width());
    let keys = dims.visible(position);
    let mut scores = Scratch::<f32>::take(keys.len());
    for (out, q) in out.chunks_exact_mut(d).zip(inputs.q.chunks_exact(d)) {
        for (score, key) in scores.iter_mut().zip(keys.clone()) {
            let at = key * width + kv_head * d;
            *score = dims.shape.scale * dot(s, q, &inputs.k[at..at + d]);
        }
        if let Some(cap) = dims.shape.soft_cap {
            cap_scores(s, &mut scores, cap);
        }
        let minus_max = s.splat(-largest(s, &scores));
        for_vectors!(s, scores.len(), |i| {
            let e = exp(s, s.add(load(s, &scores[i.clone()]), minus_max));
            store(s, &mut scores[i], e);
        },);
        let mut total = 0.0;
        out.fill(0.0);
        for (&p, key) in scores.iter().zip(keys.clone()) {
            total += p;
            let at = key * width + kv_head * d;
            let v = &inputs.v[at..at + d];
            let p = s.splat(p);
            for_vectors!(s, d, |i| {
                put(s, &mut out[i.clone()], s.mul(load(s, &v[i]), p), true);
            },);
        }
        let inverse = s.splat(1.0 / total);
        for_vectors!(s, d, |i| {
            let v = s.mul(load(s, &out[i.clone()]), inverse);
            store(s, &mut out[i], v);
        },);
    }
}

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for_vectors!(s, a.len(), |i| sum = s.mul_add(load(s, &a[i.clone()]), load(s, &b[i]), sum),);
    s.sum(sum)
}
