//! Removing what a person asks to be removed, with a record of it that stays: a row of the data, a
//! staged model, the documents of a run.
//!
//! What cannot be removed is said as plainly as what was: weights that were trained on a row have no row
//! to take out. Nothing is removed while a legal hold stands, and audit logs never are.
//!
//! **Invariants** (`tests/e2e/purge.rs`): the request is on the disk before anything goes, and how it
//! ended after; a data file is as it was, or without exactly the rows that matched, byte for byte; no
//! message and no event has an identifier in the clear.
//!
//! Start reading at [`row::purge_row`] and [`artefacts::purge_run`].

pub mod artefacts;
pub mod copies;
mod log;
mod reach;
pub mod row;
mod rows;
mod targets;

use crate::exit::Exit;
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::WriteError;
use forgelm_evidence::identifier::IdentifierError;
pub(crate) use log::message;
use std::path::PathBuf;

/// Why something was not removed.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    /// What is named cannot be purged.
    #[error("{}: {problem}\n  hint: {hint}", .path.display())]
    Target {
        /// What is named.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// A flag's value that cannot be used.
    #[error("`{flag}`: {problem}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// No row has the identifier.
    #[error(
        "{}: none of {n_rows} rows has this `id` or `row_id`; nothing was removed{}",
        .path.display(),
        if *.n_unread == 0 { String::new() } else { format!(" ({n_unread} lines are no JSON objects and were not looked into)") }
    )]
    NoMatchingRow {
        /// The data.
        path: PathBuf,
        /// Rows that were looked at.
        n_rows: u64,
        /// Lines that are no rows.
        n_unread: u64,
    },
    /// Several rows have it, and one was expected.
    #[error(
        "{}: {n} rows have this identifier, the first in line {first}; expected one, and nothing was \
         removed\n  hint: `--row-matches all` removes all of them", .path.display()
    )]
    MultiMatchRefused {
        /// The data.
        path: PathBuf,
        /// How many.
        n: u64,
        /// Line of the first.
        first: u64,
    },
    /// Nothing of the run is there.
    #[error("{}: nothing of this kind is there of run `{run_id}`; nothing was removed", .dir.display())]
    NoMatchingArtefacts {
        /// The folder.
        dir: PathBuf,
        /// The run.
        run_id: String,
    },
    /// What would be removed lies elsewhere.
    #[error(
        "{}: is a link, or lies outside `{}`; nothing was removed\n  hint: name the folder that it is really in",
        .path.display(), .dir.display()
    )]
    PathTraversalRefused {
        /// What would be removed.
        path: PathBuf,
        /// The folder of the run.
        dir: PathBuf,
    },
    /// Another program works with the data.
    #[error("{}: another program has it locked; nothing was removed", .path.display())]
    Busy {
        /// The data.
        path: PathBuf,
    },
    /// The data is not what was looked at any more.
    #[error("{}: changed while it was looked at; nothing was removed\n  hint: run the command again", .path.display())]
    Changed {
        /// The data.
        path: PathBuf,
    },
    /// Reading failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The identifier cannot be hashed, so that nothing could be recorded.
    #[error(transparent)]
    Identifier(#[from] IdentifierError),
}

impl ErasureError {
    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Target { .. }
            | Self::Flag { .. }
            | Self::NoMatchingRow { .. }
            | Self::MultiMatchRefused { .. }
            | Self::NoMatchingArtefacts { .. }
            | Self::PathTraversalRefused { .. }
            | Self::Busy { .. } => Exit::Config,
            Self::Changed { .. } | Self::Open(_) | Self::Identifier(_) => Exit::Runtime,
            Self::Write(error) => error.class().into(),
        }
    }

    /// The word in events.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Target { .. } => "BadTarget",
            Self::Flag { .. } => "BadFlag",
            Self::NoMatchingRow { .. } => "NoMatchingRow",
            Self::MultiMatchRefused { .. } => "MultiMatchRefused",
            Self::NoMatchingArtefacts { .. } => "NoMatchingArtefacts",
            Self::PathTraversalRefused { .. } => "PathTraversalRefused",
            Self::Busy { .. } => "Busy",
            Self::Changed { .. } => "Changed",
            Self::Open(_) => "ReadFailed",
            Self::Write(_) => "WriteFailed",
            Self::Identifier(_) => "SaltFailed",
        }
    }
}
