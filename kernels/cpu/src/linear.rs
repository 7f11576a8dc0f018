//! Products with a frozen weight.
//!
//! The grid: chunks of rows by groups of panels. A task packs its rows of the changing factor (for
//! bfloat16 that is where they are rounded), block by block along the sum, and multiplies each
//! block with one panel after the other; a panel's block stays in the second-level cache while
//! all rows pass over it.
//!
//! With one row to a few (generation) the same code streams every panel once and is limited by
//! memory.
//!
//! Numerics: the sum over K (forward) or N (backward) is formed in blocks of a size that depends on
//! K or N alone; blocks are added in order.

use forgelm_kernels_api::{FrozenMatrix, Write};

use crate::frozen::{CpuMatrix, Packed};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::{Element, Left, PANEL, Right, Sizes, padded_rows, product, put};

/// Rows of a forward task.
const ROWS_FORWARD: usize = 128;
/// Panels of a forward task, at most.
const PANELS_FORWARD: usize = 8;
/// Rows of a backward task: they share the panels that it turns around.
const ROWS_BACKWARD: usize = 256;
/// Rows of those that are packed at a time.
const ROWS_PACKED: usize = 128;
/// Columns of a backward task, in panels, at most.
const PANELS_BACKWARD: usize = 6;

/// `y = x w^T`. Shapes: `y` [T, N], `x` [T, K], `w` [N, K].
pub(crate) fn forward(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    w: &dyn FrozenMatrix,
    write: Write,
) {
    match CpuMatrix::of(w) {
        CpuMatrix::F32(w) => forward_as(pool, isa, y, x, w, write),
        CpuMatrix::Bf16(w) => forward_as(pool, isa, y, x, w, write),
    }
}

/// `dx = dy w`. Shapes: `dx` [T, K], `dy` [T, N], `w` [N, K].
pub(crate) fn backward(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    w: &dyn FrozenMatrix,
    write: Write,
) {
    match CpuMatrix::of(w) {
        CpuMatrix::F32(w) => backward_as(pool, isa, dx, dy, w, write),
        CpuMatrix::Bf16(w) => backward_as(pool, isa, dx, dy, w, write),
    }
}

/// Part `i` of `n` things cut into `parts` of nearly the same size.
pub(crate) fn part(i: usize, parts: usize, n: usize) -> std::ops::Range<usize> {
    i * n / parts..(i + 1) * n / parts
}

fn forward_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    w: &Packed<E>,
    write: Write,
) {
    let (n, k) = (w.n(), w.k());
    assert!(x.len().is_multiple_of(k), "x is not [T, K]");
    let t = x.len() / k;
    assert_eq!(y.len(), t * n, "y is not [T, N]");
    let n_chunks = t.div_ceil(ROWS_FORWARD);
    let n_groups = w.n_panels().div_ceil(PANELS_FORWARD);
    let y = Shared::new(y);
    pool.run(n_chunks * n_groups, &|task| {
        let rows = part(task % n_chunks, n_chunks, t);
        let job = Forward {
            w,
            x: &x[rows.start * k..rows.end * k],
            y,
            first_row: rows.start,
            panels: part(task / n_chunks, n_groups, w.n_panels()),
            write,
        };
        on_isa!(isa, s => job.run(s));
    });
}

struct Forward<'a, E> {
    w: &'a Packed<E>,
    /// The task's rows.
    x: &'a [f32],
    y: Shared<'a, f32>,
    first_row: usize,
    panels: std::ops::Range<usize>,
    write: Write,
}

impl<E: Element> Forward<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, y, .. } = self;
        let n = w.n();
        let n_blocks = w.steps().div_ceil(E::STEPS_MAX);
        for block in 0..n_blocks {
            let steps = part(block, n_blocks, w.steps());
            let columns = steps.start * E::TERMS..(steps.end * E::TERMS).min(w.k());
            let packed = PackedRows::<E>::new(s, self.x, w.k(), columns);
            let add = block > 0 || self.write == Write::Add;
            for p in self.panels.clone() {
                let columns = (n - p * PANEL).min(PANEL);
                let b = &w.panel(p)[steps.start * PANEL..steps.end * PANEL];
                packed.multiply(s, b, columns, |row, column, sum, width| {
                    let at = (self.first_row + row) * n + p * PANEL + column;
                    // SAFETY: these rows and panels of y are this task's alone, and the slice
                    // ends with this call.
                    put(s, unsafe { y.slice(at..at + width) }, sum, add);
                });
            }
        }
    }
}

/// Rows of the changing factor, packed for [`product`].
pub(crate) struct PackedRows<E: Element> {
    rows: usize,
    steps: usize,
    stride: usize,
    data: Scratch<E>,
}

