//! The columns of a row, and the rule for each thing that they can get wrong.

use forgelm_tokenize::Message;
use serde_json::{Map, Value};

use crate::clean::clean_text;
use crate::problem::{Code, DataProblem};
use crate::record::{RecordKind, Rules};
use crate::source::Row;

/// The columns of one row.
pub(crate) struct Fields<'r, 'a> {
    pub row: &'r Row<'a>,
    pub columns: &'r Map<String, Value>,
    pub rules: Rules,
}

impl Fields<'_, '_> {
    pub(crate) fn problem(
        &self,
        code: Code,
        field: &str,
        found: impl Into<String>,
        expected: &str,
    ) -> DataProblem {
        DataProblem::row(code, &self.row.place, field, found, expected)
    }

    pub(crate) fn value(&self, field: &str) -> Result<&Value, DataProblem> {
        self.columns.get(field).ok_or_else(|| {
            let names: Vec<String> =
                self.columns.keys().take(5).map(|n| format!("`{}`", shortened(n))).collect();
            let found = format!("missing; the row has {}", names.join(", "));
            self.problem(Code::FieldMissing, field, found, "this field, as in the first row")
        })
    }

    /// A text column, cleaned if asked for, and never empty.
    pub(crate) fn text(&self, field: &str) -> Result<String, DataProblem> {
        let text = self.cleaned(field)?;
        if text.trim().is_empty() {
            return Err(self.problem(Code::Empty, field, "an empty text", "some text"));
        }
        Ok(text)
    }

    pub(crate) fn cleaned(&self, field: &str) -> Result<String, DataProblem> {
        let value = self.value(field)?;
        let text = value
            .as_str()
            .ok_or_else(|| self.problem(Code::FieldType, field, kind(value), "a text"))?;
        if self.rules.clean_text {
            return Ok(clean_text(text));
        }
        self.refuse_nul(field, text)?;
        Ok(text.to_owned())
    }

    /// A row may lack the `System` column, or have it empty or null.
    pub(crate) fn system(&self) -> Result<Option<String>, DataProblem> {
        match self.columns.get("System") {
            None | Some(Value::Null) => Ok(None),
            Some(_) => Ok(Some(self.cleaned("System")?).filter(|text| !text.is_empty())),
        }
    }

    fn refuse_nul(&self, field: &str, text: &str) -> Result<(), DataProblem> {
        if !text.contains('\0') {
            return Ok(());
        }
        // JSON can hold NUL only as an escape.
        let found = match self.row.text.find("\\u0000") {
            Some(at) => format!("NUL at byte {} of the file", self.row.offset + at as u64),
            None => "a NUL".to_owned(),
        };
        Err(self.problem(Code::Nul, field, found, "text"))
    }

    pub(crate) fn prompt_completion(&self, completion: &str) -> Result<RecordKind, DataProblem> {
        let (prompt, answer) = (self.value("prompt")?, self.value(completion)?);
        match (prompt, answer) {
            (Value::Array(_), Value::Array(_)) => {
                let mut messages = self.messages("prompt", false)?;
                messages.extend(self.messages(completion, true)?);
                self.check_order(&messages, completion, true)?;
                Ok(RecordKind::Messages(messages))
            }
            (Value::Array(_), Value::String(_)) => {
                let mut messages = self.messages("prompt", false)?;
                messages.push(Message::new("assistant", self.text(completion)?));
                self.check_order(&messages, completion, true)?;
                Ok(RecordKind::Messages(messages))
            }
            _ => {
                // Cleaning would take the space between the two.
                let texts = Fields { rules: Rules { clean_text: false, ..self.rules }, ..*self };
                Ok(RecordKind::PromptCompletion {
                    prompt: texts.text("prompt")?,
                    completion: texts.text(completion)?,
                })
            }
        }
    }

