//! Near-duplicates among fingerprints: pairs within a split, and rows that two splits share.
//!
//! Fingerprints that differ in at most `d` places agree in one of `d + 1` bands of places at least, so it
//! is enough to compare those that share a band: nothing is missed.

use std::ops::Range;

/// Comparisons of 64 bits before counting stops, so that a set of near-copies ends: some seconds.
const COMPARISONS_MAX: u64 = 1 << 32;

/// What texts are compared by: a row of places, bits or numbers.
pub(super) trait Fingerprint: Ord {
    /// Places.
    const N_PLACES: u32;
    /// The shortest band that is worth sorting by.
    const BAND_MIN: u32;
    /// What a comparison costs, in comparisons of 64 bits.
    const COST: u64;

    /// In how many places two differ.
    fn distance(&self, other: &Self) -> u32;

    /// A number that those which agree in a band share.
    fn key(&self, band: Band) -> u64;

    /// Whether two agree in a band.
    fn shares(&self, other: &Self, band: Band) -> bool;
}

/// Some of the places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    pub from: u32,
    pub len: u32,
}

impl Band {
    /// As indices.
    pub fn range(self) -> Range<usize> {
        self.from as usize..(self.from + self.len) as usize
    }
}

/// The bands for a distance, low places first; one of no place, which all share, where they would be
/// too short.
fn bands<F: Fingerprint>(distance: u32) -> Vec<Band> {
    let n = distance.saturating_add(1);
    match F::N_PLACES / n {
        len if len >= F::BAND_MIN => (0..n).map(|band| Band { from: band * len, len }).collect(),
        _ => vec![Band { from: 0, len: 0 }],
    }
}

/// The fingerprints of a split, each once, with the number of its rows.
#[derive(Debug)]
pub(super) struct Distinct<F>(Vec<(F, u64)>);

impl<F: Fingerprint> Distinct<F> {
    /// Fingerprints of rows.
    pub fn new(mut rows: Vec<F>) -> Self {
        rows.sort_unstable();
        let mut distinct: Vec<(F, u64)> = Vec::new();
        for row in rows {
            match distinct.last_mut() {
                Some((last, n)) if *last == row => *n += 1,
                _ => distinct.push((row, 1)),
            }
        }
        distinct.shrink_to_fit();
        Distinct(distinct)
    }

    /// Different fingerprints.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Rows with a fingerprint.
    pub fn n_rows(&self) -> u64 {
        self.0.iter().map(|(_, n)| n).sum()
    }

    /// Numbers of the fingerprints, those that share a band beside each other.
    fn sorted_by(&self, band: Band) -> Vec<(u64, u32)> {
        let mut sorted: Vec<(u64, u32)> =
            self.0.iter().zip(0..).map(|((row, _), number)| (row.key(band), number)).collect();
        sorted.sort_unstable();
        sorted
    }

    fn get(&self, number: u32) -> &(F, u64) {
        &self.0[number as usize]
    }

    /// Rows of the fingerprints that are marked.
    fn n_marked(&self, marks: &[bool]) -> u64 {
        self.0.iter().zip(marks).filter(|(_, marked)| **marked).map(|((_, n), _)| n).sum()
    }
}

/// Pairs of rows with fingerprints of at most this distance; false if there may be more.
pub(super) fn pairs<F: Fingerprint>(split: &Distinct<F>, distance: u32) -> (u64, bool) {
    pairs_within(split, distance, COMPARISONS_MAX / F::COST)
}

fn pairs_within<F: Fingerprint>(split: &Distinct<F>, distance: u32, n_max: u64) -> (u64, bool) {
    let bands = bands::<F>(distance);
    let mut n_pairs: u64 = split.0.iter().map(|(_, n)| n * (n - 1) / 2).sum();
    let mut n_left = n_max;
    for (nth, &band) in bands.iter().enumerate() {
        let sorted = split.sorted_by(band);
        for bucket in sorted.chunk_by(|a, b| a.0 == b.0) {
            for (i, &(_, number)) in bucket.iter().enumerate() {
                let (a, n_a) = split.get(number);
                let rest = &bucket[i + 1..];
                let Some(left) = n_left.checked_sub(rest.len() as u64) else {
                    return (n_pairs, false);
                };
                n_left = left;
                for &(_, number) in rest {
                    let (b, n_b) = split.get(number);
                    // A pair that shares several bands counts in the first of them.
                    if a.distance(b) <= distance
                        && a.shares(b, band)
                        && !bands[..nth].iter().any(|&earlier| a.shares(b, earlier))
                    {
                        n_pairs += n_a * n_b;
                    }
                }
            }
        }
    }
    (n_pairs, true)
}

/// Rows of each of two splits that have a near-duplicate in the other; false if there may be more.
pub(super) fn leaks<F: Fingerprint>(
    a: &Distinct<F>,
    b: &Distinct<F>,
    distance: u32,
) -> ([u64; 2], bool) {
    let mut marks = [a, b].map(|split| vec![false; split.0.len()]);
    let mut n_left = COMPARISONS_MAX / F::COST;
    let mut is_whole = true;
    for band in bands::<F>(distance) {
        let (of_a, of_b) = (a.sorted_by(band), b.sorted_by(band));
        let mut rest = &of_b[..];
        for bucket in of_a.chunk_by(|x, y| x.0 == y.0) {
            let key = bucket[0].0;
            rest = &rest[rest.partition_point(|row| row.0 < key)..];
            let others = &rest[..rest.partition_point(|row| row.0 == key)];
            let work = (bucket.len() as u64).saturating_mul(others.len() as u64);
            let Some(left) = n_left.checked_sub(work) else {
                is_whole = false;
                continue;
            };
            n_left = left;
            for &(_, x) in bucket {
                for &(_, y) in others {
                    if a.get(x).0.distance(&b.get(y).0) <= distance {
                        marks[0][x as usize] = true;
                        marks[1][y as usize] = true;
                    }
                }
            }
        }
    }
    ([a.n_marked(&marks[0]), b.n_marked(&marks[1])], is_whole)
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
    fn nothing_has_no_pairs_and_work_ends() {
        let none = Distinct::<u64>::new(Vec::new());
        assert_eq!((none.len(), none.n_rows(), pairs(&none, 3)), (0, 0, (0, true)));
        assert_eq!(
            [bands::<u64>(3).len(), bands::<u64>(0).len(), bands::<u64>(40).len()],
            [4, 1, 1]
        );
        // All share their low bits: more comparisons than are allowed.
        let near = Distinct::new((1..1000).map(|i| i << 48).collect());
        let (n_found, is_whole) = pairs_within(&near, 3, 10_000);
        assert!(!is_whole && n_found < pairs(&near, 3).0);
    }
}
