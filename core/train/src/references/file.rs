//! Numbers on disk, some for each unit: a file of which only an index is kept in memory.
//!
//! ```text
//! magic [8]
//! for each unit: its numbers, f32
//! for each unit: how many they are, u32
//! number of units u64, magic [8], SHA-256 of all before [32]
//! ```
//!
//! All numbers are little-endian. The file is written once and renamed into place; whoever opens it
//! checks the digest of the whole.

use forgelm_artifact::hash::Hasher;
use forgelm_artifact::open::{self, OpenError};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"FGREF\0\0\x01";
const FOOTER_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;
/// Bytes of the index or of the whole that are read at once.
const CHUNK_BYTES: usize = 1 << 16;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not what was written.
    #[error(
        "{}: {what}; the cache of reference log-probabilities is damaged\n  hint: remove the file; \
         it is made again",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// Writes a file, unit after unit.
pub(super) struct NumbersWriter<'w> {
    out: &'w mut dyn Write,
    hasher: Hasher,
    n_numbers: Vec<u32>,
}

impl<'w> NumbersWriter<'w> {
    pub(super) fn new(out: &'w mut dyn Write) -> io::Result<Self> {
        let mut writer = Self { out, hasher: Hasher::new(), n_numbers: Vec::new() };
        writer.write(&MAGIC)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    /// The numbers of the next unit.
    pub(super) fn push(&mut self, numbers: &[f32]) -> io::Result<()> {
        let n =
            u32::try_from(numbers.len()).map_err(|_| io::Error::other("a unit of 2^32 numbers"))?;
        self.n_numbers.push(n);
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.write(&bytes)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        let index = std::mem::take(&mut self.n_numbers);
        for chunk in index.chunks(CHUNK_BYTES / 4) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|n| n.to_le_bytes()).collect();
            self.write(&bytes)?;
        }
        self.write(&(index.len() as u64).to_le_bytes())?;
        self.write(&MAGIC)?;
        let digest = self.hasher.clone().finish_raw();
        self.out.write_all(&digest)
    }
}

/// A file, open for reading. In memory are 8 bytes a unit.
#[derive(Debug)]
pub(super) struct Numbers {
    path: PathBuf,
    file: File,
    /// Numbers up to the end of each unit.
    ends: Vec<u64>,
}

impl Numbers {
    /// Opens a file and checks all of it.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let damaged = |what| FileError::Damaged { path: path.to_owned(), what };
        let io_error = |source| FileError::Io { path: path.to_owned(), source };
        let (file, metadata) = open::regular(path).map_err(|error| match error {
            OpenError::Io { source, .. } => io_error(source),
            OpenError::NotAFile { .. } => damaged("not a file"),
        })?;
        let least = (MAGIC.len() + FOOTER_BYTES + DIGEST_BYTES) as u64;
        if metadata.len() < least {
            return Err(damaged("too short"));
        }
        let body = metadata.len() - DIGEST_BYTES as u64;
        let footer_at = body - FOOTER_BYTES as u64;
        if !has_digest(&file, body).map_err(io_error)? {
            return Err(damaged("its digest differs"));
        }
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at).map_err(io_error)?;
        let (n, magic) = footer.split_at(8);
        if magic != MAGIC {
            return Err(damaged("another format"));
        }
        let n = u64::from_le_bytes(n.try_into().expect("8 bytes"));
        let index_at = n
            .checked_mul(4)
            .and_then(|bytes| footer_at.checked_sub(bytes))
            .ok_or_else(|| damaged("its index does not fit"))?;
        let ends = read_index(&file, index_at, n).map_err(io_error)?;
        let n_numbers = ends.last().copied().unwrap_or(0);
        if MAGIC.len() as u64 + 4 * n_numbers != index_at {
            return Err(damaged("its index does not fit its numbers"));
        }
        Ok(Self { path: path.to_owned(), file, ends })
    }

    /// Number of units.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The numbers of a unit.
    pub(super) fn read(&self, unit: usize) -> Result<Vec<f32>, FileError> {
        let from = unit.checked_sub(1).map_or(0, |before| self.ends[before]);
        let n = usize::try_from(self.ends[unit] - from).unwrap_or(usize::MAX);
        let mut bytes = vec![0; 4 * n];
        let read = self.file.read_exact_at(&mut bytes, MAGIC.len() as u64 + 4 * from);
        read.map_err(|source| FileError::Io { path: self.path.clone(), source })?;
        let number = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("4 bytes"));
        Ok(bytes.chunks_exact(4).map(number).collect())
    }
}

/// Whether the bytes before `body` have the digest that follows them.
fn has_digest(file: &File, body: u64) -> io::Result<bool> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < body {
        let n = usize::try_from(body - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        file.read_exact_at(&mut buffer[..n], at)?;
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    let mut digest = [0; DIGEST_BYTES];
    file.read_exact_at(&mut digest, body)?;
    Ok(hasher.finish_raw() == digest)
}

fn read_index(file: &File, mut at: u64, n: u64) -> io::Result<Vec<u64>> {
    let n = usize::try_from(n).map_err(|_| io::Error::other("too many units"))?;
    let mut ends = Vec::with_capacity(n);
    let mut end = 0;
    while ends.len() < n {
        let mut bytes = vec![0; (4 * (n - ends.len())).min(CHUNK_BYTES)];
        file.read_exact_at(&mut bytes, at)?;
        at += bytes.len() as u64;
        for n_numbers in bytes.chunks_exact(4) {
            end += u64::from(u32::from_le_bytes(n_numbers.try_into().expect("4 bytes")));
            ends.push(end);
        }
    }
    Ok(ends)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test damages a file")]
mod tests {
    use super::*;
    use forgelm_artifact::write;

    fn written(path: &Path) {
        let units: [&[f32]; 3] = [&[1.5, -2.0], &[], &[0.25]];
        write::atomic_with(path, |out| {
            let mut writer = NumbersWriter::new(out)?;
            for unit in units {
                writer.push(unit)?;
            }
            writer.finish()
        })
        .expect("written");
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.logp");
        written(&path);
        let numbers = Numbers::open(&path).expect("good");
        assert_eq!(numbers.len(), 3);
        assert_eq!(numbers.read(0).expect("read"), [1.5, -2.0]);
        assert_eq!(numbers.read(1).expect("read"), [0.0_f32; 0]);
        assert_eq!(numbers.read(2).expect("read"), [0.25]);
    }

    #[test]
    fn any_changed_byte_and_any_lost_end_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.logp");
        written(&path);
        let good = std::fs::read(&path).expect("read");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 16;
            std::fs::write(&path, &bad).expect("written");
            assert!(matches!(Numbers::open(&path), Err(FileError::Damaged { .. })), "byte {at}");
            std::fs::write(&path, &good[..at]).expect("written");
            assert!(matches!(Numbers::open(&path), Err(FileError::Damaged { .. })), "{at} bytes");
        }
    }
}
