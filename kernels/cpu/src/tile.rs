//! The product of a few rows and a panel of columns, in registers: every GEMM here ends in it.
//!
//! The left factor is read one number at a time (broadcast), with any strides; the right one a
//! vector at a time. With 8 rows and 3 vectors of AVX-512, 24 accumulators hide the latency of
//! `vfmadd` and `vdpbf16ps`, and 11 loads feed 24 products.

use crate::scratch::Bits;
use crate::simd::Simd;

/// Columns of a packed panel: a whole number of tiles on every instruction set.
pub(crate) const PANEL: usize = 48;

/// Vectors in a row of a tile.
const VECTORS: usize = 3;

/// Steps ahead that the right factor is fetched into the nearest cache.
const PREFETCH: usize = 8;

/// What a packed factor consists of: an `f32`, or two bfloat16 in a `u32`.
pub(crate) trait Element: Bits + Send + Sync {
    type Vector<S: Simd>: Copy;

    /// Terms of a sum that one element carries.
    const TERMS: usize;
    const ZERO: Self;
    /// Steps of a product that are packed and multiplied at a time: rows of the left factor stay
    /// in the second-level cache.
    const STEPS_MAX: usize;

    /// # Safety
    /// A vector of elements can be read at `from`.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> Self::Vector<S>;
    fn splat<S: Simd>(s: S, x: Self) -> Self::Vector<S>;
    /// `acc + a * b`.
    fn step<S: Simd>(s: S, acc: S::V, a: Self::Vector<S>, b: Self::Vector<S>) -> S::V;
    /// Shapes: `x` [K] read, `to` [ceil(K / TERMS)] written.
    fn pack<S: Simd>(s: S, to: &mut [Self], x: &[f32]);
    /// As [`Element::pack`], into the front of the same memory.
    fn pack_in_place<S: Simd>(s: S, x: &mut [f32]);
    /// Element `i` gets number `i` of each of [`Element::TERMS`] rows as its terms; a row that is
    /// not given is zero. Shapes: all [N].
    fn join<S: Simd>(s: S, to: &mut [Self], first: &[f32], second: Option<&[f32]>);
    /// Term `i` of element; `i < TERMS`.
    fn term(self, i: usize) -> f32;
    /// Two neighboring terms of a vector of rows, rounded as `pack` does, to their place in a
    /// panel. Shapes: `to` begins at the first row's element of the first term.
    fn store_two<S: Simd>(s: S, to: &mut [Self], first: S::V, second: S::V);
}

impl Element for f32 {
    type Vector<S: Simd> = S::V;

    const TERMS: usize = 1;
    const ZERO: Self = 0.0;
    const STEPS_MAX: usize = 576;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f32) -> S::V {
        // SAFETY: the caller promises a vector at `from`.
        unsafe { s.load_at(from) }
    }

    #[inline(always)]
    fn splat<S: Simd>(s: S, x: f32) -> S::V {
        s.splat(x)
    }

    #[inline(always)]
    fn step<S: Simd>(s: S, acc: S::V, a: S::V, b: S::V) -> S::V {
        s.mul_add(a, b, acc)
    }

    #[inline(always)]
    fn pack<S: Simd>(_: S, to: &mut [f32], x: &[f32]) {
        to.copy_from_slice(x);
    }

    #[inline(always)]
    fn pack_in_place<S: Simd>(_: S, _: &mut [f32]) {}

    #[inline(always)]
    fn join<S: Simd>(_: S, to: &mut [f32], first: &[f32], _: Option<&[f32]>) {
        to.copy_from_slice(first);
    }

    #[inline(always)]
    fn term(self, _: usize) -> f32 {
        self
    }

    #[inline(always)]
    fn store_two<S: Simd>(s: S, to: &mut [f32], first: S::V, second: S::V) {
        s.store(to, first);
        s.store(&mut to[PANEL..], second);
    }
}

impl Element for u32 {
    type Vector<S: Simd> = S::P;

