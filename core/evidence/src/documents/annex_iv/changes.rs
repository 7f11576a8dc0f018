//! What changed since the version before, from its manifest and this run's documents.

use serde_json::{Map, Value, json};

/// Lists and objects that differ are compared member by member down to here.
const DEPTH_MAX: usize = 6;
/// Differences that are named; more are counted.
const NAMED_MAX: usize = 200;

/// What is compared: members of `annex_iv_metadata.json`, without what differs from run to run by
/// itself (times, durations).
const COMPARED: [&str; 7] = [
    "system_identification",
    "system_components",
    "data_governance",
    "performance_metrics",
    "risk_management",
    "technical_documentation",
    "config_hash",
];
/// Members that say when and how fast, not what.
const NOT_COMPARED: [&str; 4] = ["timestamp", "generated_at", "train_runtime", "modified"];

/// Each member that differs, with both values: `{field, before, after}`; a value that is not there is
/// null. Sorted by field.
pub(super) fn changes(before: &Value, after: &Map<String, Value>) -> Value {
    let mut found = Vec::new();
    for key in COMPARED {
        let pair = (before.get(key), after.get(key));
        compare(key, pair, DEPTH_MAX, &mut found);
    }
    found.sort_by(|(a, _, _), (b, _, _)| a.cmp(b));
    let n_more = found.len().saturating_sub(NAMED_MAX);
    let rows = found.into_iter().take(NAMED_MAX);
    let mut rows: Vec<Value> = rows
        .map(|(field, before, after)| json!({"field": field, "before": before, "after": after}))
        .collect();
    if n_more > 0 {
        rows.push(json!({"field": "...", "before": null, "after": format!("{n_more} more")}));
    }
    Value::Array(rows)
}

type Difference = (String, Option<Value>, Option<Value>);

fn compare(
    path: &str,
    (before, after): (Option<&Value>, Option<&Value>),
    depth: usize,
    found: &mut Vec<Difference>,
) {
    let is_left_out = |key: &str| NOT_COMPARED.contains(&key) || key.starts_with("resource/");
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (before, after)
        && depth > 0
    {
        let added = b.keys().filter(|key| !a.contains_key(*key));
        for key in a.keys().chain(added).filter(|key| !is_left_out(key)) {
            compare(&format!("{path}.{key}"), (a.get(key), b.get(key)), depth - 1, found);
        }
        return;
    }
    let null = |value: Option<&Value>| value.is_none_or(Value::is_null);
    if before != after && !(null(before) && null(after)) {
        found.push((path.to_owned(), before.cloned(), after.cloned()));
    }
}

#[cfg(test)]
mod tests {
    use super::changes;
    use serde_json::json;

    #[test]
    fn what_differs_is_named_with_both_values_and_times_are_not() {
        let before = json!({
            "system_identification": {"system_version": "1.0.0", "system_name": "x"},
            "data_governance": {"fingerprint": {"sha256": "aa", "timestamp": "t"}},
            "performance_metrics": {"eval_loss": 1.0, "train_runtime": 3.0, "resource/tokens": 3.0},
            "risk_management": null,
        });
        let after = json!({
            "system_identification": {"system_version": "1.1.0", "system_name": "x"},
            "data_governance": {"fingerprint": {"sha256": "bb", "timestamp": "u"}},
            "performance_metrics": {"eval_loss": 1.0, "train_runtime": 4.0, "resource/tokens": 4.0},
        });
        assert_eq!(
            changes(&before, after.as_object().unwrap()),
            json!([
                {"field": "data_governance.fingerprint.sha256", "before": "aa", "after": "bb"},
                {"field": "system_identification.system_version", "before": "1.0.0", "after": "1.1.0"},
            ])
        );
    }

    #[test]
    fn a_manifest_of_many_members_gives_a_bounded_list() {
        let many: serde_json::Map<_, _> = (0..1000).map(|i| (format!("k{i}"), json!(i))).collect();
        let before = json!({"performance_metrics": many});
        let after = json!({"performance_metrics": {}});
        let found = changes(&before, after.as_object().unwrap());
        assert_eq!(found.as_array().unwrap().len(), 201);
    }
}
