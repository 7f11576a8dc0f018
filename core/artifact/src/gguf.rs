//! The GGUF format, little-endian, versions 2 and 3 read strictly and version 3 written.
//!
//! Source: the format's public description. What its reference reader checks is checked, and:
//! nothing is allocated before the file is known to hold it, keys and names are unique and fit to
//! be shown, tensors lie end to end with nothing but padding between.

pub mod build;
mod fault;
mod meta;
mod parse;
mod value;
pub mod write;

use crate::map::MappedFile;
use crate::view::TensorView;
pub use fault::{Fault, GgufError};
use forgelm_tensor::Dtype;
pub use parse::{Entry, Header};
use std::path::Path;
pub use value::{Array, Value};

/// The number of each format in a file, with the formats that are read. Others have numbers too.
const TENSOR_TYPES: [(u32, Dtype); 18] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2K),
    (11, Dtype::Q3K),
    (12, Dtype::Q4K),
    (13, Dtype::Q5K),
    (14, Dtype::Q6K),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::Bf16),
];

/// A mapped GGUF file, checked when opened.
#[derive(Debug)]
pub struct GgufFile {
    map: MappedFile,
    header: Header,
}

impl GgufFile {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// If it cannot be opened, or anything in it is not as the format asks.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let map = MappedFile::open(path).map_err(GgufError::Open)?;
        let header = Header::parse(&map)
            .map_err(|fault| GgufError::Format { path: path.to_owned(), fault })?;
        Ok(Self { map, header })
    }

    /// The path it was opened under.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Lets go of the memory of `bytes`, if they are of this file; they can be read again.
    pub fn release(&self, bytes: &[u8]) {
        self.map.release(bytes);
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.header.tensor(&self.map, name)
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
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
