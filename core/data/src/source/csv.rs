//! CSV as RFC 4180 has it: a header of column names, commas, and quotes that may hold line ends.

use std::io::Read;
use std::path::{Path, PathBuf};

use forgelm_artifact::jsonl::LINE_BYTES_MAX;
use serde_json::{Map, Value};

use super::{FileRead, Hashed, RawRow, RowReader, Text, io_error};
use crate::problem::{Code, DataError, DataProblem, Place};

/// Columns of a header.
const COLUMNS_MAX: usize = 4096;

/// The rows below the header; every cell is a text, but for `label`, whose `true`, `false`, `1` and `0` are
/// truth values.
pub(super) struct CsvRows {
    path: PathBuf,
    source: Box<dyn Read>,
    hashed: Hashed,
    buffer: Vec<u8>,
    seen: usize,
    /// Line of the byte to come.
    line: u64,
    columns: Vec<String>,
}

/// A record of fields, and the line on which it begins.
struct Fields {
    line: u64,
    cells: Vec<Vec<u8>>,
    /// What is wrong with its quotes.
    wrong: Option<&'static str>,
}

impl CsvRows {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If the header is missing, names a column twice or has an empty name.
    pub fn open(path: &Path, text: Text) -> Result<Self, DataError> {
        let Text { source, hashed } = text;
        let mut rows = CsvRows {
            path: path.to_owned(),
            source,
            hashed,
            buffer: Vec::new(),
            seen: 0,
            line: 1,
            columns: Vec::new(),
        };
        let Some(mut header) = rows.fields()? else { return Ok(rows) };
        if let Some(first) = header.cells.first_mut()
            && first.starts_with(b"\xef\xbb\xbf")
        {
            first.drain(..3);
        }
        let problem = |found: String| {
            let place = Place { file: path, line: header.line };
            DataProblem::row(Code::Csv, &place, "", found, "a header with the columns' names")
        };
        if let Some(what) = header.wrong {
            return Err(problem(what.to_owned()).into());
        }
        if header.cells.len() > COLUMNS_MAX {
            return Err(problem(format!("{} columns", header.cells.len())).into());
        }
        for cell in &header.cells {
            let name = String::from_utf8(cell.clone())
                .map_err(|_| problem("a column's name that is not UTF-8".to_owned()))?;
            let name = name.trim().to_owned();
            if rows.columns.contains(&name) {
                let shown: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
                return Err(problem(format!("two columns of the name `{shown}`")).into());
            }
            rows.columns.push(name);
        }
        Ok(rows)
    }

    /// The next byte; `None` at the end of the file.
    fn byte(&mut self) -> Result<Option<u8>, DataError> {
        const BUFFER_BYTES: usize = 1 << 16;
        if self.seen == self.buffer.len() {
            self.buffer.resize(BUFFER_BYTES, 0);
            let read = self.source.read(&mut self.buffer);
            let n = read.map_err(io_error(&self.path, self.line))?;
            self.buffer.truncate(n);
            self.seen = 0;
            if n == 0 {
                return Ok(None);
            }
        }
        let byte = self.buffer[self.seen];
        self.seen += 1;
        self.line += u64::from(byte == b'\n');
        Ok(Some(byte))
    }

    /// The next record that is not a blank line; `None` at the end of the file.
    fn fields(&mut self) -> Result<Option<Fields>, DataError> {
        loop {
            let line = self.line;
            let Some(fields) = self.fields_or_blank(line)? else { return Ok(None) };
            let is_blank =
                fields.wrong.is_none() && matches!(&fields.cells[..], [only] if only.is_empty());
            if !is_blank {
                return Ok(Some(fields));
            }
        }
    }

