//! Products with a frozen weight.
//!
//! The grid: chunks of rows by groups of panels. A task packs its rows of the changing factor (for
//! bfloat16 that is where they are rounded), block by block along the sum, and multiplies each
//! block with one panel after the other; a panel's block stays in the second-level cache while
//! all rows pass over it. Backward first turns the weight's panels around, a few megabytes at a
//! time, and then is the same product.
//!
//! A weight in blocks is unpacked on the way: a few megabytes of panels at a time, or, with few
//! rows, the panels of a task within the task. Nothing else changes.
//!
//! With one row to a few (generation) the product is limited by memory and, where the panels are
//! there, goes through [`skinny`], which gives the same bits.
//!
//! Numerics: the sum over K (forward) or N (backward) is formed in blocks of a size that depends on
//! the weight alone; blocks are added in order.
//!
//! Tried and lost: turning panels around within each task of 256 rows (each weight is turned
//! several times, 10 % slower); fetching the rows of the result ahead of the stores (no gain, as a
//! tile's sums take longer than its stores); blocks of 192 steps on AVX2, whose strip of a panel then
//! fits the nearest cache (the result is gone through three times as often, about 5 % slower).

use std::ops::Range;

use forgelm_kernels_api::{Compute, FrozenMatrix, LowRank, Write};

use crate::frozen::{CpuMatrix, Panels, turn};
use crate::low_rank::Term;
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};
use crate::skinny;
use crate::tile::{Element, Left, PANEL, Right, Sizes, Tail, padded_rows, product_and_tail, put};

/// Rows of a task.
const ROWS: usize = 128;
/// Panels of a task, at most and (if the grid would be too coarse) at least.
const PANELS_MAX: usize = 12;
const PANELS_MIN: usize = 3;
/// Tasks that the grid should have at least.
const TASKS: usize = 8;
/// Elements of a weight that are turned around at a time.
const TURNED: usize = 1 << 20;
/// Panels of columns among them, at least: with fewer, the rows are packed too often.
const COLUMNS_MIN: usize = 48;

/// `y = x w^T`, and the term of low rank. Shapes: `y` [T, N], `x` [T, K], `w` [N, K].
pub(crate) fn forward(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    w: &dyn FrozenMatrix,
    low_rank: Option<LowRank<'_>>,
    write: Write,
) {
    let w = CpuMatrix::of(w);
    let (t, n) = (x.len() / w.n_cols(), w.n_rows());
    let term = low_rank.and_then(|given| Term::forward(given, t, n));
    match w {
        CpuMatrix::F32(w) => forward_as(pool, isa, y, x, w, term, write),
        CpuMatrix::Bf16(w) => forward_as(pool, isa, y, x, w, term, write),
        CpuMatrix::Blocks(w) => match w.compute() {
            Compute::F32 => forward_as::<f32, _>(pool, isa, y, x, &**w, term, write),
            Compute::Bf16 => forward_as::<u32, _>(pool, isa, y, x, &**w, term, write),
        },
    }
}

/// `dx = dy w`, and the term of low rank. Shapes: `dx` [T, K], `dy` [T, N], `w` [N, K].
pub(crate) fn backward(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    w: &dyn FrozenMatrix,
    low_rank: Option<LowRank<'_>>,
    write: Write,
) {
    let w = CpuMatrix::of(w);
    let (t, k) = (dy.len() / w.n_rows(), w.n_cols());
    let term = low_rank.and_then(|given| Term::backward(given, t, k));
    match w {
        CpuMatrix::F32(w) => backward_as(pool, isa, dx, dy, w, term, write),
        CpuMatrix::Bf16(w) => backward_as(pool, isa, dx, dy, w, term, write),
        CpuMatrix::Blocks(w) => match w.compute() {
            Compute::F32 => backward_as::<f32, _>(pool, isa, dx, dy, &**w, term, write),
            Compute::Bf16 => backward_as::<u32, _>(pool, isa, dx, dy, &**w, term, write),
        },
    }
}

/// Part `i` of `n` things cut into `parts` of nearly the same size.
pub(crate) fn part(i: usize, parts: usize, n: usize) -> Range<usize> {
    i * n / parts..(i + 1) * n / parts
}

