//! Data files as rows, read as a stream: the format comes from the file's name.

mod array;
mod csv;
mod lines;
mod packed;
mod parquet;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use forgelm_artifact::hash::{Hasher, Sha256Hex};
use forgelm_artifact::jsonl::JsonlError;
use forgelm_artifact::open::{self, OpenError};
use serde_json::Value;

use crate::problem::{Code, DataError, DataProblem, Place};
pub(crate) use lines::Row;
use packed::Packing;

/// What a name says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jsonl,
    /// A row a line, or one array.
    Json,
    Csv,
    Parquet,
}

/// The format of a data file, from its name; `None` if the name says none that is read.
fn format_of(path: &Path) -> Option<(Format, Packing)> {
    let lower = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    let mut extension = lower(path)?;
    let packing = Packing::of_extension(&extension);
    if packing != Packing::Plain {
        extension = lower(Path::new(path.file_stem()?))?;
    }
    match (extension.as_str(), packing) {
        ("jsonl", _) => Some((Format::Jsonl, packing)),
        ("json", _) => Some((Format::Json, packing)),
        ("csv", _) => Some((Format::Csv, packing)),
        // Compresses itself, and is read from its end.
        ("parquet", Packing::Plain) => Some((Format::Parquet, packing)),
        _ => None,
    }
}

/// True if the name says a format that is read.
pub(crate) fn is_data_file(path: &Path) -> bool {
    format_of(path).is_some()
}

/// A row as its file has it.
pub(crate) enum RawRow {
    /// The text of one JSON value, not parsed yet.
    Text {
        /// Line on which it begins, from 1.
        line: u64,
        /// Byte of the file at which it begins.
        offset: u64,
        /// The text.
        text: String,
    },
    /// A row of columns.
    Value {
        /// Line, or number of the row in a file without lines, from 1.
        line: u64,
        /// An object.
        value: Value,
    },
    /// What is there instead of a row.
    Wrong {
        /// What is wrong with it.
        problem: Box<DataProblem>,
        /// Its text, with U+FFFD for what is no character: for those who look for what may not be
        /// in a file, whether or not a run could use it.
        text: String,
    },
}

impl RawRow {
    /// Bytes that it holds, for bounding a batch.
    pub fn n_bytes(&self) -> usize {
        match self {
            RawRow::Text { text, .. } => text.len(),
            RawRow::Value { value, .. } => value_bytes(value),
            RawRow::Wrong { text, .. } => text.len() + 64,
        }
    }

    /// The row, parsed.
    pub fn parse<'a>(&'a self, file: &'a Path) -> Result<Row<'a>, Box<DataProblem>> {
        match self {
            RawRow::Text { line, offset, text } => {
                lines::parse(Place { file, line: *line }, *offset, text).map_err(Box::new)
            }
            RawRow::Value { line, value } => {
                let place = Place { file, line: *line };
                Ok(Row { place, offset: 0, text: "", value: std::borrow::Cow::Borrowed(value) })
            }
            RawRow::Wrong { problem, .. } => Err(problem.clone()),
        }
    }
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 32,
        Value::Array(items) => items.iter().map(value_bytes).sum::<usize>() + 32,
        Value::Object(map) => {
            map.iter().map(|(key, value)| key.len() + 64 + value_bytes(value)).sum::<usize>()
        }
        _ => 32,
    }
}

/// What a file was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRead {
    pub sha256: Sha256Hex,
    pub n_bytes: u64,
}

/// The rows of a file, in order.
pub(crate) trait RowReader {
    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// When nothing more can be read; a row that is wrong is a row here.
    fn next_row(&mut self) -> Result<Option<RawRow>, DataError>;

    /// What was read, once the end was reached.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    fn finish(self: Box<Self>) -> Result<FileRead, DataError>;
}

/// Opens a data file.
///
/// # Errors
/// If it cannot be opened, is not a regular file, or its format is not known or not readable.
pub(crate) fn open_rows(path: &Path) -> Result<Box<dyn RowReader>, DataError> {
    let (file, _) = open::regular(path).map_err(|error| open_problem(path, error))?;
    let (format, packing) = format_of(path).unwrap_or((Format::Jsonl, Packing::Plain));
    if format == Format::Parquet {
        return Ok(Box::new(parquet::ParquetRows::open(path, file)?));
    }
    let mut text = Text::new(file, packing);
    Ok(match format {
        Format::Csv => Box::new(csv::CsvRows::open(path, text)?),
        Format::Json if lines::is_array(path, &mut text)? => {
            Box::new(array::ArrayRows::new(path, text))
        }
        Format::Jsonl | Format::Json | Format::Parquet => {
            Box::new(lines::LineRows::new(path, text))
        }
    })
}

/// The text of a file, decompressed, and the digest of the file.
struct Text {
    source: Box<dyn Read>,
    hashed: Hashed,
}

impl Text {
    fn new(file: File, packing: Packing) -> Text {
        let state = Rc::new(RefCell::new(State::default()));
        let file = Hashing { file, state: Rc::clone(&state) };
        Text { source: packing.unpack(file, &state), hashed: Hashed(state) }
    }

    /// The first bytes, which are still to be read afterwards.
    fn peek(&mut self, n: u64) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        self.source.by_ref().take(n).read_to_end(&mut head)?;
        let rest = std::mem::replace(&mut self.source, Box::new(io::empty()));
        self.source = Box::new(io::Cursor::new(head.clone()).chain(rest));
        Ok(head)
    }
}

/// What was read is what is hashed: the file may change between two readings.
struct Hashing {
    file: File,
    state: Rc<RefCell<State>>,
}

/// What was read of a file.
#[derive(Default)]
struct State {
    hasher: Hasher,
    n_bytes: u64,
    /// Whether the system failed.
    has_failed: bool,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer);
        let mut state = self.state.borrow_mut();
        match &read {
            Ok(n) => {
                state.hasher.update(&buffer[..*n]);
                state.n_bytes += *n as u64;
            }
            Err(_) => state.has_failed = true,
        }
        read
    }
}

/// The digest of what a [`Hashing`] has read.
struct Hashed(Rc<RefCell<State>>);

impl Hashed {
    fn finish(&self) -> FileRead {
        let state = self.0.borrow();
        FileRead { sha256: state.hasher.clone().finish(), n_bytes: state.n_bytes }
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

fn io_error(path: &Path, line: u64) -> impl Fn(io::Error) -> DataError {
    move |source| match packed::problem(path, &source) {
        Some(problem) => problem.into(),
        None => JsonlError::Io { path: path.to_owned(), line, source }.into(),
    }
}
