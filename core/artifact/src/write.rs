//! Writing files and folders so that what carries its final name is complete, whenever the
//! machine stops.
//!
//! The one recipe: write under a temporary name beside the target, sync the bytes, rename, sync
//! the folder. [`atomic`] does it for a file, [`StagedDir`] for a folder. Each free function works
//! on the real disk; its twin `..._on` takes a [`Disk`].

mod append;
mod created;
mod kept;
mod records;
mod staged;

use crate::{Class, Disk};
pub use append::AppendLog;
pub use created::CreatedDir;
pub use kept::{create_private, replace_keeping, replace_keeping_on};
pub use records::RecordFile;
pub use staged::{StagedDir, write_into_staged};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What was being done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A file or folder was created or opened for writing.
    Create,
    /// Bytes were written.
    Write,
    /// The disk was asked to hold them for good.
    Sync,
    /// It was given its final name.
    Rename,
    /// It was removed.
    Remove,
    /// It was locked.
    Lock,
    /// Its contents were read back.
    Read,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "cannot be created",
            Self::Write => "cannot be written",
            Self::Sync => "cannot be synced to the disk, so its contents are not trusted",
            Self::Rename => "cannot be given its final name",
            Self::Remove => "cannot be removed",
            Self::Lock => "cannot be locked",
            Self::Read => "cannot be read back",
        })
    }
}

/// Why something was not written. What had its final name before still has it, unchanged.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system refused.
    #[error("{}: {action}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: Action,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk or the quota is full.
    #[error(
        "{}: {action}: no room is left ({n_bytes_free} bytes free on that disk)\n  \
         hint: free some space, or choose another output folder",
        .path.display()
    )]
    NoRoom {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: Action,
        /// Free bytes at that moment, for this user.
        n_bytes_free: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something already has the final name.
    #[error("{}: already exists and is not replaced", .path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// A log's last line has no end: the machine stopped inside it.
    #[error("{}: the last line (from byte {offset}) is not complete", .path.display())]
    TornLine {
        /// The log.
        path: PathBuf,
        /// Where the incomplete line begins.
        offset: u64,
    },
    /// A line break inside a record of a log of lines.
    #[error("{}: a record with a line break cannot be one line", .path.display())]
    LineBreak {
        /// The log.
        path: PathBuf,
    },
    /// A file name that is not one plain name.
    #[error("{}: {} is not a plain relative name", .path.display(), crate::Quoted(.name))]
    BadName {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

impl WriteError {
    pub(crate) fn new(path: &Path, action: Action, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let n_bytes_free = free_bytes(&path).unwrap_or(0);
                Self::NoRoom { path, action, n_bytes_free, source }
            }
            _ => Self::Io { path, action, source },
        }
    }

    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Io { .. } | Self::LineBreak { .. } => Class::Runtime,
            Self::NoRoom { .. } => Class::Resources,
            Self::Exists { .. } | Self::BadName { .. } => Class::Input,
            Self::TornLine { .. } => Class::Integrity,
        }
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// If any step fails; a file that was there before is unchanged then.
pub fn atomic(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    atomic_on(&Disk::real(), path, bytes)
}

/// [`atomic`] on a given disk.
///
/// # Errors
/// As [`atomic`].
pub fn atomic_on(disk: &Disk, path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    atomic_with_on(disk, path, |w| w.write_all(bytes))
}

/// Writes a file whole or not at all, its bytes coming from `fill`.
///
/// # Errors
/// If `fill` or any step fails; a file that was there before is unchanged then.
pub fn atomic_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    atomic_with_on(&Disk::real(), path, fill)
}

/// [`atomic_with`] on a given disk.
///
/// # Errors
/// As [`atomic_with`].
pub fn atomic_with_on(
    disk: &Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let temporary = beside(path, "tmp");
    let written = write_synced(disk, &temporary, path, fill).and_then(|()| {
        disk.rename(&temporary, path).map_err(|e| WriteError::new(path, Action::Rename, e))
    });
    if let Err(error) = written {
        // Nobody will miss it; the first error is the one to report.
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    sync_parent(disk, path)
}

/// Creates `path`, fills and syncs it. Errors name `shown`.
fn write_synced(
    disk: &Disk,
    path: &Path,
    shown: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let error = |action| move |e| WriteError::new(shown, action, e);
    let file = disk.create_new(path).map_err(error(Action::Create))?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    fill(&mut buffered).and_then(|()| buffered.flush()).map_err(error(Action::Write))?;
    // The buffer is empty now. After a failed write it is dropped without writing the rest.
    buffered.get_ref().sync().map_err(error(Action::Sync))
}

fn sync_parent(disk: &Disk, path: &Path) -> Result<(), WriteError> {
    let parent = parent_of(path);
    disk.sync_dir(parent).map_err(|e| WriteError::new(parent, Action::Sync, e))
}

/// The folder a path is in; `.` for a bare name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name that no other call gives, in the same folder: `.NAME.KIND-PID-N`.
fn beside(path: &Path, kind: &str) -> PathBuf {
    static N_NAMES: AtomicU64 = AtomicU64::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let n = N_NAMES.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{kind}-{}-{n}", std::process::id()));
    path.with_file_name(name)
}

/// Creates a folder and those above it, and waits until all of them are on the disk. One that is
/// there already is fine.
///
/// # Errors
/// If a folder cannot be created, or a file is in the way.
pub fn create_dir_all_durable(path: &Path) -> Result<(), WriteError> {
    create_dir_all_durable_on(&Disk::real(), path)
}

/// [`create_dir_all_durable`] on a given disk.
///
/// # Errors
/// As [`create_dir_all_durable`].
pub fn create_dir_all_durable_on(disk: &Disk, path: &Path) -> Result<(), WriteError> {
    if path.is_dir() || path.as_os_str().is_empty() {
        return Ok(());
    }
    create_dir_all_durable_on(disk, parent_of(path))?;
    match disk.create_dir(path) {
        // Another process may have been faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(WriteError::new(path, Action::Create, e)),
        Ok(()) => sync_parent(disk, path),
    }
}

/// Appends one line to a file and waits until it is on the disk; see [`AppendLog`].
///
/// # Errors
/// As [`AppendLog::open`] and [`AppendLog::append_line`].
pub fn append_line_durable(path: &Path, line: &str) -> Result<(), WriteError> {
    AppendLog::open(path)?.append_line(line)
}

/// Gives a file or folder another name on the same disk, which nothing may have yet, and waits until
/// that is on the disk.
///
/// # Errors
/// If something has the name, or a step fails.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), WriteError> {
    let disk = Disk::real();
    disk.rename_new(from, to).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
            WriteError::Exists { path: to.to_owned() }
        }
        _ => WriteError::new(to, Action::Rename, e),
    })?;
    sync_parent(&disk, from)?;
    sync_parent(&disk, to)
}

