//! Taking back a folder that this program made, and nothing that others put into it.

use super::{Action, WriteError, remove_dir, sync_parent};
use crate::Disk;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// What a folder held when this program had just made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedDir {
    path: PathBuf,
    /// Everything in it that is no folder, relative.
    files: BTreeSet<PathBuf>,
}

impl CreatedDir {
    /// Remembers what is in `path` now.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn remember(path: &Path) -> Result<Self, WriteError> {
        Ok(Self { path: path.to_owned(), files: files_of(path)? })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder, renamed first so that no half of it is ever seen under its name. Where
    /// something else lies in it by now, only what was remembered is removed, and the rest is
    /// returned, relative and sorted. A folder that is not there is fine: this can be done again.
    ///
    /// # Errors
    /// If it cannot be listed or something cannot be removed.
    pub fn remove(&self) -> Result<Vec<PathBuf>, WriteError> {
        match self.path.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(WriteError::new(&self.path, Action::Read, e)),
            // A link or a file in place of the folder is somebody else's.
            Ok(metadata) if !metadata.is_dir() => return Ok(vec![PathBuf::new()]),
            Ok(_) => {}
        }
        let now = files_of(&self.path)?;
        let foreign: Vec<PathBuf> = now.difference(&self.files).cloned().collect();
        if foreign.is_empty() {
            remove_dir(&self.path)?;
            return Ok(foreign);
        }
        let disk = Disk::real();
        for name in now.intersection(&self.files) {
            let path = self.path.join(name);
            disk.remove_file(&path).map_err(|e| WriteError::new(&path, Action::Remove, e))?;
            sync_parent(&disk, &path)?;
        }
        Ok(foreign)
    }
}

/// Everything below `dir` that is no folder, relative. Links are not followed.
fn files_of(dir: &Path) -> Result<BTreeSet<PathBuf>, WriteError> {
    let mut files = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let error = |e| WriteError::new(&path, Action::Read, e);
        for entry in std::fs::read_dir(&path).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = folder.join(entry.file_name());
            if entry.file_type().map_err(error)?.is_dir() {
                folders.push(name);
            } else {
                files.insert(name);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::CreatedDir;
    use crate::write::atomic;
    use std::path::{Path, PathBuf};

    fn folder(root: &Path) -> PathBuf {
        let dir = root.join("model");
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        atomic(&dir.join("weights"), b"w").unwrap();
        atomic(&dir.join("sub/tokens"), b"t").unwrap();
        dir
    }

    #[test]
    fn a_folder_of_ours_goes_whole_and_can_go_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = folder(root.path());
        let created = CreatedDir::remember(&dir).unwrap();
        assert_eq!(created.remove().unwrap(), Vec::<PathBuf>::new());
        assert_eq!(created.remove().unwrap(), Vec::<PathBuf>::new(), "once more");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn fault_092_what_others_put_into_the_folder_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = folder(root.path());
        let created = CreatedDir::remember(&dir).unwrap();
        atomic(&dir.join("sub/notes.txt"), b"mine").unwrap();
        assert_eq!(created.remove().unwrap(), [PathBuf::from("sub/notes.txt")]);
        assert!(!dir.join("weights").exists() && !dir.join("sub/tokens").exists());
        assert_eq!(std::fs::read(dir.join("sub/notes.txt")).unwrap(), b"mine");
        // A link in its place is not followed and stays.
        let other = root.path().join("other");
        let link = root.path().join("link");
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let created = CreatedDir { path: link.clone(), ..created };
        assert_eq!(created.remove().unwrap(), [PathBuf::new()]);
        assert!(link.symlink_metadata().is_ok() && other.is_dir());
    }
}
