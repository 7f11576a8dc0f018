//! Products of a few rows with a frozen weight: generation.
//!
//! The weight is read once and nothing else costs anything, so this is written for the memory.
//! The rows are packed once for all tasks; a task streams whole panels from their first byte to
//! their last, as they lie in memory, and asks for cache lines well ahead of their use, across the
//! borders of pages where the processor's own prefetcher stops.
//!
//! Numerics: bit for bit the result of [`linear`](crate::linear), whatever the number of rows: the
//! sums of a row are formed in the same blocks, in the same order, and blocks are added in order
//! (`a_row_does_not_depend_on_its_batch` in kernels/check). So a text does not depend on what else
//! is generated beside it.

use forgelm_kernels_api::Write;

use crate::linear::{PackedRows, part};
use crate::low_rank::{Columns, Term};
use crate::pool::Pool;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::tile::{self, Element, PANEL, Tail, put};

/// With more rows than this the product is no longer limited by memory.
pub(crate) const ROWS_MAX: usize = 16;

/// Vectors in a row of a tile.
const VECTORS: usize = 3;
/// Bytes of a task, at least: a few microseconds.
const TASK: usize = 1 << 16;
/// Tasks, at most.
const TASKS_MAX: usize = 64;
/// Bytes ahead that the weight is fetched.
const AHEAD: usize = 4096;
/// Numbers of 4 bytes in a cache line.
const LINE: usize = 16;

/// A weight whose panels are in memory.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a, E> {
    /// [panel][steps, PANEL]
    pub panels: &'a [E],
    pub n: usize,
    pub k: usize,
}

impl<E: Element> Weight<'_, E> {
    fn steps(&self) -> usize {
        self.k.div_ceil(E::TERMS)
    }

    fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Shapes: [steps, PANEL].
    #[inline(always)]
    fn panel(&self, p: usize) -> &[E] {
        let len = self.steps() * PANEL;
        &self.panels[p * len..(p + 1) * len]
    }
}

/// `y = x w^T` and the term. Shapes: `y` [T, N], `x` [T, K], `w` [N, K], T at most [`ROWS_MAX`].
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    w: Weight<'_, E>,
    term: Option<Term<'_>>,
    write: Write,
) {
    let packed = on_isa!(isa, s => PackedRows::<E>::new(s, x, w.k, 0..w.k));
    let term = term.map(|term| (term, on_isa!(isa, s => term.rows(s, 0..packed.rows()))));
    let add = write == Write::Add;
    let product = Product { packed: &packed, w, term: term.as_ref(), y: Shared::new(y), add };
    let panel_bytes = w.steps() * PANEL * size_of::<E>();
    let per_task = TASK.div_ceil(panel_bytes.max(1)).max(w.n_panels().div_ceil(TASKS_MAX));
    pool.run(w.n_panels().div_ceil(per_task), &|task| {
        let end = ((task + 1) * per_task).min(w.n_panels());
        on_isa!(isa, s => {
            for p in task * per_task..end {
                product.panel(s, p);
            }
        });
    });
}

struct Product<'a, E: Element> {
    packed: &'a PackedRows<E>,
    w: Weight<'a, E>,
    /// With its rows.
    term: Option<&'a (Term<'a>, PackedRows<f32>)>,
    /// [T, N]
    y: Shared<'a, f32>,
    add: bool,
}

