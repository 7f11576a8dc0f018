//! Drop and rescale: of each model's changes a random share is dropped, the rest grows to make up
//! for it, and the weighted mean of what is left is added to the base.
//!
//! Paper: Yu et al. 2023, arXiv:2311.03099, sec. 3.2. With the changes `d_i = W_i - W_0`, the drop
//! rate p and masks `m_i` that are 1 with probability 1 - p:
//! `out = W_0 + sum_i (w_i / sum w) d_i m_i / (1 - p)`.
//!
//! Ours: the rescaling is 1 / (1 - p) exactly, as in the paper; mergekit scales each tensor back to
//! the sum of magnitudes that it had.
//!
//! Options: `drop_rate` (0.3; 1 gives the base), `seed` (42).
//!
//! Masks: s is the seed exclusive-or the first four bytes, big-endian, of the SHA-256 of the
//! tensor's name. Of model i (from 0), element j is kept if word j mod 4 of
//! `philox4x32(counter = [j / 4 low, j / 4 high, i, 0], key = [s low, s high])` is below
//! `round((1 - p) 2^32)`. So a mask depends on nothing but the seed, the name and the two numbers.
//!
//! Numerics: sums in f64 in the order of the models, rounded to f32 once.

use forgelm_sdk::device::{DeviceKernels, DevicePart, DropMask};
use forgelm_sdk::merge_method::{
    Descriptor, DevicePiece, Failed, MergeMethod, MergeOnDevice, Needs, Piece, Scope,
};
use forgelm_sdk::options::Reader;
use forgelm_sdk::random::philox4x32;
use forgelm_sdk::{OptionValue, OptionsError};
use sha2::{Digest, Sha256};

use crate::shares::shares;

/// The entry in the kind's list.
pub const DARE: Descriptor = Descriptor {
    name: "dare",
    summary: "drop changes at random, rescale the rest, add their mean to the base",
    source: "Yu et al. 2023, arXiv:2311.03099, sec. 3.2",
    needs: Needs { scope: Scope::Elements, n_inputs_min: 2, n_inputs_max: usize::MAX },
    build,
};

/// Largest whole number that every config carries exactly.
const SEED_MAX: f64 = 9_007_199_254_740_991.0;

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ranges are checked")]
fn build(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError> {
    let mut options = Reader::new(DARE.name, options);
    let drop_rate = options.number("drop_rate", 0.3, 0.0..=1.0)?;
    let seed = options.number("seed", 42.0, 0.0..=SEED_MAX)? as u64;
    options.finish()?;
    let keep = 1.0 - drop_rate;
    let factors = shares(weights)?.iter().map(|share| share / keep).collect();
    Ok(Box::new(Dare { factors, kept_below: (keep * 4_294_967_296.0).round() as u64, seed }))
}

struct Dare {
    /// Share over 1 - p, of each model.
    factors: Vec<f64>,
    kept_below: u64,
    seed: u64,
}

/// Elements whose sums are held together: whole blocks of four words.
const RUN: usize = 512;

/// The seed of a tensor's masks.
fn tensor_seed(seed: u64, name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    let word = digest.iter().take(4).fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
    seed ^ word
}

/// Low and high half.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
const fn halves(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

/// Words `first..first + words.len()` of the stream of one model.
fn fill(words: &mut [u32], first: u64, model: u32, key: [u32; 2]) {
    let mut block = first / 4;
    let mut skipped = usize::try_from(first % 4).unwrap_or(0);
    let mut rest = words;
    while !rest.is_empty() {
        let [low, high] = halves(block);
        let bits = philox4x32([low, high, model, 0], key);
        let n = (4 - skipped).min(rest.len());
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&bits[skipped..skipped + n]);
        (rest, skipped, block) = (later, 0, block + 1);
    }
}

impl MergeMethod for Dare {
    fn reads_base(&self) -> bool {
        true
    }

    #[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        let base = piece.base.expect("the host reads the base");
        let key = halves(tensor_seed(self.seed, piece.tensor.name));
        let mut words = [0_u32; RUN];
        for (run, out) in out.chunks_mut(RUN).enumerate() {
            let at = run * RUN..run * RUN + out.len();
            let base = &base[at.clone()];
            let mut sums = [0.0_f64; RUN];
            if self.kept_below > 0 {
                let models = (0_u32..).zip(piece.inputs.iter().zip(&self.factors));
                for (model, (input, &factor)) in models {
                    let first = (piece.start + at.start) as u64;
                    fill(&mut words[..out.len()], first, model, key);
                    let pairs = input[at.clone()].iter().zip(base).zip(&words);
                    for (sum, ((&value, &base), &word)) in sums.iter_mut().zip(pairs) {
                        let change = f64::from(value - base) * factor;
                        *sum += if u64::from(word) < self.kept_below { change } else { 0.0 };
                    }
                }
            }
            for ((out, &base), sum) in out.iter_mut().zip(base).zip(sums) {
                *out = (f64::from(base) + sum) as f32;
            }
        }
        Ok(())
    }

    fn on_device(&self) -> Option<&dyn MergeOnDevice> {
        Some(self)
    }
}