    /// A list of messages: each with a known role and a text as content.
    pub(crate) fn messages(
        &self,
        field: &str,
        needs_assistant: bool,
    ) -> Result<Vec<Message>, DataProblem> {
        let value = self.value(field)?;
        let list = value.as_array().ok_or_else(|| {
            self.problem(Code::FieldType, field, kind(value), "a list of messages")
        })?;
        if list.is_empty() {
            return Err(self.problem(
                Code::MessagesEmpty,
                field,
                "an empty list",
                "at least one message",
            ));
        }
        let messages: Vec<Message> = list
            .iter()
            .enumerate()
            .map(|(i, value)| self.message(&format!("{field}[{i}]"), value))
            .collect::<Result<_, _>>()?;
        self.check_order(&messages, field, needs_assistant)?;
        Ok(messages)
    }

    fn message(&self, field: &str, value: &Value) -> Result<Message, DataProblem> {
        let object = value
            .as_object()
            .ok_or_else(|| self.problem(Code::FieldType, field, kind(value), "an object"))?;
        let role_field = format!("{field}.role");
        let role = match object.get("role") {
            Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role,
            Some(Value::String(role)) => {
                return Err(self.problem(
                    Code::Role,
                    &role_field,
                    format!("`{}`", shortened(role)),
                    ROLES_TEXT,
                ));
            }
            Some(other) => {
                return Err(self.problem(Code::Role, &role_field, kind(other), ROLES_TEXT));
            }
            None => return Err(self.problem(Code::Role, &role_field, "missing", ROLES_TEXT)),
        };
        let field = format!("{field}.content");
        let content = match object.get("content") {
            Some(Value::String(content)) => content,
            None | Some(Value::Null) => {
                let found = if object.contains_key("content") { "null" } else { "missing" };
                return Err(self.problem(Code::ContentNull, &field, found, "a text"));
            }
            Some(Value::Array(_)) => {
                let problem = self.problem(Code::ContentParts, &field, "a list of parts", "a text");
                return Err(problem.hint("content in parts (images, audio) is not available yet"));
            }
            Some(other) => {
                return Err(self.problem(Code::FieldType, &field, kind(other), "a text"));
            }
        };
        self.refuse_nul(&field, content)?;
        if role == "assistant" && content.is_empty() && !object.contains_key("tool_calls") {
            return Err(self.problem(
                Code::Empty,
                &field,
                "an empty answer",
                "what the assistant says",
            ));
        }
        let mut message = Message::new(role.as_str(), content.as_str());
        let further = object.iter().filter(|(key, _)| !["role", "content"].contains(&key.as_str()));
        message.extra = further.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(message)
    }

    /// The rules for the order of turns. Two users' turns in a row are for the template to judge.
    pub(crate) fn check_order(
        &self,
        messages: &[Message],
        field: &str,
        needs_assistant: bool,
    ) -> Result<(), DataProblem> {
        let at = |i: usize| format!("{field}[{i}]");
        for (i, message) in messages.iter().enumerate() {
            let before = i.checked_sub(1).and_then(|i| messages.get(i));
            match (message.role.as_str(), before.map(|before| before.role.as_str())) {
                ("system", Some(_)) => {
                    let found = "a system message that is not the first message";
                    return Err(self.problem(
                        Code::SystemTwice,
                        &at(i),
                        found,
                        "one system message, at the start",
                    ));
                }
                ("assistant", Some("assistant")) => {
                    let found = "a second turn of the assistant in a row";
                    return Err(self.problem(
                        Code::AssistantTwice,
                        &at(i),
                        found,
                        "one turn, or a user's between",
                    ));
                }
                _ => {}
            }
        }
        if !needs_assistant {
            return Ok(());
        }
        if !messages.iter().any(|message| message.role == "assistant") {
            return Err(self.problem(
                Code::NoAssistant,
                field,
                "no turn of the assistant",
                "one to be trained",
            ));
        }
        match messages.last() {
            Some(last) if last.role != "assistant" => {
                let found = format!("ends with a turn of `{}`", last.role);
                Err(self.problem(
                    Code::EndsWithUser,
                    field,
                    found,
                    "the assistant's answer at the end",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The roles that templates know.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];
const ROLES_TEXT: &str = "`system`, `user`, `assistant`, `tool` or `developer`";

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(crate) fn shortened(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(40).collect()
}
