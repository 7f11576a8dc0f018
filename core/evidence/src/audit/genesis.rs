//! The genesis manifest: it pins the first line of the log, so that a log that was deleted or
//! replaced is noticed.
//!
//! Ours: the manifest is written after the first line and under the same lock. A manifest
//! therefore proves that a log was there; a log of one line without one is what a crash between
//! the two leaves, and is completed by the next append.

use std::io::Read as _;
use std::path::Path;

use forgelm_artifact::{Disk, UtcTime, open, write};
use serde_json::{Value, json};

use super::log::AuditError;
use super::{GENESIS_FILE, LOG_FILE};
use crate::strict_json::{DOCUMENT_LIMITS, parse};

/// A manifest is a few hundred bytes.
const GENESIS_BYTES_MAX: u64 = 64 << 10;

/// What a genesis manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Genesis {
    pub(super) run_id: String,
    pub(super) first_entry_sha256: String,
}

/// What is found beside the log.
pub(super) enum Found {
    Absent,
    Unusable(String),
    Manifest(Genesis),
}

/// Reads the manifest in `dir`.
pub(super) fn read(dir: &Path) -> Found {
    let path = dir.join(GENESIS_FILE);
    if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Found::Absent;
    }
    let mut bytes = Vec::new();
    let read = open::unlinked(&path).map_err(|e| e.to_string()).and_then(|(file, _)| {
        file.take(GENESIS_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| e.to_string())
    });
    if let Err(reason) = read {
        return Found::Unusable(reason);
    }
    let value = match parse(&bytes, DOCUMENT_LIMITS) {
        Ok(value) => value,
        Err(e) => return Found::Unusable(e.to_string()),
    };
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    match (text("run_id"), text("first_entry_sha256")) {
        (Some(run_id), Some(first_entry_sha256)) => {
            Found::Manifest(Genesis { run_id, first_entry_sha256 })
        }
        (None, _) => Found::Unusable("no `run_id`".to_owned()),
        (_, None) => Found::Unusable("no `first_entry_sha256`".to_owned()),
    }
}

/// Writes the manifest in `dir`.
pub(super) fn write(
    disk: &Disk,
    dir: &Path,
    genesis: &Genesis,
    now: UtcTime,
) -> Result<(), AuditError> {
    let document = json!({
        "audit_log": LOG_FILE,
        "created_at": now.to_string(),
        "run_id": genesis.run_id,
        "first_entry_sha256": genesis.first_entry_sha256,
    });
    let text = format!("{document:#}\n");
    write::atomic_on(disk, &dir.join(GENESIS_FILE), text.as_bytes()).map_err(AuditError::Write)
}
