//! The dense product.

use forgelm_kernels_api::{GemmDims, GemmLayout, Ops, Write};
use forgelm_kernels_reference::Reference;

use crate::{Outcome, U, assert_within, bits_of, numbers, sizes};

/// (M, N, K): each is run in all layouts.
pub const CASES: [(usize, usize, usize); 16] = [
    (1, 1, 1),
    (1, 7, 5),
    (5, 1, 9),
    (3, 50, 0),
    (8, 64, 33),
    (17, 16, 16),
    (300, 8, 96),
    (300, 96, 8),
    (96, 8, 300),
    (8, 100, 300),
    (16, 160, 700),
    (150, 4, 600),
    (200, 64, 65),
    (64, 200, 20),
    (131, 145, 129),
    (31, 48, 1100),
];

/// All layouts, replacing and adding, with a factor.
#[must_use]
pub fn compare(library: &dyn Ops) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, &(m, n, k)) in CASES.iter().enumerate() {
        let dims = GemmDims { m, n, k };
        for layout in [GemmLayout::Nn, GemmLayout::Nt, GemmLayout::Tn] {
            let write = if i % 2 == 0 { Write::Add } else { Write::Replace };
            let alpha = [2.0, -0.3][i / 2 % 2];
            let name = format!("gemm M={m} N={n} K={k} {layout:?} {write:?}");
            let (a, b) = (numbers(i as u32, m * k), numbers(i as u32 + 1000, k * n));
            let start = numbers(i as u32 + 2000, m * n);
            let (mut c, mut want, mut size) = (start.clone(), start.clone(), sizes(&start));
            library.gemm((&mut c).into(), (&a).into(), (&b).into(), layout, dims, alpha, write);
            Reference.gemm(
                (&mut want).into(),
                (&a).into(),
                (&b).into(),
                layout,
                dims,
                alpha,
                write,
            );
            Reference.gemm(
                (&mut size).into(),
                (&sizes(&a)).into(),
                (&sizes(&b)).into(),
                layout,
                dims,
                alpha.abs(),
                write,
            );
            let bound = |i: usize| (k + 8) as f64 * U * f64::from(size[i]);
            assert_within(&name, &c, &want, bound);
            outcomes.push(Outcome { name, bits: bits_of(&[&c]) });
        }
    }
    outcomes
}
