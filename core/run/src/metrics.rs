//! `metrics.jsonl`: one object a step, evaluation, gate and evaluator, for people who plot.

use crate::error::RunError;
use crate::evaluators::Evaluated;
use crate::event::{Evaluation, Step};
use forgelm_artifact::write::{self, AppendLog};
use forgelm_train::state::State;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The key by which a line of an evaluator is known.
const EVALUATOR: &str = "evaluator";
/// The key by which a line of a gate is known.
const GATE: &str = "gate";

/// The file, open for appending.
pub struct MetricsFile {
    path: PathBuf,
    log: AppendLog,
}

impl MetricsFile {
    /// Opens the file of a run that has done `n_steps_done` steps. Lines of later steps, which a
    /// killed run wrote after its last checkpoint, are dropped, and so are those of gates and
    /// evaluators: they come again.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, n_steps_done: u64) -> Result<Self, RunError> {
        let kept = kept_lines(path, n_steps_done);
        write::atomic(path, kept.as_bytes())?;
        Ok(Self { path: path.to_owned(), log: AppendLog::open(path)? })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a step.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn step(&mut self, step: &Step) -> Result<(), RunError> {
        let mut object = Map::from_iter([
            ("step".to_owned(), json!(step.step)),
            ("epoch".to_owned(), json!(step.epoch)),
            ("loss".to_owned(), json!(step.loss)),
            ("learning_rate".to_owned(), json!(step.learning_rate)),
            ("grad_norm".to_owned(), json!(step.grad_norm)),
            ("tokens".to_owned(), json!(step.n_tokens)),
            ("trained_tokens".to_owned(), json!(step.n_trained_tokens)),
            ("trained_tokens_total".to_owned(), json!(step.n_trained_tokens_total)),
            ("tokens_per_second".to_owned(), json!(step.tokens_per_second())),
            ("step_seconds".to_owned(), json!(step.seconds)),
        ]);
        object.extend(step.metrics.iter().map(|(name, value)| (name.clone(), json!(value))));
        self.append(&Value::Object(object))
    }

    /// Appends an evaluation.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RunError> {
        let mut object = Map::from_iter([
            ("step".to_owned(), json!(evaluation.step)),
            ("epoch".to_owned(), json!(evaluation.epoch)),
            ("eval_loss".to_owned(), json!(evaluation.loss)),
            ("eval_trained_tokens".to_owned(), json!(evaluation.n_trained_tokens)),
            ("eval_seconds".to_owned(), json!(evaluation.seconds)),
        ]);
        let measured = evaluation.metrics.iter();
        object.extend(measured.map(|(name, value)| (format!("eval_{name}"), json!(value))));
        self.append(&Value::Object(object))
    }

    /// Appends the numbers that an evaluator found of the tuned model.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn evaluator(&mut self, state: &State, found: &Evaluated) -> Result<(), RunError> {
        self.of_the_tuned_model(state, (EVALUATOR, &found.label), found.metrics())
    }

    /// Appends the numbers that a gate measured of the tuned model.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn gate(
        &mut self,
        state: &State,
        gate: &str,
        metrics: &BTreeMap<String, f64>,
    ) -> Result<(), RunError> {
        let metrics = metrics.iter().map(|(name, value)| (name.clone(), *value));
        self.of_the_tuned_model(state, (GATE, gate), metrics)
    }

    fn of_the_tuned_model(
        &mut self,
        state: &State,
        (key, name): (&str, &str),
        metrics: impl Iterator<Item = (String, f64)>,
    ) -> Result<(), RunError> {
        let mut object = Map::from_iter([
            ("step".to_owned(), json!(state.global_step)),
            ("epoch".to_owned(), json!(state.epoch)),
            (key.to_owned(), json!(name)),
        ]);
        object.extend(metrics.map(|(name, value)| (name, json!(value))));
        self.append(&Value::Object(object))
    }

    fn append(&mut self, object: &Value) -> Result<(), RunError> {
        Ok(self.log.append_line(&object.to_string())?)
    }
}

/// The complete lines of steps up to `n_steps_done`, in their order; nothing for a fresh run.
fn kept_lines(path: &Path, n_steps_done: u64) -> String {
    let text = if n_steps_done == 0 {
        String::new()
    } else {
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let is_kept = |line: &&str| {
        let object: Option<Value> = serde_json::from_str(line).ok();
        object.is_some_and(|object| {
            let step = object["step"].as_u64();
            let is_of_a_step = object.get(EVALUATOR).is_none() && object.get(GATE).is_none();
            is_of_a_step && step.is_some_and(|step| step <= n_steps_done)
        })
    };
    text.lines().filter(is_kept).fold(String::new(), |kept, line| kept + line + "\n")
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::*;

    #[test]
    fn lines_of_steps_that_come_again_are_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        let text = "{\"step\":0,\"eval_loss\":2.0}\n{\"step\":1,\"loss\":1.5}\n{\"step\":1,\"evaluator\":\"x\"}\n{\"step\":1,\"gate\":\"y\"}\n{\"step\":2,\"loss\":1.0}\n{\"st";
        std::fs::write(&path, text).expect("written");
        let mut file = MetricsFile::open(&path, 1).expect("opened");
        let evaluation = Evaluation {
            step: 1,
            epoch: 0.5,
            loss: 1.25,
            n_trained_tokens: 7,
            seconds: 0.5,
            is_best: true,
            metrics: BTreeMap::from([("rewards/margins".to_owned(), 0.5)]),
        };
        file.evaluation(&evaluation).expect("appended");
        let lines: Vec<Value> = std::fs::read_to_string(&path)
            .expect("read")
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1]["loss"], 1.5);
        assert_eq!(lines[2]["eval_loss"], 1.25);
        assert_eq!(lines[2]["eval_trained_tokens"], 7);
        assert_eq!(lines[2]["eval_rewards/margins"], 0.5);
    }
}
