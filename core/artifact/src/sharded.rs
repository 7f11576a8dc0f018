//! The weights of a model folder: one safetensors file, or several with an index.

mod write;

use crate::Class;
use crate::json::parse_unique;
use crate::open::{self, OpenError};
use crate::quoted::Quoted;
use crate::safetensors::{SafetensorsError, SafetensorsFile};
use crate::view::TensorView;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use write::{SHARD_BYTES_MAX, write_model};

/// The file of a model in one piece.
const SINGLE: &str = "model.safetensors";
/// The index of a model in several.
const INDEX: &str = "model.safetensors.index.json";
/// Longest index read. The largest published ones are some hundred KiB.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Most shards opened at once, well under the usual limit of 1024 open files.
const N_SHARDS_MAX: usize = 512;

/// Why a model folder's weights were refused.
#[derive(Debug, thiserror::Error)]
pub enum ShardedError {
    /// A weights file is not as it should be.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// A file or the folder cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Only files that run code when they are opened.
    #[error(
        "{}: has only pickle weights ({}); they can run code and are never opened\n  \
         hint: convert them to safetensors with the library that wrote them",
        .dir.display(), Quoted(.file)
    )]
    PickleOnly {
        /// The folder.
        dir: PathBuf,
        /// One of the files.
        file: String,
    },
    /// No weights at all.
    #[error("{}: has no {SINGLE} and no {INDEX}", .dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// An index that cannot be read as one.
    #[error("{}: not a valid index: {what}", .path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An index that names a file outside its folder.
    #[error("{}: tensor {} is said to be in {}, which is not a file of this folder",
        .path.display(), Quoted(.tensor), Quoted(.file))]
    Outside {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file named.
        file: String,
    },
    /// A shard that leads out of the folder.
    #[error("{}: is a link to {}, outside the model's folder", .path.display(), .target.display())]
    LinkOutside {
        /// The shard.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// An index that names a file that is not there.
    #[error("{}: shard {} is missing\n  hint: is the download complete?",
        .path.display(), Quoted(.file))]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The file.
        file: String,
    },
    /// A tensor that its shard does not have.
    #[error("{}: tensor {} is said to be in {}, which does not have it",
        .path.display(), Quoted(.tensor), Quoted(.file))]
    MissingTensor {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file named.
        file: String,
    },
    /// A tensor in a shard where the index does not say it is.
    #[error("{}: {} has the tensor {}, which the index {}",
        .path.display(), Quoted(.file), Quoted(.tensor),
        .indexed.as_ref().map_or("does not list".to_owned(),
            |other| format!("places in {}", Quoted(other))))]
    UnexpectedTensor {
        /// The index.
        path: PathBuf,
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where the index places it, if anywhere.
        indexed: Option<String>,
    },
}

impl ShardedError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::File(e) => e.class(),
            Self::Open(e) => e.class(),
            Self::PickleOnly { .. } | Self::NoWeights { .. } | Self::Index { .. } => Class::Input,
            Self::Outside { .. } | Self::LinkOutside { .. } | Self::MissingShard { .. } => {
                Class::Input
            }
            Self::MissingTensor { .. } | Self::UnexpectedTensor { .. } => Class::Integrity,
        }
    }
}

/// The weights of a model folder, mapped.
///
/// **Invariant:** every tensor is in exactly one file, and the index, if there is one, says which.
#[derive(Debug)]
pub struct ShardedModel {
    files: Vec<SafetensorsFile>,
    /// Index into `files` by tensor name.
    places: BTreeMap<String, usize>,
}

impl ShardedModel {
    /// Opens the weights of a folder: `model.safetensors`, else what its index lists.
    ///
    /// # Errors
    /// If there are none, or anything in them is not as it should be.
    pub fn open(dir: &Path) -> Result<Self, ShardedError> {
        let single = dir.join(SINGLE);
        if single.exists() {
            check_inside(dir, &single)?;
            let file = SafetensorsFile::open(&single)?;
            let places = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { files: vec![file], places });
        }
        let index = dir.join(INDEX);
        if index.exists() { open_shards(dir, &index) } else { Err(no_weights(dir)) }
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.files[*self.places.get(name)?].tensor(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The files, in the order of their names.
    #[must_use]
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }
}

