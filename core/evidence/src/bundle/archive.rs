//! The evidence of a run as one ZIP file, for whoever is to verify it elsewhere.
//!
//! It has what the attestation binds, the attestation, the audit log and a list of all of it. Files of
//! weights stay out unless asked for: their digests are in the attestation, and a verifier says that
//! they were not there. Names are sorted and times fixed, so that the same run gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Seek, Write};
use std::path::{Path, PathBuf};

use forgelm_artifact::json;
use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::write::{self, StagedDir, WriteError};
use serde_json::{Value, json};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::{ATTESTATION, COMPLIANCE_DIR};
use crate::approval::{final_name, staging_name};
use crate::audit::{GENESIS_FILE, LOG_FILE};
use crate::checkpoint::CHECKPOINT_FILE;
use crate::class::Class;
use crate::dsse::Envelope;
use crate::dsse::statement::{Statement, is_subject_name};
use crate::files::{self, FileProblem};
use crate::strict_json::DOCUMENT_LIMITS;

/// The list of what is in the archive.
const MANIFEST: &str = "MANIFEST.json";

/// Most entries of an archive.
const ENTRIES_MAX: usize = 100_000;

/// Most bytes of everything that is compressed: what grows beyond is a bomb.
const COMPRESSED_BYTES_MAX: u64 = 4 << 30;

/// Endings of files of weights: they may be left out, and are stored as they are.
const WEIGHTS: [&str; 2] = [".safetensors", ".gguf"];

/// Whether a file has weights, by its name: it may be left out of an archive.
pub(crate) fn is_weights(name: &str) -> bool {
    WEIGHTS.iter().any(|ending| name.ends_with(ending))
}

/// Why there is no archive, or none that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The folder's evidence cannot be packed.
    #[error("{}: {reason}", .path.display())]
    Evidence {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// Its exit class.
        class: Class,
    },
    /// A file stands where the archive would go.
    #[error("{}: exists already; an archive is never overwritten", .path.display())]
    Exists {
        /// The archive.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl ArchiveError {
    /// Its exit class.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Evidence { class, .. } => *class,
            Self::Exists { .. } => Class::NotCompared,
            Self::Open(OpenError::Io { source, .. })
                if source.kind() != io::ErrorKind::NotFound =>
            {
                Class::Unreadable
            }
            Self::Open(_) => Class::NotCompared,
            Self::Write(_) => Class::Unreadable,
        }
    }
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The folder in the archive: `evidence_<run id>`.
    pub root: String,
    /// Files packed.
    pub n_files: usize,
    /// Files of weights that were left out.
    pub left_out: Vec<String>,
    /// SHA-256 of the archive.
    pub sha256: String,
}

/// Packs the evidence of `out_dir` into the new file `archive`, with the files of weights or without.
///
/// # Errors
/// If the run has no attestation, a file that it binds is missing or not a file, or the archive is
/// there or cannot be written. Whether the evidence is good is for a verifier to say.
pub fn pack(out_dir: &Path, archive: &Path, with_weights: bool) -> Result<Packed, ArchiveError> {
    if archive.symlink_metadata().is_ok() {
        return Err(ArchiveError::Exists { path: archive.to_owned() });
    }
    let statement = attestation(out_dir)?;
    let run_id = statement.predicate.get("run_id").and_then(Value::as_str).unwrap_or("unknown");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let root = format!("evidence_{}", run_id.chars().filter(|c| is_plain(*c)).collect::<String>());
    let mut names: BTreeSet<String> =
        statement.subjects.iter().map(|subject| place(out_dir, &subject.name, run_id)).collect();
    names.extend([ATTESTATION, LOG_FILE, GENESIS_FILE].map(str::to_owned));
    // Decisions and erasures that were signed after the run.
    let later = files::walk(out_dir, COMPLIANCE_DIR).unwrap_or_default();
    names.extend(later.into_keys());
    names.extend(model_signatures(out_dir, &names));
    if out_dir.join(CHECKPOINT_FILE).symlink_metadata().is_ok() {
        names.insert(CHECKPOINT_FILE.to_owned());
    }
    let (left_out, names): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| !with_weights && is_weights(name));
    let listed: Vec<&str> = names.iter().map(String::as_str).collect();
    let digests = files::digests(out_dir, &listed);
    let mut list = Vec::with_capacity(names.len());
    for (name, digest) in names.iter().zip(digests) {
        let digest = digest.map_err(|problem| of_file(out_dir, name, &problem))?;
        list.push(json!({"path": name, "sha256": digest.sha256, "size_bytes": digest.size_bytes}));
    }
    let list = Value::Array(list);
    write::atomic_with(archive, |file| write_entries(file, (out_dir, &root), &names, &list))?;
    let sha256 = forgelm_artifact::hash::sha256_file(archive)?.to_string();
    Ok(Packed { root, n_files: names.len() + 1, left_out, sha256 })
}

