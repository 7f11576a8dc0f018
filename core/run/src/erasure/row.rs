//! `forgelm purge --row-id`: a row is taken out of a file of JSON lines.

use super::ErasureError;
use super::copies::{self, Copies, Copy, CopyKind, Places};
use super::log::{Done, Record, Target};
use super::reach::Reach;
use super::rows::{self, Found};
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::read_config;
use crate::remark;
use crate::retention::hold;
use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::write;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::identifier::{HASH_SCHEME, Identifiers};
use forgelm_evidence::keys::KeyError;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct RowRequest {
    /// The row's `id` or `row_id`.
    pub id: String,
    /// The file of JSON lines.
    pub corpus: PathBuf,
    /// Whether all rows with the identifier go, where there are several.
    pub all_matches: bool,
    /// The folder whose log has the record; the data's when not given.
    pub output_dir: Option<PathBuf>,
    /// The config of the run, for its hold, its folder and its webhook.
    pub config: Option<PathBuf>,
    /// More folders in which runs may be.
    pub search: Vec<PathBuf>,
    /// Why.
    pub justification: Option<String>,
    /// Whether nothing is removed.
    pub dry_run: bool,
    /// Whether tokens of the data are removed from the cache.
    pub erase_caches: bool,
    /// The key that signs the log's head.
    pub signing_key: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct ErasedRow {
    dry_run: bool,
    id_hash: String,
    salt_source: &'static str,
    corpus: PathBuf,
    found: Found,
    sha256_after: Option<String>,
    copies: Vec<Copy>,
    removed_caches: Vec<PathBuf>,
    warnings: Vec<String>,
}

/// Takes out the row, or says what would be done.
///
/// # Errors
/// If anything is not as it must be: the data is as it was then, unless only the record of the success
/// failed.
pub fn purge_row(
    request: &RowRequest,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<ErasedRow, RunError> {
    if request.id.trim().is_empty() {
        let problem = "blank; expected the `id` or `row_id` of a row".to_owned();
        return Err(ErasureError::Flag { flag: "--row-id", problem }.into());
    }
    let corpus = corpus(&request.corpus)?;
    let run = request.config.as_deref().map(read_config).transpose()?.map(|loaded| loaded.run);
    let parent = corpus.parent().unwrap_or(Path::new("/")).to_owned();
    let dir = request.output_dir.clone().unwrap_or_else(|| match request.corpus.parent() {
        Some(given) if !given.as_os_str().is_empty() && !request.corpus.is_symlink() => {
            given.to_owned()
        }
        _ => parent.clone(),
    });
    let of_run = run.as_ref().map(|run| PathBuf::from(&run.training.output_dir));
    let held: Vec<&Path> = [Some(dir.as_path()), Some(parent.as_path()), of_run.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    hold::check(&held, run.as_ref())?;
    let justification = request.justification.as_deref();
    let justification =
        justification.map(|text| remark::recorded("--justification", text)).transpose()?;
    let operator = dossier::operator(env)?;
    let signer = match request.dry_run {
        true => None,
        false => Some(dossier::key_by_default(request.signing_key.clone(), env, observer)?),
    };
    let signer = signer.map(|key| key.ok_or(KeyError::NoPlace)).transpose()?.map(|key| key.signer);
    write::create_dir_all_durable(&dir)?;
    let secret = env.audit_secret.as_ref().and_then(dossier::to_evidence);
    let identifiers = Identifiers::of_folder(&dir, secret).map_err(ErasureError::from)?;
    let id_hash = identifiers.digest(&request.id);
    let target = Target {
        kind: "row",
        id: id_hash.clone(),
        salt: Some(identifiers.source()),
        corpus: Some(request.corpus.clone()),
        dir: dir.clone(),
        justification,
        dry_run: request.dry_run,
    };
    let mut record = Record::begin(target, env.run_id(), operator, signer.as_deref(), env)?;
    let mut n_matches = None;
    let work = Work { request, corpus: &corpus, dir: &dir, parent: &parent, of_run, env };
    let done = work.erase(&mut n_matches);
    let (found, sha256_after, copies, removed_caches) = match done {
        Ok(done) => done,
        Err(error) => return Err(record.failed(error, n_matches, Vec::new())),
    };
    let is_left = |copy: &&Copy| !removed_caches.contains(&copy.path);
    let left: Vec<&Copy> = copies.known.iter().filter(is_left).collect();
    let modified = sha256_after.iter().map(|_| request.corpus.display().to_string());
    record.completed(Done {
        bytes_freed: if request.dry_run { 0 } else { found.n_bytes },
        files_modified: modified
            .chain(removed_caches.iter().map(|path| path.display().to_string()))
            .collect(),
        first_line: found.lines.first().copied(),
        n_matches,
        sha256_before: Some(found.sha256.clone()),
        sha256_after: sha256_after.clone(),
        copies: left.iter().map(|copy| copy.path.display().to_string()).collect(),
        statement: None,
    })?;
    let reach = Reach { dir: &dir, env };
    let mut warnings = reach.warn(&mut record, &left, run.as_ref())?;
    if !copies.is_complete {
        let text = "there are too many folders to look for runs in all of them: `--search` names those \
                    that matter, which are looked into first";
        warnings.push(text.to_owned());
    }
    if found.n_unread > 0 {
        warnings.push(format!(
            "{} lines of the data are no JSON objects and were not looked into",
            found.n_unread
        ));
    }
    record.sign_head()?;
    for warning in &warnings {
        observer.observe(&Event::Warning(warning.clone()));
    }
    Ok(ErasedRow {
        dry_run: request.dry_run,
        id_hash,
        salt_source: identifiers.source().as_str(),
        corpus: request.corpus.clone(),
        found,
        sha256_after,
        copies: copies.known,
        removed_caches,
        warnings,
    })
}

/// The data file, links followed: a link would be replaced, and the rows stay where it leads.
fn corpus(path: &Path) -> Result<PathBuf, RunError> {
    let refused = |problem: &str| ErasureError::Target {
        path: path.to_owned(),
        problem: problem.to_owned(),
        hint: "`--corpus` names one file of JSON lines",
    };
    match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refused("no such file").into());
        }
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }.into()),
        Ok(metadata) if metadata.is_dir() => {
            return Err(refused("a folder; rows are purged from one file at a time").into());
        }
        Ok(metadata) if !metadata.is_file() => return Err(refused("no regular file").into()),
        Ok(_) => {}
    }
    let real = path.canonicalize();
    Ok(real.map_err(|source| OpenError::Io { path: path.to_owned(), source })?)
}

