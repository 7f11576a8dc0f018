//! The loop: prompts in large pieces, then one token a text and step against cached keys and
//! values.

use std::ops::ControlFlow;

use forgelm_kernels_api::{Buffer, Draw, Drawn, MemoryRefused, Precision, SliceMut};
use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, Engine, Keep, KvCache, MemoryPlan, ModelConfig,
    OutOfMemory, StepSize,
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
    /// conversation, but the bits then depend on what was asked before. For one text at a time:
    /// with several, which lane a request gets depends on the others.
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

/// A text to continue and how.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// Its tokens so far, at least one.
    pub prompt: &'r [u32],
    /// What to generate.
    pub options: &'r GenerateOptions,
}

/// Why one of several requests cannot be served.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("request {request}: {source}")]
pub struct RequestError {
    /// Which, counted from 0.
    pub request: usize,
    /// Why.
    pub source: GenerateError,
}

/// Sees texts as they grow.
pub trait Watch {
    /// Whether it looks at logits: where they lie on a device they are copied for it.
    fn sees_logits(&self) -> bool {
        true
    }

    /// What the next token of a request is chosen from, `n_new` being generated.
    ///
    /// Shapes: `logits` [V], read.
    fn logits(&mut self, request: usize, n_new: usize, logits: &[f32]);

    /// A new token of a request; a break ends that request.
    fn token(&mut self, request: usize, token: u32) -> ControlFlow<()>;
}

/// Who sees tokens alone.
struct OnToken<'a>(&'a mut dyn FnMut(usize, u32) -> ControlFlow<()>);

impl Watch for OnToken<'_> {
    fn sees_logits(&self) -> bool {
        false
    }

    fn logits(&mut self, _request: usize, _n_new: usize, _logits: &[f32]) {}

    fn token(&mut self, request: usize, token: u32) -> ControlFlow<()> {
        self.0(request, token)
    }
}

/// A model, an adapter and the memory to generate with them.
///
/// Several texts grow at once in lanes, each with a cache of its own: a step runs every lane's new
/// tokens through the model together, so that each weight is read once for all of them. A lane
/// whose text has ended takes the next request at once.
///
/// **Invariant:** a request's tokens do not depend on what else runs: each row of a product is
/// formed alone, attention is by sequence, a prompt is cut at places of its own, and random numbers
/// are a function of (seed, n-th token) (`a_request_does_not_depend_on_its_batch`).
pub struct Generator<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    acts: Activations,
    lanes: Vec<Lane>,
    beginning: Option<Beginning>,
    /// Of each lane that ran [n lanes, V].
    logits: Buffer,
    /// Rows of a prompt that run at once.
    chunk: usize,
}

/// A beginning that prompts share.
struct Beginning {
    tokens: Vec<u32>,
    cache: KvCache,
}

/// Room for one text.
struct Lane {
    cache: KvCache,
    /// Tokens whose keys and values are in the cache.
    cached: Vec<u32>,
    text: Option<Text>,
}

/// A text in the making.
struct Text {
    /// Which request.
    request: usize,
    /// Prompt and what was generated.
    tokens: Vec<u32>,
    n_prompt: usize,
    sampler: Sampler,
}

