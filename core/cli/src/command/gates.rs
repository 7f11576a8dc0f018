//! What gates said, for a person.

use forgelm_evidence::documents::evidence::Gate;
use forgelm_evidence::gate::{Bound, Check};
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

#[cfg(test)]
mod tests {
    use super::lines;
    use forgelm_evidence::documents::evidence::Gate;
    use forgelm_evidence::gate::{Bound, Check};

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
    }
}
