//! The config contract from outside: text in, runs or problems out.

mod available;
mod faults;
mod fields;
mod outputs;
mod rules;

use forgelm_config::{Color, Diagnostic, Loaded, Severity, load, render};

/// A config with the two required keys, and more lines.
fn with(more: &str) -> String {
    format!("model:\n  name_or_path: m\ndata:\n  dataset_name_or_path: d\n{more}")
}

/// The config loads; else its problems are shown.
fn loads(text: &str) -> Loaded {
    load(text, "run.yaml").unwrap_or_else(|p| panic!("{text}\n{}", render(&p, Color::Off)))
}

/// The config does not load.
fn problems(text: &str) -> Vec<Diagnostic> {
    load(text, "run.yaml").err().unwrap_or_else(|| panic!("this loads:\n{text}"))
}

/// The errors of a config that does not load.
fn errors(text: &str) -> Vec<Diagnostic> {
    problems(text).into_iter().filter(|d| d.severity == Severity::Error).collect()
}

/// The only error of a config, as text.
fn only(text: &str) -> String {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{text}\n{}", render(&errors, Color::Off));
    errors[0].to_string()
}

/// The warnings of a config that loads, as texts.
fn warnings(text: &str) -> Vec<String> {
    let loaded = loads(text);
    loaded
        .warnings
        .iter()
        .filter(|d| d.severity == Severity::Warning)
        .map(ToString::to_string)
        .collect()
}
