//! The seam between this crate and the file system: every change to a disk is one operation of a
//! [`Disk`], so that a test can stop the machine at any of them.
//!
//! [`Disk::real`] does what it is told. The others, for tests, count operations and then fail,
//! stop (as `kill -9` or a power cut does), or run out of room. Reading does not pass through
//! here.

mod faults;

use faults::Faults;
pub use faults::{PowerLoss, STOPPED};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A handle on the file system for writing. Clones share the count of operations.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    faults: Option<Arc<Mutex<Faults>>>,
}

impl Disk {
    /// The disk as it is.
    #[must_use]
    pub const fn real() -> Self {
        Self { faults: None }
    }

    /// A disk that works, and counts.
    #[must_use]
    pub fn counting() -> Self {
        Self::with(Faults::default())
    }

    /// Operation `n` (the first is 0) fails with `kind`, once; all others work.
    #[must_use]
    pub fn failing_at(n: u64, kind: io::ErrorKind) -> Self {
        Self::with(Faults { fail_at: Some((n, kind)), ..Faults::default() })
    }

    /// Operation `n` is cut in the middle (of a write, the first half reaches the file), and
    /// nothing works after it, not even cleaning up: the process was killed there. See
    /// [`Disk::lose_power`] for what a power cut adds.
    #[must_use]
    pub fn stopping_at(n: u64) -> Self {
        Self::with(Faults { stop_at: Some(n), ..Faults::default() })
    }

    /// Room for `n_bytes` more; what fits is written, then writes fail with
    /// [`io::ErrorKind::StorageFull`].
    #[must_use]
    pub fn full_after(n_bytes: u64) -> Self {
        Self::with(Faults { room: Some(n_bytes), ..Faults::default() })
    }

    fn with(faults: Faults) -> Self {
        Self { faults: Some(Arc::new(Mutex::new(faults))) }
    }

    /// Operations so far. Always 0 for the real disk.
    #[must_use]
    pub fn n_ops(&self) -> u64 {
        self.faults().map_or(0, |f| f.n_ops)
    }

    /// Whether [`Disk::stopping_at`] has been reached.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.faults().is_some_and(|f| f.stopped)
    }

    /// Makes of the files what a power cut may leave: data that was not synced is cut off, and
    /// renames in folders that were not synced are undone or kept as `loss` says. Does nothing on
    /// the real disk.
    ///
    /// # Errors
    /// If a file cannot be changed so.
    pub fn lose_power(&self, loss: PowerLoss) -> io::Result<()> {
        self.faults().map_or(Ok(()), |mut f| f.lose_power(loss))
    }

    fn faults(&self) -> Option<MutexGuard<'_, Faults>> {
        let faults = self.faults.as_ref()?;
        Some(faults.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts an operation, and refuses it if its time has come.
    fn begin(&self) -> io::Result<()> {
        self.faults().map_or(Ok(()), |mut f| f.begin())
    }

    /// Creates a file that must not exist.
    pub(crate) fn create_new(&self, path: &Path) -> io::Result<DiskFile> {
        self.create_with_mode(path, 0o666)
    }

    /// Creates a file that must not exist, which only its owner may read and write.
    pub(crate) fn create_private(&self, path: &Path) -> io::Result<DiskFile> {
        self.create_with_mode(path, 0o600)
    }

    fn create_with_mode(&self, path: &Path, mode: u32) -> io::Result<DiskFile> {
        self.begin()?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        if let Some(mut f) = self.faults() {
            f.created(path);
        }
        Ok(DiskFile { disk: self.clone(), file, path: path.to_owned() })
    }

    /// Opens a file for reading and appending, created if missing. A symbolic link is refused.
    pub(crate) fn open_append(&self, path: &Path) -> io::Result<DiskFile> {
        self.begin()?;
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if let Some(mut f) = self.faults().filter(|_| is_new) {
            f.created(path);
        }
        Ok(DiskFile { disk: self.clone(), file, path: path.to_owned() })
    }

    /// Creates one folder.
    pub(crate) fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        std::fs::create_dir(path)
    }

    /// Renames within one file system, replacing what is there.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin()?;
        if let Some(mut f) = self.faults() {
            f.renamed(from, to);
        }
        std::fs::rename(from, to)
    }

    /// Renames a file or folder only if nothing has the new name yet.
    pub(crate) fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        self.begin()?;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Not every file system knows the flag; then check and rename.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if to.symlink_metadata().is_ok() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                std::fs::rename(from, to)?;
            }
            other => other?,
        }
        if let Some(mut f) = self.faults() {
            f.renamed(from, to);
        }
        Ok(())
    }

    /// Exchanges the names of two files or folders in one step.
    pub(crate) fn exchange(&self, a: &Path, b: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        self.begin()?;
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?;
        if let Some(mut f) = self.faults() {
            f.exchanged(a, b);
        }
        Ok(())
    }

    /// Waits until the names in a folder are on the disk.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        File::open(path)?.sync_all()?;
        if let Some(mut f) = self.faults() {
            f.dir_synced(path);
        }
        Ok(())
    }

    /// Removes a file.
    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        std::fs::remove_file(path)
    }

    /// Removes a folder and all in it. Symbolic links in it are removed, not followed.
    pub(crate) fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        std::fs::remove_dir_all(path)
    }
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct DiskFile {
    disk: Disk,
    pub(crate) file: File,
    path: PathBuf,
}

impl DiskFile {
    /// Waits until the bytes are on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.disk.begin()?;
        self.file.sync_all()?;
        if let Some(mut f) = self.disk.faults() {
            f.file_synced(&self.path);
        }
        Ok(())
    }

    /// Cuts the file to `len` bytes.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.begin()?;
        self.file.set_len(len)
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (n_allowed, error) = match self.disk.faults() {
            Some(mut f) => f.write(&self.path, bytes.len()),
            None => (bytes.len(), None),
        };
        match error {
            None => self.file.write(&bytes[..n_allowed]),
            Some(error) => {
                self.file.write_all(&bytes[..n_allowed])?;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
