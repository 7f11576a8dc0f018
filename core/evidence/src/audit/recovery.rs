//! A log whose last line is torn, after a crash in the middle of a write.
//!
//! The torn bytes go to [`PENDING_FILE`] first, then they are cut off, then the event is appended,
//! then the file goes: wherever the machine stops again, the next start still knows that bytes
//! were torn, and which.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forgelm_artifact::write::{self, AppendLog};
use forgelm_artifact::{Disk, open};

use super::event::AuditEvent;
use super::log::AuditError;
use super::{LINE_BYTES_MAX, LOG_FILE};
use crate::digest::sha256_hex;

/// Holds the torn bytes until the recovery is recorded.
const PENDING_FILE: &str = "audit_log.jsonl.torn";
/// Torn bytes up to this many are kept in the event itself.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// Whether a recovery is due or was begun.
pub(super) fn is_due(dir: &Path) -> Result<bool, AuditError> {
    if dir.join(PENDING_FILE).symlink_metadata().is_ok() {
        return Ok(true);
    }
    let path = dir.join(LOG_FILE);
    if path.symlink_metadata().is_err() {
        return Ok(false);
    }
    let (file, _) = open::regular(&path).map_err(AuditError::Open)?;
    let read_error = |source| AuditError::Read { path: path.clone(), source };
    file.lock().map_err(read_error)?;
    Ok(torn_tail(&file).map_err(read_error)?.is_some())
}

/// The bytes after the last newline, if there are any.
fn torn_tail(mut file: &File) -> std::io::Result<Option<Vec<u8>>> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut window = 4096_u64;
    loop {
        let start = len.saturating_sub(window);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.take(window).read_to_end(&mut tail)?;
        let newline = tail.iter().rposition(|&b| b == b'\n');
        if newline.is_none() && start > 0 && window <= LINE_BYTES_MAX as u64 {
            window *= 2;
            continue;
        }
        let torn = tail.split_off(newline.map_or(0, |at| at + 1));
        return Ok((!torn.is_empty()).then_some(torn));
    }
}

/// Keeps the torn bytes, cuts them off, and returns the locked log with the event that must be
/// appended to it, if it is not there yet.
pub(super) fn begin(
    disk: &Disk,
    dir: &Path,
) -> Result<(AppendLog, Option<AuditEvent>), AuditError> {
    let (path, pending_path) = (dir.join(LOG_FILE), dir.join(PENDING_FILE));
    let read_error = |source| AuditError::Read { path: path.clone(), source };
    if path.symlink_metadata().is_ok() {
        let (file, _) = open::regular(&path).map_err(AuditError::Open)?;
        // While this lock is held nobody writes, so that a line without an end is really torn.
        file.lock().map_err(read_error)?;
        if let Some(torn) = torn_tail(&file).map_err(read_error)? {
            let kept = match read_pending(&pending_path)? {
                // The record of an earlier recovery was torn itself: keep both.
                Some(earlier) if earlier != torn => [&earlier[..], b"\n", &torn].concat(),
                _ => torn,
            };
            write::atomic_on(disk, &pending_path, &kept).map_err(AuditError::Write)?;
        }
    }
    let (log, torn) = AppendLog::recover(disk, &path).map_err(AuditError::Write)?;
    let bytes = match read_pending(&pending_path)? {
        Some(bytes) => bytes,
        None if torn.is_empty() => return Ok((log, None)),
        None => torn,
    };
    let event = event(&bytes);
    let AuditEvent::AuditRecovered { torn_sha256, .. } = &event else { return Ok((log, None)) };
    let last = log.last_line().map_err(AuditError::Write)?.unwrap_or_default();
    let recorded =
        contains(&last, b"\"audit.recovered\"") && contains(&last, torn_sha256.as_bytes());
    Ok((log, (!recorded).then_some(event)))
}

/// The event is in the log: the pending file goes, or gets its final name when it holds more than
/// the event does.
pub(super) fn finish(disk: &Disk, dir: &Path) -> Result<(), AuditError> {
    let pending_path = dir.join(PENDING_FILE);
    let Some(bytes) = read_pending(&pending_path)? else { return Ok(()) };
    if bytes.len() > INLINE_BYTES_MAX {
        let kept = dir.join(kept_name(&sha256_hex(&bytes)));
        write::atomic_on(disk, &kept, &bytes).map_err(AuditError::Write)?;
    }
    write::remove_file(&pending_path).map_err(AuditError::Write)
}

fn read_pending(path: &Path) -> Result<Option<Vec<u8>>, AuditError> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let (file, _) = open::regular(path).map_err(AuditError::Open)?;
    let mut bytes = Vec::new();
    file.take(4 * LINE_BYTES_MAX as u64)
        .read_to_end(&mut bytes)
        .map_err(|source| AuditError::Read { path: path.to_owned(), source })?;
    Ok(Some(bytes))
}

fn kept_name(sha256: &str) -> String {
    format!("{PENDING_FILE}-{}", &sha256[..12])
}

fn event(torn: &[u8]) -> AuditEvent {
    let torn_sha256 = sha256_hex(torn);
    let inline = torn.len() <= INLINE_BYTES_MAX;
    AuditEvent::AuditRecovered {
        torn_bytes: torn.len() as u64,
        torn_base64: inline.then(|| STANDARD.encode(torn)),
        kept_in: (!inline).then(|| kept_name(&torn_sha256)),
        torn_sha256,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
