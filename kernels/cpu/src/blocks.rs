//! Frozen weights that stay in blocks; a product unpacks panels of them as it goes.
//!
//! Codes lie as the panels that they become ([`frozen`](crate::frozen)): for each pair of columns,
//! the codes of [`PANEL`] rows side by side, so that a panel is unpacked vector by vector without
//! moving anything across lanes. Two four-bit codes of neighboring columns share a byte.
//!
//! Unpacking forms each weight as [`BlockFormat`] says, with the same roundings, and rounds it as
//! freezing does: a product gives the same bits as with the weight frozen densely. It costs a
//! fraction of a cycle a weight, against 16 cycles for the product of 1,024 rows in float32
//! (8 in bfloat16).

mod apart;

use std::ops::Range;

use forgelm_kernels_api::{
    BlockFormat, BlockRows, Codes, Compute, Factor, FactorRows, Factors, Rounding, RowSource,
};

use crate::frozen::Panels;
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd, bf16_bits};
use crate::tile::{Element, PANEL};

/// A quantized weight.
pub(crate) struct PackedBlocks {
    n: usize,
    k: usize,
    compute: Compute,
    format: BlockFormat,
    /// Four bits: [panel][K / 2][PANEL], the earlier column in the lower half. Bytes:
    /// [panel][K][PANEL].
    codes: Vec<u8>,
    scale: FactorPanels,
    min: Option<FactorPanels>,
    /// Whether rounding to bfloat16 takes denormal numbers for zero.
    flush: bool,
}

/// Scales or mins. Shapes: [panel][G][PANEL].
enum FactorPanels {
    Plain(Vec<f32>),
    /// Numbers that are all exact in half precision, as those of a file are.
    Half(Vec<u16>),
    Nested {
        bytes: Vec<u8>,
        outer: Vec<f32>,
    },
}

/// What one panel's rows give.
struct PanelRows {
    codes: Vec<u8>,
    scale: FactorRows,
    min: Option<FactorRows>,
}

impl PackedBlocks {
    /// `None` if the source has no blocks, or an odd number of columns.
    pub(crate) fn pack(
        pool: &Pool,
        isa: Isa,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Self> {
        let blocks = source.blocks()?;
        let format = blocks.format().clone();
        let (n, k) = (source.n_rows(), source.n_cols());
        let pairs = k.is_multiple_of(2) && format.group_len.is_multiple_of(2);
        if !pairs || !k.is_multiple_of(format.group_len) {
            return None;
        }
        let per_panel = match format.codes {
            Codes::Four { .. } => k / 2 * PANEL,
            Codes::Eight => k * PANEL,
        };
        let n_panels = n.div_ceil(PANEL);
        let n_groups = format.n_groups(k);
        let mut codes = vec![0_u8; n_panels * per_panel];
        let mut factors: Vec<Option<(FactorRows, Option<FactorRows>)>> = Vec::new();
        factors.resize_with(n_panels, || None);
        pool.chunks2(&mut factors, 1, &mut codes, per_panel, |p, factors, codes| {
            let rows = p * PANEL..((p + 1) * PANEL).min(n);
            let read = panel_rows(&format, rows.len(), k, blocks.read_blocks(rows.clone()));
            codes.copy_from_slice(&read.codes);
            factors[0] = Some((read.scale, read.min));
        });
        let (mut scales, mut mins) = (Vec::new(), Vec::new());
        for (scale, min) in factors.into_iter().flatten() {
            scales.push(scale);
            mins.extend(min);
        }
        debug_assert_eq!(scales.len(), n_panels, "every panel was read");
        let len = n_groups * PANEL;
        let scale = FactorPanels::new(scales, len, blocks.outer(Factor::Scale));
        let min =
            (!mins.is_empty()).then(|| FactorPanels::new(mins, len, blocks.outer(Factor::Min)));
        Some(Self { n, k, compute, format, codes, scale, min, flush: isa.flushes_denormals() })
    }

    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let factors = self.scale.n_bytes() + self.min.as_ref().map_or(0, FactorPanels::n_bytes);
        self.codes.len() + factors
    }

