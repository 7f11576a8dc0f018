//! Files of JSON, one value a line, read as a stream.

use crate::Class;
use crate::json::{JsonError, parse_unique};
use crate::open::{self, OpenError};
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line read unless the caller says otherwise: 16 MiB.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Why a line could not be read. Lines count from 1, bytes from 0.
#[derive(Debug, thiserror::Error)]
pub enum JsonlError {
    /// The file cannot be opened or is not a regular file.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading failed on the way.
    #[error("{}:{line}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Line being read.
        line: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line above the cap.
    #[error("{}:{line}: the line (from byte {offset}) is longer than {n_bytes_max} bytes\n  \
             hint: a row is one line; is this file JSON with one row a line?", .path.display())]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// Line number.
        line: u64,
        /// Byte at which the line begins.
        offset: u64,
        /// The cap.
        n_bytes_max: usize,
    },
    /// Bytes that are not UTF-8.
    #[error("{}:{line}: invalid UTF-8 at byte {offset} of the file (0x{byte:02x})\n  \
             hint: convert the file to UTF-8", .path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Line number.
        line: u64,
        /// The first byte that fits no character.
        offset: u64,
        /// Its value.
        byte: u8,
    },
    /// A NUL byte, which no text has.
    #[error("{}:{line}: NUL at byte {offset} of the file; expected text", .path.display())]
    Nul {
        /// The file.
        path: PathBuf,
        /// Line number.
        line: u64,
        /// Where.
        offset: u64,
    },
    /// A line that is not JSON.
    #[error("{}:{line}: not JSON: {what}, at byte {offset} of the file", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line number.
        line: u64,
        /// Byte of the file at which reading stopped.
        offset: u64,
        /// What the parser says.
        what: String,
    },
}

impl JsonlError {
    /// Which exit code this belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Open(e) => e.class(),
            Self::Io { .. } => Class::Runtime,
            Self::LineTooLong { .. } | Self::Utf8 { .. } | Self::Nul { .. } | Self::Json { .. } => {
                Class::Input
            }
        }
    }
}

/// One line that is not blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The file.
    pub path: &'a Path,
    /// 1-based number, counting blank lines too.
    pub number: u64,
    /// Byte of the file at which it begins.
    pub offset: u64,
    /// Its text, without the line end.
    pub text: &'a str,
}

impl Line<'_> {
    /// The line as JSON.
    ///
    /// # Errors
    /// If it is not exactly one JSON value, has a key twice, or an escaped lone surrogate.
    pub fn json(&self) -> Result<Value, JsonlError> {
        parse_unique(self.text.as_bytes()).map_err(|error: JsonError| JsonlError::Json {
            path: self.path.to_owned(),
            line: self.number,
            offset: self.offset + error.column().saturating_sub(1) as u64,
            what: error.what(),
        })
    }
}

/// Reads lines in order, in memory bounded by the longest line allowed.
///
/// Blank lines are passed over, line ends may be `\n` or `\r\n`, the last line needs none, and a
/// byte order mark at the very beginning is dropped.
#[derive(Debug)]
pub struct Reader<R = File> {
    path: PathBuf,
    source: BufReader<R>,
    n_bytes_max: usize,
    line: Vec<u8>,
    /// Number and first byte of the line to come.
    number: u64,
    offset: u64,
}

impl Reader<File> {
    /// Opens a regular file. Never blocks on a named pipe or a device.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn open(path: &Path) -> Result<Self, JsonlError> {
        let (file, _) = open::regular(path)?;
        Ok(Self::new(path, file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads from any source; `path` is for messages.
    pub fn new(path: &Path, source: R) -> Self {
        Self {
            path: path.to_owned(),
            source: BufReader::with_capacity(1 << 16, source),
            n_bytes_max: LINE_BYTES_MAX,
            line: Vec::new(),
            number: 1,
            offset: 0,
        }
    }

    /// With another cap on the length of a line.
    #[must_use]
    pub fn with_line_bytes_max(mut self, n_bytes_max: usize) -> Self {
        self.n_bytes_max = n_bytes_max;
        self
    }

    /// The next line that is not blank; `None` at the end. After an error in a line's text the
    /// next call goes on with the next line; after [`JsonlError::LineTooLong`] or
    /// [`JsonlError::Io`] there is nothing more to read.
    pub fn next_line(&mut self) -> Option<Result<Line<'_>, JsonlError>> {
        let (number, offset) = loop {
            let (number, offset) = (self.number, self.offset);
            match self.read_raw() {
                Err(error) => return Some(Err(error)),
                Ok(false) => return None,
                Ok(true) if self.text_range().is_empty() => {}
                Ok(true) => break (number, offset),
            }
        };
        let text = self.text_range();
        let offset = offset + text.start as u64;
        Some(self.checked(number, offset, text))
    }

    /// The bytes of the line that was read last, also when its text was wrong.
    #[must_use]
    pub fn last_line(&self) -> &[u8] {
        &self.line
    }

    /// Reads one line with its end into `self.line`; false at the end of the file.
    fn read_raw(&mut self) -> Result<bool, JsonlError> {
        self.line.clear();
        let limit = self.n_bytes_max as u64 + 2;
        let read = self.source.by_ref().take(limit).read_until(b'\n', &mut self.line);
        let (path, line) = (&self.path, self.number);
        let n = read.map_err(|source| JsonlError::Io { path: path.clone(), line, source })?;
        let n_text = self.line.strip_suffix(b"\n").unwrap_or(&self.line).len();
        if n_text > self.n_bytes_max {
            let (offset, n_bytes_max) = (self.offset, self.n_bytes_max);
            return Err(JsonlError::LineTooLong { path: path.clone(), line, offset, n_bytes_max });
        }
        self.number += 1;
        self.offset += n as u64;
        Ok(n > 0)
    }

    /// Where the text of `self.line` is: without line end, byte order mark and blanks around.
    fn text_range(&self) -> std::ops::Range<usize> {
        let is_first = self.number == 2;
        let bom = if is_first && self.line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let text = &self.line[bom..];
        let start = bom + text.len() - text.trim_ascii_start().len();
        start..start + text.trim_ascii().len()
    }

    fn checked(
        &self,
        number: u64,
        offset: u64,
        range: std::ops::Range<usize>,
    ) -> Result<Line<'_>, JsonlError> {
        let bytes = &self.line[range];
        let path = || self.path.clone();
        let text = std::str::from_utf8(bytes).map_err(|e| JsonlError::Utf8 {
            path: path(),
            line: number,
            offset: offset + e.valid_up_to() as u64,
            byte: bytes[e.valid_up_to()],
        })?;
        if let Some(at) = bytes.iter().position(|&b| b == 0) {
            return Err(JsonlError::Nul { path: path(), line: number, offset: offset + at as u64 });
        }
        Ok(Line { path: &self.path, number, offset, text })
    }
}
