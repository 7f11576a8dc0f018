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

/// `dtable[tokens[t]] += dy[t]`. Shapes: `dtable` [V, C], `dy` [T, C], `tokens` [T].
pub(crate) fn backward(dtable: &mut [f32], dy: &[f32], tokens: &[u32]) {
    assert!(!tokens.is_empty() && dy.len().is_multiple_of(tokens.len()), "dy is not [T, C]");
    let c = dy.len() / tokens.len();
    assert!(dtable.len().is_multiple_of(c), "dtable is not [V, C]");
    for (dy_t, &token) in dy.chunks_exact(c).zip(tokens) {
        let row = &mut dtable[token as usize * c..][..c];
        for (row, &dy) in row.iter_mut().zip(dy_t) {
            *row += dy;
        }
    }
}
