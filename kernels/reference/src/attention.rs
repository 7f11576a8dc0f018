//! Causal attention within segments, one score row at a time.
//!
//! Papers: Vaswani et al. 2017, eq. 1; gradient with the row sum of `dout * out`: Dao et al. 2022,
//! arXiv:2205.14135, appendix B.2; grouped heads: Ainslie et al. 2023.

use std::ops::Range;

use forgelm_kernels_api::{AttentionShape, Segment};

use crate::dot;

/// What backward reads. Shapes as [`forgelm_kernels_api::Ops::attention_backward`].
pub(crate) struct Given<'a> {
    pub dout: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// Shapes: `out` [T, H * D], `lse` [T, H] written; `q` [T, H * D], `k`, `v` [T, H_kv * D] read.
pub(crate) fn forward(
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let (h, d) = (shape.n_heads, shape.head_dim);
    let n_tokens = check(q, k, v, shape, segments);
    assert_eq!(out.len(), q.len(), "out is not [T, H * D]");
    assert_eq!(lse.len(), n_tokens * h, "lse is not [T, H]");
    for segment in segments {
        for position in 0..segment.len {
            let t = segment.start + position;
            for head in 0..h {
                let keys = visible(segment.start, position, shape);
                let at = (t * h + head) * d;
                let row = at..at + d;
                lse[t * h + head] =
                    one_row(&mut out[row.clone()], &q[row], k, v, head, keys, shape);
            }
        }
    }
}

/// Shapes: `out` and `q` [n, H * D]; `k` and `v` [P, H_kv * D].
pub(crate) fn cached(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], shape: &AttentionShape) {
    let (h, d) = (shape.n_heads, shape.head_dim);
    let kv_width = shape.n_kv_heads * d;
    assert_eq!(out.len(), q.len(), "out is not [n, H * D]");
    assert!(q.len().is_multiple_of(h * d), "q is not [n, H * D]");
    assert!(k.len().is_multiple_of(kv_width), "k is not [P, H_kv * D]");
    assert_eq!(k.len(), v.len(), "k and v differ in length");
    let (n, p) = (q.len() / (h * d), k.len() / kv_width);
    assert!(p >= n, "fewer cached positions than queries");
    for i in 0..n {
        for head in 0..h {
            let keys = visible(0, p - n + i, shape);
            let at = (i * h + head) * d;
            one_row(&mut out[at..at + d], &q[at..at + d], k, v, head, keys, shape);
        }
    }
}

/// One query row of one head; returns the log of the softmax denominator.
fn one_row(
    out: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    head: usize,
    keys: Range<usize>,
    shape: &AttentionShape,
) -> f32 {
    let scores: Vec<f64> =
        keys.clone().map(|key| score(q, kv_row(k, key, head, shape), shape)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let lse = max + sum.ln();
    let mut row = vec![0.0_f64; q.len()];
    for (key, s) in keys.zip(scores) {
        let p = (s - lse).exp();
        for (o, &v) in row.iter_mut().zip(kv_row(v, key, head, shape)) {
            *o += p * f64::from(v);
        }
    }
    for (o, sum) in out.iter_mut().zip(row) {
        *o = sum as f32;
    }
    lse as f32
}

/// Shapes: `dq` [T, H * D], `dk` and `dv` [T, H_kv * D] written.
pub(crate) fn backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    given: &Given<'_>,
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let (h, d) = (shape.n_heads, shape.head_dim);
    let &Given { dout, out, lse, q, k, v } = given;
    let n_tokens = check(q, k, v, shape, segments);
    assert_eq!(lse.len(), n_tokens * h, "lse is not [T, H]");
    for (name, len) in [("dq", dq.len()), ("dout", dout.len()), ("out", out.len())] {
        assert_eq!(len, q.len(), "{name} is not [T, H * D]");
    }
    for (name, len) in [("dk", dk.len()), ("dv", dv.len())] {
        assert_eq!(len, k.len(), "{name} is not [T, H_kv * D]");
    }
    let (mut dk64, mut dv64) = (vec![0.0_f64; dk.len()], vec![0.0_f64; dv.len()]);
    let mut dq_row = vec![0.0_f64; d];
    for segment in segments {
        for position in 0..segment.len {
            let t = segment.start + position;
            for head in 0..h {
                let at = (t * h + head) * d;
                let (q, dout, out) = (&q[at..at + d], &dout[at..at + d], &out[at..at + d]);
                let delta = dot(dout, out);
                dq_row.fill(0.0);
                for key in visible(segment.start, position, shape) {
                    let (k, v) = (kv_row(k, key, head, shape), kv_row(v, key, head, shape));
                    let s = score(q, k, shape);
                    let p = (s - f64::from(lse[t * h + head])).exp();
                    let slope =
                        shape.soft_cap.map_or(1.0, |cap| 1.0 - (s / f64::from(cap)).powi(2));
                    let ds = p * (dot(dout, v) - delta) * slope * f64::from(shape.scale);
                    let from = kv_offset(key, head, shape);
                    for i in 0..d {
                        dv64[from + i] += p * f64::from(dout[i]);
                        dk64[from + i] += ds * f64::from(q[i]);
                        dq_row[i] += ds * f64::from(k[i]);
                    }
                }
                for (dq, &sum) in dq[at..at + d].iter_mut().zip(&dq_row) {
                    *dq = sum as f32;
                }
            }
        }
    }
    for (to, from) in [(dk, dk64), (dv, dv64)] {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from as f32;
        }
    }
}

/// The score of one query and one key, scaled and capped.
fn score(q: &[f32], k: &[f32], shape: &AttentionShape) -> f64 {
    let s = f64::from(shape.scale) * dot(q, k);
    shape.soft_cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
}

/// Rows of keys that the query at `position` of a segment sees.
fn visible(start: usize, position: usize, shape: &AttentionShape) -> Range<usize> {
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    start + first..start + position + 1
}

fn kv_offset(key: usize, head: usize, shape: &AttentionShape) -> usize {
    let kv_head = head / (shape.n_heads / shape.n_kv_heads);
    (key * shape.n_kv_heads + kv_head) * shape.head_dim
}

fn kv_row<'a>(kv: &'a [f32], key: usize, head: usize, shape: &AttentionShape) -> &'a [f32] {
    let from = kv_offset(key, head, shape);
    &kv[from..from + shape.head_dim]
}

/// Checks shapes and segments; returns T.
fn check(q: &[f32], k: &[f32], v: &[f32], shape: &AttentionShape, segments: &[Segment]) -> usize {
    let (h, h_kv, d) = (shape.n_heads, shape.n_kv_heads, shape.head_dim);
    assert!(h.is_multiple_of(h_kv), "query heads are no multiple of key/value heads");
    assert!(shape.window != Some(0), "a window of 0 sees nothing");
    let n_tokens: usize = segments.iter().map(|s| s.len).sum();
    let mut end = 0;
    for segment in segments {
        assert_eq!(segment.start, end, "segments do not lie end to end");
        end += segment.len;
    }
    assert_eq!(q.len(), n_tokens * h * d, "q is not [T, H * D]");
    assert_eq!(k.len(), n_tokens * h_kv * d, "k is not [T, H_kv * D]");
    assert_eq!(v.len(), k.len(), "v is not [T, H_kv * D]");
    n_tokens
}
