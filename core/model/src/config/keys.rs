//! Typed reads of a JSON object.

use serde_json::{Map, Value};

use super::ConfigError;

/// Typed reads of one object, with errors that name the key and what was found.
pub(super) struct Keys<'a> {
    pub(super) place: &'a str,
    pub(super) prefix: &'static str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(super) fn given(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn wrong(&self, key: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Wrong {
            place: self.place.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: shortened(found),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.given(key) else { return Ok(None) };
        // Some files write whole numbers as `8192.0`.
        let whole = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|x| *x >= 0.0 && x.fract() == 0.0 && *x < 9.0e15)
                .map(|x| x as u64)
        });
        match whole.and_then(|n| usize::try_from(n).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(key, value, "a whole number, not negative")),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    pub(super) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { place: self.place.to_owned(), key: format!("{}{key}", self.prefix) }
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.given(key) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, value, "a number")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f32>, ConfigError> {
        let value = self.given(key).ok_or_else(|| self.missing(key))?;
        let number = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        let list = value.as_array().and_then(|list| list.iter().map(number).collect());
        list.ok_or_else(|| self.wrong(key, value, "a list of numbers"))
    }

    pub(super) fn boolean_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.given(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.given(key).and_then(Value::as_str)
    }

    pub(super) fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.given(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = match key {
                    "rope_parameters" => "rope_parameters.",
                    "full_attention" => "rope_parameters.full_attention.",
                    "sliding_attention" => "rope_parameters.sliding_attention.",
                    _ => "rope_scaling.",
                };
                Ok(Some(Keys { place: self.place, prefix, map }))
            }
            Some(other) => Err(self.wrong(key, other, "an object or null")),
        }
    }
}

/// A value for a message: long ones (a list of a million numbers) are cut.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
