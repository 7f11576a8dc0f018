//! Files of prompts: one entry a line, each looked at before anything is trained.

use crate::error::RunError;
use forgelm_artifact::hash::{sha256_bytes, sha256_file};
use forgelm_artifact::jsonl::{JsonlError, Line, Reader};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// What a model is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    /// What it is about, where its row says so.
    pub(crate) category: Option<String>,
}

/// Prompts of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PromptSet {
    /// The file as configured, or the name of what is built in.
    pub(crate) name: String,
    pub(crate) sha256: String,
    pub(crate) prompts: Vec<Prompt>,
}

/// The prompts that ship with ForgeLM, by name and text of the file.
const BUILT_IN: [(&str, &str); 6] = [
    ("general_safety", include_str!("../../../../configs/safety_prompts/general_safety.jsonl")),
    (
        "bias_discrimination",
        include_str!("../../../../configs/safety_prompts/bias_discrimination.jsonl"),
    ),
    (
        "jailbreak_attempts",
        include_str!("../../../../configs/safety_prompts/jailbreak_attempts.jsonl"),
    ),
    (
        "harmful_instructions",
        include_str!("../../../../configs/safety_prompts/harmful_instructions.jsonl"),
    ),
    ("misinformation", include_str!("../../../../configs/safety_prompts/misinformation.jsonl")),
    ("privacy_pii", include_str!("../../../../configs/safety_prompts/privacy_pii.jsonl")),
];

impl PromptSet {
    /// Every prompt of a file.
    ///
    /// # Errors
    /// If it cannot be read, has no prompt, or a row is none: with file, line and field.
    pub(crate) fn read(path: &Path) -> Result<Self, RunError> {
        let prompts = read_all(path, Reader::open(path)?)?;
        if prompts.is_empty() {
            let problem = "no prompts; expected at least one line".to_owned();
            return Err(RunError::Row { file: path.to_owned(), line: 1, problem });
        }
        let sha256 = sha256_file(path)?.as_str().to_owned();
        Ok(Self { name: path.display().to_string(), sha256, prompts })
    }

    /// The prompts that ship with ForgeLM, one set after the other.
    pub(crate) fn built_in() -> Result<Self, RunError> {
        let mut prompts = Vec::new();
        for (name, text) in BUILT_IN {
            let path = Path::new(name);
            prompts.extend(read_all(path, Reader::new(path, text.as_bytes()))?);
        }
        let texts: String = BUILT_IN.iter().map(|(_, text)| *text).collect();
        let sha256 = sha256_bytes(texts.as_bytes()).as_str().to_owned();
        Ok(Self { name: "default".to_owned(), sha256, prompts })
    }
}

fn read_all<R: Read>(path: &Path, mut reader: Reader<R>) -> Result<Vec<Prompt>, RunError> {
    let mut prompts = Vec::new();
    while let Some(line) = reader.next_line() {
        let line = line?;
        prompts.push(prompt(&line).map_err(|problem| RunError::Row {
            file: path.to_owned(),
            line: line.number,
            problem,
        })?);
    }
    Ok(prompts)
}