struct Work<'a> {
    request: &'a RowRequest,
    corpus: &'a Path,
    dir: &'a Path,
    parent: &'a Path,
    of_run: Option<PathBuf>,
    env: &'a Environment,
}

type Erasure = (Found, Option<String>, Copies, Vec<PathBuf>);

impl Work<'_> {
    /// Finds the row and its copies and writes the data without it.
    fn erase(&self, n_matches: &mut Option<u64>) -> Result<Erasure, RunError> {
        let (mut file, metadata) = self.locked()?;
        let found = rows::find(self.corpus, &mut file, &self.request.id)?;
        let n = found.lines.len() as u64;
        *n_matches = Some(n);
        let path = self.request.corpus.clone();
        match found.lines.first() {
            None => {
                let (n_rows, n_unread) = (found.n_rows, found.n_unread);
                return Err(ErasureError::NoMatchingRow { path, n_rows, n_unread }.into());
            }
            Some(&first) if n > 1 && !self.request.all_matches => {
                return Err(ErasureError::MultiMatchRefused { path, n, first }.into());
            }
            Some(_) => {}
        }
        let copies = copies::find(&Places {
            corpus: self.corpus,
            sha256: &found.sha256,
            roots: &self.roots(),
            cache_dir: &self.env.cache_dir,
            log: &self.dir.join(LOG_FILE),
        })?;
        // What a run was trained on is held with the run.
        for copy in copies.known.iter().filter(|copy| copy.kind.is_weights()) {
            let folder = copy.path.parent().unwrap_or(&copy.path);
            hold::check(&[&copy.path, folder], None)?;
        }
        if self.request.dry_run {
            return Ok((found, None, copies, Vec::new()));
        }
        if !is_same(&file, &metadata, self.corpus) {
            return Err(ErasureError::Changed { path }.into());
        }
        // Caches first: one that is gone is made again, whatever happens next.
        let mut removed = Vec::new();
        if self.request.erase_caches {
            let is_cache = |copy: &&Copy| {
                matches!(copy.kind, CopyKind::TokenCache | CopyKind::UnknownTokenCache)
            };
            for copy in copies.known.iter().filter(is_cache) {
                write::remove_file(&copy.path).map_err(ErasureError::from)?;
                removed.push(copy.path.clone());
            }
        }
        let mut after = String::new();
        write::replace_keeping(self.corpus, |out| {
            after = rows::copy_without(self.corpus, &mut file, &found.lines, out)?;
            Ok(())
        })
        .map_err(ErasureError::from)?;
        Ok((found, Some(after), copies, removed))
    }

    /// The data, locked against other programs that ask.
    fn locked(&self) -> Result<(File, Metadata), RunError> {
        let (file, _) = open::regular(self.corpus).map_err(ErasureError::from)?;
        let failed =
            |source| ErasureError::Open(OpenError::Io { path: self.corpus.to_owned(), source });
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ErasureError::Busy { path: self.request.corpus.clone() }.into());
            }
            Err(TryLockError::Error(source)) => return Err(failed(source).into()),
        }
        let metadata = file.metadata().map_err(failed)?;
        Ok((file, metadata))
    }

    fn roots(&self) -> Vec<PathBuf> {
        let named = self.request.search.iter().cloned().chain(self.of_run.clone());
        named.chain([self.dir.to_owned(), self.parent.to_owned()]).collect()
    }
}

