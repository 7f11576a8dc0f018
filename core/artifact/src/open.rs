//! Opening a file for reading without being caught by what it is.

use crate::Class;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The kind of a symbolic link, where links are not followed.
pub const SYMBOLIC_LINK: &str = "symbolic link";

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
        /// `folder`, `named pipe`, `device`, `socket`, or [`SYMBOLIC_LINK`] where links are not
        /// followed.
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
    only_regular(file, path)
}

/// As [`regular`], and the file itself may not be a symbolic link. Folders on the way may be links:
/// they are part of how the caller names the file.
///
/// # Errors
/// As [`regular`]; a link is a [`OpenError::NotAFile`] of the kind [`SYMBOLIC_LINK`].
pub fn unlinked(path: &Path) -> Result<(File, Metadata), OpenError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => below(parent, Path::new(name)),
        _ => regular(path),
    }
}

/// Opens the regular file `name` below the folder `root`. No symbolic link is followed below `root`,
/// neither a folder's nor the file's, also when one is put there at the same moment: each part is
/// opened within the folder that was opened before it.
///
/// # Errors
/// As [`regular`]; a link is a [`OpenError::NotAFile`] of the kind [`SYMBOLIC_LINK`], and a `name`
/// that leads out of `root` is not found.
pub fn below(root: &Path, name: &Path) -> Result<(File, Metadata), OpenError> {
    let path = root.join(name);
    let io_error = |errno: Errno| OpenError::Io { path: path.clone(), source: errno.into() };
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(root, folder, Mode::empty()).map_err(io_error)?;
    let mut parts = name.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(part) = part else { return Err(io_error(Errno::NOENT)) };
        let is_last = parts.peek().is_none();
        let last = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let flags = if is_last { last } else { folder } | OFlags::NOFOLLOW;
        at = rustix::fs::openat(&at, part, flags, Mode::empty()).map_err(|errno| {
            // A link is `ELOOP`, where a folder is asked for `ENOTDIR`; a socket is `ENXIO`.
            let found = rustix::fs::statat(&at, part, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let file_type = found.map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
            let kind = match file_type {
                Ok(rustix::fs::FileType::Symlink) => SYMBOLIC_LINK,
                Ok(rustix::fs::FileType::Socket) if is_last => "socket",
                _ => return io_error(errno),
            };
            OpenError::NotAFile { path: path.clone(), kind }
        })?;
        if is_last {
            return only_regular(File::from(at), &path);
        }
    }
    Err(OpenError::NotAFile { path, kind: "folder" })
}

/// The file, if it is a regular one.
fn only_regular(file: File, path: &Path) -> Result<(File, Metadata), OpenError> {
    let metadata =
        file.metadata().map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::{OpenError, SYMBOLIC_LINK, below, regular, unlinked};
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn kind(result: Result<(std::fs::File, std::fs::Metadata), OpenError>) -> String {
        match result {
            Ok((mut file, _)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("text");
                text
            }
            Err(OpenError::NotAFile { kind, .. }) => kind.to_owned(),
            Err(OpenError::Io { source, .. }) => format!("{:?}", source.kind()),
        }
    }

    #[test]
    fn links_below_the_root_are_not_followed_and_those_above_are() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("real/in")).expect("folders");
        std::fs::write(at("real/in/file"), "here").expect("written");
        symlink(at("real"), at("root")).expect("linked");
        symlink(at("real/in"), at("real/in_link")).expect("linked");
        symlink(at("real/in/file"), at("real/file_link")).expect("linked");
        let opened = |name: &str| kind(below(&at("root"), Path::new(name)));
        assert_eq!(opened("in/file"), "here");
        assert_eq!(opened("in_link/file"), SYMBOLIC_LINK);
        assert_eq!(opened("file_link"), SYMBOLIC_LINK);
        assert_eq!(opened("in"), "folder");
        assert_eq!(opened("../real/in/file"), "NotFound");
        assert_eq!(opened("in/file/x"), "NotADirectory");
        assert_eq!(opened("none"), "NotFound");
        assert_eq!(kind(unlinked(&at("real/file_link"))), SYMBOLIC_LINK);
        assert_eq!(kind(unlinked(&at("root/in/file"))), "here");
        assert_eq!(kind(regular(&at("real/file_link"))), "here");
        assert_eq!(kind(below(Path::new("/dev"), Path::new("zero"))), "device");
    }
}
