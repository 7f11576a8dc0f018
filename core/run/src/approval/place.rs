//! The folder of a run that asks: its request, its log, and where its model is and will be.

use super::decide::DecisionRequest;
use super::error::ApprovalError;
use crate::dossier::to_evidence;
use crate::environment::Environment;
use crate::error::RunError;
use forgelm_evidence::Class;
use forgelm_evidence::approval::final_name;
use forgelm_evidence::approval::requests::{self, Request};
use forgelm_evidence::audit::LOG_FILE;
use forgelm_evidence::dsse::statement::is_subject_name;
use forgelm_evidence::signature::{AuditRequest, verify_audit_log};
use std::path::{Path, PathBuf};

/// A folder with an audit log.
pub(super) fn check_folder(dir: &Path) -> Result<(), ApprovalError> {
    let problem = match dir.metadata() {
        Err(_) => "no such folder",
        Ok(metadata) if !metadata.is_dir() => "is no folder",
        Ok(_) if !dir.join(LOG_FILE).exists() => "has no audit log",
        Ok(_) => return Ok(()),
    };
    Err(ApprovalError::NoFolder { dir: dir.to_owned(), problem })
}

/// The request of a run, out of a log of which every line is a record.
pub(super) fn find(dir: &Path, run_id: &str) -> Result<Request, RunError> {
    let path = dir.join(LOG_FILE);
    let found = requests::read(&path)?;
    if let Some((line, problem)) = found.problem {
        return Err(ApprovalError::Log { path, line, problem }.into());
    }
    if let Some(request) = found.of(run_id) {
        return Ok(request.clone());
    }
    let known = found.requests.iter().map(|request| request.run_id.clone()).collect();
    let (run_id, dir) = (run_id.to_owned(), dir.to_owned());
    Err(ApprovalError::Unknown { run_id, dir, known }.into())
}

/// The staged folder and its final name, both really inside the output folder.
pub(super) fn places(dir: &Path, request: &Request) -> Result<(PathBuf, PathBuf), RunError> {
    let name = &request.staging_path;
    let staging = dir.join(name);
    let outside =
        |problem: &str| ApprovalError::Place { path: staging.clone(), problem: problem.to_owned() };
    if !is_subject_name(name) {
        return Err(outside("the log names a staged model outside the output folder").into());
    }
    let Some(final_name) = final_name(name) else {
        return Err(outside("is no name of a staged model; expected NAME.staging.RUN_ID").into());
    };
    let real = |path: &Path| path.canonicalize().ok();
    let parent = staging.parent().and_then(real);
    let is_inside = match (parent, real(dir)) {
        (Some(parent), Some(dir)) => parent.starts_with(dir),
        _ => false,
    };
    if !is_inside {
        return Err(outside("leads out of the output folder").into());
    }
    Ok((staging.clone(), dir.join(final_name)))
}

/// The chain of the log and the signed head beside it; how many lines a trusted key vouches for.
pub(super) fn check_log(asked: &DecisionRequest<'_>, env: &Environment) -> Result<u64, RunError> {
    let secret = env.audit_secret.as_ref().and_then(to_evidence);
    let path = asked.output_dir.join(LOG_FILE);
    let report = verify_audit_log(
        &path,
        &AuditRequest {
            secret: secret.as_ref(),
            keys: asked.keys.clone(),
            ..AuditRequest::default()
        },
    );
    if let Err(rejection) = report.chain {
        return Err(ApprovalError::Chain(rejection).into());
    }
    if report.class != Class::Accepted {
        let reason = report.signature.reason.unwrap_or_default();
        return Err(ApprovalError::Head { path, reason, class: report.class }.into());
    }
    Ok(report.signed_entries)
}
