//! One list of cases an op, and what a kernel library must do with them.
//!
//! [`compare_all`] runs every case on a library and on the plain reference, and fails where they
//! differ by more than a bound that follows from the number format and the number of terms: with
//! `U = 2^-24`, a sum of K rounded terms is off by at most about `K U` times the sum of their
//! sizes. Bounds are derived, never fitted. It returns all results, so that a test can ask for
//! the same bits on other numbers of threads.
//!
//! `tests/cpu.rs` runs it on the CPU library; `tests/finite_differences.rs` compares the reference's
//! gradients with differences of its forward ops.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::missing_panics_doc,
    reason = "a crate of assertions on numbers"
)]

pub mod attention;
pub mod columns;
pub mod counting;
pub mod elementwise;
pub mod embedding;
pub mod float8;
pub mod gemm;
pub mod glu;
pub mod linear;
pub mod optimizers;
pub mod packed;
pub mod rms_norm;
pub mod rope;
pub mod routing;
pub mod rows;
pub mod token_logprobs;

use forgelm_kernels_api::philox::philox4x32;
use forgelm_kernels_api::{Ops, RowSource};

/// Half the distance from 1 to the next f32: what one rounding costs.
pub const U: f64 = 1.0 / 16_777_216.0;

/// Results of one case.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// Op and case.
    pub name: String,
    /// The bits of everything that was written.
    pub bits: Vec<u32>,
}

/// Runs all cases of all ops on a library.
#[must_use]
pub fn compare_all(library: &dyn Ops) -> Vec<Outcome> {
    [
        linear::compare(library),
        packed::compare(library),
        gemm::compare(library),
        embedding::compare(library),
        float8::compare(library),
        rms_norm::compare(library),
        columns::compare(library),
        rope::compare(library),
        rows::compare(library),
        routing::compare(library),
        attention::compare(library),
        glu::compare(library),
        token_logprobs::compare(library),
        elementwise::compare(library),
        optimizers::compare(library),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Numbers in [-1, 1), the same for the same seed.
#[must_use]
pub fn numbers(seed: u32, n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| {
            let bits = philox4x32([(i / 4) as u32, 0, 0, seed], [0x5eed, 1])[i % 4];
            (f64::from(bits) / 2_147_483_648.0 - 1.0) as f32
        })
        .collect()
}

/// Whole numbers below a limit.
#[must_use]
pub fn indices(seed: u32, n: usize, limit: usize) -> Vec<u32> {
    (0..n)
        .map(|i| {
            let bits = philox4x32([i as u32, 0, 1, seed], [0x5eed, 2])[0];
            ((u64::from(bits) * limit as u64) >> 32) as u32
        })
        .collect()
}

/// Sizes of numbers.
#[must_use]
pub fn sizes(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| v.abs()).collect()
}

/// A matrix in memory, as a source of rows.
#[derive(Debug)]
pub struct Matrix {
    /// N.
    pub n: usize,
    /// K.
    pub k: usize,
    /// [N, K].
    pub data: Vec<f32>,
}

impl Matrix {
    /// Numbers in [-1, 1).
    #[must_use]
    pub fn random(seed: u32, n: usize, k: usize) -> Self {
        Self { n, k, data: numbers(seed, n * k) }
    }

    /// The sizes of its numbers.
    #[must_use]
    pub fn sizes(&self) -> Self {
        Self { n: self.n, k: self.k, data: sizes(&self.data) }
    }
}

impl RowSource for Matrix {
    fn n_rows(&self) -> usize {
        self.n
    }

    fn n_cols(&self) -> usize {
        self.k
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[first_row * self.k..][..out.len()]);
    }
}

/// Fails at the first number that is further from the reference's than its bound.
pub fn assert_within(what: &str, got: &[f32], want: &[f32], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - f64::from(want)).abs();
        let bound = bound(i);
        assert!(
            error <= bound,
            "{what}: element {i} is {got}, expected {want} within {bound:.3e} (off by {error:.3e})"
        );
    }
}

/// The bits of some results.
#[must_use]
pub fn bits_of(results: &[&[f32]]) -> Vec<u32> {
    results.iter().flat_map(|r| r.iter().map(|v| v.to_bits())).collect()
}
