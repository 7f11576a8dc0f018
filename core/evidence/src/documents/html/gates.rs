//! What the gates measured, against what, and how much was left.

use maud::{Markup, html};

use super::super::evidence::{Evidence, Gate};
use super::number::{count, real};
use super::page::table;
use crate::gate::{Bound, Check};

/// The limits of the loss gate as they stood in this run, for the curve of the loss.
pub(super) fn loss_limits(evidence: &Evidence) -> Vec<(String, f64)> {
    let of_loss = evidence.gates.iter().filter(|gate| gate.gate == "loss");
    let checks = of_loss.flat_map(|gate| &gate.checks).filter(|check| is_limit(check));
    checks.map(|check| (limit_name(check), check.limit)).collect()
}

/// Whether there is a limit: a gate without one still refuses what is no number, by the largest one.
fn is_limit(check: &Check) -> bool {
    check.limit.abs() < f64::MAX
}

/// Where the limit is from, without the marks of code.
fn limit_name(check: &Check) -> String {
    check.limit_name.replace('`', "")
}

fn limit(check: &Check) -> String {
    if !is_limit(check) {
        return "any number".to_owned();
    }
    let side = match check.bound {
        Bound::AtMost => "at most",
        Bound::AtLeast => "at least",
    };
    format!("{side} {} ({})", real(check.limit), limit_name(check))
}

fn margin(check: &Check) -> String {
    let margin = check.margin();
    if !margin.is_finite() || !is_limit(check) {
        return "–".to_owned();
    }
    let sign = if margin >= 0.0 { "+" } else { "" };
    let share = (check.limit.abs() > 0.0).then(|| 100.0 * margin / check.limit.abs());
    let share = share.map_or_else(String::new, |share| format!(" ({sign}{share:.1} %)"));
    format!("{sign}{}{share}", real(margin))
}

/// How many samples stand behind the value, and the interval that holds the true one.
fn behind(check: &Check) -> String {
    let n = check.n_samples.map(|n| format!("{} samples", count(n)));
    let interval = check.interval.map(|[low, high]| format!("{} to {}", real(low), real(high)));
    let words: Vec<String> = n.into_iter().chain(interval).collect();
    if words.is_empty() { "–".to_owned() } else { words.join("; ") }
}

/// The side of the limit. A gate that wants intervals may decide otherwise; its verdict stands below.
fn result(check: &Check) -> &'static str {
    match check.margin() {
        margin if margin.is_nan() => "no number",
        margin if margin >= 0.0 => "within the limit",
        _ => "beyond the limit",
    }
}

/// The rows of a gate: one a comparison.
fn rows(gate: &Gate) -> Vec<Vec<String>> {
    let none = || "–".to_owned();
    if gate.checks.is_empty() {
        let verdict = if gate.passed { "passed" } else { "failed" };
        return vec![vec![
            gate.gate.clone(),
            none(),
            none(),
            none(),
            none(),
            none(),
            verdict.to_owned(),
        ]];
    }
    let row = |check: &Check| {
        vec![
            gate.gate.clone(),
            check.measure.clone(),
            real(check.value),
            limit(check),
            margin(check),
            behind(check),
            result(check).to_owned(),
        ]
    };
    gate.checks.iter().map(row).collect()
}

/// The verdicts, one row a comparison.
pub(super) fn part(evidence: &Evidence) -> Markup {
    if evidence.gates.is_empty() {
        return html! { p { "No gate was asked: the config sets no limit for this model." } };
    }
    let rows: Vec<Vec<String>> = evidence.gates.iter().flat_map(rows).collect();
    let failed = || evidence.gates.iter().filter(|gate| !gate.passed);
    html! {
        (table(
            "Verdicts and margins; a margin with + is on the good side",
            &["gate", "measure", "value", "limit", "margin", "behind the value", "result"],
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

#[cfg(test)]
mod tests {
    use super::rows;
    use crate::documents::evidence::Gate;
    use crate::gate::{Bound, Check};

    fn check(value: f64, bound: Bound, limit: f64) -> Check {
        Check {
            measure: "x".to_owned(),
            value,
            bound,
            limit,
            limit_name: "`evaluation.limit`".to_owned(),
            n_samples: None,
            interval: None,
        }
    }

    #[test]
    fn a_row_says_how_far_a_value_is_from_its_limit() {
        let behind = Check {
            n_samples: Some(1200),
            interval: Some([0.5, 0.75]),
            ..check(0.625, Bound::AtLeast, 0.5)
        };
        let cases = [
            (
                check(0.5, Bound::AtMost, 2.0),
                "at most 2 (evaluation.limit)",
                "+1.5000 (+75.0 %)",
                "–",
                "within",
            ),
            (
                check(3.0, Bound::AtMost, 2.0),
                "at most 2 (evaluation.limit)",
                "-1 (-50.0 %)",
                "–",
                "beyond",
            ),
            (
                check(2.0, Bound::AtMost, 2.0),
                "at most 2 (evaluation.limit)",
                "+0 (+0.0 %)",
                "–",
                "within",
            ),
            (
                behind,
                "at least 0.5000 (evaluation.limit)",
                "+0.1250 (+25.0 %)",
                "1,200 samples; 0.5000 to 0.7500",
                "within",
            ),
            (check(0.0, Bound::AtMost, 0.0), "at most 0 (evaluation.limit)", "+0", "–", "within"),
            (
                check(f64::NAN, Bound::AtMost, 2.0),
                "at most 2 (evaluation.limit)",
                "–",
                "–",
                "no number",
            ),
            (check(1.0, Bound::AtMost, f64::MAX), "any number", "–", "–", "within"),
        ];
        for (check, limit, margin, behind, result) in cases {
            let gate =
                Gate { gate: "g".to_owned(), passed: true, reason: None, checks: vec![check] };
            let row = rows(&gate).remove(0);
            assert_eq!([&row[3], &row[4], &row[5]], [limit, margin, behind]);
            assert!(row[6].starts_with(result), "{row:?}");
        }
        let bare = Gate { gate: "g".to_owned(), passed: false, reason: None, checks: vec![] };
        assert_eq!(rows(&bare), [["g", "–", "–", "–", "–", "–", "failed"]]);
    }
}
