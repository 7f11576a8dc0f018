//! Models that are read whole, and their files by content.

use crate::error::RunError;
use crate::event::Observer;
use crate::model;
use crate::overrides::Overrides;
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::open::OpenError;
use forgelm_evidence::documents::record::FileRecord;
use forgelm_hub::{HubOptions, ModelFiles, ResolvedModel, Source, resolve};
use forgelm_model::OpenModel;
use forgelm_tokenize::Tokenizer;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A model whose files are known and open.
pub struct FoundModel {
    /// What was asked for and found.
    pub resolved: ResolvedModel,
    /// Its files.
    pub open: OpenModel,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<Tokenizer>,
    /// What stands beside it.
    pub overrides: Overrides,
}

impl FoundModel {
    /// Finds and opens it, fetching it when that is needed and allowed.
    pub fn find(
        name: &str,
        options: &HubOptions,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let source = Source::parse(name)?;
        let resolved = resolve(&source, options, &mut |event| model::report(event, observer))?;
        let open = OpenModel::open(&model::model_files(&resolved.files))?;
        let (has_tokenizer, overrides) = match &resolved.files {
            ModelFiles::Gguf(_) => (true, Overrides::default()),
            ModelFiles::Folder(dir) => (has_tokenizer(dir), Overrides::read(dir)?),
        };
        let tokenizer =
            has_tokenizer.then(|| model::tokenizer(&resolved.files, None)).transpose()?;
        Ok(Self { resolved, open, tokenizer, overrides })
    }

    /// What was hashed must be what was read.
    pub fn check_unchanged(&self) -> Result<(), RunError> {
        if self.open.is_unchanged() {
            return Ok(());
        }
        Err(RunError::Changed { path: self.resolved.files.path().to_owned() })
    }
}

fn has_tokenizer(dir: &Path) -> bool {
    ["tokenizer.json", "tokenizer_config.json"].iter().any(|name| dir.join(name).is_file())
}

/// A file by its content.
pub fn record(path: &Path) -> Result<FileRecord, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let size_bytes = std::fs::metadata(path).map_err(io)?.len();
    Ok(FileRecord { name, sha256: sha256_file(path)?.to_string(), size_bytes })
}

/// The files of a folder by content, sorted by name.
pub fn records(dir: &Path) -> Result<Vec<FileRecord>, OpenError> {
    let io = |source| OpenError::Io { path: dir.to_owned(), source };
    let entries = std::fs::read_dir(dir).map_err(io)?;
    let paths = entries.map(|entry| Ok(entry.map_err(io)?.path()));
    let mut files: Vec<FileRecord> =
        paths.map(|path| record(&path?)).collect::<Result<_, OpenError>>()?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Files by content, each with the number it came with, in any order; several are read at once.
pub fn hash(
    files: Vec<(usize, PathBuf)>,
    n_threads: usize,
) -> Result<Vec<(usize, FileRecord)>, OpenError> {
    let n_threads = n_threads.clamp(1, files.len().max(1));
    let done: Mutex<Vec<(usize, FileRecord)>> = Mutex::new(Vec::new());
    let queue = Mutex::new(files.into_iter());
    let work = || -> Result<(), OpenError> {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, path)) = job else { return Ok(()) };
            let file = record(&path)?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, file));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<(), OpenError>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The files that a model's weights and description are read from.
pub fn files_of(files: &ModelFiles) -> Result<Vec<PathBuf>, OpenError> {
    let dir = match files {
        ModelFiles::Gguf(path) => return Ok(vec![path.clone()]),
        ModelFiles::Folder(dir) => dir,
    };
    let io = |source| OpenError::Io { path: dir.clone(), source };
    let mut paths = vec![dir.join("config.json")];
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            paths.push(path);
        }
    }
    Ok(paths)
}
