//! RMSNorm.

use forgelm_kernels_api::{Ops, Write};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers, sizes};

/// (T, C).
pub const CASES: [(usize, usize); 6] = [(1, 1), (1, 576), (3, 17), (33, 48), (70, 100), (5, 2048)];

/// Both directions.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, c)) in CASES.iter().enumerate() {
        let write = if i % 2 == 0 { Write::Replace } else { Write::Add };
        let name = format!("rms_norm T={t} C={c} {write:?}");
        let seed = i as u32;
        let (x, weight) = (numbers(seed, t * c), numbers(seed + 100, c));
        let (mut y, mut inv) = (vec![0.0; t * c], vec![0.0; t]);
        let (mut want_y, mut want_inv) = (y.clone(), inv.clone());
        library.rms_norm_forward(
            (&mut y).into(),
            (&mut inv).into(),
            (&x).into(),
            (&weight).into(),
            1e-5,
        );
        Reference.rms_norm_forward(
            (&mut want_y).into(),
            (&mut want_inv).into(),
            (&x).into(),
            (&weight).into(),
            1e-5,
        );
        // The mean has C roundings, of which the root leaves half.
        let relative = (c as f64 / 2.0 + 8.0) * U;
        let bound = |i: usize| relative * f64::from(want_inv[i]);
        assert_within(&format!("{name}: inv_rms"), &inv, &want_inv, bound);
        let bound = |i: usize| relative * f64::from(want_y[i].abs());
        assert_within(&format!("{name}: y"), &y, &want_y, bound);

        let dy = numbers(seed + 200, t * c);
        let start = numbers(seed + 300, t * c);
        let (mut dx, mut want) = (start.clone(), start.clone());
        library.rms_norm_backward(
            (&mut dx).into(),
            (&dy).into(),
            (&x).into(),
            (&want_inv).into(),
            (&weight).into(),
            write,
        );
        Reference.rms_norm_backward(
            (&mut want).into(),
            (&dy).into(),
            (&x).into(),
            (&want_inv).into(),
            (&weight).into(),
            write,
        );
        // Sizes of the two terms g and x inv^2 mean(g x), with everything made positive.
        let (gs, xs) = (sizes(&dy), sizes(&x));
        let bound = |i: usize| {
            let (r, c0) = (i / c, i / c * c);
            let g = |j: usize| f64::from(gs[c0 + j]) * f64::from(weight[j].abs());
            let mean: f64 = (0..c).map(|j| g(j) * f64::from(xs[c0 + j])).sum::<f64>() / c as f64;
            let inv = f64::from(want_inv[r]);
            let along_x = f64::from(xs[i]) * inv * inv * mean;
            let start = f64::from(start[i].abs());
            (inv * (8.0 * g(i - c0) + (c as f64 + 12.0) * along_x) + 2.0 * start) * U
        };
        assert_within(&format!("{name}: dx"), &dx, &want, bound);

        let start = numbers(seed + 400, c);
        let (mut dweight, mut want) = (start.clone(), start.clone());
        library.rms_norm_weight_backward(
            (&mut dweight).into(),
            (&dy).into(),
            (&x).into(),
            (&want_inv).into(),
        );
        Reference.rms_norm_weight_backward(
            (&mut want).into(),
            (&dy).into(),
            (&x).into(),
            (&want_inv).into(),
        );
        let bound = |i: usize| {
            let term = |r: usize| {
                f64::from(gs[r * c + i]) * f64::from(xs[r * c + i]) * f64::from(want_inv[r])
            };
            let terms: f64 = (0..t).map(term).sum();
            (t as f64 + 4.0) * U * (terms + f64::from(start[i].abs()))
        };
        assert_within(&format!("{name}: dweight"), &dweight, &want, bound);
        outcomes.push(Outcome { name, bits: bits_of(&[&y, &inv, &dx, &dweight]) });
    }
    outcomes
}
