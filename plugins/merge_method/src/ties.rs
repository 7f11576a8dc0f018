//! Trim, elect sign, merge: small changes are trimmed, the models elect a sign for every element,
//! and the mean of the changes that have it is added to the base.
//!
//! Paper: Yadav et al. 2023, arXiv:2306.01708, sec. 4. With the changes `d_i = W_i - W_0`, trimmed
//! to t_i: `out = W_0 + sum_A w_i t_i / sum_A w_i` over the models A whose t_i has the elected sign.
//!
//! Options: `trim_fraction` f (0.2), `variant`:
//! - `votes`: of n changes those smaller in magnitude than the k-th smallest are trimmed, with
//!   `k = max(1, floor(f n))`, so that n - k + 1 stay; each model has one vote for a sign, whatever
//!   its weight and the size of its change; a draw is plus.
//! - `paper`, as mergekit: the `floor((1 - f) n)` largest stay; the sign is that of the weighted sum
//!   of the trimmed changes; zero is plus.
//!
//! Ours: changes of the same magnitude as the last that stays all stay, in both. The paper trims
//! 80 %; the default here is 20 %.
//!
//! Thresholds are exact: three passes count the magnitudes by their upper 11, next 10 and last 10
//! bits, each pass within the bin of the one before, which is the order of the numbers.
//!
//! Numerics: changes in f32; sums in f64 in the order of the models, rounded to f32 once.

use forgelm_sdk::device::{DeviceKernels, DevicePart, Election, MagnitudeBits};
use forgelm_sdk::merge_method::{
    Descriptor, DevicePiece, Failed, MergeMethod, MergeOnDevice, Needs, Pass, Piece, Scope, Tensor,
};
use forgelm_sdk::options::Reader;
use forgelm_sdk::{OptionValue, OptionsError};

use crate::shares::shares;

/// The entry in the kind's list.
pub const TIES: Descriptor = Descriptor {
    name: "ties",
    summary: "trim small changes, elect a sign, add the mean of those that agree to the base",
    source: "Yadav et al. 2023, arXiv:2306.01708, sec. 4",
    needs: Needs { scope: Scope::Elements, n_inputs_min: 2, n_inputs_max: usize::MAX },
    build,
};

fn build(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError> {
    let mut options = Reader::new(TIES.name, options);
    let trim_fraction = options.number("trim_fraction", 0.2, 0.0..=1.0)?;
    let variant = match options.word("variant", &["votes", "paper"])? {
        0 => Variant::Votes,
        _ => Variant::Paper,
    };
    options.finish()?;
    let shares = shares(weights)?;
    let n = shares.len();
    let passes =
        if trim_fraction > 0.0 { LEVELS.map(|level| level.pass(n)).to_vec() } else { vec![] };
    Ok(Box::new(Ties { shares, trim_fraction, variant, passes }))
}

struct Ties {
    shares: Vec<f64>,
    trim_fraction: f64,
    variant: Variant,
    /// None when nothing is trimmed.
    passes: Vec<Pass>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Votes,
    Paper,
}

/// One step of the search for a threshold: the bits of a magnitude that it counts.
#[derive(Clone, Copy)]
struct Level {
    /// Bits below those counted.
    shift: u32,
    /// Values of the bits counted.
    n_bins: usize,
}

/// 31 bits of magnitude from the top: 11, 10, 10.
const LEVELS: [Level; 3] = [
    Level { shift: 20, n_bins: 1 << 11 },
    Level { shift: 10, n_bins: 1 << 10 },
    Level { shift: 0, n_bins: 1 << 10 },
];
/// Bins of the largest level.
const BINS_MAX: usize = 1 << 11;
/// Facts for one model: the bits known of its threshold, and how many smaller magnitudes within
/// them come before it.
const N_FACTS: usize = 2;
/// The threshold that nothing reaches.
const NOTHING_STAYS: u32 = u32::MAX;

impl Level {
    const fn pass(self, n_models: usize) -> Pass {
        Pass { n_sums: n_models * self.n_bins, n_facts: n_models * N_FACTS }
    }
}

/// Magnitudes of f32 in the order of the numbers.
fn magnitude(change: f32) -> u32 {
    change.to_bits() & 0x7fff_ffff
}

impl Ties {
    /// How many of n magnitudes are smaller than the threshold at most; `None` if nothing stays.
    #[expect(clippy::cast_precision_loss, reason = "a tensor has fewer than 2^53 elements")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to n")]
    fn n_below(&self, n: usize) -> Option<usize> {
        match self.variant {
            Variant::Votes => {
                Some((((self.trim_fraction * n as f64).floor() as usize).max(1) - 1).min(n - 1))
            }
            Variant::Paper => {
                let n_kept = (((1.0 - self.trim_fraction) * n as f64).floor() as usize).min(n);
                (n_kept > 0).then(|| n - n_kept)
            }
        }
    }

    /// Bits of the magnitude from which on a change of this model stays.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "31 bits in a fact"
    )]
    fn threshold(&self, model: usize, tensor: &Tensor<'_>) -> u32 {
        let Some(last) = self.passes.len().checked_sub(1) else { return 0 };
        match self.n_below(tensor.len) {
            None => NOTHING_STAYS,
            Some(_) => fact(tensor, self.shares.len(), last, model)[0] as u32,
        }
    }
}