/// Where a file that was signed is: a staged folder has its final name once the model is approved.
fn place(out_dir: &Path, name: &str, run_id: &str) -> String {
    let is_there = |name: &str| out_dir.join(name).symlink_metadata().is_ok();
    if is_there(name) {
        return name.to_owned();
    }
    let moved = name.match_indices('/').find_map(|(at, _)| {
        let (folder, rest) = name.split_at(at);
        let named = final_name(folder).filter(|named| staging_name(named, run_id) == folder)?;
        Some(format!("{named}{rest}")).filter(|moved| is_there(moved))
    });
    moved.unwrap_or_else(|| name.to_owned())
}

fn of_file(out_dir: &Path, name: &str, problem: &FileProblem) -> ArchiveError {
    let class = match problem {
        FileProblem::Unreadable(_) => Class::Unreadable,
        FileProblem::Missing | FileProblem::Symlink | FileProblem::NotAFile(_) => {
            Class::NotCompared
        }
    };
    ArchiveError::Evidence { path: out_dir.join(name), reason: problem.reason(), class }
}

/// What a run's attestation says, unverified.
fn attestation(out_dir: &Path) -> Result<Statement, ArchiveError> {
    let path = out_dir.join(ATTESTATION);
    let refused = |reason: String| ArchiveError::Evidence {
        path: path.clone(),
        reason,
        class: Class::NotCompared,
    };
    let bytes = files::read_bounded(&path, DOCUMENT_LIMITS.size_bytes)
        .map_err(|problem| match problem {
            FileProblem::Missing => {
                refused("missing: only a run that was signed has evidence to pack".to_owned())
            }
            other => of_file(out_dir, ATTESTATION, &other),
        })?
        .ok_or_else(|| refused("larger than 16 MiB".to_owned()))?;
    let envelope = Envelope::parse(&bytes).map_err(|error| refused(error.to_string()))?;
    Statement::parse(&envelope.payload).map_err(refused)
}

/// Signatures of model folders, which stand beside what the attestation binds.
fn model_signatures(out_dir: &Path, names: &BTreeSet<String>) -> Vec<String> {
    let folders: BTreeSet<&str> =
        names.iter().filter_map(|name| Some(name.rsplit_once('/')?.0)).collect();
    let signatures =
        folders.into_iter().map(|dir| format!("{dir}/{}", crate::model::MODEL_SIGNATURE));
    signatures.filter(|name| out_dir.join(name).symlink_metadata().is_ok()).collect()
}

fn write_entries(
    file: &mut dyn Write,
    (out_dir, root): (&Path, &str),
    names: &[String],
    list: &Value,
) -> io::Result<()> {
    let mut zip = ZipWriter::new_stream(file);
    let options = |name: &str, n_bytes: u64| {
        let method = match is_weights(name) {
            true => CompressionMethod::Stored,
            false => CompressionMethod::Deflated,
        };
        SimpleFileOptions::default()
            .compression_method(method)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(n_bytes > u64::from(u32::MAX / 2))
    };
    zip.start_file(format!("{root}/{MANIFEST}"), options(MANIFEST, 0))?;
    zip.write_all(json::pretty(list).as_bytes())?;
    for name in names {
        let (mut from, metadata) =
            open::below(out_dir, Path::new(name)).map_err(io::Error::other)?;
        let n_bytes = metadata.len();
        zip.start_file(format!("{root}/{name}"), options(name, n_bytes))?;
        io::copy(&mut from, &mut zip)?;
    }
    zip.finish()?.into_inner().flush()
}

