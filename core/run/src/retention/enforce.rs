//! Before a run starts: what lies in its folder for longer than the config allows is recorded, told,
//! or stops the run. Nothing is ever removed here.

use super::scan::Violation;
use super::{RetentionError, hold, look};
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use forgelm_config::RetentionEnforce;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};

/// Looks into the run's folder, where the config has a `retention` section. Each violation is an event
/// of the log before anything else is said of it. While a legal hold stands nothing can be removed, so
/// that nothing is refused either.
///
/// # Errors
/// If the folder cannot be read or the log not written; and, where the config says so, for what is too
/// old.
pub fn before_start(
    plan: &Plan,
    operator: &str,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let Some(retention) = &plan.run.retention else { return Ok(()) };
    let violations = violations(plan, env)?;
    if violations.is_empty() {
        return Ok(());
    }
    let dir = plan.output.root();
    let identity = AuditIdentity {
        run_id: env.run_id(),
        operator: operator.to_owned(),
        secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
        allow_reroot: env.allow_audit_reroot,
    };
    let mut audit = AuditLog::open(dir, identity, env.clock.clone())?;
    for violation in &violations {
        audit.append(&AuditEvent::RetentionPolicyViolation {
            artefact_kind: violation.kind.clone(),
            path: violation.path.clone(),
            age_days: violation.age_days,
            horizon_days: violation.horizon_days,
            age_source: violation.age_source.as_str().to_owned(),
            enforce: retention.enforce.to_string(),
        })?;
    }
    if retention.enforce == RetentionEnforce::LogOnly {
        return Ok(());
    }
    for violation in &violations {
        observer.observe(&Event::Warning(violation.to_string()));
    }
    if retention.enforce == RetentionEnforce::WarnOnExcess {
        return Ok(());
    }
    if let Some(held) = hold::reason(dir, Some(&plan.run))? {
        let text = format!("what is too old stays, and the run starts: legal hold: {held}");
        observer.observe(&Event::Warning(text));
        return Ok(());
    }
    Err(RetentionError::Excess { dir: dir.to_owned(), violations }.into())
}

/// What in the run's folder is older than the config allows; nothing without a `retention` section.
/// Nothing is written.
///
/// # Errors
/// If the folder cannot be read.
pub fn violations(plan: &Plan, env: &Environment) -> Result<Vec<Violation>, RunError> {
    match &plan.run.retention {
        Some(retention) => look(&plan.run, retention, plan.output.root(), env),
        None => Ok(Vec::new()),
    }
}
