//! The loop: prompt in one go, then one token at a time against cached keys and values.

use std::ops::ControlFlow;

use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, Keep, KvCache, OutOfMemory, StepSize,
};
use thiserror::Error;

use crate::sampler::{NotANumber, Sampler, Sampling, SamplingError};

/// Rows of the prompt that go through the model at once; longer prompts go in pieces.
const PROMPT_ROWS_MAX: usize = 512;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Names the random numbers.
    pub seed: u64,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Start from what is left in the cache where the prompt begins the same: quick in a
    /// conversation, but the bits then depend on what was asked before.
    pub reuse_cache: bool,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// This token ended it.
    StopToken(u32),
    /// `max_new_tokens` were generated.
    MaxNewTokens,
    /// The context is full.
    ContextFull,
    /// The caller had enough.
    Caller,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
}

/// Why nothing more can be generated.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum GenerateError {
    /// A setting is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The model gave NaN.
    #[error(transparent)]
    NotANumber(#[from] NotANumber),
    /// A prompt of no tokens.
    #[error("the prompt has no tokens; expected at least one")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {found} tokens; the context holds {context}, one of them new")]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A token of the prompt has no row in the embedding.
    #[error("the prompt has token {token}; the model knows tokens below {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
}

/// A model, an adapter and the memory to generate with them.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    acts: Activations,
    cache: KvCache,
    /// Tokens whose keys and values are in the cache.
    cached: Vec<u32>,
    logits: Vec<f32>,
}

impl<'a> Generator<'a> {
    /// Room for texts of `context` tokens, prompt included; never more than the model was made
    /// for.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(
        decoder: &'a Decoder,
        adapter: Option<&'a Adapter>,
        context: usize,
    ) -> Result<Self, OutOfMemory> {
        let context = context.min(decoder.config().max_position_embeddings).max(2);
        let size = StepSize { tokens_max: context.min(PROMPT_ROWS_MAX), scored_rows_max: 1 };
        Ok(Self {
            decoder,
            adapter,
            acts: Activations::new(decoder.config(), adapter, size, Keep::Nothing)?,
            cache: KvCache::new(decoder.config(), context),
            cached: Vec::new(),
            logits: vec![0.0; decoder.dims().v],
        })
    }

    /// Tokens that fit, prompt included.
    #[must_use]
    pub fn context(&self) -> usize {
        self.cache.capacity()
    }

    /// Continues `prompt`. `on_token` sees each new token at once and may end it.
    ///
    /// # Errors
    /// If a setting or the prompt is wrong, or the model gives NaN.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        let mut sampler = Sampler::new(options.sampling, options.seed)?;
        self.check_prompt(prompt)?;
        if options.max_new_tokens == 0 {
            return Ok(Generated { tokens: Vec::new(), reason: StopReason::MaxNewTokens });
        }
        self.keep_common_start(prompt, options.reuse_cache);
        let mut context = prompt.to_vec();
        let reason = loop {
            self.run(&context);
            let token = sampler.next(&mut self.logits, &context)?;
            if options.stop_ids.contains(&token) {
                break StopReason::StopToken(token);
            }
            context.push(token);
            if on_token(token).is_break() {
                break StopReason::Caller;
            }
            if context.len() - prompt.len() >= options.max_new_tokens {
                break StopReason::MaxNewTokens;
            }
            if context.len() >= self.context() {
                break StopReason::ContextFull;
            }
        };
        Ok(Generated { tokens: context.split_off(prompt.len()), reason })
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<(), GenerateError> {
        let (context, vocab_size) = (self.context(), self.decoder.dims().v);
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(GenerateError::PromptTooLong { found: prompt.len(), context });
        }
        match prompt.iter().find(|&&token| token as usize >= vocab_size) {
            None => Ok(()),
            Some(&token) => Err(GenerateError::UnknownToken { token, vocab_size }),
        }
    }

    /// Keeps what the cache shares with the prompt, less one token: the last must run to give
    /// logits.
    fn keep_common_start(&mut self, prompt: &[u32], reuse: bool) {
        let same = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = if reuse { same.min(prompt.len() - 1) } else { 0 };
        self.cached.truncate(kept);
        self.cache.truncate(kept);
    }

    /// Runs what is not cached yet and leaves the logits after the last token.
    fn run(&mut self, context: &[u32]) {
        let new = &context[self.cached.len()..];
        for tokens in new.chunks(self.acts.size().tokens_max) {
            let sequence = CachedSequence { tokens, cache: &mut self.cache };
            let (acts, logits) = (&mut self.acts, &mut self.logits);
            self.decoder.forward_cached(self.adapter, &mut [sequence], acts, logits);
        }
        self.cached.extend_from_slice(new);
    }
}
