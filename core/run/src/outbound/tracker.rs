//! The numbers of a run for a tracker (`training.report_to`), under the names that other trainers use.
//!
//! **Invariant:** what a tracker has is a copy. `metrics.jsonl` is the record that is signed; a tracker
//! that cannot be written or reached is told once, and ends nothing.
//!
//! Start reading at [`Tracker`], then [`Rows`].

mod mlflow;
mod tensorboard;
mod wandb;

use super::route::OutboundError;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Evaluation, Event, Observer, Step};
use crate::plan::Plan;
use crate::training::{Completed, Outcome};
use forgelm_artifact::{Clock, UtcTime};
use forgelm_config::{ReportTo, Run};
use forgelm_outbound::address::Reach;
use mlflow::Mlflow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tensorboard::Board;
use wandb::Wandb;

/// Numbers of one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Steps done.
    pub(super) step: u64,
    /// When.
    pub(super) at: UtcTime,
    /// By name, in the order in which they are written.
    pub(super) values: Vec<(String, f64)>,
}

/// Where they go.
enum To {
    Board(Board),
    Mlflow(Box<Mlflow>),
    Wandb(Box<Wandb>),
}

/// A tracker of a run.
pub(super) struct Tracker {
    to: To,
    rows: Rows,
    clock: Arc<dyn Clock>,
    /// Whether a warning was told: the same again helps nobody.
    is_told: bool,
}

