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
    assert!(capacity > 0, "a bin without room");
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] > 0).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i].min(capacity)));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Room to the bins that have it, the one that came first in front.
    let mut open: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for i in order {
        let length = lengths[i].min(capacity);
        let fitting = open
            .range_mut(length..)
            .next()
            .and_then(|(&room, waiting)| Some((room, waiting.pop_front()?)));
        let (room, bin) = fitting.unwrap_or_else(|| {
            bins.push(Vec::new());
            (capacity, bins.len() - 1)
        });
        if open.get(&room).is_some_and(VecDeque::is_empty) {
            open.remove(&room);
        }
        bins[bin].push(i);
        if room > length {
            open.entry(room - length).or_default().push_back(bin);
        }
    }
    bins
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