impl MergeOnDevice for Dare {
    fn merge(&self, piece: &DevicePiece<'_>, out: DevicePart) -> Result<(), Failed> {
        let mask = DropMask {
            key: halves(tensor_seed(self.seed, piece.tensor.name)),
            kept_below: self.kept_below,
            start: piece.start,
        };
        DeviceKernels::needed()?.merge_dare(out, piece.models(), &self.factors, mask)
    }
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "counts, and values that are exact"
)]
mod tests {
    use super::*;
    use crate::testing::{Models, assert_close};

    fn rate(rate: f64) -> [(&'static str, OptionValue); 1] {
        [("drop_rate", OptionValue::Number(rate))]
    }

    /// The specification's number for this name and the default seed.
    #[test]
    fn the_seed_of_a_tensor_is_that_of_the_specification() {
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(tensor_seed(0, name), 631_316_167);
        assert_eq!(tensor_seed(42, name), 631_316_205);
    }

    /// Without drops it is the base plus the mean change; with all dropped, the base.
    #[test]
    fn the_ends_of_the_scale_by_hand() {
        let models = Models::new(&[1.0, 2.0], &[&[2.0, 2.0], &[1.0, 6.0]]);
        assert_eq!(models.merge(&DARE, &rate(0.0), &[1.0, 3.0]), [1.25, 5.0]);
        assert_eq!(models.merge(&DARE, &rate(1.0), &[1.0, 3.0]), [1.0, 2.0]);
    }

    /// A kept change is exactly 1 / (1 - p) times as large, and the share that is kept is 1 - p
    /// within 4 standard deviations: sqrt(0.4 0.6 / 20000) = 0.0035.
    #[test]
    fn a_change_is_dropped_or_rescaled_and_models_have_masks_of_their_own() {
        let n = 20_000;
        let (base, ones) = (vec![0.0; n], vec![1.0_f32; n]);
        let models = Models::new(&base, &[&ones, &base]);
        let first = models.merge(&DARE, &rate(0.6), &[1.0, 1.0]);
        let kept = first.iter().filter(|&&v| v != 0.0).count();
        assert!((kept as f64 / n as f64 - 0.4).abs() < 0.014, "{kept} of {n} were kept");
        assert!(first.iter().all(|&v| v == 0.0 || (v - 1.25).abs() < 1e-6));
        let models = Models::new(&base, &[&base, &ones]);
        let second = models.merge(&DARE, &rate(0.6), &[1.0, 1.0]);
        let agree = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        // Two independent masks agree on 0.4^2 + 0.6^2 = 0.52.
        assert!((agree as f64 / n as f64 - 0.52).abs() < 0.015, "{agree} of {n} agree");
    }

    /// Element 5 of model 1, straight from the definition.
    #[test]
    fn a_mask_is_the_word_that_the_documentation_names() {
        let models = Models::new(&[0.0; 9], &[&[0.0; 9], &[1.0; 9]]);
        let merged = models.merge(&DARE, &rate(0.5), &[1.0, 1.0]);
        let key = halves(tensor_seed(42, Models::NAME));
        let expected: Vec<f32> = (0..9_usize)
            .map(|j| {
                let words = philox4x32([(j / 4) as u32, 0, 1, 0], key);
                if words[j % 4] < 1 << 31 { 1.0 } else { 0.0 }
            })
            .collect();
        assert_close(&merged, &expected, 0.0);
        assert!(expected.contains(&0.0) && expected.contains(&1.0));
    }
}
