//! From logits to a token.
//!
//! In this order, as the Hugging Face library: repetition penalty (Keskar et al. 2019,
//! arXiv:1909.05858, sec. 4.1), temperature, top-k (Fan et al. 2018, arXiv:1805.04833), top-p
//! (Holtzman et al. 2019, arXiv:1904.09751, sec. 3.1). Temperature 0 takes the largest logit.

use forgelm_kernels_api::{Draw, DrawRule};
use forgelm_tensor::random::{Purpose, Stream};
use thiserror::Error;

/// Above this many nats a distribution counts as undecided; the default of [`Sampling::adaptive`].
pub const ADAPTIVE_ENTROPY_MAX: f64 = 6.5;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 always takes the largest.
    pub temperature: f32,
    /// Keep the tokens whose logit is at least the k-th largest; 0 keeps all.
    pub top_k: usize,
    /// Drop a token when the mass of those before it exceeds this; 1 keeps all.
    pub top_p: f32,
    /// Logits of tokens already seen are divided by it when positive, else multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Take the largest logit whenever the distribution's entropy (nats) is below this.
    pub adaptive: Option<f64>,
}

impl Default for Sampling {
    /// The values that `chat` uses.
    fn default() -> Self {
        Self { temperature: 0.7, top_k: 50, top_p: 0.9, repetition_penalty: 1.1, adaptive: None }
    }
}

impl Sampling {
    /// Always the largest logit.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, adaptive: None };
}

/// A setting is out of range.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("`{key}` is {found}; expected {expected}")]
pub struct SamplingError {
    /// Which.
    pub key: &'static str,
    /// Value found.
    pub found: f32,
    /// What would be right.
    pub expected: &'static str,
}

/// The model gave a logit that is not a number.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the model gave NaN for token {token}")]
pub struct NotANumber {
    /// The first token with such a logit.
    pub token: u32,
}

/// Chooses tokens; the n-th choice is a function of (seed, n, logits).
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    stream: Stream,
    n_chosen: u64,
    /// Logit and token, reused.
    candidates: Vec<(f32, u32)>,
    seen: Vec<u32>,
}

impl Sampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// If one is out of range.
    pub fn new(sampling: Sampling, seed: u64) -> Result<Self, SamplingError> {
        let check = |key, found: f32, good: bool, expected| {
            if good { Ok(()) } else { Err(SamplingError { key, found, expected }) }
        };
        let Sampling { temperature, top_p, repetition_penalty, .. } = sampling;
        let in_range = (0.0..=2.0).contains(&temperature);
        check("temperature", temperature, in_range, "from 0 to 2")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, at most 1")?;
        let positive = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        check("repetition_penalty", repetition_penalty, positive, "above 0")?;
        Ok(Self {
            sampling,
            stream: Stream::new(seed, Purpose::Sampling),
            n_chosen: 0,
            candidates: Vec::new(),
            seen: Vec::new(),
        })
    }

    /// Chooses the next token.
    ///
    /// Shapes: `logits` [V], changed by the repetition penalty; `context` the tokens so far.
    ///
    /// # Errors
    /// If a logit is NaN.
    ///
    /// # Panics
    /// If `logits` is empty: a bug in the caller.
    pub fn next(&mut self, logits: &mut [f32], context: &[u32]) -> Result<u32, NotANumber> {
        assert!(!logits.is_empty(), "there is no token to choose from");
        if let Some(token) = first_nan(logits) {
            return Err(NotANumber { token: token as u32 });
        }
        self.penalize(logits, context);
        let step = self.n_chosen;
        self.n_chosen += 1;
        let undecided = |limit| logit_stats(logits).entropy >= limit;
        if self.sampling.temperature <= 0.0 || !self.sampling.adaptive.is_none_or(undecided) {
            return Ok(largest(logits));
        }
        self.keep_candidates(logits);
        Ok(self.draw(f64::from(self.stream.uniform(step, 0))))
    }

    /// What a kernel library needs to choose in the place of [`Sampler::next`]; nothing where the
    /// whole distribution is looked at first.
    pub(crate) fn rule(&self) -> Option<DrawRule> {
        let Sampling { temperature, top_k, top_p, repetition_penalty, adaptive } = self.sampling;
        let rule = DrawRule { repetition_penalty, temperature, top_k, top_p };
        adaptive.is_none().then_some(rule)
    }

    /// The draw of the next choice, which then counts as made.
    pub(crate) fn draw_next(&mut self, context: &[u32]) -> Draw<'_> {
        let uniform = self.stream.uniform(self.n_chosen, 0);
        self.n_chosen += 1;
        Draw { uniform, seen: self.see(context) }
    }

    /// The tokens that a penalty is for, each once, however often it was seen.
    fn see(&mut self, context: &[u32]) -> &[u32] {
        self.seen.clear();
        if (self.sampling.repetition_penalty - 1.0).abs() >= f32::EPSILON {
            self.seen.extend_from_slice(context);
            self.seen.sort_unstable();
            self.seen.dedup();
        }
        &self.seen
    }

    fn penalize(&mut self, logits: &mut [f32], context: &[u32]) {
        let penalty = self.sampling.repetition_penalty;
        for &token in self.see(context) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// The candidates that top-k and top-p leave, in the order of their ids: near-equal logits that
    /// change places by rounding do not change which token a number in [0, 1) falls on.
    fn keep_candidates(&mut self, logits: &[f32]) {
        let all = &mut self.candidates;
        all.clear();
        all.extend(logits.iter().zip(0..).map(|(&logit, token)| (logit, token)));
        let k = self.sampling.top_k;
        if k > 0 && k < all.len() {
            let (_, kth, _) = all.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0));
            let least = kth.0;
            all.retain(|(logit, _)| *logit >= least);
        }
        if self.sampling.top_p < 1.0 {
            self.keep_nucleus();
        }
        self.candidates.sort_unstable_by_key(|&(_, token)| token);
    }

    /// Top-p: from the largest down, equal logits by token, until their mass exceeds the limit.
    fn keep_nucleus(&mut self) {
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let weight = self.weight();
        let total: f64 = self.candidates.iter().map(&weight).sum();
        let limit = f64::from(self.sampling.top_p) * total;
        let mut kept = 0.0;
        let n_kept = self.candidates.iter().take_while(|candidate| {
            let is_kept = kept <= limit;
            kept += weight(candidate);
            is_kept
        });
        let n_kept = n_kept.count();
        self.candidates.truncate(n_kept);
    }

    /// The probability of a candidate, up to one factor for all.
    fn weight(&self) -> impl Fn(&(f32, u32)) -> f64 + use<> {
        let temperature = f64::from(self.sampling.temperature);
        let top = self.candidates.iter().fold(f32::NEG_INFINITY, |top, one| top.max(one.0));
        move |&(logit, _)| ((f64::from(logit) - f64::from(top)) / temperature).exp()
    }

    /// The candidate that a number in [0, 1) falls on.
    fn draw(&self, uniform: f64) -> u32 {
        let weight = self.weight();
        let mut left = uniform * self.candidates.iter().map(&weight).sum::<f64>();
        let drawn = self.candidates.iter().find(|candidate| {
            left -= weight(candidate);
            left < 0.0
        });
        // Rounding may leave a crumb; it belongs to the last.
        drawn.unwrap_or(&self.candidates[self.candidates.len() - 1]).1
    }
}

