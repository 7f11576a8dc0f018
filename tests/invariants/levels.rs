//! Imports point down only: the level table of docs/ARCHITECTURE.md against every Cargo.toml.

use std::collections::BTreeMap;

use crate::manifest::{imports, package_name};
use crate::tree::Tree;

/// Folder (`core/config`, or `plugins/*` for all of a folder) to level.
type Levels = BTreeMap<String, u32>;

/// Reads the rows `| 3 | core/tokenize, core/hub |` of the table.
fn level_table(text: &str) -> Levels {
    let mut levels = Levels::new();
    for line in text.lines() {
        let mut cells = line.trim().trim_matches('|').split('|').map(str::trim);
        let (Some(level), Some(crates)) = (cells.next(), cells.next()) else { continue };
        let Ok(level) = level.parse() else { continue };
        for name in crates.split(',') {
            levels.insert(name.trim().trim_matches('`').to_owned(), level);
        }
    }
    levels
}

fn level_of(levels: &Levels, folder: &str) -> Option<u32> {
    let group = folder.split('/').next().unwrap_or(folder);
    levels.get(folder).or_else(|| levels.get(&format!("{group}/*"))).copied()
}

fn problems(tree: &Tree) -> Vec<String> {
    let Some(page) = tree.text("docs/ARCHITECTURE.md") else {
        return vec!["docs/ARCHITECTURE.md is missing: it has the level table".to_owned()];
    };
    let levels = level_table(page);
    let mut folders = BTreeMap::new();
    for folder in tree.crates() {
        let manifest = tree.text(&format!("{folder}/Cargo.toml")).unwrap_or_default();
        if let Some(name) = package_name(manifest) {
            folders.insert(name, (folder, imports(manifest)));
        }
    }
    let mut found = Vec::new();
    for (folder, imported) in folders.values() {
        let Some(level) = level_of(&levels, folder) else {
            found.push(format!(
                "{folder} has no level: give it a row in the table of docs/ARCHITECTURE.md, above \
                 all that it imports"
            ));
            continue;
        };
        for name in imported {
            let Some((other, _)) = folders.get(name) else { continue };
            match level_of(&levels, other) {
                Some(below) if below >= level => found.push(format!(
                    "{folder} (level {level}) imports {other} (level {below}), but imports point \
                     down only: move what {folder} needs from {other} to a crate below level \
                     {level}, or the code that needs it to a crate above level {below}"
                )),
                _ => {}
            }
            if folder.starts_with("plugins/") && *other != "ffi/sdk" {
                found.push(format!(
                    "{folder} imports {other}, but a plugin sees ffi/sdk and nothing else of ours: \
                     move what it needs into ffi/sdk"
                ));
            }
        }
    }
    found
}

#[test]
fn imports_point_down_only() {
    let tree = Tree::of_repository();
    assert!(tree.crates().len() >= 22, "the crates are not found");
    crate::must_be_empty(&problems(&tree));
}

#[test]
fn canary_an_upward_import_is_found() {
    let page = "| level | crates |\n|--:|---|\n| 0 | `core/low` |\n| 3 | core/high |\n";
    let low = "[package]\nname = \"forgelm_low\"\n[dependencies]\nforgelm_high.workspace = true\n";
    let high =
        "[package]\nname = \"forgelm_high\"\n[dev-dependencies]\nforgelm_low.workspace=true\n";
    let files = [
        ("docs/ARCHITECTURE.md", page),
        ("core/low/Cargo.toml", low),
        ("core/high/Cargo.toml", high),
    ];
    crate::must_find(&problems(&Tree::planted(&files)), &["core/low (level 0)", "below level 0"]);
}

#[test]
fn canary_a_crate_without_a_level_and_a_plugin_that_sees_core_are_found() {
    let page = "| 0 | core/low |\n| 6 | plugins/* |\n";
    let low = "[package]\nname = \"forgelm_low\"\n";
    let files = [("docs/ARCHITECTURE.md", page), ("core/other/Cargo.toml", low)];
    crate::must_find(&problems(&Tree::planted(&files)), &["core/other has no level"]);

    let plugin = "[package]\nname = \"p\"\n[dependencies]\nforgelm_low = { path = \"../low\" }\n";
    let files = [
        ("docs/ARCHITECTURE.md", page),
        ("core/low/Cargo.toml", low),
        ("plugins/p/Cargo.toml", plugin),
    ];
    crate::must_find(&problems(&Tree::planted(&files)), &["plugins/p", "ffi/sdk"]);
}