/// An object with `prompt` (or `text`), a JSON string, or the line as it stands. What looks like JSON
/// and is none is refused: it would be asked as it stands, braces and all.
fn prompt(line: &Line<'_>) -> Result<Prompt, String> {
    let plain = |text: &str| Prompt { text: text.to_owned(), category: None };
    let value = match line.json() {
        Ok(value) => value,
        Err(JsonlError::Json { what, .. }) if line.text.trim_start().starts_with(['{', '[']) => {
            return Err(format!("not JSON: {what}"));
        }
        Err(_) => return Ok(plain(line.text.trim())),
    };
    match &value {
        Value::String(text) if !text.trim().is_empty() => Ok(plain(text)),
        Value::String(_) => Err("an empty text; expected a prompt".to_owned()),
        Value::Object(row) => {
            let field = ["prompt", "text"].into_iter().find(|field| row.contains_key(*field));
            let field = field.ok_or("no `prompt` or `text`; expected one of them")?;
            let text = row[field].as_str().filter(|text| !text.trim().is_empty());
            let text =
                text.ok_or_else(|| format!("`{field}`: expected a text that is not blank"))?;
            let category = match row.get("category") {
                None | Some(Value::Null) => None,
                Some(Value::String(category)) => Some(category.clone()),
                Some(_) => return Err("`category`: expected a text".to_owned()),
            };
            Ok(Prompt { text: text.to_owned(), category })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => Err(
            "JSON that is no prompt; expected an object with `prompt`, a JSON string or plain text"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test makes files")]
mod tests {
    use super::{BUILT_IN, Prompt, PromptSet, read_all};
    use crate::error::RunError;
    use crate::exit::Exit;
    use forgelm_artifact::jsonl::Reader;
    use std::collections::BTreeSet;
    use std::path::Path;

    fn read(bytes: &[u8]) -> Result<PromptSet, RunError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("prompts.jsonl");
        std::fs::write(&path, bytes).expect("written");
        PromptSet::read(&path)
    }

    #[test]
    fn a_line_is_an_object_a_json_string_or_plain_text() {
        let lines = "{\"prompt\": \"one\", \"category\": \"a\", \"id\": 7}\n\n{\"text\": \"two\"}\n\
                     \"three\\n\"\n  four: {five}, \"six\" \r\n\"Seven,\" she said";
        let set = read(lines.as_bytes()).expect("prompts");
        let found: Vec<&str> = set.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        assert_eq!(
            found,
            ["one", "two", "three\n", "four: {five}, \"six\"", "\"Seven,\" she said"]
        );
        let first = Prompt { text: "one".to_owned(), category: Some("a".to_owned()) };
        assert_eq!(set.prompts[0], first);
        assert_eq!(set.sha256.len(), 64);
    }

    #[test]
    fn a_row_that_is_no_prompt_is_named_with_its_line_and_field() {
        for (bytes, said) in [
            (&b"ok\n7\n"[..], ":2: JSON that is no prompt"),
            (b"ok\n\nnull\n", ":3: JSON that is no prompt"),
            (b"[\"a\"]\n", ":1: JSON that is no prompt"),
            (b"ok\n{\"prompt\": \"cut\n", ":2: not JSON"),
            (b"{\"prompt\": \"a\", \"prompt\": \"b\"}\n", ":1: not JSON"),
            (b"{\"question\": \"a\"}\n", ":1: no `prompt` or `text`"),
            (b"{\"prompt\": 3}\n", ":1: `prompt`: expected a text"),
            (b"{\"text\": \"  \"}\n", ":1: `text`: expected a text that is not blank"),
            (b"{\"prompt\": \"a\", \"category\": 1}\n", ":1: `category`: expected a text"),
            (b"\"\"\n", ":1: an empty text"),
            (b"", "no prompts"),
            (b"\n \n", "no prompts"),
            (b"ok\n\xff\xfe\n", ":2"),
        ] {
            let error = read(bytes).expect_err("refused");
            let text = error.to_string();
            assert!(text.contains(said), "{text} has no `{said}`");
            assert_eq!(error.exit(), Exit::Config, "{text}");
        }
        let missing = PromptSet::read(Path::new("/nowhere/prompts.jsonl")).expect_err("missing");
        assert_eq!(missing.exit(), Exit::Config);
    }

    #[test]
    fn every_built_in_set_has_fifty_prompts_with_categories_and_none_twice() {
        let mut seen = BTreeSet::new();
        assert_eq!(BUILT_IN.len(), 6);
        for (name, text) in BUILT_IN {
            let path = Path::new(name);
            let prompts = read_all(path, Reader::new(path, text.as_bytes())).expect("prompts");
            assert!(prompts.len() >= 50, "{name} has {}", prompts.len());
            let is_benign = |prompt: &&Prompt| prompt.category.as_deref() == Some("benign_control");
            let n_benign = prompts.iter().filter(is_benign).count();
            assert!(n_benign >= 5, "{name}: a model that refuses everything would pass");
            for prompt in prompts {
                assert!(prompt.category.is_some(), "{name}: {}", prompt.text);
                assert!(seen.insert(prompt.text.clone()), "{name} repeats: {}", prompt.text);
            }
        }
        let all = PromptSet::built_in().expect("prompts");
        assert_eq!(all.prompts.len(), seen.len());
    }
}
