//! What a checkpoint consists of, with the digest of each file.

use super::{CheckpointError, MANIFEST, OPTIMIZER, STATE, damaged};
use forgelm_artifact::hash::{sha256_bytes, sha256_file};
use forgelm_model::{ADAPTER_WEIGHTS, TRAINED_WEIGHTS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const WHOLE: &str = "forgelm.checkpoint/1";
const IN_SHARDS: &str = "forgelm.checkpoint/2";
const EXTENSION: &str = ".safetensors";

/// The content of [`MANIFEST`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    /// SHA-256 of each file that is whole, by name.
    pub files: BTreeMap<String, String>,
    /// Files of tensors in pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<Shards>,
}

/// The files that processes wrote, each its part.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shards {
    /// Of each file of tensors.
    pub n: usize,
    /// By name.
    pub files: BTreeMap<String, Shard>,
}

/// A file that a process wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
}

/// Name of shard `index` (from 0) of `n` of a file of tensors.
pub fn shard_name(file: &str, index: usize, n: usize) -> String {
    let stem = file.strip_suffix(EXTENSION).unwrap_or(file);
    format!("{stem}-{:05}-of-{n:05}{EXTENSION}", index + 1)
}

/// Whether a name is one that [`shard_name`] makes.
fn is_shard_name(name: &str) -> bool {
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = || {
        let (stem, n) = name.strip_suffix(EXTENSION)?.rsplit_once("-of-")?;
        Some((stem.rsplit_once('-')?.1, n))
    };
    numbers().is_some_and(|(index, n)| is_number(index) && is_number(n))
}

impl Manifest {
    /// Of a checkpoint whose every file is whole.
    pub fn of_whole(files: BTreeMap<String, String>) -> Self {
        Self { format: WHOLE.to_owned(), files, shards: None }
    }

    /// Of one in shards.
    pub fn in_shards(files: BTreeMap<String, String>, shards: Shards) -> Self {
        Self { format: IN_SHARDS.to_owned(), files, shards: Some(shards) }
    }

    /// Reads the manifest of a checkpoint and checks that it can be one.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(MANIFEST);
        let text = std::fs::read(&path)
            .map_err(|_| damaged(path.clone(), "missing: the checkpoint is not complete"))?;
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| damaged(path.clone(), &error.to_string()))?;
        match manifest.fault() {
            None => Ok(manifest),
            Some(what) => Err(damaged(path, &what)),
        }
    }

    fn fault(&self) -> Option<String> {
        let needed: &[&str] = match (self.format.as_str(), &self.shards) {
            (WHOLE, None) => &[STATE, OPTIMIZER],
            (IN_SHARDS, Some(shards)) => match shards.fault() {
                None => &[STATE],
                fault @ Some(_) => return fault,
            },
            _ => return Some("not a manifest of this program".to_owned()),
        };
        let missing = needed.iter().find(|name| !self.files.contains_key(**name));
        missing.map(|name| format!("does not list `{name}`"))
    }

    /// Where the tensors of a file are: the file itself, or all its shards in their order.
    pub fn paths(&self, folder: &Path, file: &str) -> Vec<PathBuf> {
        match &self.shards {
            None => vec![folder.join(file)],
            Some(Shards { n, .. }) => {
                (0..*n).map(|index| folder.join(shard_name(file, index, *n))).collect()
            }
        }
    }

    /// See [`super::optimizer_sha256`].
    pub fn sha256_of(&self, file: &str) -> String {
        let Some(Shards { n, files }) = &self.shards else {
            return self.files.get(file).cloned().unwrap_or_default();
        };
        let line = |index| {
            let name = shard_name(file, index, *n);
            let sha256 = files.get(&name).map_or("", |shard| &shard.sha256);
            format!("{sha256}  {name}\n")
        };
        sha256_bytes((0..*n).map(line).collect::<String>().as_bytes()).to_string()
    }

    /// Checks every file of the checkpoint, and that no other shard lies among them.
    pub fn verify(&self, folder: &Path) -> Result<(), CheckpointError> {
        if let Some(shards) = &self.shards {
            shards.verify(folder)?;
        }
        let of_shards = self.shards.iter().flat_map(|shards| &shards.files);
        let of_shards = of_shards.map(|(name, shard)| (name, &shard.sha256));
        for (name, expected) in self.files.iter().chain(of_shards) {
            let file = folder.join(name);
            match sha256_file(&file) {
                Ok(found) if found.as_str() == expected => {}
                Ok(_) => return Err(damaged(file, "its bytes changed since it was written")),
                Err(error) => return Err(damaged(file, &error.to_string())),
            }
        }
        Ok(())
    }
}

impl Shards {
    /// Which files of tensors there are.
    pub fn numbers_file(&self) -> Option<&'static str> {
        let has = |file: &&str| self.files.contains_key(&shard_name(file, 0, self.n));
        [ADAPTER_WEIGHTS, TRAINED_WEIGHTS].into_iter().find(has)
    }

    fn fault(&self) -> Option<String> {
        let n = self.n;
        if n == 0 || n.checked_mul(2) != Some(self.files.len()) {
            let n_found = self.files.len();
            return Some(format!(
                "says {n} shards and lists {n_found} files; expected {}",
                n.saturating_mul(2)
            ));
        }
        let Some(numbers) = self.numbers_file() else {
            let expected = shard_name(ADAPTER_WEIGHTS, 0, n);
            return Some(format!("lists no shards of what trains; expected `{expected}`"));
        };
        let names = [numbers, OPTIMIZER].into_iter();
        let mut names = names.flat_map(|file| (0..n).map(move |index| shard_name(file, index, n)));
        let missing = names.find(|name| !self.files.contains_key(name));
        missing.map(|name| format!("does not list `{name}`"))
    }

    /// Which files there are, and how long each is; not their digests.
    fn verify(&self, folder: &Path) -> Result<(), CheckpointError> {
        let n = self.n;
        for (name, shard) in &self.files {
            let path = folder.join(name);
            let Ok(found) = path.metadata() else {
                return Err(damaged(path, &format!("missing: one of the checkpoint's {n} shards")));
            };
            if found.len() != shard.bytes {
                let (found, expected) = (found.len(), shard.bytes);
                let what = format!("has {found} bytes; the manifest says {expected}");
                return Err(damaged(path, &what));
            }
        }
        let unlisted = |error: std::io::Error| damaged(folder.to_owned(), &error.to_string());
        let mut foreign = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unlisted)? {
            let name = entry.map_err(unlisted)?.file_name().to_string_lossy().into_owned();
            if is_shard_name(&name) && !self.files.contains_key(&name) {
                foreign.push(name);
            }
        }
        match foreign.into_iter().min() {
            None => Ok(()),
            Some(name) => {
                let what = format!("is none of the {n} shards that the manifest lists");
                Err(damaged(folder.join(name), &what))
            }
        }
    }
}
