//! Files mapped into memory, read-only.

#![expect(unsafe_code, reason = "the one memory map of the program")]

use crate::open::{self, OpenError};
use rustix::io::ReadWriteFlags;
use std::fs::{File, Metadata};
use std::io::IoSliceMut;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes that are read at a time: much, so that the disk works at full speed.
const READ_AHEAD: usize = 1 << 20;

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
        // The map needs no open file: a model in many files holds none open.
        Ok(Self { path: path.to_owned(), map, stamp: Stamp::of(&metadata) })
    }

    /// The path it was opened under.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file from its first byte to its last, ahead of use, until it is done or `is_enough`
    /// says so. Waits for the disk: for a thread of its own. What cannot be read is left to whoever
    /// uses the bytes.
    ///
    /// Reads, and does not advise: advice about a map brought the pages of a cold file in at half of
    /// the speed. Pieces that are in memory already are passed over.
    pub fn read_ahead(&self, is_enough: &dyn Fn() -> bool) {
        let opened = open::regular(&self.path);
        let Some((file, _)) = opened.ok().filter(|(_, now)| Stamp::of(now) == self.stamp) else {
            return;
        };
        let mut room = vec![0; READ_AHEAD];
        let mut first = 0;
        while !is_enough() {
            if is_in_memory(&file, first) {
                first += READ_AHEAD as u64;
                continue;
            }
            match file.read_at(&mut room, first) {
                Ok(n @ 1..) => first += n as u64,
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Lets go of the pages of `bytes`, a part of this file, which was read and will hardly be read
    /// again; reading it again reads the file again.
    ///
    /// Does nothing for bytes that are not of this file, and where the system does not know how.
    pub fn release(&self, bytes: &[u8]) {
        let Some(map) = &self.map else { return };
        let start = (bytes.as_ptr() as usize).wrapping_sub(map.as_ptr() as usize);
        if start.checked_add(bytes.len()).is_none_or(|end| end > map.len()) {
            return;
        }
        // SAFETY: the mapping is read-only and of a file, so that no page was written: each comes
        // back from the file with the same bytes when it is read again.
        let released = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes.len())
        };
        // Pages that stay are a loss of memory and nothing else.
        drop(released);
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

/// Whether the last byte of the piece that begins at `first` can be had without the disk.
fn is_in_memory(file: &File, first: u64) -> bool {
    let (mut byte, last) = ([0], first + READ_AHEAD as u64 - 1);
    let room = &mut [IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(file, room, last, ReadWriteFlags::NOWAIT) == Ok(1)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::MappedFile;

    #[test]
    fn released_bytes_are_read_again_from_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("weights");
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("written");
        let map = MappedFile::open(&path).expect("opens");
        for range in [0..bytes.len(), 5000..70_001, 99_999..100_000, 7..7] {
            map.release(&map[range.clone()]);
            assert!(*map == bytes[..], "{range:?}");
        }
        map.release(&bytes); // of no file: nothing happens
        assert!(*map == bytes[..] && bytes[99_999] == (99_999 % 251) as u8);
    }
}
