//! A folder that appears whole or not at all.

use super::write_synced;
use super::{Action, WriteError, beside, create_dir_all_durable_on, parent_of, sync_parent};
use crate::Disk;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

/// Writes and syncs a new file in a folder that another process stages, and the folder's list of
/// names. It belongs to that process's [`StagedDir`], and shares its fate.
///
/// # Errors
/// If the folder is not there or a step fails.
pub fn write_into_staged(
    disk: &Disk,
    folder: &Path,
    name: &str,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let path = folder.join(name);
    write_synced(disk, &path, &path, fill)?;
    disk.sync_dir(folder).map_err(|e| WriteError::new(folder, Action::Sync, e))
}

/// A folder being filled under a temporary name beside its final one.
///
/// Every file is synced as it is written; [`StagedDir::commit`] syncs the folders and renames. One
/// that is dropped is removed, and one that a killed process left has a name that
/// [`super::remove_leftovers`] knows.
#[derive(Debug)]
pub struct StagedDir {
    disk: Disk,
    path: PathBuf,
    final_path: PathBuf,
    /// Folders inside, relative, with files in them: synced before the rename.
    folders: BTreeSet<PathBuf>,
    is_committed: bool,
}

impl StagedDir {
    /// A new staged folder that will become `final_path`. The folder above is created if missing.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new(final_path: &Path) -> Result<Self, WriteError> {
        Self::new_on(&Disk::real(), final_path)
    }

    /// [`StagedDir::new`] on a given disk.
    ///
    /// # Errors
    /// As [`StagedDir::new`].
    pub fn new_on(disk: &Disk, final_path: &Path) -> Result<Self, WriteError> {
        create_dir_all_durable_on(disk, parent_of(final_path))?;
        let path = beside(final_path, "staged");
        disk.create_dir(&path).map_err(|e| WriteError::new(&path, Action::Create, e))?;
        Ok(Self {
            disk: disk.clone(),
            path,
            final_path: final_path.to_owned(),
            folders: BTreeSet::from([PathBuf::new()]),
            is_committed: false,
        })
    }

    /// Where the files lie until [`StagedDir::commit`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path that it will have.
    #[must_use]
    pub fn final_path(&self) -> &Path {
        &self.final_path
    }

    /// Writes and syncs a new file. `name` is relative, with `/` between folders, which are
    /// created.
    ///
    /// # Errors
    /// If the name leads elsewhere or is taken, or a step fails.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.write_with(name, |w| w.write_all(bytes))
    }

    /// Writes and syncs a new file, its bytes coming from `fill`.
    ///
    /// # Errors
    /// As [`StagedDir::write`], or if `fill` fails.
    pub fn write_with(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let relative = Path::new(name);
        let is_plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
        if name.is_empty() || !is_plain || name.ends_with('/') || name.contains('\0') {
            let (path, name) = (self.final_path.clone(), name.to_owned());
            return Err(WriteError::BadName { path, name });
        }
        let mut folder = PathBuf::new();
        for component in relative.parent().into_iter().flat_map(Path::components) {
            folder.push(component);
            if self.folders.insert(folder.clone()) {
                let path = self.path.join(&folder);
                let created = self.disk.create_dir(&path);
                created.map_err(|e| WriteError::new(&path, Action::Create, e))?;
            }
        }
        write_synced(&self.disk, &self.path.join(relative), &self.final_path.join(relative), fill)
    }

    /// Gives the folder its final name, which nothing may have yet.
    ///
    /// # Errors
    /// If something has the name, or a step fails; the staged folder is removed then.
    pub fn commit(mut self) -> Result<(), WriteError> {
        self.sync_folders()?;
        self.disk.rename_new(&self.path, &self.final_path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                WriteError::Exists { path: self.final_path.clone() }
            }
            _ => WriteError::new(&self.final_path, Action::Rename, e),
        })?;
        self.is_committed = true;
        sync_parent(&self.disk, &self.final_path)
    }

    /// Gives the folder its final name in place of a folder that has it, in one step (the two
    /// exchange their names), and removes the old one. Without an old one, as
    /// [`StagedDir::commit`].
    ///
    /// # Errors
    /// If a step fails. The old folder is whole under the final name until the exchange.
    pub fn commit_replacing(mut self) -> Result<(), WriteError> {
        if self.final_path.symlink_metadata().is_err() {
            return self.commit();
        }
        self.sync_folders()?;
        self.disk
            .exchange(&self.path, &self.final_path)
            .map_err(|e| WriteError::new(&self.final_path, Action::Rename, e))?;
        sync_parent(&self.disk, &self.final_path)?;
        // What lies under the temporary name now is the old folder.
        self.is_committed = true;
        let removed = self.disk.remove_dir_all(&self.path);
        removed.map_err(|e| WriteError::new(&self.path, Action::Remove, e))
    }

    /// Innermost folders first.
    fn sync_folders(&self) -> Result<(), WriteError> {
        for folder in self.folders.iter().rev() {
            let path = self.path.join(folder);
            self.disk.sync_dir(&path).map_err(|e| WriteError::new(&path, Action::Sync, e))?;
        }
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.is_committed {
            // Nobody will miss it; an error that matters has been reported already.
            let _ = self.disk.remove_dir_all(&self.path);
        }
    }
}
