//! Ops that copy, scale and gather rows and columns.

use forgelm_kernels_api::{Columns, Ops};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, indices, numbers};

/// (R, C): rows that are worked on; there are twice as many.
pub const CASES: [(usize, usize); 6] = [(1, 1), (1, 576), (3, 17), (33, 48), (70, 100), (5, 2048)];

/// All of them: what only moves numbers to the bit.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let cases = CASES.iter().enumerate();
    cases
        .flat_map(|(i, &(r, c))| [moved(library, i as u32, r, c), scaled(library, i as u32, r, c)])
        .collect()
}

/// Rows of twice as many, each once and in no order.
fn some_rows(seed: u32, r: usize) -> Vec<u32> {
    let steps = indices(seed, r, 2);
    let mut rows: Vec<u32> =
        steps.iter().enumerate().map(|(i, step)| 2 * i as u32 + step).collect();
    rows.reverse();
    rows
}

fn moved(library: &dyn Ops, seed: u32, r: usize, c: usize) -> Outcome {
    let name = format!("rows moved R={r} C={c}");
    let rows = some_rows(seed, r);
    let whole = numbers(seed + 100, 2 * r * c);
    let start = numbers(seed + 200, 2 * r * c);
    let run = |ops: &dyn Ops| {
        let mut gathered = vec![0.0; r * c];
        ops.gather_rows((&mut gathered).into(), (&whole).into(), (&rows).into());
        let mut scattered = start.clone();
        ops.scatter_rows((&mut scattered).into(), (&gathered).into(), (&rows).into());
        let mut copied = vec![0.0; whole.len()];
        ops.copy((&mut copied).into(), (&whole).into());
        let mut filled = start.clone();
        ops.fill((&mut filled).into(), -0.75);
        // Into the middle of wider rows, from the end of others.
        let mut columns = numbers(seed + 600, r * (c + 3));
        let (to, from) = (Columns { width: c + 3, first: 2 }, Columns { width: 2 * c, first: c });
        ops.copy_columns((&mut columns).into(), to, (&whole).into(), from, c);
        [gathered, scattered, copied, filled, columns]
    };
    let (got, want) = (run(library), run(&Reference));
    assert!(got == want, "{name}: numbers that are only moved, or added once, are exact");
    Outcome { name, bits: bits_of(&got.each_ref().map(Vec::as_slice)) }
}

fn scaled(library: &dyn Ops, seed: u32, r: usize, c: usize) -> Outcome {
    let name = format!("rows scaled R={r} C={c}");
    let (x, other) = (numbers(seed + 300, r * c), numbers(seed + 400, r * c));
    let scores: Vec<f32> = numbers(seed + 500, r).iter().map(|s| 6.0 * s).collect();
    let run = |ops: &dyn Ops| {
        let mut scaled = x.clone();
        ops.scale((&mut scaled).into(), 0.3);
        let mut by_row = x.clone();
        ops.scale_rows((&mut by_row).into(), (&scores).into());
        let mut dots = vec![0.0; r];
        ops.row_dots((&mut dots).into(), (&x).into(), (&other).into());
        let mut softmax: Vec<f32> = x.iter().map(|x| 8.0 * x).collect();
        ops.softmax_rows((&mut softmax).into(), c);
        let mut gated = x.clone();
        ops.sigmoid_gate_forward((&mut gated).into(), (&scores).into());
        let (mut dh, mut dscores) = (other.clone(), scores.clone());
        ops.sigmoid_gate_backward((&mut dh).into(), (&mut dscores).into(), (&x).into());
        let mut capped: Vec<f32> = x.iter().map(|x| 90.0 * x).collect();
        ops.soft_cap((&mut capped).into(), 30.0);
        [scaled, by_row, dots, softmax, gated, dh, dscores, capped]
    };
    let (got, want) = (run(library), run(&Reference));
    let terms = |row: usize| -> f64 {
        let at = row * c..(row + 1) * c;
        x[at.clone()].iter().zip(&other[at]).map(|(a, b)| f64::from((a * b).abs())).sum()
    };
    // One product; a dot has C terms; an exponential and a quotient cost a few roundings, the sum
    // below it C, and the subtraction of the largest before it at most 16 U of its argument.
    let relative =
        |factor: f64| move |want: &[f32], i: usize| factor * U * f64::from(want[i].abs());
    let n_terms = c as f64;
    let within = |what: &str, k: usize, bound: &dyn Fn(usize) -> f64| {
        assert_within(&format!("{name}: {what}"), &got[k], &want[k], bound);
    };
    within("scale", 0, &|i| relative(1.0)(&want[0], i));
    within("scale_rows", 1, &|i| relative(1.0)(&want[1], i));
    within("row_dots", 2, &|row| (n_terms + 1.0) * U * terms(row));
    within("softmax", 3, &|i| relative(n_terms + 24.0)(&want[3], i));
    within("gate", 4, &|i| relative(8.0)(&want[4], i));
    within("gate backward", 5, &|i| relative(8.0)(&want[5], i));
    // A quotient, a tanh, which is at most as steep as its argument is large, and a product.
    within("soft_cap", 7, &|i| relative(8.0)(&want[7], i));
    within("scores", 6, &|row| (n_terms + 16.0) * U * terms(row));
    Outcome { name, bits: bits_of(&got.each_ref().map(Vec::as_slice)) }
}
