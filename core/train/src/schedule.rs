//! The learning rate of each step.

use std::f64::consts::PI;

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Straight down to 0 at the last step.
    Linear,
    /// Half a cosine down to 0 at the last step.
    ///
    /// Paper: Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5, one cycle.
    Cosine,
    /// Stays where the warm-up ended.
    Constant,
}

/// The learning rate as a function of the step: linear warm-up from 0, then a [`Decay`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub decay: Decay,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Steps of warm-up; step 0 of a warm-up has learning rate 0.
    pub n_warmup_steps: u64,
    /// Steps in all.
    pub n_steps: u64,
}

impl Schedule {
    /// The schedule of a run of `n_steps` whose first `warmup_ratio` warms up (rounded up).
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "step counts stay far below 2^53, and the ratio is in [0, 1]"
    )]
    pub fn new(decay: Decay, learning_rate: f64, warmup_ratio: f64, n_steps: u64) -> Self {
        let n_warmup_steps = (n_steps as f64 * warmup_ratio).ceil() as u64;
        Self { decay, learning_rate, n_warmup_steps, n_steps }
    }

    /// The learning rate that step `step` (0-based) uses.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "step counts stay far below 2^53")]
    pub fn at(&self, step: u64) -> f64 {
        if step < self.n_warmup_steps {
            return self.learning_rate * (step as f64 / self.n_warmup_steps as f64);
        }
        let n_decay = self.n_steps.saturating_sub(self.n_warmup_steps).max(1) as f64;
        let factor = match self.decay {
            Decay::Linear => self.n_steps.saturating_sub(step) as f64 / n_decay,
            Decay::Cosine => {
                let progress = (step - self.n_warmup_steps) as f64 / n_decay;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
            Decay::Constant => 1.0,
        };
        self.learning_rate * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const GOLDEN: &str = include_str!("../../../tests/data/golden/misc/schedules.json");

    #[test]
    fn every_schedule_equals_the_published_implementation() {
        let golden: Value = serde_json::from_str(GOLDEN).expect("a golden file is JSON");
        let cases = [
            ("linear", Decay::Linear),
            ("cosine", Decay::Cosine),
            ("constant_with_warmup", Decay::Constant),
        ];
        let named = golden["lr_before_step_i"].as_object().expect("an object of schedules");
        assert_eq!(named.len(), cases.len());
        for (name, decay) in cases {
            let rates = named[name]["lr"].as_array().expect("a list of rates");
            assert_eq!(rates.len(), 21);
            let schedule = Schedule { decay, learning_rate: 1e-3, n_warmup_steps: 4, n_steps: 20 };
            for (step, rate) in (0..).zip(rates) {
                let expected = rate.as_f64().expect("a number");
                let got = schedule.at(step);
                assert!((got - expected).abs() < 1e-9, "{name} step {step}: {got} not {expected}");
            }
        }
    }

    #[test]
    fn the_warm_up_is_rounded_up() {
        assert_eq!(Schedule::new(Decay::Linear, 1.0, 0.1, 101).n_warmup_steps, 11);
        assert_eq!(Schedule::new(Decay::Linear, 1.0, 0.0, 101).n_warmup_steps, 0);
    }
}