/// Whether the open file is still what has the name, as it was.
fn is_same(file: &File, before: &Metadata, path: &Path) -> bool {
    let same = |now: Metadata| {
        (now.dev(), now.ino(), now.len(), now.mtime(), now.mtime_nsec())
            == (before.dev(), before.ino(), before.len(), before.mtime(), before.mtime_nsec())
    };
    path.symlink_metadata().is_ok_and(same) && file.metadata().is_ok_and(same)
}

impl ErasedRow {
    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut document = json!({
            "success": true,
            "mode": "row",
            "dry_run": self.dry_run,
            "row_id_hash": self.id_hash,
            "hash_scheme": HASH_SCHEME,
            "salt_source": self.salt_source,
            "corpus_path": self.corpus,
            "matches": self.found.lines.len(),
            "first_line": self.found.lines.first(),
        });
        if !self.dry_run {
            document["bytes_freed"] = json!(self.found.n_bytes);
        }
        let copies: Vec<Value> = self.copies.iter().map(Copy::to_json).collect();
        let more = [
            ("warnings", json!(self.warnings)),
            ("copies", Value::Array(copies)),
            ("removed_caches", json!(self.removed_caches)),
            ("lines_not_read", json!(self.found.n_unread)),
            ("corpus_sha256_before", json!(self.found.sha256)),
            ("corpus_sha256_after", json!(self.sha256_after)),
        ];
        for (key, value) in more {
            document[key] = value;
        }
        document
    }

    /// The lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let n = self.found.lines.len();
        let rows = if n == 1 { "row" } else { "rows" };
        let first = self.found.lines.first().copied().unwrap_or_default();
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        let mut text = format!(
            "{}: {n} {rows} {verb}, the first in line {first}, {} bytes (id {})\n",
            self.corpus.display(),
            self.found.n_bytes,
            short(&self.id_hash)
        );
        for path in &self.removed_caches {
            let _ = writeln!(text, "removed token_cache {}", path.display());
        }
        let left = self.copies.iter().filter(|copy| !self.removed_caches.contains(&copy.path));
        let left: Vec<String> = left.map(|copy| format!("  {copy}\n")).collect();
        if left.is_empty() {
            text.push_str("no other copy is known\n");
        } else {
            let _ = write!(text, "more of it is known to be in:\n{}", left.concat());
        }
        text
    }
}

/// A digest as people see it.
fn short(digest: &str) -> String {
    format!("<id_hash:{}…>", digest.get(..12).unwrap_or(digest))
}