impl<E: Element> Product<'_, E> {
    /// The columns of one panel, for all rows.
    #[inline(always)]
    fn panel<S: Simd>(&self, s: S, p: usize) {
        let columns = (self.w.n - p * PANEL).min(PANEL);
        let term = self.term.map(|(term, rows)| {
            let first = p * PANEL;
            (rows, term.columns(s, first..first + columns))
        });
        let term = term.as_ref().map(|(rows, columns)| (*rows, columns));
        let mut column = 0;
        while column < columns {
            let width = (columns - column).min(VECTORS * S::LANES);
            let mut row = 0;
            while row < self.packed.rows() {
                let left = self.packed.padded_rows() - row;
                row += if S::ROWS >= 8 && left >= 8 {
                    self.tile::<S, 8>(s, (p, term), row, column, width)
                } else if S::ROWS >= 4 && left >= 4 {
                    self.tile::<S, 4>(s, (p, term), row, column, width)
                } else if S::ROWS == 2 && left >= 2 {
                    self.tile::<S, 2>(s, (p, term), row, column, width)
                } else {
                    self.tile::<S, 1>(s, (p, term), row, column, width)
                };
            }
            column += width;
        }
    }

    /// `MR` rows from `row` on, `width` columns of panel `p` from `column` on; gives `MR`.
    #[expect(
        clippy::needless_range_loop,
        reason = "iterators over arrays of vectors copy them through memory"
    )]
    #[inline(always)]
    fn tile<S: Simd, const MR: usize>(
        &self,
        s: S,
        (p, term): (usize, Option<(&PackedRows<f32>, &Columns)>),
        row: usize,
        column: usize,
        width: usize,
    ) -> usize {
        let n_steps = self.w.steps();
        let n_blocks = n_steps.div_ceil(E::STEPS_MAX);
        let panel = &self.w.panel(p)[column..];
        let x = self.packed.rows_from(row);
        for block in 0..n_blocks {
            let steps = part(block, n_blocks, n_steps);
            let sums = accumulate::<S, E, MR>(
                s,
                steps.len(),
                (&x[steps.start..], self.packed.stride()),
                &panel[steps.start * PANEL..],
            );
            let sums = match term {
                Some((rows, columns)) if block + 1 == n_blocks => {
                    let Tail { a, b, steps } = columns.tail(rows, column);
                    tile::accumulate::<S, f32, MR, VECTORS>(s, sums, steps, a.from(row), b)
                }
                _ => sums,
            };
            let add = block > 0 || self.add;
            for i in 0..MR.min(self.packed.rows() - row) {
                for j in 0..VECTORS {
                    let skip = j * S::LANES;
                    if skip < width {
                        let at = (row + i) * self.w.n + p * PANEL + column + skip;
                        let len = (width - skip).min(S::LANES);
                        // SAFETY: a panel's columns of y are one task's alone, and the slice ends
                        // with this call.
                        put(s, unsafe { self.y.slice(at..at + len) }, sums[i][j], add);
                    }
                }
            }
        }
        MR
    }
}

/// Shapes: `x` rows of at least `steps` elements, `stride` apart; `panel` [steps, PANEL], less what
/// lies before the first column in its first row.
#[inline(always)]
fn accumulate<S: Simd, E: Element, const MR: usize>(
    s: S,
    steps: usize,
    (x, stride): (&[E], usize),
    panel: &[E],
) -> [[S::V; VECTORS]; MR] {
    let mut sums = [[s.splat(0.0); VECTORS]; MR];
    if steps == 0 {
        return sums;
    }
    assert!((MR - 1) * stride + steps <= x.len(), "the rows are too short");
    assert!((steps - 1) * PANEL + VECTORS * S::LANES <= panel.len(), "the panel is too short");
    let (mut x, mut panel) = (x.as_ptr(), panel.as_ptr());
    for _ in 0..steps {
        for line in 0..PANEL / LINE {
            s.prefetch(panel.wrapping_byte_add(AHEAD).wrapping_add(line * LINE));
        }
        let mut columns = [E::splat(s, E::ZERO); VECTORS];
        for (j, column) in columns.iter_mut().enumerate() {
            // SAFETY: the last step was checked to have these vectors inside the panel, and steps
            // before it lie lower.
            *column = unsafe { E::load(s, panel.add(j * S::LANES)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the last step of row MR - 1 was checked to lie inside `x`; all others lie
            // lower.
            let x = E::splat(s, unsafe { *x.add(i * stride) });
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = E::step(s, *sum, x, column);
            }
        }
        x = x.wrapping_add(1);
        panel = panel.wrapping_add(PANEL);
    }
    sums
}
