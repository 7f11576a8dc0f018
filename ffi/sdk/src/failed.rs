//! Why a plugin gave up in the middle of its work.

use std::fmt;

/// Why a plugin gave up. The methods that ship with ForgeLM never do: it is for those that find at
/// work what they could not know when they were built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong, for a person.
    pub message: String,
}

impl Failed {
    /// With this message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}
