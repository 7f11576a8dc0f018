//! JSON where its bytes matter: as Python's `json.dumps` writes it, in canonical form (RFC 8785),
//! and read with duplicate keys refused.

mod number;
mod unique;

pub use number::python_repr;
use serde_json::Value;
use std::fmt::Write;
pub use unique::{JsonError, parse_unique};

/// The separators between items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separators {
    /// `", "` and `": "`, Python's default.
    Spaced,
    /// `","` and `":"`.
    Compact,
}

/// What happens to characters above U+007F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonAscii {
    /// `\uXXXX`, in surrogate pairs above the BMP; Python's default.
    Escaped,
    /// Written as they are.
    Raw,
}

/// The order of an object's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// As they were inserted.
    AsGiven,
    /// By code point, in every object.
    Sorted,
}

/// How [`python`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Between items.
    pub separators: Separators,
    /// Characters above U+007F.
    pub non_ascii: NonAscii,
    /// Order of keys.
    pub keys: Keys,
}

impl Style {
    /// A line of the audit log: `json.dumps(value)`.
    pub const AUDIT_LINE: Self =
        Self { separators: Separators::Spaced, non_ascii: NonAscii::Escaped, keys: Keys::AsGiven };
    /// The text whose hash is the config hash: sorted keys, spaced, raw characters.
    pub const CONFIG_HASH: Self =
        Self { separators: Separators::Spaced, non_ascii: NonAscii::Raw, keys: Keys::Sorted };
    /// The text whose hash is the manifest hash, profile `v1`: sorted keys, compact, escaped.
    pub const MANIFEST_V1: Self =
        Self { separators: Separators::Compact, non_ascii: NonAscii::Escaped, keys: Keys::Sorted };
}

/// A value as Python's `json.dumps` writes it: floats in the shortest form that reads back, with
/// Python's exponents (`2e-05`, `1e+16`, `1.0`).
#[must_use]
pub fn python(value: &Value, style: Style) -> String {
    let mut out = String::new();
    python_value(&mut out, value, style);
    out
}

fn python_value(out: &mut String, value: &Value, style: Style) {
    let (comma, colon) = match style.separators {
        Separators::Spaced => (", ", ": "),
        Separators::Compact => (",", ":"),
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
            Some(v) => out.push_str(&number::python_repr(v)),
            None => out.push_str(&n.to_string()),
        },
        Value::String(s) => python_string(out, s, style.non_ascii),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { comma });
                python_value(out, item, style);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            if style.keys == Keys::Sorted {
                // Order of bytes in UTF-8 is order of code points.
                entries.sort_by_key(|(key, _)| key.as_str());
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { comma });
                python_string(out, key, style.non_ascii);
                out.push_str(colon);
                python_value(out, item, style);
            }
            out.push('}');
        }
    }
}

fn python_string(out: &mut String, s: &str, non_ascii: NonAscii) {
    out.push('"');
    for c in s.chars() {
        match c {
            '\u{7f}' => out.push(c),
            c if c.is_ascii() => ascii_char(out, c),
            c if non_ascii == NonAscii::Raw => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    escape(out, *unit);
                }
            }
        }
    }
    out.push('"');
}

/// A character below U+0080 inside a string, as Python and RFC 8785 both write it.
fn ascii_char(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c < ' ' => escape(out, c as u16),
        c => out.push(c),
    }
}

fn escape(out: &mut String, unit: u16) {
    write!(out, "\\u{unit:04x}").expect("writing to a string cannot fail");
}

/// A value that RFC 8785 cannot write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the integer {number} is beyond 2^53; canonical JSON needs it as a string")]
pub struct CanonicalError {
    /// The number found.
    pub number: String,
}

/// The canonical form of RFC 8785 (JCS): keys sorted by UTF-16 code units, numbers as ECMAScript
/// writes them, no white space, everything but controls, quotes and backslashes raw.
///
/// A float from 2^53 to 1e21 is written without point or exponent, as the RFC asks. Read again it
/// is an integer that this function refuses: sign and keep the text, not the value.
///
/// # Errors
/// For an integer beyond 2^53 in magnitude (I-JSON, RFC 7493).
pub fn canonical(value: &Value) -> Result<String, CanonicalError> {
    let mut out = String::new();
    canonical_value(&mut out, value)?;
    Ok(out)
}

fn canonical_value(out: &mut String, value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number::canonical(n)?),
        Value::String(s) => canonical_string(out, s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                canonical_value(out, item)?;
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { "," });
                canonical_string(out, key);
                out.push(':');
                canonical_value(out, item)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn canonical_string(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        if c.is_ascii() { ascii_char(out, c) } else { out.push(c) }
    }
    out.push('"');
}

