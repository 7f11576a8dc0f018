//! The dense product of changing matrices.
//!
//! Made for adapters: one of the sizes is small, and each large operand is read once. All three
//! layouts become one problem with strides; when the result of a transposed product is narrow, it
//! is formed transposed, so that vectors run along the long side.
//!
//! The grid: chunks of rows by groups of panels of columns. The left factor is read where it lies;
//! the right one is packed into panels when enough rows share them, else read where it lies.
//!
//! Numerics: sums of at most [`STEPS`] terms are formed in registers, scaled by alpha and added to
//! the result in order.

use std::ops::Range;

use forgelm_kernels_api::{GemmDims, GemmLayout, Write};

use crate::pool::Pool;
use crate::scratch::Bits;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Grid, Isa, Simd};
use crate::tile::{Left, PANEL, Right, Sizes, product, put};

/// Rows of a task.
const ROWS: usize = 128;
/// Panels of a task, at most, when there are many rows.
const PANELS: usize = 8;
/// Panels of a task, at most, when there are few rows.
const PANELS_FEW_ROWS: usize = 2;
/// Fewer rows than this do not pay for packing the right factor.
const FEW_ROWS: usize = 32;
/// With at most this many terms, the result is gone through in order of its rows.
const FEW_STEPS: usize = 64;
/// Rows gone through together then: a tile.
const ROWS_TOGETHER: usize = 8;
/// Terms that are summed in registers.
const STEPS: usize = 512;

/// One matrix read with two strides.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub data: &'a [f32],
    /// From one row (left factor) or column (right factor) of the result to the next.
    pub along: usize,
    /// From one term of a sum to the next.
    pub step: usize,
}

#[derive(Clone, Copy)]
struct Problem<'a> {
    m: usize,
    n: usize,
    k: usize,
    a: Strided<'a>,
    b: Strided<'a>,
    c: Shared<'a, f32>,
    c_row: usize,
    c_column: usize,
    alpha: f32,
    write: Write,
}

/// What the caller gave.
pub(crate) struct Factors<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
}

/// `c = alpha op(a) op(b)`. Shapes: see [`GemmLayout`].
#[expect(clippy::too_many_arguments, reason = "the standard arguments of a GEMM")]
pub(crate) fn gemm(
    pool: &Pool,
    isa: Isa,
    c: &mut [f32],
    factors: &Factors<'_>,
    layout: GemmLayout,
    dims: GemmDims,
    alpha: f32,
    write: Write,
) {
    let GemmDims { m, n, k } = dims;
    assert_eq!(c.len(), m * n, "c is not [M, N]");
    assert_eq!(factors.a.len(), m * k, "a does not have M * K elements");
    assert_eq!(factors.b.len(), n * k, "b does not have N * K elements");
    let (a_along, a_step, b_along, b_step) = match layout {
        GemmLayout::Nn => (k, 1, 1, n),
        GemmLayout::Nt => (k, 1, k, 1),
        GemmLayout::Tn => (1, m, 1, n),
    };
    let a = Strided { data: factors.a, along: a_along, step: a_step };
    let b = Strided { data: factors.b, along: b_along, step: b_step };
    let c = Shared::new(c);
    let straight = Problem { m, n, k, a, b, c, c_row: n, c_column: 1, alpha, write };
    let problem = if layout == GemmLayout::Tn && n < FEW_ROWS && n < m {
        Problem { m: n, n: m, a: b, b: a, c_row: 1, c_column: n, ..straight }
    } else {
        straight
    };
    problem.solve(pool, isa);
}

impl Strided<'_> {
    /// As a right factor that is read in whole vectors; columns that only pad are zero.
    ///
    /// Shapes: result [steps, stride].
    #[inline(always)]
    pub(crate) fn pack<S: Simd>(
        &self,
        s: S,
        columns: Range<usize>,
        steps: Range<usize>,
        stride: usize,
    ) -> Scratch<f32> {
        let width = columns.len();
        let mut packed = Scratch::<f32>::take(steps.len() * stride);
        if self.along == 1 {
            for (to, step) in packed.chunks_exact_mut(stride).zip(steps) {
                let at = step * self.step + columns.start;
                to[..width].copy_from_slice(&self.data[at..at + width]);
                to[width..].fill(0.0);
            }
        } else {
            if width < stride {
                packed.fill(0.0);
            }
            let at = (columns.start * self.along + steps.start).min(self.data.len());
            let from = Grid { data: f32::bits(&self.data[at..]), stride: self.along };
            let to = Grid { data: f32::bits_mut(&mut packed), stride };
            s.transpose(to, from, width, steps.len());
        }
        packed
    }
}

