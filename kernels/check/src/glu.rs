//! Gated linear unit.

use forgelm_kernels_api::{Activation, Ops};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers};

/// Elements.
pub const CASES: [usize; 5] = [1, 15, 48, 1001, 40_000];

/// Both activations and directions, over gates in [-12, 12).
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &n) in CASES.iter().enumerate() {
        for act in [Activation::Silu, Activation::GeluTanh] {
            let name = format!("glu n={n} {act:?}");
            let seed = i as u32;
            let gate: Vec<f32> = numbers(seed, n).iter().map(|v| 12.0 * v).collect();
            let (up, dy) = (numbers(seed + 100, n), numbers(seed + 200, n));
            let (mut y, mut want) = (vec![0.0; n], vec![0.0; n]);
            library.glu_forward((&mut y).into(), (&gate).into(), (&up).into(), act);
            Reference.glu_forward((&mut want).into(), (&gate).into(), (&up).into(), act);
            let bound = |i: usize| value_bound(gate[i], act) * f64::from(up[i].abs());
            assert_within(&format!("{name}: y"), &y, &want, bound);

            let (mut dgate, mut dup) = (gate.clone(), up.clone());
            library.glu_backward((&mut dgate).into(), (&mut dup).into(), (&dy).into(), act);
            let (mut want_dgate, mut want_dup) = (gate.clone(), up.clone());
            Reference.glu_backward(
                (&mut want_dgate).into(),
                (&mut want_dup).into(),
                (&dy).into(),
                act,
            );
            let bound = |i: usize| value_bound(gate[i], act) * f64::from(dy[i].abs());
            assert_within(&format!("{name}: dup"), &dup, &want_dup, bound);
            let bound = |i: usize| slope_bound(gate[i], act) * f64::from(dy[i].abs() * up[i].abs());
            assert_within(&format!("{name}: dgate"), &dgate, &want_dgate, bound);
            outcomes.push(Outcome { name, bits: bits_of(&[&y, &dgate, &dup]) });
        }
    }
    outcomes
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The argument of tanh in GELU, and its slope.
fn inner(x: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    (root * (x + 0.044715 * x.powi(3)), root * (1.0 + 0.134145 * x * x))
}

/// The exponential may be off by 4 U, and by U for each unit of an argument that is rounded: an
/// argument off by 4 U of its size changes `sigmoid(2 a)` by at most 8 |a| U of it. The reference
/// takes GELU by its definition, and loses what 1 + tanh cancels in f64.
fn value_bound(x: f32, act: Activation) -> f64 {
    let x = f64::from(x);
    match act {
        Activation::Silu => 10.0 * U * (x * sigmoid(x)).abs(),
        Activation::GeluTanh => {
            let (a, _) = inner(x);
            (12.0 + 8.0 * a.abs()) * U * (x * sigmoid(2.0 * a)).abs() + 4.0 * f64::EPSILON * x.abs()
        }
    }
}

/// As above, term by term of the slope.
fn slope_bound(x: f32, act: Activation) -> f64 {
    let x = f64::from(x);
    match act {
        Activation::Silu => 16.0 * U * sigmoid(x) * (1.0 + x.abs()),
        Activation::GeluTanh => {
            let (a, rise) = inner(x);
            let bell = 1.0 - a.tanh().powi(2);
            let relative = (16.0 + 8.0 * a.abs()) * U;
            // 1 - tanh is off by what tanh is rounded by, however small it is.
            relative * sigmoid(2.0 * a) + (0.5 * x * rise).abs() * (8.0 * U + 2.0 * relative * bell)
        }
    }
}
