//! Random numbers as Python draws them from a seed: which examples stand in a prompt, and which rows a
//! bootstrap takes, must be those that the harness takes.
//!
//! The generator is Matsumoto and Nishimura's MT19937 (1998), seeded by array; what is drawn from it is
//! as in CPython's `random.py`, whose sequences for a seed have not changed since Python 3.2.

use rand_mt::Mt;
use std::collections::BTreeSet;

/// Python's `random.Random`.
pub(crate) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.Random(seed)` for a seed below 2^32.
    pub(crate) fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// `random()`: 53 bits in [0, 1).
    pub(crate) fn next_f64(&mut self) -> f64 {
        let (high, low) = (self.0.next_u32() >> 5, self.0.next_u32() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// `_randbelow(n)`.
    fn below(&mut self, n: usize) -> usize {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let shift = n.leading_zeros();
        loop {
            let drawn = self.0.next_u32() >> shift;
            if drawn < n {
                return drawn as usize;
            }
        }
    }

    /// `sample(range(n), k)`: `k` different numbers below `n`; none if there are not so many.
    pub(crate) fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        let set_size = 21 + if k > 5 { power_of_4_from(3 * k) } else { 0 };
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let take = |i: usize| {
                let at = self.below(n - i);
                let taken = pool[at];
                pool[at] = pool[n - i - 1];
                taken
            };
            return Some((0..k).map(take).collect());
        }
        let mut seen = BTreeSet::new();
        let draw = |_| loop {
            let drawn = self.below(n);
            if seen.insert(drawn) {
                return drawn;
            }
        };
        Some((0..k).map(draw).collect())
    }

    /// `choices(range(n), k=1)`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..n")]
    pub(crate) fn choice(&mut self, n: usize) -> usize {
        (self.next_f64() * n as f64) as usize
    }
}

/// The smallest power of 4 that is not below `n`.
fn power_of_4_from(n: usize) -> usize {
    std::iter::successors(Some(1), |power| Some(power * 4)).find(|&power| power >= n).unwrap_or(n)
}

#[cfg(test)]
mod tests {
    use super::PythonRandom;

    /// By Python 3.11: `r = random.Random(1234)`, then these calls.
    #[test]
    fn draws_are_those_of_python() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10, 3), Some(vec![7, 1, 0]));
        assert_eq!(random.sample(1000, 3), Some(vec![92, 932, 965]));
        assert_eq!(
            random.sample(1000, 25),
            Some(vec![
                961, 826, 596, 35, 687, 709, 85, 100, 784, 363, 242, 17, 31, 807, 16, 354, 663,
                638, 495, 630, 474, 152, 93, 187, 730
            ])
        );
        assert_eq!(random.sample(3, 4), None);
        let mut random = PythonRandom::new(0);
        assert!((random.next_f64() - 0.844_421_851_525_048_1).abs() < 1e-15);
        let drawn: Vec<usize> = (0..5).map(|_| random.choice(100)).collect();
        assert_eq!(drawn, [75, 42, 25, 51, 40]);
    }
}
