//! What a test's disk does wrong, and what it remembers for a power cut.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

/// The text of every error after [`super::Disk::stopping_at`] was reached.
pub const STOPPED: &str = "the simulated machine has stopped";

/// What a power cut does to renames whose folder was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// They are on the disk all the same, although the data of the file may not be.
    RenamesKept,
    /// They never happened.
    RenamesUndone,
}

#[derive(Debug)]
pub(super) enum Change {
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<Vec<u8>> },
    Exchanged { a: PathBuf, b: PathBuf },
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) n_ops: u64,
    pub(super) fail_at: Option<(u64, io::ErrorKind)>,
    pub(super) stop_at: Option<u64>,
    pub(super) stopped: bool,
    pub(super) room: Option<u64>,
    /// Renames in folders not yet synced, oldest first.
    pub(super) unsynced_renames: Vec<Change>,
    /// Files with unsynced data, and how many bytes of each are on the disk.
    pub(super) unsynced_files: BTreeMap<PathBuf, u64>,
}

impl Faults {
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let op = self.n_ops;
        self.n_ops += 1;
        if self.stop_at == Some(op) {
            self.stopped = true;
        }
        if self.stopped {
            return Err(io::Error::other(STOPPED));
        }
        match self.fail_at {
            Some((at, kind)) if at == op => Err(kind.into()),
            _ => Ok(()),
        }
    }

    /// How many of `len` bytes reach the file, and the error to report after them.
    pub(super) fn write(&mut self, path: &Path, len: usize) -> (usize, Option<io::Error>) {
        let was_stopped = self.stopped;
        if let Err(error) = self.begin() {
            let n_torn = if self.stopped && !was_stopped { len / 2 } else { 0 };
            return (n_torn, Some(error));
        }
        let on_disk = path.metadata().map_or(0, |m| m.len());
        self.unsynced_files.entry(path.to_owned()).or_insert(on_disk);
        let Some(room) = &mut self.room else { return (len, None) };
        let n_fit = usize::try_from(*room).map_or(len, |room| room.min(len));
        *room -= n_fit as u64;
        let error = (n_fit < len).then(|| io::ErrorKind::StorageFull.into());
        (n_fit, error)
    }

    pub(super) fn created(&mut self, path: &Path) {
        self.unsynced_files.insert(path.to_owned(), 0);
    }

    pub(super) fn file_synced(&mut self, path: &Path) {
        self.unsynced_files.remove(path);
    }

    pub(super) fn renamed(&mut self, from: &Path, to: &Path) {
        let replaced = std::fs::read(to).ok().filter(|_| from.is_file());
        self.move_unsynced(from, to);
        let (from, to) = (from.to_owned(), to.to_owned());
        self.unsynced_renames.push(Change::Renamed { from, to, replaced });
    }

    pub(super) fn exchanged(&mut self, a: &Path, b: &Path) {
        self.unsynced_renames.push(Change::Exchanged { a: a.to_owned(), b: b.to_owned() });
    }

    pub(super) fn dir_synced(&mut self, dir: &Path) {
        self.unsynced_renames.retain(|change| match change {
            Change::Renamed { to: path, .. } | Change::Exchanged { b: path, .. } => {
                path.parent() != Some(dir)
            }
        });
    }

    /// Unsynced data follows its file, or the folder it is in.
    fn move_unsynced(&mut self, from: &Path, to: &Path) {
        let files = std::mem::take(&mut self.unsynced_files);
        self.unsynced_files = files
            .into_iter()
            .map(|(path, len)| match path.strip_prefix(from) {
                Ok(rest) if rest.as_os_str().is_empty() => (to.to_owned(), len),
                Ok(rest) => (to.join(rest), len),
                Err(_) => (path, len),
            })
            .collect();
    }

    pub(super) fn lose_power(&mut self, loss: PowerLoss) -> io::Result<()> {
        for (path, len) in std::mem::take(&mut self.unsynced_files) {
            match OpenOptions::new().write(true).open(&path) {
                Ok(file) if file.metadata()?.len() > len => file.set_len(len)?,
                _ => {}
            }
        }
        let changes = std::mem::take(&mut self.unsynced_renames);
        if loss == PowerLoss::RenamesKept {
            return Ok(());
        }
        for change in changes.into_iter().rev() {
            match change {
                Change::Renamed { from, to, replaced } => {
                    std::fs::rename(&to, from)?;
                    if let Some(bytes) = replaced {
                        let file = OpenOptions::new().write(true).create_new(true).open(to);
                        io::Write::write_all(&mut file?, &bytes)?;
                    }
                }
                Change::Exchanged { a, b } => {
                    use rustix::fs::{CWD, RenameFlags, renameat_with};
                    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?;
                }
            }
        }
        Ok(())
    }
}
