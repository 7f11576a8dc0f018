//! A conversation to token ids, with what is to be trained.

use std::ops::Range;

use crate::encode::Encoding;
use crate::template::{ChatTemplate, Message, RenderOptions, SpanSearch, TemplateError};
use crate::tokenizer::{TokenizeError, Tokenizer};

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChatEncoding {
    /// The rendered text.
    pub text: String,
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id the bytes `start..end` of the text.
    pub offsets: Vec<(usize, usize)>,
    /// For each id whether the assistant said it, end-of-turn token included.
    pub assistant: Vec<bool>,
    /// How often a user's text looked like a special token and was kept as plain text.
    pub suppressed: usize,
}

/// What can go wrong between a conversation and its tokens.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// Text that looks like a special token, where it cannot be kept apart from the template's own.
    #[error(
        "message {message}: {place} holds the text of a special token, and the chat template changes or hides where it goes\n  hint: remove that text from the row"
    )]
    SpecialText {
        /// Index of the message.
        message: usize,
        /// What part of it.
        place: &'static str,
    },
}

impl Tokenizer {
    /// Renders and encodes a conversation. Special tokens come from the template only; text of a user that
    /// looks like one stays plain text and is counted.
    ///
    /// A token counts as the assistant's if any of its bytes do.
    ///
    /// # Errors
    /// What the template or the tokenizer says, and [`ChatError::SpecialText`].
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<ChatEncoding, ChatError> {
        self.refuse_hidden_specials(messages)?;
        let any_special = messages.iter().any(|message| self.holds_special_text(&message.content));
        let spans = match options.spans {
            SpanSearch::None if any_special => SpanSearch::Content,
            asked => asked,
        };
        let rendered = template.render(messages, &RenderOptions { spans, ..options.clone() })?;
        let is_hidden = |&&message: &&usize| self.holds_special_text(&messages[message].content);
        if let Some(&message) = rendered.lost.iter().find(is_hidden) {
            return Err(ChatError::SpecialText { message, place: "`content`" });
        }
        let Encoding { ids, offsets, suppressed } =
            self.encode_mixed(&rendered.text, &rendered.content_ranges())?;
        let assistant = mask(&offsets, &rendered.assistant_ranges());
        Ok(ChatEncoding { text: rendered.text, ids, offsets, assistant, suppressed })
    }

    /// Roles and further fields are printed by the template in places that nobody knows.
    fn refuse_hidden_specials(&self, messages: &[Message]) -> Result<(), ChatError> {
        for (i, message) in messages.iter().enumerate() {
            if self.holds_special_text(&message.role) {
                return Err(ChatError::SpecialText { message: i, place: "`role`" });
            }
            let fields = &message.extra;
            if fields
                .iter()
                .any(|(key, value)| self.holds_special_text(key) || self.json_holds_special(value))
            {
                return Err(ChatError::SpecialText {
                    message: i,
                    place: "a field beside `content`",
                });
            }
        }
        Ok(())
    }

    fn json_holds_special(&self, value: &serde_json::Value) -> bool {
        match value {
            serde_json::Value::String(text) => self.holds_special_text(text),
            serde_json::Value::Array(items) => {
                items.iter().any(|item| self.json_holds_special(item))
            }
            serde_json::Value::Object(map) => map
                .iter()
                .any(|(key, value)| self.holds_special_text(key) || self.json_holds_special(value)),
            _ => false,
        }
    }
}

/// For each token whether its bytes meet one of the ranges, both sorted by start.
fn mask(offsets: &[(usize, usize)], ranges: &[Range<usize>]) -> Vec<bool> {
    let mut first = 0;
    let mut mask = Vec::with_capacity(offsets.len());
    for &(start, end) in offsets {
        while ranges.get(first).is_some_and(|range| range.end <= start) {
            first += 1;
        }
        mask.push(ranges.get(first).is_some_and(|range| range.start < end && start < range.end));
    }
    mask
}
