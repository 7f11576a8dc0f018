//! The cache folder that the hub's Python library shares with us.
//!
//! `models--ORG--NAME/` holds `refs/REVISION` (a commit as text), `snapshots/COMMIT/FILE` (links)
//! and `blobs/HASH`.

use crate::is_commit;
use crate::{HubError, ModelFiles};
use forgelm_artifact::json::parse_unique;
use std::path::{Path, PathBuf};

/// The folder of a repository in the cache.
pub(crate) fn repository(cache: &Path, repo: &str) -> PathBuf {
    cache.join(format!("models--{}", repo.replace('/', "--")))
}

/// The folder of a data set in the cache.
pub(crate) fn dataset(cache: &Path, repo: &str) -> PathBuf {
    cache.join(format!("datasets--{}", repo.replace('/', "--")))
}

/// Extensions of data files.
const DATA: [&str; 4] = ["jsonl", "json", "csv", "parquet"];

/// Extensions that may follow, but for Parquet.
const COMPRESSED: [&str; 2] = ["gz", "zst"];

/// Files of that form that tools put beside data.
const NOT_DATA: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// Whether a name is that of a data file inside its repository.
fn is_data_file(name: &str) -> bool {
    let path = Path::new(name);
    if path.file_name().is_some_and(|name| NOT_DATA.iter().any(|other| name == *other)) {
        return false;
    }
    let lower = name.to_ascii_lowercase();
    let compressed = COMPRESSED.iter().find_map(|end| lower.strip_suffix(&format!(".{end}")));
    let extension = Path::new(compressed.unwrap_or(&lower)).extension();
    let is_data = extension.is_some_and(|extension| DATA.iter().any(|data| extension == *data));
    is_data
        && !(compressed.is_some() && extension.is_some_and(|extension| extension == "parquet"))
        && path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
        && !name.split('/').any(|part| part.starts_with('.'))
        && !name.chars().any(char::is_control)
}

/// Which files of a repository are its data.
pub(crate) fn wanted_data(repo: &str, names: Vec<String>) -> Result<Vec<String>, HubError> {
    let mut wanted: Vec<String> = names.into_iter().filter(|name| is_data_file(name)).collect();
    wanted.sort();
    wanted.dedup();
    if wanted.is_empty() {
        let what = "has no data file that can be read\n  \
                    hint: JSON lines, JSON, CSV and Parquet can; convert the data set first";
        return Err(HubError::Repository { repo: repo.to_owned(), what: what.to_owned() });
    }
    Ok(wanted)
}

/// Whether all data files of a snapshot are there: those that were noted when it was fetched. What
/// another program fetched has no such note, and counts if there is a data file at all.
pub(crate) fn complete_dataset(snapshot: &Path, listing: &Path) -> bool {
    let Ok(bytes) = std::fs::read(listing) else { return has_data(snapshot, 0) };
    let names = parse_unique(&bytes).ok();
    let names = names.as_ref().and_then(|names| names.as_array());
    names.is_some_and(|names| {
        let is_there = |name: &serde_json::Value| {
            name.as_str().is_some_and(|name| is_data_file(name) && snapshot.join(name).is_file())
        };
        !names.is_empty() && names.iter().all(is_there)
    })
}

fn has_data(dir: &Path, depth: usize) -> bool {
    const DEPTH_MAX: usize = 8;
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return depth < DEPTH_MAX && has_data(&path, depth + 1);
        }
        path.is_file() && entry.file_name().to_str().is_some_and(is_data_file)
    })
}

/// The commit that the cache knows for a revision (`main` if none is asked for).
pub(crate) fn commit(repository: &Path, revision: Option<&str>) -> Option<String> {
    let revision = revision.unwrap_or("main");
    if is_commit(revision) {
        let snapshot = repository.join("snapshots").join(revision);
        return snapshot.is_dir().then(|| revision.to_owned());
    }
    let text = std::fs::read_to_string(repository.join("refs").join(revision)).ok()?;
    Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
}

/// The model of a snapshot, if all of it is there: `config.json` and every weight file that the
/// index names, or a single `.gguf`.
pub(crate) fn complete_model(snapshot: &Path) -> Option<ModelFiles> {
    let has = |name: &str| snapshot.join(name).is_file();
    if has("config.json") && has("model.safetensors") {
        return Some(ModelFiles::Folder(snapshot.to_owned()));
    }
    if has("config.json") && has(INDEX) {
        let bytes = std::fs::read(snapshot.join(INDEX)).ok()?;
        let shards = shards(&bytes).ok()?;
        return shards
            .iter()
            .all(|name| has(name))
            .then(|| ModelFiles::Folder(snapshot.to_owned()));
    }
    let names = std::fs::read_dir(snapshot).ok()?.flatten().map(|entry| entry.path());
    let mut ggufs = names.filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    match (ggufs.next(), ggufs.next()) {
        (Some(gguf), None) if gguf.is_file() => Some(ModelFiles::Gguf(gguf)),
        _ => None,
    }
}

/// The index of weights in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The files that an index names, sorted.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let value = parse_unique(index).map_err(|e| e.to_string())?;
    let map = value.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or("it has no object `weight_map`")?;
    let mut names = Vec::new();
    for file in map.values() {
        let name = file.as_str().filter(|name| is_plain(name));
        names.push(name.ok_or("it names a file that is not in its folder")?.to_owned());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether a file's name is one plain name.
pub(crate) fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(name.as_ref()) && !name.chars().any(char::is_control)
}

/// Which files of a repository make up its model.
pub(crate) fn wanted(repo: &str, names: &[String]) -> Result<Vec<String>, HubError> {
    const SMALL: [&str; 11] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        INDEX,
    ];
    let has = |name: &str| names.iter().any(|n| n == name);
    let plain = names.iter().filter(|name| is_plain(name));
    let ggufs: Vec<&String> = plain.filter(|name| name.ends_with(".gguf")).collect();
    let error = |what: &str| HubError::Repository { repo: repo.to_owned(), what: what.to_owned() };
    if !has("config.json") || !(has("model.safetensors") || has(INDEX)) {
        return match ggufs.as_slice() {
            [gguf] => Ok(vec![(*gguf).clone()]),
            [] if names.iter().any(|n| n.ends_with(".bin") || n.ends_with(".pth")) => Err(error(
                "has only pickle weights, which can run code and are never opened\n  \
                           hint: look for a copy of this model in safetensors",
            )),
            [] => Err(error("has no safetensors weights with a `config.json`, and no GGUF file")),
            _ => Err(error(
                "has several GGUF files\n  \
                            hint: download the one you want and give its path",
            )),
        };
    }
    let mut wanted: Vec<String> =
        SMALL.iter().filter(|name| has(name)).map(|&name| name.to_owned()).collect();
    if has("model.safetensors") {
        wanted.retain(|name| name != INDEX);
        wanted.push("model.safetensors".to_owned());
    }
    Ok(wanted)
}
