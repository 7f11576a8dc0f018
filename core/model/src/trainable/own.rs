//! What a process has of the numbers that train, where all of them together have everything.
//!
//! Vectors are small: besides its own numbers each process has all of them, as the kernels read them.
//! Of a trained matrix it has its own numbers in f32, and its part of the packed form among the
//! [parts](crate::parts) of the frozen weights, where passes gather it from. Both are formed again
//! after every change ([`Decoder::renew`]), one part of the model after the other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use forgelm_kernels_api::{Buffer, Slice};

use super::{BaseTensor, Trainable};
use crate::decoder::Decoder;
use crate::names::Role;

/// Where the numbers of a process lie among its own, by where they lie in the buffer of everything.
#[derive(Clone, Debug)]
pub struct Places(BTreeMap<usize, (usize, usize)>);

impl Places {
    /// Of ranges of the buffer of everything, one after the other.
    #[must_use]
    pub fn new(ranges: &[Range<usize>]) -> Self {
        let mut end = 0;
        let place = |range: &Range<usize>| {
            let start = end;
            end += range.len();
            (range.start, (range.len(), start))
        };
        Self(ranges.iter().map(place).collect())
    }

    /// The place of a range.
    ///
    /// # Panics
    /// If it is not within one of them: a bug of the caller.
    #[must_use]
    pub fn of(&self, range: &Range<usize>) -> Range<usize> {
        let (first, (len, place)) = self.0.range(..=range.start).next_back().expect("one of them");
        let start = range.start - first;
        assert!(start + range.len() <= *len, "within one of them");
        place + start..place + start + range.len()
    }

    /// What lies both in one of them and in `range`: where it begins in the buffer of everything, and
    /// its place.
    fn within(&self, range: &Range<usize>) -> Vec<(usize, Range<usize>)> {
        // The last one that begins before it may reach into it.
        let before = self.0.range(..range.start).next_back();
        let of = |(&first, &(len, place)): (&usize, &(usize, usize))| {
            let (start, end) = (first.max(range.start), (first + len).min(range.end));
            (start < end).then(|| (start, place + start - first..place + end - first))
        };
        before.into_iter().chain(self.0.range(range.clone())).filter_map(of).collect()
    }
}

impl Trainable {
    /// Keeps of the numbers only those of some ranges of the buffer, one after the other, before
    /// [`Decoder::begin`]: the decoder has its matrices in parts, and other processes keep the rest.
    ///
    /// # Panics
    /// If it is an adapter, which stays whole: a bug of the caller.
    pub fn keep_only(&mut self, ranges: &[Range<usize>]) {
        assert!(self.lora().is_none(), "adapters stay whole");
        let all = self.params();
        let own = ranges.iter().map(|range| &all[range.clone()]).collect::<Vec<_>>().concat();
        self.params = own.into();
        self.places = Some(Arc::new(Places::new(ranges)));
        self.derived.outdate();
    }

    /// Whether this process has only some of the numbers.
    #[must_use]
    pub fn is_in_parts(&self) -> bool {
        self.places.is_some()
    }

    /// The numbers that this process has, where they lie: all, or its own.
    #[must_use]
    pub fn numbers(&self) -> Slice<'_> {
        self.params.all()
    }

    /// Where a range of the buffer of everything lies among [`Trainable::numbers`].
    ///
    /// # Panics
    /// If it is not there: a bug of the caller.
    #[must_use]
    pub fn place(&self, range: &Range<usize>) -> Range<usize> {
        self.places.as_ref().map_or_else(|| range.clone(), |places| places.of(range))
    }

    /// The same with all numbers, which it takes over.
    ///
    /// Shapes: `params` [P].
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn with_all(&self, params: Vec<f32>) -> Self {
        assert_eq!(params.len(), self.n_params, "every number that trains");
        let mut whole = Self { params: params.into(), places: None, ..self.clone() };
        whole.derived.outdate();
        whole
    }

    /// Writes those of a range of the buffer that this process has.
    pub(crate) fn put(&mut self, range: &Range<usize>, values: &[f32]) {
        let Some(places) = self.places.clone() else {
            self.params_mut()[range.clone()].copy_from_slice(values);
            return;
        };
        let own = self.params_mut();
        for (start, place) in places.within(range) {
            let first = start - range.start;
            let len = place.len();
            own[place].copy_from_slice(&values[first..first + len]);
        }
    }
}

impl Decoder {
    /// Forms what lies in parts of one weight, before the first pass. Shapes: `values` as the weight.
    pub(super) fn begin_in_parts(&mut self, trainable: &mut Trainable, role: Role, values: &[f32]) {
        let Some(tensor) = trainable.base.get_mut(&role) else { return };
        if let [_, n_cols] = *tensor.shape {
            // As it was loaded it may be quantized.
            let packed = self.ops().pack(values.into(), n_cols, self.compute());
            self.replace(role, packed);
        } else {
            tensor.whole = Some(Arc::new(self.whole_vector(values.into(), tensor.is_offset)));
        }
    }

    /// Forms again, of what lies in parts, one part of the model from all its numbers. Every process
    /// calls this for every part, in one order, when no pass runs.
    ///
    /// Shapes: `slices` of the part (see [`Trainable::descending_parts`]); `values` [their sum] read.
    ///
    /// # Panics
    /// If a slice is no weight of the base: a bug of the caller.
    ///
    /// Ends with a [`Failure`](forgelm_kernels_api::Failure) if there is no memory for it.
    pub fn renew(&self, trainable: &mut Trainable, slices: &[Range<usize>], values: &Buffer) {
        let mut end = 0;
        for slice in slices {
            let start = end;
            end += slice.len();
            let of_slice = |(_, tensor): &(&Role, &mut BaseTensor)| tensor.range == *slice;
            let found = trainable.base.iter_mut().find(of_slice);
            let (role, tensor) = found.expect("slices of a part are weights of the base");
            let values = values.part(start..end);
            match *tensor.shape {
                [_, n_cols] => {
                    let packed = self.ops().pack(values, n_cols, self.compute());
                    self.weights().renew(*role, packed.as_ref());
                }
                _ => tensor.whole = Some(Arc::new(self.whole_vector(values, tensor.is_offset))),
            }
        }
    }

    /// What lies in parts was formed again, all of it.
    pub fn renewed(&self, trainable: &mut Trainable) {
        trainable.derived.update();
    }
}

#[cfg(test)]
mod tests {
    use super::Places;

    #[test]
    fn a_range_is_found_among_the_own() {
        let places = Places::new(&[10..20, 0..5, 30..31]);
        assert_eq!(places.of(&(12..20)), 2..10);
        assert_eq!(places.of(&(0..5)), 10..15);
        assert_eq!(places.of(&(30..31)), 15..16);
        assert!(std::panic::catch_unwind(|| places.of(&(4..6))).is_err());
    }

    #[test]
    fn what_lies_in_a_range_is_found_wherever_it_begins() {
        let places = Places::new(&[10..20, 0..5, 30..31]);
        assert_eq!(places.within(&(12..31)), [(12, 2..10), (30, 15..16)]);
        assert_eq!(places.within(&(0..11)), [(0, 10..15), (10, 0..1)]);
        assert_eq!(places.within(&(5..10)), []);
    }
}
