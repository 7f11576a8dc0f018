//! The byte forms of JSON that evidence needs, on top of `forgelm_artifact::json`.

use std::borrow::Cow;

use forgelm_artifact::json::{self, Style};
use serde_json::Value;

/// As Python's `json.dumps` writes it: the form of audit lines.
pub(crate) fn python_json(value: &Value) -> String {
    json::python(value, Style::AUDIT_LINE)
}

/// Two blanks of indent, for people.
pub(crate) fn pretty_json(value: &Value) -> Vec<u8> {
    json::pretty(value).into_bytes()
}

/// Canonical bytes (RFC 8785). Integers beyond 2^53 become text, as I-JSON asks for.
pub(crate) fn canonical_json(value: &Value) -> Vec<u8> {
    let text =
        json::canonical(value).or_else(|_| json::canonical(&with_large_integers_as_text(value)));
    text.expect("every integer that is left is below 2^53").into_bytes()
}

fn with_large_integers_as_text(value: &Value) -> Value {
    const LIMIT: u64 = 1 << 53;
    match value {
        Value::Number(n) if !n.is_f64() => {
            let magnitude = n.as_u64().or_else(|| n.as_i64().map(i64::unsigned_abs));
            match magnitude {
                Some(m) if m <= LIMIT => value.clone(),
                _ => Value::String(n.to_string()),
            }
        }
        Value::Array(items) => items.iter().map(with_large_integers_as_text).collect(),
        Value::Object(members) => {
            let pairs = members.iter().map(|(k, v)| (k.clone(), with_large_integers_as_text(v)));
            Value::Object(pairs.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// A file's name in a line for people: as it is, or in quotes and escaped where a character could break
/// the line, turn it round, or look like another one.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(format!("\"{}\"", name.escape_default()))
}

#[cfg(test)]
mod tests {
    use super::{canonical_json, shown};
    use serde_json::json;

    #[test]
    fn large_integers_become_text_in_canonical_form() {
        let value = json!({"a": [u64::MAX, 1, -1], "b": 1_u64 << 53});
        let expected = br#"{"a":["18446744073709551615",1,-1],"b":9007199254740992}"#;
        assert_eq!(canonical_json(&value), expected);
    }
    #[test]
    fn fault_099_names_that_look_like_others_are_escaped() {
        assert_eq!(shown("compliance/report 2.json"), "compliance/report 2.json");
        assert_eq!(shown("r\u{435}port\n\u{202e}"), r#""r\u{435}port\n\u{202e}""#);
    }
}
