//! Near-duplicates among fingerprints: pairs within a split, and rows that two splits share.
//!
//! Fingerprints of a distance of at most `d` agree in one of `d + 1` bands of bits at least, so it is
//! enough to compare those that share a band: nothing is missed.

/// Comparisons before counting stops, so that a set of near-copies ends: some seconds.
const COMPARISONS_MAX: u64 = 1 << 32;
/// A band of fewer bits sorts nothing apart.
const BAND_BITS_MIN: u32 = 4;

/// The fingerprints of a split, each once, with the number of its rows.
#[derive(Debug, Default)]
pub(super) struct Distinct(Vec<(u64, u64)>);

impl Distinct {
    /// Fingerprints of rows; 0 is that of a row without words and is left out.
    pub fn new(mut rows: Vec<u64>) -> Self {
        rows.retain(|&row| row != 0);
        rows.sort_unstable();
        let chunks = rows.chunk_by(|a, b| a == b);
        Distinct(chunks.map(|same| (same[0], same.len() as u64)).collect())
    }

    /// Different fingerprints.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Rows with a fingerprint.
    pub fn n_rows(&self) -> u64 {
        self.0.iter().map(|(_, n)| n).sum()
    }
}

/// Some of the bits.
#[derive(Clone, Copy)]
struct Band {
    shift: u32,
    mask: u64,
}

impl Band {
    fn key(self, fingerprint: u64) -> u64 {
        (fingerprint >> self.shift) & self.mask
    }
}

/// The bands for a distance, low bits first; one of no bits, which all share, where they would be short.
fn bands(distance: u32) -> Vec<Band> {
    let n = distance.saturating_add(1);
    match 64 / n {
        64 => vec![Band { shift: 0, mask: u64::MAX }],
        width if width >= BAND_BITS_MIN => {
            (0..n).map(|band| Band { shift: band * width, mask: (1 << width) - 1 }).collect()
        }
        _ => vec![Band { shift: 0, mask: 0 }],
    }
}

/// Pairs of rows with fingerprints of at most this distance; false if there may be more.
pub(super) fn pairs(split: &Distinct, distance: u32) -> (u64, bool) {
    pairs_within(split, distance, COMPARISONS_MAX)
}

fn pairs_within(split: &Distinct, distance: u32, n_max: u64) -> (u64, bool) {
    let bands = bands(distance);
    let mut n_pairs: u64 = split.0.iter().map(|(_, n)| n * (n - 1) / 2).sum();
    let mut n_left = n_max;
    let mut sorted = split.0.clone();
    for (nth, band) in bands.iter().enumerate() {
        sorted.sort_unstable_by_key(|&(row, _)| (band.key(row), row));
        for bucket in sorted.chunk_by(|a, b| band.key(a.0) == band.key(b.0)) {
            for (i, &(a, n_a)) in bucket.iter().enumerate() {
                let rest = &bucket[i + 1..];
                let Some(left) = n_left.checked_sub(rest.len() as u64) else {
                    return (n_pairs, false);
                };
                n_left = left;
                for &(b, n_b) in rest {
                    let is_near = (a ^ b).count_ones() <= distance;
                    // A pair that shares several bands counts in the first of them.
                    if is_near && bands[..nth].iter().all(|earlier| earlier.key(a ^ b) != 0) {
                        n_pairs += n_a * n_b;
                    }
                }
            }
        }
    }
    (n_pairs, true)
}

