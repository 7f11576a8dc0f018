//! Frozen weights, packed once into panels of [`PANEL`] rows.
//!
//! A panel holds, for each step along K, one element of each of its rows: the right factor of
//! `x w^T` as [`tile`](crate::tile) reads it. There is one copy, for both directions: `dy w` turns
//! the panels around on the fly, a block at a time ([`Packed::turned`]), which costs 1 to 2 % of
//! the product it serves.
//!
//! A quantized weight may stay as it is ([`blocks`](crate::blocks)): its panels are then made when
//! a product asks for them.

use std::any::Any;
use std::io::Read;
use std::marker::PhantomData;
use std::ops::Range;

use forgelm_kernels_api::{Compute, FrozenMatrix, MatrixForm, Pieces, RowSource};

use crate::blocks::PackedBlocks;
use crate::pages::Pages;
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::simd::on_isa;
use crate::simd::{Grid, Isa, Simd};
use crate::tile::{Element, PANEL};

/// A weight of this library.
pub(crate) enum CpuMatrix {
    F32(Packed<f32>),
    Bf16(Packed<u32>),
    Blocks(Box<PackedBlocks>),
}

/// A weight as panels, packed already or made on the way.
pub(crate) trait Panels<E>: Sync {
    /// Rows.
    fn n(&self) -> usize;
    /// Columns.
    fn k(&self) -> usize;
    /// Elements along K.
    fn steps(&self) -> usize;
    /// All panels, if they are there. Shapes: [panels, steps, PANEL].
    fn whole(&self) -> Option<&[E]>;
    /// Steps of a panel, made in `room` unless they are there; they begin and end with columns that
    /// are even numbers. Shapes: [steps, PANEL] both.
    fn read<'a>(&'a self, isa: Isa, room: &'a mut [E], p: usize, steps: Range<usize>) -> &'a [E];

    fn n_panels(&self) -> usize {
        self.n().div_ceil(PANEL)
    }
}

/// A weight packed as elements `E`.
pub(crate) struct Packed<E> {
    n: usize,
    k: usize,
    /// Elements along K.
    steps: usize,
    memory: Pages,
    element: PhantomData<E>,
}

impl CpuMatrix {
    pub(crate) fn pack(pool: &Pool, isa: Isa, source: &dyn RowSource, compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self::F32(Packed::pack(pool, isa, source)),
            Compute::Bf16 => Self::Bf16(Packed::pack(pool, isa, source)),
        }
    }

    /// Keeps the blocks of a quantized source, if it has them and they fit.
    pub(crate) fn pack_blocks(
        pool: &Pool,
        isa: Isa,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Self> {
        let packed = PackedBlocks::pack(pool, isa, source, compute)?;
        Some(Self::Blocks(Box::new(packed)))
    }

    /// The matrix behind the trait object.
    pub(crate) fn of(w: &dyn FrozenMatrix) -> &Self {
        w.as_any().downcast_ref().expect("the weight was frozen by another kernel library")
    }
}

impl<E: Element> Packed<E> {
    pub(crate) fn pack(pool: &Pool, isa: Isa, source: &dyn RowSource) -> Self {
        let (n, k) = (source.n_rows(), source.n_cols());
        let steps = k.div_ceil(E::TERMS);
        let mut memory = Pages::zeroed(n.div_ceil(PANEL) * PANEL * steps);
        pool.chunks(&mut memory, steps * PANEL, |p, panel| {
            let rows = p * PANEL..((p + 1) * PANEL).min(n);
            on_isa!(isa, s => pack_panel::<_, E>(s, panel, source, rows));
        });
        Self { n, k, steps, memory, element: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    #[inline(always)]
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    #[inline(always)]
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    #[inline(always)]
    pub(crate) fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// All panels. Shapes: [panels, steps, PANEL].
    #[inline(always)]
    pub(crate) fn panels(&self) -> &[E] {
        E::view(&self.memory)
    }

    /// Shapes: [steps, PANEL].
    #[inline(always)]
    pub(crate) fn panel(&self, p: usize) -> &[E] {
        let len = self.steps * PANEL;
        E::view(&self.memory[p * len..(p + 1) * len])
    }

    /// Columns `column_panel * PANEL..` of the rows in `panels`, as the right factor of `dy w`.
    /// What lies beyond the last column is left as it was.
    ///
    /// Shapes: `to` [panels * PANEL / TERMS, PANEL] written.
    #[inline(always)]
    pub(crate) fn turned<S: Simd>(
        &self,
        s: S,
        to: &mut [E],
        panels: Range<usize>,
        column_panel: usize,
    ) {
        let per_panel = PANEL / E::TERMS * PANEL;
        assert_eq!(to.len(), panels.len() * per_panel, "to is not whole panels");
        for (to, p) in to.chunks_exact_mut(per_panel).zip(panels) {
            turn(s, to, self.panel(p), column_panel);
        }
    }

    /// Shapes: `out` [n, K] written.
    pub(crate) fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.k), "out is not whole rows");
        assert!(first_row + out.len() / self.k <= self.n, "rows past the last one");
        for (i, out) in out.chunks_exact_mut(self.k).enumerate() {
            let row = first_row + i;
            let column = self.panel(row / PANEL)[row % PANEL..].iter().step_by(PANEL);
            for (out, &element) in out.chunks_mut(E::TERMS).zip(column) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = element.term(i);
                }
            }
        }
    }
}