/// An archive that was unpacked into a folder of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    dir: StagedDir,
    root: String,
}

impl Unpacked {
    /// The run's folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join(&self.root)
    }
}

/// Unpacks `archive` beside `place`, which need not exist, and compares each file with the archive's
/// own list.
///
/// # Errors
/// If it is no archive of evidence, is damaged (a checksum or a digest differs), has links, names that
/// lead elsewhere, or grows beyond every bound.
pub fn unpack(archive: &Path, place: &Path) -> Result<Unpacked, ArchiveError> {
    let (file, _) = open::regular(archive)?;
    let refused =
        |class, reason: String| ArchiveError::Evidence { path: archive.to_owned(), reason, class };
    let input = |reason: String| refused(Class::NotCompared, reason);
    let mut zip = ZipArchive::new(file).map_err(|error| match error {
        ZipError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            refused(Class::Unreadable, format!("cannot be read: {error}"))
        }
        error => input(format!("not a ZIP archive: {error}")),
    })?;
    let (root, entries) = entries(&mut zip).map_err(input)?;
    let mut dir = StagedDir::new(place)?;
    for (index, name) in &entries {
        let mut failed = None;
        let written = dir.write_with(&format!("{root}/{name}"), |file| {
            copy_entry(&mut zip, *index, file).inspect_err(|error| failed = Some(error.to_string()))
        });
        // A checksum that does not hold is a comparison that failed.
        if let Some(error) = failed {
            return Err(refused(Class::Different, format!("`{name}` is damaged: {error}")));
        }
        written?;
    }
    let unpacked = Unpacked { dir, root };
    let found = entries.values().map(String::as_str).filter(|name| *name != MANIFEST).collect();
    compare(&unpacked, found).map_err(|reason| refused(Class::Different, reason))?;
    Ok(unpacked)
}

/// The folder of an archive, and the files in it by their place in the archive.
fn entries<R: io::Read + Seek>(
    zip: &mut ZipArchive<R>,
) -> Result<(String, BTreeMap<usize, String>), String> {
    if zip.len() > ENTRIES_MAX {
        return Err(format!("{} entries; at most {ENTRIES_MAX} are read", zip.len()));
    }
    let mut root: Option<String> = None;
    let mut found = BTreeMap::new();
    let mut known = BTreeSet::new();
    let mut n_compressed: u64 = 0;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|error| format!("entry {index}: {error}"))?;
        let name = entry.name().map_err(|error| format!("entry {index}: {error}"))?;
        let whole = name.into_owned();
        let shown = forgelm_artifact::Quoted(&whole).to_string();
        let (folder, name) = whole.split_once('/').unwrap_or(("", &whole));
        if !entry.is_file() || entry.is_symlink() || !is_subject_name(&whole) || folder.is_empty() {
            return Err(format!("{shown} is no plain file below the archive's folder"));
        }
        if root.get_or_insert_with(|| folder.to_owned()) != folder {
            return Err(format!("{shown} lies in another folder than the entries before it"));
        }
        if is_weights(name) {
            if entry.compression() != CompressionMethod::Stored {
                return Err(format!("{shown} is compressed, and files of weights never are"));
            }
        } else {
            n_compressed = n_compressed.saturating_add(entry.size());
        }
        if !known.insert(name.to_owned()) {
            return Err(format!("{shown} comes twice"));
        }
        found.insert(index, name.to_owned());
    }
    if n_compressed > COMPRESSED_BYTES_MAX {
        return Err(format!("would grow to {n_compressed} bytes; at most {COMPRESSED_BYTES_MAX}"));
    }
    if !known.contains(MANIFEST) {
        return Err(format!("has no `{MANIFEST}`: not the evidence of a run"));
    }
    Ok((root.unwrap_or_default(), found))
}

