//! Why a plugin gave up in the middle of its work.

use forgelm_kernels_api::DeviceRefusal;
use std::fmt;

/// Why a plugin gave up, or a service of the host did. The methods that ship with ForgeLM rarely do:
/// it is for those that find at work what they could not know when they were built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong, for a person.
    pub message: String,
    /// What kind of failure it is.
    pub cause: Cause,
}

/// Kinds of failures, each a status of the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The work itself cannot be done.
    Work,
    /// What was asked for cannot be done; something else might.
    Argument,
    /// The host asked to stop.
    Cancelled,
    /// Other processes gave no sign before the deadline.
    Deadline,
}

impl Failed {
    /// The work cannot be done.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: Cause::Work }
    }

    /// What was asked for cannot be done.
    #[must_use]
    pub fn argument(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: Cause::Argument }
    }

    /// The host asked to stop.
    #[must_use]
    pub fn cancelled() -> Self {
        Self { message: "stopped as asked".to_owned(), cause: Cause::Cancelled }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

impl From<DeviceRefusal> for Failed {
    fn from(refusal: DeviceRefusal) -> Self {
        Self::new(refusal.to_string())
    }
}
