//! What lies in a run's folder, and since when, as the log and the file system say it.

use super::scan::{Artefact, Facts, Kind};
use crate::error::RunError;
use crate::traces::Traces;
use forgelm_artifact::UtcTime;
use forgelm_artifact::open::OpenError;
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::audit::entries::read_entries;
use forgelm_evidence::bundle::COMPLIANCE_DIR;
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// In a staged model's folder whose name has no run: the run.
pub const STAGING_RUN_FILE: &str = "staging_run_id";
/// Names of what data was made from, in a run's folder.
const RAW: [&str; 2] = ["raw_documents", "ingestion_output"];
/// Folders nested deeper than this are not looked into.
const DEPTH_MAX: usize = 64;

/// Reads everything that a scan of `dir` needs; `final_model` is the name of the folder of the tuned
/// model, `cache_dir` the cache of the program. A folder that is not there has nothing.
///
/// # Errors
/// If something is there and cannot be read.
pub fn read(dir: &Path, final_model: &str, cache_dir: &Path) -> Result<Facts, RunError> {
    let mut artefacts = Vec::new();
    let mut add = |kind, path: PathBuf, modified| artefacts.push(Artefact { kind, path, modified });
    let at = |name: &str| -> Result<Option<(PathBuf, Metadata)>, RunError> {
        let path = dir.join(name);
        Ok(metadata(&path)?.map(|metadata| (path, metadata)))
    };
    if let Some((path, metadata)) = at(LOG_FILE)? {
        add(Kind::AuditLog, path, modified(&metadata));
    }
    let mut names = names(dir)?;
    names.sort();
    for name in &names {
        if let Some(kind) = of_name(dir, name, final_model)?
            && let Some((path, metadata)) = at(name)?
            && metadata.is_dir()
        {
            let newest = times(&path)?.into_iter().max();
            add(kind, path, newest.unwrap_or_else(|| modified(&metadata)));
        }
    }
    if let Some((path, metadata)) = at(COMPLIANCE_DIR)? {
        let newest = times(&path)?.into_iter().max();
        add(Kind::ComplianceBundle, path, newest.unwrap_or_else(|| modified(&metadata)));
    }
    if let Some((path, metadata)) = at(crate::audit::REPORT_FILE)? {
        add(Kind::DataAuditReport, path, modified(&metadata));
    }
    for name in RAW {
        if let Some((path, metadata)) = at(name)? {
            // Each document has its own days: the folder is as old as the oldest in it.
            let oldest = if metadata.is_dir() { times(&path)?.into_iter().min() } else { None };
            add(Kind::RawDocuments(name), path, oldest.unwrap_or_else(|| modified(&metadata)));
        }
    }
    let traces = Traces::read(dir);
    let data: Vec<&String> = traces.iter().flat_map(|traces| traces.data.keys()).collect();
    if !data.is_empty() {
        let cached = forgelm_data::cached_tokens(cache_dir).map_err(failed(cache_dir))?;
        for cached in cached {
            if data.iter().any(|sha256| cached.holds(sha256)) {
                add(Kind::TokenCache, cached.path, cached.modified);
            }
        }
    }
    Ok(Facts { entries: read_entries(&dir.join(LOG_FILE))?, artefacts })
}

/// Staged models and checkpoints go by their names.
fn of_name(dir: &Path, name: &str, final_model: &str) -> Result<Option<Kind>, RunError> {
    if let Some(step) = name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok()) {
        return Ok(Some(Kind::Checkpoint(step)));
    }
    let Some(rest) = name.strip_prefix(&staging_name(final_model)) else { return Ok(None) };
    match rest.strip_prefix('.') {
        Some(run_id) => {
            Ok(Some(Kind::Staging { run_id: Some(run_id.to_owned()), is_in_name: true }))
        }
        None if rest.is_empty() => {
            let run_id = staging_run_id(&dir.join(name))?;
            Ok(Some(Kind::Staging { run_id, is_in_name: false }))
        }
        None => Ok(None),
    }
}

/// Name of the folder of a staged model, before its run.
#[must_use]
pub fn staging_name(final_model: &str) -> String {
    format!("{final_model}.staging")
}

/// The run that a staged model's folder says it is of, where a file in it says so.
///
/// # Errors
/// If that file is there and cannot be read.
pub fn staging_run_id(dir: &Path) -> Result<Option<String>, RunError> {
    let path = dir.join(STAGING_RUN_FILE);
    if metadata(&path)?.is_none() {
        return Ok(None);
    }
    let (file, _) = forgelm_artifact::open::regular(&path)?;
    let mut text = String::new();
    file.take(256).read_to_string(&mut text).map_err(failed(&path))?;
    Ok(Some(text.trim().to_owned()))
}

/// What lies at a path, links not followed.
fn metadata(path: &Path) -> Result<Option<Metadata>, RunError> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

fn names(dir: &Path) -> Result<Vec<String>, RunError> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(dir))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(failed(dir))
}

/// When each file in a folder was last written.
fn times(dir: &Path) -> Result<Vec<UtcTime>, RunError> {
    let mut found = Vec::new();
    collect_times(dir, 0, &mut found)?;
    Ok(found)
}

fn collect_times(dir: &Path, depth: usize, found: &mut Vec<UtcTime>) -> Result<(), RunError> {
    for name in names(dir)? {
        let path = dir.join(name);
        let Some(metadata) = metadata(&path)? else { continue };
        if metadata.is_dir() && depth < DEPTH_MAX {
            collect_times(&path, depth + 1, found)?;
        } else if metadata.is_file() {
            found.push(modified(&metadata));
        }
    }
    Ok(())
}

fn modified(metadata: &Metadata) -> UtcTime {
    UtcTime(metadata.mtime().saturating_mul(1_000_000) + metadata.mtime_nsec() / 1000)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RunError {
    |source| RunError::Open(OpenError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::{Kind, read};
    use forgelm_artifact::write;
    use std::path::Path;

    fn put(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        write::create_dir_all_durable(path.parent().expect("a folder")).expect("made");
        write::atomic(&path, text.as_bytes()).expect("written");
    }

    #[test]
    fn what_lies_in_a_folder_is_known_by_its_names() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = dir.path().join("cache");
        assert_eq!(
            read(&dir.path().join("none"), "final_model", &cache).expect("read").artefacts,
            []
        );
        for name in [
            "audit_log.jsonl",
            "tuned.staging.fg-1/model",
            "tuned.staging.fg-2/model",
            "tuned.stagings/model",
            "final_model.staging.fg-3/model",
            "compliance/config.json",
            "checkpoint-4/x",
            "checkpoint-x/x",
            "data_audit_report.json",
            "raw_documents/a/b.pdf",
            "ingestion_output",
        ] {
            put(dir.path(), name, "");
        }
        put(dir.path(), "tuned.staging/staging_run_id", " fg-9\n");
        let facts = read(dir.path(), "tuned", &cache).expect("read");
        let kinds: Vec<String> = facts.artefacts.iter().map(|a| a.kind.to_string()).collect();
        let expected = [
            "audit_log",
            "checkpoint[4]",
            "staging_dir",
            "staging_dir[fg-1]",
            "staging_dir[fg-2]",
            "compliance_bundle",
            "data_audit_report",
            "raw_documents[raw_documents]",
            "raw_documents[ingestion_output]",
        ];
        assert_eq!(kinds, expected);
        let run_id = Some("fg-9".to_owned());
        assert_eq!(facts.artefacts[2].kind, Kind::Staging { run_id, is_in_name: false });
    }
}
