//! Typed access to the metadata, with errors that name the key.

use super::{Array, GgufError, GgufFile, Value};

impl GgufFile {
    /// The value of a key.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.metadata.keys().map(String::as_str)
    }

    /// A value read by `read`, if the key is there.
    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| GgufError::WrongType {
            path: self.path().to_owned(),
            key: key.to_owned(),
            found: value.type_name(),
            expected,
        })
    }

    fn require<T>(
        &self,
        key: &str,
        expected: &'static str,
        value: Result<Option<T>, GgufError>,
    ) -> Result<T, GgufError> {
        value?.ok_or_else(|| {
            let (path, key) = (self.path().to_owned(), key.to_owned());
            GgufError::MissingKey { path, key, expected }
        })
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get(key, "string", |value| match value {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// An integer of any width that is not negative, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type, or negative.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get(key, "an integer that is not negative", Value::as_u64)
    }

    /// An integer of any width that fits `u32`, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type, or does not fit.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.get(key, "an integer that fits 32 bits", |value| value.as_u64()?.try_into().ok())
    }

    /// A float, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get(key, "f32", |value| match value {
            Value::F32(v) => Some(*v),
            _ => None,
        })
    }

    /// A bool, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get(key, "bool", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// Texts, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn get_strings(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.get(key, "array of string", |value| match value {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// Floats, if the key is there.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn get_f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.get(key, "array of f32", |value| match value {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// Signed integers, if the key is there (token types are stored so).
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn get_i32s(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        self.get(key, "array of i32", |value| match value {
            Value::Array(Array::I32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        self.require(key, "string", self.get_str(key))
    }

    /// An integer that must be there.
    ///
    /// # Errors
    /// If the key is missing, of another type, or does not fit.
    pub fn require_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.require(key, "an integer that fits 32 bits", self.get_u32(key))
    }

    /// A float that must be there.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn require_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.require(key, "f32", self.get_f32(key))
    }

    /// Texts that must be there.
    ///
    /// # Errors
    /// If the key is missing or of another type.
    pub fn require_strings(&self, key: &str) -> Result<&[String], GgufError> {
        self.require(key, "array of string", self.get_strings(key))
    }
}
