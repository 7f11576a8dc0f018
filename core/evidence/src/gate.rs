//! What gates measured, and the verdict that follows from it: pure, so that a stranger comes to the
//! same verdict from the same numbers.
//!
//! [`judge`] is the only place that decides. A gate is not rejected for want of evidence: a
//! measurement that could not be made, or that too few samples stand behind, has a verdict of its own.

use serde_json::{Map, Value, json};

use crate::audit::event::number;

/// What every gate of a run measured, with how much evidence a verdict needed, relative to the output
/// folder.
pub const MEASUREMENTS_FILE: &str = "compliance/gate_measurements.json";

/// Version of that document.
const SCHEMA_VERSION: u64 = 1;

/// Share of intervals that hold the true value, where `evaluation.confidence` is not set.
pub const CONFIDENCE: f64 = 0.95;

/// Which side of its limit a measure may be on. Being equal to the limit is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Not above.
    AtMost,
    /// Not below.
    AtLeast,
}

impl Bound {
    /// The word in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AtMost => "at_most",
            Self::AtLeast => "at_least",
        }
    }

    fn is_beyond(self, value: f64, limit: f64) -> bool {
        match self {
            Self::AtMost => value > limit,
            Self::AtLeast => value < limit,
        }
    }
}

/// A measure beside its limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was measured, as metrics name it.
    pub measure: String,
    /// The value.
    pub value: f64,
    /// The side that is accepted.
    pub bound: Bound,
    /// The limit.
    pub limit: f64,
    /// Where the limit is from, in words: a key in backquotes, or `the baseline`.
    pub limit_name: String,
    /// Samples behind the value, where they are counted.
    pub n_samples: Option<u64>,
    /// Lower and upper bound of the value at the confidence of the policy, where it can be given.
    pub interval: Option<[f64; 2]>,
}

impl Check {
    /// How far the value is on the accepted side; negative beyond the limit.
    #[must_use]
    pub fn margin(&self) -> f64 {
        match self.bound {
            Bound::AtMost => self.limit - self.value,
            Bound::AtLeast => self.value - self.limit,
        }
    }

    /// As documents have it. Numbers that are not finite become text.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "measure": self.measure,
            "value": number(self.value),
            "bound": self.bound.as_str(),
            "limit": self.limit,
            "limit_name": self.limit_name,
            "n_samples": self.n_samples,
            "interval": self.interval,
        })
    }

    /// The opposite of [`Check::to_json`]; none for anything else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let bound = match value["bound"].as_str()? {
            "at_most" => Bound::AtMost,
            "at_least" => Bound::AtLeast,
            _ => return None,
        };
        let interval = match &value["interval"] {
            Value::Null => None,
            Value::Array(ends) => match ends.as_slice() {
                [low, high] => Some([low.as_f64()?, high.as_f64()?]),
                _ => return None,
            },
            _ => return None,
        };
        let n_samples = match &value["n_samples"] {
            Value::Null => None,
            n => Some(n.as_u64()?),
        };
        Some(Self {
            measure: text("measure")?,
            value: match &value["value"] {
                Value::String(text) => text.parse().ok()?,
                value => value.as_f64()?,
            },
            bound,
            limit: value["limit"].as_f64()?,
            limit_name: text("limit_name")?,
            n_samples,
            interval,
        })
    }

    /// `safety/unsafe_ratio 0.2 is above `evaluation.safety.max_safety_regression` 0.05`.
    fn reason(&self) -> String {
        let Self { measure, value, limit, limit_name, .. } = self;
        let side = match self.bound {
            Bound::AtMost => "above",
            Bound::AtLeast => "below",
        };
        format!("{measure} {value} is {side} {limit_name} {limit}")
    }
}

/// What a gate measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The gate's name: `loss`, `benchmark`, `safety` or `llm_judge`.
    pub gate: String,
    /// What it was measured by.
    pub checks: Vec<Check>,
    /// Why it could not be measured, if it could not.
    pub not_evaluated: Option<String>,
}

impl Measurement {
    /// A gate that could not be measured.
    #[must_use]
    pub fn not_evaluated(gate: &str, reason: impl Into<String>) -> Self {
        Self { gate: gate.to_owned(), checks: Vec::new(), not_evaluated: Some(reason.into()) }
    }

    /// As documents have it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "gate": self.gate,
            "checks": self.checks.iter().map(Check::to_json).collect::<Vec<_>>(),
            "not_evaluated": self.not_evaluated,
        })
    }

    /// The opposite of [`Measurement::to_json`]; none for anything else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let checks = value["checks"].as_array()?.iter().map(Check::from_json);
        let not_evaluated = match &value["not_evaluated"] {
            Value::Null => None,
            reason => Some(reason.as_str()?.to_owned()),
        };
        Some(Self {
            gate: value["gate"].as_str()?.to_owned(),
            checks: checks.collect::<Option<_>>()?,
            not_evaluated,
        })
    }
}

