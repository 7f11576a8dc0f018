//! Rows of a file of JSON lines: those with an identifier are found, and left out of a copy. Every other
//! byte stays as it is, line ends, blank lines and a torn last line included.

use super::ErasureError;
use forgelm_artifact::hash::Hasher;
use forgelm_artifact::jsonl::LINE_BYTES_MAX;
use forgelm_artifact::open::OpenError;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write};
use std::path::Path;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The lines that match, from 1, ascending.
    pub lines: Vec<u64>,
    /// Bytes of them, with their ends.
    pub n_bytes: u64,
    /// Lines that are JSON objects.
    pub n_rows: u64,
    /// Lines that are not, and are not blank.
    pub n_unread: u64,
    /// SHA-256 of the whole file.
    pub sha256: String,
}

/// Looks at every line of `file`.
///
/// # Errors
/// If it cannot be read, a line is longer than a row can be, or no line is a JSON object.
pub fn find(path: &Path, file: &mut File, id: &str) -> Result<Found, ErasureError> {
    let mut found = Found::default();
    let mut hasher = Hasher::new();
    each_line(path, file, |number, line| {
        hasher.update(line);
        match matches(line, id) {
            Some(true) => {
                found.lines.push(number);
                let is_marked = number == 1 && line.starts_with(BYTE_ORDER_MARK);
                let n_kept = if is_marked { BYTE_ORDER_MARK.len() } else { 0 };
                found.n_bytes += (line.len() - n_kept) as u64;
                found.n_rows += 1;
            }
            Some(false) => found.n_rows += 1,
            None if line.trim_ascii().is_empty() => {}
            None => found.n_unread += 1,
        }
        Ok(())
    })?;
    if found.n_rows == 0 && found.n_unread > 0 {
        return Err(ErasureError::Target {
            path: path.to_owned(),
            problem: "no line is a JSON object; expected one row a line".to_owned(),
            hint: "only files of JSON lines can be purged: unpack it, or write it as JSON lines",
        });
    }
    found.sha256 = hasher.finish().to_string();
    Ok(found)
}

/// Writes all lines of `file` but those in `without` (ascending); returns the digest of what is written.
///
/// # Errors
/// If reading or writing fails.
pub fn copy_without(
    path: &Path,
    file: &mut File,
    without: &[u64],
    out: &mut dyn Write,
) -> io::Result<String> {
    let mut left_out = without.iter().peekable();
    let mut hasher = Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        out.write_all(bytes)
    };
    let copied = each_line(path, file, |number, line| {
        if left_out.next_if(|&&next| next == number).is_none() {
            return put(line);
        }
        // The mark is the file's, not the first row's.
        if number == 1 && line.starts_with(BYTE_ORDER_MARK) { put(BYTE_ORDER_MARK) } else { Ok(()) }
    });
    copied.map_err(|error| match error {
        ErasureError::Open(OpenError::Io { source, .. }) => source,
        other => io::Error::other(other.to_string()),
    })?;
    Ok(hasher.finish().to_string())
}

/// Calls `visit` with every line and its end, in order.
fn each_line(
    path: &Path,
    file: &mut File,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<(), ErasureError> {
    let io = |source| ErasureError::Open(OpenError::Io { path: path.to_owned(), source });
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let n_read = (&mut reader).take(limit).read_until(b'\n', &mut line).map_err(io)?;
        if n_read == 0 {
            return Ok(());
        }
        if n_read > LINE_BYTES_MAX {
            return Err(ErasureError::Target {
                path: path.to_owned(),
                problem: format!("line {number} is longer than {LINE_BYTES_MAX} bytes"),
                hint: "a row is one line; is this file JSON with one row a line?",
            });
        }
        visit(number, &line).map_err(io)?;
    }
    Ok(())
}

