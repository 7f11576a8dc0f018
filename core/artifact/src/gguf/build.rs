//! Making small GGUF files in memory, for tests.

use super::write::{ALIGNMENT, Info, head, pad};
use super::{Array, Value};
use crate::Disk;
use crate::write::{WriteError, atomic_on};
use forgelm_tensor::Dtype;
use std::path::Path;

/// A file being put together. Nothing is checked, so that tests can make wrong ones.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    alignment: Option<u32>,
}

impl Builder {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key and its value.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: Value) -> Self {
        self.metadata.push((key.to_owned(), value));
        self
    }

    /// Adds a key and its text.
    #[must_use]
    pub fn text(self, key: &str, value: &str) -> Self {
        self.metadata(key, Value::String(value.to_owned()))
    }

    /// Adds a tensor; `shape` is outermost first.
    #[must_use]
    pub fn tensor(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes));
        self
    }

    /// Sets `general.alignment`; without it the file says nothing and has 32.
    #[must_use]
    pub const fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = Some(alignment);
        self
    }

    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// As [`crate::write::atomic`].
    ///
    /// # Panics
    /// As [`Builder::to_bytes`].
    pub fn write(&self, disk: &Disk, path: &Path) -> Result<(), WriteError> {
        atomic_on(disk, path, &self.to_bytes())
    }

    /// The file's bytes.
    ///
    /// # Panics
    /// If a tensor has a format that has no number in this file format: a bug in the caller.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let alignment = self.alignment.map_or(ALIGNMENT, |given| given.max(1) as usize);
        let given = self.alignment.map(|given| ("general.alignment".to_owned(), Value::U32(given)));
        let metadata: Vec<_> = given.into_iter().chain(self.metadata.iter().cloned()).collect();
        let infos = self.tensors.iter().map(|(name, dtype, shape, bytes)| Info {
            name,
            dtype: *dtype,
            shape,
            n_bytes: bytes.len(),
        });
        let mut out = head(&metadata, infos, alignment);
        let len = out.len();
        pad(&mut out, len, alignment).expect("memory");
        for (_, _, _, bytes) in &self.tensors {
            out.extend(bytes);
            pad(&mut out, bytes.len(), alignment).expect("memory");
        }
        out
    }
}

/// A text with its length in front.
pub fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

/// A value with its type in front.
pub fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |number: u32, bytes: &[u8]| {
        out.extend(number.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::String(v) => {
            put(8, &[]);
            put_string(out, v);
        }
        Value::Array(v) => {
            put(9, &[]);
            put_array(out, v);
        }
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let mut put = |number: u32, len: usize, bytes: Vec<u8>| {
        out.extend(number.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out.extend(bytes);
    };
    match array {
        Array::U8(v) => put(0, v.len(), v.clone()),
        Array::I8(v) => put(1, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::U16(v) => put(2, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::I16(v) => put(3, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::U32(v) => put(4, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::I32(v) => put(5, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::F32(v) => put(6, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::Bool(v) => put(7, v.len(), v.iter().map(|&v| u8::from(v)).collect()),
        Array::String(v) => {
            put(8, v.len(), Vec::new());
            v.iter().for_each(|s| put_string(out, s));
        }
        Array::U64(v) => put(10, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::I64(v) => put(11, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::F64(v) => put(12, v.len(), v.iter().flat_map(|v| v.to_le_bytes()).collect()),
    }
}
