//! A data file as rows: JSON values with the place each came from.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::Path;

use forgelm_artifact::hash::{Hasher, Sha256Hex};
use forgelm_artifact::json::parse_unique;
use forgelm_artifact::jsonl::{JsonlError, LINE_BYTES_MAX, Reader};
use forgelm_artifact::open::{self, OpenError};
use serde_json::Value;

use crate::problem::{Code, DataError, DataProblem, Place};

/// A `.json` file with one array is read at once, so it is capped.
const ARRAY_BYTES_MAX: u64 = 1 << 30;

/// What a file was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRead {
    pub sha256: Sha256Hex,
    pub n_bytes: u64,
}

/// A row that is JSON, with its text, from which places inside the row are found.
pub(crate) struct Row<'a> {
    pub place: Place<'a>,
    /// Byte of the file at which the text begins.
    pub offset: u64,
    pub text: &'a str,
    pub value: Value,
}

/// Reads all rows of a file and hands each, or what is wrong with it, to `each`.
///
/// # Errors
/// When nothing more can be read; rows that are wrong are not errors here.
pub(crate) fn read_rows(
    path: &Path,
    each: &mut dyn FnMut(Result<Row<'_>, DataProblem>),
) -> Result<FileRead, DataError> {
    let (mut file, metadata) = open::regular(path).map_err(|error| open_problem(path, error))?;
    if is_array(path, &mut file)? {
        return read_array(path, file, metadata.len(), each);
    }
    let mut hashing = Hashing { inner: file, hasher: Hasher::new(), n_bytes: 0 };
    let mut reader = Reader::new(path, &mut hashing);
    while let Some(line) = reader.next_line() {
        match line {
            Ok(line) => {
                each(parse(Place { file: path, line: line.number }, line.offset, line.text))
            }
            Err(error @ (JsonlError::Open(_) | JsonlError::Io { .. })) => return Err(error.into()),
            // Nothing more is read after such a line, so the row cannot be skipped.
            Err(error @ JsonlError::LineTooLong { .. }) => {
                return Err(line_problem(path, &error).into());
            }
            Err(error) => each(Err(line_problem(path, &error))),
        }
    }
    drop(reader);
    Ok(FileRead { n_bytes: hashing.n_bytes, sha256: hashing.hasher.finish() })
}

/// What was read is what is hashed: the file may change between two readings.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    n_bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.n_bytes += n as u64;
        Ok(n)
    }
}

fn open_problem(path: &Path, error: OpenError) -> DataError {
    match error {
        OpenError::NotAFile { kind, .. } => {
            DataProblem::file(Code::FileKind, path, format!("is a {kind}"), "a regular file").into()
        }
        OpenError::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
            DataProblem::file(Code::File, path, "does not exist", "a data file").into()
        }
        error => error.into(),
    }
}

/// The reader's errors in the words of this crate.
fn line_problem(path: &Path, error: &JsonlError) -> DataProblem {
    let problem = |code, line: u64, found: String, expected: &str| {
        DataProblem::row(code, &Place { file: path, line }, "", found, expected)
    };
    match error {
        JsonlError::LineTooLong { line, offset, n_bytes_max, .. } => problem(
            Code::LineLength,
            *line,
            format!("the line that begins at byte {offset} is longer than {n_bytes_max} bytes"),
            "one row a line",
        ),
        JsonlError::Utf8 { line, offset, byte, .. } => problem(
            Code::Utf8,
            *line,
            format!("byte 0x{byte:02x} at byte {offset} of the file"),
            "UTF-8",
        )
        .hint("convert the file to UTF-8"),
        JsonlError::Nul { line, offset, .. } => {
            problem(Code::Nul, *line, format!("NUL at byte {offset} of the file"), "text")
        }
        JsonlError::Json { line, offset, what, .. } => problem(
            Code::Json,
            *line,
            format!("{what} at byte {offset} of the file"),
            "one JSON object",
        ),
        JsonlError::Open(_) | JsonlError::Io { .. } => {
            problem(Code::File, 1, error.to_string(), "a file")
        }
    }
}

/// A row's text as JSON.
fn parse<'a>(place: Place<'a>, offset: u64, text: &'a str) -> Result<Row<'a>, DataProblem> {
    match parse_unique(text.as_bytes()) {
        Ok(value) => Ok(Row { place, offset, text, value }),
        Err(error) => {
            if let Some(at) = lone_surrogate(text) {
                let found = format!(
                    "half of a surrogate pair (`{}`) at byte {} of the file",
                    &text[at..at + 6],
                    offset + at as u64
                );
                return Err(DataProblem::row(
                    Code::Surrogate,
                    &place,
                    "",
                    found,
                    "whole characters",
                ));
            }
            // The parser counts lines inside a row of several lines, and columns from 1.
            let lines_before: usize =
                text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
            let at = offset + (lines_before + error.column().saturating_sub(1)) as u64;
            let found = format!("{} at byte {at} of the file", error.what());
            Err(DataProblem::row(Code::Json, &place, "", found, "one JSON object"))
        }
    }
}

