//! Where the rows of a task are: named files, a folder, or a data set of the hub.

use super::error::BenchmarkError;
use crate::environment::Environment;
use crate::event::Observer;
use crate::model;
use crate::plan::Plan;
use forgelm_benchmark::{DataFiles, DataSource, Splits, Task};
use forgelm_data::{DataFile, is_hub_id, list_data_files, read_rows};
use forgelm_hub::{HubOptions, resolve_dataset};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `dataset_path` of data that is only named file by file.
const FORMATS: [&str; 4] = ["csv", "json", "parquet", "text"];
/// What splits are called beside their names.
const OTHER_NAMES: [(&str, &[&str]); 3] = [
    ("train", &["training"]),
    ("validation", &["valid", "val", "dev", "eval"]),
    ("test", &["testing"]),
];

/// The rows of a task and where they were read.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) splits: Splits,
    /// Of both splits.
    pub(super) files: Vec<DataFile>,
    /// The commit of a data set of the hub.
    pub(super) revision: Option<String>,
}

/// Reads rows of tasks.
pub(super) struct RowFinder<'a> {
    pub(super) plan: &'a Plan,
    pub(super) offline: bool,
    /// `evaluation.benchmark.data_dir`.
    pub(super) data_dir: Option<&'a Path>,
    pub(super) env: &'a Environment,
}

/// The folder that a data set's files are in.
struct Found {
    folder: PathBuf,
    revision: Option<String>,
}

impl RowFinder<'_> {
    /// The rows of a task; those of examples only with `needs_examples`.
    pub(super) fn read(
        &self,
        task: &Task,
        needs_examples: bool,
        observer: &mut dyn Observer,
    ) -> Result<Rows, BenchmarkError> {
        let asked = task.asked_split()?;
        let examples = match needs_examples {
            true => task.examples_split()?.filter(|&split| split != asked),
            false => None,
        };
        let found = self.find(task, observer)?;
        let of = |split: &str| {
            let files = files_of(task, &found, split)?;
            let (rows, read) = read_rows(&files)?;
            Ok::<_, BenchmarkError>((rows.into_iter().map(Value::Object).collect(), read))
        };
        let (asked, mut files) = of(asked)?;
        let mut splits = Splits { asked, examples: Vec::new() };
        if let Some(split) = examples {
            let (rows, read) = of(split)?;
            splits.examples = rows;
            files.extend(read);
        }
        Ok(Rows { splits, files, revision: found.revision })
    }

    fn find(&self, task: &Task, observer: &mut dyn Observer) -> Result<Found, BenchmarkError> {
        let DataSource { path, folder, .. } = &task.data;
        let beside = folder.as_deref().unwrap_or(Path::new(""));
        let local = |folder: PathBuf| Ok(Found { folder, revision: None });
        if FORMATS.contains(&path.as_str()) {
            if task.data.files.is_none() {
                return Err(BenchmarkError::Files {
                    task: task.name.clone(),
                    problem: format!("`dataset_path: {path}` without files"),
                    hint: "name them in `dataset_kwargs.data_files`".to_owned(),
                });
            }
            return local(beside.to_owned());
        }
        let placed = self.data_dir.map(|dir| dir.join(path));
        let candidates = placed.into_iter().chain([beside.join(path), PathBuf::from(path)]);
        if let Some(folder) = candidates.into_iter().find(|folder| folder.is_dir()) {
            return local(folder);
        }
        if !is_hub_id(path) {
            return Err(BenchmarkError::Files {
                task: task.name.clone(),
                problem: format!("`dataset_path: {path}` is no folder, and no id of a data set"),
                hint: "a folder is named from the task's file, or from the working directory"
                    .to_owned(),
            });
        }
        let options = HubOptions {
            offline: self.offline || self.plan.run.model.offline || self.env.offline,
            revision: task.data.revision.clone(),
            token: self
                .plan
                .run
                .auth
                .as_ref()
                .and_then(|auth| auth.hf_token.clone())
                .or_else(|| self.env.hub_token.clone()),
            role: "benchmark".to_owned(),
            ..self.env.hub_options()
        };
        let resolved = resolve_dataset(path, &options, &mut |event| model::report(event, observer));
        let resolved = resolved.map_err(|source| BenchmarkError::NotHere {
            task: task.name.clone(),
            data_set: path.clone(),
            source: Box::new(source),
        })?;
        let revision = resolved.revision.revision_resolved;
        Ok(Found { folder: resolved.folder, revision })
    }
}

