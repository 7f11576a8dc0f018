//! Which files a data set has, and which split each belongs to.

use std::path::{Path, PathBuf};

use crate::problem::{Code, DataError, DataProblem};
use crate::source::is_data_file;

/// Folders inside folders.
const DEPTH_MAX: usize = 8;
/// Files of a data set.
const FILES_MAX: usize = 100_000;
/// Files that tools put beside data; the last four are ours.
const NOT_DATA: [&str; 9] = [
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "data_audit_report.json",
    "audit_log.jsonl",
    "audit_log.jsonl.manifest.json",
    "audit_log.jsonl.checkpoint.dsse.json",
];

const EXPECTED: &str = "a file that ends in `.jsonl`, `.json`, `.csv` (also with `.gz` or `.zst`) or \
                        `.parquet`, a folder of such files, or the id of a data set on a hub";

/// The files of one data set by split, each list in the order in which it is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceFiles {
    /// As the configuration names it.
    pub name: String,
    /// To train on.
    pub train: Vec<PathBuf>,
    /// To validate on; may be empty.
    pub validation: Vec<PathBuf>,
    /// Called a test split; validates where there is no validation split.
    pub test: Vec<PathBuf>,
    /// Data files in a folder of splits that are named after none.
    pub left_out: Vec<PathBuf>,
}

/// Finds the files of a local data set. `name` is what messages call it; `path` is the file or folder.
///
/// In a folder, files are taken in the order of their paths. A file belongs to the split after which it or a
/// folder above it is named: `train…`, `validation…`, `valid…` or `dev…`, `test…`, where the next character
/// is no letter (`train-00000.jsonl`, `dev.json`; also `training` and `testing`). Files that are named after no
/// split are the training data, unless others are named `train…`: then they are left out.
///
/// # Errors
/// If there is nothing, or nothing that is data.
pub fn find_files(name: &str, path: &Path) -> Result<SourceFiles, DataError> {
    let problem =
        |code, found: &str| DataError::from(DataProblem::file(code, path, found, EXPECTED));
    let Some(files) = listed(path)? else {
        let train = vec![path.to_owned()];
        return Ok(SourceFiles { name: name.to_owned(), train, ..SourceFiles::default() });
    };
    if files.is_empty() {
        return Err(problem(Code::NoRows, "a folder without a data file"));
    }
    let mut found = SourceFiles { name: name.to_owned(), ..SourceFiles::default() };
    let mut unnamed = Vec::new();
    for (file, part) in &files {
        let list = match part {
            Some(Part::Train) => &mut found.train,
            Some(Part::Validation) => &mut found.validation,
            Some(Part::Test) => &mut found.test,
            None => &mut unnamed,
        };
        list.push(path.join(file));
    }
    if found.train.is_empty() {
        found.train = unnamed;
    } else {
        found.left_out = unnamed;
    }
    if found.train.is_empty() {
        return Err(problem(Code::NoRows, "a folder without a training split"));
    }
    Ok(found)
}

/// A file, relative to its folder, and its split.
type Listed = (PathBuf, Option<Part>);

/// The data files below a folder, relative to it and in order, each with the split that its name says;
/// `None` if the path is no folder.
///
/// # Errors
/// If there is nothing, a file whose format is not known, or more than can be meant.
pub(crate) fn listed(path: &Path) -> Result<Option<Vec<Listed>>, DataError> {
    let problem =
        |code, found: &str| DataError::from(DataProblem::file(code, path, found, EXPECTED));
    let Ok(metadata) = std::fs::metadata(path) else {
        return Err(problem(Code::File, "does not exist"));
    };
    if !metadata.is_dir() {
        // A pipe or a device is refused for what it is when it is opened.
        if metadata.is_file() && !is_data_file(path) {
            return Err(problem(Code::Format, "cannot tell the format from the name"));
        }
        return Ok(None);
    }
    let mut files = Vec::new();
    walk(path, Path::new(""), 0, &mut files)?;
    files.sort();
    if files.len() > FILES_MAX {
        return Err(problem(Code::Format, "a folder with more than 100000 data files"));
    }
    let with_part = |file: PathBuf| {
        let part = split_of(&file);
        (file, part)
    };
    Ok(Some(files.into_iter().map(with_part).collect()))
}

/// A split.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Part {
    Train,
    Validation,
    Test,
}

impl Part {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
        }
    }
}

/// The split of a relative path: the innermost name that says one counts.
fn split_of(file: &Path) -> Option<Part> {
    file.components().rev().find_map(|component| {
        let name = component.as_os_str().to_string_lossy().to_ascii_lowercase();
        let word: String = name.chars().take_while(char::is_ascii_alphabetic).collect();
        match word.as_str() {
            "train" | "training" => Some(Part::Train),
            "validation" | "valid" | "val" | "dev" | "eval" => Some(Part::Validation),
            "test" | "testing" => Some(Part::Test),
            _ => None,
        }
    })
}

/// Data files below a folder, relative to it; hidden ones are passed over.
fn walk(
    root: &Path,
    inside: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> Result<(), DataError> {
    let dir = root.join(inside);
    let unreadable = |source: std::io::Error| {
        DataError::from(forgelm_artifact::open::OpenError::Io { path: dir.clone(), source })
    };
    for entry in std::fs::read_dir(&dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let shown = name.to_string_lossy();
        if shown.starts_with('.') || NOT_DATA.contains(&shown.as_ref()) || files.len() > FILES_MAX {
            continue;
        }
        let relative = inside.join(&name);
        // Links are followed: a hub's cache is made of them.
        match std::fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() && depth < DEPTH_MAX => {
                walk(root, &relative, depth + 1, files)?;
            }
            Ok(metadata) if metadata.is_file() && is_data_file(&relative) => files.push(relative),
            _ => {}
        }
    }
    Ok(())
}

/// As a hub would name a data set: at most one `/`, only plain characters, and nothing of that name here.
#[must_use]
pub fn is_hub_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    !text.is_empty()
        && text.chars().all(plain)
        && text.matches('/').count() <= 1
        && !text.starts_with(['/', '.', '~'])
        && !is_data_file(Path::new(text))
        && !Path::new(text).exists()
}

#[cfg(test)]
mod tests {
    use super::{Part, is_hub_id, split_of};
    use std::path::Path;

    #[test]
    fn the_split_is_in_the_name_of_the_file_or_of_a_folder() {
        for (path, expected) in [
            ("train.jsonl", Some(Part::Train)),
            ("data/train-00000-of-00002.parquet", Some(Part::Train)),
            ("Training_2.csv", Some(Part::Train)),
            ("validation/a.jsonl", Some(Part::Validation)),
            ("dev.json", Some(Part::Validation)),
            ("test/train.jsonl", Some(Part::Train)),
            ("tests.jsonl", None),
            ("devices.jsonl", None),
            ("trained_on.jsonl", None),
            ("a.jsonl", None),
        ] {
            assert_eq!(split_of(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        for (text, expected) in [
            ("owner/set", true),
            ("set", true),
            ("a/b/c", false),
            ("./set", false),
            ("/set", false),
            ("~x", false),
            ("a b", false),
            ("missing.jsonl", false),
            ("", false),
            ("src", false),
        ] {
            assert_eq!(is_hub_id(text), expected, "{text}");
        }
    }
}