impl<E: Element> Panels<E> for Packed<E> {
    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    fn steps(&self) -> usize {
        self.steps
    }

    fn whole(&self) -> Option<&[E]> {
        Some(self.panels())
    }

    fn read<'a>(&'a self, _: Isa, _: &'a mut [E], p: usize, steps: Range<usize>) -> &'a [E] {
        &self.panel(p)[steps.start * PANEL..steps.end * PANEL]
    }
}

/// Columns `column_panel * PANEL..` of a panel, as the right factor of `dy w`. What lies beyond
/// the last column is left as it was.
///
/// Shapes: `to` [PANEL / TERMS, PANEL] written, `panel` [steps, PANEL] read.
#[inline(always)]
pub(crate) fn turn<S: Simd, E: Element>(s: S, to: &mut [E], panel: &[E], column_panel: usize) {
    let stride = PANEL / E::TERMS;
    let first_step = column_panel * stride;
    let rows = (panel.len() / PANEL - first_step).min(stride);
    let to = Grid { data: E::bits_mut(to), stride };
    let from = Grid { data: &E::bits(panel)[first_step * PANEL..], stride };
    if E::TERMS == 1 {
        s.transpose(to, from, rows, PANEL);
    } else {
        s.transpose_squares(to, from, rows, stride);
    }
}

/// Shapes: `panel` [steps, PANEL] written; it was zero.
#[inline(always)]
fn pack_panel<S: Simd, E: Element>(
    s: S,
    panel: &mut [u32],
    source: &dyn RowSource,
    rows: Range<usize>,
) {
    let k = source.n_cols();
    let steps = panel.len() / PANEL;
    let mut given = Scratch::<f32>::take(rows.len() * k);
    source.read_rows(rows.start, &mut given);
    let mut packed = Scratch::<E>::take(rows.len() * steps);
    for (to, x) in packed.chunks_exact_mut(steps).zip(given.chunks_exact(k)) {
        E::pack(s, to, x);
    }
    let from = Grid { data: E::bits(&packed), stride: steps };
    s.transpose(Grid { data: panel, stride: PANEL }, from, rows.len(), steps);
}

impl FrozenMatrix for CpuMatrix {
    fn n_rows(&self) -> usize {
        match self {
            Self::F32(w) => w.n,
            Self::Bf16(w) => w.n,
            Self::Blocks(w) => Panels::<f32>::n(&**w),
        }
    }

    fn n_cols(&self) -> usize {
        match self {
            Self::F32(w) => w.k,
            Self::Bf16(w) => w.k,
            Self::Blocks(w) => Panels::<f32>::k(&**w),
        }
    }

    fn n_bytes(&self) -> usize {
        match self {
            Self::F32(w) => size_of_val(&*w.memory),
            Self::Bf16(w) => size_of_val(&*w.memory),
            Self::Blocks(w) => w.n_bytes(),
        }
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        match self {
            Self::F32(w) => w.read_rows(first_row, out),
            Self::Bf16(w) => w.read_rows(first_row, out),
            Self::Blocks(w) => w.read_rows(first_row, out),
        }
    }

    fn take_apart(&self) -> (Box<dyn MatrixForm>, Vec<u8>) {
        match self {
            Self::F32(w) => (Box::new(w.form()), w.to_bytes()),
            Self::Bf16(w) => (Box::new(w.form()), w.to_bytes()),
            Self::Blocks(w) => w.take_apart(),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A [`Packed`] without its panels.
struct PackedForm<E> {
    n: usize,
    k: usize,
    steps: usize,
    /// Numbers in all panels.
    len: usize,
    element: PhantomData<E>,
}

impl<E> Packed<E> {
    fn form(&self) -> PackedForm<E> {
        let Self { n, k, steps, element, .. } = *self;
        PackedForm { n, k, steps, len: self.memory.len(), element }
    }

    fn to_bytes(&self) -> Vec<u8> {
        bytemuck::cast_slice(&self.memory).to_vec()
    }
}

impl<E: Element> MatrixForm for PackedForm<E>
where
    CpuMatrix: From<Packed<E>>,
{
    fn n_bytes(&self) -> usize {
        self.len * size_of::<u32>()
    }

    fn put_together(&self, bytes: &mut Pieces<'_>) -> Box<dyn FrozenMatrix> {
        let Self { n, k, steps, len, element } = *self;
        let mut memory = Pages::to_be_filled(len);
        read_exactly(bytes, bytemuck::cast_slice_mut(&mut memory));
        Box::new(CpuMatrix::from(Packed { n, k, steps, memory, element }))
    }
}

impl From<Packed<f32>> for CpuMatrix {
    fn from(packed: Packed<f32>) -> Self {
        Self::F32(packed)
    }
}

impl From<Packed<u32>> for CpuMatrix {
    fn from(packed: Packed<u32>) -> Self {
        Self::Bf16(packed)
    }
}

/// Fills memory with what was taken out of another process's.
pub(crate) fn read_exactly(bytes: &mut dyn Read, to: &mut [u8]) {
    bytes.read_exact(to).expect("the bytes of a whole matrix");
}
