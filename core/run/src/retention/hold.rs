//! Legal hold: while it stands, nothing of a folder is purged.
//!
//! A key of the config (`retention.legal_hold`) or a file in the folder (`LEGAL_HOLD`) holds. The file
//! is there before the log says so, and is gone after: whatever fails in between, the hold stands.

use super::RetentionError;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::remark;
use forgelm_artifact::open::{self, OpenError};
use forgelm_artifact::{Quoted, json, write};
use forgelm_config::Run;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::bundle::HOLD_FILE;
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A hold's file is a few hundred bytes.
const HOLD_BYTES_MAX: u64 = 64 << 10;

/// A hold that was placed or released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The file.
    pub path: PathBuf,
    /// Why, as recorded.
    pub reason: String,
    /// Whether it stands now.
    pub is_held: bool,
}

impl Held {
    /// The JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "success": true,
            "mode": if self.is_held { "hold" } else { "release" },
            "path": self.path,
            "reason": self.reason,
        })
    }
}

/// Why nothing of `dir` may be purged, if so: by its file, or by the config.
///
/// # Errors
/// If the file is there and cannot be read: nobody knows then that nothing is held.
pub fn reason(dir: &Path, run: Option<&Run>) -> Result<Option<String>, RunError> {
    let retention = run.and_then(|run| run.retention.as_ref());
    if retention.is_some_and(|retention| retention.legal_hold) {
        return Ok(Some("`retention.legal_hold` is true".to_owned()));
    }
    let path = dir.join(HOLD_FILE);
    let Some(text) = read(&path)? else { return Ok(None) };
    let reason = reason_in(&text).unwrap_or_else(|| text.trim().to_owned());
    Ok(Some(format!("{}: {}", path.display(), Quoted(&reason))))
}

/// Refuses to purge where something is held.
///
/// # Errors
/// What holds it; or that this cannot be known.
pub fn check(dirs: &[&Path], run: Option<&Run>) -> Result<(), RunError> {
    for dir in dirs {
        if let Some(reason) = reason(dir, run)? {
            let hint = match reason.starts_with('`') {
                true => "remove the key when the matter is closed",
                false => "`forgelm purge --release REASON` ends the hold, and is recorded",
            };
            let reason = format!("legal hold: {reason}");
            return Err(RetentionError::Held { reason, hint }.into());
        }
    }
    Ok(())
}

/// Places a hold on `dir`.
///
/// # Errors
/// If one stands already, or it cannot be written or recorded.
pub fn place(dir: &Path, reason: &str, env: &Environment) -> Result<Held, RunError> {
    let reason = remark::recorded("--hold", reason)?;
    let path = dir.join(HOLD_FILE);
    check_folder(dir)?;
    let operator = dossier::operator(env)?;
    if let Some(text) = read(&path)? {
        let reason = reason_in(&text).unwrap_or_default();
        let problem = format!("a hold stands already: {}", Quoted(&reason));
        return Err(RetentionError::Hold { path, problem }.into());
    }
    let placed_at = env.clock.utc().to_string();
    let document = json!({"reason": reason, "operator": operator, "placed_at": placed_at});
    write::atomic(&path, json::pretty(&document).as_bytes())?;
    let mut audit = log(dir, operator, env)?;
    let shown = path.display().to_string();
    audit.append(&AuditEvent::RetentionHoldPlaced { path: shown, reason: reason.clone() })?;
    Ok(Held { path, reason, is_held: true })
}

/// Ends the hold on `dir`.
///
/// # Errors
/// If none stands, or that cannot be recorded: the hold stands then.
pub fn release(dir: &Path, reason: &str, env: &Environment) -> Result<Held, RunError> {
    let reason = remark::recorded("--release", reason)?;
    let path = dir.join(HOLD_FILE);
    check_folder(dir)?;
    let Some(text) = read(&path)? else {
        let problem = "no hold stands".to_owned();
        return Err(RetentionError::Hold { path, problem }.into());
    };
    let mut audit = log(dir, dossier::operator(env)?, env)?;
    audit.append(&AuditEvent::RetentionHoldReleased {
        path: path.display().to_string(),
        reason: reason.clone(),
        held_for: reason_in(&text),
    })?;
    write::remove_file(&path)?;
    Ok(Held { path, reason, is_held: false })
}

fn check_folder(dir: &Path) -> Result<(), RunError> {
    if dir.is_dir() {
        return Ok(());
    }
    let problem = "no such folder; expected the folder of a run".to_owned();
    Err(RetentionError::Hold { path: dir.to_owned(), problem }.into())
}

fn log(dir: &Path, operator: String, env: &Environment) -> Result<AuditLog, RunError> {
    let identity = AuditIdentity {
        run_id: env.run_id(),
        operator,
        secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
        allow_reroot: env.allow_audit_reroot,
    };
    Ok(AuditLog::open(dir, identity, env.clock.clone())?)
}

/// The text of a hold. One that cannot be read holds all the same.
fn read(path: &Path) -> Result<Option<String>, RunError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(failed)?,
    };
    let (file, _) = open::regular(path)?;
    let mut bytes = Vec::new();
    file.take(HOLD_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn reason_in(text: &str) -> Option<String> {
    let document: Value = serde_json::from_str(text).ok()?;
    Some(document.get("reason")?.as_str()?.to_owned())
}
