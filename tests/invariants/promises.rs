//! docs/PROMISES.md names a test for each promise, and the test exists.

use crate::tree::Tree;

/// The rows of the page's tables: what is promised, and the tests in backticks, each a path and
/// a function's name: `tests/sim/main.rs::resume_at_every_step`.
fn promises(page: &str) -> Vec<(&str, Vec<&str>)> {
    page.lines()
        .filter(|line| line.starts_with('|') && !line.contains("---"))
        .filter(|line| *line != "| promise | tests |")
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|');
            let promise = cells.next()?.trim();
            let tests = cells.next()?.split('`').skip(1).step_by(2).collect();
            Some((promise, tests))
        })
        .collect()
}

fn problems(tree: &Tree) -> Vec<String> {
    let page = tree.text("docs/PROMISES.md").unwrap_or_default();
    let mut found = Vec::new();
    for (promise, tests) in promises(page) {
        if tests.is_empty() {
            found.push(format!("\"{promise}\" has no test: write one, or take the promise back"));
        }
        for test in tests {
            let (path, name) = test.split_once("::").unwrap_or((test, ""));
            let exists = tree.text(path).is_some_and(|text| {
                // a C test is a file
                path.ends_with(".c") || text.contains(&format!("fn {name}("))
            });
            if !exists {
                found.push(format!("\"{promise}\" names `{test}`, which does not exist"));
            }
        }
    }
    found
}

#[test]
fn every_promise_has_a_test_that_exists() {
    let tree = Tree::of_repository();
    let page = tree.text("docs/PROMISES.md").unwrap_or_default();
    assert!(promises(page).len() >= 5, "the promises are not found");
    crate::must_be_empty(&problems(&tree));
}

#[test]
fn canary_a_promise_without_its_test_is_found() {
    let page =
        "| promise | tests |\n|---|---|\n| holds | `a.rs::one` |\n| broken | `a.rs::two` |\n";
    let tree = Tree::planted(&[("docs/PROMISES.md", page), ("a.rs", "fn one() {}")]);
    crate::must_find(&problems(&tree), &["broken", "a.rs::two"]);

    let page = "| promise | tests |\n|---|---|\n| bare | soon |\n";
    let tree = Tree::planted(&[("docs/PROMISES.md", page)]);
    crate::must_find(&problems(&tree), &["bare", "has no test"]);
}
