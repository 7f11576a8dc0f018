//! Floats of eight bits, times the scales of their blocks.

use forgelm_kernels_api::{Float8, Float8Layout, Ops};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, indices, numbers};

/// (N, K, rows and columns of a block): one scale, one for each row, whole blocks and others, blocks
/// that end within a thread's elements, blocks that are larger than the matrix.
pub const CASES: [(usize, usize, (usize, usize)); 9] = [
    (1, 1, (1, 1)),
    (5, 40, (5, 40)),
    (3, 17, (1, 17)),
    (256, 256, (128, 128)),
    (130, 200, (128, 128)),
    (9, 131, (4, 3)),
    (7, 576, (2, 100)),
    (65, 24, (128, 128)),
    (300, 1040, (1, 16)),
];

/// All codes of both formats, in every case.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let cases = CASES.iter().enumerate();
    let both = [Float8::E4m3, Float8::E5m2];
    cases.flat_map(|(i, &case)| both.map(|format| cast(library, i as u32, format, case))).collect()
}

fn cast(
    library: &dyn Ops,
    seed: u32,
    format: Float8,
    (n, k, (block_rows, block_cols)): (usize, usize, (usize, usize)),
) -> Outcome {
    let name = format!("float8 {format:?} N={n} K={k} blocks {block_rows}x{block_cols}");
    let layout = Float8Layout { format, n_cols: k, block_rows, block_cols };
    let codes: Vec<u8> = match n * k >= 256 {
        true => (0..n * k).map(|i| (i % 256) as u8).collect(),
        false => indices(seed + 100, n * k, 256).iter().map(|&code| code as u8).collect(),
    };
    // Small and large, of both signs; the product of some with some codes has no normal float.
    let scales: Vec<f32> = numbers(seed, layout.n_scales(n))
        .iter()
        .enumerate()
        .map(|(i, x)| x * [1.0, 1e-4, 300.0, 1e-38][i % 4])
        .collect();
    let run = |ops: &dyn Ops| {
        // What was there before must not matter.
        let mut y = vec![f32::NAN; n * k];
        ops.cast_float8((&mut y).into(), (&codes).into(), (&scales).into(), layout);
        // Which NaN it is differs between processors.
        let bits = |y: &f32| if y.is_nan() { f32::NAN.to_bits() } else { y.to_bits() };
        y.iter().map(bits).collect::<Vec<u32>>()
    };
    let (got, want) = (run(library), run(&Reference));
    assert!(got == want, "{name}: a product that is rounded once is exact");
    Outcome { name, bits: got }
}
