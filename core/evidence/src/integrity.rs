//! `model_integrity.json`: the digests of every file of a model folder, and their verification.
//!
//! It is written after every other file of the folder, so that a fresh folder verifies. It is not
//! signed by itself: the run's attestation signs it and the files it names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use forgelm_artifact::UtcTime;
use forgelm_artifact::write::{self, WriteError};
use serde_json::{Value, json};

use crate::class::Class;
use crate::digest::unhex32;
use crate::dsse::statement::is_subject_name;
use crate::files::{self, EntryKind, FileDigest, FileProblem};
use crate::strict_json::{DOCUMENT_LIMITS, parse};
use crate::text::{pretty_json, shown};

/// File name inside the model folder.
pub const INTEGRITY_FILE: &str = "model_integrity.json";
/// Files that may lie in a model folder without being listed: they sign the list.
pub const EXCLUDED: [&str; 1] = ["model.sig"];

/// A document that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIntegrity {
    /// The files, sorted by name.
    pub artifacts: Vec<Artifact>,
}

/// One file of a model folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Path below the folder, with `/`.
    pub file: String,
    /// 64 lowercase hex characters.
    pub sha256: String,
    /// Size.
    pub size_bytes: u64,
}

/// Why the document was not written.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityError {
    /// The folder cannot be listed.
    #[error("{}: cannot be listed", .path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A link, a device, a file that cannot be read.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// There is nothing in the folder.
    #[error("{}: the model folder is empty", .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// What was just written does not verify: another process changes the folder.
    #[error("{}: {reason} while the folder was being recorded", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Records every file of `dir` in its `model_integrity.json`; `shown_path` is how documents name
/// the folder. The result is read back and compared with the files once more.
///
/// # Errors
/// If there is a link or anything else that is not a file, if the folder is empty, or if reading
/// or writing fails.
pub fn write_model_integrity(
    dir: &Path,
    shown_path: &str,
    now: UtcTime,
) -> Result<ModelIntegrity, IntegrityError> {
    let found = files::walk(dir, "")
        .map_err(|source| IntegrityError::List { path: dir.to_owned(), source })?;
    let names: Vec<&str> = found
        .keys()
        .map(String::as_str)
        .filter(|name| *name != INTEGRITY_FILE && !EXCLUDED.contains(name))
        .collect();
    if names.is_empty() {
        return Err(IntegrityError::Empty { path: dir.to_owned() });
    }
    let mut artifacts = Vec::with_capacity(names.len());
    for (name, digest) in names.iter().zip(files::digests(dir, &names)) {
        let FileDigest { sha256, size_bytes } = digest.map_err(|problem| IntegrityError::File {
            path: dir.join(name),
            reason: problem.reason(),
        })?;
        artifacts.push(Artifact { file: (*name).to_owned(), sha256, size_bytes });
    }
    let rows: Vec<Value> = artifacts
        .iter()
        .map(|a| json!({"file": a.file, "sha256": a.sha256, "size_bytes": a.size_bytes}))
        .collect();
    let document = json!({
        "verified_at": now.to_string(),
        "model_path": shown_path,
        "artifacts": rows,
        "excluded": EXCLUDED,
    });
    write::atomic(&dir.join(INTEGRITY_FILE), &pretty_json(&document))?;
    let report = verify_integrity(dir);
    match report.first_problem() {
        None => Ok(ModelIntegrity { artifacts }),
        Some((file, reason)) => Err(IntegrityError::Changed { path: dir.join(file), reason }),
    }
}

/// What a verification of a model folder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegrityReport {
    /// The exit class.
    pub class: Class,
    /// The folder.
    pub path: PathBuf,
    /// Why, when it is not accepted.
    pub reason: Option<String>,
    /// Files whose bytes differ, sorted.
    pub changed: Vec<String>,
    /// Files that are listed but not there (or not files any more), sorted.
    pub removed: Vec<String>,
    /// Files that are there but not listed, sorted.
    pub added: Vec<String>,
    /// Files that are listed and could not be read, sorted.
    pub unreadable: Vec<String>,
    /// Number of files that are as recorded.
    pub verified_count: usize,
}

impl IntegrityReport {
    fn empty(dir: &Path) -> Self {
        Self {
            class: Class::Accepted,
            path: dir.to_owned(),
            reason: None,
            changed: Vec::new(),
            removed: Vec::new(),
            added: Vec::new(),
            unreadable: Vec::new(),
            verified_count: 0,
        }
    }

    fn stopped(mut self, class: Class, reason: impl Into<String>) -> Self {
        self.class = class;
        self.reason = Some(reason.into());
        self
    }

    fn first_problem(&self) -> Option<(&str, String)> {
        let lists = [
            (&self.changed, "changed"),
            (&self.removed, "missing"),
            (&self.added, "added"),
            (&self.unreadable, "unreadable"),
        ];
        let named = lists
            .iter()
            .find_map(|(list, what)| list.first().map(|f| (f.as_str(), (*what).to_owned())));
        named.or_else(|| self.reason.clone().map(|reason| (INTEGRITY_FILE, reason)))
    }

