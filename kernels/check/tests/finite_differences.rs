//! The reference's gradients against differences of its forward ops.
//!
//! For a loss `sum r f(x)` with random r, the derivative along each input is taken from central
//! differences at two step sizes, extrapolated to zero (Richardson). What the two differ by bounds
//! the truncation; the rounding of f's results to f32 is added, divided by the step.
#![expect(clippy::cast_possible_truncation, reason = "a test")]

use forgelm_kernels_api::{
    Activation, AttentionShape, Choice, Compute, GemmDims, GemmLayout, LowRank, Ops, Rotation,
    Routing, RoutingMut, Segment, Write,
};
use forgelm_kernels_check::{Matrix, U, attention, indices, numbers};
use forgelm_kernels_reference::Reference;

/// Powers of two: adding them to numbers near 1 rounds to at most `U`.
const STEP: f32 = 1.0 / 32.0;

fn weighted(r: &[f32], y: &[f32]) -> f64 {
    assert_eq!(r.len(), y.len());
    r.iter().zip(y).map(|(&r, &y)| f64::from(r) * f64::from(y)).sum()
}

/// Compares every element of `gradient` with differences of `f`, whose results are weighted by `r`.
fn check(what: &str, x: &[f32], gradient: &[f32], r: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    assert!(!x.is_empty(), "{what}");
    for i in 0..x.len() {
        let slope = |step: f32| {
            let mut at = x.to_vec();
            at[i] = x[i] + step;
            let (above, high) = (f(&at), f64::from(at[i]));
            at[i] = x[i] - step;
            let (below, low) = (f(&at), f64::from(at[i]));
            let rounding: f64 = r
                .iter()
                .zip(above.iter().zip(&below))
                .map(|(r, (a, b))| f64::from(r.abs()) * f64::from(a.abs() + b.abs()) * U)
                .sum();
            ((weighted(r, &above) - weighted(r, &below)) / (high - low), rounding / (high - low))
        };
        let ((coarse, noise1), (fine, noise2)) = (slope(STEP), slope(STEP / 2.0));
        let want = (4.0 * fine - coarse) / 3.0;
        let bound =
            0.5 * (fine - coarse).abs() + 2.0 * (noise1 + noise2) + 16.0 * U * (want.abs() + 1.0);
        let got = f64::from(gradient[i]);
        assert!(
            (got - want).abs() <= bound,
            "{what}: element {i} is {got}, expected {want} within {bound:.2e}"
        );
    }
}

#[test]
fn linear_backward_is_the_gradient_of_linear_forward() {
    let (t, n, k) = (3, 5, 4);
    let w = Reference.freeze(&Matrix::random(1, n, k), Compute::F32);
    let (x, r) = (numbers(2, t * k), numbers(3, t * n));
    let mut dx = vec![0.0; t * k];
    Reference.linear_backward((&mut dx).into(), (&r).into(), &*w, Write::Replace);
    check("linear", &x, &dx, &r, |x| {
        let mut y = vec![0.0; t * n];
        Reference.linear_forward((&mut y).into(), x.into(), &*w, Write::Replace);
        y
    });
}

/// A layer with an adapter: `u = x a^T`, `y = x w^T + s u b^T`, and back through both.
#[test]
fn low_rank_backward_is_the_gradient_of_low_rank_forward() {
    let (t, n, k, rank, scale) = (3, 5, 4, 2, 1.5);
    let w = Reference.freeze(&Matrix::random(1, n, k), Compute::F32);
    let (x, r) = (numbers(2, t * k), numbers(3, t * n));
    let (a, b) = (numbers(4, rank * k), numbers(5, n * rank));
    let gemm = |c: &mut [f32], x: &[f32], y: &[f32], layout, k| {
        let dims = GemmDims { m: t, n: rank, k };
        Reference.gemm(c.into(), x.into(), y.into(), layout, dims, 1.0, Write::Replace);
    };
    let mut du = vec![0.0; t * rank];
    gemm(&mut du, &r, &b, GemmLayout::Nn, n);
    let mut dx = vec![0.0; t * k];
    let low_rank = LowRank { u: (&du).into(), v: (&a).into(), scale };
    Reference.linear_backward_low_rank(
        (&mut dx).into(),
        (&r).into(),
        &*w,
        low_rank,
        Write::Replace,
    );
    check("low rank", &x, &dx, &r, |x| {
        let (mut u, mut y) = (vec![0.0; t * rank], vec![0.0; t * n]);
        gemm(&mut u, x, &a, GemmLayout::Nt, k);
        let low_rank = LowRank { u: (&u).into(), v: (&b).into(), scale };
        Reference.linear_forward_low_rank((&mut y).into(), x.into(), &*w, low_rank, Write::Replace);
        y
    });
}

