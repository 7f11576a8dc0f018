//! What is watched from step to step: a loss that jumps, and a model that learns nothing.

use crate::error::RunError;
use crate::event::Step;
use forgelm_sdk::trainer::{Needs, Records};

/// Steps in a row without any gradient after which a run stops.
const STEPS_WITHOUT_GRADIENT: u64 = 10;
/// Steps before a loss can be called a jump.
const STEPS_BEFORE_JUMPS: u64 = 5;
/// A loss of this many times the running mean is a jump.
const JUMP: f64 = 10.0;
/// Share of the running mean that stays each step.
const KEPT: f64 = 0.9;

/// The running numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Watch {
    n_steps: u64,
    mean: f64,
    n_without_gradient: u64,
    /// Losses of pairs and rewards differ from step to step as those of tokens do not.
    ignores_jumps: bool,
    /// Rewards without spread give no gradient, and may be the best there is.
    ignores_gradients: bool,
}

impl Watch {
    /// What is watched of an objective.
    pub(super) fn of(needs: Needs) -> Self {
        Self {
            ignores_jumps: needs.records != Records::Text,
            ignores_gradients: needs.rollouts,
            ..Self::default()
        }
    }

    /// Takes in a step; the text of a warning when it stands out.
    ///
    /// # Errors
    /// If nothing was learned in the last steps.
    pub(super) fn look(&mut self, step: &Step) -> Result<Option<String>, RunError> {
        self.n_without_gradient =
            if step.grad_norm > 0.0 { 0 } else { self.n_without_gradient + 1 };
        if self.n_without_gradient >= STEPS_WITHOUT_GRADIENT && !self.ignores_gradients {
            return Err(RunError::NothingLearned { step: step.step, n: self.n_without_gradient });
        }
        let is_jump = !self.ignores_jumps
            && self.n_steps >= STEPS_BEFORE_JUMPS
            && step.loss > JUMP * self.mean;
        let told = is_jump.then(|| {
            format!(
                "step {}: the loss is {:.4}, more than {JUMP} times its running mean, {:.4}; the \
                 step was taken",
                step.step, step.loss, self.mean
            )
        });
        let kept = if self.n_steps == 0 { 0.0 } else { KEPT };
        self.mean = kept * self.mean + (1.0 - kept) * step.loss;
        self.n_steps += 1;
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64, grad_norm: f64) -> Step {
        Step {
            step,
            epoch: 0.0,
            loss,
            learning_rate: 0.1,
            grad_norm,
            n_tokens: 1,
            n_trained_tokens: 1,
            n_trained_tokens_total: 1,
            seconds: 1.0,
            log: false,
            metrics: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn fault_064_a_loss_that_jumps_by_ten_is_told() {
        let mut watch = Watch::default();
        for n in 1..=6 {
            assert_eq!(watch.look(&step(n, 2.0, 1.0)).expect("goes on"), None);
        }
        assert_eq!(watch.look(&step(7, 19.9, 1.0)).expect("goes on"), None, "not ten times");
        let mut watch = Watch { n_steps: 6, mean: 2.0, ..Watch::default() };
        let told = watch.look(&step(7, 20.1, 1.0)).expect("goes on").expect("a warning");
        assert!(told.contains("step 7") && told.contains("20.1"), "{told}");
        let mut young = Watch { n_steps: 4, mean: 2.0, ..Watch::default() };
        assert_eq!(young.look(&step(5, 99.0, 1.0)).expect("goes on"), None, "too early to say");
    }

    /// No step is too slow: only its numbers are looked at.
    #[test]
    fn fault_074_no_time_ends_a_run() {
        let mut watch = Watch::default();
        for n in 1..=20 {
            let slow = Step { seconds: 1e6, ..step(n, 2.0, 1.0) };
            assert_eq!(watch.look(&slow).expect("goes on"), None);
        }
    }

    #[test]
    fn fault_065_ten_steps_without_a_gradient_end_the_run() {
        let mut watch = Watch::default();
        for n in 1..=9 {
            watch.look(&step(n, 2.0, 0.0)).expect("goes on");
        }
        watch.look(&step(10, 2.0, 0.1)).expect("one gradient starts the count again");
        for n in 11..=19 {
            watch.look(&step(n, 2.0, 0.0)).expect("goes on");
        }
        let error = watch.look(&step(20, 2.0, 0.0)).expect_err("ends");
        assert!(error.to_string().contains("nothing is being learned"), "{error}");
    }
}