fn forward_as<E: Element, W: Panels<E>>(
    pool: &Pool,
    isa: Isa,
    y: &mut [f32],
    x: &[f32],
    w: &W,
    term: Option<Term<'_>>,
    write: Write,
) {
    let (n, k) = (w.n(), w.k());
    assert!(x.len().is_multiple_of(k), "x is not [T, K]");
    let t = x.len() / k;
    assert_eq!(y.len(), t * n, "y is not [T, N]");
    if let Some(panels) = w.whole().filter(|_| t <= skinny::ROWS_MAX) {
        skinny::forward(pool, isa, y, x, skinny::Weight { panels, n, k }, term, write);
        return;
    }
    let len = w.steps() * PANEL;
    let product = Multiply {
        x: Columns { data: x, width: k, terms: 0..k },
        panels: &[],
        steps: w.steps(),
        y: Shared::new(y),
        columns: 0..0,
        width: n,
        term,
        add: write == Write::Add,
    };
    if let Some(panels) = w.whole() {
        product.over(panels, 0..w.n_panels()).run(pool, isa, t);
    } else if t <= ROWS {
        // Each panel serves one task: it is made there, and is still in the cache when it is read.
        let n_groups = w.n_panels().div_ceil(PANELS_MIN).max(TASKS.min(w.n_panels()));
        pool.run(n_groups, &|group| {
            let range = part(group, n_groups, w.n_panels());
            let mut room = Scratch::<E>::take(range.len() * len);
            for (room, p) in room.chunks_exact_mut(len).zip(range.clone()) {
                w.read(isa, room, p, 0..w.steps());
            }
            product.over(&room, range.clone()).alone(isa, 0..t, 0..range.len());
        });
    } else {
        let n_blocks = (w.n_panels() * len).div_ceil(TURNED).min(w.n_panels());
        for block in 0..n_blocks {
            let range = part(block, n_blocks, w.n_panels());
            let mut made = Scratch::<E>::take(range.len() * len);
            pool.chunks(&mut made, len, |i, room| {
                w.read(isa, room, range.start + i, 0..w.steps());
            });
            product.over(&made, range).run(pool, isa, t);
        }
    }
}

fn backward_as<E: Element, W: Panels<E>>(
    pool: &Pool,
    isa: Isa,
    dx: &mut [f32],
    dy: &[f32],
    w: &W,
    term: Option<Term<'_>>,
    write: Write,
) {
    let (n, k) = (w.n(), w.k());
    assert!(dy.len().is_multiple_of(n), "dy is not [T, N]");
    let t = dy.len() / n;
    assert_eq!(dx.len(), t * k, "dx is not [T, K]");
    // A panel of the weight becomes this many elements in each panel of columns.
    let piece = PANEL / E::TERMS * PANEL;
    let n_columns = k.div_ceil(PANEL);
    // The result is gone through once for each block of the sum: columns are divided first.
    let columns_max = (TURNED / (w.n_panels() * piece)).max(COLUMNS_MIN);
    let n_ranges = n_columns.div_ceil(columns_max);
    let per_range = w.n_panels() * piece * n_columns.div_ceil(n_ranges);
    let n_blocks = per_range.div_ceil(TURNED).min(w.n_panels());
    for (range, block) in (0..n_ranges).flat_map(|range| (0..n_blocks).map(move |b| (range, b))) {
        let columns = part(range, n_ranges, n_columns);
        let panels = part(block, n_blocks, w.n_panels());
        let per_column = panels.len() * piece;
        let first_step = columns.start * PANEL / E::TERMS;
        let steps = first_step..(columns.end * PANEL / E::TERMS).min(w.steps());
        let room_len = if w.whole().is_some() { 0 } else { steps.len() * PANEL };
        let mut turned = Scratch::<E>::take(columns.len() * per_column);
        let pieces = Shared::new(&mut turned);
        pool.run(panels.len(), &|i| {
            let mut room = Scratch::<E>::take(room_len);
            let panel = w.read(isa, &mut room, panels.start + i, steps.clone());
            let place = Turned { to: pieces, per_column, first: i * piece };
            turn_whole(isa, panel, place, columns.len());
        });
        let terms = panels.start * PANEL..(panels.end * PANEL).min(n);
        Multiply {
            x: Columns { data: dy, width: n, terms },
            panels: &turned,
            steps: per_column / PANEL,
            y: Shared::new(dx),
            columns: columns.start * PANEL..(columns.end * PANEL).min(k),
            width: k,
            term: term.filter(|_| block + 1 == n_blocks),
            add: block > 0 || write == Write::Add,
        }
        .run(pool, isa, t);
    }
}

/// Where a panel's pieces belong: at `first` in each panel of columns.
#[derive(Clone, Copy)]
struct Turned<'a, E> {
    to: Shared<'a, E>,
    per_column: usize,
    first: usize,
}

/// Turns all columns of a panel around.
fn turn_whole<E: Element>(isa: Isa, panel: &[E], place: Turned<'_, E>, n_columns: usize) {
    let piece = PANEL / E::TERMS * PANEL;
    on_isa!(isa, s => for q in 0..n_columns {
        let at = q * place.per_column + place.first;
        // SAFETY: this piece of each panel of columns is the task's alone.
        turn(s, unsafe { place.to.slice(at..at + piece) }, panel, q);
    });
}

/// Some columns of a row-major matrix.
#[derive(Clone)]
struct Columns<'a> {
    data: &'a [f32],
    width: usize,
    terms: Range<usize>,
}