    /// Shapes: `out` [n, K] written.
    pub(crate) fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.k), "out is not whole rows");
        assert!(first_row + out.len() / self.k <= self.n, "rows past the last one");
        for (i, out) in out.chunks_exact_mut(self.k).enumerate() {
            self.read_row(first_row + i, out);
        }
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let (p, lane) = (row / PANEL, row % PANEL);
        let n_groups = self.k / self.format.group_len;
        for (g, out) in out.chunks_exact_mut(self.format.group_len).enumerate() {
            let place = Place { p, g, n_groups };
            let scale = self.scale.one(&self.format.scale, place, lane);
            let min = self.min.as_ref().zip(self.format.min.as_ref());
            let min = min.map(|(min, format)| min.one(format, place, lane));
            for (j, out) in out.iter_mut().enumerate() {
                let column = g * self.format.group_len + j;
                let w = self.format.value(self.code(p, column, lane)) * scale;
                *out = self.rounded(min.map_or(w, |min| w + min));
            }
        }
    }

    fn code(&self, p: usize, column: usize, lane: usize) -> u8 {
        match self.format.codes {
            Codes::Four { .. } => {
                let byte = self.codes[(p * self.k / 2 + column / 2) * PANEL + lane];
                if column.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
            }
            Codes::Eight => self.codes[(p * self.k + column) * PANEL + lane],
        }
    }

    fn rounded(&self, w: f32) -> f32 {
        let w = match self.format.rounding {
            Rounding::Exact => w,
            Rounding::F16 => half::f16::from_f32(w).to_f32(),
            Rounding::Bf16 => f32::from_bits(bf16_bits(w) << 16),
        };
        match self.compute {
            Compute::F32 => w,
            Compute::Bf16 if self.flush && w.is_subnormal() => 0.0_f32.copysign(w),
            Compute::Bf16 => f32::from_bits(bf16_bits(w) << 16),
        }
    }

    /// Unpacks columns of a panel, which begin and end with even numbers. Shapes: `to`
    /// [steps, PANEL] written.
    #[inline(always)]
    fn unpack<S: Simd, E: Element>(&self, s: S, to: &mut [E], p: usize, columns: Range<usize>) {
        let group_len = self.format.group_len;
        let n_groups = self.k / group_len;
        assert_eq!(to.len(), columns.len() / E::TERMS * PANEL, "to is not [steps, PANEL]");
        let mut scales = [0.0; PANEL];
        let mut mins = [0.0; PANEL];
        for g in columns.start / group_len..columns.end.div_ceil(group_len) {
            let first = (g * group_len).max(columns.start);
            let end = ((g + 1) * group_len).min(columns.end);
            let place = Place { p, g, n_groups };
            self.scale.read(&self.format.scale, place, &mut scales);
            if let (Some(min), Some(format)) = (&self.min, &self.format.min) {
                min.read(format, place, &mut mins);
            }
            let factors = (&scales, self.min.is_some().then_some(&mins));
            let at = |column: usize| (column - columns.start) / E::TERMS * PANEL;
            let to = &mut to[at(first)..at(end)];
            match &self.format.codes {
                Codes::Four { values } => {
                    let at = |column: usize| (p * self.k + column) / 2 * PANEL;
                    let codes = &self.codes[at(first)..at(end)];
                    self.unpack_group::<S, E, PANEL>(s, to, codes, factors, |codes| {
                        s.look_up(values, codes)
                    });
                }
                Codes::Eight => {
                    let at = |column: usize| (p * self.k + column) * PANEL;
                    let codes = &self.codes[at(first)..at(end)];
                    self.unpack_group::<S, E, { 2 * PANEL }>(s, to, codes, factors, |codes| {
                        (s.integers(codes), s.integers(&codes[PANEL..]))
                    });
                }
            }
        }
    }

    /// Two columns at a time, whose codes take `PER_PAIR` bytes.
    #[inline(always)]
    fn unpack_group<S: Simd, E: Element, const PER_PAIR: usize>(
        &self,
        s: S,
        to: &mut [E],
        codes: &[u8],
        (scales, mins): (&[f32; PANEL], Option<&[f32; PANEL]>),
        values: impl Fn(&[u8]) -> (S::V, S::V),
    ) {
        let pairs = to.chunks_exact_mut(2 / E::TERMS * PANEL);
        for (to, codes) in pairs.zip(codes.chunks_exact(PER_PAIR)) {
            for lane in (0..PANEL).step_by(S::LANES) {
                let scale = s.load(&scales[lane..]);
                let (a, b) = values(&codes[lane..]);
                let (mut a, mut b) = (s.mul(a, scale), s.mul(b, scale));
                if let Some(mins) = mins {
                    let min = s.load(&mins[lane..]);
                    (a, b) = (s.add(a, min), s.add(b, min));
                }
                (a, b) = match self.format.rounding {
                    Rounding::Exact => (a, b),
                    Rounding::F16 => (s.round_to_f16(a), s.round_to_f16(b)),
                    Rounding::Bf16 => (s.round_to_bf16(a), s.round_to_bf16(b)),
                };
                E::store_two(s, &mut to[lane..], a, b);
            }
        }
    }
}

