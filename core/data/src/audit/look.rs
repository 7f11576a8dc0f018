//! One row, looked at by itself: on any thread.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use forgelm_artifact::json::parse_unique;
use forgelm_privacy::{PiiKind, SecretKind, detect_pii, detect_secrets};
use serde_json::Value;

use super::payload;
use super::prints::{Maker, Print};
use super::quality::{self, QualityFlag};
use crate::problem::Code;
use crate::source::RawRow;

/// What is kept of a row.
#[derive(Debug)]
pub(super) struct Looked {
    pub line: u64,
    /// Bytes that are not UTF-8.
    pub is_undecoded: bool,
    pub pii: BTreeMap<PiiKind, u64>,
    pub secrets: BTreeMap<SecretKind, u64>,
    /// `None` if it is no JSON.
    pub sample: Option<Sample>,
}

/// A row that is JSON.
#[derive(Debug)]
pub(super) struct Sample {
    /// Names of its columns; `None` if it is no object.
    pub columns: Option<Vec<String>>,
    /// What is known of its text, if it has one.
    pub text: Option<TextFacts>,
}

/// What is kept of a text.
#[derive(Debug)]
pub(super) struct TextFacts {
    /// Characters.
    pub len: u64,
    pub print: Print,
    pub flags: Vec<QualityFlag>,
}

pub(super) fn look(path: &Path, row: &RawRow, maker: &Maker, judges_quality: bool) -> Looked {
    let mut looked = Looked {
        line: 1,
        is_undecoded: false,
        pii: BTreeMap::new(),
        secrets: BTreeMap::new(),
        sample: None,
    };
    let value = match row {
        RawRow::Wrong { problem, text } => {
            looked.line = problem.line.unwrap_or(1);
            looked.is_undecoded = problem.code == Code::Utf8;
            // With U+FFFD in place of those bytes it may still be a row.
            let lossy = looked.is_undecoded.then(|| parse_unique(text.as_bytes()).ok()).flatten();
            lossy.map(Cow::Owned).ok_or(text)
        }
        RawRow::Text { line, text, .. } => {
            looked.line = *line;
            row.parse(path).map(|row| row.value).map_err(|_| text)
        }
        RawRow::Value { line, value } => {
            looked.line = *line;
            Ok(Cow::Borrowed(value))
        }
    };
    match value {
        // Nobody can train on it as it is, but it is in the file.
        Err(text) => looked.search(text),
        Ok(value) => {
            payload::each_string(&value, &mut |text| looked.search(text));
            looked.sample = Some(sample(value.into_owned(), maker, judges_quality));
        }
    }
    looked
}

impl Looked {
    fn search(&mut self, text: &str) {
        for found in detect_pii(text) {
            *self.pii.entry(found.kind).or_default() += 1;
        }
        for found in detect_secrets(text) {
            *self.secrets.entry(found.kind).or_default() += 1;
        }
    }
}

fn sample(value: Value, maker: &Maker, judges_quality: bool) -> Sample {
    let Value::Object(map) = value else { return Sample { columns: None, text: None } };
    let text = payload::text_of(&map).map(|text| TextFacts {
        len: text.chars().count() as u64,
        print: maker.print(&text),
        flags: if judges_quality { quality::flags(&text) } else { Vec::new() },
    });
    Sample { columns: Some(map.into_iter().map(|(name, _)| name).collect()), text }
}
