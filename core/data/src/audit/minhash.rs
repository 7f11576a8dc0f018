//! A signature of a text that shows how many of its words another text has.

use std::collections::BTreeSet;

use twox_hash::XxHash3_64;

use super::near::{Band, Fingerprint};
use super::simhash::lower_words;

/// Numbers of a signature.
pub(super) const N_PERMUTATIONS: u32 = 128;
const LEN: usize = N_PERMUTATIONS as usize;
/// Seed of the permutations.
pub(super) const SEED: u64 = 1;
/// 2^61 - 1.
const PRIME: u64 = (1 << 61) - 1;

/// For each of some permutations of all words the first one that a text has. Two texts agree in as large a
/// share of them as of the words that either has: the Jaccard similarity.
///
/// Paper: Broder 1997, "On the resemblance and containment of documents".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Signature(Box<[u32; LEN]>);

/// The permutations: `(a h + b) mod (2^61 - 1)`, of which the low 32 bits count; h is the word's XXH3-64,
/// and a and b are XXH3-64 of `2 i` and `2 i + 1` as eight little-endian bytes, with the seed.
#[derive(Debug, Clone)]
pub(super) struct Permutations(Vec<(u64, u64)>);

impl Permutations {
    pub fn new() -> Self {
        let number = |i: u64| XxHash3_64::oneshot_with_seed(SEED, &i.to_le_bytes());
        let n = u64::from(N_PERMUTATIONS);
        let each = (0..n).map(|i| (number(2 * i) % (PRIME - 1) + 1, number(2 * i + 1) % PRIME));
        Permutations(each.collect())
    }

    /// The signature of a text; `None` without words.
    pub fn signature(&self, text: &str) -> Option<Signature> {
        let mut words = BTreeSet::new();
        lower_words(text, |word| {
            words.insert(XxHash3_64::oneshot(word.as_bytes()));
        });
        if words.is_empty() {
            return None;
        }
        let first = |&(a, b): &(u64, u64)| {
            let places = words.iter().map(|&word| low_bits(permuted(a, b, word)));
            places.min().unwrap_or(u32::MAX)
        };
        let mut signature = Box::new([0; LEN]);
        for (place, permutation) in signature.iter_mut().zip(&self.0) {
            *place = first(permutation);
        }
        Some(Signature(signature))
    }
}

fn permuted(a: u64, b: u64, word: u64) -> u64 {
    let product = u128::from(a) * u128::from(word) + u128::from(b);
    u64::try_from(product % u128::from(PRIME)).unwrap_or(0)
}

fn low_bits(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0)
}

/// In how many places signatures of at least this similarity may differ.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of 128, which is exact"
)]
pub(super) fn distance_of(similarity: f64) -> u32 {
    N_PERMUTATIONS - (similarity.clamp(0.0, 1.0) * f64::from(N_PERMUTATIONS)).ceil() as u32
}

impl Fingerprint for Signature {
    const N_PLACES: u32 = N_PERMUTATIONS;
    const BAND_MIN: u32 = 1;
    const COST: u64 = 64;

    fn distance(&self, other: &Self) -> u32 {
        self.0.iter().zip(&other.0[..]).map(|(a, b)| u32::from(a != b)).sum()
    }

    fn key(&self, band: Band) -> u64 {
        let mix = |key: u64, &place: &u32| {
            (key ^ u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        };
        self.0[band.range()].iter().fold(0, mix)
    }

    fn shares(&self, other: &Self, band: Band) -> bool {
        self.0[band.range()] == other.0[band.range()]
    }
}

#[cfg(test)]
mod tests {
    use super::{Permutations, distance_of};
    use crate::audit::near::Fingerprint;

    /// Of 100 words in each, 50 in both: 50 of 150. With 128 numbers the estimate's deviation is 0.042.
    #[test]
    fn signatures_agree_in_the_share_of_common_words() {
        let permutations = Permutations::new();
        let text = |from: usize| (from..from + 100).map(|i| format!("w{i} ")).collect::<String>();
        let signature = |from| permutations.signature(&text(from)).unwrap();
        for (from, expected) in [(0, 1.0), (20, 80.0 / 120.0), (50, 1.0 / 3.0), (100, 0.0)] {
            let similarity = 1.0 - f64::from(signature(0).distance(&signature(from))) / 128.0;
            assert!((similarity - expected).abs() < 0.13, "{similarity} for {expected}");
        }
        assert_eq!(permutations.signature("... "), None);
        // Neither order nor number nor case of words counts.
        assert_eq!(permutations.signature("a B c"), permutations.signature("C b a A b"));
    }

    #[test]
    fn the_distance_is_the_largest_that_keeps_the_similarity() {
        for (similarity, expected) in [(1.0, 0), (0.85, 19), (0.5, 64), (0.0, 128)] {
            assert_eq!(distance_of(similarity), expected, "{similarity}");
        }
    }
}