#[test]
fn rms_norm_backward_is_the_gradient_of_rms_norm_forward() {
    let (t, c) = (2, 7);
    let (x, weight, r) = (numbers(1, t * c), numbers(2, c), numbers(3, t * c));
    let forward = |x: &[f32]| {
        let (mut y, mut inv) = (vec![0.0; t * c], vec![0.0; t]);
        Reference.rms_norm_forward(
            (&mut y).into(),
            (&mut inv).into(),
            x.into(),
            (&weight).into(),
            1e-3,
        );
        (y, inv)
    };
    let mut dx = vec![0.0; t * c];
    Reference.rms_norm_backward(
        (&mut dx).into(),
        (&r).into(),
        (&x).into(),
        (&forward(&x).1).into(),
        (&weight).into(),
        Write::Replace,
    );
    check("rms_norm", &x, &dx, &r, |x| forward(x).0);

    let mut dweight = vec![0.0; c];
    Reference.rms_norm_weight_backward(
        (&mut dweight).into(),
        (&r).into(),
        (&x).into(),
        (&forward(&x).1).into(),
    );
    check("rms_norm weight", &weight, &dweight, &r, |weight| {
        let (mut y, mut inv) = (vec![0.0; t * c], vec![0.0; t]);
        Reference.rms_norm_forward(
            (&mut y).into(),
            (&mut inv).into(),
            (&x).into(),
            weight.into(),
            1e-3,
        );
        y
    });
}

#[test]
fn embedding_backward_is_the_gradient_of_embedding_forward() {
    let (v, c) = (4, 3);
    // Token 2 comes three times, token 3 never.
    let tokens = [2, 0, 2, 1, 2];
    let (table, r) = (numbers(1, v * c), numbers(2, tokens.len() * c));
    let mut dtable = vec![0.0; v * c];
    Reference.embedding_backward((&mut dtable).into(), (&r).into(), &tokens);
    check("embedding", &table, &dtable, &r, |table| {
        let table = Matrix { n: v, k: c, data: table.to_vec() };
        let mut y = vec![0.0; tokens.len() * c];
        Reference.embedding_forward(
            (&mut y).into(),
            &tokens,
            &*Reference.freeze(&table, Compute::F32),
        );
        y
    });
}

#[test]
fn sums_over_rows_are_the_gradients_of_biases_and_magnitudes() {
    let (t, n) = (4, 5);
    let (x, bias, r) = (numbers(1, t * n), numbers(2, n), numbers(3, t * n));
    let mut dbias = vec![0.0; n];
    Reference.column_sums((&mut dbias).into(), (&r).into());
    check("bias", &bias, &dbias, &r, |bias| {
        let mut y = x.clone();
        Reference.add_bias((&mut y).into(), bias.into());
        y
    });
    let mut dfactors = vec![0.0; n];
    Reference.column_dots((&mut dfactors).into(), (&r).into(), (&x).into());
    check("magnitude", &bias, &dfactors, &r, |factors| {
        let mut y = vec![0.0; t * n];
        Reference.scale_columns((&mut y).into(), (&x).into(), factors.into(), Write::Replace);
        y
    });
}