/// How much evidence a verdict needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy {
    /// Samples that a measure must have behind it. None: any number does.
    pub min_samples: Option<u64>,
    /// With it a measure counts by its interval: rejected when all of it is beyond the limit, accepted
    /// when none is. None: the value alone decides.
    pub confidence: Option<f64>,
}

impl Policy {
    /// The level of the intervals.
    #[must_use]
    pub fn level(self) -> f64 {
        self.confidence.unwrap_or(CONFIDENCE)
    }

    /// As documents have it.
    #[must_use]
    pub fn to_json(self) -> Value {
        json!({"min_samples": self.min_samples, "confidence": self.confidence})
    }

    /// The opposite of [`Policy::to_json`]; none for anything else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let policy: &Map<String, Value> = value.as_object()?;
        let min_samples = match policy.get("min_samples")? {
            Value::Null => None,
            n => Some(n.as_u64()?),
        };
        let confidence = match policy.get("confidence")? {
            Value::Null => None,
            level => Some(level.as_f64()?),
        };
        Some(Self { min_samples, confidence })
    }
}

/// The document of what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurements {
    /// How much evidence a verdict needed.
    pub policy: Policy,
    /// Each gate, in the order in which they were asked.
    pub gates: Vec<Measurement>,
}

impl Measurements {
    /// The document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "schema_version": SCHEMA_VERSION,
            "policy": self.policy.to_json(),
            "gates": self.gates.iter().map(Measurement::to_json).collect::<Vec<_>>(),
        })
    }

    /// The opposite of [`Measurements::to_json`]; none for anything else.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        if value["schema_version"].as_u64()? != SCHEMA_VERSION {
            return None;
        }
        let gates = value["gates"].as_array()?.iter().map(Measurement::from_json);
        Some(Self {
            policy: Policy::from_json(&value["policy"])?,
            gates: gates.collect::<Option<_>>()?,
        })
    }

    /// The verdict on one of the gates; none for one that is not there.
    #[must_use]
    pub fn judge(&self, gate: &str) -> Option<Verdict> {
        let found = self.gates.iter().find(|measured| measured.gate == gate)?;
        Some(judge(found, self.policy))
    }
}

/// Why a gate rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The number is not finite.
    NanInf,
    /// It is beyond a threshold.
    Threshold,
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
    /// Nobody can say: it was not measured, or not enough.
    NotEnoughEvidence {
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
            Self::Reject { .. } | Self::NotEnoughEvidence { .. } => false,
        }
    }

    /// The reasons in one text; none when it accepts.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Accept => None,
            Self::Reject { reasons, .. } | Self::NotEnoughEvidence { reasons } => {
                Some(reasons.join("; "))
            }
        }
    }
}

/// The verdict on what was measured. A value that is no number rejects alone; then want of evidence
/// decides nothing; then any measure beyond its limit rejects.
#[must_use]
pub fn judge(measured: &Measurement, policy: Policy) -> Verdict {
    let invalid: Vec<String> = measured
        .checks
        .iter()
        .filter(|check| !check.value.is_finite())
        .map(|check| format!("{} is {}", check.measure, check.value))
        .collect();
    if !invalid.is_empty() && measured.not_evaluated.is_none() {
        let first = invalid.into_iter().take(1).collect();
        return Verdict::Reject { source: Source::NanInf, reasons: first };
    }
    if let Some(reason) = &measured.not_evaluated {
        return Verdict::NotEnoughEvidence { reasons: vec![reason.clone()] };
    }
    let mut missing: Vec<String> =
        measured.checks.iter().filter_map(|check| missing_evidence(check, policy)).collect();
    // One value beside two limits wants the same.
    missing.dedup();
    if !missing.is_empty() {
        return Verdict::NotEnoughEvidence { reasons: missing };
    }
    let beyond = |check: &&Check| check.bound.is_beyond(check.value, check.limit);
    let reasons: Vec<String> = measured.checks.iter().filter(beyond).map(Check::reason).collect();
    match reasons.is_empty() {
        true => Verdict::Accept,
        false => Verdict::Reject { source: Source::Threshold, reasons },
    }
}

