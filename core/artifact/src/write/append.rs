//! A log of lines, shared by processes.

use super::{Action, WriteError, sync_parent};
use crate::Disk;
use crate::disk::DiskFile;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An append-only file of lines, open and locked (`flock`) against all other writers until it is
/// dropped.
///
/// **Invariant:** a line is on the disk whole or the file is as it was: a write that fails is cut
/// off again. Only a kill in the middle can leave half a line, and then [`AppendLog::open`]
/// refuses with [`WriteError::TornLine`].
#[derive(Debug)]
pub struct AppendLog {
    disk: Disk,
    file: DiskFile,
    path: PathBuf,
    n_bytes: u64,
}

impl AppendLog {
    /// Opens (creating if missing) and locks a log; waits while another process holds it. A
    /// symbolic link is refused.
    ///
    /// # Errors
    /// If it cannot be opened or locked, or its last line is not complete.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        Self::open_on(&Disk::real(), path)
    }

    /// [`AppendLog::open`] on a given disk.
    ///
    /// # Errors
    /// As [`AppendLog::open`].
    pub fn open_on(disk: &Disk, path: &Path) -> Result<Self, WriteError> {
        let log = Self::open_unchecked(disk, path)?;
        let mut last = [b'\n'];
        if let Some(at) = log.n_bytes.checked_sub(1) {
            log.read_exact_at(&mut last, at)?;
        }
        if last == [b'\n'] {
            return Ok(log);
        }
        Err(WriteError::TornLine { path: path.to_owned(), offset: log.last_line_start()? })
    }

    /// Opens a log whose last line may be torn, cuts the torn part off and returns it (empty if
    /// there was none). The caller records that this happened.
    ///
    /// # Errors
    /// If it cannot be opened, locked, read or cut.
    pub fn recover(disk: &Disk, path: &Path) -> Result<(Self, Vec<u8>), WriteError> {
        let mut log = Self::open_unchecked(disk, path)?;
        let start = log.last_line_start()?;
        let n_torn = log.n_bytes - start;
        let mut torn = vec![0; usize::try_from(n_torn).unwrap_or(usize::MAX)];
        log.read_exact_at(&mut torn, start)?;
        if !torn.is_empty() {
            log.file.set_len(start).map_err(|e| WriteError::new(path, Action::Write, e))?;
            log.file.sync().map_err(|e| WriteError::new(path, Action::Sync, e))?;
            log.n_bytes = start;
        }
        Ok((log, torn))
    }

    fn open_unchecked(disk: &Disk, path: &Path) -> Result<Self, WriteError> {
        let error = |action| move |e| WriteError::new(path, action, e);
        let file = disk.open_append(path).map_err(error(Action::Create))?;
        if !file.file.metadata().map_err(error(Action::Read))?.is_file() {
            let not_a_file = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(WriteError::new(path, Action::Create, not_a_file));
        }
        file.file.lock().map_err(error(Action::Lock))?;
        let n_bytes = file.file.metadata().map_err(error(Action::Read))?.len();
        Ok(Self { disk: disk.clone(), file, path: path.to_owned(), n_bytes })
    }

    /// Length in bytes.
    #[must_use]
    pub const fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Reads bytes of the log from `offset`.
    ///
    /// # Errors
    /// If they cannot be read or reach past the end.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), WriteError> {
        let read = self.file.file.read_exact_at(bytes, offset);
        read.map_err(|e| WriteError::new(&self.path, Action::Read, e))
    }

    /// The last line that is not blank, without its end; `None` if there is none. Reads from the
    /// end, in windows of 4096 bytes and more.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn last_line(&self) -> Result<Option<Vec<u8>>, WriteError> {
        let mut window = 4096;
        loop {
            let start = self.n_bytes.saturating_sub(window);
            let mut tail = vec![0; usize::try_from(self.n_bytes - start).unwrap_or(usize::MAX)];
            self.read_exact_at(&mut tail, start)?;
            let mut lines = tail.rsplit(|&b| b == b'\n').peekable();
            while let Some(line) = lines.next() {
                // The first piece of the window may be the end of a longer line.
                let is_whole = start == 0 || lines.peek().is_some();
                if is_whole && !line.trim_ascii().is_empty() {
                    return Ok(Some(line.to_vec()));
                }
            }
            if start == 0 {
                return Ok(None);
            }
            window *= 2;
        }
    }

    /// Appends `line` and its end, and waits until they are on the disk.
    ///
    /// # Errors
    /// If the line has a line break in it, or a step fails; the file is as it was then.
    pub fn append_line(&mut self, line: &str) -> Result<(), WriteError> {
        if line.contains('\n') {
            return Err(WriteError::LineBreak { path: self.path.clone() });
        }
        let was_empty = self.n_bytes == 0;
        let bytes = [line.as_bytes(), b"\n"].concat();
        let error = |action, e| WriteError::new(&self.path, action, e);
        let written = self.file.write_all(&bytes).map_err(|e| error(Action::Write, e));
        let synced = written.and_then(|()| self.file.sync().map_err(|e| error(Action::Sync, e)));
        if let Err(error) = synced {
            // Take the half line back. If even that fails, the next open reports it as torn.
            let _ = self.file.set_len(self.n_bytes);
            return Err(error);
        }
        self.n_bytes += bytes.len() as u64;
        if was_empty { sync_parent(&self.disk, &self.path) } else { Ok(()) }
    }

    /// Where the text after the last line end begins.
    fn last_line_start(&self) -> Result<u64, WriteError> {
        let mut end = self.n_bytes;
        let mut window = [0; 4096];
        while end > 0 {
            let start = end.saturating_sub(4096);
            let bytes = &mut window[..usize::try_from(end - start).unwrap_or(4096)];
            self.read_exact_at(bytes, start)?;
            if let Some(at) = bytes.iter().rposition(|&b| b == b'\n') {
                return Ok(start + at as u64 + 1);
            }
            end = start;
        }
        Ok(0)
    }
}
