//! One run at a time in a folder.

use crate::{Class, UtcTime};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The lock's file inside the folder.
pub const LOCK_FILE: &str = ".forgelm.lock";

/// Who holds a lock, as the lock file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// What the process is doing: a run id.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Machine.
    pub host: String,
    /// When it took the lock.
    pub started: String,
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process works in the folder.
    #[error("{}: in use by {}\n  hint: wait for it to end, or choose another output folder",
        .dir.display(), shown(.owner.as_ref()))]
    Held {
        /// The folder.
        dir: PathBuf,
        /// What its lock file says; `None` when that cannot be read.
        owner: Option<Owner>,
    },
    /// The system refused.
    #[error("{}: cannot be locked", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn shown(owner: Option<&Owner>) -> String {
    let Some(Owner { name, pid, host, started }) = owner else {
        return "another process".to_owned();
    };
    let (name, host, started) = (crate::Quoted(name), crate::Quoted(host), crate::Quoted(started));
    format!("{name}, process {pid} on {host}, since {started}")
}

impl LockError {
    /// Which exit code this belongs to.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Held { .. } => Class::Input,
            Self::Io { .. } => Class::Runtime,
        }
    }
}

/// A held lock on a folder: `flock` on a file in it. It goes with this value, and with the
/// process, however that ends: a lock file alone, left by a dead process, locks nothing.
///
/// The file itself stays, so that no process can lock a file that another has just removed.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
    weak: Option<&'static str>,
}

impl RunLock {
    /// Locks an existing folder for `name`. Does not wait.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process, or another part of this one, holds it.
    pub fn acquire(dir: &Path, name: &str, now: UtcTime) -> Result<Self, LockError> {
        Self::acquire_as(dir, LOCK_FILE, name, now)
    }

    /// As [`RunLock::acquire`], with another file: for what may go on beside a run.
    ///
    /// # Errors
    /// As [`RunLock::acquire`].
    pub fn acquire_as(dir: &Path, file: &str, name: &str, now: UtcTime) -> Result<Self, LockError> {
        let path = dir.join(file);
        let error = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { dir: dir.to_owned(), owner: read_owner(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        let owner = Owner {
            name: name.to_owned(),
            pid: std::process::id(),
            host: host_name(),
            started: now.to_string(),
        };
        let text = serde_json::to_string(&owner).map_err(|e| error(e.into()))?;
        file.set_len(0).and_then(|()| writeln!(file, "{text}")).map_err(error)?;
        let weak = weak_file_system(&file);
        Ok(Self { file, path, weak })
    }

    /// Whether the locked file still lies where it was: false when the folder was removed, moved or
    /// replaced since.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let of = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let held = self.file.metadata().map(of).ok();
        held.is_some() && self.path.symlink_metadata().map(of).ok() == held
    }

    /// The kind of file system, if it is one on which another machine may not see the lock.
    #[must_use]
    pub const fn weak_file_system(&self) -> Option<&'static str> {
        self.weak
    }
}

fn read_owner(file: &mut File) -> Option<Owner> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown host".to_owned(),
        name => name.to_owned(),
    }
}

/// Magic numbers as in `linux/magic.h` and the file systems' own headers.
fn weak_file_system(file: &File) -> Option<&'static str> {
    weak_kind(u32::try_from(rustix::fs::fstatfs(file).ok()?.f_type).ok()?)
}

fn weak_kind(magic: u32) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517B => Some("SMB"),
        0xFF53_4D42 => Some("CIFS"),
        0xFE53_4D42 => Some("SMB2"),
        0x6573_5546 => Some("FUSE"),
        0x0102_1997 => Some("9P"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{RunLock, weak_kind};
    use crate::UtcTime;

    /// The numbers of `linux/magic.h`: NFS, CIFS and FUSE, and ext4, tmpfs and overlayfs.
    #[test]
    fn fault_084_file_systems_with_weak_locks_are_known() {
        assert_eq!(
            [0x6969, 0xFF53_4D42, 0x6573_5546].map(weak_kind),
            [Some("NFS"), Some("CIFS"), Some("FUSE")]
        );
        assert_eq!([0xEF53, 0x0102_1994, 0x794C_7630].map(weak_kind), [None; 3]);
        let dir = tempfile::tempdir().expect("a folder");
        let lock = RunLock::acquire(dir.path(), "fg-0", UtcTime(0)).expect("nobody holds it");
        assert!(lock.weak_file_system().is_none_or(|kind| !kind.is_empty()));
    }
}