/// Where an escaped surrogate stands without its other half.
pub(crate) fn lone_surrogate(text: &str) -> Option<usize> {
    let unit = |at: usize| {
        let escape = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(escape, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => return Some(at),
            Some(_) => at += 6,
            // Any other escape is a backslash and one character.
            None => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    None
}

/// True for a `.json` file that begins with `[`: one array of rows, not a row a line.
fn is_array(path: &Path, file: &mut File) -> Result<bool, DataError> {
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("json")) {
        return Ok(false);
    }
    let io_error = |source| JsonlError::Io { path: path.to_owned(), line: 1, source };
    let mut head = Vec::new();
    file.by_ref().take(4096).read_to_end(&mut head).map_err(io_error)?;
    file.rewind().map_err(io_error)?;
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    Ok(head.trim_ascii_start().first() == Some(&b'['))
}

/// Reads one array: its elements are found by their brackets and parsed one by one, so that each problem has
/// its line.
fn read_array(
    path: &Path,
    file: File,
    n_bytes: u64,
    each: &mut dyn FnMut(Result<Row<'_>, DataProblem>),
) -> Result<FileRead, DataError> {
    if n_bytes > ARRAY_BYTES_MAX {
        let found = format!("an array of {n_bytes} bytes");
        let problem =
            DataProblem::file(Code::LineLength, path, found, format!("at most {ARRAY_BYTES_MAX}"));
        return Err(problem.hint("write one row a line, as `.jsonl`").into());
    }
    let io_error = |source| JsonlError::Io { path: path.to_owned(), line: 1, source };
    let mut hashing = Hashing { inner: file, hasher: Hasher::new(), n_bytes: 0 };
    let mut bytes = Vec::new();
    // Not above the cap even if the file grows meanwhile.
    hashing.by_ref().take(ARRAY_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let at = e.valid_up_to();
        let line = 1 + bytes[..at].iter().filter(|&&b| b == b'\n').count() as u64;
        let found = format!("byte 0x{:02x} at byte {at} of the file", bytes[at]);
        DataProblem::row(Code::Utf8, &Place { file: path, line }, "", found, "UTF-8")
    })?;
    for element in elements(path, text)? {
        let place = Place { file: path, line: element.line };
        if element.len > LINE_BYTES_MAX {
            let found = format!("a row of {} bytes", element.len);
            return Err(DataProblem::row(
                Code::LineLength,
                &place,
                "",
                found,
                format!("at most {LINE_BYTES_MAX}"),
            )
            .into());
        }
        each(parse(place, element.start as u64, &text[element.start..element.start + element.len]));
    }
    Ok(FileRead { n_bytes: hashing.n_bytes, sha256: hashing.hasher.finish() })
}

/// Where an element of an array is.
struct Element {
    start: usize,
    len: usize,
    line: u64,
}

/// The elements of an array, by brackets and commas outside of strings.
fn elements(path: &Path, text: &str) -> Result<Vec<Element>, DataProblem> {
    let mut found = Vec::new();
    let mut scan = Scan { line: 1, depth: 0, in_string: false, escaped: false };
    let mut start: Option<(usize, u64)> = None;
    let mut closed_at = None;
    let problem = |at: usize, line: u64, what: &str| {
        let found = format!("{what} at byte {at} of the file");
        DataProblem::row(
            Code::Json,
            &Place { file: path, line },
            "",
            found,
            "an array of JSON objects",
        )
    };
    let mut push = |start: Option<(usize, u64)>, end: usize| {
        if let Some((start, line)) = start {
            found.push(Element { start, len: text[start..end].trim_end().len(), line });
        }
    };
    for (at, byte) in text.bytes().enumerate() {
        if scan.line == 1 && at < 3 && text.starts_with('\u{feff}') {
            continue;
        }
        if closed_at.is_some() && !byte.is_ascii_whitespace() {
            return Err(problem(at, scan.line, "text after the end of the array"));
        }
        let outside = scan.depth == 1 && !scan.in_string;
        match byte {
            b',' if outside => push(start.take(), at),
            b']' if outside => {
                push(start.take(), at);
                closed_at = Some(at);
            }
            b'[' if scan.depth == 0 => {}
            byte if scan.depth >= 1 && start.is_none() && !byte.is_ascii_whitespace() => {
                start = Some((at, scan.line));
            }
            _ => {}
        }
        scan.step(byte);
    }
    match closed_at {
        Some(_) => Ok(found),
        None => Err(problem(text.len(), scan.line, "the end of the file inside the array")),
    }
}

/// The state of a scan over JSON text.
struct Scan {
    line: u64,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    fn step(&mut self, byte: u8) {
        self.line += u64::from(byte == b'\n');
        if self.in_string {
            match (self.escaped, byte) {
                (true, _) => self.escaped = false,
                (false, b'\\') => self.escaped = true,
                (false, b'"') => self.in_string = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}
