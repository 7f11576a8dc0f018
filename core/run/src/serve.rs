//! A model that answers and scores for a host program: loaded once, with adapters that are attached and
//! detached between calls.

use crate::environment::Environment;
use crate::error::RunError;
use crate::event::Observer;
use crate::model::{self, FoundModel, LoadedModel, ModelRequest};
pub use forgelm_generate::Sampling;
use forgelm_generate::{GenerateOptions, Generator, Request, ScoreRequest, Scorer, StopReason};
use forgelm_model::{Adapter, LoadedAdapter};
pub use forgelm_tokenize::Message;
use forgelm_tokenize::{ControlFilter, Detokenizer, RenderOptions};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;

/// Longest answer, in tokens, where nothing else is asked for.
const ANSWER_TOKENS: usize = 256;

/// A loaded model.
pub struct Served {
    found: FoundModel,
    loaded: LoadedModel,
    stop_ids: Vec<u32>,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Messages(Vec<Message>),
    /// A text as it stands.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// How answers are chosen, for all prompts of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerOptions {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Of the random numbers; prompt i has `seed + i`.
    pub seed: u64,
    /// Texts that grow at once.
    pub batch_size: usize,
    /// What the template takes for the present, in seconds since 1970.
    pub now: i64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its text, without control tokens.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub n_prompt_tokens: usize,
    /// Why it ended: `stop`, `length`, `context` or `caller`.
    pub finish_reason: &'static str,
}

/// Log-probabilities of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Natural logarithm of the probability of token i + 1 after the tokens before it.
    pub logprobs: Vec<f32>,
}

impl Served {
    /// Finds and loads a model.
    ///
    /// # Errors
    /// If it cannot be found, understood or held in memory.
    pub fn load(
        request: &ModelRequest,
        env: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self, RunError> {
        let found = model::find(request, env, observer)?;
        let loaded = model::load(&found, request)?;
        let stop_ids = model::stop_ids(&found.tokenizer, found.template.as_ref());
        Ok(Self { found, loaded, stop_ids })
    }

    /// Puts an adapter on the model, in place of the one that is there.
    ///
    /// # Errors
    /// If the folder is no adapter of this model; nothing changes then.
    pub fn attach(&mut self, dir: &Path) -> Result<(), RunError> {
        let LoadedAdapter { mut adapter, .. } = Adapter::load(dir, self.found.open.config())?;
        self.loaded.decoder.refresh(&mut adapter);
        self.loaded.adapter = Some(adapter);
        Ok(())
    }

    /// Takes the adapter off. Without one nothing happens.
    pub fn detach(&mut self) {
        self.loaded.adapter = None;
    }

    /// What is loaded.
    #[must_use]
    pub fn info(&self) -> Value {
        let config = self.loaded.decoder.config();
        json!({
            "name": self.found.resolved.revision.repo_id,
            "sha256": self.loaded.sha256,
            "n_params": config.n_parameters(),
            "vocab_size": config.vocab_size,
            "context": config.max_position_embeddings,
            "has_chat_template": self.found.template.is_some(),
            "has_adapter": self.loaded.adapter.is_some(),
            "kernels": self.loaded.decoder.ops().name(),
            "compute_dtype": model::compute_name(self.loaded.decoder.compute()),
            "n_threads": self.loaded.decoder.ops().n_threads(),
        })
    }

    /// Answers every prompt, `options.batch_size` at once. `on_piece` gets each piece of text with the
    /// number of its prompt as it comes, and may end that answer. An answer does not depend on the
    /// others.
    ///
    /// # Errors
    /// If a prompt cannot be used (nothing has run then), memory is refused or the model fails.
    pub fn answer(
        &self,
        prompts: &[Prompt],
        options: &AnswerOptions,
        on_piece: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Answer>, RunError> {
        let tokens = prompts.iter().map(|prompt| self.tokens(prompt, options.now));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>()?;
        let per_prompt = (0..).zip(&tokens).map(|(i, _)| GenerateOptions {
            max_new_tokens: options.max_new_tokens,
            sampling: options.sampling,
            seed: options.seed.wrapping_add(i),
            stop_ids: self.stop_ids.clone(),
            reuse_cache: false,
        });
        let per_prompt: Vec<GenerateOptions> = per_prompt.collect();
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let context = longest.saturating_add(options.max_new_tokens).max(2);
        let n_lanes = options.batch_size.min(prompts.len());
        let adapter = self.loaded.adapter.as_ref();
        let mut generator = Generator::with_lanes(&self.loaded.decoder, adapter, context, n_lanes)?;
        let requests: Vec<Request<'_>> = tokens
            .iter()
            .zip(&per_prompt)
            .map(|(prompt, options)| Request { prompt, options })
            .collect();
        let mut writers: Vec<Writer<'_>> =
            prompts.iter().map(|_| Writer::new(&self.found)).collect();
        let mut failure = None;
        let generated =
            generator.generate_all(&requests, &mut |n, token| match writers[n].push(token) {
                Ok(piece) if piece.is_empty() => ControlFlow::Continue(()),
                Ok(piece) => on_piece(n, &piece),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            });
        if let Some(error) = failure {
            return Err(error);
        }
        let generated = generated.map_err(|error| RunError::Generate(error.source))?;
        let mut answers = Vec::with_capacity(prompts.len());
        for (n, (generated, writer)) in generated.into_iter().zip(writers).enumerate() {
            let (text, rest) = writer.finish()?;
            if !rest.is_empty() {
                // The answer has ended already.
                let _ = on_piece(n, &rest);
            }
            let finish_reason = match generated.reason {
                StopReason::StopToken(_) => "stop",
                StopReason::MaxNewTokens => "length",
                StopReason::ContextFull => "context",
                StopReason::Caller => "caller",
            };
            let n_prompt_tokens = tokens[n].len();
            answers.push(Answer { text, tokens: generated.tokens, n_prompt_tokens, finish_reason });
        }
        Ok(answers)
    }

    /// The tokens of a prompt, as [`Served::answer`] reads it.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn encode(&self, prompt: &Prompt, now: i64) -> Result<Vec<u32>, RunError> {
        self.tokens(prompt, now)
    }

    /// The text of tokens, without control tokens.
    ///
    /// # Errors
    /// If a token is unknown.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, RunError> {
        Ok(self.found.tokenizer.decode_without_specials(tokens)?)
    }

