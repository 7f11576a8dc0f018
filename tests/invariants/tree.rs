//! The repository as text: path to content, as the rules read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Path (relative, with `/`) to content. Files that are not UTF-8 have none.
pub struct Tree {
    files: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// The checkout that this test was compiled from: what git tracks, and what it would if all
    /// were added; without git, everything but what is built.
    pub fn of_repository() -> Self {
        let root = root();
        let mut names = listed_by_git(&root);
        if names.is_empty() {
            walk(&root, &root, &mut names);
        }
        let files = names
            .into_iter()
            .filter(|name| root.join(name).is_file())
            .map(|name| {
                let text = std::fs::read(root.join(&name))
                    .ok()
                    .and_then(|bytes| String::from_utf8(bytes).ok());
                (name, text)
            })
            .collect::<BTreeMap<_, _>>();
        assert!(files.contains_key("Cargo.toml"), "{} is not the repository", root.display());
        Self { files }
    }

    /// A tree of planted files.
    pub fn planted(files: &[(&str, &str)]) -> Self {
        let files = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Some((*text).to_owned())))
            .collect();
        Self { files }
    }

    /// All paths, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Path and content of each file that is text.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(name, text)| Some((name.as_str(), text.as_deref()?)))
    }

    /// Path and content of each Rust source.
    pub fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(name, _)| name.ends_with(".rs"))
    }

    /// The content of one file, if it is there and is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.files.get(name)?.as_deref()
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The folders with a Cargo.toml that is a crate's, as `core/config`.
    pub fn crates(&self) -> Vec<&str> {
        self.names().filter_map(|name| name.strip_suffix("/Cargo.toml")).collect()
    }
}

/// The folder above this crate's.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

fn listed_by_git(root: &Path) -> Vec<String> {
    let listing = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output();
    match listing {
        Ok(listing) if listing.status.success() => String::from_utf8_lossy(&listing.stdout)
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}

/// Beside what is built, these are not ours: the list of `.gitignore`.
fn is_built(name: &str) -> bool {
    matches!(name, ".git" | "target" | "checkpoints" | ".bazelrc.user" | "MODULE.bazel.lock")
        || name.starts_with("bazel-")
}

fn walk(root: &Path, folder: &Path, names: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if folder == root && is_built(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, names);
        } else if let Ok(name) = path.strip_prefix(root) {
            names.push(name.to_string_lossy().replace('\\', "/"));
        }
    }
}

#[test]
fn the_walk_without_git_sees_the_same_rust_files() {
    let root = root();
    let mut walked = Vec::new();
    walk(&root, &root, &mut walked);
    let tree = Tree::of_repository();
    for (name, _) in tree.rust() {
        assert!(walked.iter().any(|other| other == name), "{name} is not found by walking");
    }
    assert!(tree.rust().count() > 20, "too few Rust files to be this repository");
}
