//! What a token file says about itself.

use std::path::PathBuf;

use forgelm_artifact::hash::Sha256Hex;
use serde_json::{Value, json};

use crate::dataset::DataFile;
use crate::problem::{Code, DataProblem, Problems};
use crate::render::TokenStatistics;

/// A data set beside its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Description {
    pub files: Vec<DataFile>,
    pub layout: String,
    pub rendering: String,
    /// Sequences of a record.
    pub per_unit: usize,
    pub statistics: TokenStatistics,
    pub skipped: Problems,
    /// Sequences that are preferred or desirable, and the others.
    pub n_chosen: u64,
    pub n_rejected: u64,
}

impl Description {
    /// Files are described without their paths: the same bytes may lie elsewhere next time.
    pub fn to_json(&self, key: &str) -> Value {
        let files = self.files.iter().map(|file| {
            json!({"sha256": file.sha256.as_str(), "n_bytes": file.n_bytes, "n_rows": file.n_rows})
        });
        let shown = self.skipped.shown.iter().map(|problem| {
            json!({
                "code": problem.code.name(),
                "file": self.files.iter().position(|file| file.path == problem.file),
                "line": problem.line,
                "field": problem.field,
                "found": problem.found,
                "expected": problem.expected,
                "hint": problem.hint,
            })
        });
        let s = &self.statistics;
        json!({
            "key": key,
            "files": files.collect::<Vec<_>>(),
            "layout": self.layout,
            "rendering": self.rendering,
            "per_unit": self.per_unit,
            "statistics": [s.rows, s.tokens, s.trained_tokens, s.longest, s.truncated, s.dropped, s.special_texts],
            "skipped": {"total": self.skipped.total, "shown": shown.collect::<Vec<_>>()},
            "n_chosen": self.n_chosen,
            "n_rejected": self.n_rejected,
        })
    }

    /// `None` if it is not of this key or not complete.
    pub fn read(value: &Value, key: &str, paths: &[PathBuf]) -> Option<Description> {
        if value.get("key")?.as_str()? != key {
            return None;
        }
        let listed = value.get("files")?.as_array()?;
        if listed.len() != paths.len() {
            return None;
        }
        let file = |(file, path): (&Value, &PathBuf)| {
            Some(DataFile {
                path: path.clone(),
                sha256: Sha256Hex::parse(file.get("sha256")?.as_str()?)?,
                n_bytes: file.get("n_bytes")?.as_u64()?,
                n_rows: file.get("n_rows")?.as_u64()?,
            })
        };
        let files = listed.iter().zip(paths).map(file).collect::<Option<Vec<_>>>()?;
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let number = |name: &str| value.get(name)?.as_u64();
        let counts = value.get("statistics")?.as_array()?;
        let counts = counts.iter().map(Value::as_u64).collect::<Option<Vec<_>>>()?;
        let [rows, tokens, trained_tokens, longest, truncated, dropped, special_texts] =
            <[u64; 7]>::try_from(counts).ok()?;
        Some(Description {
            skipped: read_problems(value.get("skipped")?, paths)?,
            files,
            layout: text("layout")?,
            rendering: text("rendering")?,
            per_unit: usize::try_from(number("per_unit")?).ok()?,
            statistics: TokenStatistics {
                rows,
                tokens,
                trained_tokens,
                longest,
                truncated,
                dropped,
                special_texts,
            },
            n_chosen: number("n_chosen")?,
            n_rejected: number("n_rejected")?,
        })
    }
}

fn read_problems(value: &Value, paths: &[PathBuf]) -> Option<Problems> {
    let problem = |value: &Value| {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let file = value.get("file")?.as_u64().and_then(|i| usize::try_from(i).ok());
        Some(DataProblem {
            code: Code::from_name(value.get("code")?.as_str()?)?,
            file: file.and_then(|i| paths.get(i)).cloned().unwrap_or_default(),
            line: value.get("line")?.as_u64(),
            field: text("field")?,
            found: text("found")?,
            expected: text("expected")?,
            hint: text("hint")?,
        })
    };
    let shown = value.get("shown")?.as_array()?.iter().map(problem).collect::<Option<Vec<_>>>()?;
    Some(Problems { shown, total: value.get("total")?.as_u64()? })
}