#[test]
fn rope_backward_is_the_gradient_of_rope_forward() {
    let (t, h, d) = (3, 2, 8);
    let (x, r, angles) = (numbers(1, t * h * d), numbers(2, t * h * d), numbers(3, t * d / 2));
    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
    let rotated = |x: &[f32], direction| {
        let mut x = x.to_vec();
        Reference.rope((&mut x).into(), (&cos).into(), (&sin).into(), h, d, direction);
        x
    };
    check("rope", &x, &rotated(&r, Rotation::Backward), &r, |x| rotated(x, Rotation::Forward));
}

#[test]
fn glu_backward_is_the_gradient_of_glu_forward() {
    let n = 40;
    let gate: Vec<f32> = numbers(1, n).iter().map(|v| 4.0 * v).collect();
    let (up, r) = (numbers(2, n), numbers(3, n));
    for act in [Activation::Silu, Activation::GeluTanh] {
        let forward = |gate: &[f32], up: &[f32]| {
            let mut y = vec![0.0; n];
            Reference.glu_forward((&mut y).into(), gate.into(), up.into(), act);
            y
        };
        let (mut dgate, mut dup) = (gate.clone(), up.clone());
        Reference.glu_backward((&mut dgate).into(), (&mut dup).into(), (&r).into(), act);
        check(&format!("glu {act:?} gate"), &gate, &dgate, &r, |gate| forward(gate, &up));
        check(&format!("glu {act:?} up"), &up, &dup, &r, |up| forward(&gate, up));
    }
}

#[test]
fn attention_backward_is_the_gradient_of_attention_forward() {
    let masks = [(None, None), (Some(3), None), (None, Some(1.5)), (Some(2), Some(1.0))];
    assert_eq!(masks.len(), 4);
    for (window, soft_cap) in masks {
        let case = attention::Case { heads: (4, 2, 6), window, soft_cap, segments: &[5, 1, 3] };
        attention_case(&case.shape(Compute::F32), &case.segments());
    }
}

fn attention_case(shape: &AttentionShape, segments: &[Segment]) {
    let t: usize = segments.iter().map(|s| s.len).sum();
    let (h, h_kv, d) = (shape.n_heads, shape.n_kv_heads, shape.head_dim);
    let (q, r) = (numbers(1, t * h * d), numbers(2, t * h * d));
    let (k, v) = (numbers(3, t * h_kv * d), numbers(4, t * h_kv * d));
    let forward = |q: &[f32], k: &[f32], v: &[f32]| {
        let (mut out, mut lse) = (vec![0.0; t * h * d], vec![0.0; t * h]);
        Reference.attention_forward(
            (&mut out).into(),
            (&mut lse).into(),
            q.into(),
            k.into(),
            v.into(),
            shape,
            segments,
        );
        (out, lse)
    };
    let (out, lse) = forward(&q, &k, &v);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    Reference.attention_backward(
        (&mut dq).into(),
        (&mut dk).into(),
        (&mut dv).into(),
        (&r).into(),
        (&out).into(),
        (&lse).into(),
        (&q).into(),
        (&k).into(),
        (&v).into(),
        shape,
        segments,
    );
    let what = |x| format!("attention {x} of {shape:?}");
    check(&what("q"), &q, &dq, &r, |q| forward(q, &k, &v).0);
    check(&what("k"), &k, &dk, &r, |k| forward(&q, k, &v).0);
    check(&what("v"), &v, &dv, &r, |v| forward(&q, &k, v).0);
}

