//! Pieces: how tensors are cut, and the buffers that a thread reads one into.

use crate::{MergeError, Source, Tensor};
use forgelm_sdk::merge_method::{self, MergeMethod, Scope};
use forgelm_tensor::{Dtype, store_f32};

/// Elements of a piece, about: a few of them fit into a core's cache.
const PIECE: usize = 1 << 17;

/// Whole rows of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Index of the tensor.
    pub tensor: usize,
    /// First row.
    pub first_row: usize,
    /// Elements.
    pub len: usize,
}

/// The pieces of a tensor, in order.
pub fn cuts(number: usize, tensor: &Tensor<'_>, scope: Scope) -> Vec<Cut> {
    let (n_rows, n_cols) = (tensor.base.n_rows(), tensor.base.n_cols());
    let rows_max = match scope {
        Scope::Elements => (PIECE / n_cols.max(1)).max(1),
        Scope::Tensor => n_rows.max(1),
    };
    let cut = |first_row: usize| Cut {
        tensor: number,
        first_row,
        len: rows_max.min(n_rows - first_row) * n_cols,
    };
    (0..n_rows).step_by(rows_max).map(cut).collect()
}

/// What a thread needs to work on one piece after the other.
#[derive(Default)]
pub struct Workspace {
    base: Vec<f32>,
    inputs: Vec<Vec<f32>>,
    out: Vec<f32>,
}

fn read(rows: &dyn Source, cut: Cut, buffer: &mut Vec<f32>) {
    buffer.resize(cut.len, 0.0);
    rows.read_rows(cut.first_row, buffer);
}

impl Workspace {
    /// Reads a piece, hands it to `f`.
    pub fn with_piece<R>(
        &mut self,
        tensor: &Tensor<'_>,
        cut: Cut,
        facts: &[f64],
        reads_base: bool,
        f: impl FnOnce(&merge_method::Piece<'_>, &mut Vec<f32>) -> R,
    ) -> R {
        let needs_base = reads_base || tensor.inputs.iter().any(Option::is_none);
        if needs_base {
            read(tensor.base, cut, &mut self.base);
        }
        self.inputs.resize_with(tensor.inputs.len(), Vec::new);
        for (rows, buffer) in tensor.inputs.iter().zip(&mut self.inputs) {
            if let Some(rows) = rows {
                read(*rows, cut, buffer);
            }
        }
        let buffers = tensor.inputs.iter().zip(&self.inputs);
        let inputs: Vec<&[f32]> = buffers
            .map(|(rows, buffer)| if rows.is_some() { buffer.as_slice() } else { &self.base })
            .collect();
        let piece = merge_method::Piece {
            tensor: merge_method::Tensor { name: tensor.name, len: tensor.len(), facts },
            start: cut.first_row * tensor.base.n_cols(),
            base: reads_base.then_some(&self.base),
            inputs: &inputs,
        };
        f(&piece, &mut self.out)
    }

    /// Merges a piece and stores it.
    ///
    /// Shapes: `stored` [`cut.len` values of the tensor's format] written.
    pub fn merge(
        &mut self,
        method: &dyn MergeMethod,
        tensor: &Tensor<'_>,
        cut: Cut,
        facts: &[f64],
        stored: &mut [u8],
    ) -> Result<(), MergeError> {
        if tensor.is_unchanged() {
            read(tensor.base, cut, &mut self.out);
            return store(tensor, cut, &self.out, stored);
        }
        self.with_piece(tensor, cut, facts, method.reads_base(), |piece, out| {
            out.resize(cut.len, 0.0);
            method.merge(piece, out).map_err(|failed| MergeError::Method {
                tensor: tensor.name.to_owned(),
                message: failed.message,
            })?;
            store(tensor, cut, out, stored)
        })
    }
}

/// Magnitude from which on a value becomes infinite when it is stored.
fn limit(dtype: Dtype) -> f32 {
    match dtype {
        // Half a unit above the largest number of each: 65504 and 3.3895e38.
        Dtype::F16 => 65_520.0,
        Dtype::Bf16 => f32::from_bits(0x7f7f_8000),
        _ => f32::INFINITY,
    }
}

fn store(
    tensor: &Tensor<'_>,
    cut: Cut,
    values: &[f32],
    stored: &mut [u8],
) -> Result<(), MergeError> {
    let limit = limit(tensor.dtype);
    let is_bad = |v: &f32| v.is_nan() | (v.abs() >= limit);
    // Without a way out of the loop, so that it runs on vectors.
    if values.iter().fold(false, |bad, v| bad | is_bad(v)) {
        let at = values.iter().position(is_bad).unwrap_or(0);
        return Err(MergeError::NotStorable {
            tensor: tensor.name.to_owned(),
            index: cut.first_row * tensor.base.n_cols() + at,
            value: values[at],
            dtype: tensor.dtype,
        });
    }
    store_f32(tensor.dtype, values, stored);
    Ok(())
}
