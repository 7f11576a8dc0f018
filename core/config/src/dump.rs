//! A run written out again, with every default and no secret.

use serde_json::Value as Json;

use crate::read::Readable;
use crate::run::Run;

/// The complete config as JSON: defaults filled in, secrets replaced by
/// [`REDACTED`](crate::REDACTED), keys in the order of the documentation.
///
/// `webhook.url` is in it, as the config hash needs; files of a run have [`published_json`].
#[must_use]
pub fn resolved_json(run: &Run) -> Json {
    run.to_json()
}

/// The same for files of a run: without `webhook.url` and `monitoring.endpoint`, which often have a token
/// in them.
#[must_use]
pub fn published_json(run: &Run) -> Json {
    let mut config = resolved_json(run);
    if let Some(webhook) = config["webhook"].as_object_mut() {
        webhook.insert("url".to_owned(), Json::Null);
    }
    if let Some(monitoring) = config["monitoring"].as_object_mut() {
        monitoring.insert("endpoint".to_owned(), Json::from(""));
    }
    config
}

/// The same as YAML. Without secrets in the config, [`load`](crate::load) of it gives the same run.
#[must_use]
pub fn resolved_yaml(run: &Run) -> String {
    // JSON values of this shape always have a YAML form.
    serde_yaml::to_string(&resolved_json(run)).unwrap_or_default()
}
