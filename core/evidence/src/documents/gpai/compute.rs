//! What the training took, and on which side of the one-third line that is.

use serde_json::Value;

use super::calendar::{
    AS_OF, BASE_UNKNOWN, BASE_UNKNOWN_SYSTEMIC, SHARE, TOKEN_RANGES, TOKENS_ABOVE,
};
use crate::documents::annex_iv::Answers;
use crate::documents::evidence::Evidence;
use crate::documents::inventory::joules;

/// A number of the run's resources.
fn used(evidence: &Evidence, key: &str) -> Option<f64> {
    let number = evidence.resource_usage.as_ref()?.get(key)?.as_f64()?;
    (number.is_finite() && number > 0.0).then_some(number)
}

/// Compute, time, and the one-third line, as far as they were counted.
pub(super) fn resources(evidence: &Evidence, given: &Answers) -> Vec<String> {
    let flops = used(evidence, "flops");
    let mut lines = Vec::new();
    lines.extend(flops.map(|flops| format!("{flops:.3e} floating-point operations, counted")));
    let seconds = used(evidence, "training_duration_seconds");
    lines.extend(seconds.map(|seconds| format!("{seconds} seconds of training")));
    lines.extend(flops.map(|flops| third(flops, given)));
    lines
}

/// Which side of the line a run is on.
fn third(flops: f64, given: &Answers) -> String {
    let known = given.get("compliance.gpai.base_training_flops").as_ref().and_then(Value::as_f64);
    let is_systemic =
        given.get("compliance.gpai.is_base_systemic").as_ref().and_then(Value::as_bool);
    let (base, of) = match (known, is_systemic) {
        (Some(base), _) => (base, "that trained the base model"),
        (None, Some(true)) => (
            BASE_UNKNOWN_SYSTEMIC,
            "that stands for a base with systemic risk whose own is not known",
        ),
        (None, _) => (BASE_UNKNOWN, "that stands for a base whose own is not known"),
    };
    let share = flops / base;
    let percent = share * 100.0;
    let percent = if percent < 0.01 { format!("{percent:.2e}") } else { format!("{percent:.2}") };
    let side = if share > SHARE { "above" } else { "not above" };
    format!(
        "{percent} percent of the {base:.3e} operations {of}: {side} one third, the line of the \
         Commission's guidelines for who modifies a model (as of {AS_OF})",
    )
}

/// Energy as measured.
pub(super) fn energy(evidence: &Evidence) -> Vec<String> {
    let line = |joules: f64| {
        format!(
            "{:.3} kWh ({joules} J), measured by the counters of the processor packages, which count \
             everything that runs on the machine",
            joules / 3.6e6
        )
    };
    joules(evidence).map(line).into_iter().collect()
}

/// The range of the template that the training texts are in. Tokens are counted as often as they were
/// trained on, so that a range may be too high and never too low.
pub(super) fn size_range(evidence: &Evidence) -> Vec<String> {
    let Some(tokens) = used(evidence, "tokens") else { return Vec::new() };
    let range = TOKEN_RANGES.iter().find(|(end, _)| tokens < *end);
    let range = range.map_or(TOKENS_ABOVE, |(_, words)| *words);
    vec![format!("text: {range} ({tokens} read in all passes over the data; as of {AS_OF})")]
}

#[cfg(test)]
mod tests {
    use super::{resources, size_range};
    use crate::documents::annex_iv::answers;
    use crate::tests::published::full;
    use serde_json::json;

    fn line(base: serde_json::Value, is_systemic: bool) -> String {
        let mut evidence = full();
        let gpai = json!({"base_training_flops": base, "is_base_systemic": is_systemic});
        evidence.compliance.as_mut().unwrap().insert("gpai".to_owned(), gpai);
        resources(&evidence, &answers(&evidence)).pop().unwrap()
    }

    /// 1.5e15 operations are a third of 4.5e15, which is not above it.
    #[test]
    fn the_line_is_at_one_third_of_the_base() {
        let at = line(json!(4.5e15), false);
        assert!(at.starts_with("33.33 percent of the 4.500e15 operations that trained"), "{at}");
        assert!(at.contains(": not above one third"), "{at}");
        assert!(line(json!(4.4e15), false).contains(": above one third"));
        let unknown = line(json!(null), false);
        assert!(
            unknown.starts_with("1.50e-6 percent of the 1.000e23 operations that stands"),
            "{unknown}"
        );
        assert!(line(json!(null), true).contains("1.000e25"));
    }

    #[test]
    fn sizes_are_in_the_ranges_of_the_template() {
        let of = |tokens: f64| {
            let mut evidence = full();
            evidence.resource_usage.as_mut().unwrap().insert("tokens".to_owned(), json!(tokens));
            size_range(&evidence).concat()
        };
        assert!(of(999_999_999.0).contains("less than 1 billion"));
        assert!(of(1e9).contains("1 billion to 10 trillion"));
        assert!(of(1e13).contains("more than 10 trillion"));
        assert_eq!(of(0.0), "");
    }
}
