//! A row as a record: the layouts that each trainer reads.

use std::path::PathBuf;
use std::sync::Arc;

use forgelm_config::TrainerType;
use forgelm_tokenize::Message;
use serde_json::{Map, Value};

use crate::answers;
use crate::fields::{Fields, kind, shortened};
use crate::problem::{Code, DataProblem, Place};
use crate::source::Row;

/// A row that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The file it came from.
    pub file: Arc<PathBuf>,
    /// The line it begins on, from 1.
    pub line: u64,
    /// What it holds.
    pub kind: RecordKind,
}

impl Record {
    pub(crate) fn place(&self) -> Place<'_> {
        Place { file: &self.file, line: self.line }
    }
}

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKind {
    /// A text, trained whole.
    Text(String),
    /// A conversation, rendered by the model's template.
    Messages(Vec<Message>),
    /// A conversation out of columns: a question, an answer, and the system's text where there is one.
    Turns(Vec<Message>),
    /// A prompt and its completion as plain texts; only the completion is trained.
    PromptCompletion {
        /// What comes first.
        prompt: String,
        /// What is trained.
        completion: String,
    },
    /// A prompt with two answers, of which the first is preferred.
    Preference {
        /// What comes first.
        prompt: Content,
        /// The better answer.
        chosen: Content,
        /// The other one.
        rejected: Content,
    },
    /// An answer that is desirable or not.
    Labelled {
        /// What comes first.
        prompt: Content,
        /// The answer.
        completion: Content,
        /// Whether answers should be like it.
        is_desirable: bool,
    },
    /// A prompt alone, which the model is to answer.
    Prompt {
        /// What comes first.
        prompt: Content,
        /// The other columns, which rewards may read (`gold_answer`, …).
        columns: Map<String, Value>,
    },
}

impl RecordKind {
    /// The conversation, if the record is one.
    #[must_use]
    pub fn conversation(&self) -> Option<&[Message]> {
        match self {
            RecordKind::Messages(messages) | RecordKind::Turns(messages) => Some(messages),
            _ => None,
        }
    }

    /// True if a chat template is needed: there is no other rule for these.
    #[must_use]
    pub fn needs_template(&self) -> bool {
        match self {
            RecordKind::Preference { prompt, .. }
            | RecordKind::Labelled { prompt, .. }
            | RecordKind::Prompt { prompt, .. } => matches!(prompt, Content::Messages(_)),
            _ => false,
        }
    }
}

/// A prompt or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// As plain text, used as it is.
    Text(String),
    /// As turns of a conversation, rendered by the model's template.
    Messages(Vec<Message>),
}

/// Which columns hold what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// `text`.
    Text,
    /// `messages`.
    Messages,
    /// A user's and an assistant's column, and `System` where a row has it.
    Turns {
        /// `User` or `instruction`.
        user: &'static str,
        /// `Assistant`, `output` or `response`.
        assistant: &'static str,
    },
    /// `prompt` and `completion` (or `response`), as texts or as messages.
    PromptCompletion {
        /// `completion` or `response`.
        completion: &'static str,
    },
    /// `chosen` and `rejected`, and `prompt` unless both begin with it.
    Preference,
    /// `prompt`, `completion` and `label`.
    Labelled,
    /// `prompt`.
    Prompt,
}

impl Layout {
    /// What the columns look like, for the evidence.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Layout::Text => "text",
            Layout::Messages => "messages",
            Layout::Turns { .. } => "user and assistant",
            Layout::PromptCompletion { .. } => "prompt and completion",
            Layout::Preference => "preference",
            Layout::Labelled => "labelled",
            Layout::Prompt => "prompt",
        }
    }

    /// Sequences that a record of this layout becomes.
    #[must_use]
    pub fn n_sequences(&self) -> usize {
        if *self == Layout::Preference { 2 } else { 1 }
    }

    /// The layout of a row for a trainer, from the columns that are present.
    pub(crate) fn of(trainer: TrainerType, columns: &Map<String, Value>) -> Option<Layout> {
        let has = |name: &str| columns.contains_key(name);
        match trainer {
            TrainerType::Sft => Layout::of_sft(columns),
            TrainerType::Dpo | TrainerType::Simpo | TrainerType::Orpo => {
                (has("chosen") && has("rejected")).then_some(Layout::Preference)
            }
            TrainerType::Kto => {
                (has("prompt") && has("completion") && has("label")).then_some(Layout::Labelled)
            }
            TrainerType::Grpo => has("prompt").then_some(Layout::Prompt),
        }
    }

    /// `text` wins if neither `User` nor `messages` is there; then `messages`; then a user's and an assistant's
    /// column; then `prompt` and `completion`.
    fn of_sft(columns: &Map<String, Value>) -> Option<Layout> {
        let has = |name: &str| columns.contains_key(name);
        let first = |names: &[&'static str]| names.iter().copied().find(|name| has(name));
        if has("text") && !has("User") && !has("messages") {
            return Some(Layout::Text);
        }
        if has("messages") {
            return Some(Layout::Messages);
        }
        let user = first(&["User", "instruction"]);
        let assistant = first(&["Assistant", "output", "response"]);
        if let (Some(user), Some(assistant)) = (user, assistant) {
            return Some(Layout::Turns { user, assistant });
        }
        let completion = first(&["completion", "response"])?;
        has("prompt").then_some(Layout::PromptCompletion { completion })
    }
}