/// `y = x panels`, the product of both directions.
struct Multiply<'a, E> {
    x: Columns<'a>,
    /// [panel][steps, PANEL]
    panels: &'a [E],
    steps: usize,
    y: Shared<'a, f32>,
    /// Columns of y that are formed.
    columns: Range<usize>,
    /// Columns of y.
    width: usize,
    term: Option<Term<'a>>,
    add: bool,
}

impl<E: Element> Multiply<'_, E> {
    /// The part of the product that some panels give, which are numbers `range` of the weight.
    fn over<'b>(&'b self, panels: &'b [E], range: Range<usize>) -> Multiply<'b, E> {
        let columns = range.start * PANEL..(range.end * PANEL).min(self.width);
        Multiply { x: self.x.clone(), panels, columns, y: self.y, ..*self }
    }

    fn run(&self, pool: &Pool, isa: Isa, n_rows: usize) {
        let n_panels = self.columns.len().div_ceil(PANEL);
        let n_chunks = n_rows.div_ceil(ROWS);
        let n_groups = TASKS
            .div_ceil(n_chunks.max(1))
            .min(n_panels.div_ceil(PANELS_MIN))
            .max(n_panels.div_ceil(PANELS_MAX));
        pool.run(n_chunks * n_groups, &|task| {
            let rows = part(task % n_chunks, n_chunks, n_rows);
            let panels = part(task / n_chunks, n_groups, n_panels);
            self.alone(isa, rows, panels);
        });
    }

    /// Some rows and panels, on one thread.
    fn alone(&self, isa: Isa, rows: Range<usize>, panels: Range<usize>) {
        on_isa!(isa, s => self.task(s, rows, panels));
    }

    #[inline(always)]
    fn task<S: Simd>(&self, s: S, rows: Range<usize>, panels: Range<usize>) {
        let Columns { data, width: x_width, ref terms } = self.x;
        let x = &data[rows.start * x_width..rows.end * x_width];
        let n_steps = terms.len().div_ceil(E::TERMS);
        let n_blocks = n_steps.div_ceil(E::STEPS_MAX);
        let term = self.term.map(|term| (term, term.rows(s, rows.clone())));
        for block in 0..n_blocks {
            let steps = part(block, n_blocks, n_steps);
            let columns = terms.start + steps.start * E::TERMS
                ..(terms.start + steps.end * E::TERMS).min(terms.end);
            let packed = PackedRows::<E>::new(s, x, x_width, columns);
            let add = block > 0 || self.add;
            let term = term.as_ref().filter(|_| block + 1 == n_blocks);
            for p in panels.clone() {
                let columns = (self.columns.len() - p * PANEL).min(PANEL);
                let first_column = self.columns.start + p * PANEL;
                let term = term.map(|(term, rows)| {
                    (rows, term.columns(s, first_column..first_column + columns))
                });
                let tail = term.as_ref().map_or(Tail::NONE, |(rows, v)| v.tail(rows, 0));
                let first = p * self.steps;
                let b = &self.panels[(first + steps.start) * PANEL..(first + steps.end) * PANEL];
                packed.multiply_and_tail(
                    s,
                    b,
                    columns,
                    tail,
                    #[inline(always)]
                    |row, column, sum, width| {
                        let at = (rows.start + row) * self.width + first_column + column;
                        // SAFETY: these rows and panels of y are this task's alone, and the
                        // slice ends with this call.
                        put(s, unsafe { self.y.slice(at..at + width) }, sum, add);
                    },
                );
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
    pub(crate) fn new<S: Simd>(s: S, x: &[f32], width: usize, columns: Range<usize>) -> Self {
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

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows with those that only pad.
    pub(crate) fn padded_rows(&self) -> usize {
        self.data.len() / self.stride
    }

    /// Elements from a row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Row `row` and all that follow.
    pub(crate) fn rows_from(&self, row: usize) -> &[E] {
        &self.data[row * self.stride..]
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
        sink: impl FnMut(usize, usize, S::V, usize),
    ) {
        self.multiply_and_tail(s, panel, columns, Tail::NONE, sink);
    }

    /// As [`PackedRows::multiply`], with more terms at the end.
    #[inline(always)]
    fn multiply_and_tail<S: Simd>(
        &self,
        s: S,
        panel: &[E],
        columns: usize,
        tail: Tail<'_>,
        mut sink: impl FnMut(usize, usize, S::V, usize),
    ) {
        let sizes = Sizes { rows: self.padded_rows(), columns, steps: self.steps };
        let a = Left { data: &self.data, row_stride: self.stride, step_stride: 1 };
        let b = Right { data: panel, step_stride: PANEL };
        product_and_tail(
            s,
            sizes,
            a,
            b,
            tail,
            #[inline(always)]
            |row, column, sum, width| {
                if row < self.rows {
                    sink(row, column, sum, width);
                }
            },
        );
    }
}
