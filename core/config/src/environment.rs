//! The environment variables that a config names. This crate reads none of them: the caller does,
//! before anything starts.

use crate::run::Run;
use crate::section::MetricsExport;

/// A key of the config that names an environment variable which must be set and not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentKey {
    /// The key, such as `synthetic.api_key_env`.
    pub key: &'static str,
    /// The name of the variable.
    pub name: String,
}

/// The variables that this run needs: those of sections that are on.
#[must_use]
pub fn environment_keys(run: &Run) -> Vec<EnvironmentKey> {
    let judge = run.evaluation.as_ref().and_then(|e| e.llm_judge.as_ref()).filter(|j| j.enabled);
    let synthetic = run.synthetic.as_ref().filter(|s| s.enabled && s.api_key.is_none());
    let webhook = run.webhook.as_ref().filter(|w| w.url.as_deref().unwrap_or("").is_empty());
    let monitoring = run.monitoring.as_ref().filter(|m| m.enabled && m.endpoint.is_empty());
    let datadog =
        run.monitoring.as_ref().filter(|m| m.enabled && m.metrics_export == MetricsExport::Datadog);
    let signing = run.signing.as_ref().filter(|s| s.enabled);
    [
        (judge.and_then(|j| j.judge_api_key_env.clone()), "evaluation.llm_judge.judge_api_key_env"),
        (synthetic.and_then(|s| s.api_key_env.clone()), "synthetic.api_key_env"),
        (webhook.and_then(|w| w.url_env.clone()), "webhook.url_env"),
        (monitoring.and_then(|m| m.endpoint_env.clone()), "monitoring.endpoint_env"),
        (datadog.and_then(|m| m.api_key_env.clone()), "monitoring.api_key_env"),
        (signing.and_then(|s| s.key_env.clone()), "signing.key_env"),
    ]
    .into_iter()
    .filter_map(|(name, key)| name.map(|name| EnvironmentKey { key, name }))
    .collect()
}
