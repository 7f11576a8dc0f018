//! Why a plugin gave up in the middle of its work.

/// Why a plugin gave up. The methods that ship with ForgeLM never do: it is for those that find at
/// work what they could not know when they were built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
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
