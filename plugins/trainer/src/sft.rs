//! Supervised fine-tuning: the negative log-likelihood of the trained tokens.
//!
//! Paper: the maximum-likelihood objective of Radford et al. 2018, "Improving language
//! understanding by generative pre-training", eq. 1, restricted to trained tokens:
//! `L = - sum_t m_t log p(x_t | x_<t) / sum_t m_t`.
//!
//! Options: none. Algorithm: the loss is a plain sum, so its gradient with respect to each
//! log-probability is -1 on trained rows and 0 elsewhere.
//!
//! Numerics: the sum is in f64, in the order of the rows.

use forgelm_sdk::options::Reader;
use forgelm_sdk::trainer::{Descriptor, Loss, Needs, Records, Scored, Trainer};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

/// The entry in the kind's list.
pub const SFT: Descriptor = Descriptor {
    name: "sft",
    summary: "supervised fine-tuning: negative log-likelihood of the trained tokens",
    source: "Radford et al. 2018, eq. 1, over trained tokens",
    needs: Needs {
        records: Records::Text,
        reference: false,
        rollouts: false,
        prompts: false,
        dropout: true,
    },
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Trainer>, OptionsError> {
    Reader::new(SFT.name, options).finish()?;
    Ok(Box::new(Sft))
}

struct Sft;

impl Trainer for Sft {
    fn loss(&self, scored: &Scored<'_>, dlogp: &mut [f32]) -> Result<Loss, Failed> {
        let mut loss = Loss::default();
        for ((&logp, &trained), d) in scored.logp.iter().zip(scored.trained).zip(dlogp) {
            if trained == 0 {
                *d = 0.0;
            } else {
                *d = -1.0;
                loss.loss_sum -= f64::from(logp);
                loss.n_terms += 1;
            }
        }
        Ok(loss)
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values are exact")]
mod tests {
    use super::*;
    use forgelm_sdk::trainer::{Role, Sequence, StepTotals};

    /// Rows 0 and 2 are trained with log-probabilities -0.5 and -2.25: the sum is 2.75, two terms.
    #[test]
    fn only_trained_rows_count() {
        let sequences = [Sequence { role: Role::Sole, record: 0, start: 0, len: 3 }];
        let scored = Scored {
            sequences: &sequences,
            labels: &[7, 8, 9],
            trained: &[1, 0, 1],
            logp: &[-0.5, -100.0, -2.25],
            ref_logp: None,
            advantage: None,
            old_logp: None,
            step: &StepTotals::default(),
        };
        let mut dlogp = [9.0; 3];
        let loss =
            (SFT.build)(&[]).expect("no options").loss(&scored, &mut dlogp).expect("no failure");
        assert_eq!(loss.loss_sum, 2.75);
        assert_eq!(loss.n_terms, 2);
        assert_eq!(dlogp, [-1.0, 0.0, -1.0]);
    }

    #[test]
    fn an_option_is_refused_by_name() {
        let refused =
            (SFT.build)(&[("beta", OptionValue::Number(0.1))]).err().expect("sft has no options");
        assert_eq!(refused.to_string(), "`beta` is not an option of `sft`; expected one of: none");
    }
}
