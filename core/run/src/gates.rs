//! The gates that judge a tuned model: verdicts from numbers, and nothing else.
//!
//! It knows no file and no engine: what was measured comes in, a [`Verdict`] goes out, and whoever
//! asked decides what follows. The thresholds are fixed when the run starts ([`fixed`] puts them into
//! its log), and a run that is continued must have the same.

use crate::plan::Plan;
use forgelm_artifact::hash::sha256_bytes;
use forgelm_artifact::json;
use forgelm_config::{Evaluation, resolved_json};
use forgelm_evidence::documents::evidence::Gate;
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

/// Why a gate rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The number is not finite.
    NanInf,
    /// It is beyond a threshold.
    Threshold,
}

impl Source {
    /// The word in the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NanInf => "nan_inf",
            Self::Threshold => "threshold",
        }
    }
}

/// What a gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The model may go on.
    Accept,
    /// It may not.
    Reject {
        /// What kind of reason it is.
        source: Source,
        /// Each reason, in words.
        reasons: Vec<String>,
    },
}

impl Verdict {
    /// Whether it accepts.
    #[must_use]
    pub const fn is_passed(&self) -> bool {
        match self {
            Self::Accept => true,
            Self::Reject { .. } => false,
        }
    }

    /// The reasons in one text; none when it accepts.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Accept => None,
            Self::Reject { reasons, .. } => Some(reasons.join("; ")),
        }
    }

    /// As documents have it.
    #[must_use]
    pub fn to_gate(&self, name: &str) -> Gate {
        Gate { gate: name.to_owned(), passed: self.is_passed(), reason: self.reason() }
    }
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

    /// Judges the validation loss of the weights that are kept. A loss equal to a threshold passes.
    #[must_use]
    pub fn judge(&self, eval_loss: f64) -> Verdict {
        if !eval_loss.is_finite() {
            let reasons = vec![format!("the validation loss is {eval_loss}")];
            return Verdict::Reject { source: Source::NanInf, reasons };
        }
        let limits = [
            (self.max_acceptable_loss, "`evaluation.max_acceptable_loss`"),
            (self.baseline_loss, "the baseline"),
        ];
        let beyond = |(limit, name): (Option<f64>, &str)| {
            let limit = limit.filter(|limit| eval_loss > *limit)?;
            Some(format!("the validation loss {eval_loss} is above {name} {limit}"))
        };
        let reasons: Vec<String> = limits.into_iter().filter_map(beyond).collect();
        match reasons.is_empty() {
            true => Verdict::Accept,
            false => Verdict::Reject { source: Source::Threshold, reasons },
        }
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
    });
    let section = resolved_json(&plan.run)["evaluation"].take();
    // Numbers of a config are within what canonical JSON takes.
    let digest =
        json::canonical(&section).ok().map(|text| sha256_bytes(text.as_bytes()).to_string());
    (Some(gates), digest)
}

#[cfg(test)]
mod tests {
    use super::{LossGate, Source, Verdict};
    use forgelm_config::Evaluation;

    fn gate(max_acceptable_loss: Option<f64>, baseline_loss: Option<f64>) -> LossGate {
        LossGate { max_acceptable_loss, baseline_loss }
    }

    #[test]
    fn a_loss_above_a_threshold_is_rejected_with_every_reason() {
        assert_eq!(gate(Some(2.0), Some(1.5)).judge(1.5), Verdict::Accept, "equal passes");
        assert_eq!(gate(None, None).judge(9.0), Verdict::Accept);
        let Verdict::Reject { source, reasons } = gate(Some(2.0), Some(1.5)).judge(2.5) else {
            panic!("2.5 is above both")
        };
        assert_eq!(source, Source::Threshold);
        assert_eq!(
            reasons,
            [
                "the validation loss 2.5 is above `evaluation.max_acceptable_loss` 2",
                "the validation loss 2.5 is above the baseline 1.5",
            ]
        );
        let verdict = gate(Some(2.0), Some(1.5)).judge(1.75);
        assert_eq!(
            verdict.reason().as_deref(),
            Some("the validation loss 1.75 is above the baseline 1.5")
        );
        assert!(!verdict.to_gate("loss").passed);
    }

    #[test]
    fn a_loss_that_is_no_number_is_rejected_for_that_alone() {
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let Verdict::Reject { source, reasons } = gate(None, Some(1.0)).judge(loss) else {
                panic!("{loss} was accepted")
            };
            assert_eq!((source.as_str(), reasons.len()), ("nan_inf", 1));
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