    /// The JSON document of `verify-integrity`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let valid = self.class == Class::Accepted;
        json!({
            "success": valid,
            "valid": valid,
            "reason": self.reason,
            "changed": self.changed,
            "removed": self.removed,
            "added": self.added,
            "unreadable": self.unreadable,
            "verified_count": self.verified_count,
            "path": self.path.display().to_string(),
        })
    }

    /// The lines for people: the verdict first, then each file.
    #[must_use]
    pub fn to_lines(&self) -> Vec<String> {
        let path = self.path.display();
        let Some(reason) = &self.reason else {
            return vec![format!("OK: {path}: {} files verified", self.verified_count)];
        };
        let mut lines = vec![format!("FAIL: {path}: {reason}")];
        let lists = [
            (&self.changed, "changed"),
            (&self.removed, "missing"),
            (&self.added, "added"),
            (&self.unreadable, "unreadable"),
        ];
        for (list, what) in lists {
            lines.extend(list.iter().map(|file| format!("  {what}: {}", shown(file))));
        }
        lines
    }
}

/// Compares a model folder with its `model_integrity.json`.
#[must_use]
pub fn verify_integrity(dir: &Path) -> IntegrityReport {
    let report = IntegrityReport::empty(dir);
    let listed = match read_list(dir) {
        Ok(listed) => listed,
        Err((class, reason)) => return report.stopped(class, reason),
    };
    let names: Vec<&str> = listed.keys().map(String::as_str).collect();
    let present = match files::walk(dir, "") {
        Ok(present) => present,
        Err(e) => return report.stopped(Class::Unreadable, format!("cannot be listed: {e}")),
    };
    let mut report = report;
    for (name, digest) in names.iter().zip(files::digests(dir, &names)) {
        let name = (*name).to_owned();
        let expected = &listed[&name];
        match digest {
            Ok(found) if expected.matches(&found) => report.verified_count += 1,
            Ok(_) => report.changed.push(name),
            Err(FileProblem::Unreadable(_)) => report.unreadable.push(name),
            Err(FileProblem::Missing | FileProblem::Symlink | FileProblem::NotAFile(_)) => {
                report.removed.push(name);
            }
        }
    }
    let is_allowed = |name: &str, kind: EntryKind| {
        let own = name == INTEGRITY_FILE || EXCLUDED.contains(&name);
        listed.contains_key(name) || (own && kind == EntryKind::File)
    };
    report.added =
        present.into_iter().filter(|(n, kind)| !is_allowed(n, *kind)).map(|(n, _)| n).collect();
    let n_different = report.changed.len() + report.removed.len() + report.added.len();
    let n_unreadable = report.unreadable.len();
    if n_different > 0 {
        let reason = format!(
            "{} changed, {} missing, {} added",
            report.changed.len(),
            report.removed.len(),
            report.added.len()
        );
        return report.stopped(Class::Different, reason);
    }
    if n_unreadable > 0 {
        return report.stopped(Class::Unreadable, format!("{n_unreadable} files cannot be read"));
    }
    report
}

struct Listed {
    sha256: Option<String>,
    size_bytes: Option<u64>,
}

impl Listed {
    /// A missing digest counts as different; a missing size is not compared.
    fn matches(&self, found: &FileDigest) -> bool {
        self.sha256.as_deref() == Some(found.sha256.as_str())
            && self.size_bytes.is_none_or(|size| size == found.size_bytes)
    }
}

