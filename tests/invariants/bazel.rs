//! Bazel sees what cargo sees: each crate has a BUILD.bazel and is in its folder's list.

use crate::tree::Tree;

fn problems(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for folder in tree.crates() {
        match tree.text(&format!("{folder}/BUILD.bazel")) {
            None => found.push(format!(
                "{folder} has a Cargo.toml and no BUILD.bazel: copy the one of core/config"
            )),
            Some(text) if !text.contains("crate_srcs(") => {
                found.push(format!("{folder}/BUILD.bazel lacks crate_srcs()"));
            }
            Some(_) => {}
        }
        // core/config is listed in core/BUILD.bazel; tests in BUILD.bazel
        let (list, label) = match folder.rsplit_once('/') {
            Some((group, _)) => (format!("{group}/BUILD.bazel"), format!("\"//{folder}:srcs\"")),
            None => ("BUILD.bazel".to_owned(), format!("\"//{folder}:srcs\"")),
        };
        if !tree.text(&list).unwrap_or_default().contains(&label) {
            found.push(format!("{list} does not list {label}: Bazel would not see its changes"));
        }
    }
    found
}

#[test]
fn every_crate_is_in_bazel() {
    crate::must_be_empty(&problems(&Tree::of_repository()));
}

#[test]
fn canary_a_crate_without_a_build_file_is_found() {
    let listed = "srcs = [\"//core/a:srcs\", \"//core/b:srcs\"]";
    let files = [
        ("core/BUILD.bazel", listed),
        ("core/a/BUILD.bazel", "crate_srcs()"),
        ("core/a/Cargo.toml", ""),
        ("core/b/Cargo.toml", ""),
    ];
    crate::must_find(&problems(&Tree::planted(&files)), &["core/b has a Cargo.toml"]);
}

#[test]
fn canary_a_crate_that_no_list_has_is_found() {
    let files = [
        ("core/BUILD.bazel", ""),
        ("core/a/BUILD.bazel", "crate_srcs()"),
        ("core/a/Cargo.toml", ""),
    ];
    crate::must_find(&problems(&Tree::planted(&files)), &["core/BUILD.bazel", "//core/a:srcs"]);
}
