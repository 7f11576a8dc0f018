//! Sequences on disk: a file of tokens with an index, of which only the index is kept in memory.
//!
//! ```text
//! magic [8]
//! for each sequence: line u64, file u32, role u32, tokens u32 (bit 31: trained)
//! for each sequence: number of tokens u32, number of trained tokens u32
//! description: JSON
//! index begins u64, description begins u64, number of sequences u64, magic [8], SHA-256 of all before [32]
//! ```
//!
//! All numbers are little-endian. The file is written once and renamed into place; whoever opens it checks the
//! digest of the whole.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use forgelm_artifact::Class;
use forgelm_artifact::hash::Hasher;
use forgelm_artifact::open::{self, OpenError};
use forgelm_sdk::trainer::Role;
use serde_json::Value;

use crate::render::Sequence;

const MAGIC: [u8; 8] = *b"FGTOK\0\0\x01";
const HEADER_BYTES: u64 = 16;
const INDEX_BYTES: usize = 8;
const FOOTER_BYTES: usize = 64;
const DIGEST_BYTES: usize = 32;
const TRAINED: u32 = 1 << 31;
/// A description is a few kilobytes.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 24;

/// Why a token file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
    #[error("{}: {what}; the token cache is damaged\n  hint: remove the file; it is made again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl StoreError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            StoreError::Io { .. } => Class::Runtime,
            StoreError::Damaged { .. } => Class::Integrity,
        }
    }
}

/// Where a sequence came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Number of the file in the description.
    pub file: u32,
    /// Line in it.
    pub line: u64,
}

/// Writes a token file.
pub(crate) struct StoreWriter<'w> {
    out: &'w mut dyn Write,
    hasher: Hasher,
    n_bytes: u64,
    index: Vec<(u32, u32)>,
    buffer: Vec<u8>,
}

impl<'w> StoreWriter<'w> {
    pub fn new(out: &'w mut dyn Write) -> io::Result<Self> {
        let mut writer = StoreWriter {
            out,
            hasher: Hasher::new(),
            n_bytes: 0,
            index: Vec::new(),
            buffer: Vec::new(),
        };
        writer.write(&MAGIC)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.n_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Adds a sequence.
    pub fn push(&mut self, sequence: &Sequence, origin: Origin) -> io::Result<()> {
        let too_many = || io::Error::other("a sequence of 2^32 tokens");
        let n_tokens = u32::try_from(sequence.tokens.len()).map_err(|_| too_many())?;
        let n_trained = u32::try_from(sequence.n_trained()).map_err(|_| too_many())?;
        self.index.push((n_tokens, n_trained));
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&origin.line.to_le_bytes());
        buffer.extend_from_slice(&origin.file.to_le_bytes());
        buffer.extend_from_slice(&(sequence.role as u32).to_le_bytes());
        for (&token, &trained) in sequence.tokens.iter().zip(&sequence.trained) {
            let word = token & !TRAINED | if trained { TRAINED } else { 0 };
            buffer.extend_from_slice(&word.to_le_bytes());
        }
        self.write(&buffer)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self, description: &Value) -> io::Result<()> {
        let index_at = self.n_bytes;
        let index = std::mem::take(&mut self.index);
        for chunk in index.chunks(4096) {
            let bytes: Vec<u8> = chunk
                .iter()
                .flat_map(|(n, t)| [n.to_le_bytes(), t.to_le_bytes()].concat())
                .collect();
            self.write(&bytes)?;
        }
        let description_at = self.n_bytes;
        self.write(description.to_string().as_bytes())?;
        for number in [index_at, description_at, index.len() as u64] {
            self.write(&number.to_le_bytes())?;
        }
        self.write(&MAGIC)?;
        let digest = self.hasher.clone().finish_raw();
        self.out.write_all(&digest)
    }
}

/// The description of a token file, and nothing else of it: what it says is not checked.
///
/// # Errors
/// If it cannot be read, or has no description where one belongs.
pub(crate) fn read_description(path: &Path) -> Result<Value, StoreError> {
    let damaged = |what| StoreError::Damaged { path: path.to_owned(), what };
    let io_error = |source| StoreError::Io { path: path.to_owned(), source };
    let (file, metadata) = open::regular(path).map_err(|_| damaged("not a file"))?;
    let footer_at = metadata.len().checked_sub(FOOTER_BYTES as u64);
    let footer_at = footer_at.ok_or_else(|| damaged("too short"))?;
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, footer_at).map_err(io_error)?;
    let bytes = footer[8..16].iter().rev();
    let begins = bytes.fold(0, |number, &byte| number << 8 | u64::from(byte));
    let n_bytes = footer_at.checked_sub(begins).filter(|n| *n <= DESCRIPTION_BYTES_MAX);
    let n_bytes = n_bytes.ok_or_else(|| damaged("its description lies elsewhere"))?;
    let mut description = vec![0; usize::try_from(n_bytes).unwrap_or(0)];
    file.read_exact_at(&mut description, begins).map_err(io_error)?;
    serde_json::from_slice(&description).map_err(|_| damaged("its description is no JSON"))
}