/// The files of a split.
fn files_of(task: &Task, found: &Found, split: &str) -> Result<Vec<PathBuf>, BenchmarkError> {
    let source = &task.data;
    let wrong = |problem: String, hint: &str| BenchmarkError::Files {
        task: task.name.clone(),
        problem,
        hint: hint.to_owned(),
    };
    let folder = match &source.dir {
        Some(dir) => found.folder.join(dir),
        None => found.folder.clone(),
    };
    if let Some(files) = &source.files {
        let named = match files {
            DataFiles::Train(files) if split == "train" => Some(files),
            DataFiles::Train(_) => None,
            DataFiles::BySplit(files) => files.get(split),
        };
        let named = named.ok_or_else(|| {
            let problem =
                format!("`dataset_kwargs.data_files` names no file of the split `{split}`");
            wrong(problem, "name the files by split: `data_files: {test: test.jsonl}`")
        })?;
        // Beside the task's file, else as the working directory has it.
        let place = |name: &String| {
            let beside = folder.join(name);
            if beside.exists() { beside } else { PathBuf::from(name) }
        };
        return Ok(named.iter().map(place).collect());
    }
    let listed = list_data_files(&folder)?;
    let files = of_part(&listed, source.name.as_deref()).map_err(|parts| {
        let name = source.name.as_deref().unwrap_or_default();
        let (dir, parts) = (folder.display(), parts.join("`, `"));
        wrong(
            format!("{dir} has no part `{name}`; found `{parts}`"),
            "a part is a folder of that name; `dataset_name` says which",
        )
    })?;
    let mut of_split = of_split(&files, split);
    if of_split.is_empty() {
        let dir = folder.display();
        return Err(wrong(
            format!("{dir} has no file of the split `{split}`"),
            "a file or its folder is named after its split: `test.jsonl`, `test-00000.parquet`",
        ));
    }
    of_split.sort();
    if let Some(other) = of_split.iter().find(|file| shard_of(file) != shard_of(&of_split[0])) {
        let (one, other) = (of_split[0].display(), other.display());
        return Err(wrong(
            format!("the split `{split}` has files of different names: `{one}` and `{other}`"),
            "say which with `dataset_kwargs.data_files` in a task file of your own that includes this \
             one",
        ));
    }
    Ok(of_split.into_iter().map(|file| folder.join(file)).collect())
}