    const TERMS: usize = 2;
    const ZERO: Self = 0;
    const STEPS_MAX: usize = 384;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u32) -> S::P {
        // SAFETY: the caller promises a vector at `from`.
        unsafe { s.load_pairs_at(from) }
    }

    #[inline(always)]
    fn splat<S: Simd>(s: S, x: u32) -> S::P {
        s.splat_pair(x)
    }

    #[inline(always)]
    fn step<S: Simd>(s: S, acc: S::V, a: S::P, b: S::P) -> S::V {
        s.dot_pairs(acc, a, b)
    }

    #[inline(always)]
    fn pack<S: Simd>(s: S, to: &mut [u32], x: &[f32]) {
        s.pack_pairs(to, x);
    }

    #[inline(always)]
    fn pack_in_place<S: Simd>(s: S, x: &mut [f32]) {
        s.pack_pairs_in_place(f32::bits_mut(x));
    }

    #[inline(always)]
    fn join<S: Simd>(s: S, to: &mut [u32], first: &[f32], second: Option<&[f32]>) {
        s.join_pairs(to, first, second);
    }

    #[inline(always)]
    fn term(self, i: usize) -> f32 {
        f32::from_bits(if i == 0 { self << 16 } else { self & 0xffff_0000 })
    }

    #[inline(always)]
    fn store_two<S: Simd>(s: S, to: &mut [u32], first: S::V, second: S::V) {
        s.store_pairs(to, first, second);
    }
}

/// The left factor: element (row, step) is `data[row * row_stride + step * step_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, E> {
    pub data: &'a [E],
    pub row_stride: usize,
    pub step_stride: usize,
}

/// The right factor: element (step, column) is `data[step * step_stride + column]`. Whole vectors
/// are read, so a row is readable up to the next multiple of the vector's length.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, E> {
    pub data: &'a [E],
    pub step_stride: usize,
}

/// Sizes of one product.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub columns: usize,
    pub steps: usize,
}

/// More terms of a product's sums, of f32 whatever its elements are. Rows and columns are those of
/// the product.
#[derive(Clone, Copy)]
pub(crate) struct Tail<'a> {
    pub a: Left<'a, f32>,
    pub b: Right<'a, f32>,
    pub steps: usize,
}

impl Tail<'_> {
    /// No terms.
    pub(crate) const NONE: Self = Self {
        a: Left { data: &[], row_stride: 0, step_stride: 0 },
        b: Right { data: &[], step_stride: 0 },
        steps: 0,
    };
}

/// Multiplies, and hands over the result vector by vector: `sink(row, column, sums, width)`, where
/// the first `width` lanes count.
///
/// Numerics: each sum is formed in one accumulator, in the order of the steps.
#[inline(always)]
pub(crate) fn product<S: Simd, E: Element>(
    s: S,
    sizes: Sizes,
    a: Left<'_, E>,
    b: Right<'_, E>,
    sink: impl FnMut(usize, usize, S::V, usize),
) {
    strips(s, sizes, a, b, Tail::NONE, sink);
}

/// As [`product`], with the tail's terms added to the same accumulators after the others.
///
/// Two copies of the code: with a second loop that may have nothing to do, all products were about
/// 3 % slower.
#[inline(always)]
pub(crate) fn product_and_tail<S: Simd, E: Element>(
    s: S,
    sizes: Sizes,
    a: Left<'_, E>,
    b: Right<'_, E>,
    tail: Tail<'_>,
    sink: impl FnMut(usize, usize, S::V, usize),
) {
    if tail.steps == 0 {
        strips(s, sizes, a, b, Tail::NONE, sink);
    } else {
        strips(s, sizes, a, b, tail, sink);
    }
}

#[inline(always)]
fn strips<S: Simd, E: Element>(
    s: S,
    sizes: Sizes,
    a: Left<'_, E>,
    b: Right<'_, E>,
    tail: Tail<'_>,
    mut sink: impl FnMut(usize, usize, S::V, usize),
) {
    let mut column = 0;
    while column < sizes.columns {
        let width = (sizes.columns - column).min(VECTORS * S::LANES);
        let b = b.from(column);
        let tail = Tail { b: tail.b.from(column), ..tail };
        let Sizes { rows, steps, .. } = sizes;
        let strip = Strip { s, rows, steps, column, width };
        match width.div_ceil(S::LANES) {
            1 => strip.multiply::<E, 1>(a, b, tail, &mut sink),
            2 => strip.multiply::<E, 2>(a, b, tail, &mut sink),
            _ => strip.multiply::<E, 3>(a, b, tail, &mut sink),
        }
        column += width;
    }
}

impl<E> Left<'_, E> {
    /// Rows from `row` on.
    #[inline(always)]
    pub(crate) fn from(self, row: usize) -> Self {
        Self { data: from(self.data, row * self.row_stride), ..self }
    }
}

impl<E> Right<'_, E> {
    /// Columns from `column` on.
    #[inline(always)]
    fn from(self, column: usize) -> Self {
        Self { data: from(self.data, column), ..self }
    }
}

