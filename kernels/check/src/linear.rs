//! Products with a frozen weight.

use forgelm_kernels_api::{Compute, LowRank, Ops, Write};
use forgelm_kernels_reference::Reference;

use crate::{Matrix, Outcome, U, assert_within, bits_of, numbers, sizes};

/// (T, N, K). The last two are so wide that their columns are turned in parts, and the last one also
/// so high that the sum is.
pub const CASES: [(usize, usize, usize); 18] = [
    (1, 1, 1),
    (1, 48, 16),
    (1, 300, 577),
    (2, 49, 33),
    (3, 17, 95),
    (5, 96, 48),
    (7, 47, 31),
    (8, 200, 64),
    (9, 50, 1),
    (13, 1, 130),
    (33, 145, 97),
    (128, 48, 576),
    (129, 193, 50),
    (300, 100, 1200),
    (257, 640, 300),
    (40, 1700, 96),
    (6, 200, 2900),
    (3, 1100, 2501),
];

/// (T, N, K, r): one row and few (generation), sums of one and of several blocks, panels that are
/// not full, backward in several blocks, and no rank at all.
pub const LOW_RANK: [(usize, usize, usize, usize); 10] = [
    (1, 1, 1, 1),
    (1, 50, 1200, 8),
    (5, 96, 577, 3),
    (16, 145, 97, 16),
    (17, 48, 16, 33),
    (129, 193, 1200, 16),
    (40, 1700, 800, 5),
    (130, 100, 50, 64),
    (20, 60, 70, 0),
    (3, 1100, 2501, 4),
];

/// Both directions, both formats, replacing and adding.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = compare_low_rank(library);
    for (i, &(t, n, k)) in CASES.iter().enumerate() {
        let seed = i as u32;
        let w = Matrix::random(seed, n, k);
        for compute in [Compute::F32, Compute::Bf16] {
            let write = if i % 2 == 0 { Write::Replace } else { Write::Add };
            let name = format!("linear T={t} N={n} K={k} {compute:?} {write:?}");
            let frozen = library.freeze(&w, compute);
            let plain = Reference.freeze(&w, compute);
            let plain_sizes = Reference.freeze(&w.sizes(), compute);
            assert_eq!((frozen.n_rows(), frozen.n_cols()), (n, k), "{name}");
            let (mut rows, mut plain_rows) = (vec![0.0; n * k], vec![0.0; n * k]);
            frozen.read_rows(0, &mut rows);
            plain.read_rows(0, &mut plain_rows);
            assert_eq!(bits_of(&[&rows]), bits_of(&[&plain_rows]), "{name}: read_rows");

            let x = numbers(seed + 1000, t * k);
            let start = numbers(seed + 2000, t * n);
            let (mut y, mut want, mut size) = (start.clone(), start.clone(), sizes(&start));
            library.linear_forward((&mut y).into(), (&x).into(), &*frozen, write);
            Reference.linear_forward((&mut want).into(), (&x).into(), &*plain, write);
            Reference.linear_forward((&mut size).into(), (&sizes(&x)).into(), &*plain_sizes, write);
            let bound = |i: usize| (k + 8) as f64 * U * f64::from(size[i]);
            assert_within(&format!("{name}: y"), &y, &want, bound);

            let dy = numbers(seed + 3000, t * n);
            let start = numbers(seed + 4000, t * k);
            let (mut dx, mut want, mut size) = (start.clone(), start.clone(), sizes(&start));
            library.linear_backward((&mut dx).into(), (&dy).into(), &*frozen, write);
            Reference.linear_backward((&mut want).into(), (&dy).into(), &*plain, write);
            Reference.linear_backward(
                (&mut size).into(),
                (&sizes(&dy)).into(),
                &*plain_sizes,
                write,
            );
            let bound = |i: usize| (n + 8) as f64 * U * f64::from(size[i]);
            assert_within(&format!("{name}: dx"), &dx, &want, bound);
            outcomes.push(Outcome { name, bits: bits_of(&[&y, &dx]) });
        }
    }
    outcomes
}

/// The same with a product of low rank beside it.
fn compare_low_rank(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(t, n, k, r)) in LOW_RANK.iter().enumerate() {
        let seed = i as u32 + 50;
        let w = Matrix::random(seed, n, k);
        let u = numbers(seed + 5000, t * r);
        let [v_n, v_k] = [n, k].map(|width| numbers(seed + 6000, width * r));
        let scale = 0.75;
        for compute in [Compute::F32, Compute::Bf16] {
            let write = if i % 2 == 0 { Write::Replace } else { Write::Add };
            let name = format!("linear T={t} N={n} K={k} r={r} {compute:?} {write:?}");
            let frozen = library.freeze(&w, compute);
            let plain = Reference.freeze(&w, compute);
            let plain_sizes = Reference.freeze(&w.sizes(), compute);
            let [u_size, v_n_size, v_k_size] = [&u, &v_n, &v_k].map(|x| sizes(x));
            let size_of = |v| LowRank { u: (&u_size).into(), v, scale };

            let x = numbers(seed + 1000, t * k);
            let start = numbers(seed + 2000, t * n);
            let (mut y, mut want, mut size) = (start.clone(), start.clone(), sizes(&start));
            let low_rank = LowRank { u: (&u).into(), v: (&v_n).into(), scale };
            library.linear_forward_low_rank(
                (&mut y).into(),
                (&x).into(),
                &*frozen,
                low_rank,
                write,
            );
            Reference.linear_forward_low_rank(
                (&mut want).into(),
                (&x).into(),
                &*plain,
                low_rank,
                write,
            );
            let (x, low_rank) = (sizes(&x), size_of((&v_n_size).into()));
            Reference.linear_forward_low_rank(
                (&mut size).into(),
                (&x).into(),
                &*plain_sizes,
                low_rank,
                write,
            );
            let bound = |i: usize| (k + r + 9) as f64 * U * f64::from(size[i]);
            assert_within(&format!("{name}: y"), &y, &want, bound);

            let dy = numbers(seed + 3000, t * n);
            let start = numbers(seed + 4000, t * k);
            let (mut dx, mut want, mut size) = (start.clone(), start.clone(), sizes(&start));
            let low_rank = LowRank { u: (&u).into(), v: (&v_k).into(), scale };
            library.linear_backward_low_rank(
                (&mut dx).into(),
                (&dy).into(),
                &*frozen,
                low_rank,
                write,
            );
            Reference.linear_backward_low_rank(
                (&mut want).into(),
                (&dy).into(),
                &*plain,
                low_rank,
                write,
            );
            let (dy, low_rank) = (sizes(&dy), size_of((&v_k_size).into()));
            Reference.linear_backward_low_rank(
                (&mut size).into(),
                (&dy).into(),
                &*plain_sizes,
                low_rank,
                write,
            );
            let bound = |i: usize| (n + r + 9) as f64 * U * f64::from(size[i]);
            assert_within(&format!("{name}: dx"), &dx, &want, bound);
            outcomes.push(Outcome { name, bits: bits_of(&[&y, &dx]) });
        }
    }
    outcomes
}
