//! Log-probabilities of texts that are there already: whole texts in one pass, several at once.

use forgelm_kernels_api::Segment;
use forgelm_model::{
    Activations, Adapter, Decoder, Engine, Keep, MemoryPlan, ModelConfig, OutOfMemory, PackedInput,
    Pass, Scored, StepSize,
};
use thiserror::Error;

/// Rows that go through the model at once, unless one text has more.
const ROWS_TOGETHER: usize = 512;

/// A text and which of its tokens are scored.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRequest<'r> {
    /// Its tokens; at most as many as the model has positions.
    pub tokens: &'r [u32],
    /// Rows that are scored, ascending: row t predicts token t + 1.
    pub rows: &'r [u32],
}

/// Why texts cannot be scored.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ScoreError {
    /// The system refused the memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The model gave no number.
    #[error("text {request}: the model gives no finite number for token {token}")]
    NotFinite {
        /// Which text, counted from 0.
        request: usize,
        /// Place of the token in it, counted from 0.
        token: u32,
    },
    /// The caller had enough.
    #[error("stopped as asked")]
    Stopped,
}

/// A model, an adapter and the memory to score with them, made for the longest text so far.
///
/// **Invariant:** a text's numbers do not depend on what else is scored: each row of a product is
/// formed alone, and attention is by sequence (`a_score_does_not_depend_on_its_batch`).
pub struct Scorer<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    acts: Option<Activations>,
}

impl<'a> Scorer<'a> {
    /// Without memory yet.
    #[must_use]
    pub fn new(decoder: &'a Decoder, adapter: Option<&'a Adapter>) -> Self {
        Self { decoder, adapter, acts: None }
    }

    /// Natural logarithms of the probabilities that the model gives to the scored tokens, for each
    /// text in the order of its rows. `goes_on` is asked before each pass.
    ///
    /// # Errors
    /// If there is no memory, the model gives no number, or `goes_on` says no.
    ///
    /// # Panics
    /// If a row has no next token, or a token is unknown: bugs in the caller.
    pub fn score(
        &mut self,
        requests: &[ScoreRequest<'_>],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Vec<f32>>, ScoreError> {
        let mut scores = Vec::with_capacity(requests.len());
        while scores.len() < requests.len() {
            if !goes_on() {
                return Err(ScoreError::Stopped);
            }
            let left = &requests[scores.len()..];
            let first = scores.len();
            scores.extend(self.pass(&left[..n_together(left)])?);
            for (i, of_text) in scores.iter().enumerate().skip(first) {
                if let Some(at) = of_text.iter().position(|logp| !logp.is_finite()) {
                    let token = requests[i].rows[at] + 1;
                    return Err(ScoreError::NotFinite { request: i, token });
                }
            }
        }
        Ok(scores)
    }

    /// One pass over the weights.
    fn pass(&mut self, requests: &[ScoreRequest<'_>]) -> Result<Vec<Vec<f32>>, ScoreError> {
        let (mut tokens, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for request in requests {
            let start = tokens.len();
            segments.push(Segment { start, len: request.tokens.len() });
            positions.extend(0..request.tokens.len() as u32);
            for &row in request.rows {
                rows.push(start as u32 + row);
                labels.push(request.tokens[row as usize + 1]);
            }
            tokens.extend_from_slice(request.tokens);
        }
        let mut logps = vec![0.0; rows.len()];
        if !rows.is_empty() {
            let (decoder, adapter) = (self.decoder, self.adapter);
            let acts = self
                .activations(StepSize { tokens_max: tokens.len(), scored_rows_max: rows.len() })?;
            let batch = PackedInput {
                tokens: &tokens,
                positions: &positions,
                segments: &segments,
                row_keys: &[],
            };
            let pass = Pass { adapter, batch, dropout: None };
            decoder.forward(&pass, acts);
            decoder.logprobs(&pass, acts, Scored { rows: &rows, labels: &labels }, &mut logps);
        }
        let mut rest = logps.as_slice();
        let of_text = |request: &ScoreRequest<'_>| {
            let (of_text, after) = rest.split_at(request.rows.len());
            rest = after;
            of_text.to_vec()
        };
        Ok(requests.iter().map(of_text).collect())
    }

    /// Every buffer of scoring texts of up to so many tokens, by name and size.
    #[must_use]
    pub fn memory_plan(
        config: &ModelConfig,
        adapter: Option<&Adapter>,
        n_tokens: usize,
        engine: Engine<'_>,
    ) -> MemoryPlan {
        let size = size_for(n_tokens);
        let acts = Activations::memory_plan(config, adapter, size, Keep::Nothing, engine);
        let mut plan = MemoryPlan::default();
        plan.add("activations of the scores", acts.total_bytes());
        plan
    }

    /// Bytes that are still to be had before texts of so many tokens can be scored.
    #[must_use]
    pub fn still_needed(&self, n_tokens: usize) -> usize {
        let has_room = |acts: &Activations| acts.size().tokens_max >= n_tokens;
        if self.acts.as_ref().is_some_and(has_room) {
            return 0;
        }
        let (config, engine) = (self.decoder.config(), self.decoder.engine());
        Self::memory_plan(config, self.adapter, n_tokens, engine).total_bytes()
    }

    /// Buffers that hold at least this.
    fn activations(&mut self, size: StepSize) -> Result<&mut Activations, OutOfMemory> {
        let made = self.acts.take().filter(|acts| {
            let made = acts.size();
            made.tokens_max >= size.tokens_max && made.scored_rows_max >= size.scored_rows_max
        });
        let acts = match made {
            Some(acts) => acts,
            None => {
                let size = size_for(size.tokens_max);
                Activations::new(self.decoder, self.adapter, size, Keep::Nothing)?
            }
        };
        Ok(self.acts.insert(acts))
    }
}

/// What is made for texts of so many tokens.
fn size_for(n_tokens: usize) -> StepSize {
    let n_rows = n_tokens.max(ROWS_TOGETHER);
    StepSize { tokens_max: n_rows, scored_rows_max: n_rows }
}

/// The first few texts that fit into one pass together; at least one.
fn n_together(requests: &[ScoreRequest<'_>]) -> usize {
    let mut n_rows = 0;
    let fits = requests.iter().take_while(|request| {
        n_rows += request.tokens.len();
        n_rows <= ROWS_TOGETHER
    });
    fits.count().max(1)
}
