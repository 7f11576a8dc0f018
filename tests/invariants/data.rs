//! The bundled data set: every row is a chat that trains something, and no row repeats another.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::tree::Tree;

const DATA: &str = "configs/data/forgelm_cli.jsonl";
const ROWS_MIN: usize = 320;
/// How often one answer may come back under other questions.
const REPEATS_MAX: usize = 3;

fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// The turns of a row as (role, content), or what is wrong with it.
fn turns(line: &str) -> Result<Vec<(String, String)>, String> {
    let row: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let messages = row["messages"].as_array().ok_or("`messages` is not a list")?;
    let text = |message: &Value, key: &str| message[key].as_str().map(str::to_owned);
    messages
        .iter()
        .map(|m| text(m, "role").zip(text(m, "content")))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| "a turn lacks `role` or `content`".to_owned())
}

fn row_problem(turns: &[(String, String)]) -> Option<String> {
    let has_system = turns.first().is_some_and(|(role, _)| role == "system");
    let rest = &turns[usize::from(has_system)..];
    if rest.is_empty() || !rest.len().is_multiple_of(2) {
        return Some("is not question and answer".to_owned());
    }
    let expected = ["user", "assistant"].iter().cycle();
    if rest.iter().zip(expected).any(|((role, _), expected)| role != expected) {
        return Some("does not alternate user and assistant".to_owned());
    }
    let is_bad = |text: &str| text.trim() != text || text.is_empty();
    rest.iter().any(|(_, text)| is_bad(text)).then(|| "has an empty or padded turn".to_owned())
}

fn problems(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut questions: Vec<(usize, BTreeSet<String>)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let mut at = |what: &str| found.push(format!("{DATA}:{number}: {what}"));
        let turns = match turns(line) {
            Ok(turns) => turns,
            Err(what) => {
                at(&what);
                continue;
            }
        };
        if let Some(what) = row_problem(&turns) {
            at(&what);
            continue;
        }
        let said = |wanted: &'static str| {
            turns.iter().filter(move |(role, _)| role == wanted).map(|(_, text)| text.as_str())
        };
        for answer in said("assistant") {
            let seen = answers.entry(answer.to_owned()).or_default();
            *seen += 1;
            if *seen == REPEATS_MAX + 1 {
                at(&format!("an answer comes back more than {REPEATS_MAX} times"));
            }
        }
        let asked = words(&said("user").collect::<Vec<_>>().join(" "));
        if let Some((other, _)) = questions.iter().find(|(_, other)| *other == asked) {
            at(&format!("asks what line {other} asks, in the same words"));
        }
        questions.push((number, asked));
    }
    found
}

#[test]
fn the_bundled_data_set_is_sound() {
    let tree = Tree::of_repository();
    let text = tree.text(DATA).unwrap_or_default();
    assert!(text.lines().count() >= ROWS_MIN, "{DATA} has {} rows", text.lines().count());
    crate::must_be_empty(&problems(text));
}

#[test]
fn canary_bad_rows_are_found() {
    let row = |q: &str, a: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{q}\"}}, {{\"role\": \
             \"assistant\", \"content\": \"{a}\"}}]}}"
        )
    };
    let good = row("What now?", "Nothing.");
    crate::must_be_empty(&problems(&good));
    let bad = [
        ("{\"messages\": 3}".to_owned(), "not a list"),
        ("{".to_owned(), "EOF"),
        (row("Why?", ""), "empty"),
        (row("now, WHAT", "Else."), "same words"),
        (good.replace("assistant", "user"), "alternate"),
    ];
    for (line, word) in bad {
        crate::must_find(&problems(&format!("{good}\n{line}")), &["jsonl:2", word]);
    }
}
