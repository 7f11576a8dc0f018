//! Kahneman-Tversky optimization: single answers, each marked desirable or not, against a
//! reference and an estimate of how far the policy has moved in all.
//!
//! Paper: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8:
//! `L = w_d (1 - sigmoid(beta (h - z)))` for a desirable answer and
//! `w_u (1 - sigmoid(beta (z - h)))` for another, `h = log pi(y|x) - log pi_ref(y|x)`, and z the
//! mean of the same over the mismatched pairs, at least 0, not differentiated.
//!
//! Options: `beta` (0.1), `desirable_weight` (1), `undesirable_weight` (1). Terms of the loss:
//! labelled answers. Sequences with [`Role::Kl`] are the mismatched pairs.
//!
//! Numerics: f64 sums in the order of the rows. z is a mean over the mismatched pairs that come with
//! a micro-batch. The host gives every micro-batch those of the whole step, so that the loss does
//! not depend on how the step is split (TRL takes those of the micro-batch).

use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::{Descriptor, Loss, Needs, Records, Role, Scored, Sequence, Trainer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

use crate::logistic::sigmoid;

/// The entry in the kind's list.
pub const KTO: Descriptor = Descriptor {
    name: "kto",
    summary: "Kahneman-Tversky optimization: single answers, desirable or not",
    source: "Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7",
    needs: Needs {
        records: Records::Labelled,
        reference: true,
        rollouts: false,
        prompts: false,
        dropout: false,
    },
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Trainer>, OptionsError> {
    let mut options = Reader::new(KTO.name, options);
    let beta = options.number("beta", 0.1, f64::MIN_POSITIVE..=1e6)?;
    let desirable_weight = options.number("desirable_weight", 1.0, 0.0..=1e6)?;
    let undesirable_weight = options.number("undesirable_weight", 1.0, 0.0..=1e6)?;
    options.finish()?;
    Ok(Box::new(Kto { beta, desirable_weight, undesirable_weight }))
}

struct Kto {
    beta: f64,
    desirable_weight: f64,
    undesirable_weight: f64,
}

impl Trainer for Kto {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let reference = scored.ref_logp.expect("the host prepares the reference");
        let ratio = |s: &Sequence| scored.sum(scored.logp, s) - scored.sum(reference, s);
        let mut loss = Loss::default();
        let (mut z, mut n_kl) = (0.0, 0.0);
        for sequence in scored.sequences.iter().filter(|s| s.role == Role::Kl) {
            z += ratio(sequence);
            n_kl += 1.0;
            scored.spread(dlogp, sequence, 0.0);
        }
        let z = if n_kl > 0.0 { z / n_kl } else { 0.0 };
        // NaN stays: a broken estimate must not pass for none.
        let z = if z < 0.0 { 0.0 } else { z };
        for sequence in scored.sequences {
            // The sign of h in the loss, its weight, and the names of its metrics.
            let (sign, weight, reward, logps) = match sequence.role {
                Role::Chosen => (1.0, self.desirable_weight, "rewards/chosen", "logps/chosen"),
                Role::Rejected => {
                    (-1.0, self.undesirable_weight, "rewards/rejected", "logps/rejected")
                }
                Role::Sole | Role::Kl | Role::Rollout => continue,
            };
            let h = ratio(sequence);
            let s = sigmoid(self.beta * sign * (h - z));
            loss.loss_sum += weight * (1.0 - s);
            loss.n_terms += 1;
            scored.spread(dlogp, sequence, -weight * self.beta * sign * s * (1.0 - s));
            loss.measure(reward, self.beta * h);
            loss.measure(logps, scored.sum(scored.logp, sequence));
            loss.measure("kl", z);
        }
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answers, check_gradient, trainer};

    /// The worked example: policy (-20, -22, -18) against (-20.5, -21, -19) on the mismatched
    /// pairs gives z = 0.5/3 = 0.166667; h = 1 desirable: 1 - sigmoid(0.083333) = 0.479179;
    /// h = -1 undesirable: 1 - sigmoid(0.116667) = 0.470866.
    fn worked() -> Answers {
        Answers::new(&[
            (Role::Chosen, &[-12.0]),
            (Role::Rejected, &[-15.0]),
            (Role::Kl, &[-20.0]),
            (Role::Kl, &[-22.0]),
            (Role::Kl, &[-18.0]),
        ])
        .reference(&[-13.0, -14.0, -20.5, -21.0, -19.0])
    }

    #[test]
    fn a_batch_by_hand() {
        let loss = worked().loss(&*trainer(&KTO, &[]));
        assert_eq!(loss.n_terms, 2);
        assert!((loss.loss_sum - (0.479_179 + 0.470_866)).abs() < 2e-6, "{loss:?}");
        let kl = loss.metrics.iter().find(|metric| metric.name == "kl").expect("it is measured");
        // Once an answer, so that its mean does not depend on how a step is cut.
        assert_eq!(kl.n_terms, 2);
        assert!((kl.sum / 2.0 - 0.5 / 3.0).abs() < 1e-12, "{loss:?}");
    }

    /// z is not differentiated, so only the labelled answers are moved.
    #[test]
    fn the_gradient_is_the_slope_of_the_loss_at_a_fixed_z() {
        let mut dlogp = [9.0; 5];
        worked().loss_into(&*trainer(&KTO, &[]), &mut dlogp);
        assert_eq!(&dlogp[2..], &[0.0; 3], "mismatched pairs are not trained");
        let without = Answers::new(&[(Role::Chosen, &[-1.0, -0.5]), (Role::Rejected, &[-2.0])])
            .reference(&[-1.5, -0.25, -2.5]);
        check_gradient(&without, &*trainer(&KTO, &[("beta", OptionValue::Number(0.7))]));
    }
}
