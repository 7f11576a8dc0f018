//! JSON lines, and the text of one row as JSON.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use forgelm_artifact::json::parse_unique;
use forgelm_artifact::jsonl::{JsonlError, Reader};
use serde_json::Value;

use super::{FileRead, Hashed, RawRow, RowReader, Text, io_error};
use crate::problem::{Code, DataError, DataProblem, Place};

/// A row that is JSON, with its text, from which places inside the row are found.
pub(crate) struct Row<'a> {
    pub place: Place<'a>,
    /// Byte of the file at which the text begins.
    pub offset: u64,
    /// Empty for a row that never was JSON text.
    pub text: &'a str,
    pub value: Cow<'a, Value>,
}

/// The rows of a file of JSON lines.
pub(super) struct LineRows {
    path: PathBuf,
    reader: Reader<Box<dyn Read>>,
    hashed: Hashed,
}

impl LineRows {
    pub fn new(path: &Path, text: Text) -> Self {
        let Text { source, hashed } = text;
        LineRows { path: path.to_owned(), reader: Reader::new(path, source), hashed }
    }
}

impl RowReader for LineRows {
    fn next_row(&mut self) -> Result<Option<RawRow>, DataError> {
        Ok(match self.reader.next_line() {
            None => None,
            Some(Ok(line)) => Some(RawRow::Text {
                line: line.number,
                offset: line.offset,
                text: line.text.to_owned(),
            }),
            Some(Err(JsonlError::Io { line, source, .. })) => {
                return Err(io_error(&self.path, line)(source));
            }
            Some(Err(error @ JsonlError::Open(_))) => return Err(error.into()),
            // Nothing more is read after such a line, so the row cannot be skipped.
            Some(Err(error @ JsonlError::LineTooLong { .. })) => {
                return Err(line_problem(&self.path, &error).into());
            }
            Some(Err(error)) => {
                let problem = Box::new(line_problem(&self.path, &error));
                let text = String::from_utf8_lossy(self.reader.last_line()).trim().to_owned();
                Some(RawRow::Wrong { problem, text })
            }
        })
    }

    fn finish(self: Box<Self>) -> Result<FileRead, DataError> {
        Ok(self.hashed.finish())
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
pub(super) fn parse<'a>(
    place: Place<'a>,
    offset: u64,
    text: &'a str,
) -> Result<Row<'a>, DataProblem> {
    match parse_unique(text.as_bytes()) {
        Ok(value) => Ok(Row { place, offset, text, value: Cow::Owned(value) }),
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

/// True for a file that begins with `[`: one array of rows, not a row a line.
pub(super) fn is_array(path: &Path, text: &mut Text) -> Result<bool, DataError> {
    let head = text.peek(4096).map_err(io_error(path, 1))?;
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
    Ok(head.trim_ascii_start().first() == Some(&b'['))
}
