//! The safetensors format, read strictly.
//!
//! Source: the format's own description (8 bytes of header length, a JSON header, the data), plus
//! what its reference reader checks. Ours also refuses duplicate names, names that are not fit to
//! be shown or to become paths, and more than 16 axes.

mod fault;
mod header;
mod writer;

use crate::map::MappedFile;
use crate::view::TensorView;
pub use fault::{Fault, SafetensorsError};
pub use header::{Entry, Header};
use std::collections::BTreeMap;
use std::path::Path;
pub use writer::{PlannedTensor, TensorToWrite, to_bytes, to_writer, to_writer_with, write};

/// Longest header read: 100 MB, as the reference reader.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The text that stands in place of a file whose bytes Git LFS has not fetched.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// A mapped file of tensors, checked when opened.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: MappedFile,
    header: Header,
}

impl SafetensorsFile {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// If it cannot be opened, or anything in it is not as the format asks.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let map = MappedFile::open(path).map_err(SafetensorsError::Open)?;
        let header = Header::parse(&map)
            .map_err(|fault| SafetensorsError::Format { path: path.to_owned(), fault })?;
        Ok(Self { map, header })
    }

    /// The path it was opened under.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.header.tensor(&self.map, name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Pairs of text that are stored with the tensors.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Lets go of the memory of `bytes`, if they are of this file; they can be read again.
    pub fn release(&self, bytes: &[u8]) {
        self.map.release(bytes);
    }

    /// Whether the file is still the one that was opened.
    #[must_use]
    pub fn unchanged(&self) -> bool {
        self.map.unchanged()
    }

    /// Reads ahead, for a thread of its own: see [`MappedFile::read_ahead`].
    pub fn read_ahead(&self, is_enough: &dyn Fn() -> bool) {
        self.map.read_ahead(is_enough);
    }

    /// The whole file, for hashing.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
