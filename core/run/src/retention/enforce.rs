//! Before a run starts: what lies in its folder for longer than the config allows is recorded, told,
//! or stops the run. Nothing is ever removed here.

use super::scan::Violation;
use super::{RetentionError, hold, look, places};
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::plan::Plan;
use forgelm_config::{RetentionEnforce, Run};
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use std::path::{Path, PathBuf};

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
    let dir = plan.output.root();
    let Some(excess) = Excess::in_dir(&plan.run, dir, env)? else { return Ok(()) };
    let identity = AuditIdentity {
        run_id: env.run_id(),
        operator: operator.to_owned(),
        secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
        allow_reroot: env.allow_audit_reroot,
    };
    let mut audit = AuditLog::open(dir, identity, env.clock.clone())?;
    excess.tell(&mut audit, observer)?;
    match excess.is_refused(observer)? {
        true => {
            Err(RetentionError::Excess { dir: excess.dir, violations: excess.violations }.into())
        }
        false => Ok(()),
    }
}

/// The same for the folder of a pipeline and those of all its stages, in the pipeline's log: the last
/// stage is not refused after the first one has trained.
///
/// # Errors
/// As [`before_start`].
pub(crate) fn before_pipeline(
    root: &Run,
    dir: &Path,
    audit: &mut AuditLog,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<(), RunError> {
    let mut refused = Vec::new();
    for (run, place) in places(root) {
        let Some(excess) = Excess::in_dir(&run, &place, env)? else { continue };
        excess.tell(audit, observer)?;
        if excess.is_refused(observer)? {
            refused.extend(excess.violations);
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(RetentionError::Excess { dir: dir.to_owned(), violations: refused }.into())
}

/// What is too old in a folder.
struct Excess {
    run: Run,
    dir: PathBuf,
    enforce: RetentionEnforce,
    violations: Vec<Violation>,
}

impl Excess {
    /// None where nothing is, or the config has no horizons.
    fn in_dir(run: &Run, dir: &Path, env: &Environment) -> Result<Option<Self>, RunError> {
        let Some(retention) = &run.retention else { return Ok(None) };
        let (violations, enforce) = (look(run, retention, dir, env)?, retention.enforce);
        let found = Self { run: run.clone(), dir: dir.to_owned(), enforce, violations };
        Ok((!found.violations.is_empty()).then_some(found))
    }

    fn tell(&self, audit: &mut AuditLog, observer: &mut dyn Observer) -> Result<(), RunError> {
        for violation in &self.violations {
            audit.append(&AuditEvent::RetentionPolicyViolation {
                artefact_kind: violation.kind.clone(),
                path: violation.path.clone(),
                age_days: violation.age_days,
                horizon_days: violation.horizon_days,
                age_source: violation.age_source.as_str().to_owned(),
                enforce: self.enforce.to_string(),
            })?;
        }
        if self.enforce != RetentionEnforce::LogOnly {
            for violation in &self.violations {
                observer.observe(&Event::Warning(violation.to_string()));
            }
        }
        Ok(())
    }

    fn is_refused(&self, observer: &mut dyn Observer) -> Result<bool, RunError> {
        if self.enforce != RetentionEnforce::BlockOnExcess {
            return Ok(false);
        }
        let Some(held) = hold::reason(&self.dir, Some(&self.run))? else { return Ok(true) };
        let text = format!("what is too old stays, and the run starts: legal hold: {held}");
        observer.observe(&Event::Warning(text));
        Ok(false)
    }
}

/// What in the run's folder, or in those of a pipeline and its stages, is older than the config
/// allows; nothing without a `retention` section. Nothing is written.
///
/// # Errors
/// If a folder cannot be read.
pub fn violations(plan: &Plan, env: &Environment) -> Result<Vec<Violation>, RunError> {
    let mut found = Vec::new();
    for (run, dir) in places(&plan.run) {
        found.extend(Excess::in_dir(&run, &dir, env)?.into_iter().flat_map(|e| e.violations));
    }
    Ok(found)
}
