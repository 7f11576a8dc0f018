//! Rows of a table.

use forgelm_kernels_api::FrozenMatrix;

use crate::frozen::CpuMatrix;
use crate::pool::Pool;

/// Tokens of a task.
const TOKENS: usize = 32;

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