    /// The log-probability of each token of each text but its first. `goes_on` is asked before each
    /// pass.
    ///
    /// # Errors
    /// If a text cannot be used, memory is refused, the model gives no number, or `goes_on` says no.
    pub fn score(
        &self,
        prompts: &[Prompt],
        now: i64,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Scores>, RunError> {
        let tokens = prompts.iter().map(|prompt| self.tokens(prompt, now));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>()?;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(1);
        let all: Vec<u32> = (0..).take(longest.saturating_sub(1)).collect();
        let requests: Vec<ScoreRequest<'_>> = tokens
            .iter()
            .map(|tokens| ScoreRequest { tokens, rows: &all[..tokens.len() - 1] })
            .collect();
        let mut scorer = Scorer::new(&self.loaded.decoder, self.loaded.adapter.as_ref());
        let logprobs = scorer.score(&requests, goes_on)?;
        let scores = tokens.into_iter().zip(logprobs);
        Ok(scores.map(|(tokens, logprobs)| Scores { tokens, logprobs }).collect())
    }

    /// A prompt as tokens, of which there is at least one and each is known.
    fn tokens(&self, prompt: &Prompt, now: i64) -> Result<Vec<u32>, RunError> {
        let tokenizer = &self.found.tokenizer;
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Text(text) => {
                let encoding = tokenizer.encode(text)?;
                [tokenizer.prefix_ids(), &encoding.ids].concat()
            }
            Prompt::Messages(messages) => {
                let template = self.found.template.as_ref().ok_or_else(|| {
                    RunError::Request("`messages`: the model has no chat template".to_owned())
                })?;
                let options = RenderOptions {
                    add_generation_prompt: true,
                    now: Some(now),
                    ..RenderOptions::default()
                };
                tokenizer.encode_chat(template, messages, &options)?.ids
            }
        };
        let config = self.loaded.decoder.config();
        let (n, context) = (tokens.len(), config.max_position_embeddings);
        if n == 0 || n > context {
            let text = format!("a prompt has {n} tokens; expected 1 to {context}");
            return Err(RunError::Request(text));
        }
        match tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
            None => Ok(tokens),
            Some(token) => Err(RunError::Request(format!(
                "a prompt has token {token}; the model knows tokens below {}",
                config.vocab_size
            ))),
        }
    }
}

/// An answer's text in the making.
struct Writer<'t> {
    detokenizer: Detokenizer<'t>,
    filter: ControlFilter,
    text: String,
}

impl<'t> Writer<'t> {
    fn new(found: &'t FoundModel) -> Self {
        Self {
            detokenizer: Detokenizer::new(&found.tokenizer),
            filter: ControlFilter::new(),
            text: String::new(),
        }
    }

    fn push(&mut self, token: u32) -> Result<String, RunError> {
        let piece = self.filter.push(&self.detokenizer.push(token)?);
        self.text.push_str(&piece);
        Ok(piece)
    }

    /// The whole text, and the last piece of it.
    fn finish(mut self) -> Result<(String, String), RunError> {
        let rest = self.filter.push(&self.detokenizer.finish()?);
        Ok((self.text + &rest, rest))
    }
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: ANSWER_TOKENS,
            sampling: Sampling::GREEDY,
            seed: 0,
            batch_size: 8,
            now: 0,
        }
    }
}
