//! my_plugin: a merge method for ForgeLM.
//!
//! As it comes, it is the weighted mean of the models, `y = sum(w x) / sum(w)`. Yours goes into
//! `merge`. The result must not depend on how a tensor is cut into pieces, or on threads. A method
//! that must know a whole tensor first (a norm, a threshold) has passes: `forgelm_sdk::merge_method`
//! says how.
#![forbid(unsafe_code)]

use forgelm_sdk::Failed;
use forgelm_sdk::merge_method::{Descriptor, MergeMethod, Needs, Piece, Scope};
use forgelm_sdk::options::{OptionValue, OptionsError, Reader};

struct Method {
    /// One for each model; their sum is 1.
    weights: Vec<f64>,
}

impl MergeMethod for Method {
    fn reads_base(&self) -> bool {
        false
    }

    /// Merges one piece: `out` and each input have the same n elements of one tensor.
    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        for (i, y) in out.iter_mut().enumerate() {
            let values = piece.inputs.iter().map(|input| f64::from(input[i]));
            *y = narrowed(self.weights.iter().zip(values).map(|(weight, x)| weight * x).sum());
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
fn narrowed(x: f64) -> f32 {
    x as f32
}

fn build(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError> {
    // let mut options = Reader::new(..); let density = options.number("density", 0.5, 0.0..=1.0)?;
    Reader::new("my_plugin", options).finish()?;
    let sum: f64 = weights.iter().sum();
    if sum <= 0.0 {
        let problem = "must add up to more than 0".to_owned();
        return Err(OptionsError::Weights { weights: weights.to_vec(), problem });
    }
    Ok(Box::new(Method { weights: weights.iter().map(|weight| weight / sum).collect() }))
}

const MERGE_METHODS: &[Descriptor] = &[Descriptor {
    name: "my_plugin",
    summary: "weighted mean of the tensors",
    source: "Wortsman et al. 2022, arXiv:2203.05482, sec. 2",
    needs: Needs { scope: Scope::Elements, n_inputs_min: 1, n_inputs_max: 64 },
    build,
}];

forgelm_sdk::export_plugin!(merge_methods: MERGE_METHODS);
