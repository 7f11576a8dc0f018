//! Which files are audited, and the split of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::find::{Part, listed};
use crate::problem::{Code, DataError, DataProblem};

pub(super) struct Inputs {
    pub splits: Vec<(String, Vec<PathBuf>)>,
    pub notes: Vec<String>,
}

/// A file is the split `train`. In a folder every data file is read, below it too: those that are named
/// after a split as that split, the others each as a split of their own name. So everything that a run
/// could be pointed at is searched.
pub(super) fn find(path: &Path) -> Result<Inputs, DataError> {
    let Some(files) = listed(path)? else {
        return Ok(Inputs {
            splits: vec![("train".to_owned(), vec![path.to_owned()])],
            notes: Vec::new(),
        });
    };
    if files.is_empty() {
        let found = "a folder without a data file";
        let expected = "files that end in `.jsonl`, `.json`, `.csv` or `.parquet`";
        return Err(DataProblem::file(Code::NoRows, path, found, expected).into());
    }
    let mut named: BTreeMap<Part, Vec<PathBuf>> = BTreeMap::new();
    let mut others = Vec::new();
    for (file, part) in files {
        match part {
            Some(part) => named.entry(part).or_default().push(path.join(file)),
            None => others.push(file),
        }
    }
    let mut notes = Vec::new();
    if named.is_empty() {
        notes.push("no file is named after a split: leakage between them means nothing".to_owned());
    }
    let mut splits: Vec<(String, Vec<PathBuf>)> = Vec::new();
    for (part, files) in named {
        if files.len() > 1 {
            notes.push(format!("{}: {} files, read as one split", part.name(), files.len()));
        }
        splits.push((part.name().to_owned(), files));
    }
    let n_named = splits.len();
    for file in others {
        if n_named > 0 {
            notes.push(format!("{}: named after no split, and audited by itself", file.display()));
        }
        // Two files of one name in different formats are different splits.
        let name = stem(&file);
        let is_taken = splits.iter().any(|(other, _)| *other == name);
        let name = if is_taken { file.display().to_string() } else { name };
        splits.push((name, vec![path.join(file)]));
    }
    Ok(Inputs { splits, notes })
}

/// A path without the extensions of its format.
fn stem(file: &Path) -> String {
    let mut stem = file.to_owned();
    if stem.extension().is_some_and(|e| e == "gz" || e == "zst") {
        stem.set_extension("");
    }
    stem.set_extension("");
    stem.display().to_string()
}