/// A token file, open for reading. In memory are 12 bytes for each sequence.
#[derive(Debug)]
pub struct TokenStore {
    path: PathBuf,
    file: File,
    /// Tokens up to the end of each sequence.
    ends: Vec<u64>,
    trained: Vec<u32>,
    description: Value,
}

impl TokenStore {
    /// Opens a file and checks all of it.
    ///
    /// # Errors
    /// If it cannot be read, or is not what was written.
    pub fn open(path: &Path) -> Result<TokenStore, StoreError> {
        let damaged = |what| StoreError::Damaged { path: path.to_owned(), what };
        let io_error = |source| StoreError::Io { path: path.to_owned(), source };
        let (file, metadata) = open::regular(path).map_err(|error| match error {
            OpenError::Io { source, .. } => io_error(source),
            OpenError::NotAFile { .. } => damaged("not a file"),
        })?;
        let least = (MAGIC.len() + FOOTER_BYTES) as u64;
        let body =
            metadata.len().checked_sub(DIGEST_BYTES as u64).filter(|_| metadata.len() >= least);
        let body = body.ok_or_else(|| damaged("too short"))?;
        check_digest(&file, body)
            .map_err(io_error)?
            .then_some(())
            .ok_or_else(|| damaged("its digest differs"))?;
        let mut footer = [0; FOOTER_BYTES - DIGEST_BYTES];
        let footer_at = body - footer.len() as u64;
        file.read_exact_at(&mut footer, footer_at).map_err(io_error)?;
        let number = |i: usize| {
            let bytes = footer[i * 8..][..8].iter().rev();
            bytes.fold(0, |number, &byte| number << 8 | u64::from(byte))
        };
        let (index_at, description_at, n) = (number(0), number(1), number(2));
        if footer[24..] != MAGIC {
            return Err(damaged("another format"));
        }
        let index_bytes = n.checked_mul(INDEX_BYTES as u64);
        let fits = index_bytes.and_then(|bytes| index_at.checked_add(bytes))
            == Some(description_at)
            && description_at <= footer_at
            && footer_at - description_at <= DESCRIPTION_BYTES_MAX;
        if !fits {
            return Err(damaged("its index lies elsewhere"));
        }
        let mut description = vec![0; usize::try_from(footer_at - description_at).unwrap_or(0)];
        file.read_exact_at(&mut description, description_at).map_err(io_error)?;
        let description = serde_json::from_slice(&description)
            .map_err(|_| damaged("its description is no JSON"))?;
        let n = usize::try_from(n).map_err(|_| damaged("too many sequences"))?;
        let (ends, trained) = read_index(&file, index_at, n).map_err(io_error)?;
        let n_tokens = ends.last().copied().unwrap_or(0);
        let expected = MAGIC.len() as u64 + HEADER_BYTES * n as u64 + 4 * n_tokens;
        if expected != index_at {
            return Err(damaged("its index does not fit its tokens"));
        }
        Ok(TokenStore { path: path.to_owned(), file, ends, trained, description })
    }

