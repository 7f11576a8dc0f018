//! Files below a folder: which are there, and their digests. Links are never followed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use forgelm_artifact::hash::sha256_reader;
use forgelm_artifact::open::{self, OpenError, SYMBOLIC_LINK};

use crate::bundle::COMPLIANCE_DIR;
use crate::integrity::INTEGRITY_FILE;
use crate::model::MODEL_SIGNATURE;
use crate::strict_json::DOCUMENT_LIMITS;

/// Folders nested deeper than this are not a run's.
const DEPTH_MAX: usize = 64;
/// Most threads that hash at once: more only make a disk seek.
const HASH_THREADS_MAX: usize = 8;
/// Stack of one of them, which needs little: seven more must fit under a memory ceiling, too.
const HASH_STACK_BYTES: usize = 512 << 10;

/// Why a file's bytes cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileProblem {
    Missing,
    Symlink,
    NotAFile(&'static str),
    Unreadable(String),
}

impl FileProblem {
    /// The words for a report.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Missing => "missing".to_owned(),
            Self::Symlink => "a symbolic link; links are not followed".to_owned(),
            Self::NotAFile(kind) => format!("a {kind}; expected a file"),
            Self::Unreadable(detail) => format!("cannot be read: {detail}"),
        }
    }
}

/// A file's digest and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileDigest {
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Symlink,
    Other,
}

/// Everything below `root/under` that is not a folder, by its path below `root` with `/`. A name
/// that is not UTF-8 is shown with replacement characters and counts as [`EntryKind::Other`].
pub(crate) fn walk(root: &Path, under: &str) -> io::Result<BTreeMap<String, EntryKind>> {
    let mut found = BTreeMap::new();
    let start = if under.is_empty() { root.to_owned() } else { root.join(under) };
    walk_into(&start, under, 0, &mut found)?;
    Ok(found)
}

/// Everything in `dir` itself that is not a folder, as [`walk`] has it.
pub(crate) fn list(dir: &Path) -> io::Result<BTreeMap<String, EntryKind>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        found.extend(kind(&entry)?.map(|kind| (name, kind)));
    }
    Ok(found)
}

/// What an entry is; `None` for a folder.
fn kind(entry: &fs::DirEntry) -> io::Result<Option<EntryKind>> {
    let kind = entry.file_type()?;
    Ok(if kind.is_dir() {
        None
    } else if kind.is_symlink() {
        Some(EntryKind::Symlink)
    } else if kind.is_file() && entry.file_name().to_str().is_some() {
        Some(EntryKind::File)
    } else {
        Some(EntryKind::Other)
    })
}

fn walk_into(
    dir: &Path,
    prefix: &str,
    depth: usize,
    found: &mut BTreeMap<String, EntryKind>,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        let message = format!("`{prefix}` is nested more than {DEPTH_MAX} folders deep");
        return Err(io::Error::other(message));
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        match kind(&entry)? {
            None => walk_into(&entry.path(), &path, depth + 1, found)?,
            Some(kind) => {
                found.insert(path, kind);
            }
        }
    }
    Ok(())
}

impl From<OpenError> for FileProblem {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NotAFile { kind: SYMBOLIC_LINK, .. } => Self::Symlink,
            OpenError::NotAFile { kind, .. } => Self::NotAFile(kind),
            OpenError::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
                _ => Self::Unreadable(source.to_string()),
            },
        }
    }
}

/// Digest of one file below `root`. What is opened is what was looked at: nobody can put a link in its
/// place in between.
pub(crate) fn digest(root: &Path, name: &str) -> Result<FileDigest, FileProblem> {
    let (mut file, metadata) = open::below(root, Path::new(name))?;
    if is_document(name) && metadata.len() > DOCUMENT_LIMITS.size_bytes as u64 {
        return Err(FileProblem::NotAFile("document of more than 16 MiB"));
    }
    let sha256 = sha256_reader(&mut file).map_err(|e| FileProblem::Unreadable(e.to_string()))?;
    Ok(FileDigest { sha256: sha256.to_string(), size_bytes: metadata.len() })
}

/// Documents that verifiers read: one that is too large to be read is not hashed for minutes either.
fn is_document(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    name.starts_with(COMPLIANCE_DIR) || [INTEGRITY_FILE, MODEL_SIGNATURE].contains(&last)
}

