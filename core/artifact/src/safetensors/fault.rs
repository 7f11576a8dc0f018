//! What can be wrong with a safetensors file.

use crate::open::OpenError;
use crate::{Class, Quoted};
use std::path::PathBuf;

/// Why a safetensors file was refused.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
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
}

impl SafetensorsError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Open(e) => e.class(),
            Self::Format { fault: Fault::GitLfsPointer, .. } => Class::Input,
            Self::Format { .. } => Class::Integrity,
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
    /// Shorter than the eight bytes of the header length.
    #[error("{n_bytes} bytes are too few for a safetensors file; is it truncated?")]
    TooShort {
        /// Length of the file.
        n_bytes: u64,
    },
    /// A header above the cap.
    #[error("the header claims {n_bytes} bytes; at most {} are read", super::HEADER_BYTES_MAX)]
    HeaderTooLong {
        /// Length claimed.
        n_bytes: u64,
    },
    /// A header that reaches past the end of the file.
    #[error(
        "the header claims {n_bytes} bytes but the file ends after {n_bytes_left}; is it truncated?"
    )]
    HeaderTruncated {
        /// Length claimed.
        n_bytes: u64,
        /// Bytes there are.
        n_bytes_left: u64,
    },
    /// A header that is not the JSON it should be.
    #[error("the header is not valid: {what}")]
    Header {
        /// What the parser says, with names escaped.
        what: String,
    },
    /// A name that cannot be used.
    #[error("tensor {}: {why}", Quoted(.name))]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A number format nobody here knows.
    #[error("tensor {}: unknown dtype {}", Quoted(.name), Quoted(.dtype))]
    Dtype {
        /// The tensor.
        name: String,
        /// What its header says.
        dtype: String,
    },
    /// A shape whose product does not fit.
    #[error("tensor {}: the shape {shape:?} has too many values", Quoted(.name))]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Shape and offsets disagree.
    #[error("tensor {}: {dtype} {shape:?} needs {n_bytes} bytes; offsets {start}..{end} hold {}",
        Quoted(.name), .end.saturating_sub(*.start))]
    Size {
        /// The tensor.
        name: String,
        /// Its format.
        dtype: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes needed.
        n_bytes: usize,
        /// First byte claimed.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
    /// Offsets past the end of the data.
    #[error("tensor {}: offsets {start}..{end} reach past the {n_bytes} bytes of data; is the file truncated?", Quoted(.name))]
    PastEnd {
        /// The tensor.
        name: String,
        /// First byte claimed.
        start: u64,
        /// Byte after the last.
        end: u64,
        /// Bytes of data.
        n_bytes: u64,
    },
    /// Two tensors in the same bytes.
    #[error("tensor {}: offsets {start}..{end} overlap with {}", Quoted(.name), Quoted(.other))]
    Overlap {
        /// The tensor.
        name: String,
        /// First byte claimed.
        start: u64,
        /// Byte after the last.
        end: u64,
        /// The other tensor.
        other: String,
    },
    /// Bytes between tensors that belong to none.
    #[error("tensor {}: {n_bytes} bytes before it belong to no tensor", Quoted(.name))]
    Gap {
        /// The tensor after the gap.
        name: String,
        /// Length of the gap.
        n_bytes: u64,
    },
    /// Bytes after the last tensor.
    #[error("{n_bytes} bytes after the last tensor belong to no tensor")]
    Trailing {
        /// How many.
        n_bytes: u64,
    },
}
