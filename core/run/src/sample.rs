//! One question of the held-out data, answered before and after training, so that a person sees
//! what changed.

use crate::error::RunError;
use crate::event::{Sample, When};
use forgelm_data::{Content, Record, RecordKind};
use forgelm_generate::{GenerateOptions, Generator, Sampling};
use forgelm_model::{Adapter, Decoder};
use forgelm_tokenize::{ChatTemplate, Message, RenderOptions, Tokenizer};
use std::borrow::Cow;
use std::ops::ControlFlow;

/// Longest answer shown, in tokens.
const ANSWER_TOKENS_MAX: usize = 64;
/// Longest conversation that is asked, in tokens.
const CONTEXT_MAX: usize = 1024;

/// A question and its answer in the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    messages: Vec<Message>,
    expected: String,
}

impl Question {
    /// The first conversation among `records` that a user's turn opens and an assistant's turn
    /// answers; `None` when there is none.
    #[must_use]
    pub fn first<'a>(records: impl IntoIterator<Item = &'a Record>) -> Option<Self> {
        records.into_iter().find_map(|record| {
            let messages = &conversation(&record.kind)?;
            let answer = messages.iter().position(|message| message.role == "assistant")?;
            let asked = &messages[..answer];
            asked.iter().any(|message| message.role == "user").then(|| Self {
                messages: asked.to_vec(),
                expected: messages[answer].content.clone(),
            })
        })
    }

    /// The model's greedy answer.
    ///
    /// # Errors
    /// If the question cannot be rendered or the model fails.
    pub fn ask(
        &self,
        when: When,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        voice: &Voice<'_>,
    ) -> Result<Sample, RunError> {
        let options = RenderOptions {
            add_generation_prompt: true,
            now: voice.now,
            ..RenderOptions::default()
        };
        let prompt = voice.tokenizer.encode_chat(voice.template, &self.messages, &options)?;
        let options = GenerateOptions {
            max_new_tokens: ANSWER_TOKENS_MAX,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop_ids: voice.stop_ids.to_vec(),
            reuse_cache: false,
        };
        let mut generator = Generator::new(decoder, adapter, CONTEXT_MAX)?;
        let generated =
            generator.generate(&prompt.ids, &options, &mut |_| ControlFlow::Continue(()))?;
        let answer = voice.tokenizer.decode_without_specials(&generated.tokens)?;
        let question = self.messages.last().map_or("", |message| &message.content);
        Ok(Sample {
            when,
            question: one_line(question),
            expected: one_line(&self.expected),
            answer: one_line(&answer),
        })
    }
}

/// The conversation of a record, with the answer that is preferred or desirable.
fn conversation(kind: &RecordKind) -> Option<Cow<'_, [Message]>> {
    let (prompt, answer) = match kind {
        RecordKind::Preference { prompt, chosen, .. } => (prompt, chosen),
        RecordKind::Labelled { prompt, completion, is_desirable: true } => (prompt, completion),
        other => return other.conversation().map(Cow::Borrowed),
    };
    match (prompt, answer) {
        (Content::Messages(prompt), Content::Messages(answer)) => {
            Some(Cow::Owned([prompt.as_slice(), answer].concat()))
        }
        _ => None,
    }
}

/// How a model speaks.
#[derive(Clone, Copy)]
pub struct Voice<'a> {
    /// Text to tokens and back.
    pub tokenizer: &'a Tokenizer,
    /// Conversations to text.
    pub template: &'a ChatTemplate,
    /// Tokens that end an answer.
    pub stop_ids: &'a [u32],
    /// What the template takes for the present.
    pub now: Option<i64>,
}

/// Text for one line of a terminal: control characters and line ends become spaces.
fn one_line(text: &str) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\n\n b\u{1b}[31m c\t"), "a b [31m c");
    }
}
