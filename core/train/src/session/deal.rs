//! Who has which of the numbers that train.
//!
//! A part of the model (see [`Trainable::descending_parts`](forgelm_model::Trainable::descending_parts))
//! is cut into [`N_PIECES`] pieces, of which each process has some that lie side by side: what a part
//! needs or gives goes to and from all processes alike. The order of numbers here is that of the
//! parts, and within a part that of its slices.

use crate::optimizer::{Optimizer, Rounding};
use std::ops::Range;

/// Pieces of a part whose squares are added by themselves: the norm of a gradient does not depend on
/// who has which.
pub(super) const N_PIECES: usize = 64;

/// All numbers, dealt out.
pub(super) struct Deal {
    n_ranks: usize,
    parts: Vec<Part>,
}

/// The numbers of a part of the model.
struct Part {
    /// Where they lie in the buffer of everything.
    slices: Vec<Range<usize>>,
    /// Where pieces begin and the last one ends, counted from the part's first number
    /// [`N_PIECES` + 1].
    bounds: Vec<usize>,
}

impl Deal {
    /// Deals out the parameters of an optimizer, whose parts are given by their slices. What must stay
    /// together does ([`Optimizer::cut`]).
    pub(super) fn new(
        optimizer: &Optimizer,
        parts: Vec<Vec<Range<usize>>>,
        n_ranks: usize,
    ) -> Self {
        let part = |(index, slices): (usize, Vec<Range<usize>>)| {
            // In turn, so that nobody has the larger share of each where matrices are not cut.
            let rounding = if index % 2 == 0 { Rounding::Down } else { Rounding::Up };
            let len: usize = slices.iter().map(Range::len).sum();
            let bound = |i: usize| cut(optimizer, &slices, i * len / N_PIECES, rounding);
            let bounds = (0..=N_PIECES).map(bound).collect();
            Part { slices, bounds }
        };
        Self { n_ranks, parts: parts.into_iter().enumerate().map(part).collect() }
    }

    /// Parts.
    pub(super) fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// Numbers of a part.
    pub(super) fn len(&self, part: usize) -> usize {
        self.parts[part].slices.iter().map(Range::len).sum()
    }

    /// The pieces of a process, of each part.
    fn pieces_of(&self, rank: usize) -> Range<usize> {
        rank * N_PIECES / self.n_ranks..(rank + 1) * N_PIECES / self.n_ranks
    }

    /// Where the share of a process begins and ends, counted from the part's first number.
    fn share(&self, part: &Part, rank: usize) -> Range<usize> {
        let pieces = self.pieces_of(rank);
        part.bounds[pieces.start]..part.bounds[pieces.end]
    }

    /// [p] the share of each process in a part, counted from the part's first number.
    pub(super) fn shares(&self, part: usize) -> Vec<Range<usize>> {
        (0..self.n_ranks).map(|rank| self.share(&self.parts[part], rank)).collect()
    }

    /// [p] how many numbers each process has.
    pub(super) fn lens(&self) -> Vec<usize> {
        let of_parts = |rank| self.parts.iter().map(move |part| self.share(part, rank).len());
        (0..self.n_ranks).map(|rank| of_parts(rank).sum()).collect()
    }

    /// Where the numbers of a process lie in the buffer of everything.
    pub(super) fn ranges(&self, rank: usize) -> Vec<Range<usize>> {
        let of_part = |part: &Part| part.within(self.share(part, rank));
        self.parts.iter().flat_map(of_part).collect()
    }

    /// Where the numbers of a part lie in the buffer of everything.
    pub(super) fn slices(&self, part: usize) -> &[Range<usize>] {
        &self.parts[part].slices
    }

    /// Puts the numbers of all processes, one process after the other, where they belong.
    ///
    /// Shapes: `of_ranks` [P], result [P].
    pub(super) fn put_together(&self, of_ranks: &[f32]) -> Vec<f32> {
        let mut all = vec![0.0; of_ranks.len()];
        let mut rest = of_ranks;
        for range in (0..self.n_ranks).flat_map(|rank| self.ranges(rank)) {
            let (numbers, behind) = rest.split_at(range.len());
            all[range].copy_from_slice(numbers);
            rest = behind;
        }
        all
    }

    /// The pieces of a process in the order of the parts, each by its place among all numbers of this
    /// process.
    pub(super) fn own_pieces(&self, rank: usize) -> Vec<Range<usize>> {
        let mut end = 0;
        let mut pieces = Vec::new();
        for part in &self.parts {
            for piece in
                part.bounds[self.pieces_of(rank).start..=self.pieces_of(rank).end].windows(2)
            {
                let start = end;
                end += piece[1] - piece[0];
                pieces.push(start..end);
            }
        }
        pieces
    }

    /// One value a piece, in the order of parts and pieces, from what each process has of its own.
    pub(super) fn in_order<T: Copy>(&self, of_ranks: &[Vec<T>]) -> Vec<T> {
        let mut values = Vec::new();
        for part in 0..self.parts.len() {
            for (rank, of_rank) in of_ranks.iter().enumerate() {
                let n = self.pieces_of(rank).len();
                values.extend_from_slice(&of_rank[part * n..(part + 1) * n]);
            }
        }
        values
    }
}

impl Part {
    /// Where a range of the part, counted from its first number, lies in the buffer of everything.
    fn within(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut before = 0;
        let mut found = Vec::new();
        for slice in &self.slices {
            let start = range.start.clamp(before, before + slice.len()) - before;
            let end = range.end.clamp(before, before + slice.len()) - before;
            if start < end {
                found.push(slice.start + start..slice.start + end);
            }
            before += slice.len();
        }
        found
    }
}

