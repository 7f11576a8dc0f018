//! Rows of a table.

use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_reference::Reference;

use crate::{Matrix, Outcome, bits_of, indices, numbers};

/// (T, V, C).
pub const CASES: [(usize, usize, usize); 4] =
    [(1, 1, 1), (5, 48, 16), (100, 130, 33), (40, 1000, 96)];

/// Exactly the rows, and exactly their sums: each element is added in the order of the tokens.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, v, c)) in CASES.iter().enumerate() {
        for compute in [Compute::F32, Compute::Bf16] {
            let name = format!("embedding T={t} V={v} C={c} {compute:?}");
            let table = Matrix::random(i as u32, v, c);
            let tokens = indices(i as u32, t, v);
            let (mut y, mut want) = (vec![0.0; t * c], vec![0.0; t * c]);
            library.embedding_forward((&mut y).into(), &tokens, &*library.freeze(&table, compute));
            Reference.embedding_forward(
                (&mut want).into(),
                &tokens,
                &*Reference.freeze(&table, compute),
            );
            assert_eq!(bits_of(&[&y]), bits_of(&[&want]), "{name}");
            let dy = numbers(i as u32 + 100, t * c);
            let start = numbers(i as u32 + 200, v * c);
            let (mut dtable, mut want) = (start.clone(), start);
            library.embedding_backward((&mut dtable).into(), (&dy).into(), &tokens);
            Reference.embedding_backward((&mut want).into(), (&dy).into(), &tokens);
            assert_eq!(bits_of(&[&dtable]), bits_of(&[&want]), "{name}: dtable");
            outcomes.push(Outcome { name, bits: bits_of(&[&y, &dtable]) });
        }
    }
    outcomes
}