    /// Number of sequences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(crate) fn description(&self) -> &Value {
        &self.description
    }

    pub(crate) fn n_tokens(&self, i: usize) -> usize {
        usize::try_from(self.ends[i] - self.before(i)).unwrap_or(usize::MAX)
    }

    pub(crate) fn n_trained(&self, i: usize) -> usize {
        self.trained[i] as usize
    }

    fn before(&self, i: usize) -> u64 {
        i.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn at(&self, i: usize) -> u64 {
        MAGIC.len() as u64 + HEADER_BYTES * i as u64 + 4 * self.before(i)
    }

    /// Reads a sequence; it gets the number `record`.
    pub(crate) fn read(&self, i: usize, record: u64) -> Result<(Sequence, Origin), StoreError> {
        let mut bytes = vec![0; 16 + 4 * self.n_tokens(i)];
        let read = self.file.read_exact_at(&mut bytes, self.at(i));
        read.map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        let (header, words) = bytes.split_at(16);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        let line = u64::from_le_bytes(header[..8].try_into().expect("8 bytes"));
        let role = match word(&header[12..]) {
            1 => Role::Chosen,
            2 => Role::Rejected,
            3 => Role::Kl,
            4 => Role::Rollout,
            _ => Role::Sole,
        };
        let words: Vec<u32> = words.chunks_exact(4).map(word).collect();
        let tokens = words.iter().map(|word| word & !TRAINED).collect();
        let trained = words.iter().map(|word| word & TRAINED != 0).collect();
        let origin = Origin { file: word(&header[8..12]), line };
        Ok((Sequence { record, role, tokens, trained }, origin))
    }

    /// Where a sequence came from.
    pub(crate) fn origin(&self, i: usize) -> Result<Origin, StoreError> {
        self.read(i, 0).map(|(_, origin)| origin)
    }
}

/// Whether the last 32 bytes are the digest of the `n_bytes` before.
fn check_digest(mut file: &File, n_bytes: u64) -> io::Result<bool> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut left = n_bytes;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let n = file.read(&mut buffer[..want])?;
        if n == 0 {
            return Ok(false);
        }
        hasher.update(&buffer[..n]);
        left -= n as u64;
    }
    let mut digest = [0; DIGEST_BYTES];
    file.read_exact(&mut digest)?;
    Ok(hasher.finish_raw() == digest)
}

fn read_index(file: &File, at: u64, n: usize) -> io::Result<(Vec<u64>, Vec<u32>)> {
    const ENTRIES: usize = 8192;
    let (mut ends, mut trained) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let mut bytes = vec![0; ENTRIES * INDEX_BYTES];
    let mut end = 0_u64;
    for from in (0..n).step_by(ENTRIES) {
        let bytes = &mut bytes[..(n - from).min(ENTRIES) * INDEX_BYTES];
        file.read_exact_at(bytes, at + (from * INDEX_BYTES) as u64)?;
        for entry in bytes.chunks_exact(INDEX_BYTES) {
            let (n_tokens, n_trained) = entry.split_at(4);
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
            end += u64::from(word(n_tokens));
            ends.push(end);
            trained.push(word(n_trained));
        }
    }
    Ok((ends, trained))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test, in a temporary folder")]
mod tests {
    use super::{Origin, StoreError, StoreWriter, TokenStore};
    use crate::render::Sequence;
    use forgelm_artifact::write;
    use forgelm_sdk::trainer::Role;

    fn sequences() -> Vec<Sequence> {
        (0..40_u32)
            .map(|i| Sequence {
                record: u64::from(i),
                role: [Role::Sole, Role::Chosen, Role::Rejected, Role::Rollout][i as usize % 4],
                tokens: (0..i).map(|t| t * 1000 + i).collect(),
                trained: (0..i).map(|t| (t + i) % 3 == 0).collect(),
            })
            .collect()
    }

    fn write(path: &std::path::Path) {
        write::atomic_with(path, |out| {
            let mut writer = StoreWriter::new(out)?;
            for sequence in &sequences() {
                writer.push(sequence, Origin { file: 3, line: sequence.record + 7 })?;
            }
            writer.finish(&serde_json::json!({"key": "k"}))
        })
        .expect("written");
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.tokens");
        write(&path);
        let store = TokenStore::open(&path).expect("good");
        assert_eq!((store.len(), store.is_empty()), (40, false));
        assert_eq!(store.description()["key"], "k");
        for (i, expected) in sequences().iter().enumerate() {
            let (sequence, origin) = store.read(i, i as u64).expect("read");
            assert_eq!(&sequence, expected);
            assert_eq!(origin, Origin { file: 3, line: i as u64 + 7 });
            assert_eq!(store.n_tokens(i), i);
            assert_eq!(store.n_trained(i), expected.n_trained());
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.tokens");
        write(&path);
        let good = std::fs::read(&path).expect("read");
        for at in (0..good.len()).step_by(37).chain(good.len() - 80..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).expect("written");
            assert!(
                matches!(TokenStore::open(&path), Err(StoreError::Damaged { .. })),
                "byte {at}"
            );
        }
        for n in [0, 8, 71, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..n]).expect("written");
            assert!(
                matches!(TokenStore::open(&path), Err(StoreError::Damaged { .. })),
                "cut at {n}"
            );
        }
        std::fs::write(&path, &good).expect("written");
        assert!(TokenStore::open(&path).is_ok());
    }
}
