//! Files whose mode and owner matter: new ones that only their owner may read, and replacements that
//! keep what the file before them had.

use super::{Action, WriteError, beside, sync_parent};
use crate::Disk;
use crate::disk::DiskFile;
use std::fs::Metadata;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

/// Writes a file that must not be there yet, readable by its owner alone (mode 0600), whole or not at
/// all.
///
/// # Errors
/// [`WriteError::Exists`] if something has the name; or if any step fails, and nothing is there then.
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let disk = Disk::real();
    let temporary = beside(path, "tmp");
    let written = private(&disk, &temporary, path, |out| out.write_all(bytes))
        .and_then(|file| synced(&file, path))
        .and_then(|()| match disk.rename_new(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(WriteError::Exists { path: path.to_owned() })
            }
            renamed => renamed.map_err(|e| WriteError::new(path, Action::Rename, e)),
        });
    if let Err(error) = written {
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    sync_parent(&disk, path)
}

/// Replaces a regular file, whole or not at all, by one with the same mode, owner and group; its bytes
/// come from `fill`. No other user can read the new file before it has them.
///
/// Ours: access lists and extended attributes are not carried over.
///
/// # Errors
/// If `fill` or any step fails, also where the owner cannot be kept; the file is unchanged then.
pub fn replace_keeping(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    replace_keeping_on(&Disk::real(), path, fill)
}

/// [`replace_keeping`] on a given disk.
///
/// # Errors
/// As [`replace_keeping`].
pub fn replace_keeping_on(
    disk: &Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let before = path.symlink_metadata().map_err(|e| WriteError::new(path, Action::Read, e))?;
    let temporary = beside(path, "tmp");
    let written = private(disk, &temporary, path, fill)
        .and_then(|file| {
            keep(&file, &before).map_err(|e| WriteError::new(path, Action::Create, e))?;
            synced(&file, path)
        })
        .and_then(|()| {
            disk.rename(&temporary, path).map_err(|e| WriteError::new(path, Action::Rename, e))
        });
    if let Err(error) = written {
        // Nobody will miss it; the first error is the one to report.
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    sync_parent(disk, path)
}

fn private(
    disk: &Disk,
    path: &Path,
    shown: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<DiskFile, WriteError> {
    let error = |action| move |e| WriteError::new(shown, action, e);
    let file = disk.create_private(path).map_err(error(Action::Create))?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    fill(&mut buffered).and_then(|()| buffered.flush()).map_err(error(Action::Write))?;
    buffered.into_inner().map_err(|e| WriteError::new(shown, Action::Write, e.into_error()))
}

fn synced(file: &DiskFile, shown: &Path) -> Result<(), WriteError> {
    file.sync().map_err(|e| WriteError::new(shown, Action::Sync, e))
}

/// Owner first: giving a file away takes bits of its mode.
fn keep(file: &DiskFile, before: &Metadata) -> io::Result<()> {
    let now = file.file.metadata()?;
    if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
        fchown(&file.file, Some(before.uid()), Some(before.gid()))?;
    }
    let mode = before.permissions().mode() & 0o7777;
    file.file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::{create_private, replace_keeping, replace_keeping_on};
    use crate::Disk;
    use crate::write::{WriteError, atomic};
    use std::io;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_private_file_is_its_owners_alone_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("salt");
        create_private(&path, b"abc").unwrap();
        assert_eq!((mode(&path), std::fs::read(&path).unwrap()), (0o600, b"abc".to_vec()));
        assert!(matches!(create_private(&path, b"x"), Err(WriteError::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replaced_file_keeps_mode_and_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        for bits in [0o600, 0o644, 0o664, 0o4711] {
            atomic(&path, b"old").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bits)).unwrap();
            let is_root = std::os::unix::fs::chown(&path, Some(1234), Some(1235)).is_ok();
            if is_root {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bits)).unwrap();
            }
            let before = path.metadata().unwrap();
            replace_keeping(&path, |out| out.write_all(b"new")).unwrap();
            let after = path.metadata().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            assert_eq!(mode(&path), bits);
            assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
            assert_ne!(after.ino(), before.ino());
        }
    }

    #[test]
    fn whatever_fails_the_file_is_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        atomic(&path, b"old").unwrap();
        let counting = Disk::counting();
        replace_keeping_on(&counting, &path, |out| out.write_all(b"old")).unwrap();
        // The last operation syncs the folder, after the name was given.
        for n in 0..counting.n_ops() - 1 {
            let disk = Disk::failing_at(n, io::ErrorKind::PermissionDenied);
            let failed = replace_keeping_on(&disk, &path, |out| out.write_all(b"new"));
            assert!(failed.is_err(), "operation {n}");
            assert_eq!(std::fs::read(&path).unwrap(), b"old", "operation {n}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "operation {n}");
        }
    }

    #[test]
    fn wherever_the_machine_stops_the_file_is_the_old_one_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let mut n = 0;
        loop {
            atomic(&path, b"old").unwrap();
            let disk = Disk::stopping_at(n);
            let done = replace_keeping_on(&disk, &path, |out| out.write_all(b"new"));
            let now = std::fs::read(&path).unwrap();
            assert!(now == b"old" || now == b"new", "operation {n}");
            if done.is_ok() {
                assert!(!disk.has_stopped() && now == b"new");
                break;
            }
            n += 1;
        }
        assert!(n >= 5, "create, write, sync, rename, sync of the folder: {n}");
    }
}