    fn fields_or_blank(&mut self, line: u64) -> Result<Option<Fields>, DataError> {
        let mut fields = Fields { line, cells: vec![Vec::new()], wrong: None };
        let mut state = Quote::Before;
        let mut n_bytes = 0;
        loop {
            let byte = match self.byte()? {
                Some(byte) => byte,
                None if n_bytes == 0 => return Ok(None),
                None if state == Quote::Inside => {
                    let place = Place { file: &self.path, line };
                    let found = "a quote that never closes";
                    return Err(
                        DataProblem::row(Code::Csv, &place, "", found, "a closing quote").into()
                    );
                }
                None => b'\n',
            };
            n_bytes += 1;
            if n_bytes > LINE_BYTES_MAX {
                let place = Place { file: &self.path, line };
                let found = format!("a row of more than {LINE_BYTES_MAX} bytes");
                let problem =
                    DataProblem::row(Code::LineLength, &place, "", found, "one row a line");
                return Err(problem.hint("is a quote left open?").into());
            }
            let cell = fields.cells.last_mut().expect("there is one from the beginning");
            state = match (state, byte) {
                (Quote::Inside, b'"') => Quote::MayClose,
                (Quote::Inside, _) => {
                    cell.push(byte);
                    Quote::Inside
                }
                (Quote::MayClose, b'"') => {
                    cell.push(b'"');
                    Quote::Inside
                }
                (_, b',') => {
                    if fields.cells.len() > COLUMNS_MAX {
                        fields.wrong = Some("more cells than a row can have");
                    } else {
                        fields.cells.push(Vec::new());
                    }
                    Quote::Before
                }
                (_, b'\n') => {
                    if state == Quote::Bare && cell.last() == Some(&b'\r') {
                        cell.pop();
                    }
                    return Ok(Some(fields));
                }
                (Quote::MayClose, b'\r') => Quote::MayClose,
                (Quote::MayClose, _) => {
                    fields.wrong = Some("text after a closing quote");
                    Quote::Bare
                }
                (Quote::Before, b'"') => Quote::Inside,
                (Quote::Before | Quote::Bare, _) => {
                    cell.push(byte);
                    Quote::Bare
                }
            };
        }
    }

    fn row(&self, fields: &Fields) -> Result<Value, DataProblem> {
        let place = Place { file: &self.path, line: fields.line };
        let problem = |code, field: &str, found: String, expected: &str| {
            DataProblem::row(code, &place, field, found, expected)
        };
        if let Some(what) = fields.wrong {
            let expected = "a cell that is quoted as a whole";
            return Err(problem(Code::Csv, "", what.to_owned(), expected));
        }
        if fields.cells.len() != self.columns.len() {
            let found = format!("{} cells", fields.cells.len());
            let expected = format!("{}, as the header has", self.columns.len());
            return Err(problem(Code::Csv, "", found, &expected)
                .hint("a text with a comma or a line end needs quotes around it"));
        }
        let mut row = Map::new();
        for (name, cell) in self.columns.iter().zip(&fields.cells) {
            let text = std::str::from_utf8(cell).map_err(|error| {
                let at = error.valid_up_to();
                let found = format!("byte 0x{:02x} at byte {at} of the cell", cell[at]);
                problem(Code::Utf8, name, found, "UTF-8").hint("convert the file to UTF-8")
            })?;
            row.insert(name.clone(), cell_value(name, text.to_owned()));
        }
        Ok(Value::Object(row))
    }
}

/// Where a byte stands with respect to quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    /// At the start of a cell.
    Before,
    /// In a cell without quotes.
    Bare,
    /// Between quotes.
    Inside,
    /// After a quote inside quotes: the end of the cell, or one half of a doubled quote.
    MayClose,
}

fn cell_value(column: &str, text: String) -> Value {
    match (column, text.as_str()) {
        ("label", "true" | "True" | "TRUE" | "1") => Value::Bool(true),
        ("label", "false" | "False" | "FALSE" | "0") => Value::Bool(false),
        _ => Value::String(text),
    }
}

impl RowReader for CsvRows {
    fn next_row(&mut self) -> Result<Option<RawRow>, DataError> {
        let Some(fields) = self.fields()? else { return Ok(None) };
        let line = fields.line;
        Ok(Some(match self.row(&fields) {
            Ok(value) => RawRow::Value { line, value },
            Err(problem) => {
                let text = String::from_utf8_lossy(&fields.cells.join(&b',')).into_owned();
                RawRow::Wrong { problem: Box::new(problem), text }
            }
        }))
    }

    fn finish(self: Box<Self>) -> Result<FileRead, DataError> {
        Ok(self.hashed.finish())
    }
}
