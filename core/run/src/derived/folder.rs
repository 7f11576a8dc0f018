//! The folder that a merge or a quantization makes: it appears whole or not at all.

use super::found::FoundModel;
use crate::error::RunError;
use crate::output::lies_in;
use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::write::{self, StagedDir};
use forgelm_hub::ModelFiles;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files of a tokenizer in a model's folder, which are copied as they are.
const TOKENIZER_FILES: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
/// What a disk must have free beside the weights: documents and the tokenizer.
const SLACK: u64 = 64 << 20;

/// Refuses a folder that has anything in it.
pub fn check_empty(dir: &Path) -> Result<(), RunError> {
    let refuse = |problem: String| RunError::OutputDir {
        dir: dir.to_owned(),
        problem,
        hint: "choose another folder: nothing is ever overwritten",
    };
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refuse(format!("cannot be listed: {error}"))),
        Ok(entries) => {
            let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            let mut names: Vec<String> = entries.flatten().map(name).collect();
            names.sort();
            match names.first() {
                None => Ok(()),
                Some(first) => Err(refuse(format!("is not empty: it has `{first}`"))),
            }
        }
    }
}

/// Refuses a folder that is, or lies in, what is read.
pub fn check_outside(dir: &Path, inputs: &[PathBuf]) -> Result<(), RunError> {
    match inputs.iter().find(|input| lies_in(dir, input)) {
        None => Ok(()),
        Some(input) => Err(RunError::OutputDir {
            dir: dir.to_owned(),
            problem: format!("is or lies in the input `{}`", input.display()),
            hint: "choose a folder outside everything that is read",
        }),
    }
}

/// Refuses a disk that has no room for the result.
pub fn check_room(dir: &Path, n_bytes: u64) -> Result<(), RunError> {
    let needed = n_bytes + SLACK;
    match write::free_bytes(dir) {
        Ok(available) if available < needed => Err(RunError::Disk {
            dir: dir.to_owned(),
            needed,
            available,
            hint: "free some space, or choose a folder on another disk",
        }),
        // A system that does not say is asked again by every write.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The files beside the weights: the description and the tokenizer of a model.
pub fn companions(model: &FoundModel) -> Result<Vec<(String, Vec<u8>)>, RunError> {
    let description = model.open.description()?;
    let mut files: Vec<(String, Vec<u8>)> =
        description.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect();
    match &model.resolved.files {
        ModelFiles::Folder(dir) => {
            for name in TOKENIZER_FILES {
                let path = dir.join(name);
                if path.is_file() {
                    files.push((name.to_owned(), read(&path)?));
                }
            }
        }
        ModelFiles::Gguf(_) => {
            let own = model.tokenizer.as_ref().map(|t| t.files()).transpose()?.unwrap_or_default();
            for (name, text) in own {
                if files.iter().all(|(other, _)| *other != name) {
                    files.push((name, text.into_bytes()));
                }
            }
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    let (mut file, _) = open::regular(path)?;
    let mut bytes = Vec::new();
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    file.read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Gives the folder its name. An empty folder that has it gives way.
pub fn commit(dir: StagedDir) -> Result<(), RunError> {
    let is_there = dir.final_path().is_dir();
    check_empty(dir.final_path())?;
    if is_there {
        dir.commit_replacing()?
    } else {
        dir.commit()?
    }
    Ok(())
}
