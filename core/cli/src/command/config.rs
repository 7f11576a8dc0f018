//! `forgelm config …`.

use super::Context;
use crate::args::ConfigCommand;
use forgelm_config::{
    explain, json_schema, nearest_keys, reference_yaml, resolved_json, resolved_yaml,
};
use forgelm_run::exit::Exit;
use forgelm_run::plan::read_config;
use serde_json::json;
use std::path::Path;

/// Checks, explains or prints configs.
pub fn config(command: &ConfigCommand, context: &mut Context) -> Exit {
    match command {
        ConfigCommand::Check { file } => check(file, context),
        ConfigCommand::Schema => {
            let schema = json_schema();
            context.result(&super::document(&schema), &schema);
            Exit::Success
        }
        ConfigCommand::Explain { key } => explain_key(key, context),
        ConfigCommand::Show { file, resolved: _ } => show(file, context),
        ConfigCommand::Reference => {
            let text = reference_yaml();
            context.result(&text, &json!({"success": true, "reference": text}));
            Exit::Success
        }
    }
}

fn check(file: &Path, context: &mut Context) -> Exit {
    match read_config(file) {
        Err(error) => context.failed(&error),
        Ok(loaded) => {
            let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
            let mut text =
                warnings.iter().map(|warning| format!("{warning}\n")).collect::<String>();
            text.push_str(&format!("{}: valid", file.display()));
            context.result(&text, &json!({"success": true, "warnings": warnings}));
            Exit::Success
        }
    }
}

fn explain_key(key: &str, context: &mut Context) -> Exit {
    match explain(key) {
        Some(text) => {
            context.result(&text, &json!({"success": true, "key": key, "text": text}));
            Exit::Success
        }
        None => {
            let near = nearest_keys(key);
            let mut text = format!("`{key}` is not a key of a config");
            if !near.is_empty() {
                let quoted: Vec<_> = near.iter().map(|near| format!("`{near}`")).collect();
                text.push_str(&format!("\n  hint: did you mean {}?", quoted.join(" or ")));
            }
            context.refused(Exit::Config, &text)
        }
    }
}

fn show(file: &Path, context: &mut Context) -> Exit {
    match read_config(file) {
        Err(error) => context.failed(&error),
        Ok(loaded) => {
            context.result(&resolved_yaml(&loaded.run), &resolved_json(&loaded.run));
            Exit::Success
        }
    }
}
