//! Rules between the keys of `monitoring`.

use super::Findings;
use crate::diagnostic::Code;
use crate::run::Run;
use crate::section::MetricsExport;

pub fn check(run: &Run, findings: &mut Findings<'_>) {
    let Some(monitoring) = run.monitoring.as_ref().filter(|monitoring| monitoring.enabled) else {
        return;
    };
    let export = "monitoring.metrics_export";
    let has_endpoint = !monitoring.endpoint.is_empty() || monitoring.endpoint_env.is_some();
    match monitoring.metrics_export {
        MetricsExport::Datadog | MetricsExport::CustomWebhook if !has_endpoint => {
            let message = format!(
                "`{export}` is `{}`, and there is no `monitoring.endpoint`",
                monitoring.metrics_export
            );
            let hint = "name the address in `monitoring.endpoint` or its variable in \
                        `monitoring.endpoint_env`";
            let keys = [export, "monitoring.endpoint", "monitoring.endpoint_env"];
            findings.error(Code::Conflict, &keys, message, hint);
        }
        MetricsExport::None if has_endpoint => {
            let key = "monitoring.endpoint";
            let message = format!("`{key}` has no effect: `{export}` is `none`");
            findings.warn(Code::IgnoredKey, &[key, "monitoring.endpoint_env", export], message);
        }
        _ => {}
    }
    if !monitoring.endpoint.is_empty() && monitoring.endpoint_env.is_some() {
        let message = "`monitoring.endpoint` and `monitoring.endpoint_env` are both set; the \
                       variable counts where it is set";
        let keys = ["monitoring.endpoint_env", "monitoring.endpoint"];
        findings.warn(Code::Doubtful, &keys, message.to_owned());
    }
    if monitoring.listen.is_some() && monitoring.metrics_export != MetricsExport::Prometheus {
        let key = "monitoring.listen";
        let message = format!("`{key}` has no effect: `{export}` is not `prometheus`");
        findings.warn(Code::IgnoredKey, &[key, export], message);
    }
    if monitoring.api_key_env.is_some() && monitoring.metrics_export != MetricsExport::Datadog {
        let key = "monitoring.api_key_env";
        let message = format!("`{key}` has no effect: `{export}` is not `datadog`");
        findings.warn(Code::IgnoredKey, &[key, export], message);
    }
}