/// For packing it densely after all. Rows are rounded already, which a second rounding keeps.
impl RowSource for PackedBlocks {
    fn n_rows(&self) -> usize {
        self.n
    }

    fn n_cols(&self) -> usize {
        self.k
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        Self::read_rows(self, first_row, out);
    }
}

impl<E: Element> Panels<E> for PackedBlocks {
    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    fn steps(&self) -> usize {
        self.k / E::TERMS
    }

    fn whole(&self) -> Option<&[E]> {
        None
    }

    fn read<'a>(&'a self, isa: Isa, room: &'a mut [E], p: usize, steps: Range<usize>) -> &'a [E] {
        let columns = steps.start * E::TERMS..steps.end * E::TERMS;
        on_isa!(isa, s => self.unpack(s, room, p, columns));
        room
    }
}

/// A group in a panel.
#[derive(Clone, Copy)]
struct Place {
    p: usize,
    g: usize,
    n_groups: usize,
}

impl Place {
    fn first(self) -> usize {
        (self.p * self.n_groups + self.g) * PANEL
    }

    /// Number of the group in the whole matrix, for one of the panel's rows.
    fn group(self, lane: usize) -> usize {
        (self.p * PANEL + lane) * self.n_groups + self.g
    }
}

impl FactorPanels {
    /// Shapes: `panels` each [G, PANEL], which is `len`.
    fn new(panels: Vec<FactorRows>, len: usize, outer: Vec<f32>) -> Self {
        let (mut plain, mut bytes) = (Vec::new(), Vec::new());
        for panel in panels {
            match panel {
                FactorRows::Plain(factors) => plain.extend(factors),
                FactorRows::Nested(nested) => bytes.extend(nested),
            }
        }
        debug_assert!(plain.len().max(bytes.len()).is_multiple_of(len), "whole panels");
        if !bytes.is_empty() {
            return Self::Nested { bytes, outer };
        }
        let exact =
            |v: f32| v.is_finite() && half::f16::from_f32(v).to_f32().to_bits() == v.to_bits();
        if plain.iter().all(|&v| exact(v)) {
            return Self::Half(plain.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect());
        }
        Self::Plain(plain)
    }

    fn n_bytes(&self) -> usize {
        match self {
            Self::Plain(factors) => size_of_val(factors.as_slice()),
            Self::Half(factors) => size_of_val(factors.as_slice()),
            Self::Nested { bytes, outer } => bytes.len() + size_of_val(outer.as_slice()),
        }
    }

    fn one(&self, format: &Factors, place: Place, lane: usize) -> f32 {
        let at = place.first() + lane;
        match self {
            Self::Plain(factors) => factors[at],
            Self::Half(factors) => widened(factors[at]),
            Self::Nested { bytes, outer } => format.nested(bytes[at], outer, place.group(lane)),
        }
    }

