//! reference.yaml: every key with its meaning, type and default, itself a config that loads.

use std::fmt::Write as _;

use crate::explain::{default_text, status_lines, subsection};
use crate::run::Run;
use crate::spec::{Field, Kind, SectionSpec};

const HEAD: &str = "\
# Every key of the config, with its meaning, type and default. Generated from the tables of
# core/config by `forgelm config reference > configs/reference.yaml`; a test holds it fresh.
#
# Keys whose feature is not available yet, keys without effect beside the others' defaults, and
# sections that are off by default stand in comments. The others are written with their defaults;
# `model.name_or_path` and `data.dataset_name_or_path` have none.
";

/// The text of configs/reference.yaml.
#[must_use]
pub fn reference_yaml() -> String {
    let mut out = HEAD.to_owned();
    section(&Run::SPEC, 0, Live::Yes, &mut Vec::new(), &mut out);
    out
}

/// Whether keys are written, or stand in comments.
#[derive(Clone, Copy, PartialEq)]
enum Live {
    Yes,
    No,
}

/// Writes the fields of a section; `shown` has the names of the sections that already stand, and the
/// keys that they stand under.
fn section(
    spec: &'static SectionSpec,
    depth: usize,
    live: Live,
    shown: &mut Vec<(&'static str, &'static str)>,
    out: &mut String,
) {
    for field in spec.fields {
        if depth == 0 {
            out.push('\n');
        }
        let indent = "  ".repeat(depth);
        for line in comment(field) {
            let _ = writeln!(out, "{indent}# {line}");
        }
        if let Some((inner, suffix)) = subsection(&field.kind) {
            if let Some((_, key)) = shown.iter().find(|(name, _)| *name == inner.name) {
                let text = format!("{}: # the same keys as under `{key}`", field.key);
                line(out, &indent, Live::No, &text);
                continue;
            }
            shown.push((inner.name, field.key));
            let live = match field.kind {
                Kind::Section(_) => live,
                _ => Live::No,
            };
            line(out, &indent, live, &format!("{}:", field.key));
            if suffix == "[]" {
                line(out, &format!("{indent}  "), live, "- # each item:");
                section(inner, depth + 2, live, shown, out);
            } else {
                section(inner, depth + 1, live, shown, out);
            }
            continue;
        }
        let live = if is_live(field) { live } else { Live::No };
        line(out, &indent, live, &format!("{}: {}", field.key, example(field)));
    }
}

fn line(out: &mut String, indent: &str, live: Live, text: &str) {
    let mark = if live == Live::Yes { "" } else { "#" };
    let _ = writeln!(out, "{indent}{mark}{text}");
}

/// Whether the default may be written without being refused, deprecated or without effect.
fn is_live(field: &Field) -> bool {
    let rules = &field.rules;
    let inert = ["bnb_4bit_", "galore_", "dpo_", "simpo_", "kto_", "orpo_", "grpo_", "oom_"];
    rules.later.is_none()
        && rules.replaced_by.is_none()
        && !inert.iter().any(|prefix| field.key.starts_with(prefix))
}

/// The example of a required key, else the default.
fn example(field: &Field) -> String {
    field.rules.example.map_or_else(|| default_text(field), str::to_owned)
}

fn comment(field: &Field) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in field.doc.lines() {
        wrap(line.trim(), &mut lines);
    }
    if subsection(&field.kind).is_none() {
        let default = if field.rules.required {
            "required".to_owned()
        } else {
            format!("default {}", default_text(field))
        };
        wrap(&format!("{}; {default}", field.kind.expected(&field.rules)), &mut lines);
    }
    if let Kind::Choice(words) = field.kind.inner() {
        for word in words.iter() {
            let status = if word.later.is_some() { " Not available yet." } else { "" };
            wrap(&format!("- {}: {}{status}", word.name, word.doc.trim()), &mut lines);
        }
    }
    for status in status_lines(field) {
        wrap(&status, &mut lines);
    }
    lines
}

/// Adds a text in lines of at most 90 characters.
fn wrap(text: &str, lines: &mut Vec<String>) {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 90 {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
}
