//! Rotary embedding.

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
            let angles = numbers(seed + 100, t * r / 2);
            let cos: Vec<f32> = angles.iter().map(|a| (3.0 * a).cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| (3.0 * a).sin()).collect();
            let (mut x, mut want) = (start.clone(), start.clone());
            library.rope((&mut x).into(), (&cos).into(), (&sin).into(), h, d, direction);
            Reference.rope((&mut want).into(), (&cos).into(), (&sin).into(), h, d, direction);
            let is_kept = |i: usize| i % d >= r;
            assert!((0..x.len()).all(|i| !is_kept(i) || x[i].to_bits() == start[i].to_bits()));
            // Two products of numbers below 1 and one addition.
            assert_within(&name, &x, &want, |_| 4.0 * U);
            outcomes.push(Outcome { name, bits: bits_of(&[&x]) });
        }
    }
    outcomes
}