/// What a pass found for a model.
fn fact<'a>(tensor: &Tensor<'a>, n_models: usize, pass: usize, model: usize) -> &'a [f64] {
    let facts: &'a [f64] = tensor.facts;
    &facts[(pass * n_models + model) * N_FACTS..][..N_FACTS]
}

/// Elements that are worked on together.
const RUN: usize = 256;

impl MergeMethod for Ties {
    fn reads_base(&self) -> bool {
        true
    }

    fn passes(&self) -> &[Pass] {
        &self.passes
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a piece")]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "31 bits in a fact"
    )]
    fn measure(&self, pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        let base = piece.base.expect("the host reads the base");
        let Level { shift, n_bins } = LEVELS[pass];
        let models = piece.inputs.iter().zip(sums.chunks_exact_mut(n_bins));
        for (model, (input, sums)) in models.enumerate() {
            let mut counts = [0_u64; BINS_MAX];
            let pairs = input.iter().zip(base);
            let magnitudes = pairs.map(|(value, base)| magnitude(value - base));
            match pass.checked_sub(1) {
                None => magnitudes.for_each(|m| counts[(m >> shift) as usize] += 1),
                Some(before) => {
                    let prefix = fact(&piece.tensor, self.shares.len(), before, model)[0] as u32;
                    let bits = n_bins.trailing_zeros();
                    for m in magnitudes {
                        if m >> (shift + bits) == prefix {
                            counts[(m >> shift) as usize & (n_bins - 1)] += 1;
                        }
                    }
                }
            }
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count as f64;
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a tensor has fewer than 2^53 elements")]
    fn conclude(
        &self,
        pass: usize,
        tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        let n_bins = LEVELS[pass].n_bins;
        let models = sums.chunks_exact(n_bins).zip(facts.chunks_exact_mut(N_FACTS));
        for (model, (counts, found)) in models.enumerate() {
            let (prefix, mut n_below) = match pass.checked_sub(1) {
                None => (0.0, self.n_below(tensor.len).unwrap_or(0) as f64),
                Some(before) => {
                    let known = fact(tensor, self.shares.len(), before, model);
                    (known[0] * n_bins as f64, known[1])
                }
            };
            let mut bin = 0;
            while bin + 1 < n_bins && n_below >= counts[bin] {
                n_below -= counts[bin];
                bin += 1;
            }
            found.copy_from_slice(&[prefix + bin as f64, n_below]);
        }
        Ok(())
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        let base = piece.base.expect("the host reads the base");
        let thresholds: Vec<u32> =
            (0..self.shares.len()).map(|model| self.threshold(model, &piece.tensor)).collect();
        for (run, out) in out.chunks_mut(RUN).enumerate() {
            let at = run * RUN..run * RUN + out.len();
            let models = piece.inputs.iter().map(|input| &input[at.clone()]);
            let models = models.zip(&thresholds).zip(&self.shares);
            self.merge_run(&base[at.clone()], models, out);
        }
        Ok(())
    }

    fn on_device(&self) -> Option<&dyn MergeOnDevice> {
        Some(self)
    }
}

impl MergeOnDevice for Ties {
    fn measures(&self) -> bool {
        true
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a piece")]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "31 bits in a fact"
    )]
    fn measure(
        &self,
        pass: usize,
        piece: &DevicePiece<'_>,
        sums: &mut [f64],
    ) -> Result<(), Failed> {
        let Level { shift, n_bins } = LEVELS[pass];
        let prefix = |before: usize, model: usize| {
            fact(&piece.tensor, self.shares.len(), before, model)[0] as u32
        };
        let prefixes: Option<Vec<u32>> = pass
            .checked_sub(1)
            .map(|before| (0..self.shares.len()).map(|model| prefix(before, model)).collect());
        let bits = MagnitudeBits { shift, bits: n_bins.trailing_zeros() };
        let device = DeviceKernels::needed()?;
        let counts = device.ties_count(piece.models(), prefixes.as_deref(), bits)?;
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count as f64;
        }
        Ok(())
    }

    fn merge(&self, piece: &DevicePiece<'_>, out: DevicePart) -> Result<(), Failed> {
        let thresholds: Vec<u32> =
            (0..self.shares.len()).map(|model| self.threshold(model, &piece.tensor)).collect();
        let election = match self.variant {
            Variant::Votes => Election::Votes,
            Variant::Paper => Election::Sum,
        };
        let trimming = (&thresholds[..], &self.shares[..]);
        DeviceKernels::needed()?.merge_ties(out, piece.models(), trimming, election)
    }
}