/// Removes a folder and everything in it. It is renamed first, so that no half of it is ever seen
/// under its name. A folder that is not there is fine.
///
/// # Errors
/// If it cannot be renamed or removed.
pub fn remove_dir(path: &Path) -> Result<(), WriteError> {
    remove_dir_on(&Disk::real(), path)
}

/// [`remove_dir`] on a given disk.
///
/// # Errors
/// As [`remove_dir`].
pub fn remove_dir_on(disk: &Disk, path: &Path) -> Result<(), WriteError> {
    let error = |e| WriteError::new(path, Action::Remove, e);
    let doomed = beside(path, "removed");
    match disk.rename(path, &doomed) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(error)?,
    }
    sync_parent(disk, path)?;
    disk.remove_dir_all(&doomed).map_err(error)
}

/// Removes a file. One that is not there is fine.
///
/// # Errors
/// If it cannot be removed.
pub fn remove_file(path: &Path) -> Result<(), WriteError> {
    let disk = Disk::real();
    match disk.remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(WriteError::new(path, Action::Remove, e)),
        Ok(()) => sync_parent(&disk, path),
    }
}

/// Removes what earlier, killed processes left in a folder: files and folders with the temporary
/// names of this module and nothing else. Only for a folder whose run lock is held. Returns the
/// names removed, sorted.
///
/// # Errors
/// If the folder cannot be listed or something cannot be removed.
pub fn remove_leftovers(dir: &Path) -> Result<Vec<String>, WriteError> {
    let disk = Disk::real();
    let listing = |e| WriteError::new(dir, Action::Read, e);
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        let Some(name) = entry.file_name().to_str().filter(|n| is_leftover(n)).map(str::to_owned)
        else {
            continue;
        };
        let path = entry.path();
        let is_dir = entry.file_type().map_err(listing)?.is_dir();
        let result = if is_dir { disk.remove_dir_all(&path) } else { disk.remove_file(&path) };
        result.map_err(|e| WriteError::new(&path, Action::Remove, e))?;
        removed.push(name);
    }
    removed.sort();
    Ok(removed)
}

/// Whether a name is one that [`beside`] makes.
fn is_leftover(name: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let mut parts = name.rsplitn(3, '-');
    let (Some(n), Some(pid), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let is_ours = [".tmp", ".staged", ".removed"].iter().any(|kind| rest.ends_with(kind));
    name.starts_with('.') && digits(n) && digits(pid) && is_ours
}

/// Bytes free for this user on the disk that holds `path` (or the nearest folder above it that
/// exists).
///
/// # Errors
/// If the system does not say.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let mut place = path;
    while !place.exists() && place != Path::new(".") && place != Path::new("/") {
        place = parent_of(place);
    }
    let stat = rustix::fs::statvfs(place)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::{
        atomic, beside, create_dir_all_durable, is_leftover, remove_dir, remove_leftovers,
    };
    use std::path::Path;

    #[test]
    fn temporary_names_are_recognized_and_nothing_else_is() {
        let name = beside(Path::new("a/model.bin"), "tmp");
        assert!(name.starts_with("a"));
        assert!(is_leftover(name.file_name().unwrap().to_str().unwrap()));
        for name in ["a.tmp-1-2", ".a.tmp-1", ".a.tmp-1-x", ".a-1-2", ".tmp-x", "checkpoint-1-2"] {
            assert!(!is_leftover(name), "{name}");
        }
    }

    #[test]
    fn folders_are_made_removed_and_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir_all_durable(&deep).unwrap();
        create_dir_all_durable(&deep).unwrap();
        atomic(&deep.join("f"), b"x").unwrap();
        assert!(create_dir_all_durable(&deep.join("f")).is_err());
        std::fs::create_dir(dir.path().join(".x.staged-1-0")).unwrap();
        atomic(&dir.path().join(".y.tmp-1-0"), b"").unwrap();
        assert_eq!(remove_leftovers(dir.path()).unwrap(), [".x.staged-1-0", ".y.tmp-1-0"]);
        remove_dir(&dir.path().join("a")).unwrap();
        remove_dir(&dir.path().join("a")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
