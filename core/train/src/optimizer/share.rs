//! An optimizer whose state lies in parts with the processes of a run.

use super::moments::{Moments, Stored8bit, Values, ValuesMut};
use super::{Optimizer, Unit};
use forgelm_kernels_api::{Blocks8bit, Buffer, Number};
use std::ops::Range;

/// Elements between two places where moments may be cut: a block of 8-bit moments, whose largest
/// value is stored once.
const BLOCK: usize = Blocks8bit::BLOCK;

impl Moments {
    /// Where a range of the parameter's elements lies in each part. What is not one number an element
    /// is never cut.
    pub(super) fn ranges(&self, elements: &Range<usize>) -> Vec<Range<usize>> {
        match self {
            Self::Both { .. } => vec![elements.clone(); 2],
            Self::EightBit { .. } => {
                let both = [elements.clone(), blocks(elements)];
                both.iter().chain(&both).cloned().collect()
            }
            Self::Factored { rows, columns } => vec![0..rows.len(), 0..columns.len()],
            Self::Whole(v) => std::iter::once(0..v.len()).collect(),
        }
    }

    fn is_divisible(&self) -> bool {
        matches!(self, Self::Both { .. } | Self::EightBit { .. })
    }

    /// The moments of a range of elements, on the host. No others are copied.
    fn part(&self, elements: &Range<usize>) -> Self {
        match self {
            Self::Both { m, v } => Self::Both { m: copy(m, elements), v: copy(v, elements) },
            Self::EightBit { m, v } => {
                let part = |of: &Stored8bit| Stored8bit {
                    codes: copy(&of.codes, elements),
                    absmax: copy(&of.absmax, &blocks(elements)),
                };
                Self::EightBit { m: part(m), v: part(v) }
            }
            Self::Factored { .. } | Self::Whole(_) => self.clone(),
        }
    }
}

/// The blocks of a range of elements.
fn blocks(elements: &Range<usize>) -> Range<usize> {
    elements.start / BLOCK..elements.end.div_ceil(BLOCK)
}

fn copy<T: Number>(from: &Buffer<T>, range: &Range<usize>) -> Buffer<T> {
    from.part(range.clone()).to_host().into_owned().into()
}

impl Unit {
    /// The part of its elements that is in a range of the buffer, counted from the unit's first.
    pub(super) fn within(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let start = self.range.start.max(range.start);
        let end = self.range.end.min(range.end);
        (start < end).then(|| start - self.range.start..end - self.range.start)
    }

    /// Takes in the moments of a range of its elements, and the projection, from the first bytes.
    fn fill(&mut self, own: &Range<usize>, rest: &mut &[u8]) {
        // What a projection made small has its own length, and is never cut.
        let is_projected = self.projection.is_some();
        let ranges = self.moments.ranges(own);
        for ((_, to), range) in self.moments.parts_mut().into_iter().zip(ranges) {
            match to {
                ValuesMut::F32(to) => {
                    let range = if is_projected { 0..to.len() } else { range };
                    fill_f32(to, range, rest);
                }
                ValuesMut::U8(to) => {
                    let range = if is_projected { 0..to.len() } else { range };
                    let codes = taken(rest, range.len());
                    to.part_mut(range).copy_from_host(codes);
                }
            }
        }
        for side in self.projection.iter_mut().flat_map(|of| [&mut of.left, &mut of.right]) {
            let all = 0..side.len();
            fill_f32(side, all, rest);
        }
    }
}

/// To which side of a place a cut may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To a smaller index.
    Down,
    /// To a larger one.
    Up,
}

impl Optimizer {
    /// The nearest place on one side of `at` where the buffer may be cut: not through what must stay
    /// together, which is a matrix whose moments are factored or projected, or a block of 8-bit moments.
    /// It follows from the parameters alone.
    #[must_use]
    pub fn cut(&self, at: usize, rounding: Rounding) -> usize {
        let unit = self.units.iter().rev().find(|unit| unit.range.start <= at);
        let Some(Unit { range, projection, moments, .. }) = unit else { return 0 };
        let is_divisible = projection.is_none() && moments.is_divisible();
        let block = if is_divisible { BLOCK } else { range.len().max(1) };
        let before = (at - range.start).min(range.len());
        let before = match rounding {
            Rounding::Down => before / block * block,
            Rounding::Up => before.next_multiple_of(block),
        };
        range.start + before.min(range.len())
    }

    /// The optimizer of the parameters in some ranges, cut where [`Optimizer::cut`] allows it, in their
    /// order.
    #[must_use]
    pub fn part(&self, ranges: &[Range<usize>]) -> Self {
        let within = |range: &Range<usize>| {
            let part = |unit: &Unit| {
                let own = unit.within(range)?;
                if own.len() == unit.range.len() {
                    return Some(unit.clone());
                }
                Some(Unit {
                    name: unit.name.clone(),
                    shape: [1, own.len()],
                    range: unit.range.start + own.start..unit.range.start + own.end,
                    decays: unit.decays,
                    projection: unit.projection.clone(),
                    moments: unit.moments.part(&own),
                })
            };
            self.units.iter().filter_map(part).collect::<Vec<_>>()
        };
        let units = ranges.iter().flat_map(within).collect();
        Self { settings: self.settings.clone(), units }
    }

    /// All numbers of the state, one after the other, for [`Optimizer::fill`].
    #[must_use]
    pub fn state_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in self.parts() {
            match part.values {
                Values::F32(values) => append_f32(&mut bytes, &values),
                Values::U8(codes) => bytes.extend_from_slice(&codes),
            }
        }
        bytes
    }

    /// Takes in the state of the parameters in some ranges: what [`Optimizer::state_bytes`] of that
    /// [`Optimizer::part`] gave.
    ///
    /// # Panics
    /// If there are more or fewer bytes: a bug of the caller.
    pub fn fill(&mut self, ranges: &[Range<usize>], bytes: &[u8]) {
        let mut rest = bytes;
        for range in ranges {
            for unit in &mut self.units {
                if let Some(own) = unit.within(range) {
                    unit.fill(&own, &mut rest);
                }
            }
        }
        assert!(rest.is_empty(), "{} bytes too many of a part of an optimizer", rest.len());
    }
}

pub(super) fn append_f32(bytes: &mut Vec<u8>, values: &[f32]) {
    let start = bytes.len();
    bytes.resize(start + 4 * values.len(), 0);
    for (to, value) in bytes[start..].as_chunks_mut().0.iter_mut().zip(values) {
        *to = value.to_le_bytes();
    }
}

fn fill_f32(to: &mut Buffer, range: Range<usize>, rest: &mut &[u8]) {
    let bytes = taken(rest, 4 * range.len());
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&of| f32::from_le_bytes(of)).collect();
    to.part_mut(range).copy_from_host(&values);
}

fn taken<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, behind) = rest.split_at(n);
    *rest = behind;
    taken
}