impl Ties {
    /// Twice over the models: once to elect, once to add what agrees.
    #[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
    fn merge_run<'a>(
        &self,
        base: &[f32],
        models: impl Iterator<Item = ((&'a [f32], &'a u32), &'a f64)> + Clone,
        out: &mut [f32],
    ) {
        let mut election = [0.0_f64; RUN];
        for ((input, &threshold), &share) in models.clone() {
            for (vote, (&value, &base)) in election.iter_mut().zip(input.iter().zip(base)) {
                let change = trimmed(value - base, threshold);
                *vote += match self.variant {
                    Variant::Votes => sign(change),
                    Variant::Paper => share * f64::from(change),
                };
            }
        }
        let (mut sums, mut weights) = ([0.0_f64; RUN], [0.0_f64; RUN]);
        for ((input, &threshold), &share) in models {
            let elected = election.iter().map(|&vote| if vote >= 0.0 { 1.0 } else { -1.0 });
            let pairs = input.iter().zip(base).zip(elected);
            let totals = sums.iter_mut().zip(&mut weights);
            for ((sum, weight), ((&value, &base), elected)) in totals.zip(pairs) {
                let change = trimmed(value - base, threshold);
                let agrees = f64::from(change) * elected > 0.0;
                *sum += if agrees { share * f64::from(change) } else { 0.0 };
                *weight += if agrees { share } else { 0.0 };
            }
        }
        for ((out, &base), (sum, weight)) in out.iter_mut().zip(base).zip(sums.iter().zip(weights))
        {
            // Shares that cancel (negative weights) leave the sum as it is.
            let mean = if weight > 0.0 { sum / weight.max(1e-12) } else { *sum };
            *out = (f64::from(base) + mean) as f32;
        }
    }
}

