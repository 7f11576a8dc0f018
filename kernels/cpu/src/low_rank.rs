//! The term of low rank beside a product with a frozen weight: laid out as the tail of the
//! product's tiles, so that the result is written once.
//!
//! Numerics: factors and products are f32 in every format; the terms follow the last block of the
//! frozen product's in the same accumulator.

use std::ops::Range;

use forgelm_kernels_api::LowRank;

use crate::gemm::Strided;
use crate::linear::PackedRows;
use crate::scratch::Scratch;
use crate::simd::Simd;
use crate::tile::{Left, PANEL, Right, Tail};

/// `scale * u v`.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// [T, r]
    u: &'a [f32],
    /// [r, columns of the result]
    v: Strided<'a>,
    r: usize,
    scale: f32,
}

impl<'a> Term<'a> {
    /// For a result [t, n], with `given.v` [n, r].
    pub(crate) fn forward(given: LowRank<'a>, t: usize, n: usize) -> Option<Self> {
        let r = rank(given, t, n);
        (r > 0).then_some(Self {
            u: given.u.on_host(),
            v: Strided { data: given.v.on_host(), along: r, step: 1 },
            r,
            scale: given.scale,
        })
    }

    /// For a result [t, k], with `given.v` [r, k].
    pub(crate) fn backward(given: LowRank<'a>, t: usize, k: usize) -> Option<Self> {
        let r = rank(given, t, k);
        (r > 0).then_some(Self {
            u: given.u.on_host(),
            v: Strided { data: given.v.on_host(), along: 1, step: k },
            r,
            scale: given.scale,
        })
    }

    /// Rows of `scale * u`.
    #[inline(always)]
    pub(crate) fn rows<S: Simd>(&self, s: S, rows: Range<usize>) -> PackedRows<f32> {
        let u = &self.u[rows.start * self.r..rows.end * self.r];
        let mut packed = PackedRows::<f32>::new(s, u, self.r, 0..self.r);
        for row in 0..rows.len() {
            packed.row_mut(row).iter_mut().for_each(|u| *u *= self.scale);
        }
        packed
    }

    /// Columns of `v`, at most a panel of them.
    #[inline(always)]
    pub(crate) fn columns<S: Simd>(&self, s: S, columns: Range<usize>) -> Columns {
        Columns(self.v.pack(s, columns, 0..self.r, PANEL))
    }
}

/// Columns of the right factor [r, PANEL].
pub(crate) struct Columns(Scratch<f32>);

impl Columns {
    /// The tail of a product with these columns, from column `first` on.
    #[inline(always)]
    pub(crate) fn tail<'a>(&'a self, rows: &'a PackedRows<f32>, first: usize) -> Tail<'a> {
        Tail {
            a: Left { data: rows.rows_from(0), row_stride: rows.stride(), step_stride: 1 },
            b: Right { data: &self.0[first..], step_stride: PANEL },
            steps: self.0.len() / PANEL,
        }
    }
}

fn rank(given: LowRank<'_>, t: usize, columns: usize) -> usize {
    let r = given.v.len() / columns.max(1);
    assert_eq!(given.v.len(), r * columns, "v is not [columns, r] or [r, columns]");
    assert_eq!(given.u.len(), t * r, "u is not [T, r]");
    r
}
