//! The keys of a decision: whose signatures are believed, and which key signs what it adds.

use super::decide::DecisionRequest;
use super::error::ApprovalError;
use crate::dossier;
use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use forgelm_artifact::UtcTime;
use forgelm_evidence::approval::decision;
use forgelm_evidence::keys::lookup::automatic_public_key;
use forgelm_evidence::keys::trust::{TrustedKey, TrustedKeys, Usage};
use forgelm_evidence::keys::{KeyError, RunSigner};
use std::path::Path;
use std::sync::Arc;

/// The keys that are believed, and the approver's own: whoever signs believes themselves. Where the
/// store knows that key, what it says of it counts.
pub(super) fn with_own(
    mut keys: TrustedKeys,
    approver: Option<&RunSigner>,
    now: UtcTime,
) -> Result<TrustedKeys, ApprovalError> {
    let Some(approver) = approver else { return Ok(keys) };
    let keyid = approver.key.id();
    if keys.find(&keyid).is_some() && !keys.may_sign(&keyid, Usage::Approval, now) {
        return Err(ApprovalError::ApproverKey { keyid: keyid.to_string() });
    }
    let own = TrustedKey::unlimited(approver.key.public(), approver.label.clone());
    let usages = [Usage::Approval, Usage::Checkpoint].into_iter().collect();
    keys.add(TrustedKey { usages, ..own });
    Ok(keys)
}

/// The key that signs the new head of the log.
pub(super) fn head_signer(
    asked: &DecisionRequest<'_>,
    env: &Environment,
    observer: &mut dyn Observer,
) -> Result<Arc<RunSigner>, RunError> {
    let found = |flag: Option<&Path>, observer: &mut dyn Observer| {
        let found = dossier::key_by_default(flag.map(Path::to_owned), env, observer)?;
        found.map(|found| found.signer).ok_or(RunError::Key(KeyError::NoPlace))
    };
    let run_keyid = decision::run_signer(asked.output_dir);
    let is_named = asked.signing_key.is_some()
        || env.signing_key_file.is_some()
        || env.signing_key.is_some()
        || asked.approver_key.is_none();
    let own = automatic_public_key(&env.config_dir).map(|key| key.id().to_string());
    if is_named || (own.is_some() && own == run_keyid) {
        return found(asked.signing_key, observer);
    }
    found(asked.approver_key, observer)
}
