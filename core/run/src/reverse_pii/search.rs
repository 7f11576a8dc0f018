//! Lines of a file that match, each with a piece of it.
//!
//! A line is searched as it is written and, where it is JSON with escapes, as its texts are meant.

use super::ReversePiiError;
use super::pattern::Pattern;
use forgelm_artifact::open::{self, OpenError};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::ops::Range;
use std::path::Path;

/// Longest line that is searched.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// Longest snippet, in characters, with its marks.
const SNIPPET_CHARS_MAX: usize = 160;

/// A line with a match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The line, from 1.
    pub line: u64,
    /// The match and what stands around it; empty where that is not to be shown.
    pub snippet: String,
}

/// Refuses a file whose text is packed, before any file is searched.
pub fn check_readable(path: &Path) -> Result<(), ReversePiiError> {
    let (file, _) = open::regular(path)?;
    let mut magic = Vec::new();
    let read = file.take(4).read_to_end(&mut magic);
    read.map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    let what = match magic.as_slice() {
        [0x1f, 0x8b, ..] => "compressed (gzip)",
        [0x28, 0xb5, 0x2f, 0xfd] => "compressed (zstd)",
        b"PAR1" => "a Parquet file",
        b"PK\x03\x04" => "a zip file",
        _ => return Ok(()),
    };
    Err(ReversePiiError::Packed { path: path.to_owned(), what })
}

/// Every line of a file that matches, once.
pub fn matches(
    path: &Path,
    pattern: &Pattern,
    has_snippets: bool,
) -> Result<Vec<Match>, ReversePiiError> {
    let io = |source| ReversePiiError::Open(OpenError::Io { path: path.to_owned(), source });
    let (file, _) = open::regular(path)?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut found, mut bytes) = (Vec::new(), Vec::new());
    for line in 1.. {
        bytes.clear();
        let limited = (&mut reader).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
        let n_read = limited.map_err(io)? as u64;
        if n_read == 0 {
            break;
        }
        if n_read > LINE_BYTES_MAX {
            let path = path.to_owned();
            return Err(ReversePiiError::Line { path, line, n_bytes_max: LINE_BYTES_MAX });
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end_matches(['\n', '\r']);
        if let Some(piece) = piece(text, pattern) {
            let snippet = if has_snippets { piece } else { String::new() };
            found.push(Match { line, snippet });
        }
    }
    Ok(found)
}

/// The snippet of the first match in a line.
fn piece(text: &str, pattern: &Pattern) -> Option<String> {
    if let Some(at) = pattern.find(text) {
        return Some(snippet(text, at));
    }
    if !text.contains('\\') {
        return None;
    }
    in_value(&serde_json::from_str(text).ok()?, pattern)
}

fn in_value(value: &Value, pattern: &Pattern) -> Option<String> {
    let in_text = |text: &str| pattern.find(text).map(|at| snippet(text, at));
    match value {
        Value::String(text) => in_text(text),
        Value::Array(items) => items.iter().find_map(|item| in_value(item, pattern)),
        Value::Object(members) => {
            let mut members = members.iter();
            members.find_map(|(key, value)| in_text(key).or_else(|| in_value(value, pattern)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// At most [`SNIPPET_CHARS_MAX`] characters with the match in their middle; `…` where text is left out.
fn snippet(text: &str, at: Range<usize>) -> String {
    let n_match = text[at.clone()].chars().count();
    let around = SNIPPET_CHARS_MAX.saturating_sub(2 + n_match);
    let before: Vec<char> = text[..at.start].chars().rev().take(around / 2).collect();
    let before: String = before.into_iter().rev().collect();
    let after: String = text[at.end..].chars().take(around - around / 2).collect();
    let matched: String = text[at.clone()].chars().take(SNIPPET_CHARS_MAX - 2).collect();
    let start = if before.len() < at.start { "…" } else { "" };
    let is_whole = matched.len() == at.len() && at.end + after.len() == text.len();
    let end = if is_whole { "" } else { "…" };
    // A line of a terminal, whatever the text holds.
    let shown = format!("{start}{before}{matched}{after}{end}");
    shown.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::{Match, matches, snippet};
    use crate::reverse_pii::IdentifierKind;
    use crate::reverse_pii::pattern::Pattern;
    use forgelm_artifact::write;

    #[test]
    fn a_text_is_found_as_it_is_written_and_as_it_is_meant() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rows.jsonl");
        let rows = "{\"a\": \"M\\u00fcller\"}\nM\u{fc}ller M\u{fc}ller\r\n{\"x\": [{\"M\\u00fcller\": 1}]}\n\\u00fc\n\nM\u{fc}ller";
        write::atomic(&path, &[rows.as_bytes(), b" \xff"].concat()).expect("written");
        let pattern = Pattern::of(IdentifierKind::Literal, "Müller").expect("a pattern");
        let found = matches(&path, &pattern, true).expect("searched");
        let lines: Vec<u64> = found.iter().map(|found| found.line).collect();
        assert_eq!(lines, [1, 2, 3, 6]);
        assert_eq!(found[1], Match { line: 2, snippet: "Müller Müller".to_owned() });
        let bare = matches(&path, &pattern, false).expect("searched");
        assert!(bare.iter().all(|found| found.snippet.is_empty()) && bare.len() == 4);
    }

    #[test]
    fn a_snippet_has_the_match_in_its_middle_and_160_characters_at_most() {
        let text = format!("{}né{}", "ü".repeat(300), "x".repeat(300));
        let at = text.find('n').expect("there");
        let piece = snippet(&text, at..at + 3);
        assert_eq!(piece.chars().count(), 160);
        assert_eq!(piece, format!("…{}né{}…", "ü".repeat(78), "x".repeat(78)));
        assert_eq!(snippet("né\tx", 0..3), "né x");
        let long = snippet(&"y".repeat(500), 0..500);
        assert_eq!((long.chars().count(), long.ends_with('…')), (159, true));
    }
}
