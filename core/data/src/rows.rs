//! The rows of data files as they are, for who reads other columns than a trainer does.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::dataset::DataFile;
use crate::find::listed;
use crate::problem::{Code, DataError, DataProblem};
use crate::source::open_rows;

/// A row: its columns by name.
pub type Row = Map<String, Value>;

/// Every row of some files, in order, each with the columns of all: what a row does not have is null.
///
/// # Errors
/// If a file cannot be read, a row is no object, or there is none.
pub fn read_rows(files: &[PathBuf]) -> Result<(Vec<Row>, Vec<DataFile>), DataError> {
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let mut read = Vec::new();
    for path in files {
        let before = rows.len();
        let mut reader = open_rows(path)?;
        while let Some(row) = reader.next_row()? {
            let row = row.parse(path).map_err(|problem| DataError::from(*problem))?;
            let Value::Object(columns) = row.value.into_owned() else {
                let found = "no object";
                return Err(DataProblem::row(
                    Code::Row,
                    &row.place,
                    "",
                    found.to_owned(),
                    "an object with a value for each column",
                )
                .into());
            };
            rows.push(columns);
        }
        let file = reader.finish()?;
        read.push(DataFile {
            path: path.clone(),
            sha256: file.sha256,
            n_bytes: file.n_bytes,
            n_rows: (rows.len() - before) as u64,
        });
    }
    if rows.is_empty() {
        let path = files.first().map_or(Path::new(""), PathBuf::as_path);
        return Err(DataProblem::file(Code::NoRows, path, "no rows", "at least one row").into());
    }
    let mut columns: Map<String, Value> = Map::new();
    for row in &rows {
        for name in row.keys().filter(|name| !columns.contains_key(*name)).collect::<Vec<_>>() {
            columns.insert(name.clone(), Value::Null);
        }
    }
    for row in rows.iter_mut().filter(|row| row.len() < columns.len()) {
        for name in columns.keys() {
            if !row.contains_key(name) {
                row.insert(name.clone(), Value::Null);
            }
        }
    }
    Ok((rows, read))
}

/// The data files of a folder, relative to it and in order.
///
/// # Errors
/// If there is no such folder, or it cannot be read.
pub fn list_data_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let files = listed(folder)?.unwrap_or_default();
    Ok(files.into_iter().map(|(file, _)| file).collect())
}

#[cfg(test)]
mod tests {
    use super::{list_data_files, read_rows};
    use forgelm_artifact::write::{atomic, create_dir_all_durable};
    use serde_json::{Value, json};

    #[test]
    fn rows_of_several_files_have_the_same_columns() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            atomic(&path, text.as_bytes()).unwrap();
            path
        };
        let files = [file("a.jsonl", "{\"q\":1}\n"), file("b.csv", "q,a\n2,x\n")];
        let (rows, read) = read_rows(&files).unwrap();
        let rows: Vec<Value> = rows.into_iter().map(Value::Object).collect();
        assert_eq!(rows, [json!({"q": 1, "a": null}), json!({"q": "2", "a": "x"})]);
        assert_eq!(read.iter().map(|file| file.n_rows).collect::<Vec<_>>(), [1, 1]);
        for (text, expected) in [("", "no rows"), ("[1]\n", "no object"), ("{\n", "a.jsonl:1")] {
            let refused = read_rows(&[file("a.jsonl", text)]).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn the_files_of_a_folder_are_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        create_dir_all_durable(&dir.path().join("main")).unwrap();
        for name in ["main/test.jsonl", "main/a.jsonl", "z.csv", "notes.txt"] {
            atomic(&dir.path().join(name), b"{}\n").unwrap();
        }
        let found = list_data_files(dir.path()).unwrap();
        let found: Vec<&str> = found.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(found, ["main/a.jsonl", "main/test.jsonl", "z.csv"]);
        assert!(list_data_files(&dir.path().join("nowhere")).is_err());
    }
}