fn no_weights(dir: &Path) -> ShardedError {
    let dir = dir.to_owned();
    let listing = match std::fs::read_dir(&dir) {
        Ok(listing) => listing,
        Err(source) => return OpenError::Io { path: dir, source }.into(),
    };
    let mut names: Vec<String> =
        listing.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let is_pickle = |name: &&String| {
        let extension = Path::new(name).extension().and_then(OsStr::to_str);
        matches!(extension, Some("bin" | "pt" | "pth" | "pkl" | "ckpt"))
            && !name.starts_with("training_args")
            || name.as_str() == "pytorch_model.bin.index.json"
    };
    match names.iter().find(is_pickle) {
        Some(file) => ShardedError::PickleOnly { dir, file: file.clone() },
        None => ShardedError::NoWeights { dir },
    }
}

/// A file must lie in the model's folder once links are followed. The one exception is the layout
/// of a hub cache, `models--NAME/snapshots/COMMIT/FILE`, whose files are links to
/// `models--NAME/blobs/HASH`.
fn check_inside(dir: &Path, path: &Path) -> Result<(), ShardedError> {
    let real =
        |p: &Path| p.canonicalize().map_err(|source| OpenError::Io { path: p.to_owned(), source });
    let (folder, target) = (real(dir)?, real(path)?);
    if target.starts_with(&folder) {
        return Ok(());
    }
    let snapshots = folder.parent().filter(|p| p.file_name() == Some(OsStr::new("snapshots")));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    if blobs.is_some_and(|blobs| target.parent() == Some(&blobs)) {
        return Ok(());
    }
    Err(ShardedError::LinkOutside { path: path.to_owned(), target })
}

fn open_shards(dir: &Path, index: &Path) -> Result<ShardedModel, ShardedError> {
    check_inside(dir, index)?;
    let weight_map = read_index(index)?;
    let mut file_names: Vec<&String> = weight_map.values().collect();
    file_names.sort();
    file_names.dedup();
    if file_names.len() > N_SHARDS_MAX {
        let what = format!("{} shards; at most {N_SHARDS_MAX} are opened", file_names.len());
        return Err(ShardedError::Index { path: index.to_owned(), what });
    }
    let mut files = Vec::new();
    let mut places = BTreeMap::new();
    for name in file_names {
        let path = dir.join(name);
        if !path.exists() {
            let (path, file) = (index.to_owned(), name.clone());
            return Err(ShardedError::MissingShard { path, file });
        }
        check_inside(dir, &path)?;
        let file = SafetensorsFile::open(&path)?;
        for tensor in file.names() {
            if weight_map.get(tensor) != Some(name) {
                return Err(ShardedError::UnexpectedTensor {
                    path: index.to_owned(),
                    file: name.clone(),
                    tensor: tensor.to_owned(),
                    indexed: weight_map.get(tensor).cloned(),
                });
            }
            places.insert(tensor.to_owned(), files.len());
        }
        files.push(file);
    }
    match weight_map.into_iter().find(|(tensor, _)| !places.contains_key(tensor)) {
        Some((tensor, file)) => {
            Err(ShardedError::MissingTensor { path: index.to_owned(), tensor, file })
        }
        None => Ok(ShardedModel { files, places }),
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ShardedError> {
    let (file, metadata) = open::regular(path)?;
    let invalid = |what: String| ShardedError::Index { path: path.to_owned(), what };
    if metadata.len() > INDEX_BYTES_MAX {
        return Err(invalid(format!("{} bytes; at most {INDEX_BYTES_MAX}", metadata.len())));
    }
    let mut bytes = Vec::new();
    file.take(INDEX_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    parse_index(path, &bytes)
}

/// The `weight_map` of the bytes of an index at `path`: file name by tensor name.
///
/// # Errors
/// If they are no index, or it names a file that is not a plain name.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, ShardedError> {
    let invalid = |what: String| ShardedError::Index { path: path.to_owned(), what };
    let value = parse_unique(bytes).map_err(|e| invalid(e.to_string()))?;
    let Some(Value::Object(map)) = value.get("weight_map") else {
        return Err(invalid("it has no object `weight_map`".to_owned()));
    };
    let mut weight_map = BTreeMap::new();
    for (tensor, file) in map {
        let Value::String(file) = file else {
            return Err(invalid(format!("the file of {} is not a text", Quoted(tensor))));
        };
        let is_plain = Path::new(file).file_name() == Some(OsStr::new(file.as_str()));
        if !is_plain || !file.ends_with(".safetensors") || file.contains('\0') {
            let (path, tensor, file) = (path.to_owned(), tensor.clone(), file.clone());
            return Err(ShardedError::Outside { path, tensor, file });
        }
        weight_map.insert(tensor.clone(), file.clone());
    }
    if weight_map.is_empty() {
        return Err(invalid("`weight_map` is empty".to_owned()));
    }
    Ok(weight_map)
}
