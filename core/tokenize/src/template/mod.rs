//! Chat templates: a conversation to the text that the model was trained on.
//!
//! Templates are Jinja, as Hugging Face writes them, and run here without trust: no files, no environment,
//! no clock, and a budget of work. What was rendered comes with spans, so that a later stage knows which
//! characters the assistant wrote and which characters any user wrote.
//!
//! The engine charges fuel for strings, loops, calls, ranges and everything that walks a list; for lists that are
//! added see `growth`.
//!
//! Limit: lists that hold themselves twice, again and again, are stopped where they are printed or written as
//! JSON, not where they are compared or turned into text by `~` and `string`.

mod functions;
mod generation;
mod growth;
mod json;
mod spans;

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

pub use spans::{Span, SpanKind};

use crate::tokenizer::NamedTemplate;

/// Longest template source, in bytes. The longest real one seen has 20 thousand.
const MAX_SOURCE_BYTES: usize = 1024 * 1024;

/// Work that every rendering may do, in the engine's units: one for an instruction, one for about 64 bytes.
/// Real conversations need a few thousand; this much is used up in a few milliseconds.
const FUEL_BASE: u64 = 50_000;

/// Further work for each message, for templates that look at each message several times.
const FUEL_PER_MESSAGE: u64 = 500;

/// Nesting of calls, blocks and values; the engine's own default would need more stack than a thread has
/// in a debug build.
const RECURSION_LIMIT: usize = 120;

const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// Further fields, handed to the template as they are (`name`, `tool_calls`, …).
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A message with a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into(), extra: serde_json::Map::new() }
    }
}

/// The strings a template needs from its tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TemplateTokens {
    /// Text of the BOS token, or empty.
    pub bos: String,
    /// Text of the EOS token, or empty.
    pub eos: String,
    /// Text of the padding token, or empty.
    pub pad: String,
    /// Text of the unknown token, or empty.
    pub unk: String,
    /// Texts of all special tokens: one that directly follows an assistant's text ends its turn.
    pub special: Vec<String>,
}

/// How to render.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RenderOptions {
    /// End with the start of an assistant's turn, for generation.
    pub add_generation_prompt: bool,
    /// Which spans to find; each kind costs at least one more rendering.
    pub spans: SpanSearch,
    /// What the template takes for the present, in seconds since 1970, UTC. A template that asks for the
    /// date fails without it.
    pub now: Option<i64>,
    /// Further variables (`tools`, `enable_thinking`, …).
    pub variables: BTreeMap<String, serde_json::Value>,
}

/// Which spans a rendering looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpanSearch {
    /// None: [`Rendered::spans`] stays empty.
    #[default]
    None,
    /// The contents of messages.
    Content,
    /// The contents of messages and the assistant's turns.
    Assistant,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Where things are in it, by start; spans of different kinds may overlap.
    pub spans: Vec<Span>,
    /// Messages whose content the template changed so much that it could not be found in the text, or left out.
    pub lost: Vec<usize>,
}

impl Rendered {
    /// The byte ranges that the assistant wrote, end-of-turn token included.
    #[must_use]
    pub fn assistant_ranges(&self) -> Vec<std::ops::Range<usize>> {
        let of_assistant = self.spans.iter().filter(|span| span.kind == SpanKind::Assistant);
        of_assistant.map(|span| span.start..span.end).collect()
    }

    /// The byte ranges that came out of messages.
    #[must_use]
    pub fn content_ranges(&self) -> Vec<std::ops::Range<usize>> {
        let of_content =
            self.spans.iter().filter(|span| matches!(span.kind, SpanKind::Content { .. }));
        of_content.map(|span| span.start..span.end).collect()
    }
}

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// There is no template.
    #[error(
        "the tokenizer has no chat template\n  hint: use a model that has one, or rows of plain `text`"
    )]
    None,
    /// There are several templates, and none was chosen that exists.
    #[error("{found}; expected one of {choices}\n  hint: set `chat_template:` to the name of one", choices = choices.join(", "))]
    Choose {
        /// What was asked for.
        found: String,
        /// The names there are.
        choices: Vec<String>,
    },
    /// The source is longer than any real one.
    #[error("chat template of {found} bytes; expected at most {MAX_SOURCE_BYTES}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// The source is not a template.
    #[error("chat template:{line}: {reason}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template called `raise_exception`.
    #[error("chat template:{line}: the template refuses the conversation: {message}")]
    Raised {
        /// The line, from 1.
        line: usize,
        /// What the template says.
        message: String,
    },
    /// The template did more work than any real one needs.
    #[error(
        "chat template:{line}: the template does too much work (an endless loop, or text that grows without limit)"
    )]
    TooMuchWork {
        /// The line, from 1.
        line: usize,
    },
    /// The template failed.
    #[error("chat template:{line}: {reason}")]
    Failed {
        /// The line, from 1.
        line: usize,
        /// What the engine says.
        reason: String,
    },
    /// An assistant's text cannot be found in the rendered text.
    #[error(
        "message {message}: the chat template changes the assistant's text, so the tokens to train on cannot be found\n  \
         hint: mark them in the template with {{% generation %}} and {{% endgeneration %}}, or set `data.train_on: all`"
    )]
    AssistantLost {
        /// Index of the message.
        message: usize,
    },
}

