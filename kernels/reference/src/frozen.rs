//! A frozen weight, kept as plain rows of f32 that are already rounded.

use std::any::Any;
use std::io::Read as _;

use forgelm_kernels_api::{
    Compute, Factor, FactorRows, Factors, FrozenMatrix, MatrixForm, Pieces, Rounding, RowSource,
};
use half::{bf16, f16};

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

    /// The formula of the block format, value by value; `None` if the source has no blocks.
    pub(crate) fn unpack(source: &dyn RowSource, compute: Compute) -> Option<Self> {
        let blocks = source.blocks()?;
        let (n_rows, n_cols) = (source.n_rows(), source.n_cols());
        let format = blocks.format();
        let read = blocks.read_blocks(0..n_rows);
        let scales = factors(&format.scale, &read.scale, &blocks.outer(Factor::Scale));
        let mins = format.min.as_ref().zip(read.min.as_ref());
        let mins = mins.map(|(min, rows)| factors(min, rows, &blocks.outer(Factor::Min)));
        let mut rows = vec![0.0; n_rows * n_cols];
        for (i, (w, &code)) in rows.iter_mut().zip(&read.codes).enumerate() {
            let group = i / n_cols * format.n_groups(n_cols) + i % n_cols / format.group_len;
            *w = format.value(code) * scales[group];
            if let Some(mins) = &mins {
                *w += mins[group];
            }
            *w = match format.rounding {
                Rounding::Exact => *w,
                Rounding::F16 => f16::from_f32(*w).to_f32(),
                Rounding::Bf16 => bf16::from_f32(*w).to_f32(),
            };
        }
        round(&mut rows, compute);
        Some(Self { n_rows, n_cols, compute, rows })
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

    fn take_apart(&self) -> (Box<dyn MatrixForm>, Vec<u8>) {
        let Self { n_rows, n_cols, compute, .. } = *self;
        let bytes = self.rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        (Box::new(PlainForm { n_rows, n_cols, compute }), bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A [`PlainMatrix`] without its rows.
struct PlainForm {
    n_rows: usize,
    n_cols: usize,
    compute: Compute,
}

impl MatrixForm for PlainForm {
    fn n_bytes(&self) -> usize {
        self.n_rows * self.n_cols * size_of::<f32>()
    }

    fn put_together(&self, bytes: &mut Pieces<'_>) -> Box<dyn FrozenMatrix> {
        let Self { n_rows, n_cols, compute } = *self;
        let mut read = vec![0; self.n_bytes()];
        bytes.read_exact(&mut read).expect("the bytes of a whole matrix");
        let rows = read.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Box::new(PlainMatrix { n_rows, n_cols, compute, rows })
    }
}

/// All factors of a matrix as numbers.
fn factors(format: &Factors, rows: &FactorRows, outer: &[f32]) -> Vec<f32> {
    match rows {
        FactorRows::Plain(factors) => factors.clone(),
        FactorRows::Nested(bytes) => {
            bytes.iter().enumerate().map(|(i, &byte)| format.nested(byte, outer, i)).collect()
        }
    }
}

fn round(values: &mut [f32], compute: Compute) {
    match compute {
        Compute::F32 => {}
        Compute::Bf16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
    }
}