/// Why nothing can be said by a measure; none where something can.
fn missing_evidence(check: &Check, policy: Policy) -> Option<String> {
    let Check { measure, value, limit, limit_name, .. } = check;
    if let (Some(n), Some(min)) = (check.n_samples, policy.min_samples)
        && n < min
    {
        return Some(format!(
            "not enough evidence: {measure} has {n} samples behind it, and \
             `evaluation.min_samples` is {min}"
        ));
    }
    let [low, high] = policy.confidence.and(check.interval)?;
    let ends = [low, high].map(|end| check.bound.is_beyond(end, *limit));
    (ends[0] != ends[1]).then(|| {
        format!(
            "not enough evidence: {measure} {value} is between {low} and {high}, and {limit_name} \
             {limit} lies between them"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Bound, Check, Measurement, Measurements, Policy, Source, Verdict, judge};

    fn check(value: f64, bound: Bound, limit: f64) -> Check {
        Check {
            measure: "m".to_owned(),
            value,
            bound,
            limit,
            limit_name: "`limit`".to_owned(),
            n_samples: Some(40),
            interval: Some([value - 0.1, value + 0.1]),
        }
    }

    fn measured(checks: &[Check]) -> Measurement {
        Measurement { gate: "g".to_owned(), checks: checks.to_vec(), not_evaluated: None }
    }

    #[test]
    fn a_value_at_its_limit_is_accepted_and_every_one_beyond_is_named() {
        let plain = Policy::default();
        let at = [check(0.5, Bound::AtMost, 0.5), check(0.5, Bound::AtLeast, 0.5)];
        assert_eq!(judge(&measured(&at), plain), Verdict::Accept);
        assert_eq!(judge(&measured(&[]), plain), Verdict::Accept);
        let beyond = [check(0.75, Bound::AtMost, 0.5), check(0.25, Bound::AtLeast, 0.5)];
        let reasons =
            ["m 0.75 is above `limit` 0.5".to_owned(), "m 0.25 is below `limit` 0.5".to_owned()];
        let rejected = Verdict::Reject { source: Source::Threshold, reasons: reasons.to_vec() };
        assert_eq!(judge(&measured(&beyond), plain), rejected);
        assert!((beyond[0].margin() + 0.25).abs() < 1e-12);
        assert!((beyond[1].margin() + 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_value_that_is_no_number_is_rejected_whatever_the_samples() {
        let policy = Policy { min_samples: Some(100), confidence: Some(0.9) };
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let verdict = judge(&measured(&[check(value, Bound::AtMost, 1.0)]), policy);
            let Verdict::Reject { source, reasons } = verdict else { panic!("{value}") };
            assert_eq!((source, reasons.len()), (Source::NanInf, 1));
        }
    }

    #[test]
    fn too_few_samples_and_an_interval_across_the_limit_say_nothing() {
        let few = Policy { min_samples: Some(41), confidence: None };
        let good = measured(&[check(0.2, Bound::AtMost, 0.5)]);
        let Verdict::NotEnoughEvidence { reasons } = judge(&good, few) else { panic!("few") };
        assert!(reasons[0].contains("40 samples"), "{reasons:?}");
        assert_eq!(judge(&good, Policy { min_samples: Some(40), ..few }), Verdict::Accept);

        let sure = Policy { min_samples: None, confidence: Some(0.95) };
        assert_eq!(judge(&good, sure), Verdict::Accept, "0.1 to 0.3 is below 0.5");
        for value in [0.45, 0.55] {
            let verdict = judge(&measured(&[check(value, Bound::AtMost, 0.5)]), sure);
            assert!(matches!(verdict, Verdict::NotEnoughEvidence { .. }), "{value}: {verdict:?}");
        }
        let bad = judge(&measured(&[check(0.7, Bound::AtMost, 0.5)]), sure);
        assert!(matches!(bad, Verdict::Reject { .. }), "{bad:?}");
    }

    #[test]
    fn what_was_not_measured_is_never_rejected() {
        let mut failed = measured(&[check(f64::NAN, Bound::AtMost, 0.5)]);
        failed.not_evaluated = Some("the classifier is missing".to_owned());
        let verdict = judge(&failed, Policy::default());
        assert_eq!(verdict.reason().as_deref(), Some("the classifier is missing"));
        assert!(matches!(verdict, Verdict::NotEnoughEvidence { .. }));
    }

    #[test]
    fn a_measurement_comes_back_from_its_document() {
        let infinite =
            Check { n_samples: None, interval: None, ..check(f64::INFINITY, Bound::AtMost, 2.0) };
        let all = measured(&[check(0.3, Bound::AtLeast, 0.5), infinite]);
        assert_eq!(Measurement::from_json(&all.to_json()), Some(all.clone()));
        for key in ["measure", "value", "bound", "limit", "n_samples", "interval"] {
            let mut broken = all.to_json();
            broken["checks"][0][key] = serde_json::json!({});
            assert_eq!(Measurement::from_json(&broken), None, "{key}");
        }
        let policy = Policy { min_samples: Some(3), confidence: Some(0.9) };
        let document = Measurements { policy, gates: vec![all] };
        assert_eq!(Measurements::from_json(&document.to_json()), Some(document.clone()));
        assert!(matches!(document.judge("g"), Some(Verdict::Reject { .. })));
        assert_eq!(document.judge("another"), None);
        let mut newer = document.to_json();
        newer["schema_version"] = 2.into();
        assert_eq!(Measurements::from_json(&newer), None);
    }
}
