//! Opening a file for reading without being caught by what it is.

use crate::Class;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a file could not be opened for reading.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused.
    #[error("{}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not a regular file.
    #[error("{}: is a {kind}; expected a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// `folder`, `named pipe`, `device`, `socket`.
        kind: &'static str,
    },
}

impl OpenError {
    /// Which exit code this belongs to: what is missing or is no file is the caller's input.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NotAFile { .. } => Class::Input,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Class::Input,
                _ => Class::Runtime,
            },
        }
    }
}

/// Opens a regular file for reading. Never blocks: a named pipe, a device or a socket is refused
/// after an open that does not wait for the other end. Symbolic links are followed.
///
/// # Errors
/// If the file cannot be opened or is not a regular file.
pub fn regular(path: &Path) -> Result<(File, Metadata), OpenError> {
    let io_error = |source: io::Error| {
        // A socket cannot be opened at all; the system's words for it help nobody.
        let is_socket = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket());
        if is_socket {
            return OpenError::NotAFile { path: path.to_owned(), kind: "socket" };
        }
        OpenError::Io { path: path.to_owned(), source }
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    if metadata.is_file() {
        return Ok((file, metadata));
    }
    let file_type = metadata.file_type();
    let kind = if file_type.is_dir() {
        "folder"
    } else if file_type.is_fifo() {
        "named pipe"
    } else {
        "device"
    };
    Err(OpenError::NotAFile { path: path.to_owned(), kind })
}
