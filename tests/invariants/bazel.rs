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

/// A release build names its packages, each by `-p`; only a release build would tell otherwise.
fn misread(tree: &Tree) -> Vec<String> {
    let text = tree.text("BUILD.bazel").unwrap_or_default();
    let mut found = Vec::new();
    for arguments in text.split("\":opt\": [").skip(1) {
        let arguments = arguments.split(']').next().unwrap_or_default();
        let words: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
        let odd = words.chunks(2).find(|pair| pair.len() < 2 || pair[0] != "-p");
        found.extend(odd.map(|pair| format!("BUILD.bazel: {pair:?} is no `-p` and a package")));
    }
    found
}

#[test]
fn a_release_build_names_its_packages() {
    crate::must_be_empty(&misread(&Tree::of_repository()));
}

#[test]
fn canary_a_package_without_its_option_is_found() {
    let text = r#"cargo_args = select({":opt": ["-p", "forgelm", "a", "-p", "b"]})"#;
    crate::must_find(&misread(&Tree::planted(&[("BUILD.bazel", text)])), &["\"a\", \"-p\""]);
}