/// The first of the largest. In two passes, each of a form that becomes vector instructions.
fn largest(logits: &[f32]) -> u32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (groups, rest) = logits.as_chunks::<16>();
    let mut tops = [f32::NEG_INFINITY; 16];
    for group in groups {
        for (top, &logit) in tops.iter_mut().zip(group) {
            *top = larger(*top, logit);
        }
    }
    let top = tops.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|&logit| logit >= top).unwrap_or(0) as u32
}

/// The first that is not a number.
fn first_nan(logits: &[f32]) -> Option<usize> {
    let any = |part: &[f32]| part.iter().fold(false, |any, logit| any | logit.is_nan());
    logits.chunks(1024).any(any).then(|| logits.iter().position(|logit| logit.is_nan()))?
}

/// How decided a distribution is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitStats {
    /// Entropy in nats.
    pub entropy: f64,
    /// Largest probability.
    pub top1_prob: f64,
    /// Tokens with a probability above 0.01.
    pub effective_vocab: usize,
}

/// Entropy, largest probability and effective vocabulary of the softmax of `logits`.
#[must_use]
pub fn logit_stats(logits: &[f32]) -> LogitStats {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&logit: &f32| (f64::from(logit) - f64::from(top)).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let mut stats = LogitStats { entropy: 0.0, top1_prob: 0.0, effective_vocab: 0 };
    for p in logits.iter().map(|logit| weight(logit) / total) {
        if p > 0.0 {
            stats.entropy -= p * p.ln();
        }
        stats.top1_prob = stats.top1_prob.max(p);
        stats.effective_vocab += usize::from(p > 0.01);
    }
    stats
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "a test of exact values")]
mod tests {
    use super::{Sampler, Sampling, logit_stats};

