//! Gated linear unit: `y = act(gate) * up`.
//!
//! Paper: Shazeer 2020, arXiv:2002.05202, eq. 6.
//!
//! Numerics: f32 throughout; errors of the exponential are in [`math`](crate::math).

use forgelm_kernels_api::Activation;

use crate::math::{for_vectors, load, sigmoid, store, tanh};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};

/// Elements of a task.
const CHUNK: usize = 16_384;

/// Shapes: all [T, F]; `y` written.
pub(crate) fn forward(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    gate: &[f32],
    up: &[f32],
    act: Activation,
) {
    assert_eq!(y.len(), gate.len(), "y and gate differ in length");
    assert_eq!(up.len(), gate.len(), "up and gate differ in length");
    pool.chunks(y, CHUNK, |i, y| {
        let part = i * CHUNK..i * CHUNK + y.len();
        on_isa!(isa, s => forward_part(s, y, &gate[part.clone()], &up[part.clone()], act));
    });
}

#[inline(always)]
fn forward_part<S: Simd>(s: S, y: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
    for_vectors!(s, y.len(), |i| {
        let (value, _) = value_and_slope(s, load(s, &gate[i.clone()]), act);
        store(s, &mut y[i.clone()], s.mul(value, load(s, &up[i])));
    },);
}

/// Shapes: all [T, F]; `gate` becomes `dgate`, `up` becomes `dup`.
pub(crate) fn backward(
    pool: &Pool,
    isa: Isa,
    gate: &mut [f32],
    up: &mut [f32],
    dy: &[f32],
    act: Activation,
) {
    assert_eq!(up.len(), gate.len(), "up and gate differ in length");
    assert_eq!(dy.len(), gate.len(), "dy and gate differ in length");
    pool.chunks2(gate, CHUNK, up, CHUNK, |i, gate, up| {
        let dy = &dy[i * CHUNK..i * CHUNK + gate.len()];
        on_isa!(isa, s => backward_part(s, gate, up, dy, act));
    });
}

#[inline(always)]
fn backward_part<S: Simd>(s: S, gate: &mut [f32], up: &mut [f32], dy: &[f32], act: Activation) {
    for_vectors!(s, dy.len(), |i| {
        let (value, slope) = value_and_slope(s, load(s, &gate[i.clone()]), act);
        let dy = load(s, &dy[i.clone()]);
        let dgate = s.mul(s.mul(dy, load(s, &up[i.clone()])), slope);
        store(s, &mut gate[i.clone()], dgate);
        store(s, &mut up[i], s.mul(dy, value));
    },);
}

/// The activation and its derivative.
#[inline(always)]
fn value_and_slope<S: Simd>(s: S, x: S::V, act: Activation) -> (S::V, S::V) {
    let one = s.splat(1.0);
    match act {
        Activation::Silu => {
            let sigmoid = sigmoid(s, x);
            let slope = s.mul(sigmoid, s.mul_add(x, s.sub(one, sigmoid), one));
            (s.mul(x, sigmoid), slope)
        }
        Activation::GeluTanh => {
            const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
            const CUBE: f32 = 0.044_715;
            let square = s.mul(x, x);
            let inner = s.mul(s.mul(x, s.splat(ROOT)), s.mul_add(square, s.splat(CUBE), one));
            // 0.5 (1 + tanh u) = sigmoid(2 u): no cancellation where tanh is near -1.
            let gate = sigmoid(s, s.add(inner, inner));
            let t = tanh(s, inner);
            let rise = s.mul(s.splat(ROOT), s.mul_add(square, s.splat(3.0 * CUBE), one));
            let half_x = s.mul(x, s.splat(0.5));
            // 1 - t^2 in the form that keeps its digits.
            let bell = s.mul(s.sub(one, t), s.add(one, t));
            (s.mul(x, gate), s.mul_add(s.mul(half_x, bell), rise, gate))
        }
    }
}
