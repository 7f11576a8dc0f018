//! Rows of a table.

use forgelm_kernels_api::FrozenMatrix;

use crate::frozen::CpuMatrix;
use crate::math::{for_vectors, load};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::put;

/// Tokens of a task.
const TOKENS: usize = 32;
/// Columns of a task of the gradient.
const COLUMNS: usize = 128;

/// `y[t] = table[tokens[t]]`. Shapes: `y` [T, C], `tokens` [T], `table` [V, C].
pub(crate) fn forward(pool: &Pool, y: &mut [f32], tokens: &[u32], table: &dyn FrozenMatrix) {
    let c = table.n_cols();
    assert_eq!(y.len(), tokens.len() * c, "y is not [T, C]");
    let table = CpuMatrix::of(table);
    pool.chunks(y, TOKENS * c, |i, y| {
        for (y_t, &token) in y.chunks_exact_mut(c).zip(&tokens[i * TOKENS..]) {
            match table {
                CpuMatrix::F32(w) => w.read_rows(token as usize, y_t),
                CpuMatrix::Bf16(w) => w.read_rows(token as usize, y_t),
                CpuMatrix::Blocks(w) => w.read_rows(token as usize, y_t),
            }
        }
    });
}

/// `dtable[tokens[t]] += dy[t]`. Shapes: `dtable` [V, C], `dy` [T, C], `tokens` [T].
///
/// The grid: groups of columns, so that a token that comes often is added in order by one task.
pub(crate) fn backward(pool: &Pool, isa: Isa, dtable: &mut [f32], dy: &[f32], tokens: &[u32]) {
    assert!(!tokens.is_empty() && dy.len().is_multiple_of(tokens.len()), "dy is not [T, C]");
    let c = dy.len() / tokens.len();
    assert!(dtable.len().is_multiple_of(c), "dtable is not [V, C]");
    let table = Shared::new(dtable);
    pool.run(c.div_ceil(COLUMNS), &|task| {
        let columns = task * COLUMNS..((task + 1) * COLUMNS).min(c);
        for (dy, &token) in dy.chunks_exact(c).zip(tokens) {
            let at = token as usize * c;
            // SAFETY: these columns of the table are this task's alone, and the slice ends with
            // this round.
            let row = unsafe { table.slice(at + columns.start..at + columns.end) };
            on_isa!(isa, s => add_row(s, row, &dy[columns.clone()]));
        }
    });
}

#[inline(always)]
fn add_row<S: Simd>(s: S, row: &mut [f32], dy: &[f32]) {
    for_vectors!(s, row.len(), |i| put(s, &mut row[i.clone()], load(s, &dy[i]), true),);
}