/// The place nearest to `at`, counted from the first number of some slices, where these may be cut:
/// between two of them, or where the optimizer says.
fn cut(optimizer: &Optimizer, slices: &[Range<usize>], at: usize, rounding: Rounding) -> usize {
    let mut before = 0;
    for slice in slices {
        if at == before {
            break;
        }
        if at < before + slice.len() {
            let cut = optimizer.cut(slice.start + at - before, rounding);
            return before + cut.clamp(slice.start, slice.end) - slice.start;
        }
        before += slice.len();
    }
    before
}

#[cfg(test)]
mod tests {
    use super::{Deal, N_PIECES};
    use crate::optimizer::{Kind, Optimizer, OptimizerSettings};
    use forgelm_model::NamedSlice;
    use std::ops::Range;

    /// Two layers of two matrices each, of which the buffer has the first ones first, and a vector.
    fn slices() -> Vec<NamedSlice> {
        let mut end = 0;
        let slice = |(name, shape): (&str, Vec<usize>)| {
            let start = end;
            end += shape.iter().product::<usize>();
            NamedSlice { name: name.to_owned(), shape, range: start..end }
        };
        let named = [
            ("0.up.weight", vec![70, 100]),
            ("1.up.weight", vec![70, 100]),
            ("0.down.weight", vec![100, 50]),
            ("1.down.weight", vec![100, 50]),
            ("norm.weight", vec![33]),
        ];
        named.into_iter().map(slice).collect()
    }

    fn deal(kind: Kind, n_ranks: usize) -> Deal {
        let slices = slices();
        let optimizer = Optimizer::new(OptimizerSettings::new(kind, 0.0), &slices);
        let optimizer = optimizer.expect("nothing is projected");
        let part = |of: &[usize]| of.iter().map(|&i| slices[i].range.clone()).collect();
        Deal::new(&optimizer, vec![part(&[4]), part(&[1, 3]), part(&[0, 2])], n_ranks)
    }

    fn n(of: &[Range<usize>]) -> usize {
        of.iter().map(Range::len).sum()
    }

    #[test]
    fn every_number_is_dealt_out_once() {
        for kind in [Kind::AdamW, Kind::AdamW8bit, Kind::Adafactor] {
            for n_ranks in [1, 2, 3, 8, 64, 100] {
                let deal = deal(kind, n_ranks);
                let mut ranges: Vec<_> = (0..n_ranks).flat_map(|rank| deal.ranges(rank)).collect();
                ranges.sort_by_key(|range| range.start);
                let mut end = 0;
                for range in ranges {
                    assert_eq!(range.start, end, "{kind:?} on {n_ranks}");
                    end = range.end;
                }
                assert_eq!(end, 24_033);
                for (rank, len) in deal.lens().into_iter().enumerate() {
                    assert_eq!(len, n(&deal.ranges(rank)));
                    assert_eq!(len, n(&deal.own_pieces(rank)));
                }
            }
        }
    }

    #[test]
    fn shares_are_even_where_matrices_may_be_cut() {
        let lens = deal(Kind::AdamW, 8).lens();
        assert!(lens.iter().all(|len| (2800..3200).contains(len)), "{lens:?}");
        // Of one layer the first matrix, of the other none.
        assert_eq!(deal(Kind::Adafactor, 2).lens(), [7000, 17_033]);
    }

    #[test]
    fn numbers_come_back_to_where_they_were() {
        let all: Vec<f32> = (0..24_033_u16).map(f32::from).collect();
        for n_ranks in [1, 2, 3, 8] {
            let deal = deal(Kind::AdamW8bit, n_ranks);
            let of = |rank: usize| deal.ranges(rank).into_iter().flat_map(|range| &all[range]);
            let of_ranks: Vec<f32> = (0..n_ranks).flat_map(of).copied().collect();
            assert_eq!(deal.put_together(&of_ranks), all);
            // Part by part, the share of each process.
            let mut own = vec![Vec::new(); n_ranks];
            for part in 0..deal.n_parts() {
                let slices = deal.slices(part).iter();
                let numbers: Vec<f32> = slices.flat_map(|of| &all[of.clone()]).copied().collect();
                for (own, share) in own.iter_mut().zip(deal.shares(part)) {
                    own.extend_from_slice(&numbers[share]);
                }
            }
            assert_eq!(own.concat(), of_ranks);
        }
    }

    #[test]
    fn pieces_have_one_order_whoever_has_them() {
        let all: Vec<f32> = (0..24_033_u16).map(f32::from).collect();
        let firsts = |n_ranks: usize| {
            let deal = deal(Kind::AdamW, n_ranks);
            let of = |rank: usize| -> Vec<Option<f32>> {
                let own: Vec<f32> =
                    deal.ranges(rank).into_iter().flat_map(|r| all[r].to_vec()).collect();
                let pieces = deal.own_pieces(rank).into_iter();
                pieces.map(|piece| own[piece].first().copied()).collect()
            };
            let of_ranks: Vec<_> = (0..n_ranks).map(of).collect();
            deal.in_order(&of_ranks)
        };
        let expected = firsts(1);
        assert_eq!(expected.len(), 3 * N_PIECES);
        for n_ranks in [2, 3, 8, 100] {
            assert_eq!(firsts(n_ranks), expected, "{n_ranks}");
        }
    }
}