fn read_list(dir: &Path) -> Result<BTreeMap<String, Listed>, (Class, String)> {
    let not_compared = |reason: String| (Class::NotCompared, reason);
    let bytes = match files::read_bounded(&dir.join(INTEGRITY_FILE), DOCUMENT_LIMITS.size_bytes) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(not_compared(format!("{INTEGRITY_FILE} is larger than 16 MiB"))),
        Err(FileProblem::Unreadable(e)) => {
            return Err((Class::Unreadable, format!("{INTEGRITY_FILE} cannot be read: {e}")));
        }
        Err(problem) => {
            return Err(not_compared(format!("{INTEGRITY_FILE}: {}", problem.reason())));
        }
    };
    let invalid = |what: &str| not_compared(format!("{INTEGRITY_FILE}: {what}"));
    let document = parse(&bytes, DOCUMENT_LIMITS).map_err(|e| invalid(&e.to_string()))?;
    let artifacts = document.get("artifacts").and_then(Value::as_array);
    let artifacts = artifacts
        .filter(|list| !list.is_empty())
        .ok_or_else(|| invalid("`artifacts` is not a list of files"))?;
    let mut listed = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for entry in artifacts {
        let file = entry.get("file").and_then(Value::as_str);
        let file = file
            .filter(|file| is_subject_name(file))
            .ok_or_else(|| invalid("an entry's `file` is not a path inside the folder"))?;
        if !seen.insert(file) {
            return Err(invalid(&format!("`{}` is listed twice", shown(file))));
        }
        let sha256 = entry.get("sha256").and_then(Value::as_str);
        let sha256 = sha256.filter(|hex| unhex32(hex.as_bytes()).is_some()).map(str::to_owned);
        let size_bytes = entry.get("size_bytes").and_then(Value::as_u64);
        listed.insert(file.to_owned(), Listed { sha256, size_bytes });
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use forgelm_artifact::UtcTime;
    use forgelm_artifact::write::atomic as put;
    use serde_json::Value;

    use super::{INTEGRITY_FILE, IntegrityError, verify_integrity, write_model_integrity};
    use crate::class::Class;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("adapter_config.json"), b"a").unwrap();
        put(&dir.path().join("adapter_model.safetensors"), b"b").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        put(&dir.path().join("sub/x"), b"x").unwrap();
        dir
    }

    fn write(dir: &Path) {
        let now: UtcTime = "2026-01-01T01:00:00.000001Z".parse().unwrap();
        write_model_integrity(dir, "checkpoints/final_model", now).unwrap();
    }

    #[test]
    fn a_fresh_folder_verifies_and_has_the_form_of_the_specification() {
        let dir = folder();
        write(dir.path());
        let document: Value =
            serde_json::from_slice(&fs::read(dir.path().join(INTEGRITY_FILE)).unwrap()).unwrap();
        assert_eq!(document["verified_at"], "2026-01-01T01:00:00.000001+00:00");
        assert_eq!(document["model_path"], "checkpoints/final_model");
        let first = &document["artifacts"][0];
        assert_eq!(first["file"], "adapter_config.json");
        assert_eq!(
            first["sha256"],
            "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
        );
        assert_eq!(first["size_bytes"], 1);
        assert_eq!(document["artifacts"][2]["file"], "sub/x");
        let report = verify_integrity(dir.path());
        assert_eq!((report.class, report.verified_count), (Class::Accepted, 3));
        write(dir.path());
        assert_eq!(verify_integrity(dir.path()).class, Class::Accepted, "written twice");
        put(&dir.path().join("model.sig"), b"{}").unwrap();
        assert_eq!(verify_integrity(dir.path()).class, Class::Accepted, "a signature is allowed");
    }

    #[test]
    fn fault_100_changed_missing_extra_renamed_and_linked_files_each_have_their_list() {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        write(dir.path());
        put(&at("adapter_config.json"), b"A").unwrap();
        fs::rename(at("sub/x"), at("sub/y")).unwrap();
        put(&at("extra"), b"").unwrap();
        fs::rename(at("adapter_model.safetensors"), at("moved")).unwrap();
        symlink(at("moved"), at("adapter_model.safetensors")).unwrap();
        let report = verify_integrity(dir.path());
        assert_eq!(report.class, Class::Different);
        assert_eq!(report.changed, ["adapter_config.json"]);
        assert_eq!(report.removed, ["adapter_model.safetensors", "sub/x"]);
        assert_eq!(report.added, ["extra", "moved", "sub/y"]);
        assert_eq!(report.to_json()["success"], false);
        assert_eq!(report.to_lines().len(), 7);
        let now = UtcTime(0);
        let error = write_model_integrity(dir.path(), "m", now).unwrap_err();
        assert!(matches!(error, IntegrityError::File { .. }), "{error}");
    }

    #[test]
    fn fault_104_what_cannot_be_compared_is_1() {
        let dir = folder();
        let class = |text: &str| {
            put(&dir.path().join(INTEGRITY_FILE), text.as_bytes()).unwrap();
            verify_integrity(dir.path()).class
        };
        let deep = "[".repeat(100_000);
        let entry =
            |file: &str| format!(r#"{{"artifacts": [{{"file": "{file}", "sha256": ""}}]}}"#);
        let doubled = r#"{"artifacts": [{"file": "a", "file": "b"}]}"#;
        for text in ["", "x", "[]", "{}", r#"{"artifacts": []}"#, &deep, doubled, &entry("../x")] {
            assert_eq!(class(text), Class::NotCompared, "{text:.60}");
        }
        assert_eq!(class(&entry("adapter_config.json")), Class::Different, "no digest");
        fs::remove_file(dir.path().join(INTEGRITY_FILE)).unwrap();
        assert_eq!(verify_integrity(dir.path()).class, Class::NotCompared);
        assert_eq!(verify_integrity(&dir.path().join("none")).class, Class::NotCompared);
        let empty = tempfile::tempdir().unwrap();
        let error = write_model_integrity(empty.path(), "m", UtcTime(0)).unwrap_err();
        assert!(matches!(error, IntegrityError::Empty { .. }));
    }
}
