//! Odds-ratio preference optimization: supervised fine-tuning on the chosen answer, plus a
//! logistic loss on the odds of the two answers. No reference.
//!
//! Paper: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7:
//! `L = NLL - beta log sigmoid(log(odds_c / odds_r))`, `odds = p / (1 - p)`, log p the mean
//! log-probability of the answer's tokens; beta is the paper's lambda.
//! Ours, as TRL: NLL is the mean over all tokens of prompt and chosen answer, of the whole step.
//!
//! Options: `beta` (0.1). Terms of the loss: pairs. The NLL part has another denominator (tokens):
//! it is scaled by (pairs of the step / tokens of the step), so that one division by pairs is
//! right, however the step is split into micro-batches.
//!
//! Numerics: f64 sums in the order of the rows; `log(1 - p)` without cancellation.

use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::{Descriptor, Loss, Needs, Records, Role, Scored, Trainer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

use crate::logistic::{log_one_minus_exp, log_sigmoid, sigmoid};
use crate::rewards::measure_pair;

/// The entry in the kind's list.
pub const ORPO: Descriptor = Descriptor {
    name: "orpo",
    summary: "odds-ratio preference optimization: fine-tuning and preference in one loss",
    source: "Hong et al. 2024, arXiv:2403.07691, eq. 6",
    needs: Needs {
        records: Records::Preference,
        reference: false,
        rollouts: false,
        prompts: true,
        dropout: false,
    },
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Trainer>, OptionsError> {
    let mut options = Reader::new(ORPO.name, options);
    let beta = options.number("beta", 0.1, 0.0..=1e6)?;
    options.finish()?;
    Ok(Box::new(Orpo { beta }))
}

struct Orpo {
    beta: f64,
}

/// The mean log-probability of an answer that the model is certain of, kept off 0: its odds are
/// infinite.
const CERTAIN: f64 = -1e-12;

impl Trainer for Orpo {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let totals = scored.step.of(Role::Chosen);
        let nll_weight = totals.n_sequences as f64 / totals.n_scored.max(1) as f64;
        let mut loss = Loss::default();
        for (chosen, rejected) in scored.pairs() {
            let (n_c, n_r) = (scored.n_trained(chosen), scored.n_trained(rejected));
            let r_c = (scored.sum(scored.logp, chosen) / n_c).min(CERTAIN);
            let r_r = (scored.sum(scored.logp, rejected) / n_r).min(CERTAIN);
            let log_odds = (r_c - r_r) - (log_one_minus_exp(r_c) - log_one_minus_exp(r_r));
            let nll: f64 = -scored.logp[chosen.rows()].iter().map(|&l| f64::from(l)).sum::<f64>();
            loss.loss_sum += nll_weight * nll - self.beta * log_sigmoid(log_odds);
            loss.n_terms += 1;
            // d log_odds / d r = 1 / (1 - e^r), with the other sign for the rejected answer.
            let slope = self.beta * sigmoid(-log_odds);
            scored.spread(dlogp, chosen, slope / r_c.exp_m1() / n_c);
            scored.spread(dlogp, rejected, -slope / r_r.exp_m1() / n_r);
            for d in &mut dlogp[chosen.rows()] {
                *d = (f64::from(*d) - nll_weight) as f32;
            }
            loss.measure_sum("nll_loss", nll, chosen.len as u64);
            loss.measure("log_odds_ratio", log_sigmoid(log_odds));
            loss.measure("log_odds_chosen", log_odds);
            measure_pair(&mut loss, self.beta, [r_c, r_r], [r_c, r_r]);
        }
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, check_gradient, trainer};

    /// Means -2 and -3, no prompt: log odds = 1 - (ln(1 - e^-2) - ln(1 - e^-3)) = 1.094344,
    /// log sigmoid -0.288751; NLL is (1 + 3) / 2 = 2: L = 2 + 0.1 * 0.288751 = 2.028875.
    #[test]
    fn a_pair_by_hand() {
        let answers = Answers::pair(&[-1.0, -3.0], &[-3.0, -3.0]);
        let loss = answers.loss(&*trainer(&ORPO, &[]));
        assert!((loss.loss_sum - 2.028_875).abs() < 1e-6, "{loss:?}");
        let odds = loss.metrics.iter().find(|m| m.name == "log_odds_chosen").expect("measured");
        assert!((odds.sum - 1.094_344).abs() < 1e-6);
    }

    /// The first row is a prompt token: it counts in the NLL and not in the odds.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let answers = Answers::pair(&[-0.5, -1.5], &[-2.0, -0.25, -1.0]).untrained(&[0]);
        check_gradient(&answers, &*trainer(&ORPO, &[("beta", OptionValue::Number(0.7))]));
    }

    /// A model that is certain of an answer has infinite odds; the loss stays a number.
    #[test]
    fn certainty_is_finite() {
        let mut dlogp = [0.0; 2];
        let loss = Answers::pair(&[0.0], &[-1.0]).loss_into(&*trainer(&ORPO, &[]), &mut dlogp);
        assert!(loss.loss_sum.is_finite() && dlogp.iter().all(|d| d.is_finite()), "{dlogp:?}");
    }
}
