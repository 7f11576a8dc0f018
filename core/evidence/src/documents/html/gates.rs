//! What the gates measured, against what, and how much was left.

use maud::{Markup, html};
use serde_json::Value;

use super::super::evidence::{Evidence, Gate};
use super::number::real;
use super::page::table;

/// A number that a gate compared with a limit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Check {
    /// What was measured.
    pub(super) measure: String,
    /// The number.
    pub(super) value: f64,
    /// What it was compared with.
    pub(super) limit_name: &'static str,
    /// The limit.
    pub(super) limit: f64,
    /// Which side is good.
    pub(super) side: Side,
}

/// Which side of a limit is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The value may not be above it.
    AtMost,
}

impl Check {
    /// How far the value is on the good side; negative on the other.
    fn margin(&self) -> f64 {
        match self.side {
            Side::AtMost => self.limit - self.value,
        }
    }

    fn limit_text(&self) -> String {
        let word = match self.side {
            Side::AtMost => "at most",
        };
        format!("{word} {} ({})", real(self.limit), self.limit_name)
    }

    fn margin_text(&self) -> String {
        let margin = self.margin();
        if !margin.is_finite() {
            return "not known".to_owned();
        }
        let sign = if margin >= 0.0 { "+" } else { "" };
        let share = (self.limit.abs() > 0.0).then(|| 100.0 * margin / self.limit.abs());
        let share = share.map_or_else(String::new, |share| format!(" ({sign}{share:.1} %)"));
        format!("{sign}{}{share}", real(margin))
    }
}

/// The limits of the loss gate as they stood in this run.
pub(super) fn loss_limits(evidence: &Evidence) -> Vec<(&'static str, f64)> {
    let config = evidence.technical.config.as_ref().unwrap_or(&evidence.config);
    let section = config.get("evaluation");
    let of = |key: &str| section.and_then(|s| s.get(key)).and_then(Value::as_f64);
    let reverts = section.and_then(|s| s.get("auto_revert")).and_then(Value::as_bool);
    let before = evidence.metrics.get("baseline_eval_loss").copied();
    let measured = before.filter(|loss| reverts == Some(true) && loss.is_finite());
    let baseline = of("baseline_loss")
        .map(|loss| ("baseline, as configured", loss))
        .or_else(|| Some(("baseline, before training", measured?)));
    let configured = of("max_acceptable_loss").map(|loss| ("max_acceptable_loss", loss));
    configured.into_iter().chain(baseline).collect()
}

/// What a gate compared.
pub(super) fn checks(evidence: &Evidence, gate: &Gate) -> Vec<Check> {
    let Some(value) = evidence.metrics.get("eval_loss").copied().filter(|_| gate.gate == "loss")
    else {
        return Vec::new();
    };
    let check = |(limit_name, limit)| Check {
        measure: "validation loss".to_owned(),
        value,
        limit_name,
        limit,
        side: Side::AtMost,
    };
    loss_limits(evidence).into_iter().map(check).collect()
}

/// The verdicts, one row a comparison.
pub(super) fn part(evidence: &Evidence) -> Markup {
    if evidence.gates.is_empty() {
        return html! { p { "No gate was asked: the config sets no limit for this model." } };
    }
    let mut rows = Vec::new();
    for gate in &evidence.gates {
        let verdict = if gate.passed { "passed" } else { "failed" };
        let checks = checks(evidence, gate);
        if checks.is_empty() {
            let none = || "–".to_owned();
            rows.push(vec![gate.gate.clone(), none(), none(), none(), none(), verdict.to_owned()]);
        }
        for check in checks {
            let is_within = check.margin() >= 0.0;
            rows.push(vec![
                gate.gate.clone(),
                check.measure.clone(),
                real(check.value),
                check.limit_text(),
                check.margin_text(),
                if is_within { "within the limit" } else { "beyond the limit" }.to_owned(),
            ]);
        }
    }
    let failed = || evidence.gates.iter().filter(|gate| !gate.passed);
    html! {
        (table(
            "Verdicts and margins; a margin with + is on the good side",
            &["gate", "measure", "value", "limit", "margin", "result"],
            &[false, false, true, false, true],
            &rows,
        ))
        @for gate in failed() {
            p { b.bad { "Failed: " } (gate.gate)
                @if let Some(reason) = &gate.reason { ": " (reason) } }
        }
        @if failed().next().is_none() { p { b.good { "Every gate passed." } } }
    }
}
