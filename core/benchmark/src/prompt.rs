//! Rows to texts: questions, targets and choices, and the prompts that they stand in.

use crate::definition::{Examples, Task, Text};
use crate::literal;
use crate::template::{Template, meet_at_space};
use serde_json::Value;
use std::collections::BTreeSet;

/// A text of a task, ready for rows.
enum Compiled {
    Number(i64),
    List(Vec<String>),
    Column(String),
    Template(Box<Template>),
}

/// What a row says that the answer is, or which of the choices the question is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    Index(i64),
    Text(String),
    List(Vec<Said>),
    Nothing,
}

/// A question with what belongs to it.
pub(crate) struct Turn {
    text: Compiled,
    target: Compiled,
    choice: Option<Compiled>,
    prefix: Option<Compiled>,
}

/// Makes prompts of rows.
pub(crate) struct Prompter {
    pub(crate) asked: Turn,
    example: Turn,
    description: Compiled,
    /// Whether a task has choices: numbers are then indices.
    has_choices: bool,
    target_delimiter: String,
    example_delimiters: (String, String),
}

impl Prompter {
    /// `columns` are those of the rows that are asked.
    pub(crate) fn new(task: &Task, columns: &BTreeSet<String>) -> Result<Self, String> {
        let compile = |text: &Text| Compiled::new(text, columns);
        let prefix = |prefix: &Option<String>| {
            prefix.clone().map(|text| compile(&Text::Template(text))).transpose()
        };
        let Examples { text, target, choice, gen_prefix, .. } = &task.examples;
        Ok(Self {
            asked: Turn {
                text: compile(&task.text)?,
                target: compile(&task.target)?,
                choice: task.choice.as_ref().map(compile).transpose()?,
                prefix: prefix(&task.gen_prefix)?,
            },
            example: Turn {
                text: compile(text)?,
                target: compile(target)?,
                choice: choice.as_ref().map(compile).transpose()?,
                prefix: prefix(gen_prefix)?,
            },
            description: compile(&Text::Template(task.description.clone()))?,
            has_choices: task.choice.is_some(),
            target_delimiter: task.target_delimiter.clone(),
            example_delimiters: (
                task.examples.target_delimiter.clone(),
                task.examples.delimiter.clone(),
            ),
        })
    }

    /// The question of a row: a text, or the number of a choice.
    pub(crate) fn question(&self, turn: &Turn, row: &Value) -> Result<Said, String> {
        turn.text.said(row, self.has_choices).map(|said| match said {
            // A list is no question; its text is.
            Said::List(_) | Said::Nothing => Said::Text(String::new()),
            said => said,
        })
    }

    /// What a row says that the answer is.
    pub(crate) fn target(&self, turn: &Turn, row: &Value) -> Result<Said, String> {
        match &turn.target {
            Compiled::Template(template) => {
                let text = template.render(row)?;
                Ok(match literal::read(&text) {
                    Some(list @ Value::Array(_)) if text.starts_with('[') => {
                        Said::of(&list).unwrap_or(Said::Text(text))
                    }
                    _ => Said::of_text(text, self.has_choices),
                })
            }
            other => other.said(row, self.has_choices),
        }
    }