#[test]
fn token_logprobs_backward_is_the_gradient_of_token_logprobs_forward() {
    let (rows, v, c) = (4, 9, 5);
    let head = Reference.freeze(&Matrix::random(1, v, c), Compute::F32);
    let (x, r, labels) = (numbers(2, rows * c), numbers(3, rows), indices(4, rows, v));
    for soft_cap in [None, Some(1.0)] {
        let forward = |x: &[f32]| {
            let (mut logp, mut lse) = (vec![0.0; rows], vec![0.0; rows]);
            Reference.token_logprobs_forward(
                (&mut logp).into(),
                (&mut lse).into(),
                x.into(),
                &*head,
                &labels,
                soft_cap,
            );
            (logp, lse)
        };
        let mut dx = vec![0.0; rows * c];
        let lse = forward(&x).1;
        Reference.token_logprobs_backward(
            (&mut dx).into(),
            (&r).into(),
            (&lse).into(),
            (&x).into(),
            &*head,
            &labels,
            soft_cap,
        );
        check(&format!("token_logprobs cap {soft_cap:?}"), &x, &dx, &r, |x| forward(x).0);

        let mut dhead = vec![0.0; v * c];
        Reference.token_logprobs_head_backward(
            (&mut dhead).into(),
            (&r).into(),
            (&lse).into(),
            (&x).into(),
            &*head,
            &labels,
            soft_cap,
        );
        let what = format!("token_logprobs head cap {soft_cap:?}");
        check(&what, &Matrix::random(1, v, c).data, &dhead, &r, |head| {
            let head = Matrix { n: v, k: c, data: head.to_vec() };
            let head = Reference.freeze(&head, Compute::F32);
            let (mut logp, mut lse) = (vec![0.0; rows], vec![0.0; rows]);
            Reference.token_logprobs_forward(
                (&mut logp).into(),
                (&mut lse).into(),
                (&x).into(),
                &*head,
                &labels,
                soft_cap,
            );
            logp
        });
    }
}

#[test]
fn a_wrong_gradient_is_found() {
    let (x, r) = (numbers(1, 8), numbers(2, 8));
    let cube = |x: &[f32]| x.iter().map(|v| (f64::from(*v).powi(3)) as f32).collect();
    let mut dx: Vec<f32> =
        x.iter().zip(&r).map(|(x, r)| (3.0 * f64::from(*x).powi(2)) as f32 * r).collect();
    check("cube", &x, &dx, &r, cube);
    dx[5] *= 1.01;
    let found = std::panic::catch_unwind(|| check("cube", &x, &dx, &r, cube));
    assert!(found.is_err(), "a gradient off by one in a hundred went unnoticed");
}

/// The arrays of a routing of the reference, and the weights.
fn route(scores: &[f32], choice: Choice) -> ([Vec<u32>; 3], Vec<f32>, Vec<f32>) {
    let mut probs = scores.to_vec();
    Reference.softmax_rows((&mut probs).into(), choice.n_experts);
    let n = scores.len() / choice.n_experts * choice.n_chosen;
    let [mut chosen, mut places, mut rows] = [(); 3].map(|()| vec![0; n]);
    let mut weights = vec![0.0; n];
    let to = RoutingMut {
        chosen: (&mut chosen).into(),
        places: (&mut places).into(),
        rows: (&mut rows).into(),
        weights: (&mut weights).into(),
    };
    Reference.route(to, (&probs).into(), choice, None);
    ([chosen, places, rows], weights, probs)
}

/// Scores are so far apart that a step changes no choice.
#[test]
fn route_backward_is_the_gradient_of_the_weights_by_the_scores() {
    let (t, n_experts, n_chosen) = (2, 5, 2);
    let scores = [0.4, -1.3, 1.9, -0.6, 1.1, 2.2, 0.1, -0.9, 1.3, -1.8];
    let r = numbers(1, t * n_chosen);
    for is_normalized in [false, true] {
        let choice = Choice { n_experts, n_chosen, is_normalized };
        let ([chosen, places, rows], weights, probs) = route(&scores, choice);
        let routing = Routing {
            chosen: (&chosen).into(),
            places: (&places).into(),
            rows: (&rows).into(),
            weights: (&weights).into(),
        };
        let mut dscores = vec![0.0; scores.len()];
        let (to, probs) = ((&mut dscores).into(), (&probs).into());
        Reference.route_backward(to, routing, probs, (&r).into(), None, choice);
        check("routing", &scores, &dscores, &r, |scores| route(scores, choice).1);
    }
}
