//! Everything that a run must remember to go on where it stopped, beside the adapter and the
//! moments.

use crate::session::Cut;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Version of `trainer_state.json`. Raised when an older program could not read a newer file.
pub const STATE_FORMAT: u32 = 1;

/// `trainer_state.json` of a checkpoint. The first names are those that other trainers use.
///
/// **Invariant:** with the adapter and the moments it decides every later bit: batches, dropout
/// and the schedule are functions of `global_step` (`tests/e2e/resume.rs`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`STATE_FORMAT`].
    pub format: u32,
    /// Optimizer steps done.
    pub global_step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Optimizer steps in all.
    pub max_steps: u64,
    /// Lowest validation loss so far.
    pub best_metric: Option<f64>,
    /// Step at which it was measured.
    pub best_global_step: Option<u64>,
    /// Evaluations since then.
    pub n_evaluations_without_improvement: u64,
    /// Training ended early.
    pub is_stopped_early: bool,
    /// Tokens seen in training.
    pub n_tokens: u64,
    /// Trained tokens seen.
    pub n_trained_tokens: u64,
    /// Floating-point operations so far ([`crate::flops`]).
    #[serde(default)]
    pub flops: f64,
    /// How steps are cut since memory ran short; as configured when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Evaluations so far.
    pub log_history: Vec<LogEntry>,
    /// What the run is: resuming as something else is refused.
    pub identity: Identity,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// Steps done.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Mean loss over the terms of the validation split.
    pub eval_loss: f64,
    /// What the objective measured besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// What must be the same for a run to be the same run. The default names nothing: for sessions that
/// no checkpoint ever continues.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Run that wrote the checkpoint.
    pub run_id: String,
    /// Hash of its whole config.
    pub config_hash: String,
    /// The parts of its config that decide the weights.
    pub config: Value,
    /// SHA-256 of the data.
    pub data_sha256: String,
    /// SHA-256 of the base model's weights.
    pub model_sha256: String,
    /// SHA-256 of what the classifier that rewards answers judges with, where one does: weights,
    /// description, tokenizer and template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_model_sha256: Option<String>,
    /// `float32` or `bfloat16`.
    pub compute_dtype: String,
    /// Kernel library and instruction set.
    pub kernels: String,
    /// What chat templates took for the present, in seconds since 1970: a run that goes on
    /// another day keeps it.
    pub template_now: i64,
}

impl State {
    /// Before the first step.
    #[must_use]
    pub fn new(max_steps: u64, identity: Identity) -> Self {
        Self {
            format: STATE_FORMAT,
            global_step: 0,
            epoch: 0.0,
            max_steps,
            best_metric: None,
            best_global_step: None,
            n_evaluations_without_improvement: 0,
            is_stopped_early: false,
            n_tokens: 0,
            n_trained_tokens: 0,
            flops: 0.0,
            cut: None,
            log_history: Vec::new(),
            identity,
        }
    }

    /// Whether there is nothing left to do.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.global_step >= self.max_steps || self.is_stopped_early
    }

    /// Takes in an evaluation. Lower is better, strictly; `patience` evaluations in a row that
    /// are not better stop the run. The one before step 1 is only recorded.
    pub fn record_evaluation(
        &mut self,
        eval_loss: f64,
        metrics: BTreeMap<String, f64>,
        patience: u64,
    ) -> bool {
        let entry = LogEntry { step: self.global_step, epoch: self.epoch, eval_loss, metrics };
        self.log_history.push(entry);
        if self.global_step == 0 {
            return false;
        }
        let is_best = eval_loss.is_finite() && self.best_metric.is_none_or(|best| eval_loss < best);
        if is_best {
            self.best_metric = Some(eval_loss);
            self.best_global_step = Some(self.global_step);
            self.n_evaluations_without_improvement = 0;
        } else {
            self.n_evaluations_without_improvement += 1;
            self.is_stopped_early = self.n_evaluations_without_improvement >= patience;
        }
        is_best
    }
}

impl Identity {
    /// Each way in which `self`, found in a checkpoint, is not `now`: empty when the run can go on
    /// with the same bits. Run id and the hash of the whole config may differ.
    #[must_use]
    pub fn differences(&self, now: &Self) -> Vec<String> {
        self.differences_as(now, ("at the checkpoint", "now"))
    }

