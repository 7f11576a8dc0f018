//! The config as documents show it: without what concerns nobody else, secrets replaced.

use serde_json::{Map, Value, json};

/// What stands for a secret.
const REDACTED: &str = "***REDACTED***";
/// Sections that documents leave out: they may hold addresses and tokens.
const LEFT_OUT: [&str; 4] = ["auth", "webhook", "monitoring", "synthetic"];
/// A key with one of these in it holds a secret.
const SECRET: [&str; 6] = ["api_key", "token", "secret", "password", "passwd", "credential"];

/// The config without those sections and with secrets replaced. Answers to Annex IV and on
/// general-purpose models are left out too: they have documents of their own.
#[must_use]
pub fn shown_config(config: &Value) -> Value {
    let mut members: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
    members.retain(|key, _| !LEFT_OUT.contains(&key.as_str()));
    if let Some(Value::Object(compliance)) = members.get_mut("compliance") {
        compliance.shift_remove("annex_iv");
        compliance.shift_remove("gpai");
    }
    redacted(&Value::Object(members))
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    !key.ends_with("_env") && SECRET.iter().any(|word| key.contains(word))
}

fn redacted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let each = members.iter().map(|(key, value)| {
                let hides =
                    is_secret(key) && matches!(value, Value::String(text) if !text.is_empty());
                (key.clone(), if hides { json!(REDACTED) } else { redacted(value) })
            });
            Value::Object(each.collect())
        }
        Value::Array(items) => items.iter().map(redacted).collect(),
        // An option of a plugin.
        Value::String(text) => match text.split_once('=') {
            Some((key, value)) if is_secret(key) && !value.is_empty() => {
                json!(format!("{key}={REDACTED}"))
            }
            _ => value.clone(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::shown_config;
    use serde_json::json;

    #[test]
    fn secrets_are_replaced_wherever_they_stand_and_names_of_variables_are_not() {
        let config = json!({
            "auth": {"hf_token": "t"},
            "webhook": {"url": "https://h/secret"},
            "monitoring": {"endpoint": "e"},
            "synthetic": {"api_key": "k"},
            "compliance": {"system_name": "s", "annex_iv": {"product": "p"}, "gpai": {"license": "l"}},
            "plugins": {"trainer_options": ["api_key=abc", "beta=0.1"]},
            "x": {"judge_api_key_env": "NAME", "Password": "p", "max_tokens": 3, "token": null},
        });
        assert_eq!(
            shown_config(&config),
            json!({
                "compliance": {"system_name": "s"},
                "plugins": {"trainer_options": ["api_key=***REDACTED***", "beta=0.1"]},
                "x": {"judge_api_key_env": "NAME", "Password": "***REDACTED***", "max_tokens": 3, "token": null},
            })
        );
    }
}
