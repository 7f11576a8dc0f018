//! Rows of a table.

use forgelm_kernels_api::FrozenMatrix;

use crate::frozen::PlainMatrix;

/// `y[t] = table[tokens[t]]`. Shapes: `y` [T, C], `tokens` [T], `table` [V, C].
pub(crate) fn forward(y: &mut [f32], tokens: &[u32], table: &dyn FrozenMatrix) {
    let table = PlainMatrix::of(table);
    let c = table.n_cols();
    assert_eq!(y.len(), tokens.len() * c, "y is not [T, C]");
    for (y_t, &token) in y.chunks_exact_mut(c).zip(tokens) {
        y_t.copy_from_slice(table.row(token as usize));
    }
}
