//! What gates said, for a person and for a program.

use forgelm_evidence::documents::evidence::Gate;
use forgelm_evidence::gate::{Bound, Check};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// A line for each gate, and one for each of its checks with how far it is from its limit.
pub fn lines(gates: &[Gate]) -> String {
    let mut text = String::new();
    for gate in gates {
        let verdict = if gate.passed { "passed" } else { "rejected" };
        let checks: Vec<String> = gate.checks.iter().map(check).collect();
        let checks = if checks.is_empty() { "no limit".to_owned() } else { checks.join("; ") };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "gate      {} {verdict}: {checks}", gate.gate);
    }
    text
}

/// `eval_loss 1.25, at most 2 (margin 0.75)`.
fn check(check: &Check) -> String {
    let side = match check.bound {
        Bound::AtMost => "at most",
        Bound::AtLeast => "at least",
    };
    let mut text = format!(
        "{} {:.4}, {side} {:.4} (margin {:.4}",
        check.measure,
        check.value,
        check.limit,
        check.margin()
    );
    if let Some(n) = check.n_samples {
        let _ = write!(text, ", {n} samples");
    }
    if let Some([low, high]) = check.interval {
        let _ = write!(text, ", {low:.4} to {high:.4}");
    }
    text.push(')');
    text
}

/// `gate_failures`, and what each gate found under its own key: `benchmark`, `safety`, `judge`.
pub fn members(gates: &[Gate], evaluations: &Map<String, Value>) -> Map<String, Value> {
    let failures = gates.iter().filter(|gate| !gate.passed);
    let failures: Vec<Value> =
        failures.map(|gate| json!({"gate": gate.gate, "reason": gate.reason})).collect();
    let found = evaluations.iter().filter_map(|(key, value)| {
        let key = if key == "llm_judge" { "judge" } else { key.as_str() };
        let gate = gates.iter().find(|gate| gate.gate == key)?;
        let mut value = value.clone();
        value.as_object_mut()?.insert("passed".to_owned(), json!(gate.passed));
        Some((key.to_owned(), value))
    });
    std::iter::once(("gate_failures".to_owned(), Value::Array(failures))).chain(found).collect()
}

#[cfg(test)]
mod tests {
    use super::{lines, members};
    use forgelm_evidence::documents::evidence::Gate;
    use forgelm_evidence::gate::{Bound, Check};
    use serde_json::json;

    fn gate(name: &str, passed: bool, checks: Vec<Check>) -> Gate {
        let reason = (!passed).then(|| "too low".to_owned());
        Gate { gate: name.to_owned(), passed, reason, checks }
    }

    #[test]
    fn a_person_reads_value_limit_and_margin() {
        let check = Check {
            measure: "benchmark/average".to_owned(),
            value: 0.5,
            bound: Bound::AtLeast,
            limit: 0.25,
            limit_name: "`k`".to_owned(),
            n_samples: Some(40),
            interval: Some([0.375, 0.625]),
        };
        let gates = [gate("benchmark", true, vec![check]), gate("safety", false, vec![])];
        assert_eq!(
            lines(&gates),
            "gate      benchmark passed: benchmark/average 0.5000, at least 0.2500 (margin 0.2500, \
             40 samples, 0.3750 to 0.6250)\ngate      safety rejected: no limit\n"
        );
        let found = json!({"benchmark": {"average": 0.5}, "llm_judge": {"average_score": 4.0}});
        let gates = [gate("benchmark", true, vec![]), gate("judge", false, vec![])];
        let members = members(&gates, found.as_object().unwrap());
        assert_eq!(members["benchmark"], json!({"average": 0.5, "passed": true}));
        assert_eq!(members["judge"], json!({"average_score": 4.0, "passed": false}));
        assert_eq!(members["gate_failures"], json!([{"gate": "judge", "reason": "too low"}]));
    }
}