/// Rows of each of two splits that have a near-duplicate in the other; false if there may be more.
pub(super) fn leaks(a: &Distinct, b: &Distinct, distance: u32) -> ([u64; 2], bool) {
    let mut sides = [a, b].map(|split| split.0.iter().map(|&row| (row, false)).collect::<Vec<_>>());
    let mut n_left = COMPARISONS_MAX;
    let mut is_whole = true;
    for band in bands(distance) {
        for side in &mut sides {
            side.sort_unstable_by_key(|&((row, _), _)| (band.key(row), row));
        }
        let [first, second] = &mut sides;
        let mut second = &mut second[..];
        for bucket in first.chunk_by_mut(|x, y| band.key(x.0.0) == band.key(y.0.0)) {
            let key = band.key(bucket[0].0.0);
            let before = second.partition_point(|row| band.key(row.0.0) < key);
            second = &mut second[before..];
            let n = second.partition_point(|row| band.key(row.0.0) == key);
            let work = (bucket.len() as u64).saturating_mul(n as u64);
            let Some(left) = n_left.checked_sub(work) else {
                is_whole = false;
                continue;
            };
            n_left = left;
            for (row, has_leaked) in bucket {
                for (other, other_has) in &mut second[..n] {
                    if (row.0 ^ other.0).count_ones() <= distance {
                        (*has_leaked, *other_has) = (true, true);
                    }
                }
            }
        }
    }
    let count = |side: &Vec<((u64, u64), bool)>| {
        side.iter().filter(|(_, has_leaked)| *has_leaked).map(|((_, n), _)| n).sum()
    };
    ([count(&sides[0]), count(&sides[1])], is_whole)
}

#[cfg(test)]
mod tests {
    use super::{Distinct, bands, leaks, pairs, pairs_within};

    /// Clusters of fingerprints that differ in a few bits, copies among them.
    fn rows(seed: u64, n: usize) -> Vec<u64> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        let centers: Vec<u64> = (0..8).map(|_| next()).collect();
        (0..n)
            .map(|_| {
                let center = centers[usize::try_from(next() >> 61).unwrap()];
                (0..(next() >> 62)).fold(center, |row, _| row ^ (1 << (next() >> 58)))
            })
            .collect()
    }

    /// The same by comparing everything with everything.
    fn plain_pairs(rows: &[u64], distance: u32) -> u64 {
        let near = |i: usize, j: usize| (rows[i] ^ rows[j]).count_ones() <= distance;
        (0..rows.len()).map(|i| (0..i).filter(|&j| near(i, j)).count() as u64).sum()
    }

    #[test]
    fn every_pair_is_found_and_counted_once() {
        for seed in 0..4 {
            let rows = rows(seed, 300);
            let mut counts = Vec::new();
            for distance in [0, 1, 2, 3, 4, 7, 15, 16, 40, 64, u32::MAX] {
                let expected = plain_pairs(&rows, distance);
                assert_eq!(
                    pairs(&Distinct::new(rows.clone()), distance),
                    (expected, true),
                    "{distance}"
                );
                counts.push(expected);
            }
            assert!(counts.is_sorted() && counts[0] > 0 && counts[3] > counts[0], "{counts:?}");
        }
    }

    #[test]
    fn rows_that_two_splits_share_are_counted_on_both_sides() {
        for seed in 0..4 {
            let (a, b) = (rows(seed, 120), rows(seed + 100 * (seed % 2), 90));
            for distance in [0, 3, 20] {
                let near = |row: &u64, others: &[u64]| {
                    others.iter().any(|other| (row ^ other).count_ones() <= distance)
                };
                let of_a = a.iter().filter(|row| near(row, &b)).count() as u64;
                let of_b = b.iter().filter(|row| near(row, &a)).count() as u64;
                let found = leaks(&Distinct::new(a.clone()), &Distinct::new(b.clone()), distance);
                assert_eq!(found, ([of_a, of_b], true), "seed {seed}, distance {distance}");
            }
        }
    }

    #[test]
    fn rows_without_words_are_no_duplicates_and_work_ends() {
        let empty = Distinct::new(vec![0, 0, 0, 5]);
        assert_eq!((empty.len(), empty.n_rows()), (1, 1));
        assert_eq!(pairs(&empty, 3), (0, true));
        assert_eq!(bands(3).len(), 4);
        // All share their low bits: more comparisons than are allowed.
        let near = Distinct::new((1..1000).map(|i| i << 48).collect());
        let (n_found, is_whole) = pairs_within(&near, 3, 10_000);
        assert!(!is_whole && n_found < pairs(&near, 3).0);
    }
}
