//! A file that is one JSON array, read element by element.

use std::io::Read;
use std::path::{Path, PathBuf};

use forgelm_artifact::jsonl::LINE_BYTES_MAX;

use super::{FileRead, Hashed, RawRow, RowReader, Text, io_error};
use crate::problem::{Code, DataError, DataProblem, Place};

/// The elements of an array, found by brackets and commas outside of strings, so that each problem has its
/// line, and memory is bounded by the longest element.
pub(super) struct ArrayRows {
    path: PathBuf,
    source: Box<dyn Read>,
    /// Bytes read, and how many of them were looked at.
    buffer: Vec<u8>,
    seen: usize,
    hashed: Hashed,
    scan: Scan,
    /// Bytes of the element being read.
    element: Vec<u8>,
    /// Place at which it began.
    begun: Option<(u64, u64)>,
    /// A comma was read, so that an element must follow.
    after_comma: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Inside,
    After,
}

/// What one byte did.
enum Step {
    Nothing,
    Element,
    Wrong(&'static str),
}

impl ArrayRows {
    pub fn new(path: &Path, text: Text) -> Self {
        let Text { source, hashed } = text;
        ArrayRows {
            path: path.to_owned(),
            source,
            buffer: Vec::new(),
            seen: 0,
            hashed,
            scan: Scan { line: 1, at: 0, depth: 0, in_string: false, escaped: false },
            element: Vec::new(),
            begun: None,
            after_comma: false,
            state: State::Before,
        }
    }

    fn step(&mut self, byte: u8) -> Step {
        let is_blank = byte.is_ascii_whitespace();
        let outside = self.scan.depth == 1 && !self.scan.in_string;
        let mut done = Step::Nothing;
        match (self.state, byte) {
            (State::Before, b'[') => self.state = State::Inside,
            // Only a byte order mark may come first: the format was chosen by what follows it.
            (State::Before, _) | (State::After, _) if is_blank || self.scan.at < 3 => {}
            (State::Before, _) => return Step::Wrong("text before the array"),
            (State::After, _) => return Step::Wrong("text after the end of the array"),
            (State::Inside, b',') if outside => {
                if self.begun.is_none() {
                    return Step::Wrong("a comma without a row before it");
                }
                self.after_comma = true;
                done = Step::Element;
            }
            (State::Inside, b']') if outside => {
                if self.begun.is_none() && self.after_comma {
                    return Step::Wrong("a comma without a row after it");
                }
                self.state = State::After;
                done = if self.begun.is_some() { Step::Element } else { Step::Nothing };
            }
            (State::Inside, _) if self.begun.is_some() => self.element.push(byte),
            (State::Inside, _) if is_blank => {}
            (State::Inside, _) => {
                self.begun = Some((self.scan.line, self.scan.at));
                self.after_comma = false;
                self.element.push(byte);
            }
        }
        self.scan.step(byte);
        done
    }

    /// Reads on; false at the end of the file.
    fn fill(&mut self) -> Result<bool, DataError> {
        const BUFFER_BYTES: usize = 1 << 16;
        self.buffer.resize(BUFFER_BYTES, 0);
        let read = self.source.read(&mut self.buffer);
        let n = read.map_err(io_error(&self.path, self.scan.line))?;
        self.buffer.truncate(n);
        self.seen = 0;
        Ok(n > 0)
    }

    fn wrong(&self, what: &str) -> DataError {
        let found = format!("{what} at byte {} of the file", self.scan.at);
        let place = Place { file: &self.path, line: self.scan.line };
        DataProblem::row(Code::Json, &place, "", found, "an array of JSON objects").into()
    }

    /// The element that has ended.
    fn take(&mut self) -> RawRow {
        let (line, offset) = self.begun.take().unwrap_or((self.scan.line, self.scan.at));
        let mut bytes = std::mem::take(&mut self.element);
        bytes.truncate(bytes.trim_ascii_end().len());
        match String::from_utf8(bytes) {
            Ok(text) => RawRow::Text { line, offset, text },
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let bytes = error.as_bytes();
                let line = line + bytes[..at].iter().filter(|&&b| b == b'\n').count() as u64;
                let found =
                    format!("byte 0x{:02x} at byte {} of the file", bytes[at], offset + at as u64);
                let place = Place { file: &self.path, line };
                let problem = DataProblem::row(Code::Utf8, &place, "", found, "UTF-8");
                let problem = Box::new(problem.hint("convert the file to UTF-8"));
                RawRow::Wrong { problem, text: String::from_utf8_lossy(bytes).into_owned() }
            }
        }
    }

    fn too_long(&self) -> DataError {
        let line = self.begun.map_or(self.scan.line, |(line, _)| line);
        let place = Place { file: &self.path, line };
        let found = format!("a row of more than {LINE_BYTES_MAX} bytes");
        let expected = format!("at most {LINE_BYTES_MAX}");
        DataProblem::row(Code::LineLength, &place, "", found, expected).into()
    }
}

impl RowReader for ArrayRows {
    fn next_row(&mut self) -> Result<Option<RawRow>, DataError> {
        loop {
            if self.seen == self.buffer.len() && !self.fill()? {
                return match self.state {
                    State::After => Ok(None),
                    _ => Err(self.wrong("the end of the file inside the array")),
                };
            }
            let byte = self.buffer[self.seen];
            self.seen += 1;
            match self.step(byte) {
                Step::Nothing => {}
                Step::Wrong(what) => return Err(self.wrong(what)),
                Step::Element => return Ok(Some(self.take())),
            }
            if self.element.len() > LINE_BYTES_MAX {
                return Err(self.too_long());
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<FileRead, DataError> {
        Ok(self.hashed.finish())
    }
}

/// The state of a scan over JSON text.
struct Scan {
    line: u64,
    at: u64,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    fn step(&mut self, byte: u8) {
        self.at += 1;
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
            b'[' | b'{' => self.depth = self.depth.saturating_add(1),
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}
