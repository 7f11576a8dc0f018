//! The gates that judge a tuned model, in their order: loss, benchmark, safety, judge.
//!
//! A gate measures and says what its limits are; the verdict is [`forgelm_evidence::gate::judge`]'s,
//! and what follows is the run's. The thresholds are fixed when the run starts ([`fixed`] puts them
//! into its log), and a run that is continued must have the same.

pub(crate) mod examination;
pub mod interval;

use crate::benchmark;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::exit::Exit;
use crate::judge;
use crate::plan::Plan;
use crate::safety;
use examination::Examination;
use forgelm_artifact::hash::sha256_bytes;
use forgelm_artifact::json;
use forgelm_config::{Evaluation, resolved_json};
use forgelm_evidence::gate::{Bound, Check, Measurement, Policy, Verdict};
use forgelm_train::state::State;
use serde_json::{Value, json};

/// Name of the loss gate in documents.
pub const LOSS: &str = "loss";

/// What the loss gate compares with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossGate {
    /// The highest validation loss that is accepted.
    pub max_acceptable_loss: Option<f64>,
    /// A loss that may not be exceeded: configured, or that of the model before training.
    pub baseline_loss: Option<f64>,
}

impl LossGate {
    /// The gate of a config; none where nothing asks for one. The loss before the first step counts
    /// as baseline with `auto_revert` and without a configured one.
    #[must_use]
    pub fn of(evaluation: &Evaluation, measured_before: Option<f64>) -> Option<Self> {
        let measured = measured_before.filter(|loss| evaluation.auto_revert && loss.is_finite());
        let is_asked = evaluation.auto_revert || has_threshold(evaluation);
        is_asked.then(|| Self {
            max_acceptable_loss: evaluation.max_acceptable_loss,
            baseline_loss: evaluation.baseline_loss.or(measured),
        })
    }

    /// The validation loss of the weights that are kept beside its limits. Without any, it is still
    /// refused when it is no number.
    #[must_use]
    pub fn measurement(&self, eval_loss: f64, n_records: u64) -> Measurement {
        let limits = [
            (self.max_acceptable_loss, "`evaluation.max_acceptable_loss`"),
            (self.baseline_loss, "the baseline"),
        ];
        let check = |(limit, name): (Option<f64>, &str)| {
            Some(Check {
                measure: "eval_loss".to_owned(),
                value: eval_loss,
                bound: Bound::AtMost,
                limit: limit?,
                limit_name: name.to_owned(),
                n_samples: Some(n_records),
                interval: None,
            })
        };
        let mut checks: Vec<Check> = limits.into_iter().filter_map(check).collect();
        if checks.is_empty() {
            checks.extend(check((Some(f64::MAX), "the largest number")));
        }
        Measurement { gate: LOSS.to_owned(), checks, not_evaluated: None }
    }
}

/// How much evidence the config wants for a verdict.
#[must_use]
pub fn policy(evaluation: Option<&Evaluation>) -> Policy {
    Policy {
        min_samples: evaluation.and_then(|evaluation| evaluation.min_samples),
        confidence: evaluation.and_then(|evaluation| evaluation.confidence),
    }
}

