//! What a key means, in words, from the tables.

use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::diagnostic::nearest;
use crate::run::Run;
use crate::spec::{Field, Kind, Origin, SectionSpec};
use crate::yaml::join;

/// Every key path of the config, in the order of the documentation; an item of a list is `[]`, as
/// in `pipeline.stages[].name`.
#[must_use]
pub fn key_paths() -> Vec<String> {
    let mut paths = Vec::new();
    walk(&Run::SPEC, "", &mut |path, _| paths.push(path.to_owned()));
    paths
}

/// Calls `visit` with every field and its path.
pub fn walk(spec: &'static SectionSpec, path: &str, visit: &mut impl FnMut(&str, &'static Field)) {
    for field in spec.fields {
        let key = join(path, field.key);
        visit(&key, field);
        if let Some((inner, suffix)) = subsection(&field.kind) {
            walk(inner, &format!("{key}{suffix}"), visit);
        }
    }
}

/// The section within a kind, and what its path adds.
pub fn subsection(kind: &Kind) -> Option<(&'static SectionSpec, &'static str)> {
    match kind.inner() {
        Kind::Section(spec) => Some((spec, "")),
        Kind::List(Kind::Section(spec)) => Some((spec, "[]")),
        _ => None,
    }
}

/// Paths whose last part is `name`, the shortest two.
pub fn paths_ending_in(name: &str) -> Vec<String> {
    let mut paths: Vec<String> = key_paths()
        .into_iter()
        .filter(|p| p.rsplit('.').next() == Some(name) && !p.starts_with("pipeline."))
        .collect();
    paths.truncate(2);
    paths
}

/// What a key means: `None` for a key that there is not; see [`nearest_keys`]. Accepts full paths
/// (`training.learning_rate`, `pipeline.stages[0].name`), section names, and last parts that
/// only one section has (`learning_rate`).
#[must_use]
pub fn explain(key: &str) -> Option<String> {
    let key = without_indices(key.trim().trim_end_matches(':'));
    let mut exact = None;
    let mut by_name = Vec::new();
    walk(&Run::SPEC, "", &mut |path, field| {
        let last = path.rsplit('.').next();
        let same = path == key || field.rules.alias.is_some_and(|a| renamed(path, a) == key);
        if same && exact.is_none() {
            exact = Some((path.to_owned(), field));
        } else if (last == Some(key.as_str()) || field.rules.alias == Some(key.as_str()))
            && !path.starts_with("pipeline.")
        {
            by_name.push((path.to_owned(), field));
        }
    });
    match (exact, by_name.as_slice()) {
        (Some((path, field)), _) => Some(text(&path, field)),
        (None, []) => None,
        (None, found) => Some(found.iter().map(|(p, f)| text(p, f)).collect::<Vec<_>>().join("\n")),
    }
}

/// The keys closest to one that there is not, best first, at most three.
#[must_use]
pub fn nearest_keys(key: &str) -> Vec<String> {
    let key = without_indices(key.trim());
    let mut paths = key_paths();
    let mut best = Vec::new();
    while best.len() < 3 {
        let by_path = nearest(&key, paths.iter().map(String::as_str)).map(str::to_owned);
        let by_name = || {
            let names = paths.iter().filter_map(|p| p.rsplit('.').next());
            let name = nearest(key.rsplit('.').next().unwrap_or(&key), names)?;
            paths.iter().find(|p| p.rsplit('.').next() == Some(name)).cloned()
        };
        let Some(found) = by_path.or_else(by_name) else {
            break;
        };
        paths.retain(|p| *p != found);
        best.push(found);
    }
    best
}

/// `stages[0].name` as `stages[].name`.
fn without_indices(key: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in key.chars() {
        match c {
            '[' => inside = true,
            ']' => {
                inside = false;
                out.push_str("[]");
            }
            _ if inside => {}
            _ => out.push(c),
        }
    }
    out
}

fn renamed(path: &str, name: &str) -> String {
    match path.rsplit_once('.') {
        Some((section, _)) => join(section, name),
        None => name.to_owned(),
    }
}

fn text(path: &str, field: &Field) -> String {
    let mut out = format!("{path}\n");
    for line in field.doc.lines() {
        let _ = writeln!(out, "  {}", line.trim());
    }
    let _ = writeln!(out, "  type: {}", field.kind.expected(&field.rules));
    if field.rules.required {
        out.push_str("  default: none; the key is required\n");
    } else {
        let _ = writeln!(out, "  default: {}", default_text(field));
    }
    if let Kind::Choice(words) = field.kind.inner() {
        for word in words.iter() {
            let aliases = match word.aliases {
                [] => String::new(),
                aliases => format!(" (or {})", aliases.join(", ")),
            };
            let status = if word.later.is_some() { " Not available yet." } else { "" };
            let _ = writeln!(out, "  {}{aliases}: {}{status}", word.name, word.doc.trim());
        }
    }
    for line in status_lines(field) {
        let _ = writeln!(out, "  {line}");
    }
    if let Some((spec, _)) = subsection(&field.kind) {
        let keys: Vec<&str> = spec.fields.iter().map(|f| f.key).collect();
        let _ = writeln!(out, "  keys: {}", keys.join(", "));
    }
    out
}

/// Where the key comes from, and what this version does with it.
pub fn status_lines(field: &Field) -> Vec<String> {
    let rules = &field.rules;
    let mut lines = Vec::new();
    match rules.origin {
        Origin::Seed | Origin::Upstream => {}
        Origin::Ours => lines.push("origin: a key of this program".to_owned()),
    }
    if let Some(alias) = rules.alias {
        lines.push(format!("also accepted as: {alias}"));
    }
    if let Some(path) = rules.replaced_by {
        lines.push(format!("deprecated: write {path}"));
    }
    if let Some(feature) = rules.later {
        lines.push(format!("not available yet: {feature}"));
    }
    lines
}

/// The default of a field as YAML would write it.
pub fn default_text(field: &Field) -> String {
    match subsection(&field.kind) {
        Some((_, "")) if !matches!(field.kind, Kind::Optional(_)) => {
            "each key's own default".to_owned()
        }
        _ => json_text(&(field.default)()),
    }
}

/// A value in YAML's flow style.
pub fn json_text(value: &Json) -> String {
    match value {
        Json::Null | Json::Bool(_) => value.to_string(),
        Json::Number(number) => match number.as_f64() {
            Some(small) if small != 0.0 && small.abs() < 1e-3 => format!("{small:e}"),
            _ => {
                let text = value.to_string();
                text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
            }
        },
        Json::String(text) => {
            let word = !text.is_empty()
                && !crate::scalar::is_typed(text)
                && text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '.' | '/'))
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
                && !matches!(
                    text.to_ascii_lowercase().as_str(),
                    "null" | "yes" | "no" | "on" | "off"
                );
            if word { text.clone() } else { value.to_string() }
        }
        Json::Array(items) => {
            format!("[{}]", items.iter().map(json_text).collect::<Vec<_>>().join(", "))
        }
        Json::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{k}: {}", json_text(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}
