//! Optimizer steps beside plain AdamW (which is with the element-wise ops).

use forgelm_kernels_api::dynamic_map::{SIGNED, UNSIGNED};
use forgelm_kernels_api::{Adafactor, AdafactorMoments, AdamW, Blocks8bit, Ops};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers};

/// Elements for AdamW in 8 bits: blocks of 256, tasks of 64 blocks.
pub const LENGTHS: [usize; 6] = [0, 1, 256, 300, 16_384, 50_001];

/// (N, K) for Adafactor; one of them 1 means whole moments.
pub const MATRICES: [(usize, usize); 8] =
    [(1, 1), (1, 37), (1, 40_000), (2, 2), (8, 576), (576, 8), (33, 65), (300, 1000)];

/// Both.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let eight = LENGTHS.iter().enumerate().map(|(i, &n)| adamw_8bit(library, i as u32, n));
    let factor = MATRICES.iter().enumerate().map(|(i, &shape)| adafactor(library, i as u32, shape));
    eight.chain(factor).collect()
}

#[derive(Clone)]
struct EightBit {
    param: Vec<f32>,
    codes: [Vec<u8>; 2],
    absmax: [Vec<f32>; 2],
}

impl EightBit {
    fn step(&mut self, ops: &dyn Ops, grad: &[f32], constants: &AdamW) {
        let ([m, v], [m_max, v_max]) = (&mut self.codes, &mut self.absmax);
        let m = Blocks8bit { codes: m.into(), absmax: m_max.into() };
        let v = Blocks8bit { codes: v.into(), absmax: v_max.into() };
        ops.adamw_8bit_step((&mut self.param).into(), m, v, grad.into(), constants);
    }
}

fn adamw_8bit(library: &dyn Ops, seed: u32, n: usize) -> Outcome {
    let name = format!("adamw_8bit n={n}");
    let mut constants = AdamW {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.25,
        step: 1,
    };
    let blocks = n.div_ceil(Blocks8bit::BLOCK);
    let mut want = EightBit {
        param: numbers(seed + 500, n),
        codes: [vec![0; n], vec![0; n]],
        absmax: [vec![0.0; blocks], vec![0.0; blocks]],
    };
    let mut got = want.clone();
    // Gradients over many powers of ten, as real ones have, and a block of zeros.
    let mut grad: Vec<f32> = numbers(seed + 600, n).iter().map(|&g| g.powi(9)).collect();
    grad.iter_mut().take(n / 2).skip(n / 2 - n.min(600) / 2).for_each(|g| *g = 0.0);
    for step in 1..=3 {
        constants.step = step;
        got.clone_from(&want);
        got.step(library, &grad, &constants);
        want.step(&Reference, &grad, &constants);
    }
    // Each moment: a few roundings of terms that cannot cancel here (the gradient repeats).
    for (i, label) in ["m", "v"].iter().enumerate() {
        let bound = |b: usize| 8.0 * U * f64::from(want.absmax[i][b]);
        assert_within(&format!("{name}: largest {label}"), &got.absmax[i], &want.absmax[i], bound);
    }
    // A moment that lies on the boundary of two codes may fall to either. The roundings move it by
    // 8 U of its size, boundaries are at least 1/256 of their size apart: one in 10^4 at the most.
    for (i, map) in [&SIGNED, &UNSIGNED].into_iter().enumerate() {
        let pairs = || got.codes[i].iter().zip(&want.codes[i]);
        assert!(pairs().all(|(a, b)| a.abs_diff(*b) <= 1), "{name}: a code of {}", map[0]);
        let n_other = pairs().filter(|(a, b)| a != b).count();
        assert!(n_other <= 1 + n / 10_000, "{name}: {n_other} codes differ");
    }
    // |m| / sqrt(v) is below 10 for a repeated gradient, but v may have fallen to the code 0,
    // where a moment is divided by eps: the roundings are then of that quotient.
    let start = numbers(seed + 500, n);
    let bound = |i: usize| {
        let moved = f64::from(want.param[i] - start[i]).abs();
        U * (8.0 * f64::from(start[i].abs()) + 48.0 * (moved + 0.1))
    };
    assert_within(&format!("{name}: param"), &got.param, &want.param, bound);
    let absmax = bits_of(&[&got.absmax[0], &got.absmax[1], &got.param]);
    let codes = got.codes.iter().flatten().map(|&code| u32::from(code));
    Outcome { name, bits: absmax.into_iter().chain(codes).collect() }
}

fn adafactor(library: &dyn Ops, seed: u32, (n, k): (usize, usize)) -> Outcome {
    let name = format!("adafactor N={n} K={k}");
    let mut constants = Adafactor {
        lr: 0.01,
        eps: 1e-30,
        clip_threshold: 1.0,
        weight_decay: 0.1,
        grad_scale: 0.25,
        step: 1,
    };
    let is_whole = n == 1 || k == 1;
    let start = numbers(seed + 700, n * k);
    let mut grad = numbers(seed + 800, n * k);
    grad[n * k - 1] = 0.0;
    let lengths = if is_whole { [n * k, 0] } else { [n, k] };
    let mut want = [start.clone(), vec![0.0; lengths[0]], vec![0.0; lengths[1]]];
    let mut got = want.clone();
    let step = |ops: &dyn Ops, state: &mut [Vec<f32>; 3], constants: &Adafactor| {
        let [param, rows, columns] = state;
        let moments = if is_whole {
            AdafactorMoments::Whole(rows.into())
        } else {
            AdafactorMoments::Factored { rows: rows.into(), columns: columns.into() }
        };
        ops.adafactor_step(param.into(), moments, (&grad).into(), constants);
    };
    for i in 1..=3 {
        constants.step = i;
        got.clone_from(&want);
        step(library, &mut got, &constants);
        step(&Reference, &mut want, &constants);
    }
    // Moments: sums of at most K or N positive terms in f32.
    let terms = (n + k) as f64 + 16.0;
    for i in [1, 2] {
        let bound = |j: usize| terms * U * f64::from(want[i][j]);
        assert_within(&format!("{name}: moments {i}"), &got[i], &want[i], bound);
    }
    // The update: two roots of moments, and the norm of it all, whose sum has n k terms of which
    // at most K are added in f32.
    let bound = |i: usize| {
        let moved = f64::from(want[0][i] - start[i]).abs() + 0.001 * f64::from(start[i].abs());
        U * (8.0 * f64::from(start[i].abs()) + 2.0 * terms * moved)
    };
    assert_within(&format!("{name}: param"), &got[0], &want[0], bound);
    Outcome { name, bits: bits_of(&[&got[0], &got[1], &got[2]]) }
}