    const PLAIN: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        adaptive: None,
    };

    /// Logits whose softmax is these probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn counts(sampling: Sampling, probabilities: &[f32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling, 11).unwrap();
        let mut counts = vec![0; probabilities.len()];
        for _ in 0..n {
            counts[sampler.next(&mut logits(probabilities), &[]).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(Sampling::GREEDY, 0).unwrap();
        assert_eq!(sampler.next(&mut [0.5, 2.0, 2.0, 1.0], &[]), Ok(1));
        let mut many: Vec<f32> = (0_u8..100).map(|i| f32::from(i % 50)).collect();
        assert_eq!(sampler.next(&mut many, &[]), Ok(49));
        many[98] = 49.5;
        assert_eq!(sampler.next(&mut many, &[]), Ok(98));
        assert_eq!(sampler.next(&mut [f32::NEG_INFINITY; 40], &[]), Ok(0));
    }

    /// 10,000 draws: standard deviation of a count is at most 50; five of them allowed.
    #[test]
    fn draws_follow_the_probabilities() {
        let found = counts(PLAIN, &[0.1, 0.6, 0.3], 10_000);
        for (found, expected) in found.iter().zip([1000_usize, 6000, 3000]) {
            assert!(found.abs_diff(expected) < 250, "{found}, expected {expected}");
        }
    }

    #[test]
    fn top_k_keeps_the_largest_and_what_equals_the_kth() {
        let found = counts(Sampling { top_k: 2, ..PLAIN }, &[0.1, 0.4, 0.2, 0.2, 0.1], 2000);
        assert_eq!((found[0], found[4]), (0, 0));
        assert!(found[1] > 0 && found[2] > 0 && found[3] > 0);
    }

    /// Sorted: 0.5, 0.3, 0.15, 0.05. The mass before the third is 0.8, which exceeds 0.7.
    #[test]
    fn top_p_drops_a_token_when_the_mass_before_it_exceeds_p() {
        let found = counts(Sampling { top_p: 0.7, ..PLAIN }, &[0.3, 0.05, 0.5, 0.15], 2000);
        assert_eq!((found[1], found[3]), (0, 0));
        assert!(found[0] > 0 && found[2] > 0);
        let only_one = counts(Sampling { top_p: 0.4, ..PLAIN }, &[0.3, 0.05, 0.5, 0.15], 100);
        assert_eq!(only_one, [0, 0, 100, 0]);
    }

    /// At temperature 0.5 the probabilities are squared: 0.8 and 0.2 become 16 to 1.
    #[test]
    fn temperature_sharpens() {
        let found = counts(Sampling { temperature: 0.5, ..PLAIN }, &[0.8, 0.2], 17_000);
        assert!(found[1].abs_diff(1000) < 160, "{found:?}");
    }

    /// Token 0: 2.0 / 2 = 1.0; token 1: -1.0 * 2 = -2.0; token 2 was not seen.
    #[test]
    fn seen_tokens_are_penalized_once_by_their_sign() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(sampling, 0).unwrap();
        let mut logits = [2.0, -1.0, 1.5];
        assert_eq!(sampler.next(&mut logits, &[0, 1, 0, 0]), Ok(2));
        assert_eq!(logits, [1.0, -2.0, 1.5]);
    }

    #[test]
    fn the_same_seed_gives_the_same_draws_and_another_does_not() {
        let draws = |seed| {
            let mut sampler = Sampler::new(PLAIN, seed).unwrap();
            (0..50).map(|_| sampler.next(&mut [0.0; 64], &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    /// Both orders of two near-equal logits give the same draws: they are not sorted by size.
    #[test]
    fn a_difference_of_rounding_changes_no_draw() {
        for sampling in [PLAIN, Sampling { top_k: 3, ..PLAIN }, Sampling { top_p: 0.9, ..PLAIN }] {
            let draws = |logits: [f32; 4]| {
                let mut sampler = Sampler::new(sampling, 5).unwrap();
                (0..300)
                    .map(|_| sampler.next(&mut logits.clone(), &[]).unwrap())
                    .collect::<Vec<_>>()
            };
            let (less, more) = (1.0 - f32::EPSILON, 1.0 + f32::EPSILON);
            assert_eq!(draws([0.9, less, more, -3.0]), draws([0.9, more, less, -3.0]));
        }
    }

    #[test]
    fn a_decided_distribution_is_not_sampled_under_adaptive() {
        let sampling = Sampling { adaptive: Some(0.6), ..PLAIN };
        // Entropy of (0.9, 0.1) is 0.325 nats, of (0.5, 0.5) it is 0.693.
        assert_eq!(counts(sampling, &[0.1, 0.9], 300), [0, 300]);
        assert!(counts(sampling, &[0.5, 0.5], 300)[0] > 0);
    }

    #[test]
    fn stats_of_a_known_distribution() {
        let stats = logit_stats(&logits(&[0.5, 0.25, 0.245, 0.005]));
        assert!((stats.entropy - 1.0643).abs() < 1e-3, "{}", stats.entropy);
        assert!((stats.top1_prob - 0.5).abs() < 1e-6);
        assert_eq!(stats.effective_vocab, 3);
    }

    #[test]
    fn settings_out_of_range_and_nan_are_refused() {
        for bad in [
            Sampling { temperature: -0.1, ..PLAIN },
            Sampling { temperature: 2.1, ..PLAIN },
            Sampling { temperature: f32::NAN, ..PLAIN },
            Sampling { top_p: 0.0, ..PLAIN },
            Sampling { repetition_penalty: 0.0, ..PLAIN },
        ] {
            assert!(Sampler::new(bad, 0).is_err(), "{bad:?}");
        }
        let mut sampler = Sampler::new(PLAIN, 0).unwrap();
        assert_eq!(sampler.next(&mut [0.0, f32::NAN], &[]).unwrap_err().token, 1);
        let mut many = [0.0; 3000];
        many[2500] = f32::NAN;
        assert_eq!(sampler.next(&mut many, &[]).unwrap_err().token, 2500);
    }
}
