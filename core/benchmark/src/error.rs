//! What can be wrong with tasks and their rows.

use forgelm_artifact::Class;
use forgelm_artifact::open::OpenError;

/// Why a benchmark cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no task of this name.
    #[error("`{name}` is not a known benchmark task{}", and_hint(.hint))]
    Unknown {
        /// As it was asked for.
        name: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A task file does not say what a task is.
    #[error("{place}: {problem}{}", and_hint(.hint))]
    Definition {
        /// The file or built-in, with a line where it is known.
        place: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The rows do not fit the task.
    #[error("benchmark task `{task}`: {place}: {problem}{}", and_hint(.hint))]
    Rows {
        /// The task.
        task: String,
        /// The split, and the row where it is one.
        place: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl TaskError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Open(error) => error.class(),
            Self::Unknown { .. } | Self::Definition { .. } | Self::Rows { .. } => Class::Input,
        }
    }
}

fn and_hint(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default()
}

/// The name among `known` that is nearest, if one is near.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|other| (strsim::jaro_winkler(name, other), other));
    scored.filter(|(score, _)| *score > 0.82).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, n)| n)
}
