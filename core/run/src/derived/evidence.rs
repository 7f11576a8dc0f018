//! The audit log of a piece of work without a run's folder.

use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use forgelm_evidence::audit::event::AuditEvent;
use forgelm_evidence::audit::log::{AuditIdentity, AuditLog};
use forgelm_evidence::keys::lookup::FoundKey;
use std::path::Path;

/// Who does it, and what signs it.
pub struct By<'a> {
    pub env: &'a Environment,
    pub operator: &'a str,
    pub key: Option<&'a FoundKey>,
}

/// A new log in `dir` with its first entries; `work` is what is done to the model.
pub fn open_audit(
    dir: &Path,
    run_id: &str,
    by: &By<'_>,
    model: &str,
    work: String,
) -> Result<AuditLog, RunError> {
    let env = by.env;
    let identity = AuditIdentity {
        run_id: run_id.to_owned(),
        operator: by.operator.to_owned(),
        secret: env.audit_secret.as_ref().and_then(dossier::to_evidence),
        allow_reroot: env.allow_audit_reroot,
    };
    let mut audit = AuditLog::open(dir, identity, env.clock.clone())?;
    audit.append(&dossier::key_event(by.key))?;
    let model = model.to_owned();
    audit.append(&AuditEvent::PipelineInitialized { model, trainer_type: work })?;
    Ok(audit)
}
