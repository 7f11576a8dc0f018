//! Where files may be: the top level, the reach of every source, the size of a file, and the
//! workspace's lints in every crate.

use std::collections::BTreeSet;

use crate::manifest::{entries, unquoted};
use crate::source::code;
use crate::tree::Tree;

const TOP_LEVEL: [&str; 22] = [
    ".bazelignore",
    ".bazelrc",
    ".ci",
    ".gitignore",
    "BUILD.bazel",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "MODULE.bazel",
    "README.md",
    "WORKSPACE.bazel",
    "clippy.toml",
    "configs",
    "core",
    "deny.toml",
    "docs",
    "ffi",
    "kernels",
    "plugins",
    "rust-toolchain.toml",
    "rustfmt.toml",
];
const TOP_LEVEL_MORE: [&str; 3] = ["tests", "tools", ".cargo"];

const LINES_MAX: usize = 800;
const NOT_NAMES: [&str; 5] = ["util", "common", "helpers", "misc", "manager"];

fn top_level_problems(tree: &Tree) -> Vec<String> {
    let found: BTreeSet<&str> = tree.names().filter_map(|name| name.split('/').next()).collect();
    let mut problems = Vec::new();
    for name in &found {
        if !TOP_LEVEL.contains(name) && !TOP_LEVEL_MORE.contains(name) {
            problems.push(format!(
                "{name} is at the top level: move it into one of the eight folders (README.md says \
                 what is in each)"
            ));
        }
    }
    for name in TOP_LEVEL.iter().filter(|name| !found.contains(*name)) {
        problems.push(format!("{name} is missing at the top level"));
    }
    problems
}

fn name_problems(tree: &Tree) -> Vec<String> {
    let is_bad = |part: &str| {
        let stem = part.split('.').next().unwrap_or(part);
        NOT_NAMES.iter().any(|bad| stem == *bad || stem.trim_end_matches('s') == *bad)
    };
    tree.names()
        .filter(|name| name.ends_with(".rs") && name.split('/').any(is_bad))
        .map(|name| format!("{name} is named after nothing: name it after what is in it"))
        .collect()
}

fn size_problems(tree: &Tree) -> Vec<String> {
    tree.rust()
        .filter(|(_, text)| text.lines().count() > LINES_MAX && !text.contains("// long because:"))
        .map(|(name, text)| {
            format!(
                "{name} has {} lines: split it by stage or subject, or say why not in a line \
                 `// long because: ...`",
                text.lines().count()
            )
        })
        .collect()
}

fn lint_problems(tree: &Tree) -> Vec<String> {
    tree.crates()
        .into_iter()
        .filter(|folder| {
            let manifest = tree.text(&format!("{folder}/Cargo.toml")).unwrap_or_default();
            let mut found = entries(manifest).into_iter();
            !found.any(|e| e.section == "lints" && e.key == "workspace" && e.value == "true")
        })
        .map(|folder| format!("{folder}/Cargo.toml lacks `[lints]` with `workspace = true`"))
        .collect()
}

