//! Direct preference optimization: a logistic loss on how much more than the reference the policy
//! prefers the chosen answer.
//!
//! Paper: Rafailov et al. 2023, arXiv:2305.18290, eq. 7: `L = -log sigmoid(beta (D_c - D_r))` with
//! `D = log pi(y|x) - log pi_ref(y|x)`, sums over the answer's tokens. `loss_type: ipo` is Azar et
//! al. 2023, arXiv:2310.12036, eq. 17: `L = (d_c - d_r - 1 / (2 beta))^2`, where d is D divided by
//! the answer's length.
//!
//! Options: `beta` (0.1), `loss_type` (`sigmoid`, `ipo`). Terms of the loss: pairs.
//!
//! Numerics: f64 sums in the order of the rows; the gradient is constant over an answer.

use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::{Descriptor, Loss, Needs, Records, Scored, Sequence, Trainer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

use crate::logistic::{log_sigmoid, sigmoid};
use crate::rewards::measure_pair;

/// The entry in the kind's list.
pub const DPO: Descriptor = Descriptor {
    name: "dpo",
    summary: "direct preference optimization against a frozen reference",
    source: "Rafailov et al. 2023, arXiv:2305.18290, eq. 7",
    needs: Needs {
        records: Records::Preference,
        reference: true,
        rollouts: false,
        prompts: false,
        dropout: false,
    },
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Trainer>, OptionsError> {
    let mut options = Reader::new(DPO.name, options);
    let beta = options.number("beta", 0.1, f64::MIN_POSITIVE..=1e6)?;
    let ipo = options.word("loss_type", &["sigmoid", "ipo"])? == 1;
    options.finish()?;
    Ok(Box::new(Dpo { beta, ipo }))
}

struct Dpo {
    beta: f64,
    ipo: bool,
}

impl Dpo {
    /// Loss of one pair and its derivatives with respect to the two log-ratios (sums).
    fn pair(&self, [d_c, d_r]: [f64; 2], [n_c, n_r]: [f64; 2]) -> (f64, [f64; 2]) {
        if self.ipo {
            let distance = d_c / n_c - d_r / n_r - 1.0 / (2.0 * self.beta);
            (distance * distance, [2.0 * distance / n_c, -2.0 * distance / n_r])
        } else {
            let x = self.beta * (d_c - d_r);
            let slope = self.beta * sigmoid(-x);
            (-log_sigmoid(x), [-slope, slope])
        }
    }
}

impl Trainer for Dpo {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let reference = scored.ref_logp.expect("the host prepares the reference");
        let mut loss = Loss::default();
        for (chosen, rejected) in scored.pairs() {
            let sums = |s: &Sequence| [scored.sum(scored.logp, s), scored.sum(reference, s)];
            let ([c, ref_c], [r, ref_r]) = (sums(chosen), sums(rejected));
            let (d_c, d_r) = (c - ref_c, r - ref_r);
            let lengths = [scored.n_trained(chosen), scored.n_trained(rejected)];
            let (value, slopes) = self.pair([d_c, d_r], lengths);
            loss.loss_sum += value;
            loss.n_terms += 1;
            scored.spread(dlogp, chosen, slopes[0]);
            scored.spread(dlogp, rejected, slopes[1]);
            measure_pair(&mut loss, self.beta, [d_c, d_r], [c, r]);
        }
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, check_gradient, trainer};

    /// Log-probabilities -12 and -15 against -13 and -14: D_c - D_r = 2, so with beta 0.1
    /// L = -ln sigmoid(0.2) = ln(1 + e^-0.2) = 0.598139.
    #[test]
    fn a_pair_by_hand() {
        let answers = Answers::pair(&[-4.0, -8.0], &[-15.0]).reference(&[-6.0, -7.0, -14.0]);
        let loss = answers.loss(&*trainer(&DPO, &[]));
        assert!((loss.loss_sum - 0.598_139).abs() < 1e-6, "{loss:?}");
        assert_eq!(loss.n_terms, 1);
        let margin = loss.metrics.iter().find(|m| m.name == "rewards/margins");
        assert!((margin.expect("a margin").sum - 0.2).abs() < 1e-12);
    }

    /// Before the first step policy and reference are the same.
    #[test]
    fn the_first_loss_is_ln_2() {
        let answers = Answers::pair(&[-4.0, -8.0], &[-15.0]).reference(&[-4.0, -8.0, -15.0]);
        let loss = answers.loss(&*trainer(&DPO, &[]));
        assert!((loss.loss_sum - std::f64::consts::LN_2).abs() < 1e-15);
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let answers = Answers::pair(&[-0.5, -1.5], &[-2.0, -0.25, -1.0])
            .reference(&[-0.75, -1.0, -1.5, -0.5, -1.0]);
        check_gradient(&answers, &*trainer(&DPO, &[("beta", OptionValue::Number(0.7))]));
        let ipo = ("loss_type", OptionValue::Text("ipo".to_owned()));
        check_gradient(&answers, &*trainer(&DPO, &[ipo]));
    }

    #[test]
    fn a_beta_of_nothing_is_refused() {
        let refused = (DPO.build)(&[("beta", OptionValue::Number(0.0))]).err();
        assert!(refused.expect("refused").to_string().starts_with("option `beta` is `0`"));
    }
}
