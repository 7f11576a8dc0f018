//! A JSON reader for signed data: bounded in size and depth, and duplicate keys are an error.
//!
//! Two readers that disagree about which of two equal keys counts can be shown two different
//! statements under one signature; so no document with a duplicate key is ever read here.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What a document may cost its reader.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest accepted size in bytes.
    pub size_bytes: usize,
    /// Deepest accepted nesting of arrays and objects.
    pub depth: usize,
}

/// The limits of a signature envelope and of every JSON document a verifier reads.
pub const DOCUMENT_LIMITS: Limits = Limits { size_bytes: 16 << 20, depth: 64 };

/// Why bytes are not a document that a verifier reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrictJsonError {
    /// Larger than the limit.
    #[error("{size_bytes} bytes; expected at most {limit_bytes}")]
    TooLarge {
        /// Size found.
        size_bytes: usize,
        /// Size allowed.
        limit_bytes: usize,
    },
    /// Nested deeper than the limit.
    #[error("nested more than {limit} levels deep")]
    TooDeep {
        /// Depth allowed.
        limit: usize,
    },
    /// One object names a key twice.
    #[error("key `{key}` appears twice in one object")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Not JSON.
    #[error("not JSON: {detail}")]
    Invalid {
        /// The parser's words, with line and column.
        detail: String,
    },
}

/// Parses `bytes` within `limits`.
///
/// # Errors
/// One of [`StrictJsonError`].
pub fn parse(bytes: &[u8], limits: Limits) -> Result<Value, StrictJsonError> {
    if bytes.len() > limits.size_bytes {
        return Err(StrictJsonError::TooLarge {
            size_bytes: bytes.len(),
            limit_bytes: limits.size_bytes,
        });
    }
    let problem = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Node { depth_left: limits.depth, limit: limits.depth, problem: &problem };
    let parsed = seed.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    parsed.map_err(|e| {
        problem.take().unwrap_or_else(|| StrictJsonError::Invalid { detail: e.to_string() })
    })
}

#[derive(Clone, Copy)]
struct Node<'a> {
    depth_left: usize,
    limit: usize,
    problem: &'a RefCell<Option<StrictJsonError>>,
}

impl Node<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(Self { depth_left, ..self }),
            None => {
                self.problem.replace(Some(StrictJsonError::TooDeep { limit: self.limit }));
                Err(E::custom("too deep"))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let child = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(child)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let child = self.deeper()?;
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(child)?;
            if members.contains_key(&key) {
                self.problem.replace(Some(StrictJsonError::DuplicateKey { key }));
                return Err(A::Error::custom("duplicate key"));
            }
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::{DOCUMENT_LIMITS, Limits, StrictJsonError, parse};

    #[test]
    fn ordinary_documents_keep_values_and_key_order() {
        let text = br#"{"b": [1, -2, 0.5, "x\u00e9", null, true], "a": {"c": {}}}"#;
        let value = parse(text, DOCUMENT_LIMITS).expect("valid");
        assert_eq!(value.to_string(), r#"{"b":[1,-2,0.5,"xé",null,true],"a":{"c":{}}}"#);
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_level() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"a":1,"\u0061":2}}]"#] {
            let error = parse(text.as_bytes(), DOCUMENT_LIMITS).expect_err("duplicate");
            assert_eq!(error, StrictJsonError::DuplicateKey { key: "a".to_owned() });
        }
    }

    #[test]
    fn fault_104_deep_nesting_is_bounded() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let error = parse(deep.as_bytes(), DOCUMENT_LIMITS).expect_err("deep");
        assert_eq!(error, StrictJsonError::TooDeep { limit: 64 });
        let ok = "[".repeat(64) + &"]".repeat(64);
        assert!(parse(ok.as_bytes(), DOCUMENT_LIMITS).is_ok());
        let objects = r#"{"a":"#.repeat(65) + "1" + &"}".repeat(65);
        let error = parse(objects.as_bytes(), DOCUMENT_LIMITS).expect_err("deep");
        assert_eq!(error, StrictJsonError::TooDeep { limit: 64 });
    }

    #[test]
    fn size_trailing_bytes_and_nan_are_refused() {
        let limits = Limits { size_bytes: 4, depth: 4 };
        assert!(matches!(parse(b"[1,2]", limits), Err(StrictJsonError::TooLarge { .. })));
        for text in ["1 2", "NaN", "[1,]", "\"\\ud800\"", "1e999", ""] {
            let error = parse(text.as_bytes(), DOCUMENT_LIMITS).expect_err(text);
            assert!(matches!(error, StrictJsonError::Invalid { .. }), "{text}: {error}");
        }
    }
}
