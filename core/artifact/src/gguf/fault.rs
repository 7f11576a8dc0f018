//! What can be wrong with a GGUF file.

use crate::open::OpenError;
use crate::{Class, Quoted};
use std::path::PathBuf;

/// Why a GGUF file, or a value in it, was refused.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// Its bytes are not as the format asks.
    #[error("{}: {fault}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// A key that must be there is not.
    #[error("{}: the metadata has no `{key}`; expected {expected}", .path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type wanted.
        expected: &'static str,
    },
    /// A key has a value of another type.
    #[error("{}: the metadata's `{key}` is of type {found}; expected {expected}", .path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type there is.
        found: &'static str,
        /// The type wanted.
        expected: &'static str,
    },
}

impl GgufError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Open(e) => e.class(),
            Self::MissingKey { .. } | Self::WrongType { .. } => Class::Input,
            Self::Format { fault, .. } => fault.class(),
        }
    }
}

impl Fault {
    /// Which exit code this belongs to: what this program cannot read is input, what contradicts itself
    /// is damaged.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::GitLfsPointer
            | Self::Magic
            | Self::Version { .. }
            | Self::BigEndian
            | Self::HeaderTooLarge { .. }
            | Self::TensorType { .. } => Class::Input,
            _ => Class::Integrity,
        }
    }
}

/// What is wrong with the bytes. Names are as found; messages escape them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A pointer file of Git LFS.
    #[error(
        "this is a Git LFS pointer, not the weights\n  hint: fetch the real file with `git lfs pull`"
    )]
    GitLfsPointer,
    /// Does not begin with `GGUF`.
    #[error("does not begin with `GGUF`; expected a GGUF file")]
    Magic,
    /// A version that is not read.
    #[error("GGUF version {version}; expected 2 or 3")]
    Version {
        /// The version found.
        version: u32,
    },
    /// Written for another byte order.
    #[error("is big-endian; expected a little-endian GGUF file")]
    BigEndian,
    /// The file ends inside something.
    #[error(
        "byte {offset}: {what} needs {n_bytes} bytes but {n_bytes_left} are left; is the file truncated?"
    )]
    PastEnd {
        /// What was being read.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// Bytes it claims, at least.
        n_bytes: u64,
        /// Bytes there are.
        n_bytes_left: u64,
    },
    /// More metadata or tensors than any model has.
    #[error("{what}: the header is larger than 64 MiB")]
    HeaderTooLarge {
        /// What was being read.
        what: &'static str,
    },
    /// Text that is not UTF-8.
    #[error("byte {offset}: {what} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Where its bytes begin.
        offset: u64,
    },
    /// A type of value that does not exist.
    #[error("key {}: unknown value type {number}", Quoted(.key))]
    ValueType {
        /// The key.
        key: String,
        /// The number found.
        number: u32,
    },
    /// An array of arrays.
    #[error("key {}: arrays of arrays are not read", Quoted(.key))]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A bool that is neither 0 nor 1.
    #[error("key {}: {found} is not a bool; expected 0 or 1", Quoted(.key))]
    Bool {
        /// The key.
        key: String,
        /// The byte found.
        found: u8,
    },
    /// A key that is there twice.
    #[error("key {} is there twice", Quoted(.key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor that is there twice.
    #[error("tensor {} is there twice", Quoted(.name))]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A name that cannot be used.
    #[error("{what} {}: {why}", Quoted(.name))]
    Name {
        /// `key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An alignment that cannot be.
    #[error("`general.alignment` is {found}; expected a power of two from 8 to 65536")]
    Alignment {
        /// What is found, as text.
        found: String,
    },
    /// No axes or too many.
    #[error("tensor {}: {n_axes} axes; expected 1 to 4", Quoted(.name))]
    Axes {
        /// The tensor.
        name: String,
        /// How many.
        n_axes: u32,
    },
    /// A number format that is not read.
    #[error("tensor {}: tensor type {number} is not known here", Quoted(.name))]
    TensorType {
        /// The tensor.
        name: String,
        /// The number found.
        number: u32,
    },
    /// A shape that no bytes can hold.
    #[error("tensor {}: the shape {shape:?} is not whole blocks of {dtype}, or too large", Quoted(.name))]
    Shape {
        /// The tensor.
        name: String,
        /// Its format.
        dtype: &'static str,
        /// Its shape, outermost first.
        shape: Vec<usize>,
    },
    /// A tensor that does not begin where it must.
    #[error("tensor {}: offset {offset}; expected {expected}, right after {}", Quoted(.name), .previous.as_ref().map_or("the beginning of the data".to_owned(), |p| format!("tensor {}", Quoted(p))))]
    Offset {
        /// The tensor.
        name: String,
        /// Where it says it is, from the beginning of the data.
        offset: u64,
        /// Where it must be: the end of the one before, padded.
        expected: u64,
        /// The tensor before, by place in the file.
        previous: Option<String>,
    },
    /// Data past the end of the file.
    #[error("tensor {}: its {n_bytes} bytes at offset {offset} reach past the {n_data} bytes of data; is the file truncated?", Quoted(.name))]
    TensorPastEnd {
        /// The tensor.
        name: String,
        /// From the beginning of the data.
        offset: u64,
        /// Its length.
        n_bytes: u64,
        /// Bytes of data.
        n_data: u64,
    },
    /// Bytes after the last tensor.
    #[error("{n_bytes} bytes after the last tensor belong to no tensor")]
    Trailing {
        /// How many.
        n_bytes: u64,
    },
}
