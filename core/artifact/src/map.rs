//! Files mapped into memory, read-only.

#![expect(unsafe_code, reason = "the one memory map of the program")]

use crate::open::{self, OpenError};
use std::fs::Metadata;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that are asked for at a time: much, so that the disk works at full speed.
const READ_AHEAD: usize = 8 << 20;

/// What a file looked like when it was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(m: &Metadata) -> Self {
        let modified = (m.mtime(), m.mtime_nsec());
        Self { device: m.dev(), inode: m.ino(), len: m.len(), modified }
    }
}

/// The bytes of a regular file, mapped read-only.
///
/// A file that another program cuts short while it is mapped stops this one with `SIGBUS`, and one
/// that is rewritten changes under the reader: model files are written once and renamed into place,
/// and whoever needs certainty hashes the bytes and calls [`MappedFile::unchanged`] after use.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    /// None for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
    stamp: Stamp,
}

impl MappedFile {
    /// Maps a whole regular file.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (file, metadata) = open::regular(path)?;
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the mapping is private and read-only and lives as long as `self`. The bytes
            // are only ever read as plain `u8`, for which every value is valid; what happens when
            // another program changes the file meanwhile is said in the type's documentation.
            let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) };
            Some(map.map_err(|source| OpenError::Io { path: path.to_owned(), source })?)
        };
        Ok(Self { path: path.to_owned(), map, stamp: Stamp::of(&metadata) })
    }

    /// The path it was opened under.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the system to read the file from its first byte to its last, ahead of use, until it is
    /// done or `is_enough` says so. Waits for the disk: for a thread of its own. A request only: a
    /// system that refuses reads when the bytes are used.
    pub fn read_ahead(&self, is_enough: &dyn Fn() -> bool) {
        let Some(map) = &self.map else { return };
        for first in (0..map.len()).step_by(READ_AHEAD) {
            let len = READ_AHEAD.min(map.len() - first);
            if is_enough() || map.advise_range(memmap2::Advice::WillNeed, first, len).is_err() {
                return;
            }
        }
    }

    /// Whether the path still leads to the same file, with the length and change time it had.
    #[must_use]
    pub fn unchanged(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|m| Stamp::of(&m) == self.stamp)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}