/// The gates that ask the tuned model, in their order. Everything that they read is read and checked
/// here, before anything is trained.
///
/// # Errors
/// If an input of one cannot be used.
pub(crate) fn examinations(
    plan: &Plan,
    offline: bool,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Vec<Box<dyn Examination>>, RunError> {
    let mut examinations = Vec::new();
    examinations.extend(benchmark::prepare(plan, offline, env, observer)?);
    examinations.extend(safety::prepare(plan, offline, env, observer)?);
    examinations.extend(judge::prepare(plan, offline, env, observer)?);
    Ok(examinations)
}

/// Reads what gates are asked with, and checks it, for a run that is only planned.
///
/// # Errors
/// If an input of one cannot be used.
pub fn check_inputs(plan: &Plan, observer: &mut dyn Observer) -> Result<(), RunError> {
    safety::check_inputs(plan)?;
    judge::check_inputs(plan, observer)
}

/// How a command ends that measures a model that is there.
pub(crate) const fn exit_of(verdict: &Verdict) -> Exit {
    match verdict {
        Verdict::Accept => Exit::Success,
        Verdict::Reject { .. } => Exit::Gate,
        Verdict::NotEnoughEvidence { .. } => Exit::Runtime,
    }
}

/// Whether the config names a loss that the model is compared with.
#[must_use]
pub fn has_threshold(evaluation: &Evaluation) -> bool {
    evaluation.max_acceptable_loss.is_some() || evaluation.baseline_loss.is_some()
}

/// The validation loss before the first step.
#[must_use]
pub fn loss_before(state: &State) -> Option<f64> {
    let first = state.log_history.first().filter(|entry| entry.step == 0);
    first.map(|entry| entry.eval_loss)
}

/// The validation loss of the weights that are kept: the lowest, else the last that was measured.
#[must_use]
pub fn loss_after(state: &State) -> Option<f64> {
    let last = state.log_history.last().filter(|entry| entry.step > 0);
    state.best_metric.or(last.map(|entry| entry.eval_loss))
}

/// What the start of a run says of its gates: the thresholds, and the digest of the whole section.
#[must_use]
pub fn fixed(plan: &Plan) -> (Option<Value>, Option<String>) {
    let Some(evaluation) = &plan.run.evaluation else { return (None, None) };
    let gates = json!({
        "auto_revert": evaluation.auto_revert,
        "max_acceptable_loss": evaluation.max_acceptable_loss,
        "baseline_loss": evaluation.baseline_loss,
        "require_human_approval": evaluation.require_human_approval,
        "min_samples": evaluation.min_samples,
        "confidence": evaluation.confidence,
        "benchmark_min_score": benchmark::enabled(plan).and_then(|section| section.min_score),
        "judge_min_score": judge::min_score(&plan.run),
    });
    let section = resolved_json(&plan.run)["evaluation"].take();
    // Numbers of a config are within what canonical JSON takes.
    let digest =
        json::canonical(&section).ok().map(|text| sha256_bytes(text.as_bytes()).to_string());
    (Some(gates), digest)
}

#[cfg(test)]
mod tests {
    use super::LossGate;
    use forgelm_config::Evaluation;
    use forgelm_evidence::gate::{Policy, Source, Verdict, judge};

    fn gate(max_acceptable_loss: Option<f64>, baseline_loss: Option<f64>) -> LossGate {
        LossGate { max_acceptable_loss, baseline_loss }
    }

    fn verdict(gate: LossGate, eval_loss: f64) -> Verdict {
        judge(&gate.measurement(eval_loss, 40), Policy::default())
    }

    #[test]
    fn a_loss_above_a_threshold_is_rejected_with_every_reason() {
        assert_eq!(verdict(gate(Some(2.0), Some(1.5)), 1.5), Verdict::Accept, "equal passes");
        assert_eq!(verdict(gate(None, None), 9.0), Verdict::Accept);
        let Verdict::Reject { source, reasons } = verdict(gate(Some(2.0), Some(1.5)), 2.5) else {
            panic!("2.5 is above both")
        };
        assert_eq!(source, Source::Threshold);
        assert_eq!(
            reasons,
            [
                "eval_loss 2.5 is above `evaluation.max_acceptable_loss` 2",
                "eval_loss 2.5 is above the baseline 1.5",
            ]
        );
        let above = verdict(gate(Some(2.0), Some(1.5)), 1.75);
        assert_eq!(above.reason().as_deref(), Some("eval_loss 1.75 is above the baseline 1.5"));
    }

    #[test]
    fn a_loss_that_is_no_number_is_rejected_whatever_the_limits() {
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for limits in [gate(None, Some(1.0)), gate(None, None)] {
                let verdict = verdict(limits, loss);
                assert!(
                    matches!(&verdict, Verdict::Reject { source: Source::NanInf, .. }),
                    "{loss}: {verdict:?}"
                );
            }
        }
    }

    #[test]
    fn a_gate_is_there_when_something_asks_for_it() {
        let with = |auto_revert, max_acceptable_loss, baseline_loss| Evaluation {
            auto_revert,
            max_acceptable_loss,
            baseline_loss,
            ..Evaluation::default()
        };
        let of = |evaluation: &Evaluation| LossGate::of(evaluation, Some(3.0));
        assert_eq!(of(&with(false, None, None)), None);
        assert_eq!(of(&with(true, None, None)), Some(gate(None, Some(3.0))), "measured");
        assert_eq!(of(&with(true, None, Some(4.0))), Some(gate(None, Some(4.0))), "as configured");
        assert_eq!(of(&with(false, Some(2.0), None)), Some(gate(Some(2.0), None)));
        let nan = LossGate::of(&with(true, None, None), Some(f64::NAN));
        assert_eq!(nan, Some(gate(None, None)), "a baseline that is no number arms nothing");
    }
}
