//! A teacher that is a file: prompts with their answers, one pair a line.

use super::error::SyntheticError;
use crate::error::RunError;
use crate::event::{Event, Observer};
use forgelm_artifact::jsonl::Reader;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Where the answer to a prompt may be.
const ANSWERS: [&str; 3] = ["response", "completion", "output"];

/// The pairs, in their order.
#[derive(Clone, Debug)]
pub(super) struct AnswersFile {
    prompts: Vec<String>,
    /// The first answer to each prompt; empty where there is none.
    answers: BTreeMap<String, String>,
}

impl AnswersFile {
    /// Reads the file. Lines that are no pair are passed over and counted.
    pub(super) fn read(path: &Path, observer: &mut dyn Observer) -> Result<Self, RunError> {
        let mut reader = Reader::open(path)?;
        let (mut prompts, mut answers) = (Vec::new(), BTreeMap::new());
        let mut n_skipped = 0_u64;
        while let Some(line) = reader.next_line() {
            let row = line?.json().ok();
            let prompt = row.as_ref().and_then(|row| row["prompt"].as_str());
            let (Some(row), Some(prompt)) = (&row, prompt.filter(|text| !text.trim().is_empty()))
            else {
                n_skipped += 1;
                continue;
            };
            prompts.push(prompt.to_owned());
            answers.entry(prompt.to_owned()).or_insert_with(|| answer(row).unwrap_or_default());
        }
        if n_skipped > 0 {
            let text = format!(
                "{}: {n_skipped} lines are no object with a text in `prompt`, and are passed over",
                path.display()
            );
            observer.observe(&Event::Warning(text));
        }
        match prompts.is_empty() {
            true => Err(SyntheticError::NoAnswers { path: path.to_owned() }.into()),
            false => Ok(Self { prompts, answers }),
        }
    }

    pub(super) fn prompts(&self) -> Vec<String> {
        self.prompts.clone()
    }

    /// The answer to exactly this prompt; empty where there is none.
    pub(super) fn answer(&self, prompt: &str) -> &str {
        self.answers.get(prompt).map_or("", String::as_str)
    }
}

fn answer(row: &Value) -> Option<String> {
    let found = ANSWERS.iter().filter_map(|key| row[*key].as_str());
    found.into_iter().find(|text| !text.trim().is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::AnswersFile;
    use crate::event::{Event, Observer};

    struct Silent;

    impl Observer for Silent {
        fn observe(&mut self, _event: &Event) {}
    }

    #[test]
    fn the_first_answer_that_is_not_blank_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let text = "{\"prompt\": \"a\", \"response\": \" \", \"completion\": \"1\", \"output\": \"2\"}\n\
                    not JSON\n[1]\n{\"response\": \"x\"}\n{\"prompt\": \"b\"}\n\
                    {\"prompt\": \"a\", \"response\": \"later\"}\n";
        forgelm_artifact::write::atomic(&path, text.as_bytes()).unwrap();
        let file = AnswersFile::read(&path, &mut Silent).unwrap();
        assert_eq!(file.prompts(), ["a", "b", "a"]);
        assert_eq!((file.answer("a"), file.answer("b"), file.answer("A")), ("1", "", ""));
        forgelm_artifact::write::atomic(&path, b"{}\n").unwrap();
        assert!(
            AnswersFile::read(&path, &mut Silent).unwrap_err().to_string().contains("no prompt")
        );
    }
}
