//! Dropout, addition, sum of squares, AdamW.

use forgelm_kernels_api::{AdamW, Dropout, Ops, Write};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers};

/// (T, C, p) for dropout.
pub const DROPOUT: [(usize, usize, f32); 5] =
    [(1, 1, 0.5), (3, 17, 0.1), (40, 64, 0.0), (20, 130, 0.9), (17, 576, 0.05)];

/// Elements for the others.
pub const LENGTHS: [usize; 5] = [0, 1, 47, 16_384, 50_001];

/// All four.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = dropout(library);
    for (i, &n) in LENGTHS.iter().enumerate() {
        let seed = i as u32;
        let (x, start) = (numbers(seed, n), numbers(seed + 100, n));
        let (mut y, mut want) = (start.clone(), start.clone());
        library.add((&mut y).into(), (&x).into());
        Reference.add((&mut want).into(), (&x).into());
        assert_eq!(bits_of(&[&y]), bits_of(&[&want]), "add n={n}");
        outcomes.push(Outcome { name: format!("add n={n}"), bits: bits_of(&[&y]) });

        let (got, want) =
            (library.sum_of_squares((&x).into()), Reference.sum_of_squares((&x).into()));
        let bound = n as f64 * f64::EPSILON * want;
        assert!((got - want).abs() <= bound, "sum_of_squares n={n}: {got}, expected {want}");
        let bits = got.to_bits();
        let bits = vec![bits as u32, (bits >> 32) as u32];
        outcomes.push(Outcome { name: format!("sum_of_squares n={n}"), bits });
        outcomes.push(adamw(library, seed, n));
    }
    outcomes
}

fn dropout(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, c, p)) in DROPOUT.iter().enumerate() {
        let write = if i % 2 == 0 { Write::Replace } else { Write::Add };
        let name = format!("dropout T={t} C={c} p={p} {write:?}");
        let seed = i as u32;
        let (x, start) = (numbers(seed, t * c), numbers(seed + 100, t * c));
        let row_keys: Vec<u64> = (0..t as u64).map(|t| t * 0x1_0000_0001 + 5).collect();
        let dropout = Dropout { p, key: [seed, 77] };
        let (mut y, mut want) = (start.clone(), start.clone());
        library.dropout((&mut y).into(), (&x).into(), &row_keys, &dropout, write);
        Reference.dropout((&mut want).into(), (&x).into(), &row_keys, &dropout, write);
        let size = |i: usize| f64::from(x[i].abs()) / (1.0 - f64::from(p));
        let bound = |i: usize| 4.0 * U * (size(i) + f64::from(start[i].abs()));
        assert_within(&name, &y, &want, bound);
        outcomes.push(Outcome { name, bits: bits_of(&[&y]) });
    }
    outcomes
}

fn adamw(library: &dyn Ops, seed: u32, n: usize) -> Outcome {
    let name = format!("adamw n={n}");
    let constants = AdamW {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.25,
        step: u64::from(seed) * 3 + 1,
    };
    let start = numbers(seed + 200, n);
    let grad = numbers(seed + 300, n);
    let zeros = vec![0.0; n];
    // Two steps, so that the moments are not zero in the second.
    let mut got = [start.clone(), zeros.clone(), zeros];
    let mut want = got.clone();
    for _ in 0..2 {
        got.clone_from(&want);
        let [p, m, v] = &mut got;
        library.adamw_step(p.into(), m.into(), v.into(), (&grad).into(), &constants);
        let [p, m, v] = &mut want;
        Reference.adamw_step(p.into(), m.into(), v.into(), (&grad).into(), &constants);
    }
    let size = |x: &[f32], i: usize| f64::from(x[i].abs());
    // Each moment: a few roundings of terms that cannot cancel here (the gradient repeats).
    assert_within(&format!("{name}: m"), &got[1], &want[1], |i| 6.0 * U * size(&want[1], i));
    assert_within(&format!("{name}: v"), &got[2], &want[2], |i| 8.0 * U * size(&want[2], i));
    // |m| / sqrt(v) is below 1 for a repeated gradient, corrections aside: below 10 with them.
    let bound = |i: usize| U * (4.0 * size(&start, i) + 24.0 * 10.0 * 0.01);
    assert_within(&format!("{name}: param"), &got[0], &want[0], bound);
    Outcome { name, bits: bits_of(&[&got[0], &got[1], &got[2]]) }
}
