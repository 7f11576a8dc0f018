//! A conversation with a model. Reading lines and printing answers is the program's business.

use crate::error::RunError;
use crate::model::{self, FoundModel, LoadedModel};
use forgelm_generate::{GenerateOptions, Generator, Sampling, StopReason};
use forgelm_tokenize::{ControlFilter, Detokenizer, Message, RenderOptions};
use std::ops::ControlFlow;

/// Pairs of question and answer that the model sees again.
const HISTORY_PAIRS_MAX: usize = 50;
/// Longest conversation, in tokens, if the model takes as many.
const CONTEXT_MAX: usize = 8192;

/// How answers are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatSettings {
    /// System prompt.
    pub system: Option<String>,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Seed of the sampling; each turn has its own random numbers.
    pub seed: u64,
    /// What the template takes for the present, in seconds since 1970.
    pub now: i64,
}

/// A conversation in progress.
pub struct Conversation<'a> {
    found: &'a FoundModel,
    generator: Generator<'a>,
    stop_ids: Vec<u32>,
    settings: ChatSettings,
    history: Vec<Message>,
    n_turns: u64,
}

impl<'a> Conversation<'a> {
    /// A conversation that has not begun.
    ///
    /// # Errors
    /// If there is no memory for its keys and values.
    pub fn new(
        found: &'a FoundModel,
        loaded: &'a LoadedModel,
        settings: ChatSettings,
    ) -> Result<Self, RunError> {
        let adapter = loaded.adapter.as_ref();
        Ok(Self {
            generator: Generator::new(&loaded.decoder, adapter, CONTEXT_MAX)?,
            stop_ids: model::stop_ids(&found.tokenizer, found.template.as_ref()),
            found,
            settings,
            history: Vec::new(),
            n_turns: 0,
        })
    }

    /// How answers are chosen.
    #[must_use]
    pub fn settings(&self) -> &ChatSettings {
        &self.settings
    }

    /// How answers are chosen, to be changed.
    pub fn settings_mut(&mut self) -> &mut ChatSettings {
        &mut self.settings
    }

    /// Forgets every turn.
    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// The conversation so far, the system prompt first.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let system = self.settings.system.as_ref().map(|text| Message::new("system", text));
        system.into_iter().chain(self.history.iter().cloned()).collect()
    }

    /// Answers `text`. `on_piece` gets each piece of the answer as it comes, without control
    /// sequences; the whole answer is returned and remembered.
    ///
    /// # Errors
    /// If the conversation cannot be rendered or the model fails; it is then as before.
    pub fn answer(
        &mut self,
        text: &str,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<String, RunError> {
        let first = self.history.len().saturating_sub(2 * HISTORY_PAIRS_MAX);
        self.history.drain(..first);
        self.history.push(Message::new("user", text));
        let answer = self.generate(on_piece);
        match &answer {
            Ok(answer) => self.history.push(Message::new("assistant", answer)),
            Err(_) => {
                self.history.pop();
            }
        }
        answer
    }

    fn generate(&mut self, on_piece: &mut dyn FnMut(&str)) -> Result<String, RunError> {
        let prompt = self.prompt()?;
        let temperature = self.settings.temperature;
        let sampling = if temperature > 0.0 {
            Sampling { temperature, top_k: 50, top_p: 0.9, repetition_penalty: 1.1, adaptive: None }
        } else {
            Sampling::GREEDY
        };
        self.n_turns += 1;
        let options = GenerateOptions {
            max_new_tokens: self.settings.max_new_tokens,
            sampling,
            seed: self.settings.seed.wrapping_add(self.n_turns),
            stop_ids: self.stop_ids.clone(),
            reuse_cache: true,
        };
        let mut answer = Answer {
            detokenizer: Detokenizer::new(&self.found.tokenizer),
            filter: ControlFilter::new(),
            text: String::new(),
            failure: None,
        };
        let generated = self
            .generator
            .generate(&prompt, &options, &mut |token| answer.push(token, on_piece))?;
        if let Some(error) = answer.failure {
            return Err(error);
        }
        let rest = answer.filter.push(&answer.detokenizer.finish()?);
        on_piece(&rest);
        let mut text = answer.text + &rest;
        if generated.reason == StopReason::ContextFull {
            let note = " [the context is full; /reset starts anew]";
            on_piece(note);
            text.push_str(note);
        }
        Ok(text)
    }

    /// The conversation as tokens, ready for an answer.
    fn prompt(&self) -> Result<Vec<u32>, RunError> {
        let messages = self.messages();
        let tokenizer = &self.found.tokenizer;
        let Some(template) = &self.found.template else {
            let lines = messages.iter().map(|m| format!("{}: {}\n", m.role, m.content));
            let text = lines.collect::<String>() + "assistant: ";
            let encoding = tokenizer.encode(&text)?;
            return Ok([tokenizer.prefix_ids(), &encoding.ids].concat());
        };
        let options = RenderOptions {
            add_generation_prompt: true,
            now: Some(self.settings.now),
            ..RenderOptions::default()
        };
        Ok(tokenizer.encode_chat(template, &messages, &options)?.ids)
    }
}

/// An answer in the making.
struct Answer<'t> {
    detokenizer: Detokenizer<'t>,
    filter: ControlFilter,
    text: String,
    failure: Option<RunError>,
}

impl Answer<'_> {
    fn push(&mut self, token: u32, on_piece: &mut dyn FnMut(&str)) -> ControlFlow<()> {
        match self.detokenizer.push(token) {
            Ok(piece) => {
                let piece = self.filter.push(&piece);
                on_piece(&piece);
                self.text.push_str(&piece);
                ControlFlow::Continue(())
            }
            Err(error) => {
                self.failure = Some(error.into());
                ControlFlow::Break(())
            }
        }
    }
}
