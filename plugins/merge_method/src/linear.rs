//! Weighted mean of the models, tensor by tensor.
//!
//! Paper: Wortsman et al. 2022, arXiv:2203.05482 ("model soups"), sec. 2. With the weights w of the
//! models W: `out = sum_i (w_i / sum w) W_i`.
//!
//! No options.
//!
//! Numerics: sums in f64 in the order of the models, rounded to f32 once.

use forgelm_sdk::device::{DeviceKernels, DevicePart};
use forgelm_sdk::merge_method::{
    Descriptor, DevicePiece, Failed, MergeMethod, MergeOnDevice, Needs, Piece, Scope,
};
use forgelm_sdk::options::Reader;
use forgelm_sdk::{OptionValue, OptionsError};

use crate::shares::shares;

/// The entry in the kind's list.
pub const LINEAR: Descriptor = Descriptor {
    name: "linear",
    summary: "weighted mean of the models",
    source: "Wortsman et al. 2022, arXiv:2203.05482, sec. 2",
    needs: Needs { scope: Scope::Elements, n_inputs_min: 2, n_inputs_max: usize::MAX },
    build,
};

fn build(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError> {
    Reader::new(LINEAR.name, options).finish()?;
    Ok(Box::new(Linear { shares: shares(weights)? }))
}

struct Linear {
    shares: Vec<f64>,
}

/// Elements whose sums are held together.
const RUN: usize = 512;

impl MergeMethod for Linear {
    fn reads_base(&self) -> bool {
        false
    }

    #[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        for (run, out) in out.chunks_mut(RUN).enumerate() {
            let at = run * RUN..run * RUN + out.len();
            let mut sums = [0.0_f64; RUN];
            for (input, &share) in piece.inputs.iter().zip(&self.shares) {
                for (sum, &value) in sums.iter_mut().zip(&input[at.clone()]) {
                    *sum += share * f64::from(value);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum as f32;
            }
        }
        Ok(())
    }

    fn on_device(&self) -> Option<&dyn MergeOnDevice> {
        Some(self)
    }
}

impl MergeOnDevice for Linear {
    fn merge(&self, piece: &DevicePiece<'_>, out: DevicePart) -> Result<(), Failed> {
        DeviceKernels::needed()?.merge_linear(out, piece.inputs, &self.shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Models;

    /// Weights 1 and 3 are shares 0.25 and 0.75.
    #[test]
    fn a_mean_by_hand() {
        let models = Models::new(&[0.0; 3], &[&[1.0, 0.0, 2.0], &[0.0, 1.0, -1.0]]);
        let merged = models.merge(&LINEAR, &[], &[1.0, 3.0]);
        assert_eq!(merged, [0.25, 0.75, -0.25]);
    }
}
