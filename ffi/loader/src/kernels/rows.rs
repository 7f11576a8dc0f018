//! Rows in fewer bytes, by the codecs of `core/tensor`, over the kernel library's threads. A row is
//! converted by itself: which thread does it changes nothing.

use forgelm_kernels_api::Ops;
use forgelm_tensor::rows::{self, RowError, RowFormat};
use std::sync::{Mutex, PoisonError};

/// Numbers that a task converts, about.
const NUMBERS: usize = 1 << 14;

fn rows_together(n_cols: usize) -> usize {
    (NUMBERS / n_cols.max(1)).max(1)
}

/// Runs `task` on chunks that lie side by side; the first failure in the order of rows.
fn convert<A: Sync, B: Send>(
    ops: &dyn Ops,
    (from, from_len): (&[A], usize),
    (to, to_len): (&mut [B], usize),
    rows_together: usize,
    task: impl Fn(&[A], &mut [B]) -> Result<(), RowError> + Sync,
) -> Result<(), RowError> {
    type Chunk<'a, A, B> = Mutex<(&'a [A], &'a mut [B], Result<(), RowError>)>;
    let from = from.chunks(rows_together * from_len);
    let chunks: Vec<Chunk<'_, A, B>> = from
        .zip(to.chunks_mut(rows_together * to_len))
        .map(|(from, to)| Mutex::new((from, to, Ok(()))))
        .collect();
    ops.parallel_for(chunks.len(), &|i| {
        let (from, to, done) = &mut *chunks[i].lock().unwrap_or_else(PoisonError::into_inner);
        *done = task(from, to);
    });
    for (i, chunk) in chunks.into_iter().enumerate() {
        let (_, _, done) = chunk.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.map_err(|error| match error {
            RowError::Value { format, row, column, value, max } => {
                RowError::Value { format, row: i * rows_together + row, column, value, max }
            }
            other => other,
        })?;
    }
    Ok(())
}

/// Shapes: `rows` [R, C] read, `bytes` [R, `n_bytes`] written.
pub(super) fn quantize(
    ops: &dyn Ops,
    format: RowFormat,
    (rows, n_cols): (&[f32], usize),
    (bytes, n_bytes): (&mut [u8], usize),
) -> Result<(), RowError> {
    convert(ops, (rows, n_cols), (bytes, n_bytes), rows_together(n_cols), |rows, bytes| {
        rows::quantize(format, rows, n_cols, bytes)
    })
}

/// Shapes: `bytes` [R, `n_bytes`] read, `rows` [R, C] written.
pub(super) fn dequantize(
    ops: &dyn Ops,
    format: RowFormat,
    (bytes, n_bytes): (&[u8], usize),
    (rows, n_cols): (&mut [f32], usize),
) -> Result<(), RowError> {
    convert(ops, (bytes, n_bytes), (rows, n_cols), rows_together(n_cols), |bytes, rows| {
        rows::dequantize(format, bytes, n_cols, rows)
    })
}
