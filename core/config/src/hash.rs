//! The config hash, and the JSON text that it is taken over.

use std::fmt::Write as _;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::run::Run;

/// `sha256:` and the hex digest of the complete, defaulted, redacted config: JSON with sorted keys,
/// Python's separators and numbers, text unescaped. Take it once, right after loading.
#[must_use]
pub fn config_hash(run: &Run) -> String {
    hash_json(&crate::dump::resolved_json(run))
}

fn hash_json(value: &Json) -> String {
    let digest = Sha256::digest(python_json(value).as_bytes());
    let mut hex = String::from("sha256:");
    for byte in digest {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// A value as Python's `json.dumps(value, sort_keys=True, ensure_ascii=False)` writes it.
#[must_use]
pub fn python_json(value: &Json) -> String {
    let mut out = String::new();
    write_json(value, &mut out);
    out
}

fn write_json(value: &Json, out: &mut String) {
    match value {
        Json::Null | Json::Bool(_) | Json::String(_) => out.push_str(&value.to_string()),
        Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => out.push_str(&python_float(float)),
            None => out.push_str(&number.to_string()),
        },
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_json(item, out);
            }
            out.push(']');
        }
        Json::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(&map[key], out);
            }
            out.push('}');
        }
    }
}

/// `repr` of a finite float: the shortest digits that read back, an exponent of at least two
/// digits below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let fixed = format!("{value}");
    if fixed.contains('.') { fixed } else { format!("{fixed}.0") }
}

#[cfg(test)]
mod tests {
    use super::{hash_json, python_float, python_json};
    use serde_json::json;

    #[test]
    fn the_published_vector_of_the_config_hash() {
        let value = json!({"model": {"name_or_path": "org/model"}, "auth": null});
        assert_eq!(
            python_json(&value),
            r#"{"auth": null, "model": {"name_or_path": "org/model"}}"#
        );
        assert_eq!(
            hash_json(&value),
            "sha256:1702f6177b4496cde1c0b810e64298e69eba6ee0f4236f4166e7f8ae82c53c62"
        );
    }

    #[test]
    fn numbers_and_texts_are_written_as_python_writes_them() {
        let cases = [
            (2e-5, "2e-05"),
            (0.0001, "0.0001"),
            (0.1, "0.1"),
            (0.0, "0.0"),
            (3.0, "3.0"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e100, "1e+100"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_float(value), expected);
            let back: f64 = expected.parse().unwrap();
            assert_eq!(back.to_bits(), value.to_bits());
        }
        let value = json!({"b": [1, 1.0, true], "a": "é\n\u{1f}\"\\\u{7f}"});
        assert_eq!(
            python_json(&value),
            "{\"a\": \"é\\n\\u001f\\\"\\\\\u{7f}\", \"b\": [1, 1.0, true]}"
        );
    }
}
