//! The wide end.

use forgelm_kernels_api::{Compute, Ops};
use forgelm_kernels_reference::Reference;

use crate::{Matrix, Outcome, U, assert_within, bits_of, indices, numbers};

/// (R, V, C, soft cap).
pub const CASES: [(usize, usize, usize, Option<f32>); 9] = [
    (1, 1, 1, None),
    (1, 5, 3, None),
    (3, 49, 17, None),
    (7, 300, 64, Some(2.0)),
    (8, 2000, 33, None),
    (130, 200, 48, None),
    (20, 4000, 24, Some(30.0)),
    (17, 3100, 577, None),
    (300, 97, 16, None),
];

/// Both directions and formats.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(r, v, c, soft_cap)) in CASES.iter().enumerate() {
        for compute in [Compute::F32, Compute::Bf16] {
            let name = format!("token_logprobs R={r} V={v} C={c} cap={soft_cap:?} {compute:?}");
            let seed = i as u32;
            let matrix = Matrix::random(seed, v, c);
            let head = library.freeze(&matrix, compute);
            let plain = Reference.freeze(&matrix, compute);
            // Rows like those behind a norm, so that logits spread over a few units.
            let x: Vec<f32> =
                numbers(seed + 100, r * c).iter().map(|x| x * 6.0 / (c as f32).sqrt()).collect();
            let labels = indices(seed, r, v);
            let (mut logp, mut lse) = (vec![0.0; r], vec![0.0; r]);
            let (mut want_logp, mut want_lse) = (vec![0.0; r], vec![0.0; r]);
            library.token_logprobs_forward(
                (&mut logp).into(),
                (&mut lse).into(),
                (&x).into(),
                &*head,
                &labels,
                soft_cap,
            );
            Reference.token_logprobs_forward(
                (&mut want_logp).into(),
                (&mut want_lse).into(),
                (&x).into(),
                &*plain,
                &labels,
                soft_cap,
            );
            // A logit has C terms below 6 / sqrt(C); the cap adds a few units of its size; the
            // sum over V is of positive terms.
            let logit = (c as f64 + 4.0) * U * 6.0 * (c as f64).sqrt() * 1.01
                + soft_cap.map_or(0.0, |cap| 8.0 * U * f64::from(cap));
            let sum = (v as f64 + 16.0) * U;
            let bound = |i: usize| logit + sum + 2.0 * U * f64::from(want_lse[i].abs());
            assert_within(&format!("{name}: lse"), &lse, &want_lse, bound);
            let bound = |i: usize| {
                let sizes = f64::from(want_lse[i].abs()) + f64::from(want_logp[i].abs());
                2.0 * logit + sum + 4.0 * U * sizes
            };
            assert_within(&format!("{name}: logp"), &logp, &want_logp, bound);

            let dlogp = numbers(seed + 200, r);
            let (mut dx, mut want) = (vec![0.0; r * c], vec![0.0; r * c]);
            library.token_logprobs_backward(
                (&mut dx).into(),
                (&dlogp).into(),
                (&want_lse).into(),
                (&x).into(),
                &*head,
                &labels,
                soft_cap,
            );
            Reference.token_logprobs_backward(
                (&mut want).into(),
                (&dlogp).into(),
                (&want_lse).into(),
                (&x).into(),
                &*plain,
                &labels,
                soft_cap,
            );
            // The factors' sizes add up to at most 2. Each is off as its logit is; in bfloat16 two
            // numbers that differ a little may be rounded to neighbors, 2^-7 of their size apart.
            let factor = 2.0 * logit
                + 16.0 * U
                + match compute {
                    Compute::F32 => 0.0,
                    Compute::Bf16 => 1.0 / 128.0,
                };
            let relative = 2.0 * factor + 2.0 * (v as f64 + 8.0) * U;
            let bound = |i: usize| relative * f64::from(dlogp[i / c].abs());
            assert_within(&format!("{name}: dx"), &dx, &want, bound);
            let (mut same_logp, mut same_lse) = (vec![0.0; r], vec![0.0; r]);
            let mut unit = vec![0.0; r * c];
            library.token_logprobs_with_gradient(
                (&mut same_logp).into(),
                (&mut same_lse).into(),
                (&mut unit).into(),
                (&x).into(),
                &*head,
                &labels,
                soft_cap,
            );
            assert_eq!(bits_of(&[&same_logp, &same_lse]), bits_of(&[&logp, &lse]), "{name}");
            let ones = vec![1.0; r];
            Reference.token_logprobs_backward(
                (&mut want).into(),
                (&ones).into(),
                (&want_lse).into(),
                (&x).into(),
                &*plain,
                &labels,
                soft_cap,
            );
            assert_within(&format!("{name}: unit dx"), &unit, &want, |_| relative);

            let start = numbers(seed + 300, v * c);
            let (mut dhead, mut want) = (start.clone(), start.clone());
            library.token_logprobs_head_backward(
                (&mut dhead).into(),
                (&dlogp).into(),
                (&want_lse).into(),
                (&x).into(),
                &*head,
                &labels,
                soft_cap,
            );
            Reference.token_logprobs_head_backward(
                (&mut want).into(),
                (&dlogp).into(),
                (&want_lse).into(),
                (&x).into(),
                &*plain,
                &labels,
                soft_cap,
            );
            // A factor is at most 1 and off as its logit is (the products of this sum are f32 in
            // both formats); R terms are added, and the cap's slope is off by a few roundings.
            let factor = 2.0 * logit + 16.0 * U;
            let bound = |i: usize| {
                let term =
                    |row: usize| f64::from(dlogp[row].abs()) * f64::from(x[row * c + i % c].abs());
                let terms: f64 = (0..r).map(term).sum();
                (factor + (r as f64 + 8.0) * U) * terms + 2.0 * U * f64::from(start[i].abs())
            };
            assert_within(&format!("{name}: dhead"), &dhead, &want, bound);
            outcomes.push(Outcome { name, bits: bits_of(&[&logp, &lse, &unit, &dx, &dhead]) });
        }
    }
    outcomes
}