/// The columns that a trainer's rows need.
pub(crate) fn expected_columns(trainer: TrainerType) -> &'static str {
    match trainer {
        TrainerType::Sft => {
            "for `sft` one of `text`; `messages`; (`User` or `instruction`) and (`Assistant`, `output` or \
             `response`); `prompt` and `completion`"
        }
        TrainerType::Dpo | TrainerType::Simpo | TrainerType::Orpo => {
            "`chosen` and `rejected`, with `prompt` unless both begin with it"
        }
        TrainerType::Kto => "for `kto` `prompt`, `completion` and `label`",
        TrainerType::Grpo => "for `grpo` `prompt`",
    }
}

/// What the columns look like, and which trainer fits.
pub(crate) fn describe_columns(columns: &Map<String, Value>) -> String {
    let has = |name: &str| columns.contains_key(name);
    let (what, trainer) = if has("chosen") && has("rejected") {
        ("preference pairs", Some("dpo"))
    } else if has("completion") && has("label") {
        ("binary feedback", Some("kto"))
    } else if has("messages") {
        ("conversations", Some("sft"))
    } else if has("prompt") && (has("completion") || has("response")) {
        ("prompts with completions", Some("sft"))
    } else if has("prompt") {
        ("prompts alone", Some("grpo"))
    } else if Layout::of_sft(columns).is_some() {
        let what = if has("text") { "texts" } else { "instructions with answers" };
        (what, Some("sft"))
    } else {
        ("an unknown layout", None)
    };
    let names: Vec<String> =
        columns.keys().take(5).map(|name| format!("`{}`", shortened(name))).collect();
    let more = if columns.len() > 5 { ", …" } else { "" };
    let fits =
        trainer.map_or(String::new(), |trainer| format!("; `trainer_type: {trainer}` would fit"));
    format!("columns {}{more}, which look like {what}{fits}", names.join(", "))
}

/// What decides whether a row can be used, beside its layout.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    pub clean_text: bool,
    /// Only the assistant's turns are trained, so there must be one at the end.
    pub needs_assistant: bool,
}

/// Reads a row by its layout.
pub(crate) fn read(
    row: &Row<'_>,
    columns: &Map<String, Value>,
    layout: &Layout,
    rules: Rules,
) -> Result<RecordKind, DataProblem> {
    let reader = Fields { row, columns, rules };
    match layout {
        Layout::Text => reader.text("text").map(RecordKind::Text),
        Layout::Messages => {
            reader.messages("messages", rules.needs_assistant).map(RecordKind::Messages)
        }
        Layout::Turns { user, assistant } => {
            let mut messages = Vec::with_capacity(3);
            if let Some(system) = reader.system()? {
                messages.push(Message::new("system", system));
            }
            messages.push(Message::new("user", reader.text(user)?));
            messages.push(Message::new("assistant", reader.text(assistant)?));
            Ok(RecordKind::Turns(messages))
        }
        Layout::PromptCompletion { completion } => reader.prompt_completion(completion),
        Layout::Preference => answers::preference(&reader),
        Layout::Labelled => answers::labelled(&reader),
        Layout::Prompt => answers::prompt(&reader),
    }
}

/// The columns of a row.
pub(crate) fn columns<'r>(row: &'r Row<'_>) -> Result<&'r Map<String, Value>, DataProblem> {
    row.value.as_object().ok_or_else(|| {
        DataProblem::row(Code::Row, &row.place, "", kind(&row.value), "an object with named fields")
    })
}
