//! Reading JSON with duplicate keys refused.

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Text that is not JSON, or has a key twice.
#[derive(Debug, thiserror::Error)]
#[error("line {}, column {}: {}", .0.line(), .0.column(), without_place(.0))]
pub struct JsonError(serde_json::Error);

impl JsonError {
    /// 1-based line.
    #[must_use]
    pub fn line(&self) -> usize {
        self.0.line()
    }

    /// 1-based column, in bytes.
    #[must_use]
    pub fn column(&self) -> usize {
        self.0.column()
    }

    /// What is wrong, without the place.
    #[must_use]
    pub fn what(&self) -> String {
        without_place(&self.0)
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        Self(error)
    }
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    crate::quoted::one_line(text.strip_suffix(&place).unwrap_or(&text))
}

/// Reads one JSON value. Differs from `serde_json` in one thing: an object with a key twice is
/// refused, at any depth. Nesting is bounded (128 levels).
///
/// # Errors
/// If the bytes are not exactly one JSON value in UTF-8, or a key is there twice.
pub fn parse_unique(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Unique.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Unique)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if entries.contains_key(&key) {
                let key = crate::Quoted(&key);
                return Err(A::Error::custom(format_args!("the key {key} is there twice")));
            }
            let value = map.next_value_seed(Unique)?;
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::parse_unique;
    use serde_json::json;

    #[test]
    fn values_are_read_and_duplicates_refused() {
        let text = r#"{"b": [1, -2, 2e-5, null, true, "x"], "a": {}}"#;
        let expected = json!({"b": [1, -2, 2e-5, null, true, "x"], "a": {}});
        assert_eq!(parse_unique(text.as_bytes()).unwrap(), expected);
        let twice = parse_unique(b"{\"a\":\n [{\"x\": 1, \"x\": 2}]}").unwrap_err();
        assert_eq!(twice.to_string(), "line 2, column 14: the key \"x\" is there twice");
        // Without the feature `float_roundtrip` of serde_json this reads as 31.24527019143944, and
        // a line that is read and written again is not the same line.
        let exact = parse_unique(b"31.245270191439438").unwrap();
        assert_eq!(exact.to_string(), "31.245270191439438");
        for bad in [&b"{} x"[..], b"", b"\"\xff\"", b"\"\\ud800\"", b"NaN"] {
            assert!(parse_unique(bad).is_err());
        }
        assert!(parse_unique("[".repeat(100_000).as_bytes()).is_err());
    }
}
