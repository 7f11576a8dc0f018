//! Where gradients go: the whole buffer, or the part of it that is worked on.

use std::ops::Range;

use forgelm_kernels_api::{Buffer, Ops, Precision, Slice, SliceMut};

use super::descent::Part;
use crate::activations::OutOfMemory;
use crate::names::Role;
use crate::trainable::Trainable;

/// What backward adds gradients to.
pub(super) enum Grads<'a> {
    /// Of everything that trains.
    Whole(SliceMut<'a>),
    /// Of one part of the model.
    Part(&'a mut PartialGradient),
}

impl Grads<'_> {
    /// The gradient of a slice of what trains.
    pub(super) fn of(&mut self, range: Range<usize>) -> SliceMut<'_> {
        match self {
            Self::Whole(values) => values.reborrow().part(range),
            Self::Part(part) => {
                let place = part.place(&range);
                part.values.part_mut(place)
            }
        }
    }
}

/// The gradient of one part of the model after the other, in one buffer as large as the largest, in
/// the place of the gradient of everything.
///
/// A tied embedding, whose gradient begins at the head and ends below the first layer, has a place
/// of its own.
#[derive(Debug)]
pub struct PartialGradient {
    values: Buffer,
    /// Slices of what trains that have a place now, each with its start in `values`.
    open: Vec<(Range<usize>, usize)>,
}

impl PartialGradient {
    /// A buffer for what trains.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(trainable: &Trainable, ops: &dyn Ops) -> Result<Self, OutOfMemory> {
        let bytes = Self::planned_bytes(trainable);
        let n = bytes / size_of::<f32>();
        let values = ops.allocate(n, Precision::Exact).map_err(|_| OutOfMemory {
            buffer: "gradient of a layer".to_owned(),
            bytes,
            total: bytes,
        })?;
        Ok(Self { values, open: Vec::new() })
    }

    /// Bytes of [`PartialGradient::new`].
    #[must_use]
    pub fn planned_bytes(trainable: &Trainable) -> usize {
        let tied = tied(trainable).map_or(0, |range| range.len());
        let embedding = (tied == 0).then_some(Part::Embedding);
        let parts = (0..trainable.n_layers()).map(Part::Layer).chain([Part::Head]).chain(embedding);
        let len = |part| trainable.part(part).iter().map(Range::len).sum::<usize>();
        (tied + parts.map(len).max().unwrap_or(0)) * size_of::<f32>()
    }

    /// The gradient of numbers within a slice that [`Decoder::descend`](crate::Decoder::descend) just
    /// returned.
    ///
    /// # Panics
    /// If they are not within one.
    #[must_use]
    pub fn of(&self, range: Range<usize>) -> Slice<'_> {
        self.values.part(self.place(&range))
    }

    /// Makes place for a part, at zero.
    pub(super) fn open(&mut self, trainable: &Trainable, part: Part, ops: &dyn Ops) {
        if part == Part::Head {
            self.open.clear();
            ops.fill(self.values.all_mut(), 0.0);
            self.open.extend(tied(trainable).map(|range| (range, 0)));
        }
        self.open.truncate(usize::from(tied(trainable).is_some()));
        let first = self.open.first().map_or(0, |(range, _)| range.len());
        let mut end = first;
        for range in trainable.part(part) {
            if self.open.first().is_some_and(|(tied, _)| *tied == range) {
                continue;
            }
            let len = range.len();
            self.open.push((range, end));
            end += len;
        }
        ops.fill(self.values.part_mut(first..end), 0.0);
    }

    fn place(&self, range: &Range<usize>) -> Range<usize> {
        let has = |open: &Range<usize>| open.start <= range.start && range.end <= open.end;
        let found = self.open.iter().find(|(open, _)| has(open));
        let (open, start) = found.expect("the numbers belong to the part that is worked on");
        let start = start + range.start - open.start;
        start..start + range.len()
    }
}

/// The embedding, where it trains and is the head as well.
fn tied(trainable: &Trainable) -> Option<Range<usize>> {
    trainable
        .range(Role::Head)
        .filter(|range| trainable.range(Role::Embedding).as_ref() == Some(range))
}