impl Problem<'_> {
    fn solve(self, pool: &Pool, isa: Isa) {
        let n_chunks = self.m.div_ceil(ROWS);
        let n_panels = self.n.div_ceil(PANEL);
        let panels = if self.m < FEW_ROWS { PANELS_FEW_ROWS } else { PANELS };
        let n_groups = n_panels.div_ceil(panels);
        pool.run(n_chunks * n_groups, &|task| {
            let (chunk, group) = (task % n_chunks, task / n_chunks);
            let rows = chunk * self.m / n_chunks..(chunk + 1) * self.m / n_chunks;
            let panels = group * n_panels / n_groups..(group + 1) * n_panels / n_groups;
            let columns = panels.start * PANEL..(panels.end * PANEL).min(self.n);
            on_isa!(isa, s => self.part(s, rows, columns));
        });
    }

    #[inline(always)]
    fn part<S: Simd>(self, s: S, rows: Range<usize>, columns: Range<usize>) {
        let n_blocks = self.k.div_ceil(STEPS).max(1);
        for block in 0..n_blocks {
            let steps = block * self.k / n_blocks..(block + 1) * self.k / n_blocks;
            let add = block > 0 || self.write == Write::Add;
            if steps.len() <= FEW_STEPS {
                self.along_rows(s, rows.clone(), columns.clone(), steps, add);
            } else {
                self.along_columns(s, rows.clone(), columns.clone(), steps, add);
            }
        }
    }

    /// Few terms: the result is what takes time, so it is gone through row by row.
    #[inline(always)]
    fn along_rows<S: Simd>(
        self,
        s: S,
        rows: Range<usize>,
        columns: Range<usize>,
        steps: Range<usize>,
        add: bool,
    ) {
        let stride = columns.len().next_multiple_of(16);
        let packed = self.b.pack(s, columns.clone(), steps.clone(), stride);
        for first_row in rows.clone().step_by(ROWS_TOGETHER) {
            let rows = first_row..(first_row + ROWS_TOGETHER).min(rows.end);
            let b = Right { data: &packed, step_stride: stride };
            self.panel(s, rows, columns.clone(), steps.clone(), b, add);
        }
    }

    #[inline(always)]
    fn along_columns<S: Simd>(
        self,
        s: S,
        rows: Range<usize>,
        columns: Range<usize>,
        steps: Range<usize>,
        add: bool,
    ) {
        for first in columns.clone().step_by(PANEL) {
            let columns = first..(first + PANEL).min(columns.end);
            // Whole vectors are read: past the last column only where more rows follow.
            let whole = columns.len().is_multiple_of(16);
            if self.b.along == 1 && whole && rows.len() < FEW_ROWS {
                let at = steps.start * self.b.step + columns.start;
                let b = Right { data: &self.b.data[at..], step_stride: self.b.step };
                self.panel(s, rows.clone(), columns, steps.clone(), b, add);
            } else {
                let stride = columns.len().next_multiple_of(16);
                let packed = self.b.pack(s, columns.clone(), steps.clone(), stride);
                let b = Right { data: &packed, step_stride: stride };
                self.panel(s, rows.clone(), columns, steps.clone(), b, add);
            }
        }
    }

    #[inline(always)]
    fn panel<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        columns: Range<usize>,
        steps: Range<usize>,
        b: Right<'_, f32>,
        add: bool,
    ) {
        let at = (rows.start * self.a.along + steps.start * self.a.step).min(self.a.data.len());
        let a =
            Left { data: &self.a.data[at..], row_stride: self.a.along, step_stride: self.a.step };
        let sizes = Sizes { rows: rows.len(), columns: columns.len(), steps: steps.len() };
        let alpha = s.splat(self.alpha);
        product(
            s,
            sizes,
            a,
            b,
            #[inline(always)]
            |row, column, sum, width| {
                let sum = s.mul(sum, alpha);
                let at = (rows.start + row) * self.c_row + (columns.start + column) * self.c_column;
                if self.c_column == 1 {
                    // SAFETY: these rows and columns of c are this task's alone, and the slice ends
                    // with this call.
                    put(s, unsafe { self.c.slice(at..at + width) }, sum, add);
                } else {
                    let mut sums = [0.0; 16];
                    s.store(&mut sums, sum);
                    for (i, sum) in sums.into_iter().enumerate().take(width) {
                        let at = at + i * self.c_column;
                        // SAFETY: as above.
                        let c = unsafe { self.c.slice(at..at + 1) };
                        c[0] = if add { c[0] + sum } else { sum };
                    }
                }
            },
        );
    }
}
