//! A file that other programs read while it grows.

use super::{Action, WriteError, sync_parent};
use crate::Disk;
use crate::disk::DiskFile;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A new file that grows by whole records.
///
/// **Invariant:** a record is in the file whole, or the file is as it was: what could not be written
/// is cut off again. It is on the disk for good after [`RecordFile::sync`] alone, so that a step waits
/// for no disk.
#[derive(Debug)]
pub struct RecordFile {
    disk: Disk,
    file: DiskFile,
    path: PathBuf,
    n_bytes: u64,
}

impl RecordFile {
    /// Creates the file, which must not be there yet.
    ///
    /// # Errors
    /// If something has the name, or the system refuses.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let disk = Disk::real();
        let error = |e| WriteError::new(path, Action::Create, e);
        disk.create_new(path).map_err(error)?;
        // Opened again for appending: what is cut off leaves no hole.
        let file = disk.open_append(path).map_err(error)?;
        Ok(Self { disk, file, path: path.to_owned(), n_bytes: 0 })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record.
    ///
    /// # Errors
    /// If it cannot be written; the file is as it was then.
    pub fn append(&mut self, record: &[u8]) -> Result<(), WriteError> {
        if let Err(error) = self.file.write_all(record) {
            let _ = self.file.set_len(self.n_bytes);
            return Err(WriteError::new(&self.path, Action::Write, error));
        }
        self.n_bytes += record.len() as u64;
        Ok(())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        self.file.sync().map_err(|e| WriteError::new(&self.path, Action::Sync, e))?;
        sync_parent(&self.disk, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::RecordFile;

    #[test]
    fn records_follow_each_other_and_no_file_is_written_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.bin");
        let mut file = RecordFile::create(&path).expect("created");
        file.append(b"\x00\n").expect("appended");
        file.append(b"\xff").expect("appended");
        assert_eq!(std::fs::read(&path).expect("read"), b"\x00\n\xff", "before it is synced");
        file.sync().expect("synced");
        assert!(RecordFile::create(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("read").len(), 3);
    }
}
