//! Tests of `forgelm_data` through its public interface.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, in a temporary folder"
)]

mod answers;
mod audit;
mod compressed;
mod faults;
mod formats;
mod layouts;
mod lint;
mod prepare;
mod rendering;
mod splits;

use std::path::{Path, PathBuf};

use forgelm_config::{Data, OnBadRow, TrainerType};
use forgelm_data::{Code, DataError, DataProblem, Dataset, Problems, open};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden")
}

fn section(path: &Path) -> Data {
    Data { dataset_name_or_path: path.to_str().unwrap().to_owned(), ..Data::default() }
}

/// Opens a file with these bytes.
fn open_bytes(name: &str, bytes: &[u8]) -> Result<Dataset, DataError> {
    open_bytes_for(TrainerType::Sft, name, bytes)
}

/// Opens a file with these bytes for a trainer.
fn open_bytes_for(trainer: TrainerType, name: &str, bytes: &[u8]) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    open(&section(&path), trainer)
}

fn open_skipping(bytes: &[u8]) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, bytes).unwrap();
    open(&Data { on_bad_row: OnBadRow::Skip, ..section(&path) }, TrainerType::Sft)
}

fn problems(result: Result<Dataset, DataError>) -> Problems {
    match result {
        Err(error @ DataError::Problems(_)) => {
            assert_eq!(error.class(), forgelm_artifact::Class::Input);
            let DataError::Problems(problems) = error else { unreachable!() };
            problems
        }
        other => panic!("{other:?}"),
    }
}

/// The only problem.
fn problem(result: Result<Dataset, DataError>) -> DataProblem {
    let mut problems = problems(result);
    assert_eq!(problems.total, 1, "{problems}");
    problems.shown.remove(0)
}

/// Opens one row of JSON lines that is wrong.
fn row_problem(row: &str) -> DataProblem {
    problem(open_bytes("rows.jsonl", row.as_bytes()))
}

fn assert_problem(problem: &DataProblem, code: Code, line: u64, field: &str) {
    assert_eq!(
        (problem.code, problem.line, problem.field.as_str()),
        (code, Some(line), field),
        "{problem}"
    );
}
