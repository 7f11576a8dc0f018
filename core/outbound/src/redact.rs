//! Secrets out of texts, immediately before they leave.

use forgelm_privacy::{SECRET_MASK, mask_secrets};
use serde_json::Value;

/// Characters of a reason that are sent.
const REASON_MAX: usize = 2048;
/// What ends a reason that was cut.
const CUT: &str = "… (truncated)";
/// Values that are words of ours.
const OURS: [&str; 3] = ["event", "status", "color"];

/// A text without the secrets that can be told by their form.
#[must_use]
pub fn masked(text: &str) -> String {
    mask_secrets(text, SECRET_MASK).text
}

/// A reason: masked first, so that no secret is cut in two and missed, then cut.
#[must_use]
pub fn reason(text: &str) -> String {
    let masked = masked(text);
    match masked.char_indices().nth(REASON_MAX) {
        Some((end, _)) => format!("{}{CUT}", &masked[..end]),
        None => masked,
    }
}

/// Masks every text of a payload but those that are words of ours.
pub(crate) fn payload(value: &mut Value) {
    match value {
        Value::String(text) => *text = masked(text),
        Value::Array(items) => items.iter_mut().for_each(payload),
        Value::Object(members) => {
            let theirs = members.iter_mut().filter(|(key, _)| !OURS.contains(&key.as_str()));
            theirs.for_each(|(_, value)| payload(value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{masked, payload, reason};
    use serde_json::json;

    #[test]
    fn every_text_of_a_payload_is_masked() {
        let token = format!("ghp_{}", "a1B2".repeat(9));
        let mut value = json!({
            "event": "training.failure",
            "reason": format!("401 for {token}"),
            "attachments": [{"title": token, "color": "#ff0000"}],
        });
        payload(&mut value);
        let text = value.to_string();
        assert!(!text.contains("ghp_"), "{text}");
        assert_eq!(value["reason"], "401 for [REDACTED-SECRET]");
        assert_eq!(value["attachments"][0]["title"], "[REDACTED-SECRET]");
        assert_eq!(value["event"], "training.failure");
    }

    #[test]
    fn a_reason_is_masked_before_it_is_cut() {
        // The token begins before the cut and ends after it.
        let text = format!("{}ghp_{}", "x ".repeat(1020), "a1B2".repeat(9));
        let reason = reason(&text);
        assert!(!reason.contains("ghp_"), "{reason}");
        assert!(reason.ends_with("… (truncated)"), "{reason}");
        assert_eq!(reason.chars().count(), 2048 + "… (truncated)".chars().count());
        assert_eq!(super::reason("short"), "short");
        assert_eq!(masked("plain"), "plain");
    }
}
