//! AdamW.
//!
//! Paper: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
//!
//! Numerics: corrections in f64, elements in f32.

use forgelm_kernels_api::AdamW;

use crate::math::{for_vectors, load, store};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};

/// Elements of a task.
const CHUNK: usize = 16_384;

/// Shapes: equal lengths; `param`, `m`, `v` changed, `grad` read.
pub(crate) fn step(
    pool: &Pool,
    isa: Isa,
    param: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    constants: &AdamW,
) {
    for (name, len) in [("m", m.len()), ("v", v.len()), ("grad", grad.len())] {
        assert_eq!(len, param.len(), "{name} and param differ in length");
    }
    let factors = Factors::new(constants);
    pool.chunks3(param, CHUNK, m, CHUNK, v, CHUNK, |i, param, m, v| {
        let grad = &grad[i * CHUNK..i * CHUNK + param.len()];
        on_isa!(isa, s => part(s, param, m, v, grad, &factors));
    });
}

/// What multiplies what.
pub(crate) struct Factors {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    grad_scale: f32,
    decay: f32,
    /// `-lr / (1 - beta1^step)`.
    step_size: f32,
    /// `1 / (1 - beta2^step)`.
    correction2: f32,
    eps: f32,
}

impl Factors {
    pub(crate) fn new(constants: &AdamW) -> Self {
        let (beta1, beta2) = (f64::from(constants.beta1), f64::from(constants.beta2));
        let lr = f64::from(constants.lr);
        let step = constants.step as f64;
        Self {
            beta1: constants.beta1,
            rest1: (1.0 - beta1) as f32,
            beta2: constants.beta2,
            rest2: (1.0 - beta2) as f32,
            grad_scale: constants.grad_scale,
            decay: (1.0 - lr * f64::from(constants.weight_decay)) as f32,
            step_size: (-lr / (1.0 - beta1.powf(step))) as f32,
            correction2: (1.0 / (1.0 - beta2.powf(step))) as f32,
            eps: constants.eps,
        }
    }
}

#[inline(always)]
pub(crate) fn part<S: Simd>(
    s: S,
    param: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    factors: &Factors,
) {
    for_vectors!(s, grad.len(), |i| {
        let g = s.mul(load(s, &grad[i.clone()]), s.splat(factors.grad_scale));
        let m_new = s.mul(load(s, &m[i.clone()]), s.splat(factors.beta1));
        let m_new = s.mul_add(g, s.splat(factors.rest1), m_new);
        let v_new = s.mul(load(s, &v[i.clone()]), s.splat(factors.beta2));
        let v_new = s.mul_add(s.mul(g, g), s.splat(factors.rest2), v_new);
        let root = s.sqrt(s.mul(v_new, s.splat(factors.correction2)));
        let step = s.div(m_new, s.add(root, s.splat(factors.eps)));
        let decayed = s.mul(load(s, &param[i.clone()]), s.splat(factors.decay));
        store(s, &mut param[i.clone()], s.mul_add(step, s.splat(factors.step_size), decayed));
        store(s, &mut m[i.clone()], m_new);
        store(s, &mut v[i], v_new);
    },);
}
