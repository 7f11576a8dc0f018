//! Which exit code an error of this crate belongs to.

/// What went wrong, as far as the exit code is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// What was given cannot be used: exit 1.
    Input,
    /// The world refused (disk, network, permissions): exit 2.
    Runtime,
    /// Bytes are not what they claim or once were: exit 6.
    Integrity,
    /// No room: exit 8.
    Resources,
}
