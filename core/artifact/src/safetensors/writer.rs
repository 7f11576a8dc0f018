//! Writing safetensors: the same tensors give the same bytes.

use crate::Disk;
use crate::counted::write_counted;
use crate::json::{Keys, NonAscii, Separators, Style, python};
use crate::write::{WriteError, atomic_with_on};
use forgelm_tensor::Dtype;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// A tensor on its way to a file.
#[derive(Clone, Debug)]
pub struct TensorToWrite<'a> {
    /// Its name; each is there once.
    pub name: &'a str,
    /// Number format; no block format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: &'a [usize],
    /// Little-endian values, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorToWrite<'a> {
    /// A tensor of f32 values.
    #[must_use]
    pub fn f32(name: &'a str, shape: &'a [usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F32, shape, bytes: Cow::Owned(bytes) }
    }
}

/// Writes a file of tensors whole or not at all.
///
/// # Errors
/// As [`crate::write::atomic`].
///
/// # Panics
/// As [`to_writer`].
pub fn write(
    disk: &Disk,
    path: &Path,
    tensors: &[TensorToWrite<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), WriteError> {
    atomic_with_on(disk, path, |w| to_writer(w, tensors, metadata))
}

/// The bytes of a file of tensors.
///
/// # Panics
/// As [`to_writer`].
#[must_use]
pub fn to_bytes(tensors: &[TensorToWrite<'_>], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    to_writer(&mut bytes, tensors, metadata).expect("writing to memory cannot fail");
    bytes
}

/// Writes a file of tensors. Widest formats come first and then names in order, as the format's
/// reference writer does, so that every tensor is aligned to its elements; the header is filled up
/// with blanks to a multiple of 8.
///
/// # Errors
/// If writing fails.
///
/// # Panics
/// If a tensor's bytes do not fit its shape, it has a block format, or a name is there twice: bugs
/// in the caller.
pub fn to_writer(
    w: &mut dyn Write,
    tensors: &[TensorToWrite<'_>],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let plan: Vec<PlannedTensor<'_>> = tensors
        .iter()
        .map(|t| {
            let expected = t.dtype.tensor_bytes(t.shape);
            assert_eq!(expected, Some(t.bytes.len()), "{}: bytes and shape disagree", t.name);
            PlannedTensor { name: t.name, dtype: t.dtype, shape: t.shape }
        })
        .collect();
    to_writer_with(w, &plan, metadata, &mut |i, w| w.write_all(&tensors[i].bytes))
}

/// A tensor whose bytes are made when it is its turn.
#[derive(Clone, Copy, Debug)]
pub struct PlannedTensor<'a> {
    /// Its name; each is there once.
    pub name: &'a str,
    /// Number format; no block format.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: &'a [usize],
}

impl PlannedTensor<'_> {
    /// Bytes of the tensor.
    ///
    /// # Panics
    /// If it has a block format or a size past what fits into memory.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        assert_eq!(self.dtype.block_len(), 1, "{}: no block format fits this file", self.name);
        self.dtype.tensor_bytes(self.shape).expect("a size that fits into memory")
    }
}

/// As [`to_writer`], of tensors that need not be in memory together: `fill` writes the bytes of the
/// tensor of this index.
///
/// # Errors
/// If writing fails, or `fill` does.
///
/// # Panics
/// If `fill` writes another number of bytes than the tensor has, and as [`to_writer`].
pub fn to_writer_with(
    w: &mut dyn Write,
    tensors: &[PlannedTensor<'_>],
    metadata: &BTreeMap<String, String>,
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].dtype.block_bytes()), tensors[i].name));
    let mut header = Map::new();
    if !metadata.is_empty() {
        let pairs = metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str())));
        header.insert("__metadata__".to_owned(), Value::Object(pairs.collect()));
    }
    let mut offset = 0;
    for t in order.iter().map(|&i| &tensors[i]) {
        let end = offset + t.n_bytes();
        let entry = serde_json::json!({
            "dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [offset, end],
        });
        let replaced = header.insert(t.name.to_owned(), entry);
        assert!(replaced.is_none(), "{}: there twice", t.name);
        offset = end;
    }
    let style =
        Style { separators: Separators::Compact, non_ascii: NonAscii::Raw, keys: Keys::AsGiven };
    let mut text = python(&Value::Object(header), style);
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    w.write_all(&(text.len() as u64).to_le_bytes())?;
    w.write_all(text.as_bytes())?;
    for i in order {
        write_counted(w, (tensors[i].name, tensors[i].n_bytes()), |w| fill(i, w))?;
    }
    Ok(())
}
