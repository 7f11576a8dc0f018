//! A model that is asked something: how it reads, and what it answers.

use crate::memory;
use forgelm_generate::{GenerateError, GenerateOptions, Generator, Request};
use forgelm_model::{Adapter, Decoder, Engine, MemoryPlan, ModelConfig};
use forgelm_tokenize::{ChatTemplate, Message, RenderOptions, Tokenizer};
use std::ops::ControlFlow;

/// Prompts of each lane that are asked together: between these it is seen that work should stop.
const ROUNDS_TOGETHER: usize = 4;

/// How a model reads and speaks.
#[derive(Clone, Copy)]
pub(crate) struct Language<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) template: Option<&'a ChatTemplate>,
    /// What the template takes for the present, in seconds since 1970.
    pub(crate) template_now: i64,
    /// Tokens that end an answer.
    pub(crate) stop_ids: &'a [u32],
}

/// A model, what was trained beside it, and its language.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) adapter: Option<&'a Adapter>,
    pub(crate) language: Language<'a>,
    pub(crate) is_stopped: &'a dyn Fn() -> bool,
}

/// Why there are no answers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum AnswerError {
    /// The run should stop.
    #[error("stopped as asked")]
    Stopped,
    /// There is no memory for them.
    #[error("{0}")]
    NoRoom(String),
    /// A prompt cannot be continued.
    #[error("prompt {prompt}: {source}")]
    Prompt {
        /// Which, counted from 0.
        prompt: usize,
        /// Why.
        source: GenerateError,
    },
    /// The tokens are no text.
    #[error("{0}")]
    NoText(String),
}

impl Subject<'_> {
    /// Tokens that the model was made for.
    pub(crate) fn positions(&self) -> usize {
        self.decoder.config().max_position_embeddings
    }

    /// Tokens of a text as it stands, with what the tokenizer puts before texts.
    pub(crate) fn text(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokenizer = self.language.tokenizer;
        let encoding = tokenizer.encode_with_specials(text).map_err(|error| error.to_string())?;
        Ok([tokenizer.prefix_ids(), &encoding.ids].concat())
    }

    /// Tokens of a conversation that the model is to answer.
    pub(crate) fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, String> {
        let Language { tokenizer, template, template_now, .. } = self.language;
        let template = template.ok_or("the model has no chat template")?;
        let options = RenderOptions {
            add_generation_prompt: true,
            now: Some(template_now),
            ..RenderOptions::default()
        };
        let chat = tokenizer.encode_chat(template, messages, &options);
        chat.map(|chat| chat.ids).map_err(|error| error.to_string())
    }

    /// The answer to each prompt, as many at once as `n_lanes`. An answer does not depend on the
    /// others.
    pub(crate) fn answers(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        n_lanes: usize,
    ) -> Result<Vec<String>, AnswerError> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = longest.saturating_add(options.max_new_tokens).min(self.positions());
        let n_lanes = prompts.len().min(n_lanes).max(1);
        let what = format!("{n_lanes} answers at once, each of {context} tokens with its prompt,");
        check_room_of(self.decoder, &what, |config, engine| {
            Generator::memory_plan(config, self.adapter, context, n_lanes, engine)
        })
        .map_err(AnswerError::NoRoom)?;
        let generator = Generator::with_lanes(self.decoder, self.adapter, context, n_lanes);
        let mut generator = generator.map_err(|error| AnswerError::NoRoom(error.to_string()))?;
        let mut answers = Vec::with_capacity(prompts.len());
        for together in prompts.chunks(ROUNDS_TOGETHER * n_lanes) {
            let first = answers.len();
            answers.extend(self.together(&mut generator, (first, together), options)?);
        }
        Ok(answers)
    }

    /// The answers to prompts that are asked together, of which `first` is the first.
    fn together(
        &self,
        generator: &mut Generator<'_>,
        (first, prompts): (usize, &[Vec<u32>]),
        options: &GenerateOptions,
    ) -> Result<Vec<String>, AnswerError> {
        let requests: Vec<Request<'_>> =
            prompts.iter().map(|prompt| Request { prompt, options }).collect();
        let mut goes_on = |_, _| match (self.is_stopped)() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let generated = generator.generate_all(&requests, &mut goes_on);
        if (self.is_stopped)() {
            return Err(AnswerError::Stopped);
        }
        let generated = generated.map_err(|error| AnswerError::Prompt {
            prompt: first + error.request,
            source: error.source,
        })?;
        let text = |tokens: &[u32]| self.language.tokenizer.decode_without_specials(tokens);
        let texts = generated.iter().map(|generated| text(&generated.tokens));
        texts.collect::<Result<_, _>>().map_err(|error| AnswerError::NoText(error.to_string()))
    }
}

/// Refuses what a model is to do where there is no memory for its buffers.
pub(crate) fn check_room_of(
    decoder: &Decoder,
    what: &str,
    plan: impl FnOnce(&ModelConfig, Engine<'_>) -> MemoryPlan,
) -> Result<(), String> {
    check_room(what, plan(decoder.config(), decoder.engine()).total_bytes())
}

/// Refuses what the system has no memory for: a process that takes more than that is killed.
pub(crate) fn check_room(what: &str, n_bytes: usize) -> Result<(), String> {
    match memory::refused(n_bytes as u64, 0) {
        None => Ok(()),
        Some(room) => Err(format!(
            "{what} need {n_bytes} bytes of memory, and {} leaves {}",
            room.ceiling.name(),
            room.bytes
        )),
    }
}