impl<'a> Generator<'a> {
    /// Room for a text of `context` tokens, prompt included; never more than the model was made
    /// for.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(
        decoder: &'a Decoder,
        adapter: Option<&'a Adapter>,
        context: usize,
    ) -> Result<Self, OutOfMemory> {
        Self::with_lanes(decoder, adapter, context, 1)
    }

    /// Room for `n_lanes` texts at once (0 means 1), each of `context` tokens.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn with_lanes(
        decoder: &'a Decoder,
        adapter: Option<&'a Adapter>,
        context: usize,
        n_lanes: usize,
    ) -> Result<Self, OutOfMemory> {
        let (context, n_lanes, size) = sizes(decoder.config(), context, n_lanes);
        let lane =
            || Lane { cache: KvCache::new(decoder, context), cached: Vec::new(), text: None };
        let n_logits = n_lanes * decoder.dims().v;
        let logits = decoder.ops().allocate(n_logits, Precision::Exact);
        let logits = logits.map_err(|MemoryRefused { bytes }| OutOfMemory {
            buffer: "logits of the generation".to_owned(),
            bytes,
            total: bytes,
        });
        Ok(Self {
            decoder,
            adapter,
            acts: Activations::new(decoder, adapter, size, Keep::Nothing)?,
            lanes: (0..n_lanes).map(|_| lane()).collect(),
            beginning: None,
            logits: logits?,
            chunk: context.min(PROMPT_ROWS_MAX),
        })
    }

    /// Every buffer of [`Generator::with_lanes`], by name and size.
    #[must_use]
    pub fn memory_plan(
        config: &ModelConfig,
        adapter: Option<&Adapter>,
        context: usize,
        n_lanes: usize,
        engine: Engine<'_>,
    ) -> MemoryPlan {
        let (context, n_lanes, size) = sizes(config, context, n_lanes);
        let dims = config.dims();
        let mut plan = MemoryPlan::default();
        let acts = Activations::memory_plan(config, adapter, size, Keep::Nothing, engine);
        plan.add("activations of the generation", acts.total_bytes());
        let cache = KvCache::planned_bytes(config, context, engine);
        plan.add("keys and values of the generation", n_lanes * cache);
        plan.add("logits of the generation", n_lanes * dims.v * size_of::<f32>());
        plan
    }

    /// Tokens that fit, prompt included.
    #[must_use]
    pub fn context(&self) -> usize {
        self.lanes[0].cache.capacity()
    }

    /// Texts that grow at once.
    #[must_use]
    pub fn n_lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Memory of the caches, in bytes.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.cache.n_bytes()).sum()
    }

    /// Runs a beginning once for all prompts that have it and more: they go on from there. An empty one
    /// is none. The bits of an answer depend on the beginning that is shared, which is where its prompt
    /// is cut; still on no other prompt. Its keys and values take the memory of another lane.
    ///
    /// # Errors
    /// As for a prompt.
    pub fn share(&mut self, beginning: &[u32]) -> Result<(), GenerateError> {
        self.beginning = None;
        if beginning.is_empty() {
            return Ok(());
        }
        self.check_prompt(beginning)?;
        let mut cache = KvCache::new(self.decoder, beginning.len());
        for tokens in beginning.chunks(self.chunk) {
            let logits = self.logits.part_mut(0..self.decoder.dims().v);
            let mut sequences = [CachedSequence { tokens, cache: &mut cache }];
            self.decoder.forward_cached(self.adapter, &mut sequences, &mut self.acts, logits);
        }
        self.beginning = Some(Beginning { tokens: beginning.to_vec(), cache });
        Ok(())
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
        let request = Request { prompt, options };
        let generated = self.generate_all(&[request], &mut |_, token| on_token(token));
        let mut generated = generated.map_err(|error| error.source)?;
        Ok(generated.swap_remove(0))
    }

    /// Continues every prompt, as many at once as there are lanes; the rest follow as lanes become
    /// free. `on_token` sees each new token with the number of its request, and may end that
    /// request.
    ///
    /// # Errors
    /// If a setting or a prompt is wrong (nothing has run then), or the model gives NaN.
    pub fn generate_all(
        &mut self,
        requests: &[Request<'_>],
        on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>, RequestError> {
        self.generate_watched(requests, &mut OnToken(on_token))
    }

    /// As [`Generator::generate_all`]; `watch` sees the logits before each choice too.
    ///
    /// # Errors
    /// As [`Generator::generate_all`].
    pub fn generate_watched(
        &mut self,
        requests: &[Request<'_>],
        watch: &mut dyn Watch,
    ) -> Result<Vec<Generated>, RequestError> {
        let texts = requests.iter().enumerate().map(|(n, request)| {
            self.text(n, request).map_err(|source| RequestError { request: n, source })
        });
        let mut waiting = texts.collect::<Result<Vec<_>, _>>()?.into_iter();
        let nothing = Generated { tokens: Vec::new(), reason: StopReason::MaxNewTokens };
        let mut generated = vec![nothing; requests.len()];
        for lane in &mut self.lanes {
            lane.text = None;
        }
        loop {
            for lane in self.lanes.iter_mut().filter(|lane| lane.text.is_none()) {
                // Nothing was asked of those: their answers are right as they are.
                let asked = |text: &Text| requests[text.request].options.max_new_tokens > 0;
                let Some(text) = waiting.find(asked) else { break };
                let reuse = requests[text.request].options.reuse_cache;
                lane.begin(text, reuse, self.beginning.as_ref());
            }
            if self.lanes.iter().all(|lane| lane.text.is_none()) {
                return Ok(generated);
            }
            let ran = self.run();
            let drawn = if watch.sees_logits() { None } else { self.draw(&ran) };
            for (row, lane) in ran.into_iter().enumerate() {
                let drawn = drawn.as_ref().map(|drawn| drawn[row]);
                if let Some((n, done)) = self.extend((row, drawn), lane, requests, watch)? {
                    generated[n] = done;
                }
            }
        }
    }

    /// A request that can be served.
    fn text(&self, n: usize, request: &Request<'_>) -> Result<Text, GenerateError> {
        let sampler = Sampler::new(request.options.sampling, request.options.seed)?;
        self.check_prompt(request.prompt)?;
        let (tokens, n_prompt) = (request.prompt.to_vec(), request.prompt.len());
        Ok(Text { request: n, tokens, n_prompt, sampler })
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

    /// One pass over the weights: what every lane has new, as far as there is room. Leaves the
    /// logits after the last token of each lane that ran, and gives the lanes in this order.
    fn run(&mut self) -> Vec<usize> {
        // Rows of each lane. Texts that grow first: they take one row each, and one piece of a
        // prompt always fits beside them.
        let mut rows = vec![0; self.lanes.len()];
        let mut room = self.acts.size().tokens_max;
        for growing in [true, false] {
            for (rows, lane) in rows.iter_mut().zip(&self.lanes) {
                let n_new = lane.n_new().min(self.chunk);
                if n_new <= room && growing == (n_new == 1) {
                    *rows = n_new;
                    room -= n_new;
                }
            }
        }
        let (mut ran, mut sequences) = (Vec::new(), Vec::new());
        for (n, (lane, rows)) in self.lanes.iter_mut().zip(rows).enumerate() {
            let Lane { cache, cached, text: Some(text) } = lane else { continue };
            if rows > 0 {
                let tokens = &text.tokens[cached.len()..cached.len() + rows];
                cached.extend_from_slice(tokens);
                sequences.push(CachedSequence { tokens, cache });
                ran.push(n);
            }
        }
        let logits = self.logits.part_mut(0..ran.len() * self.decoder.dims().v);
        self.decoder.forward_cached(self.adapter, &mut sequences, &mut self.acts, logits);
        ran
    }

    /// The next token of every lane that ran, where the kernel library draws them and all of them
    /// are drawn by one rule.
    fn draw(&mut self, ran: &[usize]) -> Option<Vec<Drawn>> {
        let ops = self.decoder.ops().as_ref();
        if !ops.draws_tokens() {
            return None;
        }
        let rule_of = |lane: &Lane| lane.choosing().and_then(|text| text.sampler.rule());
        let rule = rule_of(&self.lanes[*ran.first()?])?;
        if ran.iter().any(|&lane| rule_of(&self.lanes[lane]) != Some(rule)) {
            return None;
        }
        let texts = self.lanes.iter_mut().enumerate().filter(|(lane, _)| ran.contains(lane));
        let texts = texts.filter_map(|(_, lane)| lane.text.as_mut());
        let draws: Vec<Draw<'_>> = texts.map(|text| text.sampler.draw_next(&text.tokens)).collect();
        let logits = self.logits.part_mut(0..draws.len() * self.decoder.dims().v);
        Some(ops.draw_tokens(logits, &draws, rule))
    }

    /// The next token of a lane: what was drawn, or chosen by row `row` of the logits, unless its
    /// prompt has not run to its end. Gives the text and its request when it has ended.
    fn extend(
        &mut self,
        (row, drawn): (usize, Option<Drawn>),
        lane: usize,
        requests: &[Request<'_>],
        watch: &mut dyn Watch,
    ) -> Result<Option<(usize, Generated)>, RequestError> {
        let (v, context) = (self.decoder.dims().v, self.context());
        let lane = &mut self.lanes[lane];
        if lane.choosing().is_none() {
            return Ok(None);
        }
        let Some(text) = &mut lane.text else { return Ok(None) };
        let options = requests[text.request].options;
        let chosen = match drawn {
            Some(drawn) => drawn.map_err(|token| NotANumber { token }),
            None => {
                let mut logits = self.logits.part_mut(row * v..(row + 1) * v);
                let mut copied;
                let logits = match logits.reborrow() {
                    SliceMut::Host(values) => values,
                    elsewhere @ SliceMut::Device(_) => {
                        copied = elsewhere.as_slice().to_host().into_owned();
                        &mut copied[..]
                    }
                };
                watch.logits(text.request, text.tokens.len() - text.n_prompt, logits);
                text.sampler.next(logits, &text.tokens)
            }
        };
        let token =
            chosen.map_err(|error| RequestError { request: text.request, source: error.into() })?;
        let reason = if options.stop_ids.contains(&token) {
            Some(StopReason::StopToken(token))
        } else {
            text.tokens.push(token);
            if watch.token(text.request, token).is_break() {
                Some(StopReason::Caller)
            } else if text.tokens.len() - text.n_prompt >= options.max_new_tokens {
                Some(StopReason::MaxNewTokens)
            } else if text.tokens.len() >= context {
                Some(StopReason::ContextFull)
            } else {
                None
            }
        };
        let ended = reason.and_then(|reason| Some((reason, lane.text.take()?)));
        Ok(ended.map(|(reason, mut text)| {
            let tokens = text.tokens.split_off(text.n_prompt);
            (text.request, Generated { tokens, reason })
        }))
    }
}

/// Context, lanes and the largest pass that are asked for.
fn sizes(config: &ModelConfig, context: usize, n_lanes: usize) -> (usize, usize, StepSize) {
    let n_lanes = n_lanes.max(1);
    let context = context.min(config.max_position_embeddings).max(2);
    // A piece of one prompt always fits beside one token of every other lane.
    let tokens_max = context.min(PROMPT_ROWS_MAX) + n_lanes - 1;
    (context, n_lanes, StepSize { tokens_max, scored_rows_max: n_lanes })
}

impl Lane {
    /// The text whose next token is to be chosen: all of it has run.
    fn choosing(&self) -> Option<&Text> {
        self.text.as_ref().filter(|text| text.tokens.len() == self.cached.len())
    }

    /// Tokens that have not run yet.
    fn n_new(&self) -> usize {
        self.text.as_ref().map_or(0, |text| text.tokens.len() - self.cached.len())
    }

    /// Takes a text. Keeps what the cache shares with its prompt, less one token: the last must
    /// run to give logits. Or goes on from a beginning, if that is more.
    fn begin(&mut self, text: Text, reuse: bool, beginning: Option<&Beginning>) {
        let same = self.cached.iter().zip(&text.tokens).take_while(|(a, b)| a == b).count();
        let kept = if reuse { same.min(text.tokens.len() - 1) } else { 0 };
        self.cached.truncate(kept);
        self.cache.truncate(kept);
        if let Some(Beginning { tokens, cache }) = beginning
            && (kept + 1..text.tokens.len()).contains(&tokens.len())
            && text.tokens.starts_with(tokens)
        {
            self.cache.begin_as(cache, tokens.len());
            self.cached.clone_from(tokens);
        }
        self.text = Some(text);
    }
}

#[cfg(test)]
mod tests {
    use super::{Beginning, GenerateOptions, Generator, Sampling};
    use forgelm_kernels_api::Compute;
    use forgelm_kernels_reference::Reference;
    use forgelm_model::{ModelFiles, OpenModel};
    use std::ops::ControlFlow;
    use std::path::Path;
    use std::sync::Arc;

    /// With keys and values of something else the answer is another: they are not computed again.
    #[test]
    fn a_shared_beginning_is_not_run_again() {
        let folder =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/golden/models/tiny-llama");
        let open = OpenModel::open(&ModelFiles::Folder(Path::new(folder).to_owned())).unwrap();
        let decoder = open.load(Arc::new(Reference), Compute::F32).unwrap();
        let options = GenerateOptions {
            max_new_tokens: 12,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop_ids: Vec::new(),
            reuse_cache: false,
        };
        let (shared, others): (Vec<u32>, Vec<u32>) = ((40..60).collect(), (300..320).collect());
        let prompt = [&shared[..], &[7]].concat();
        let mut generator = Generator::new(&decoder, None, 64).unwrap();
        let answer = |generator: &mut Generator<'_>| {
            generator.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        let right = answer(&mut generator);
        generator.share(&shared).unwrap();
        assert_eq!(answer(&mut generator), right);
        generator.share(&others).unwrap();
        assert_eq!(answer(&mut generator), right, "the prompt does not begin so");
        let cache = generator.beginning.take().unwrap().cache;
        generator.beginning = Some(Beginning { tokens: shared, cache });
        assert_ne!(answer(&mut generator), right);
    }
}
