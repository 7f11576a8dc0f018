//! Whom this user believes, where no command line says it.

use crate::environment::Environment;
use crate::error::RunError;
use forgelm_evidence::keys::lookup::automatic_public_key;
use forgelm_evidence::keys::trust::TrustedKeys;
use std::path::Path;

/// The trust store that `FORGELM_TRUSTED_KEYS` names, else that of the config, else this user's own key.
///
/// # Errors
/// If the store that is named cannot be used: the next place is not tried.
pub fn trusted_keys(config: Option<&Path>, env: &Environment) -> Result<TrustedKeys, RunError> {
    if let Some(store) = env.trusted_keys.as_deref().or(config) {
        return Ok(TrustedKeys::load(store)?);
    }
    let own = automatic_public_key(&env.config_dir);
    Ok(own.map(TrustedKeys::with_local).unwrap_or_default())
}
