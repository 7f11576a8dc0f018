//! A frozen weight, kept as plain rows of f32 that are already rounded.

use std::any::Any;

use forgelm_kernels_api::{Compute, FrozenMatrix, RowSource};
use half::bf16;

/// Rows of f32, rounded to the compute format.
pub(crate) struct PlainMatrix {
    n_rows: usize,
    n_cols: usize,
    compute: Compute,
    rows: Vec<f32>,
}

impl PlainMatrix {
    pub(crate) fn read(source: &dyn RowSource, compute: Compute) -> Self {
        let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
        let mut rows = vec![0.0; n_rows * n_cols];
        source.read_rows(0, &mut rows);
        round(&mut rows, compute);
        Self { n_rows, n_cols, compute, rows }
    }

    /// The matrix behind the trait object.
    pub(crate) fn of(w: &dyn FrozenMatrix) -> &Self {
        w.as_any().downcast_ref().expect("the weight was frozen by another kernel library")
    }

    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    pub(crate) fn row(&self, n: usize) -> &[f32] {
        &self.rows[n * self.n_cols..(n + 1) * self.n_cols]
    }

    /// A copy of the other factor of a product, rounded as the format asks.
    pub(crate) fn rounded(&self, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        round(&mut x, self.compute);
        x
    }
}

impl FrozenMatrix for PlainMatrix {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn n_bytes(&self) -> usize {
        size_of_val(self.rows.as_slice())
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        let from = first_row * self.n_cols;
        out.copy_from_slice(&self.rows[from..from + out.len()]);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn round(values: &mut [f32], compute: Compute) {
    match compute {
        Compute::F32 => {}
        Compute::Bf16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
    }
}