/// What follows an index; nothing past the end, where a product without steps may point.
#[inline(always)]
fn from<E>(data: &[E], index: usize) -> &[E] {
    &data[index.min(data.len())..]
}

/// Rows for which [`product`] uses whole tiles.
#[inline(always)]
pub(crate) fn padded_rows<S: Simd>(rows: usize) -> usize {
    if rows <= 1 { rows } else { rows.next_multiple_of(S::ROWS.min(4)) }
}

/// Up to three vectors of columns under all rows.
#[derive(Clone, Copy)]
struct Strip<S> {
    s: S,
    rows: usize,
    steps: usize,
    column: usize,
    width: usize,
}

impl<S: Simd> Strip<S> {
    #[inline(always)]
    fn multiply<E: Element, const NV: usize>(
        self,
        a: Left<'_, E>,
        b: Right<'_, E>,
        tail: Tail<'_>,
        sink: &mut impl FnMut(usize, usize, S::V, usize),
    ) {
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            if S::ROWS >= 8 && left >= 8 {
                self.tile::<E, 8, NV>(row, a, b, tail, sink);
                row += 8;
            } else if S::ROWS >= 4 && left >= 4 {
                self.tile::<E, 4, NV>(row, a, b, tail, sink);
                row += 4;
            } else if S::ROWS == 2 && left >= 2 {
                self.tile::<E, 2, NV>(row, a, b, tail, sink);
                row += 2;
            } else {
                self.tile::<E, 1, NV>(row, a, b, tail, sink);
                row += 1;
            }
        }
    }

    #[expect(
        clippy::needless_range_loop,
        reason = "iterators over arrays of vectors copy them through memory: 1000 cycles a tile"
    )]
    #[inline(always)]
    fn tile<E: Element, const MR: usize, const NV: usize>(
        self,
        row: usize,
        a: Left<'_, E>,
        b: Right<'_, E>,
        tail: Tail<'_>,
        sink: &mut impl FnMut(usize, usize, S::V, usize),
    ) {
        let sums = [[self.s.splat(0.0); NV]; MR];
        let sums = accumulate::<S, E, MR, NV>(self.s, sums, self.steps, a.from(row), b);
        let Tail { a, b, steps } = tail;
        let sums = accumulate::<S, f32, MR, NV>(self.s, sums, steps, a.from(row), b);
        for i in 0..MR {
            for j in 0..NV {
                let skip = j * S::LANES;
                let width = (self.width - skip).min(S::LANES);
                sink(row + i, self.column + skip, sums[i][j], width);
            }
        }
    }
}

/// `sums` with all steps added.
#[inline(always)]
pub(crate) fn accumulate<S: Simd, E: Element, const MR: usize, const NV: usize>(
    s: S,
    mut sums: [[S::V; NV]; MR],
    steps: usize,
    a: Left<'_, E>,
    b: Right<'_, E>,
) -> [[S::V; NV]; MR] {
    if steps == 0 {
        return sums;
    }
    let last = steps - 1;
    assert!(
        (MR - 1) * a.row_stride + last * a.step_stride < a.data.len(),
        "the left factor is too short"
    );
    assert!(last * b.step_stride + NV * S::LANES <= b.data.len(), "the right factor is too short");
    let (mut a_step, mut b_step) = (a.data.as_ptr(), b.data.as_ptr());
    for _ in 0..steps {
        s.prefetch(b_step.wrapping_add(PREFETCH * b.step_stride));
        let mut columns = [E::splat(s, E::ZERO); NV];
        for (j, column) in columns.iter_mut().enumerate() {
            // SAFETY: step `last` was checked to have NV vectors inside `b`, and steps before it
            // lie lower.
            *column = unsafe { E::load(s, b_step.add(j * S::LANES)) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row MR - 1 at step `last` was checked to lie inside `a`; all others lie
            // lower.
            let x = E::splat(s, unsafe { *a_step.add(i * a.row_stride) });
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = E::step(s, *sum, x, column);
            }
        }
        a_step = a_step.wrapping_add(a.step_stride);
        b_step = b_step.wrapping_add(b.step_stride);
    }
    sums
}

/// Stores or adds one vector. Shapes: `y` [width], at most a vector.
#[inline(always)]
pub(crate) fn put<S: Simd>(s: S, y: &mut [f32], v: S::V, add: bool) {
    if y.len() == S::LANES {
        let v = if add { s.add(s.load(y), v) } else { v };
        s.store(y, v);
    } else {
        let v = if add { s.add(s.load_part(y), v) } else { v };
        s.store_part(y, v);
    }
}
