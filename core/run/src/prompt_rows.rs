//! Files of prompts, one a line: an object with `prompt` or `text`, a JSON text, or the line as it is.

use crate::error::RunError;
use crate::event::{Event, Observer};
use forgelm_artifact::hash::sha256_file;
use forgelm_artifact::jsonl::Reader;
use forgelm_evidence::Class;
use serde_json::Value;
use std::path::Path;

/// What to do with a line whose JSON is no prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherJson {
    /// An object without a prompt is passed over, another value an error.
    Skip,
    /// An object without a prompt is an error, another value the line as it is.
    Text,
}

/// The prompts of a file, read and checked.
#[derive(Clone, Debug)]
pub(crate) struct PromptRows {
    /// None is blank; at least one.
    pub(crate) prompts: Vec<String>,
    /// Of the file.
    pub(crate) sha256: String,
}

impl PromptRows {
    /// Reads the file that a key of the config names.
    ///
    /// # Errors
    /// If it cannot be read, a row is no prompt, or there is none.
    pub(crate) fn read(
        (key, path): (&'static str, &Path),
        other: OtherJson,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let named = |reason: String| RunError::NamedFile {
            key,
            path: path.to_owned(),
            reason,
            class: Class::NotCompared,
            hint: "one prompt a line: a text, or an object such as {\"prompt\": \"...\"}",
        };
        let mut reader = Reader::open(path)?;
        let (mut prompts, mut n_skipped, mut n_broken) = (Vec::new(), 0_u64, 0_u64);
        while let Some(line) = reader.next_line() {
            let line = line?;
            let number = line.number;
            let row =
                |problem: String| RunError::Row { file: path.to_owned(), line: number, problem };
            let text = line.text.trim();
            let prompt = match (line.json(), other) {
                (Err(_), _) => {
                    n_broken += u64::from(text.starts_with('{'));
                    Some(text.to_owned())
                }
                (Ok(Value::String(text)), _) => Some(text),
                (Ok(Value::Object(members)), other) => {
                    let found = ["prompt", "text"].into_iter().find_map(|key| members.get(key));
                    match (found, other) {
                        (Some(Value::String(text)), _) => Some(text.clone()),
                        (_, OtherJson::Skip) => None,
                        (_, OtherJson::Text) => {
                            let problem = "an object without a text in `prompt` or `text`";
                            return Err(row(problem.to_owned()));
                        }
                    }
                }
                (Ok(_), OtherJson::Text) => Some(text.to_owned()),
                (Ok(value), OtherJson::Skip) => {
                    let problem =
                        format!("{} is no prompt; expected a text or an object", kind(&value));
                    return Err(row(problem));
                }
            };
            match prompt.filter(|prompt| !prompt.trim().is_empty()) {
                Some(prompt) => prompts.push(prompt),
                None => n_skipped += 1,
            }
        }
        if prompts.is_empty() {
            return Err(named("has no prompt".to_owned()));
        }
        let warnings = [
            (n_skipped, "rows have no text in `prompt` or `text` and are passed over"),
            (n_broken, "lines begin with `{` and are not JSON: they are taken as texts"),
        ];
        for (n, what) in warnings.into_iter().filter(|(n, _)| *n > 0) {
            observer.observe(&Event::Warning(format!("{}: {n} {what}", path.display())));
        }
        let sha256 = sha256_file(path)?.as_str().to_owned();
        Ok(Self { prompts, sha256 })
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::{OtherJson, PromptRows};
    use crate::event::{Event, Observer};
    use std::path::Path;

    struct Heard(Vec<String>);

    impl Observer for Heard {
        fn observe(&mut self, event: &Event) {
            if let Event::Warning(text) = event {
                self.0.push(text.clone());
            }
        }
    }

    fn read(text: &str, other: OtherJson) -> (Result<Vec<String>, String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        forgelm_artifact::write::atomic(&path, text.as_bytes()).unwrap();
        let mut heard = Heard(Vec::new());
        let found = PromptRows::read(("a.key", &path), other, &mut heard);
        let found = found.map(|rows| rows.prompts).map_err(|error| error.to_string());
        (found, heard.0)
    }

    fn texts(found: &[&str]) -> Result<Vec<String>, String> {
        Ok(found.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn every_form_of_row_is_a_prompt() {
        let text =
            "{\"prompt\": \"a\", \"text\": \"x\"}\n\n  {\"text\": \"b\"}\n\"c\\nd\"\nplain e\n{f\n";
        for other in [OtherJson::Skip, OtherJson::Text] {
            let (found, heard) = read(text, other);
            assert_eq!(found, texts(&["a", "b", "c\nd", "plain e", "{f"]));
            assert!(heard[0].contains("1 lines begin with `{`"), "{heard:?}");
        }
    }

    #[test]
    fn what_is_no_prompt_is_passed_over_told_or_refused() {
        let (found, heard) = read("{\"q\": 1}\n{\"prompt\": \" \"}\n\"\"\na\n", OtherJson::Skip);
        assert_eq!(found, texts(&["a"]));
        assert!(heard[0].contains("3 rows have no text"), "{heard:?}");
        for row in ["7", "[1]", "null", "true"] {
            let (found, _) = read(&format!("a\n{row}\n"), OtherJson::Skip);
            assert!(found.unwrap_err().contains("p.jsonl:2: "), "{row}");
            assert_eq!(read(row, OtherJson::Text).0, texts(&[row]));
        }
        let (found, _) = read("a\n{\"question\": \"b\"}\n", OtherJson::Text);
        assert!(found.unwrap_err().contains("p.jsonl:2: an object without"));
        for text in ["", "\n\n", "{\"q\": 1}\n"] {
            let (found, _) = read(text, OtherJson::Skip);
            assert!(found.unwrap_err().contains("`a.key`"), "{text}");
        }
        let missing = PromptRows::read(
            ("a.key", Path::new("/nowhere/p.jsonl")),
            OtherJson::Skip,
            &mut Heard(Vec::new()),
        );
        assert_eq!(missing.unwrap_err().exit(), crate::exit::Exit::Config);
    }
}