/// The files of a part of a data set; else the folders that there are.
fn of_part(files: &[PathBuf], name: Option<&str>) -> Result<Vec<PathBuf>, Vec<String>> {
    let folders = |file: &Path| -> Vec<String> {
        let parent = file.parent().into_iter().flat_map(Path::components);
        parent.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let inside = |name: &str| -> Vec<PathBuf> {
        files.iter().filter(|file| folders(file).iter().any(|dir| dir == name)).cloned().collect()
    };
    if let Some(name) = name {
        let found = inside(name);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    // Of a data set without parts, or the one that is meant when none is named.
    let plain: Vec<PathBuf> = files
        .iter()
        .filter(|file| folders(file).iter().all(|dir| dir == "data" || is_split(dir)))
        .cloned()
        .collect();
    let is_default = name.is_none_or(|name| name == "default");
    let mut parts: Vec<String> =
        files.iter().filter_map(|file| folders(file).into_iter().next()).collect();
    parts.dedup();
    match (plain.is_empty(), is_default) {
        // Files that lie in the folder itself are what somebody placed there for this task.
        (false, _) => Ok(plain),
        (true, true) if !inside("default").is_empty() => Ok(inside("default")),
        (true, true) if parts.len() == 1 => Ok(files.to_vec()),
        (true, _) => Err(parts),
    }
}

fn is_split(name: &str) -> bool {
    OTHER_NAMES.iter().any(|(split, others)| *split == name || others.contains(&name))
}

/// The files of a split: those that are named after it, else after what it is called too.
fn of_split(files: &[PathBuf], split: &str) -> Vec<PathBuf> {
    let others = OTHER_NAMES.iter().find(|(name, _)| *name == split);
    let names =
        std::iter::once(split).chain(others.into_iter().flat_map(|(_, o)| o.iter().copied()));
    for name in names {
        let of_name = |component: &str| {
            component.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == name)
                || component == name
        };
        let matching = |is_file: bool| -> Vec<PathBuf> {
            let is_it = |file: &&PathBuf| {
                let mut parts: Vec<String> = file
                    .components()
                    .map(|part| part.as_os_str().to_string_lossy().to_ascii_lowercase())
                    .collect();
                let last = parts.pop().unwrap_or_default();
                if is_file { of_name(&last) } else { parts.iter().any(|part| of_name(part)) }
            };
            files.iter().filter(is_it).cloned().collect()
        };
        for is_file in [true, false] {
            let found = matching(is_file);
            if !found.is_empty() {
                return found;
            }
        }
    }
    Vec::new()
}

/// A file's name without the number of its shard.
fn shard_of(file: &Path) -> String {
    file.to_string_lossy().chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::{of_part, of_split};
    use std::path::PathBuf;

    fn paths(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_part_is_a_folder_and_without_one_the_folder_itself() {
        let mmlu =
            paths(&["all/test-0.parquet", "anatomy/dev-0.parquet", "anatomy/test-0.parquet"]);
        assert_eq!(of_part(&mmlu, Some("anatomy")), Ok(mmlu[1..].to_vec()));
        assert_eq!(of_part(&mmlu, Some("virology")), Err(vec!["all".into(), "anatomy".into()]));
        assert_eq!(of_part(&mmlu, None), Err(vec!["all".into(), "anatomy".into()]));
        let plain = paths(&["data/test-0.parquet", "de/test-0.parquet"]);
        assert_eq!(of_part(&plain, None), Ok(plain[..1].to_vec()));
        let placed = paths(&["test.jsonl", "train.jsonl"]);
        assert_eq!(of_part(&placed, Some("ARC-Easy")), Ok(placed.clone()));
        let one = paths(&["main/test.jsonl"]);
        assert_eq!(of_part(&one, None), Ok(one.clone()));
        let default = paths(&["de/test.jsonl", "default/test.jsonl"]);
        assert_eq!(of_part(&default, Some("default")), Ok(default[1..].to_vec()));
    }

    #[test]
    fn a_split_is_in_the_name_of_a_file_or_its_folder() {
        let mmlu = paths(&["a/dev-0.parquet", "a/test-0.parquet", "a/validation-0.parquet"]);
        for (split, at) in [("dev", 0), ("test", 1), ("validation", 2)] {
            assert_eq!(of_split(&mmlu, split), mmlu[at..=at], "{split}");
        }
        assert!(of_split(&mmlu, "train").is_empty());
        let other = paths(&["lambada_test_en.jsonl", "val.csv", "training/rows.jsonl"]);
        for (split, at) in [("test", 0), ("validation", 1), ("train", 2)] {
            assert_eq!(of_split(&other, split), other[at..=at], "{split}");
        }
        assert!(of_split(&paths(&["contest.jsonl"]), "test").is_empty());
    }
}