impl Tracker {
    /// The tracker of a config, if it has one.
    pub(super) fn open(
        plan: &Plan,
        offline: bool,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>, OutboundError> {
        let to = match plan.run.training.report_to {
            ReportTo::None => return Ok(None),
            ReportTo::Tensorboard => To::Board(Board::new(plan)),
            ReportTo::Mlflow => To::Mlflow(Box::new(Mlflow::open(plan, offline, env, observer)?)),
            ReportTo::Wandb => To::Wandb(Box::new(Wandb::new(plan, env))),
        };
        let clock = env.clock.clone();
        Ok(Some(Self { to, rows: Rows::default(), clock, is_told: false }))
    }

    /// Takes what an event says; a warning where it could not be taken on.
    pub(super) fn see(&mut self, event: &Event) -> Option<String> {
        let now = self.clock.utc();
        let problem = match event {
            Event::Started(started) => match &mut self.to {
                To::Board(board) => board.start(started, now),
                To::Mlflow(run) => {
                    run.start(started, now);
                    None
                }
                To::Wandb(run) => run.start(started, now),
            },
            Event::Step(step) => {
                let row = self.rows.step(step, now)?;
                self.put(&row)
            }
            Event::Evaluation(evaluation) => {
                let row = self.rows.evaluation(evaluation, now);
                self.put(&row)
            }
            _ => None,
        };
        self.once(problem)
    }

    /// Takes the end; a warning likewise.
    pub(super) fn ended(&mut self, result: &Result<Outcome, RunError>) -> Option<String> {
        let completed = match result {
            Ok(
                Outcome::Completed(completed)
                | Outcome::Staged(completed)
                | Outcome::Reverted(completed),
            ) => Some(completed),
            Ok(
                Outcome::Interrupted { .. }
                | Outcome::AlreadyComplete { .. }
                | Outcome::AlreadyRejected { .. }
                | Outcome::AlreadyReverted { .. }
                | Outcome::Waiting { .. }
                | Outcome::Compared { .. },
            )
            | Err(_) => None,
        };
        let row = completed.map(|completed| self.rows.end(completed, self.clock.utc()));
        let problem = row.and_then(|row| self.put(&row));
        let told = self.once(problem);
        let problem = match &mut self.to {
            To::Board(board) => board.finish(),
            To::Mlflow(run) => {
                run.end(result, self.clock.utc());
                None
            }
            To::Wandb(run) => run.finish(result),
        };
        told.or_else(|| self.once(problem))
    }

    /// Waits for what is on its way, `at_most` so long; something to tell, and warnings.
    pub(super) fn finish(self, at_most: Duration) -> (Option<String>, Vec<String>) {
        match self.to {
            To::Board(_) => (None, Vec::new()),
            To::Wandb(run) => (run.notice(), Vec::new()),
            To::Mlflow(run) => run.finish(at_most),
        }
    }

    /// What has become known meanwhile: something to tell, and a warning.
    pub(super) fn news(&mut self) -> (Option<String>, Option<String>) {
        match &mut self.to {
            To::Board(_) | To::Wandb(_) => (None, None),
            To::Mlflow(run) => {
                let (notice, problem) = run.news();
                (notice, self.once(problem))
            }
        }
    }

    fn put(&mut self, row: &Row) -> Option<String> {
        match &mut self.to {
            To::Board(board) => board.put(row),
            To::Mlflow(run) => {
                run.put(row);
                None
            }
            To::Wandb(run) => run.put(row),
        }
    }

    fn once(&mut self, problem: Option<String>) -> Option<String> {
        problem.filter(|_| !std::mem::replace(&mut self.is_told, true))
    }
}

/// From events to rows: a row where a line is due, with means over the steps since the last one.
#[derive(Debug, Default)]
struct Rows {
    n_steps: u64,
    sums: BTreeMap<String, f64>,
    loss: f64,
    seconds: f64,
    n_tokens: u64,
    last_step: u64,
}

impl Rows {
    /// A row for a step that is due one.
    ///
    /// Ours: after a resume the first mean is over the steps since then.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn step(&mut self, step: &Step, at: UtcTime) -> Option<Row> {
        self.last_step = step.step;
        self.n_steps += 1;
        self.loss += step.loss;
        self.seconds += step.seconds;
        self.n_tokens += step.n_tokens;
        for (name, value) in &step.metrics {
            *self.sums.entry(name.clone()).or_default() += value;
        }
        if !step.log {
            return None;
        }
        let of = std::mem::replace(self, Self { last_step: step.step, ..Self::default() });
        let n = of.n_steps as f64;
        let mut values = vec![
            ("loss".to_owned(), of.loss / n),
            ("grad_norm".to_owned(), step.grad_norm),
            ("learning_rate".to_owned(), step.learning_rate),
            ("epoch".to_owned(), step.epoch),
            ("tokens_per_second".to_owned(), of.n_tokens as f64 / of.seconds.max(1e-9)),
            ("trained_tokens".to_owned(), step.n_trained_tokens_total as f64),
        ];
        values.extend(of.sums.into_iter().map(|(name, sum)| (name, sum / n)));
        Some(Row { step: step.step, at, values })
    }

    fn evaluation(&mut self, evaluation: &Evaluation, at: UtcTime) -> Row {
        self.last_step = evaluation.step;
        let mut values = vec![
            ("eval_loss".to_owned(), evaluation.loss),
            ("eval_runtime".to_owned(), evaluation.seconds),
            ("epoch".to_owned(), evaluation.epoch),
        ];
        let measured = evaluation.metrics.iter();
        values.extend(measured.map(|(name, value)| (format!("eval_{name}"), *value)));
        Row { step: evaluation.step, at, values }
    }

