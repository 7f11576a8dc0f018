//! An optimizer whose state lies in parts with the processes of a run.

use super::moments::{Moments, Values, ValuesMut};
use super::{Optimizer, Unit};
use forgelm_kernels_api::{Blocks8bit, Buffer};
use std::ops::Range;

/// Elements between two places where moments may be cut: a block of 8-bit moments, whose largest
/// value is stored once.
const BLOCK: usize = Blocks8bit::BLOCK;

impl Moments {
    /// Where a range of the parameter's elements lies in each part. What is not one number an element
    /// is never cut.
    pub(super) fn ranges(&self, elements: &Range<usize>) -> Vec<Range<usize>> {
        let of_blocks = || elements.start / BLOCK..elements.end.div_ceil(BLOCK);
        match self {
            Self::Both { .. } => vec![elements.clone(); 2],
            Self::EightBit { .. } => {
                vec![elements.clone(), of_blocks(), elements.clone(), of_blocks()]
            }
            Self::Factored { rows, columns } => vec![0..rows.len(), 0..columns.len()],
            Self::Whole(v) => std::iter::once(0..v.len()).collect(),
        }
    }

    fn is_divisible(&self) -> bool {
        matches!(self, Self::Both { .. } | Self::EightBit { .. })
    }

    /// The moments of a range of elements, on the host.
    fn part(&self, elements: &Range<usize>) -> Self {
        let mut part = self.clone();
        let ranges = self.ranges(elements);
        for (((_, to), (_, from)), range) in
            part.parts_mut().into_iter().zip(self.parts()).zip(ranges)
        {
            match (to, from) {
                (ValuesMut::F32(to), Values::F32(from)) => *to = from[range].to_vec().into(),
                (ValuesMut::U8(to), Values::U8(from)) => *to = from[range].to_vec().into(),
                _ => unreachable!("a part has one type"),
            }
        }
        part
    }
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
                    shape: [1, own.len()],
                    range: unit.range.start + own.start..unit.range.start + own.end,
                    moments: unit.moments.part(&own),
                    ..unit.clone()
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
                Values::F32(values) => {
                    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
                }
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
