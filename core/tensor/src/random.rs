//! Random numbers as a function of (seed, purpose, step, index).
//!
//! There is no state: a resumed run asks for step 1000 and gets what the uninterrupted run got;
//! threads may ask in any order. Built on Philox4x32-10 (Salmon et al. 2011).
//!
//! **Invariant:** the mapping never changes; a new need is a new [`Purpose`] (known values in
//! `tests` below).

use forgelm_kernels_api::philox::philox4x32;

/// What a stream of random numbers is for. Two purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Order of the training rows in each epoch.
    DataOrder,
    /// Which rows are held out for validation.
    Split,
    /// First values of adapter matrices.
    LoraInit,
    /// Masks of dropout.
    Dropout,
    /// Choice of tokens when text is generated.
    Sampling,
    /// Which rows of a data set are taken into a mixture.
    Mixture,
    /// Noise on token vectors.
    EmbeddingNoise,
    /// Seeds of the answers that a policy learns from.
    Rollout,
}

impl Purpose {
    /// The number under which the purpose enters the key. Never reused, never changed.
    const fn number(self) -> u32 {
        match self {
            Self::DataOrder => 1,
            Self::Split => 2,
            Self::LoraInit => 3,
            Self::Dropout => 4,
            Self::Sampling => 5,
            Self::Mixture => 6,
            Self::EmbeddingNoise => 7,
            Self::Rollout => 8,
        }
    }
}

/// The random numbers of one (seed, purpose).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

/// Low and high half.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
const fn halves(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

impl Stream {
    /// The stream of `seed` for `purpose`. Its key is the first two words of
    /// `philox4x32(counter = [purpose number, 0, 0, 0], key = [seed low, seed high])`.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let [k0, k1, ..] = philox4x32([purpose.number(), 0, 0, 0], halves(seed));
        Self { key: [k0, k1] }
    }

    /// 128 bits:
    /// `philox4x32(counter = [index low, index high, step low, step high], key of the stream)`.
    #[must_use]
    pub fn bits(&self, step: u64, index: u64) -> [u32; 4] {
        let ([i0, i1], [s0, s1]) = (halves(index), halves(step));
        philox4x32([i0, i1, s0, s1], self.key)
    }

    /// A stream of its own for one row of one step: its key is the first two words of
    /// `bits(step, row_key)`.
    #[must_use]
    pub fn of_row(&self, step: u64, row_key: u64) -> Self {
        let [k0, k1, ..] = self.bits(step, row_key);
        Self { key: [k0, k1] }
    }

    /// Uniform in [0, 1): the upper 24 bits of the first word of [`Stream::bits`], times 2^-24.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit a f32")]
    pub fn uniform(&self, step: u64, index: u64) -> f32 {
        let [word, ..] = self.bits(step, index);
        (word >> 8) as f32 / 16_777_216.0
    }

    /// A permutation of `0..n`, each equally likely: Fisher and Yates, from the last place down.
    ///
    /// For i from n - 1 down to 1, j in `0..=i` is drawn and places i and j are exchanged. Words
    /// are taken in order from `bits(step, 0)`, `bits(step, 1)`, and so on. With m = i + 1, a
    /// word w below `2^32 - 2^32 mod m` gives j = w mod m; any other is passed over, so that no j
    /// is favored.
    #[must_use]
    pub fn permutation(&self, step: u64, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        let mut words = (0..).flat_map(|index| self.bits(step, index));
        for i in (1..order.len()).rev() {
            order.swap(i, below(&mut words, i + 1));
        }
        order
    }

    /// The key of the dropout mask of one module in one step: the first two words of
    /// `bits(step, module_index)`.
    #[must_use]
    pub fn dropout_key(&self, step: u64, module_index: u64) -> [u32; 2] {
        let [k0, k1, ..] = self.bits(step, module_index);
        [k0, k1]
    }
}

/// The next number below `m` (at most 2^32), by rejection.
#[expect(clippy::cast_possible_truncation, reason = "smaller than m, which is a usize")]
fn below(words: &mut impl Iterator<Item = u32>, m: usize) -> usize {
    let m = m as u64;
    let limit = (1_u64 << 32) - (1_u64 << 32) % m;
    let word = words.map(u64::from).find(|&w| w < limit).expect("the stream of words is endless");
    (word % m) as usize
}

#[cfg(test)]
mod tests {
    use super::{Purpose, Stream};

    /// From a second implementation, written from the doc comments above in Python.
    #[test]
    fn known_values_never_change() {
        let stream = Stream::new(42, Purpose::DataOrder);
        assert_eq!(stream.bits(0, 0), [0xde4f_23bc, 0x392a_b224, 0xfa64_e59e, 0x38e5_e07d]);
        assert_eq!(
            stream.bits((1 << 40) + 3, (1 << 33) + 5),
            [0xf860_280a, 0x480e_0f60, 0x75be_9e1a, 0x6245_3100]
        );
        assert_eq!(stream.permutation(0, 10), [5, 7, 8, 3, 0, 9, 2, 6, 1, 4]);
        assert_eq!(stream.permutation(3, 10), [2, 4, 6, 7, 8, 9, 5, 0, 1, 3]);
        let dropout = Stream::new((1 << 63) + 9, Purpose::Dropout);
        assert_eq!(dropout.dropout_key(1000, 7), [0xd767_050b, 0x9b89_3eae]);
        let uniform = Stream::new(1, Purpose::LoraInit).uniform(0, 5);
        assert_eq!(uniform.to_bits(), 0.258_871_97_f32.to_bits());
    }

    #[test]
    fn permutations_hold_every_number_once() {
        let stream = Stream::new(7, Purpose::Split);
        for n in [0, 1, 2, 3, 1000] {
            let mut sorted = stream.permutation(3, n);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
        assert_ne!(stream.permutation(0, 100), stream.permutation(1, 100));
    }

    /// 6000 draws of 3! orders: each 1000 expected, standard deviation 29; five of them allowed.
    #[test]
    fn each_order_of_three_is_equally_likely() {
        let stream = Stream::new(1, Purpose::DataOrder);
        let mut counts = std::collections::BTreeMap::new();
        for step in 0..6000 {
            *counts.entry(stream.permutation(step, 3)).or_insert(0_i32) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|n| (n - 1000).abs() < 145), "{counts:?}");
    }

    #[test]
    fn uniform_is_in_its_range_and_centered() {
        let stream = Stream::new(5, Purpose::LoraInit);
        let values: Vec<f32> = (0..10_000).map(|i| stream.uniform(0, i)).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.0145, "mean {mean}: five standard deviations are 0.0144");
    }

    #[test]
    fn purposes_and_seeds_differ() {
        let all = [
            Purpose::DataOrder,
            Purpose::Split,
            Purpose::LoraInit,
            Purpose::Dropout,
            Purpose::Sampling,
            Purpose::EmbeddingNoise,
        ];
        let mut seen: Vec<[u32; 4]> = Vec::new();
        for seed in [0, 1, 1 << 32] {
            for purpose in all {
                seen.push(Stream::new(seed, purpose).bits(0, 0));
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 18);
    }
}