/// For people: two blanks of indent, raw UTF-8, keys as given, a line end at the end.
#[must_use]
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::{Style, canonical, pretty, python};
    use crate::hash::sha256_bytes;
    use serde_json::json;

    /// The vectors of the compliance specification, section 10.1.
    #[test]
    fn audit_lines_have_the_specified_bytes() {
        let first = json!({
            "timestamp": "2026-01-01T00:00:00.000001+00:00", "run_id": "fg-0123456789ab",
            "operator": "alice@host", "event": "pipeline.initialized", "prev_hash": "genesis",
            "model": "org/model", "trainer_type": "sft",
        });
        let hash = sha256_bytes(python(&first, Style::AUDIT_LINE).as_bytes());
        let expected = "fd5fd88a467caab27a123e28a94b04b018487fff6c6498781ab3548ed803aeb9";
        assert_eq!(hash.as_str(), expected);
        let second = json!({
            "timestamp": "2026-01-01T00:00:01.500000+00:00", "run_id": "fg-0123456789ab",
            "operator": "alice@host", "event": "model.reverted", "prev_hash": expected,
            "reason": "threshold", "detail": "perte élevée 2e-05", "x": 2e-05, "n": null,
            "b": true,
        });
        let hash = sha256_bytes(python(&second, Style::AUDIT_LINE).as_bytes());
        let expected = "c66ccf7f9561b05bc0f3d778608e636adbad56090ca7e21ae69d5db7e81fde3a";
        assert_eq!(hash.as_str(), expected);
    }

    #[test]
    fn manifest_and_config_hashes_have_the_specified_bytes() {
        let manifest = json!({
            "b": 1.0, "a": {"lr": 2e-05, "name": "é", "n": null}, "list": [3, 1.5, true],
        });
        let v1 = python(&manifest, Style::MANIFEST_V1);
        let v1_expected =
            r#"{"a":{"lr":2e-05,"n":null,"name":"\u00e9"},"b":1.0,"list":[3,1.5,true]}"#;
        assert_eq!(v1, v1_expected);
        let hash = "5ca428fb163886bf742cbc8a26293894ce8f97c9468a43265b2f32cacab20ae0";
        assert_eq!(sha256_bytes(v1.as_bytes()).as_str(), hash);
        let jcs = canonical(&manifest).unwrap();
        let jcs_expected = r#"{"a":{"lr":0.00002,"n":null,"name":"é"},"b":1,"list":[3,1.5,true]}"#;
        assert_eq!(jcs, jcs_expected);
        let hash = "38260dd22aa79b81be45e169bc9679fb37a416d20ec6c2d8c4934e2e980fc4e4";
        assert_eq!(sha256_bytes(jcs.as_bytes()).as_str(), hash);
        let config = json!({"model": {"name_or_path": "org/model"}, "auth": null});
        let hash = "1702f6177b4496cde1c0b810e64298e69eba6ee0f4236f4166e7f8ae82c53c62";
        let config = python(&config, Style::CONFIG_HASH);
        assert_eq!(sha256_bytes(config.as_bytes()).as_str(), hash);
    }

    /// RFC 8785, sections 3.2.2 and 3.2.3.
    #[test]
    fn canonical_form_of_the_rfc() {
        let value: serde_json::Value = serde_json::from_str(
            r#"{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
                "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
                "literals": [null, true, false]}"#,
        )
        .unwrap();
        let expected = "{\"literals\":[null,true,false],\
            \"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
            \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(canonical(&value).unwrap(), expected);
        let keys = json!({
            "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew", "1": "One",
            "\u{1f600}": "Emoji", "\u{80}": "Control", "\u{f6}": "Latin",
        });
        let expected = "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\
            \"\u{f6}\":\"Latin\",\"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji\",\
            \"\u{fb33}\":\"Hebrew\"}";
        assert_eq!(canonical(&keys).unwrap(), expected);
        assert!(canonical(&json!(9_007_199_254_740_993_u64)).is_err());
        assert_eq!(canonical(&json!(-9_007_199_254_740_992_i64)).unwrap(), "-9007199254740992");
    }

    #[test]
    fn python_escapes() {
        let value = json!({"k": "\u{8}\u{c}\u{1f}\u{7f}/\u{1f600}"});
        let expected = "{\"k\": \"\\b\\f\\u001f\u{7f}/\\ud83d\\ude00\"}";
        assert_eq!(python(&value, Style::AUDIT_LINE), expected);
        assert_eq!(pretty(&json!({"é": []})), "{\n  \"é\": []\n}\n");
    }
}