fn trimmed(change: f32, threshold: u32) -> f32 {
    if magnitude(change) >= threshold { change } else { 0.0 }
}

fn sign(change: f32) -> f64 {
    f64::from(u8::from(change > 0.0)) - f64::from(u8::from(change < 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Models, assert_close};

    const FIRST: [f32; 5] = [0.1, -0.5, 0.3, 0.02, -0.2];
    const SECOND: [f32; 5] = [0.4, 0.6, -0.1, 0.0, -0.3];

    fn options(fraction: f64, variant: &str) -> [(&'static str, OptionValue); 2] {
        [
            ("trim_fraction", OptionValue::Number(fraction)),
            ("variant", OptionValue::Text(variant.to_owned())),
        ]
    }

    /// The specification's numbers: with 0.4 the threshold is the second smallest, 0.1, of both.
    #[test]
    fn the_vectors_of_the_specification() {
        let models = Models::new(&[0.0; 5], &[&FIRST, &SECOND]);
        let merged = models.merge(&TIES, &options(0.4, "votes"), &[3.0, 1.0]);
        assert_close(&merged, &[0.175, 0.6, 0.3, 0.0, -0.225], 1e-7);
        let merged = models.merge(&TIES, &options(0.2, "votes"), &[3.0, 1.0]);
        assert_close(&merged, &[0.175, 0.6, 0.3, 0.02, -0.225], 1e-7);
    }

    /// The same by weight: 0.75 (-0.5) + 0.25 (0.6) is negative. floor(0.6 5) = 3 stay: of the
    /// first -0.5, 0.3, -0.2, of the second 0.4, 0.6, -0.3.
    #[test]
    fn the_paper_elects_by_weight() {
        let models = Models::new(&[0.0; 5], &[&FIRST, &SECOND]);
        let merged = models.merge(&TIES, &options(0.4, "paper"), &[3.0, 1.0]);
        assert_close(&merged, &[0.4, -0.5, 0.3, 0.0, -0.225], 1e-7);
    }

    #[test]
    fn a_threshold_is_the_one_that_sorting_finds() {
        for n in [1, 2, 17, 1000] {
            let models = Models::random(7, n);
            for (variant, fraction) in [("votes", 0.37), ("paper", 0.37), ("votes", 1.0)] {
                let mut sorted: Vec<f32> = models.changes(0).iter().map(|d| d.abs()).collect();
                sorted.sort_by(f32::total_cmp);
                let floor = |x: f64| (0..).take_while(|&i| f64::from(i + 1) <= x).count();
                let below = match variant {
                    "votes" => floor(fraction * f64::from(n)).max(1) - 1,
                    _ => sorted.len() - floor((1.0 - fraction) * f64::from(n)),
                };
                let threshold = sorted.get(below).copied().unwrap_or(f32::INFINITY);
                // The other model is the base: what it trims changes nothing.
                let alone = Models::new(&models.base, &[&models.inputs[0], &models.base]);
                let merged = alone.merge(&TIES, &options(fraction, variant), &[1.0, 1.0]);
                for (i, change) in models.changes(0).into_iter().enumerate() {
                    let expected = if change.abs() >= threshold { change } else { 0.0 };
                    let found = merged[i] - models.base[i];
                    assert!((found - expected).abs() < 1e-6, "{variant}, {n}: {i}");
                }
            }
        }
    }

    /// Position 0: only the first agrees with plus. Shares 1.5 and -0.5: the second alone has a
    /// negative total, and its sum 0.5 stays as it is.
    #[test]
    fn a_negative_total_leaves_the_sum() {
        let models = Models::new(&[0.0; 2], &[&[1.0, 0.0], &[-1.0, -1.0]]);
        let merged = models.merge(&TIES, &options(0.0, "votes"), &[3.0, -1.0]);
        assert_eq!(merged, [1.0, 0.5]);
    }
}
