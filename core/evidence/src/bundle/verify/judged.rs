//! The gates of a run, judged again from what they measured.

use serde_json::Value;

use super::{Check, FindingKind};
use crate::class::Class;
use crate::dsse::statement::Statement;
use crate::gate::{MEASUREMENTS_FILE, Measurements};
use crate::strict_json::{DOCUMENT_LIMITS, parse};

impl Check<'_> {
    /// Whether each verdict that was signed is the one that follows from the measurements. A run of a
    /// version that left none has nothing to compare.
    pub(super) fn judged(&mut self, statement: &Statement) {
        let Some(gates) = statement.predicate.get("gates").and_then(Value::as_array) else {
            return;
        };
        let is_bound = statement.subjects.iter().any(|subject| subject.name == MEASUREMENTS_FILE);
        if gates.is_empty() || !is_bound {
            return;
        }
        // One that is gone or changed is found as a subject.
        let Ok(bytes) = std::fs::read(self.dir.join(MEASUREMENTS_FILE)) else { return };
        let document = parse(&bytes, DOCUMENT_LIMITS).ok();
        let Some(measured) = document.as_ref().and_then(Measurements::from_json) else {
            let reason = "is no document of measurements of this version";
            return self.add(MEASUREMENTS_FILE, FindingKind::Verdict, Class::Different, reason);
        };
        for gate in gates {
            let name = gate["gate"].as_str().unwrap_or_default();
            let signed = (gate["passed"].as_bool(), gate["reason"].as_str().map(str::to_owned));
            let found = measured.judge(name);
            let found = found.map(|verdict| (Some(verdict.is_passed()), verdict.reason()));
            let reason = match found {
                Some(found) if found == signed => continue,
                Some((passed, _)) => format!(
                    "by what was measured the gate `{name}` {}; it is signed as {}",
                    if passed == Some(true) { "passes" } else { "does not pass" },
                    if signed.0 == Some(true) { "passed" } else { "not passed" },
                ),
                None => format!("the gate `{name}` was signed, and no measurement of it is here"),
            };
            self.add(MEASUREMENTS_FILE, FindingKind::Verdict, Class::Different, reason);
        }
    }
}
