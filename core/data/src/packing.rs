//! Packing: which sequences share a bin.

use std::collections::{BTreeMap, VecDeque};

/// Groups sequences into bins of at most `capacity` tokens, best fit decreasing.
///
/// Longest first (of equal length the earlier one), each goes into the open bin with the least room that is
/// enough, else into a new bin. Of bins with equal room the one that came to that room first is taken. Bins are
/// in the order in which they were opened; the numbers in a bin in the order in which they were put in. A
/// sequence longer than `capacity` counts as `capacity` long: it is truncated later.
///
/// Source: TRL 1.16, `pack_dataset(strategy="bfd")`, whose result this is exactly.
///
/// # Panics
/// If `capacity` is 0.
#[must_use]
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let bins = Bins::best_fit_decreasing(lengths, capacity);
    (0..bins.len()).map(|bin| bins.members(bin).map(|i| i as usize).collect()).collect()
}

/// Groups of sequences, in 8 bytes a sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bins {
    /// Where the members of each bin end.
    ends: Vec<u32>,
    members: Vec<u32>,
}

impl Bins {
    /// See [`best_fit_decreasing`].
    pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Bins {
        assert!(capacity > 0, "a bin without room");
        let n = u32::try_from(lengths.len()).expect("fewer than 2^32 sequences");
        let mut order: Vec<u32> = (0..n).filter(|&i| lengths[i as usize] > 0).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(lengths[i as usize].min(capacity)));
        let mut n_bins = 0_u32;
        // Bins that are not full, by the room they have left.
        let mut open: BTreeMap<usize, VecDeque<u32>> = BTreeMap::new();
        let mut bin_of = Vec::with_capacity(order.len());
        for &i in &order {
            let length = lengths[i as usize].min(capacity);
            let fitting = open
                .range_mut(length..)
                .next()
                .and_then(|(&room, waiting)| Some((room, waiting.pop_front()?)));
            let (room, bin) = fitting.unwrap_or_else(|| {
                n_bins += 1;
                (capacity, n_bins - 1)
            });
            if open.get(&room).is_some_and(VecDeque::is_empty) {
                open.remove(&room);
            }
            bin_of.push(bin);
            if room > length {
                open.entry(room - length).or_default().push_back(bin);
            }
        }
        Bins::group(&order, &bin_of, n_bins)
    }

    /// Members by bin, in the order in which they were put in.
    fn group(order: &[u32], bin_of: &[u32], n_bins: u32) -> Bins {
        let mut ends = vec![0_u32; n_bins as usize];
        for &bin in bin_of {
            ends[bin as usize] += 1;
        }
        let mut end = 0;
        let mut next = Vec::with_capacity(ends.len());
        for count in &mut ends {
            next.push(end);
            end += *count;
            *count = end;
        }
        let mut members = vec![0; order.len()];
        for (&i, &bin) in order.iter().zip(bin_of) {
            members[next[bin as usize] as usize] = i;
            next[bin as usize] += 1;
        }
        Bins { ends, members }
    }

    /// Number of bins.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The sequences of a bin.
    pub fn members(&self, bin: usize) -> impl Iterator<Item = u32> {
        let from = bin.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.members[from as usize..self.ends[bin] as usize].iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::best_fit_decreasing;

    #[test]
    fn each_sequence_is_in_one_bin_and_no_bin_is_too_full() {
        // Lengths from a fixed rule: 1 to 97, uneven.
        let lengths: Vec<usize> = (0..2000_usize).map(|i| 1 + (i * i + 7 * i) % 97).collect();
        let bins = best_fit_decreasing(&lengths, 128);
        let mut seen: Vec<usize> = bins.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..2000).collect::<Vec<_>>());
        for bin in &bins {
            assert!(bin.iter().map(|&i| lengths[i]).sum::<usize>() <= 128);
        }
        // No two bins could be joined to one with both half empty: best fit leaves at most one such bin.
        let fill = |bin: &Vec<usize>| bin.iter().map(|&i| lengths[i]).sum::<usize>();
        assert!(bins.iter().filter(|bin| fill(bin) <= 64).count() <= 1);
    }

    #[test]
    fn empty_and_overlong_sequences() {
        assert_eq!(best_fit_decreasing(&[], 8), Vec::<Vec<usize>>::new());
        assert_eq!(best_fit_decreasing(&[0, 20, 3, 8], 8), vec![vec![1], vec![3], vec![2]]);
    }
}