    /// The factors of a group of every row of a panel; rows past the last one get anything finite.
    #[inline(always)]
    fn read(&self, format: &Factors, place: Place, to: &mut [f32; PANEL]) {
        let range = place.first()..place.first() + PANEL;
        match self {
            Self::Plain(factors) => to.copy_from_slice(&factors[range]),
            Self::Half(factors) => {
                for (to, &bits) in to.iter_mut().zip(&factors[range]) {
                    *to = widened(bits);
                }
            }
            Self::Nested { bytes, outer } => {
                let Factors::Nested { values, outer_len, offset } = format else {
                    unreachable!("nested factors have a nested format")
                };
                let mut next = Outer::new(place, *outer_len);
                let last = outer.len() - 1;
                for (to, &byte) in to.iter_mut().zip(&bytes[range]) {
                    *to = values[usize::from(byte)] * outer[next.take().min(last)];
                }
                if let Some(offset) = offset {
                    to.iter_mut().for_each(|to| *to += offset);
                }
            }
        }
    }
}

/// `group(lane) / outer_len` for one lane after the other, without a division each.
struct Outer {
    index: usize,
    rest: usize,
    outer_len: usize,
    step: (usize, usize),
}

impl Outer {
    fn new(place: Place, outer_len: usize) -> Self {
        let first = place.group(0);
        let step = (place.n_groups / outer_len, place.n_groups % outer_len);
        Self { index: first / outer_len, rest: first % outer_len, outer_len, step }
    }

    #[inline(always)]
    fn take(&mut self) -> usize {
        let index = self.index;
        self.index += self.step.0;
        self.rest += self.step.1;
        if self.rest >= self.outer_len {
            self.rest -= self.outer_len;
            self.index += 1;
        }
        index
    }
}

/// Half precision to single, for finite numbers: exponent and fraction moved into place, then
/// scaled by 2^112, which is exact and gets denormal numbers right.
#[inline(always)]
fn widened(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let size = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(size.to_bits() | sign)
}

/// Rows of a panel, turned so that the rows of each column lie side by side.
fn panel_rows(format: &BlockFormat, n_rows: usize, k: usize, read: BlockRows) -> PanelRows {
    let n_groups = format.n_groups(k);
    assert_eq!(read.codes.len(), n_rows * k, "codes is not [n, K]");
    let wide = turned(&read.codes, k);
    let codes = match format.codes {
        Codes::Eight => wide,
        Codes::Four { .. } => wide
            .chunks_exact(2 * PANEL)
            .flat_map(|pair| {
                let (a, b) = pair.split_at(PANEL);
                a.iter().zip(b).map(|(a, b)| a & 15 | b << 4)
            })
            .collect(),
    };
    let factors = |rows: FactorRows| match rows {
        FactorRows::Plain(factors) => {
            assert_eq!(factors.len(), n_rows * n_groups, "factors is not [n, G]");
            FactorRows::Plain(turned(&factors, n_groups))
        }
        FactorRows::Nested(bytes) => {
            assert_eq!(bytes.len(), n_rows * n_groups, "factors is not [n, G]");
            FactorRows::Nested(turned(&bytes, n_groups))
        }
    };
    PanelRows { codes, scale: factors(read.scale), min: read.min.map(factors) }
}

/// Shapes: `rows` [n, width] to [width, PANEL]; lanes without a row are 0.
fn turned<T: Copy + Default>(rows: &[T], width: usize) -> Vec<T> {
    let mut to = vec![T::default(); width * PANEL];
    for (lane, row) in rows.chunks_exact(width).enumerate() {
        for (to, &x) in to.chunks_exact_mut(PANEL).zip(row) {
            to[lane] = x;
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::widened;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        let mut n = 0;
        for bits in 0..=u16::MAX {
            let half = half::f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widened(bits).to_bits(), half.to_f32().to_bits(), "{bits:#x}");
                n += 1;
            }
        }
        assert_eq!(n, 2 * 31 * 1024);
    }
}