/// Whether a row has the identifier; `None` if the line is no row. Of a key that comes twice the last
/// counts, and a row that any of the two keys names matches.
fn matches(line: &[u8], id: &str) -> Option<bool> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    let row: Value = serde_json::from_slice(line).ok()?;
    let row = row.as_object()?;
    let is_it = |value: &Value| match value {
        Value::String(text) => text == id,
        Value::Number(number) => number.to_string() == id,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    };
    Some(["id", "row_id"].iter().any(|key| row.get(*key).is_some_and(is_it)))
}

#[cfg(test)]
mod tests {
    use super::{copy_without, find};
    use forgelm_artifact::hash::sha256_bytes;
    use forgelm_artifact::write;
    use std::fs::File;
    use std::path::PathBuf;

    fn opened(bytes: &[u8]) -> (tempfile::TempDir, PathBuf, File) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rows.jsonl");
        write::atomic(&path, bytes).expect("written");
        let file = File::open(&path).expect("opened");
        (dir, path, file)
    }

    /// What is left when the rows with `id` are out, and which lines those were.
    fn left(bytes: &[u8], id: &str) -> (Vec<u8>, Vec<u64>) {
        let (_dir, path, mut file) = opened(bytes);
        let found = find(&path, &mut file, id).expect("read");
        assert_eq!(found.sha256, sha256_bytes(bytes).as_str());
        let mut out = Vec::new();
        let sha256 = copy_without(&path, &mut file, &found.lines, &mut out).expect("copied");
        assert_eq!(sha256, sha256_bytes(&out).as_str());
        assert_eq!(out.len() as u64 + found.n_bytes, bytes.len() as u64);
        (out, found.lines)
    }

    #[test]
    fn all_but_the_rows_that_match_is_kept_byte_for_byte() {
        let rows = b"{\"id\": 1, \"t\": \"\\u00e9\"}\r\n\n{\"id\":\"b\"}\r\n  {\"row_id\": \"b\"} \n[1]\n\xff\xfe\n{\"id\": \"b";
        let (kept, lines) = left(rows, "b");
        assert_eq!(lines, [3, 4]);
        let expected: &[u8] = b"{\"id\": 1, \"t\": \"\\u00e9\"}\r\n\n[1]\n\xff\xfe\n{\"id\": \"b";
        assert_eq!(kept, expected);
        assert_eq!(left(rows, "1").1, [1]);
        assert_eq!(left(rows, "none"), (rows.to_vec(), vec![]));
    }

    #[test]
    fn numbers_are_compared_by_their_decimal_text() {
        let rows =
            b"{\"id\": 10}\n{\"id\": 1.5}\n{\"id\": \"10\"}\n{\"id\": true}\n{\"id\": null}\n";
        assert_eq!(left(rows, "10").1, [1, 3]);
        assert_eq!(left(rows, "1.5").1, [2]);
        assert_eq!(left(rows, "true").1, [0_u64; 0]);
        assert_eq!(left(b"{\"id\": 12345678901234567890}", "12345678901234567890").0, b"");
    }

    #[test]
    fn a_byte_order_mark_stays_with_the_file() {
        let (kept, lines) = left(b"\xef\xbb\xbf{\"id\": 1}\n{\"id\": 2}\n", "1");
        assert_eq!((kept.as_slice(), lines), (&b"\xef\xbb\xbf{\"id\": 2}\n"[..], vec![1]));
    }

    #[test]
    fn what_holds_no_rows_is_refused() {
        for bytes in [&b"\x1f\x8b\x08\x00rows"[..], b"a,b\n1,2\n"] {
            let (_dir, path, mut file) = opened(bytes);
            let error = find(&path, &mut file, "1").expect_err("no rows").to_string();
            assert!(error.contains("no line is a JSON object"), "{error}");
        }
        let (_dir, path, mut file) = opened(&vec![b' '; (16 << 20) + 1]);
        let error = find(&path, &mut file, "1").expect_err("too long").to_string();
        assert!(error.contains("line 1 is longer"), "{error}");
    }
}