/// Digests of many files below `root`, in the order of `names`, on several threads.
pub(crate) fn digests(root: &Path, names: &[&str]) -> Vec<Result<FileDigest, FileProblem>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(i) else { return done };
            done.push((i, digest(root, name)));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let n_threads = cores.min(HASH_THREADS_MAX).min(names.len()).max(1);
    let mut all: Vec<_> = std::thread::scope(|scope| {
        // A thread that the system refuses is one less: this one does the work all the same.
        let builder = || std::thread::Builder::new().stack_size(HASH_STACK_BYTES);
        let spawn = |_| builder().spawn_scoped(scope, work).ok();
        let threads: Vec<_> = (1..n_threads).filter_map(spawn).collect();
        let mine = work();
        let others = threads.into_iter().flat_map(|t| t.join().expect("hashing does not panic"));
        mine.into_iter().chain(others).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, digest)| digest).collect()
}

/// Reads a whole file of at most `limit` bytes, which is no link. `Ok(None)`: it is larger.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, FileProblem> {
    read_at_most(open::unlinked(path)?.0, limit)
}

/// As [`read_bounded`], of the file `name` below `root`, where no part of it is a link.
pub(crate) fn read_below(
    root: &Path,
    name: &str,
    limit: usize,
) -> Result<Option<Vec<u8>>, FileProblem> {
    read_at_most(open::below(root, Path::new(name))?.0, limit)
}

fn read_at_most(file: fs::File, limit: usize) -> Result<Option<Vec<u8>>, FileProblem> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| FileProblem::Unreadable(e.to_string()))?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use forgelm_artifact::write::atomic as put;

    use super::{EntryKind, FileProblem, digest, digests, read_bounded, walk};
    use crate::digest::sha256_hex;

    #[test]
    fn files_are_listed_and_hashed_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        for i in 0..50 {
            put(&root.join(format!("a/f{i:02}")), format!("{i}").as_bytes()).unwrap();
        }
        symlink(root.join("a/f00"), root.join("a/b/link")).unwrap();
        symlink(root.join("a"), root.join("c")).unwrap();
        let found = walk(root, "").unwrap();
        assert_eq!(found.len(), 52);
        assert_eq!(found["a/b/link"], EntryKind::Symlink);
        assert_eq!(found["c"], EntryKind::Symlink);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        let all = digests(root, &names);
        assert_eq!(all[1].as_ref().unwrap().sha256, sha256_hex(b"0"));
        assert_eq!(all[50].as_ref().unwrap().sha256, sha256_hex(b"49"));
        assert_eq!(all[51], Err(FileProblem::Symlink));
        assert_eq!(digest(root, "c/f01"), Err(FileProblem::Symlink));
        assert_eq!(digest(root, "a/none"), Err(FileProblem::Missing));
        assert_eq!(digest(root, "a/f00/x"), Err(FileProblem::Missing));
        assert_eq!(digest(root, "a"), Err(FileProblem::NotAFile("folder")));
        assert_eq!(read_bounded(&root.join("a/b/link"), 9), Err(FileProblem::Symlink));
        assert_eq!(read_bounded(&root.join("a/f12"), 2), Ok(Some(b"12".to_vec())));
        assert_eq!(read_bounded(&root.join("a/f12"), 1), Ok(None));
    }

    /// While the verifier works, somebody swaps a file, and the folder it is in, for links to what he
    /// would like to be hashed. What is opened is never that.
    #[test]
    fn fault_085_a_link_that_is_swapped_in_is_never_followed() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("run"), dir.path().join("away"));
        for folder in [root.join("a"), away.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        put(&root.join("a/f"), b"inside").unwrap();
        put(&away.join("f"), b"outside").unwrap();
        symlink(away.join("f"), dir.path().join("to_file")).unwrap();
        symlink(&away, dir.path().join("to_folder")).unwrap();
        let (inside, stop) = (sha256_hex(b"inside"), AtomicBool::new(false));
        let swap = |a: &std::path::Path, b: &std::path::Path| {
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, a, cwd, b, rustix::fs::RenameFlags::EXCHANGE).unwrap();
        };
        let (mut n_good, mut n_refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for (real, link) in [("a/f", "to_file"), ("a", "to_folder")] {
                        let (real, link) = (root.join(real), dir.path().join(link));
                        swap(&real, &link);
                        std::thread::yield_now();
                        swap(&real, &link);
                    }
                }
            });
            for _ in 0..20_000 {
                match digest(&root, "a/f") {
                    Ok(found) => {
                        assert_eq!(found.sha256, inside, "a link was followed");
                        n_good += 1;
                    }
                    // `ELOOP` or `ENOTDIR`, and no link any more when its kind is looked up.
                    Err(_) => n_refused += 1,
                }
                if n_good > 200 && n_refused > 200 {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(n_good > 0 && n_refused > 0, "{n_good} {n_refused}");
    }
}