impl<E: Element> PackedRows<E> {
    /// Packs a range of columns of all rows of `x`. Shapes: `x` [rows, `width`].
    #[inline(always)]
    pub(crate) fn new<S: Simd>(
        s: S,
        x: &[f32],
        width: usize,
        columns: std::ops::Range<usize>,
    ) -> Self {
        let mut packed = Self::sized::<S>(x.len() / width, columns.len().div_ceil(E::TERMS));
        let rows = packed.data.chunks_exact_mut(packed.stride);
        for (to, x) in rows.zip(x.chunks_exact(width)) {
            E::pack(s, &mut to[..packed.steps], &x[columns.clone()]);
        }
        packed
    }

    /// Room for rows that the caller packs itself; rows that only pad are zero.
    #[inline(always)]
    pub(crate) fn sized<S: Simd>(rows: usize, steps: usize) -> Self {
        // An odd number of cache lines, so that rows do not fall on the same lines of the cache.
        let stride = steps.next_multiple_of(32) + 16;
        let padded = padded_rows::<S>(rows);
        let mut data = Scratch::take(padded * stride);
        data[rows * stride..].fill(E::ZERO);
        Self { rows, steps, stride, data }
    }

    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.data[row * self.stride..row * self.stride + self.steps]
    }

    /// Multiplies with a panel. Shapes: `panel` [steps, PANEL].
    #[inline(always)]
    pub(crate) fn multiply<S: Simd>(
        &self,
        s: S,
        panel: &[E],
        columns: usize,
        mut sink: impl FnMut(usize, usize, S::V, usize),
    ) {
        let sizes = Sizes { rows: self.data.len() / self.stride, columns, steps: self.steps };
        let a = Left { data: &self.data, row_stride: self.stride, step_stride: 1 };
        let b = Right { data: panel, step_stride: PANEL };
        product(s, sizes, a, b, |row, column, sum, width| {
            if row < self.rows {
                sink(row, column, sum, width);
            }
        });
    }
}

fn backward_as<E: Element>(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    w: &Packed<E>,
    write: Write,
) {
    let (n, k) = (w.n(), w.k());
    assert!(dy.len().is_multiple_of(n), "dy is not [T, N]");
    let t = dy.len() / n;
    assert_eq!(dx.len(), t * k, "dx is not [T, K]");
    let n_column_panels = k.div_ceil(PANEL);
    let n_chunks = t.div_ceil(ROWS_BACKWARD);
    let n_groups = n_column_panels.div_ceil(PANELS_BACKWARD);
    let dx = Shared::new(dx);
    pool.run(n_chunks * n_groups, &|task| {
        let rows = part(task % n_chunks, n_chunks, t);
        let job = Backward {
            w,
            dy: &dy[rows.start * n..rows.end * n],
            dx,
            first_row: rows.start,
            column_panels: part(task / n_chunks, n_groups, n_column_panels),
            write,
        };
        on_isa!(isa, s => job.run(s));
    });
}

struct Backward<'a, E> {
    w: &'a Packed<E>,
    /// The task's rows.
    dy: &'a [f32],
    dx: Shared<'a, f32>,
    first_row: usize,
    column_panels: std::ops::Range<usize>,
    write: Write,
}

impl<E: Element> Backward<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, dx, .. } = self;
        let (n, k) = (w.n(), w.k());
        let n_blocks = w.n_panels().div_ceil(E::STEPS_MAX * E::TERMS / PANEL);
        for block in 0..n_blocks {
            let panels = part(block, n_blocks, w.n_panels());
            let steps = panels.len() * PANEL / E::TERMS;
            let mut turned = Scratch::<E>::take(self.column_panels.len() * steps * PANEL);
            for (to, q) in turned.chunks_exact_mut(steps * PANEL).zip(self.column_panels.clone()) {
                w.turned(s, to, panels.clone(), q);
            }
            let terms = panels.start * PANEL..(panels.end * PANEL).min(n);
            let add = block > 0 || self.write == Write::Add;
            for (chunk, dy) in self.dy.chunks(ROWS_PACKED * n).enumerate() {
                let packed = PackedRows::<E>::new(s, dy, n, terms.clone());
                let first_row = self.first_row + chunk * ROWS_PACKED;
                for (b, q) in turned.chunks_exact(steps * PANEL).zip(self.column_panels.clone()) {
                    let columns = (k - q * PANEL).min(PANEL);
                    packed.multiply(s, b, columns, |row, column, sum, width| {
                        let at = (first_row + row) * k + q * PANEL + column;
                        // SAFETY: these rows and columns of dx are this task's alone, and the
                        // slice ends with this call.
                        put(s, unsafe { dx.slice(at..at + width) }, sum, add);
                    });
                }
            }
        }
    }
}