    /// [`Identity::differences`] between two places of these names.
    #[must_use]
    pub fn differences_as(&self, now: &Self, places: (&str, &str)) -> Vec<String> {
        let mut differences = Vec::new();
        compare_values("", (&self.config, &now.config), places, &mut differences);
        let reward = |of: &Self| of.reward_model_sha256.clone().unwrap_or("none".to_owned());
        let facts = [
            ("data (SHA-256)", &self.data_sha256, &now.data_sha256),
            ("base model (SHA-256)", &self.model_sha256, &now.model_sha256),
            ("reward model (SHA-256)", &reward(self), &reward(now)),
            ("compute dtype", &self.compute_dtype, &now.compute_dtype),
            ("kernels", &self.kernels, &now.kernels),
        ];
        for (name, then, now) in facts {
            if then != now {
                let (there, here) = places;
                differences.push(format!("{name}: {then} {there}, {now} {here}"));
            }
        }
        differences
    }
}

fn compare_values(
    key: &str,
    (then, now): (&Value, &Value),
    places: (&str, &str),
    differences: &mut Vec<String>,
) {
    if let (Value::Object(then), Value::Object(now)) = (then, now) {
        let join = |name: &str| {
            if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
        };
        for (name, value) in then {
            let now = now.get(name).unwrap_or(&Value::Null);
            compare_values(&join(name), (value, now), places, differences);
        }
        for (name, value) in now.iter().filter(|(name, _)| !then.contains_key(*name)) {
            compare_values(&join(name), (&Value::Null, value), places, differences);
        }
    } else if then != now {
        let (there, here) = places;
        differences.push(format!("`{key}`: {then} {there}, {now} {here}"));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn identity() -> Identity {
        Identity {
            run_id: "fg-0".to_owned(),
            config_hash: "sha256:0".to_owned(),
            config: json!({"training": {"seed": 42, "learning_rate": 0.25}}),
            data_sha256: "d".to_owned(),
            model_sha256: "m".to_owned(),
            reward_model_sha256: None,
            compute_dtype: "float32".to_owned(),
            kernels: "cpu/avx2".to_owned(),
            template_now: 0,
        }
    }

    #[test]
    fn patience_counts_evaluations_that_are_not_strictly_better() {
        let mut state = State::new(100, identity());
        assert!(
            !state.record_evaluation(1.0, BTreeMap::new(), 2),
            "the one before step 1 is only recorded"
        );
        assert_eq!(state.best_metric, None);
        for (step, loss, is_best, is_stopped) in [
            (1, 3.0, true, false),
            (2, 3.0, false, false),
            (3, 2.0, true, false),
            (4, 2.5, false, false),
            (5, 2.0, false, true),
        ] {
            state.global_step = step;
            assert_eq!(state.record_evaluation(loss, BTreeMap::new(), 2), is_best, "step {step}");
            assert_eq!(state.is_stopped_early, is_stopped, "step {step}");
        }
        assert_eq!(state.best_global_step, Some(3));
        assert_eq!(state.log_history.len(), 6);
    }

    #[test]
    fn differences_name_the_key_and_both_values() {
        let then = identity();
        let mut now = identity();
        now.run_id = "fg-1".to_owned();
        assert_eq!(then.differences(&now), Vec::<String>::new());
        now.config["training"]["learning_rate"] = json!(0.5);
        now.config["training"]["packing"] = json!(true);
        now.data_sha256 = "e".to_owned();
        assert_eq!(
            then.differences(&now),
            [
                "`training.learning_rate`: 0.25 at the checkpoint, 0.5 now",
                "`training.packing`: null at the checkpoint, true now",
                "data (SHA-256): d at the checkpoint, e now",
            ]
        );
    }

    #[test]
    fn the_state_survives_its_file_bit_for_bit() {
        let mut state = State::new(100, identity());
        state.best_metric = Some(0.1 + 0.2);
        state.epoch = 1.0 / 3.0;
        let text = serde_json::to_string(&state).expect("serializable");
        assert_eq!(serde_json::from_str::<State>(&text).expect("readable"), state);
    }
}
