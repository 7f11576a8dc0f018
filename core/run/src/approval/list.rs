//! `approvals`: what waits, and what became of a run. Nothing is changed, and nothing is verified:
//! a log that does not hold is told of by who decides on it.

use super::error::ApprovalError;
use super::place::check_folder;
use crate::error::RunError;
use forgelm_artifact::UtcTime;
use forgelm_evidence::approval::final_name;
use forgelm_evidence::approval::requests::{self, Request, Requests, Status};
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::dsse::statement::is_subject_name;
use std::path::{Path, PathBuf};

/// A request that can still be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// What the log says.
    pub request: Request,
    /// Its staged model.
    pub staging: PathBuf,
    /// Whether that is there.
    pub staging_exists: bool,
    /// Since it asked.
    pub age_seconds: u64,
    /// Whether enough have approved: its promotion was cut off.
    pub is_approved: bool,
}

/// One run, whatever became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// What the log says.
    pub request: Request,
    /// Where it stands.
    pub status: Status,
    /// What its folder has, sorted.
    pub contents: Vec<String>,
    /// The first line of the log that is no record.
    pub corrupted: Option<String>,
}

/// The requests in `dir` that can still be answered, the newest first. A folder without a log has
/// none.
///
/// # Errors
/// If there is no folder, or the log cannot be read.
pub fn pending(dir: &Path, now: UtcTime) -> Result<Vec<Waiting>, RunError> {
    let waiting = |request: Request| {
        let staging = dir.join(&request.staging_path);
        let age = request.requested().map_or(0, |at| now.0 - at.0);
        Waiting {
            staging_exists: staging.is_dir(),
            staging,
            age_seconds: u64::try_from(age / 1_000_000).unwrap_or(0),
            is_approved: request.has_quorum(),
            request,
        }
    };
    let found = read(dir)?.unwrap_or_default();
    let is_open = |request: &Request| match request.status(now) {
        Status::Pending | Status::Approved => true,
        Status::Granted | Status::Rejected | Status::Expired | Status::Superseded => false,
    };
    Ok(found.requests.into_iter().rev().filter(is_open).map(waiting).collect())
}

/// One run of `dir`.
///
/// # Errors
/// If there is no log, or the run asks for no approval in it.
pub fn show(dir: &Path, run_id: &str, now: UtcTime) -> Result<Shown, RunError> {
    check_folder(dir)?;
    let found = read(dir)?.unwrap_or_default();
    let Some(request) = found.of(run_id).cloned() else {
        let known = found.requests.iter().map(|request| request.run_id.clone()).collect();
        let (run_id, dir) = (run_id.to_owned(), dir.to_owned());
        return Err(ApprovalError::Unknown { run_id, dir, known }.into());
    };
    let status = request.status(now);
    let corrupted = found.problem.map(|(line, problem)| format!("line {line}: {problem}"));
    Ok(Shown { contents: contents(dir, &request, status), status, corrupted, request })
}

fn read(dir: &Path) -> Result<Option<Requests>, RunError> {
    match check_folder(dir) {
        Err(ApprovalError::NoFolder { problem: "has no audit log", .. }) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Some(requests::read(&dir.join(LOG_FILE))?)),
    }
}

/// The names in the model's folder, which has its final name once it was promoted.
fn contents(dir: &Path, request: &Request, status: Status) -> Vec<String> {
    let name = match status {
        Status::Granted => final_name(&request.staging_path).unwrap_or_default(),
        _ => &request.staging_path,
    };
    // A log can name anything.
    if !is_subject_name(name) {
        return Vec::new();
    }
    let entries = std::fs::read_dir(dir.join(name)).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