    /// The choices of a row; empty where the task has none.
    pub(crate) fn choices(&self, turn: &Turn, row: &Value) -> Result<Vec<String>, String> {
        let texts = |value: &Value| -> Option<Vec<String>> {
            let items = value.as_array()?.iter();
            items.map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let wrong = |found: &dyn std::fmt::Display| {
            format!("`doc_to_choice` gives `{found}`; expected a list of texts")
        };
        match &turn.choice {
            None => Ok(Vec::new()),
            Some(Compiled::List(list)) => Ok(list.clone()),
            Some(Compiled::Column(name)) => texts(&row[name]).ok_or_else(|| wrong(&row[name])),
            Some(Compiled::Template(template)) => {
                let text = template.render(row)?;
                literal::read(&text).as_ref().and_then(texts).ok_or_else(|| wrong(&text))
            }
            Some(Compiled::Number(number)) => Err(wrong(number)),
        }
    }

    /// What stands before the question: the description, then the examples.
    pub(crate) fn before(
        &self,
        row: &Value,
        examples: &[&Value],
        is_multiple_input: bool,
    ) -> Result<String, String> {
        let mut text = self.description.text(row)?;
        for example in examples {
            text.push_str(&self.example(example, is_multiple_input)?);
        }
        Ok(text)
    }

    /// An example: question, answer, and what stands between it and the next.
    fn example(&self, row: &Value, is_multiple_input: bool) -> Result<String, String> {
        let turn = &self.example;
        let mut choices = self.choices(turn, row)?;
        let question = match self.question(turn, row)? {
            Said::Text(text) => text,
            Said::Index(index) if is_multiple_input => {
                let question = chosen(&choices, index)?.to_owned();
                choices.clear();
                question
            }
            other => return Err(format!("an example's question is {other:?}; expected a text")),
        };
        let answer = match self.target(turn, row)? {
            Said::Index(index) if !choices.is_empty() => chosen(&choices, index)?.to_owned(),
            Said::List(items) => match items.into_iter().next() {
                Some(Said::Text(text)) => text,
                other => return Err(format!("an example's answer is {other:?}; expected a text")),
            },
            Said::Index(index) => index.to_string(),
            Said::Text(text) => text,
            Said::Nothing => String::new(),
        };
        let prefix = turn.prefix.as_ref().map(|prefix| prefix.text(row)).transpose()?;
        let prefix = prefix.unwrap_or_default();
        let (between, after) = &self.example_delimiters;
        if answer.is_empty() {
            return Ok(question_and(&question, &prefix, between));
        }
        let (question, answer) = match prefix.is_empty() {
            true => (question + between, answer),
            false => (with_delimiter(&question, &prefix, between), joined(&prefix, &answer)),
        };
        Ok(question + &answer + after)
    }

    /// The question as it is asked, with what the answer begins with.
    pub(crate) fn question_text(
        &self,
        row: &Value,
        question: &str,
        is_multiple_input: bool,
    ) -> Result<String, String> {
        let prefix = self.asked.prefix.as_ref().map(|prefix| prefix.text(row)).transpose()?;
        let between = if is_multiple_input { "" } else { &self.target_delimiter };
        Ok(question_and(question, &prefix.unwrap_or_default(), between))
    }
}

/// A question and what its answer begins with.
fn question_and(question: &str, prefix: &str, between: &str) -> String {
    match prefix.is_empty() {
        true => question.to_owned(),
        false => with_delimiter(question, prefix, between) + prefix,
    }
}

/// The question, with the delimiter where the prefix needs one.
fn with_delimiter(question: &str, prefix: &str, between: &str) -> String {
    match question.is_empty() || meet_at_space(question, prefix) {
        true => question.to_owned(),
        false => format!("{question}{between}"),
    }
}

/// Two texts with a space between them, unless there is one.
fn joined(before: &str, after: &str) -> String {
    match before.is_empty() || after.is_empty() || meet_at_space(before, after) {
        true => format!("{before}{after}"),
        false => format!("{before} {after}"),
    }
}

/// The choice of an index.
pub(crate) fn chosen(choices: &[String], index: i64) -> Result<&str, String> {
    let at = usize::try_from(index).ok().and_then(|at| choices.get(at));
    at.map(String::as_str).ok_or_else(|| {
        format!("the answer is choice {index}, counted from 0, of {}", choices.len())
    })
}

impl Compiled {
    fn new(text: &Text, columns: &BTreeSet<String>) -> Result<Self, String> {
        Ok(match text {
            Text::Number(number) => Self::Number(*number),
            Text::List(list) => Self::List(list.clone()),
            Text::Template(name) if columns.contains(name) => Self::Column(name.clone()),
            Text::Template(source) => Self::Template(Box::new(
                Template::compile(source).map_err(|error| format!("`{source}`: {error}"))?,
            )),
        })
    }

    fn text(&self, row: &Value) -> Result<String, String> {
        Ok(match self {
            Self::Template(template) => template.render(row)?,
            Self::Number(number) => number.to_string(),
            Self::Column(name) => match &row[name] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            },
            Self::List(list) => list.concat(),
        })
    }

    fn said(&self, row: &Value, has_choices: bool) -> Result<Said, String> {
        Ok(match self {
            Self::Number(number) => Said::Index(*number),
            Self::List(list) => Said::List(list.iter().cloned().map(Said::Text).collect()),
            Self::Column(name) => Said::of(&row[name])
                .ok_or_else(|| format!("`{name}` is an object; expected a text or a number"))?,
            Self::Template(template) => Said::of_text(template.render(row)?, has_choices),
        })
    }
}

impl Said {
    /// A text that is an index where there are choices and it has only digits.
    fn of_text(text: String, has_choices: bool) -> Self {
        let is_number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        match text.parse() {
            Ok(index) if has_choices && is_number => Self::Index(index),
            _ => Self::Text(text),
        }
    }

    fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null => Self::Nothing,
            // Python's `True` is the number 1.
            Value::Bool(flag) => Self::Index(i64::from(*flag)),
            Value::Number(number) => match number.as_i64() {
                Some(index) => Self::Index(index),
                None => Self::Text(number.to_string()),
            },
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::of).collect::<Option<_>>()?),
            Value::Object(_) => return None,
        })
    }
}
