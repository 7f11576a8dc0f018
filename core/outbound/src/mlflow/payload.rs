//! The bodies of requests.

use super::{About, Ids, Metric, Status};
use serde_json::{Value, json};

/// Numbers of one request, at most; 1,000 is the server's limit.
pub(super) const METRICS_MAX: usize = 1000;
/// Parameters of one request, at most.
pub(super) const PARAMS_MAX: usize = 100;
/// Characters of a value, at most: older servers take no more.
const VALUE_MAX: usize = 500;
/// By which a run is found again.
const OWN_ID: &str = "forgelm.run_id";

pub(super) fn create_run(about: &About, experiment_id: &str, at_ms: i64) -> Value {
    let own = [
        ("mlflow.runName".to_owned(), about.name.clone()),
        ("mlflow.source.name".to_owned(), "forgelm".to_owned()),
        (OWN_ID.to_owned(), about.run_id.clone()),
    ];
    json!({
        "experiment_id": experiment_id,
        "run_name": about.name,
        "start_time": at_ms,
        "tags": pairs(own.iter().chain(&about.tags)),
    })
}

/// The search for a run that an earlier try may have made.
pub(super) fn search_run(about: &About, experiment_id: &str) -> Value {
    // Ids of runs are `fg-` and digits.
    let id: String = about.run_id.chars().filter(|c| *c != '\'').collect();
    json!({
        "experiment_ids": [experiment_id],
        "filter": format!("tags.`{OWN_ID}` = '{id}'"),
        "max_results": 1,
    })
}

pub(super) fn params(ids: &Ids, params: &[(String, String)]) -> Value {
    json!({"run_id": ids.run_id, "metrics": [], "params": pairs(params), "tags": []})
}

pub(super) fn metrics(ids: &Ids, metrics: &[Metric]) -> Value {
    let metrics: Vec<Value> = metrics
        .iter()
        .map(|metric| {
            json!({
                "key": metric.name,
                "value": number(metric.value),
                "timestamp": metric.at_ms,
                "step": metric.step,
            })
        })
        .collect();
    json!({"run_id": ids.run_id, "metrics": metrics, "params": [], "tags": []})
}

pub(super) fn ended(ids: &Ids, status: Status, at_ms: i64) -> Value {
    json!({"run_id": ids.run_id, "status": status.as_str(), "end_time": at_ms})
}

pub(super) fn goes_on(ids: &Ids) -> Value {
    json!({"run_id": ids.run_id, "status": "RUNNING"})
}

/// As Protocol Buffers write numbers in JSON.
fn number(value: f64) -> Value {
    if value.is_finite() {
        json!(value)
    } else if value.is_nan() {
        json!("NaN")
    } else if value > 0.0 {
        json!("Infinity")
    } else {
        json!("-Infinity")
    }
}

fn pairs<'a>(of: impl IntoIterator<Item = &'a (String, String)>) -> Vec<Value> {
    let pair = |(key, value): &(String, String)| {
        let value: String = value.chars().take(VALUE_MAX).collect();
        json!({"key": super::metric_name(key), "value": value})
    };
    of.into_iter().map(pair).collect()
}
