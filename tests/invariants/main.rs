//! House rules as programs: each reads the repository's own text and fails with the sentence that
//! says what to move where. Beside each rule is its canary, a planted bad input that must be
//! found: a rule that can find nothing would otherwise pass for ever.
//!
//! Start reading at [`tree::Tree`]; a rule is a function from it to a list of sentences.

mod bazel;
mod configs;
mod data;
mod events;
mod layout;
mod levels;
mod manifest;
mod paths;
mod promises;
mod readme;
mod rooms;
mod source;
mod tree;

/// Fails with every sentence at once.
fn must_be_empty(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "{} problem(s) with the house rules:\n  {}",
        problems.len(),
        problems.join("\n  ")
    );
}

/// The canaries' check: exactly one problem, and it names what it should.
fn must_find(problems: &[String], words: &[&str]) {
    assert_eq!(problems.len(), 1, "the planted input gave {problems:?}");
    for word in words {
        assert!(problems[0].contains(word), "`{word}` is not in: {}", problems[0]);
    }
}
