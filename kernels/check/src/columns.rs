//! Biases and magnitudes, and the sums over rows that are their gradients.

use forgelm_kernels_api::{Ops, Write};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers};

/// (T, N).
pub const CASES: [(usize, usize); 6] = [(1, 1), (3, 17), (64, 128), (65, 129), (200, 48), (7, 576)];

/// All four ops.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, n)) in CASES.iter().enumerate() {
        let name = format!("columns T={t} N={n}");
        let seed = i as u32;
        let (x, other) = (numbers(seed, t * n), numbers(seed + 100, t * n));
        let (factors, start) = (numbers(seed + 200, n), numbers(seed + 300, n));
        let size = |x: &[f32], i: usize| f64::from(x[i].abs());

        let (mut y, mut want) = (x.clone(), x.clone());
        library.add_bias((&mut y).into(), (&factors).into());
        Reference.add_bias((&mut want).into(), (&factors).into());
        assert_eq!(bits_of(&[&y]), bits_of(&[&want]), "{name}: add_bias");

        let write = if i % 2 == 0 { Write::Replace } else { Write::Add };
        let (mut scaled, mut want) = (other.clone(), other.clone());
        library.scale_columns((&mut scaled).into(), (&x).into(), (&factors).into(), write);
        Reference.scale_columns((&mut want).into(), (&x).into(), (&factors).into(), write);
        let bound = |i: usize| 2.0 * U * (size(&x, i) * size(&factors, i % n) + size(&other, i));
        assert_within(&format!("{name}: scale_columns {write:?}"), &scaled, &want, bound);

        // A sum of T terms is off by T roundings of the sum of their sizes.
        let column = |f: &dyn Fn(usize) -> f64, c: usize| (0..t).map(|r| f(r * n + c)).sum::<f64>();
        let (mut sums, mut want) = (start.clone(), start.clone());
        library.column_sums((&mut sums).into(), (&x).into());
        Reference.column_sums((&mut want).into(), (&x).into());
        let bound =
            |c: usize| (t as f64 + 2.0) * U * (column(&|i| size(&x, i), c) + size(&start, c));
        assert_within(&format!("{name}: column_sums"), &sums, &want, bound);

        let (mut dots, mut want) = (start.clone(), start.clone());
        library.column_dots((&mut dots).into(), (&x).into(), (&other).into());
        Reference.column_dots((&mut want).into(), (&x).into(), (&other).into());
        let bound = |c: usize| {
            let terms = column(&|i| size(&x, i) * size(&other, i), c);
            (t as f64 + 3.0) * U * (terms + size(&start, c))
        };
        assert_within(&format!("{name}: column_dots"), &dots, &want, bound);
        outcomes.push(Outcome { name, bits: bits_of(&[&y, &scaled, &sums, &dots]) });
    }
    outcomes
}
