//! What this version does not have yet: refused by name before anything starts, never ignored.
//!
//! The tables say it: a field's `later`, and a word's. A field is refused when it is written with
//! another value than its default, a word when it is written at all.

use serde_json::Value as Json;

use crate::diagnostic::{Code, Diagnostic};
use crate::read::{Readable, Written};
use crate::run::Run;
use crate::spec::{Field, Kind, SectionSpec};
use crate::yaml::join;

/// The features that a run asks for and this version does not have, in the order of the tables.
/// `file` is only repeated in messages.
#[must_use]
pub fn not_available(run: &Run, written: &Written, file: &str) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    section(&Run::SPEC, &run.to_json(), "", written, &mut found);
    for problem in &mut found {
        file.clone_into(&mut problem.file);
    }
    found.sort_by_key(|d| d.place.map_or((u64::MAX, 0), |p| (p.line, p.column)));
    found
}

fn section(
    spec: &SectionSpec,
    values: &Json,
    path: &str,
    written: &Written,
    found: &mut Vec<Diagnostic>,
) {
    for field in spec.fields {
        let key = join(path, field.key);
        let Some(value) = values.get(field.key).filter(|_| written.contains(&key)) else {
            continue;
        };
        if let Some(feature) = missing_feature(field, value) {
            let shown = crate::explain::json_text(value);
            let what = match value {
                // An address often carries a token.
                Json::String(text) if text.contains("://") => format!("`{key}`"),
                Json::Object(_) => format!("`{key}`"),
                Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                    format!("`{key}: {shown}`")
                }
            };
            let message = format!("{what} is not available yet: {feature}");
            found.push(
                Diagnostic::error(Code::NotAvailable, &key, message)
                    .at(written.place(&key))
                    .hint("remove the key; `forgelm config explain` says what this version has"),
            );
            continue;
        }
        match (field.kind.inner(), value) {
            (Kind::Section(inner), Json::Object(_)) => section(inner, value, &key, written, found),
            (Kind::List(Kind::Section(inner)), Json::Array(items)) => {
                for (i, item) in items.iter().enumerate() {
                    section(inner, item, &format!("{key}[{i}]"), written, found);
                }
            }
            _ => {}
        }
    }
}

/// The feature that a written value needs and this version lacks.
fn missing_feature(field: &Field, value: &Json) -> Option<&'static str> {
    if let Kind::Choice(words) = field.kind.inner() {
        let word = words.iter().find(|w| value.as_str() == Some(w.name));
        if let Some(feature) = word.and_then(|w| w.later) {
            return Some(feature);
        }
    }
    let feature = field.rules.later?;
    let off = *value == (field.default)();
    let empty = value.as_array().is_some_and(Vec::is_empty) || value.as_str() == Some("");
    if off || empty { None } else { Some(feature) }
}
