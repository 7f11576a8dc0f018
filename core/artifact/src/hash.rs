//! SHA-256 of bytes, streams and files.

use crate::open::{self, OpenError};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

/// A SHA-256 digest as 64 lowercase hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Hex(String);

impl Sha256Hex {
    /// Reads 64 lowercase hex digits; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// The 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Sha256Hex {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A running SHA-256.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// A hash of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken in.
    #[must_use]
    pub fn finish(self) -> Sha256Hex {
        let digits = self.finish_raw().iter().map(|b| format!("{b:02x}")).collect();
        Sha256Hex(digits)
    }

    /// The digest as 32 bytes.
    #[must_use]
    pub fn finish_raw(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// Passes bytes on, and counts and hashes what was written.
pub struct HashingWriter<'a> {
    w: &'a mut dyn Write,
    hasher: Hasher,
    n_bytes: u64,
}

impl<'a> HashingWriter<'a> {
    /// In front of another writer.
    pub fn new(w: &'a mut dyn Write) -> Self {
        Self { w, hasher: Hasher::new(), n_bytes: 0 }
    }

    /// The digest and number of all bytes that were written.
    #[must_use]
    pub fn finish(self) -> (Sha256Hex, u64) {
        (self.hasher.finish(), self.n_bytes)
    }
}

impl fmt::Debug for HashingWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashingWriter").field("n_bytes", &self.n_bytes).finish_non_exhaustive()
    }
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.w.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.n_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.w.flush()
    }
}

/// The digest of bytes in memory.
#[must_use]
pub fn sha256_bytes(bytes: &[u8]) -> Sha256Hex {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    hasher.finish()
}

/// The digest of everything a reader still has.
///
/// # Errors
/// If reading fails.
pub fn sha256_reader(reader: &mut dyn Read) -> io::Result<Sha256Hex> {
    /// Bytes read at once.
    const AT_ONCE: usize = 1 << 18;
    let mut hasher = Hasher::new();
    // Under a memory ceiling, reading in smaller pieces is slower and all else is the same.
    let (mut large, mut small) = (Vec::new(), [0; 1 << 12]);
    let buffer = match large.try_reserve_exact(AT_ONCE) {
        Ok(()) => {
            large.resize(AT_ONCE, 0);
            large.as_mut_slice()
        }
        Err(_) => &mut small,
    };
    loop {
        match reader.read(buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The digest of a regular file.
///
/// # Errors
/// If the file cannot be read or is not a regular file.
pub fn sha256_file(path: &Path) -> Result<Sha256Hex, OpenError> {
    let (mut file, _) = open::regular(path)?;
    sha256_reader(&mut file).map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::{Sha256Hex, sha256_bytes};

    /// FIPS 180-4's example, "abc".
    #[test]
    fn known_digest() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_bytes(b"abc").as_str(), abc);
        assert_eq!(Sha256Hex::parse(abc), Some(sha256_bytes(b"abc")));
        assert_eq!(Sha256Hex::parse(&abc.to_uppercase()), None);
        assert_eq!(Sha256Hex::parse(&abc[1..]), None);
    }
}
