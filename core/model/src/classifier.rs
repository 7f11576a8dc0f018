//! A model that gives whole sequences numbers, one for each label.

use std::sync::Arc;

use forgelm_kernels_api::{Compute, Ops, Segment};

use crate::activations::{Activations, Keep, MemoryPlan, OutOfMemory, StepSize};
use crate::config::{Labels, ModelConfig};
use crate::decoder::{Decoder, PackedInput, Pass};
use crate::open::{LoadError, OpenModel};

/// A decoder whose head reads the end of a sequence
/// (transformers: `...ForSequenceClassification`).
#[derive(Debug)]
pub struct Classifier {
    decoder: Decoder,
    labels: Labels,
}

impl Classifier {
    /// Reads and packs the weights of a model from [`OpenModel::open_classifier`].
    ///
    /// # Errors
    /// If the weights are not those of the configuration.
    ///
    /// # Panics
    /// If the model is no classifier: a bug of the caller.
    pub fn load(open: &OpenModel, ops: Arc<dyn Ops>, compute: Compute) -> Result<Self, LoadError> {
        let labels = open.config().labels.expect("opened as a classifier");
        Ok(Self { decoder: open.load(ops, compute)?, labels })
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Numbers that a sequence gets.
    #[must_use]
    pub fn num_labels(&self) -> usize {
        self.labels.num_labels
    }

    /// Every buffer that scoring a sequence of this length takes, by name and size.
    #[must_use]
    pub fn memory_plan(&self, n_tokens: usize) -> MemoryPlan {
        let (config, engine) = (self.config(), self.decoder.engine());
        Activations::memory_plan(config, None, step_size(n_tokens), Keep::Nothing, engine)
    }

    /// Buffers for sequences up to this length.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn activations(&self, n_tokens: usize) -> Result<Activations, OutOfMemory> {
        Activations::new(&self.decoder, None, step_size(n_tokens), Keep::Nothing)
    }

    /// The logits of one sequence. Sequences are scored one by one, so that no score depends on
    /// what is scored beside it.
    ///
    /// Shapes: `logits` [labels] written, `tokens` [T], each below V, read.
    ///
    /// # Panics
    /// If the sequence is empty, has a token outside the vocabulary or is longer than `acts`.
    pub fn score(&self, tokens: &[u32], acts: &mut Activations, logits: &mut [f32]) {
        let positions: Vec<u32> = (0..).take(tokens.len()).collect();
        let batch = PackedInput {
            tokens,
            positions: &positions,
            segments: &[Segment { start: 0, len: tokens.len() }],
            row_keys: &[],
        };
        self.decoder.forward(&Pass { adapter: None, batch, dropout: None }, acts);
        self.decoder.logits(None, acts, &[self.last_row(tokens)], logits);
    }

    /// The row that the head reads: the last token that is not padding, the first one where all
    /// are, as in transformers.
    fn last_row(&self, tokens: &[u32]) -> u32 {
        let pad = self.labels.pad_token_id;
        let is_text = |token: &u32| Some(*token) != pad;
        let last = tokens.iter().rposition(is_text).unwrap_or(0);
        u32::try_from(last).expect("sequences are shorter than 2^32 tokens")
    }
}

fn step_size(n_tokens: usize) -> StepSize {
    StepSize { tokens_max: n_tokens, scored_rows_max: 1 }
}
