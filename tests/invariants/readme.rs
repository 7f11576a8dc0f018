//! Every command that the documents show exists: Bazel targets, subcommands of the program, and
//! the files they name. So does every page that they link to.

use crate::tree::Tree;

const TRAINED_BY_LINE: usize = 60;

/// The lines of the fenced blocks of a Markdown page, with their numbers.
fn fenced(text: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            lines.push((number + 1, line.trim().trim_start_matches("$ ")));
        }
    }
    lines
}

/// `verify-audit` as clap's derive writes it: `VerifyAudit`.
fn variant(subcommand: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |c| c.to_uppercase().chain(letters).collect())
    };
    subcommand.split('-').map(capital).collect()
}

fn has_target(tree: &Tree, target: &str) -> bool {
    let Some(path) = target.strip_prefix("//") else { return false };
    if let Some(folder) = path.strip_suffix("...") {
        let folder = folder.trim_end_matches('/');
        return folder.is_empty() || tree.has(&format!("{folder}/BUILD.bazel"));
    }
    let (folder, name) = path.split_once(':').unwrap_or_else(|| {
        let last = path.rsplit('/').next().unwrap_or(path);
        (path, last)
    });
    let build = tree.text(&format!("{folder}/BUILD.bazel")).unwrap_or_default();
    build.contains(&format!("name = \"{name}\""))
}

/// Whether the program's own source names this subcommand, as text or as a variant.
fn has_subcommand(tree: &Tree, word: &str) -> bool {
    let quoted = format!("\"{word}\"");
    let variant = variant(word);
    tree.rust()
        .filter(|(name, _)| name.starts_with("core/cli/src/"))
        .any(|(_, text)| text.contains(&quoted) || crate::source::has_word(text, &variant))
}

fn command_problems(tree: &Tree, name: &str, number: usize, line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split_whitespace().take_while(|w| !w.starts_with('#')).collect();
    let mut found = Vec::new();
    let mut at = |what: String| found.push(format!("{name}:{number}: {what}"));
    match words.first() {
        Some(&"tools/bazelw") => {
            for target in words.iter().filter(|word| word.starts_with("//")) {
                if !has_target(tree, target) {
                    at(format!("there is no target `{target}`"));
                }
            }
        }
        Some(&"forgelm") => {
            if let Some(word) = words.get(1).filter(|word| word.starts_with(char::is_lowercase))
                && !has_subcommand(tree, word)
            {
                at(format!("core/cli has no subcommand `{word}`"));
            }
        }
        _ => return found,
    }
    for word in words.iter().filter(|word| word.starts_with("configs/")) {
        if !tree.has(word) {
            at(format!("there is no file `{word}`"));
        }
    }
    found
}

fn problems(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tree.texts() {
        if name.ends_with(".md") {
            for (number, line) in fenced(text) {
                found.extend(command_problems(tree, name, number, line));
            }
        }
    }
    found
}

/// The links of a page that lead to nothing in the repository; other sites are not asked.
fn link_problems(tree: &Tree, name: &str, text: &str) -> Vec<String> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    // What stands between fences is code, where brackets mean something else.
    let prose = text.split("```").step_by(2).collect::<String>();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .filter(|target| {
            let path = crate::layout::normalized(&format!("{folder}/{target}"));
            !tree.has(&path) && !tree.names().any(|other| other.starts_with(&format!("{path}/")))
        })
        .map(|target| format!("{name}: the link to `{target}` leads to nothing"))
        .collect()
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let tree = Tree::of_repository();
    let pages = tree.texts().filter(|(name, _)| name.ends_with(".md"));
    let problems: Vec<_> =
        pages.flat_map(|(name, text)| link_problems(&tree, name, text)).collect();
    crate::must_be_empty(&problems);
}

#[test]
fn canary_a_link_to_nothing_is_found() {
    let page = "[a](../a/b.md) [c](../a) [d](https://example.org/x) [e](#e) [f](f.md#g)\n```cpp\n[](int n) {}\n```\n";
    let tree = Tree::planted(&[("docs/x.md", page), ("a/b.md", "")]);
    crate::must_find(&link_problems(&tree, "docs/x.md", page), &["docs/x.md", "`f.md`"]);
}

#[test]
fn every_command_in_the_documents_exists() {
    let tree = Tree::of_repository();
    let readme = tree.text("README.md").unwrap_or_default();
    let commands = fenced(readme)
        .into_iter()
        .filter(|(_, line)| line.starts_with("tools/bazelw ") || line.starts_with("forgelm "));
    assert!(commands.count() >= 4, "the README shows too few commands");
    crate::must_be_empty(&problems(&tree));
}

#[test]
fn the_readme_trains_a_model_in_its_first_lines() {
    let tree = Tree::of_repository();
    let readme = tree.text("README.md").unwrap_or_default();
    let run = fenced(readme).into_iter().find(|(_, line)| {
        line.starts_with("tools/bazelw run //core:forgelm -- --config configs/quickstart.yaml")
    });
    assert!(run.is_some_and(|(number, _)| number <= TRAINED_BY_LINE), "{run:?}");
}

#[test]
fn canary_commands_that_do_not_exist_are_found() {
    let page = "forgelm nothing\n```sh\ntools/bazelw run //core:forgelm -- --config x.yaml\n\
                forgelm verify-audit x\n$ forgelm fly  # soon\n```\n";
    let cli = ("core/cli/src/main.rs", "enum Command { VerifyAudit(Path) }");
    let build = ("core/BUILD.bazel", "name = \"forgelm\"");
    let tree = Tree::planted(&[("README.md", page), cli, build]);
    crate::must_find(&problems(&tree), &["README.md:5", "`fly`"]);

    let page = "```\ntools/bazelw test //core/x:y\ntools/bazelw test //...\n```";
    let tree = Tree::planted(&[("docs/a.md", page), cli, build]);
    crate::must_find(&problems(&tree), &["docs/a.md:2", "//core/x:y"]);

    let page = "```\nforgelm --config configs/gone.yaml\n```";
    let tree = Tree::planted(&[("docs/a.md", page), cli, build]);
    crate::must_find(&problems(&tree), &["configs/gone.yaml"]);
}
