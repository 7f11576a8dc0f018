//! Rotary embedding, alone and after the norm of each head.

use forgelm_kernels_api::{Ops, Rotation};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers};

/// (T, heads, D, R).
pub const CASES: [(usize, usize, usize, usize); 8] = [
    (1, 1, 2, 2),
    (3, 2, 16, 16),
    (33, 9, 64, 64),
    (70, 3, 20, 20),
    (5, 1, 256, 256),
    (40, 3, 96, 72),
    (3, 2, 16, 2),
    (0, 2, 16, 16),
];

/// Both directions.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, h, d, r)) in CASES.iter().enumerate() {
        for direction in [Rotation::Forward, Rotation::Backward] {
            let name = format!("rope T={t} H={h} D={d} R={r} {direction:?}");
            let seed = i as u32;
            let start = numbers(seed, t * h * d);
            let (cos, sin) = tables(seed, t * r / 2);
            let (mut x, mut want) = (start.clone(), start.clone());
            library.rope((&mut x).into(), (&cos).into(), (&sin).into(), h, d, direction);
            Reference.rope((&mut want).into(), (&cos).into(), (&sin).into(), h, d, direction);
            let is_kept = |i: usize| i % d >= r;
            assert!((0..x.len()).all(|i| !is_kept(i) || x[i].to_bits() == start[i].to_bits()));
            // Two products of numbers below 1 and one addition.
            assert_within(&name, &x, &want, |_| 4.0 * U);
            outcomes.push(Outcome { name, bits: bits_of(&[&x]) });
        }
        outcomes.push(compare_normed(library, i as u32, (t, h, d, r)));
    }
    outcomes
}

fn compare_normed(
    library: &dyn Ops,
    seed: u32,
    (t, h, d, r): (usize, usize, usize, usize),
) -> Outcome {
    const EPS: f32 = 1e-6;
    let name = format!("rms_norm_rope T={t} H={h} D={d} R={r}");
    let (x, weight) = (numbers(seed + 200, t * h * d), numbers(seed + 300, d));
    let (cos, sin) = tables(seed, t * r / 2);
    let compute = |ops: &dyn Ops| {
        let (mut y, mut inv_rms) = (vec![0.0; t * h * d], vec![0.0; t * h]);
        let (to, of_heads) = ((&mut y).into(), (&mut inv_rms).into());
        let (given, angles) = (((&x).into(), (&weight).into()), ((&cos).into(), (&sin).into()));
        ops.rms_norm_rope(to, of_heads, given.0, given.1, EPS, angles.0, angles.1, h);
        (y, inv_rms)
    };
    let ((y, inv_rms), (want, want_inv_rms)) = (compute(library), compute(&Reference));
    // The mean has D roundings, of which the root leaves half.
    let relative = (d as f64 / 2.0 + 8.0) * U;
    let bound = |i: usize| relative * f64::from(want_inv_rms[i]);
    assert_within(&format!("{name}: inv_rms"), &inv_rms, &want_inv_rms, bound);
    // x and weight are at most 1: both of a pair are at most the factor of their head.
    let bound = |i: usize| (2.0 * relative + 4.0 * U) * f64::from(want_inv_rms[i / d]);
    assert_within(&format!("{name}: y"), &y, &want, bound);
    Outcome { name, bits: bits_of(&[&y, &inv_rms]) }
}

/// Cosines and sines.
fn tables(seed: u32, n: usize) -> (Vec<f32>, Vec<f32>) {
    let angles = numbers(seed + 100, n);
    let of = |f: fn(f32) -> f32| angles.iter().map(|a| f(3.0 * a)).collect();
    (of(f32::cos), of(f32::sin))
}
