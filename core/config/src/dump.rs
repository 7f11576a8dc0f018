//! A run written out again, with every default and no secret.

use serde_json::Value as Json;

use crate::read::Readable;
use crate::run::Run;

/// The complete config as JSON: defaults filled in, secrets replaced by
/// [`REDACTED`](crate::REDACTED), keys in the order of the documentation.
///
/// `webhook.url` is in it, as the config hash needs; files of a run leave that key out.
#[must_use]
pub fn resolved_json(run: &Run) -> Json {
    run.to_json()
}

/// The same as YAML. Without secrets in the config, [`load`](crate::load) of it gives the same run.
#[must_use]
pub fn resolved_yaml(run: &Run) -> String {
    // JSON values of this shape always have a YAML form.
    serde_yaml::to_string(&resolved_json(run)).unwrap_or_default()
}