    /// What only the end knows: time, arithmetic, and what evaluators found.
    fn end(&self, completed: &Completed, at: UtcTime) -> Row {
        let is_told_before = |name: &str| {
            ["eval_", "resource/", "train_steps", "epoch", "baseline_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        let values = completed.metrics.iter().filter(|(name, _)| !is_told_before(name));
        let values = values.map(|(name, value)| (name.clone(), *value)).collect();
        Row { step: self.last_step, at, values }
    }
}

/// What a run writes for its tracker.
pub(crate) fn writes(run: &Run) -> Option<&'static str> {
    match run.training.report_to {
        ReportTo::Tensorboard => Some("runs/"),
        ReportTo::Mlflow => Some(mlflow::FILE),
        ReportTo::Wandb => Some("wandb/"),
        ReportTo::None => None,
    }
}

/// Whom a run's tracker contacts.
pub(crate) fn contacts(run: &Run) -> Option<String> {
    let is_mlflow = run.training.report_to == ReportTo::Mlflow;
    let reach = if run.model.offline { super::route::limit(Reach::Inside) } else { "" };
    is_mlflow.then(|| format!("the address in `{}`, for metrics{reach}", mlflow::ADDRESS))
}

/// A run's name as the name of one folder.
fn folder_name(name: &str) -> String {
    const LENGTH_MAX: usize = 100;
    let plain = |c: char| if c.is_alphanumeric() || "-_. ".contains(c) { c } else { '_' };
    let name: String = name.trim().chars().map(plain).take(LENGTH_MAX).collect();
    match name.trim_matches('.') {
        "" => "run".to_owned(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, Rows, folder_name};
    use crate::event::{Evaluation, Step};
    use forgelm_artifact::UtcTime;
    use std::collections::BTreeMap;

    fn step(step: u64, loss: f64, log: bool) -> Step {
        Step {
            step,
            epoch: 0.5,
            loss,
            learning_rate: 0.1,
            grad_norm: 3.0,
            n_tokens: 10,
            n_trained_tokens: 5,
            n_trained_tokens_total: 5 * step,
            seconds: 0.5,
            log,
            metrics: BTreeMap::from([("rewards/margins".to_owned(), loss / 10.0)]),
        }
    }

    fn value(row: &Row, name: &str) -> f64 {
        row.values.iter().find(|(known, _)| known == name).expect(name).1
    }

    #[test]
    fn a_row_has_the_means_since_the_last_one() {
        let mut rows = Rows::default();
        let at = UtcTime(7);
        assert!(rows.step(&step(1, 4.0, true), at).is_some(), "the first step is due one");
        assert_eq!(rows.step(&step(2, 3.0, false), at), None);
        let row = rows.step(&step(3, 1.0, true), at).expect("due");
        assert_eq!((row.step, row.at), (3, at));
        let expected = [
            ("loss", 2.0),
            ("grad_norm", 3.0),
            ("learning_rate", 0.1),
            ("epoch", 0.5),
            ("tokens_per_second", 20.0),
            ("trained_tokens", 15.0),
            ("rewards/margins", 0.2),
        ];
        assert_eq!(row.values.len(), expected.len());
        for (name, expected) in expected {
            assert!((value(&row, name) - expected).abs() < 1e-12, "{name}");
        }
        let next = rows.step(&step(4, 8.0, true), at).expect("due");
        assert!((value(&next, "loss") - 8.0).abs() < 1e-12, "what was told is not told again");
    }

    #[test]
    fn an_evaluation_is_named_as_other_trainers_name_it() {
        let evaluation = Evaluation {
            step: 4,
            epoch: 0.5,
            loss: 1.5,
            n_trained_tokens: 7,
            seconds: 2.0,
            is_best: true,
            metrics: BTreeMap::from([("rewards/margins".to_owned(), 0.25)]),
        };
        let row = Rows::default().evaluation(&evaluation, UtcTime(0));
        let names: Vec<&str> = row.values.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["eval_loss", "eval_runtime", "epoch", "eval_rewards/margins"]);
    }

    #[test]
    fn a_name_of_a_run_is_one_folder_whatever_it_is() {
        for (name, expected) in [
            ("SmolLM2_finetune", "SmolLM2_finetune"),
            ("../../etc/passwd", ".._.._etc_passwd"),
            ("..", "run"),
            ("  ", "run"),
            ("a:b\n*?", "a_b___"),
            ("größe 1.5", "größe 1.5"),
        ] {
            assert_eq!(folder_name(name), expected);
        }
        assert_eq!(folder_name(&"x".repeat(300)).len(), 100);
    }
}