/// Chooses among named templates: by name, or the only one, or the one called `default`.
///
/// # Errors
/// [`TemplateError::None`] and [`TemplateError::Choose`].
pub fn choose_template<'t>(
    templates: &'t [NamedTemplate],
    name: Option<&str>,
) -> Result<&'t NamedTemplate, TemplateError> {
    let found = match (name, templates) {
        (_, []) => return Err(TemplateError::None),
        (None, [only]) => Some(only),
        (name, _) => templates.iter().find(|template| template.name == name.unwrap_or("default")),
    };
    found.ok_or_else(|| TemplateError::Choose {
        found: name
            .map_or("several chat templates".to_owned(), |name| format!("chat template `{name}`")),
        choices: templates.iter().map(|template| format!("`{}`", template.name)).collect(),
    })
}

/// A compiled chat template; shared by reference between threads.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
    source: String,
    marks_generation: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TemplateError::TooLong`] and [`TemplateError::Syntax`].
    pub fn compile(source: &str, tokens: TemplateTokens) -> Result<ChatTemplate, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLong { found: source.len() });
        }
        let (with_markers, marks_generation) = generation::mark(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| engine_error(&e))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_recursion_limit(RECURSION_LIMIT);
        functions::install(&mut environment);
        let guarded = growth::guard(&with_markers);
        environment.add_template_owned(NAME, guarded).map_err(|e| engine_error(&e))?;
        Ok(ChatTemplate { environment, tokens, source: source.to_owned(), marks_generation })
    }

    /// The source as it was given.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True if the template says itself what the assistant wrote, with `{% generation %}`.
    #[must_use]
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders a conversation.
    ///
    /// With [`SpanSearch::Assistant`], a span of kind `Assistant` is what lies between `{% generation %}` and
    /// `{% endgeneration %}`; in a template without these tags it is the content of each assistant message
    /// and the special token that ends the turn: the first special token after the content, other than the
    /// BOS token, with at most white space between.
    ///
    /// # Errors
    /// [`TemplateError::Raised`], [`TemplateError::TooMuchWork`], [`TemplateError::Failed`], and with spans
    /// [`TemplateError::AssistantLost`].
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Rendered, TemplateError> {
        spans::render(self, messages, options)
    }

    /// The special token that ends an assistant's turn, found by rendering a short conversation.
    #[must_use]
    pub fn end_of_turn(&self) -> Option<String> {
        let messages = [Message::new("user", "a"), Message::new("assistant", "b")];
        let options = RenderOptions {
            spans: SpanSearch::Assistant,
            now: Some(0),
            ..RenderOptions::default()
        };
        let rendered = self.render(&messages, &options).ok()?;
        let range = rendered.assistant_ranges().pop()?;
        let text = rendered.text.get(range)?;
        self.tokens.special.iter().find(|special| text.ends_with(special.as_str())).cloned()
    }

    /// Renders with contents given apart from the messages; `markers` are what the generation tags print.
    fn render_text(
        &self,
        messages: &[Message],
        contents: &[std::borrow::Cow<'_, str>],
        markers: (char, char),
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let listed: Vec<Value> = messages
            .iter()
            .zip(contents)
            .map(|(message, content)| message_value(message, content))
            .collect();
        let n_bytes: usize = contents.iter().map(|content| content.len()).sum();
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Value::from(listed)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("bos_token", Value::from(self.tokens.bos.as_str())),
            ("eos_token", Value::from(self.tokens.eos.as_str())),
            ("pad_token", Value::from(self.tokens.pad.as_str())),
            ("unk_token", Value::from(self.tokens.unk.as_str())),
            (generation::OPEN, Value::from(markers.0.to_string())),
            (generation::CLOSE, Value::from(markers.1.to_string())),
        ];
        if let Some(now) = options.now {
            context.push((functions::NOW, Value::from(now)));
        }
        let variables =
            options.variables.iter().map(|(name, value)| (name.as_str(), json::to_value(value)));
        context.extend(variables);
        let context: Value = context.into_iter().collect::<BTreeMap<_, _>>().into();
        let fuel = FUEL_BASE + FUEL_PER_MESSAGE * messages.len() as u64 + n_bytes as u64;
        functions::render_with_fuel(&self.environment, NAME, context, fuel)
            .map_err(|e| engine_error(&e))
    }
}

fn message_value(message: &Message, content: &str) -> Value {
    let mut fields = serde_json::Map::with_capacity(message.extra.len() + 2);
    fields.insert("role".to_owned(), message.role.clone().into());
    fields.insert("content".to_owned(), content.into());
    for (key, value) in &message.extra {
        fields.insert(key.clone(), value.clone());
    }
    json::to_value(&serde_json::Value::Object(fields))
}

/// The engine's error as ours; what the template raised itself comes with its own message.
fn engine_error(error: &minijinja::Error) -> TemplateError {
    let line = error.line().unwrap_or(1);
    if let Some(message) = functions::raised(error) {
        return TemplateError::Raised { line, message };
    }
    let reason = || match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::TooMuchWork { line },
        ErrorKind::SyntaxError => TemplateError::Syntax { line, reason: reason() },
        _ => TemplateError::Failed { line, reason: reason() },
    }
}
