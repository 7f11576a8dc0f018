//! The catalogue of audit events (`docs/formats/audit_log.md`) and the code say the same: the same
//! names with the same keys, and each event is recorded somewhere.

use crate::tree::Tree;

const CATALOGUE: &str = "docs/formats/audit_log.md";
const CODE: &str = "core/evidence/src/audit/event.rs";

/// An event as the code declares it.
struct Declared<'a> {
    variant: &'a str,
    name: &'a str,
    keys: Vec<&'a str>,
}

/// What stands in `events! { .. }`: `Variant = "name" {`, then a line for each field.
fn declared(code: &str) -> Vec<Declared<'_>> {
    let list = code.split_once("\nevents! {\n").map_or("", |(_, list)| list);
    let list = list.split_once("\n}\n").map_or(list, |(list, _)| list);
    let mut found: Vec<Declared<'_>> = Vec::new();
    for line in list.lines().map(str::trim).filter(|line| !line.starts_with("///")) {
        if let Some((variant, rest)) = line.split_once(" = \"") {
            let name = rest.split('"').next().unwrap_or_default();
            found.push(Declared { variant, name, keys: Vec::new() });
        } else if let (Some((key, _)), Some(event)) = (line.split_once(": "), found.last_mut()) {
            event.keys.push(key);
        }
    }
    found
}

/// What stands in backticks in a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The rows of the catalogue whose first cell is a dotted name in backticks: name and keys.
fn catalogued(page: &str) -> Vec<(&str, Vec<&str>)> {
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|');
            let name = *quoted(cells.next()?).first()?;
            Some((name, quoted(cells.next()?)))
        })
        .filter(|(name, _)| name.contains('.'))
        .collect()
}

fn problems(tree: &Tree) -> Vec<String> {
    let code = declared(tree.text(CODE).unwrap_or_default());
    let page = catalogued(tree.text(CATALOGUE).unwrap_or_default());
    let mut found = Vec::new();
    for event in &code {
        // One name may stand for two events, of a run and of a pipeline.
        let rows: Vec<&Vec<&str>> =
            page.iter().filter(|(name, _)| *name == event.name).map(|(_, keys)| keys).collect();
        match rows.as_slice() {
            [] => found.push(format!("`{}` is not in {CATALOGUE}", event.name)),
            rows if rows.contains(&&event.keys) => {}
            rows => found.push(format!(
                "`{}` has the keys {:?}, and {CATALOGUE} says {rows:?}",
                event.name, event.keys
            )),
        }
        let made = format!("AuditEvent::{} {{", event.variant);
        let is_recorded = tree.rust().any(|(path, text)| {
            let product = text.split("\n#[cfg(test)]\n").next().unwrap_or(text);
            !path.contains("/tests/") && path != CODE && product.contains(&made)
        });
        if !is_recorded {
            found.push(format!("`{}` is recorded nowhere: record it, or delete it", event.name));
        }
    }
    for (i, (name, _)) in page.iter().enumerate() {
        let n_before = page[..i].iter().filter(|(other, _)| other == name).count();
        match code.iter().filter(|event| event.name == *name).count() {
            0 => found.push(format!("{CATALOGUE} has `{name}`, and the code has no such event")),
            n if n_before >= n => found.push(format!("{CATALOGUE} has `{name}` too often")),
            _ => {}
        }
    }
    found
}

#[test]
fn the_catalogue_of_events_and_the_code_agree() {
    let tree = Tree::of_repository();
    assert!(declared(tree.text(CODE).unwrap_or_default()).len() >= 10, "the events are not found");
    crate::must_be_empty(&problems(&tree));
}

#[test]
fn canary_an_event_that_differs_is_found() {
    let code = "x\nevents! {\n    /// A: doc.\n    One = \"a.one\" {\n        /// Key.\n        \
                key: u64,\n    }\n}\n";
    let made = "fn f() { log(AuditEvent::One { key }) }";
    let planted = |page: &str, made: &str| {
        problems(&Tree::planted(&[(CATALOGUE, page), (CODE, code), ("core/run/src/a.rs", made)]))
    };
    assert!(planted("| `a.one` | `key` | always |\n", made).is_empty());
    crate::must_find(&planted("| `a.one` | `other` | always |\n", made), &["a.one", "other"]);
    crate::must_find(&planted("", made), &["a.one", "is not in"]);
    crate::must_find(&planted("| `a.one` | `key` | always |\n", ""), &["recorded nowhere"]);
    let both = "| `a.one` | `key` | always |\n| `b.two` | | never |\n";
    crate::must_find(&planted(both, made), &["b.two", "no such event"]);
    let twice = "| `a.one` | `key` | always |\n| `a.one` | `other` | always |\n";
    crate::must_find(&planted(twice, made), &["a.one", "too often"]);
}