/// `a/b/../c` as `a/c`.
pub fn normalized(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The files that cargo starts at for one crate.
fn crate_roots(tree: &Tree, folder: &str) -> Vec<String> {
    let manifest = tree.text(&format!("{folder}/Cargo.toml")).unwrap_or_default();
    let mut roots: Vec<String> =
        ["src/lib.rs", "src/main.rs", "build.rs"].map(|name| format!("{folder}/{name}")).into();
    for entry in entries(manifest) {
        let is_target = ["lib", "[bin]", "[test]", "[bench]", "[example]"].contains(&entry.section);
        if is_target && entry.key == "path" {
            roots.push(normalized(&format!("{folder}/{}", unquoted(entry.value))));
        }
    }
    for found in ["src/bin", "tests", "benches", "examples"] {
        let prefix = format!("{folder}/{found}/");
        for (name, _) in tree.rust() {
            let Some(rest) = name.strip_prefix(&prefix) else { continue };
            if !rest.contains('/') || rest.split_once('/').is_some_and(|(_, r)| r == "main.rs") {
                roots.push(name.to_owned());
            }
        }
    }
    roots.retain(|name| tree.has(name));
    roots
}

/// The files that `name` declares by `mod x;`, whichever of the places they may be in exists.
fn declared(tree: &Tree, name: &str, is_root: bool) -> Vec<String> {
    let text = tree.text(name).unwrap_or_default();
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let inner = if is_root || file == "mod.rs" {
        folder.to_owned()
    } else {
        format!("{folder}/{}", file.trim_end_matches(".rs"))
    };
    let mut path_attribute = None;
    let mut found = Vec::new();
    for (line, raw) in code(text).lines().zip(text.lines()) {
        let line = line.trim();
        if line.starts_with("#[path") {
            path_attribute = raw.split('"').nth(1).map(|p| normalized(&format!("{folder}/{p}")));
        }
        let Some(module) = line.strip_suffix(';').and_then(|l| l.split("mod ").nth(1)) else {
            continue;
        };
        if !line.starts_with("mod ") && !line.starts_with("pub") {
            continue;
        }
        match path_attribute.take() {
            Some(path) => found.push(path),
            None => {
                found.push(format!("{inner}/{module}.rs"));
                found.push(format!("{inner}/{module}/mod.rs"));
            }
        }
    }
    found.retain(|name| tree.has(name));
    found
}

fn reach_problems(tree: &Tree) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let mut queue: Vec<(String, bool)> = Vec::new();
    for folder in tree.crates() {
        queue.extend(crate_roots(tree, folder).into_iter().map(|name| (name, true)));
    }
    while let Some((name, is_root)) = queue.pop() {
        if reached.insert(name.clone()) {
            queue.extend(declared(tree, &name, is_root).into_iter().map(|name| (name, false)));
        }
    }
    tree.rust()
        .filter(|(name, _)| !reached.contains(*name))
        .map(|(name, _)| {
            format!("{name} is compiled into nothing: declare it with `mod`, or delete it")
        })
        .collect()
}

#[test]
fn the_top_level_is_the_one_that_is_decided() {
    crate::must_be_empty(&top_level_problems(&Tree::of_repository()));
}

#[test]
fn files_are_named_after_what_is_in_them() {
    crate::must_be_empty(&name_problems(&Tree::of_repository()));
}

#[test]
fn long_files_say_why() {
    crate::must_be_empty(&size_problems(&Tree::of_repository()));
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    crate::must_be_empty(&lint_problems(&Tree::of_repository()));
}

#[test]
fn every_source_is_reached() {
    crate::must_be_empty(&reach_problems(&Tree::of_repository()));
}

#[test]
fn canary_a_stray_name_at_the_top_is_found() {
    let mut files: Vec<(&str, &str)> = TOP_LEVEL.iter().map(|name| (*name, "")).collect();
    files.push(("scripts/run.sh", ""));
    crate::must_find(&top_level_problems(&Tree::planted(&files)), &["scripts"]);
}

#[test]
fn canary_a_file_named_util_is_found() {
    let files = [("core/x/src/utils.rs", ""), ("core/x/src/utility_meter.rs", "")];
    crate::must_find(&name_problems(&Tree::planted(&files)), &["core/x/src/utils.rs"]);
}

#[test]
fn canary_a_long_file_is_found() {
    let long = "\n".repeat(LINES_MAX + 1);
    let said = format!("// long because: one table\n{long}");
    let files = [("core/x/src/a.rs", long.as_str()), ("core/x/src/b.rs", said.as_str())];
    crate::must_find(&size_problems(&Tree::planted(&files)), &["core/x/src/a.rs has 801"]);
}

#[test]
fn canary_a_crate_without_the_lints_is_found() {
    let with = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n";
    let files = [("core/a/Cargo.toml", with), ("core/b/Cargo.toml", "[package]\nname = \"b\"\n")];
    crate::must_find(&lint_problems(&Tree::planted(&files)), &["core/b/Cargo.toml"]);
}

#[test]
fn canary_a_source_that_nothing_declares_is_found() {
    let manifest =
        "[package]\nname = \"a\"\n[[test]]\nname = \"e\"\npath = \"../../tests/e/main.rs\"\n";
    let files = [
        ("core/a/Cargo.toml", manifest),
        ("core/a/src/lib.rs", "pub mod b;\n// mod dead;\n#[path = \"other.rs\"]\nmod d;\n"),
        ("core/a/src/b.rs", "mod c;"),
        ("core/a/src/b/c.rs", ""),
        ("core/a/src/other.rs", ""),
        ("core/a/src/dead.rs", ""),
        ("tests/e/main.rs", "mod f;"),
        ("tests/e/f.rs", ""),
    ];
    crate::must_find(&reach_problems(&Tree::planted(&files)), &["core/a/src/dead.rs"]);
}
