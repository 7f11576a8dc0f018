//! Simple preference optimization: no reference; answers are compared by their mean
//! log-probability, with a margin.
//!
//! Paper: Meng et al. 2024, arXiv:2405.14734, eq. 6:
//! `L = -log sigmoid(beta (r_c - r_r) - gamma)`, r the mean log-probability of the answer's tokens.
//!
//! Options: `beta` (2.0), `gamma` (0.5). Terms of the loss: pairs.
//!
//! Numerics: f64 sums in the order of the rows.

use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::{Descriptor, Loss, Needs, Records, Scored, Trainer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

use crate::logistic::{log_sigmoid, sigmoid};
use crate::rewards::measure_pair;

/// The entry in the kind's list.
pub const SIMPO: Descriptor = Descriptor {
    name: "simpo",
    summary: "simple preference optimization: length-normalized, without a reference",
    source: "Meng et al. 2024, arXiv:2405.14734, eq. 6",
    needs: Needs {
        records: Records::Preference,
        reference: false,
        rollouts: false,
        prompts: false,
        dropout: false,
    },
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Trainer>, OptionsError> {
    let mut options = Reader::new(SIMPO.name, options);
    let beta = options.number("beta", 2.0, f64::MIN_POSITIVE..=1e6)?;
    let gamma = options.number("gamma", 0.5, -1e6..=1e6)?;
    options.finish()?;
    Ok(Box::new(SimPo { beta, gamma }))
}

struct SimPo {
    beta: f64,
    gamma: f64,
}

impl Trainer for SimPo {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let mut loss = Loss::default();
        for (chosen, rejected) in scored.pairs() {
            let (n_c, n_r) = (scored.n_trained(chosen), scored.n_trained(rejected));
            let r_c = scored.sum(scored.logp, chosen) / n_c;
            let r_r = scored.sum(scored.logp, rejected) / n_r;
            let x = self.beta * (r_c - r_r) - self.gamma;
            loss.loss_sum -= log_sigmoid(x);
            loss.n_terms += 1;
            let slope = self.beta * sigmoid(-x);
            scored.spread(dlogp, chosen, -slope / n_c);
            scored.spread(dlogp, rejected, slope / n_r);
            measure_pair(&mut loss, self.beta, [r_c, r_r], [r_c, r_r]);
        }
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, check_gradient, trainer};

    /// Means -2 and -3: x = 2 * 1 - 0.5 = 1.5, L = ln(1 + e^-1.5) = 0.201413.
    #[test]
    fn a_pair_by_hand() {
        let answers = Answers::pair(&[-1.0, -3.0], &[-3.0, -3.0]);
        let loss = answers.loss(&*trainer(&SIMPO, &[]));
        assert!((loss.loss_sum - 0.201_413).abs() < 1e-6, "{loss:?}");
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let answers = Answers::pair(&[-0.5, -1.5], &[-2.0, -0.25, -1.0]);
        check_gradient(&answers, &*trainer(&SIMPO, &[]));
    }
}