fn copy_entry<R: io::Read + Seek>(
    zip: &mut ZipArchive<R>,
    index: usize,
    file: &mut dyn Write,
) -> io::Result<()> {
    let entry = zip.by_index(index)?;
    let size = entry.size();
    // What the entry claims is all that is taken, whatever its bytes hold.
    let n = io::copy(&mut entry.take(size + 1), file)?;
    match n == size {
        true => Ok(()),
        false => Err(io::Error::other(format!("{n} bytes where {size} were said"))),
    }
}

/// Each file against the archive's list.
fn compare(unpacked: &Unpacked, found: BTreeSet<&str>) -> Result<(), String> {
    let dir = unpacked.dir();
    let list = files::read_bounded(&dir.join(MANIFEST), DOCUMENT_LIMITS.size_bytes)
        .map_err(|problem| format!("`{MANIFEST}`: {}", problem.reason()))?
        .ok_or_else(|| format!("`{MANIFEST}` is larger than 16 MiB"))?;
    let list = crate::strict_json::parse(&list, DOCUMENT_LIMITS)
        .map_err(|error| format!("`{MANIFEST}`: {error}"))?;
    let mut listed = BTreeMap::new();
    for entry in list.as_array().into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        listed.insert(text("path"), text("sha256"));
    }
    let names: Vec<&str> = found.iter().copied().collect();
    if let Some(unlisted) = names.iter().find(|name| !listed.contains_key(*name)) {
        return Err(format!("`{unlisted}` is not in `{MANIFEST}`"));
    }
    if let Some(missing) = listed.keys().find(|name| !found.contains(*name)) {
        return Err(format!("`{missing}` is in `{MANIFEST}` and not in the archive"));
    }
    for (name, digest) in names.iter().zip(files::digests(&dir, &names)) {
        let digest = digest.map_err(|problem| format!("`{name}`: {}", problem.reason()))?;
        if digest.sha256 != listed[name] {
            return Err(format!("`{name}` is not what `{MANIFEST}` says"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::unpack;
    use crate::class::Class;

    type Archive = ZipWriter<Cursor<Vec<u8>>>;

    fn options() -> SimpleFileOptions {
        SimpleFileOptions::default().compression_method(CompressionMethod::Deflated)
    }

    fn file(zip: &mut Archive, name: &str, bytes: &[u8]) {
        zip.start_file(name, options()).unwrap();
        zip.write_all(bytes).unwrap();
    }

    /// The verdict on an archive with a good list and something else.
    fn verdict(fill: impl FnOnce(&mut Archive)) -> (Class, String) {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        file(&mut zip, "evidence_x/MANIFEST.json", b"[]");
        fill(&mut zip);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        forgelm_artifact::write::atomic(&path, &zip.finish().unwrap().into_inner()).unwrap();
        let verdict = match unpack(&path, &dir.path().join("place")) {
            Ok(_) => (Class::Accepted, String::new()),
            Err(error) => (error.class(), error.to_string()),
        };
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside the archive: {left:?}");
        verdict
    }

    #[test]
    fn archives_that_lead_elsewhere_or_grow_are_refused_before_anything_is_unpacked() {
        assert_eq!(verdict(|_| ()), (Class::Accepted, String::new()));
        let named = |name: &'static str| verdict(move |zip| file(zip, name, b"x"));
        for (name, says) in [
            ("evidence_x/../../escaped", "no plain file below"),
            ("/absolute", "no plain file below"),
            ("evidence_x/a\\b", "no plain file below"),
            ("loose", "no plain file below"),
            ("other/file", "another folder"),
            ("evidence_x/model.safetensors", "is compressed"),
        ] {
            let (class, text) = named(name);
            assert_eq!(class, Class::NotCompared, "{name}");
            assert!(text.contains(says), "{name}: {text}");
        }
        let (class, text) = verdict(|zip| {
            zip.add_symlink("evidence_x/link", "/etc/passwd", options()).unwrap();
        });
        assert_eq!(class, Class::NotCompared);
        assert!(text.contains("no plain file below"), "{text}");
        let (class, text) = named("evidence_x/unlisted.json");
        assert_eq!(class, Class::Different);
        assert!(text.contains("`unlisted.json` is not in `MANIFEST.json`"), "{text}");
    }
}
