//! Human approval: who may approve, and the commands with which people do.
//!
//! A run that asks for it leaves its model in a staging folder ([`policy`] says what its request
//! carries). [`decide`] is `approve` and `reject`, [`list`] is `approvals`. The audit log is the only
//! state, so a promotion that was cut off is seen in it and finished by the next decision.

pub mod decide;
pub mod error;
mod keys;
pub mod list;
mod place;

use crate::error::RunError;
use crate::plan::Plan;
use error::ApprovalError;
use forgelm_config::Approval;
use forgelm_evidence::approval::policy::{Approver, Policy};
use forgelm_evidence::keys::trust::{TrustedKeys, Usage};
use std::path::Path;

/// The lock of whoever decides.
pub const LOCK_FILE: &str = ".approval.lock";

/// The rules that a plan's request will carry; none where no approval is asked for.
///
/// # Errors
/// If the approvers' trust store cannot be used, or has fewer keys than are needed.
pub fn policy(plan: &Plan) -> Result<Option<Policy>, RunError> {
    let evaluation = plan.run.evaluation.as_ref().filter(|e| e.require_human_approval);
    let Some(evaluation) = evaluation else { return Ok(None) };
    let rules = evaluation.approval.clone().unwrap_or_default();
    let approvers = rules.approvers.as_deref().map(|store| approvers(store, &rules)).transpose()?;
    Ok(Some(Policy {
        quorum: rules.quorum,
        roles: rules.roles,
        expires_days: rules.expires_days,
        require_different_operator: rules.require_different_operator,
        approvers,
    }))
}

/// The keys of a store that may approve today.
fn approvers(store: &str, rules: &Approval) -> Result<Vec<Approver>, RunError> {
    let keys = TrustedKeys::load(Path::new(store))?;
    let may_approve = keys
        .keys()
        .iter()
        .filter(|k| k.usages.contains(&Usage::Approval) && k.revocation.is_none());
    let found: Vec<Approver> = may_approve
        .map(|key| Approver { keyid: key.keyid.clone(), label: key.label.clone() })
        .collect();
    let needed = usize::try_from(rules.quorum).unwrap_or(usize::MAX);
    if found.len() < needed {
        let (store, found) = (store.to_owned(), found.len());
        return Err(ApprovalError::TooFewApprovers { store, found, needed }.into());
    }
    Ok(found)
}
