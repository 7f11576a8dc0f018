//! Why no rows were generated, or no more.

use crate::exit::Exit;
use std::path::PathBuf;

/// Everything that can end `--generate-data`. Rows that are there stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntheticError {
    /// The config generates nothing.
    #[error(
        "`synthetic.enabled` is not true: there is nothing to generate\n  hint: name a teacher and \
         prompts under `synthetic`, and write `enabled: true`"
    )]
    Off,
    /// Every prompt is blank.
    #[error("`synthetic.seed_prompts` has no prompt that is not blank")]
    NoPrompts,
    /// The prompts would be written over.
    #[error(
        "{}: is read and would be written\n  hint: another `synthetic.output_file`", .path.display()
    )]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// A row of the file of answers has nothing to ask.
    #[error("{}: has no prompt with an answer", .path.display())]
    NoAnswers {
        /// The file.
        path: PathBuf,
    },
    /// The output has rows that nothing is known of.
    #[error(
        "{}: has rows that were not generated here: {problem}\n  hint: another \
         `synthetic.output_file`; nothing is ever overwritten", .path.display()
    )]
    NotOurs {
        /// The rows.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The output has rows of another teacher, other settings or other prompts.
    #[error(
        "{}: line {line} is of other settings, of another teacher or of another prompt than prompt \
         {} is now\n  hint: another `synthetic.output_file`; prompts may be added at the end", .path.display(), .index + 1
    )]
    OtherSettings {
        /// What is known of the rows.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The prompt, from 0.
        index: usize,
    },
    /// A row is not what was written.
    #[error(
        "{}: {problem}\n  hint: what was changed since is not known to be of the teacher; another \
         `synthetic.output_file`", .path.display()
    )]
    Changed {
        /// The rows.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// The teacher on this machine cannot be used.
    #[error("the teacher `{name}` cannot be used: {problem}")]
    Teacher {
        /// As configured.
        name: String,
        /// Why.
        problem: String,
    },
    /// Nobody can be asked any more.
    #[error(
        "{reason}; {n_rows} of {n_total} prompts have a row\n  hint: the same command goes on where \
         this one ended"
    )]
    Ended {
        /// Why.
        reason: String,
        /// Prompts with a row.
        n_rows: usize,
        /// Prompts.
        n_total: usize,
    },
    /// It was asked to stop.
    #[error(
        "stopped as asked; {n_rows} of {n_total} prompts have a row\n  hint: the same command goes on \
         where this one ended"
    )]
    Stopped {
        /// Prompts with a row.
        n_rows: usize,
        /// Prompts.
        n_total: usize,
    },
}

impl SyntheticError {
    /// The exit code that it leads to.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Off
            | Self::NoPrompts
            | Self::SameFile { .. }
            | Self::NoAnswers { .. }
            | Self::NotOurs { .. }
            | Self::OtherSettings { .. } => Exit::Config,
            Self::Changed { .. } => Exit::Integrity,
            Self::Teacher { .. } => Exit::Resources,
            Self::Ended { .. } => Exit::Runtime,
            Self::Stopped { .. } => Exit::Interrupted,
        }
    }
}
