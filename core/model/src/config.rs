//! What a model is: sizes and options, read from `config.json` or from GGUF metadata.
//!
//! One decoder with options covers the families in [`architecture`](crate::architecture); what it
//! does not cover is refused here, before any weight is read. Start at [`ModelConfig`].

mod gguf;
mod hf;
mod hf_rope;
mod keys;
mod options;
mod quantization;
mod rope;
mod write;
mod write_gguf;

use thiserror::Error;

use crate::float8::Float8Storage;
use crate::names::{Linear, ModuleNames, Norm, Role};
use crate::rope::Rope;
pub use hf::{read_classifier_json, read_config_json};
pub use options::{AttentionOptions, Experts, MlpOptions, NormOptions};

/// Why a model's description cannot be used.
#[derive(Debug, Error, PartialEq)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{place}: cannot be read: {cause}")]
    Unreadable {
        /// File.
        place: String,
        /// What the system or the parser said.
        cause: String,
    },
    /// A value of a GGUF file is missing or of the wrong type; the reader's words name all of it.
    #[error("{cause}")]
    Gguf {
        /// What the reader said.
        cause: String,
    },
    /// A needed value is not there.
    #[error("{place}: `{key}` is missing")]
    Missing {
        /// File.
        place: String,
        /// Key.
        key: String,
    },
    /// A value is of the wrong kind or out of range.
    #[error("{place}: `{key}` is {found}; expected {expected}")]
    Wrong {
        /// File.
        place: String,
        /// Key.
        key: String,
        /// Value found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Two values cannot both be true.
    #[error("{place}: {what}")]
    Contradiction {
        /// File.
        place: String,
        /// Both numbers.
        what: String,
    },
    /// The decoder cannot run this yet.
    #[error("{place}: {what} is not available yet\n  hint: {hint}")]
    NotAvailable {
        /// File.
        place: String,
        /// What the model asks for.
        what: String,
        /// What can be done.
        hint: String,
    },
}

/// A decoder's sizes and options, named as in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Where it was read from, for messages.
    pub place: String,
    /// Family: `model_type` of `config.json`, `general.architecture` of GGUF.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added inside the root of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Position p of a windowed layer attends to `(p - window, p]`; `None` to everything before.
    pub sliding_window: Option<usize>,
    /// Options of attention.
    pub attention: AttentionOptions,
    /// Options of the norms.
    pub norms: NormOptions,
    /// Options of the MLP.
    pub mlp: MlpOptions,
    /// The mixture of experts that stands in the place of the MLP, if there is one.
    pub experts: Option<Experts>,
    /// Factor on the vectors of the embedding.
    pub embedding_scale: Option<f32>,
    /// Logits become `cap * tanh(logit / cap)`.
    pub final_soft_cap: Option<f32>,
    /// Whether the embedding is also the output head.
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// First token of every text, when the model names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// What the head says, if it is not the next token.
    pub labels: Option<Labels>,
    /// How weights are scaled that the folder has in floats of eight bits, if it has such.
    pub float8: Option<Float8Storage>,
}

/// The head of a model that classifies whole sequences (`...ForSequenceClassification`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Rows of the head: numbers that a sequence gets.
    pub num_labels: usize,
    /// The head reads the last token that is not this one.
    pub pad_token_id: Option<u32>,
}

/// The same sizes under the letters that kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// `hidden_size`.
    pub c: usize,
    /// `num_hidden_layers`.
    pub l: usize,
    /// `num_attention_heads`.
    pub h: usize,
    /// `num_key_value_heads`.
    pub h_kv: usize,
    /// `head_dim`.
    pub d: usize,
    /// `intermediate_size`.
    pub f: usize,
    /// `vocab_size`.
    pub v: usize,
    /// Rows of the head: `vocab_size`, or the labels of a classifier.
    pub n_out: usize,
    /// Number of experts, E; 0 without experts.
    pub e: usize,
    /// Width of an expert's MLP.
    pub f_expert: usize,
    /// Width of the shared expert's MLP; 0 without one.
    pub f_shared: usize,
}

impl Dims {
    /// Width of all query heads, H D.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.h * self.d
    }

    /// Width of all key (or value) heads, H_kv D.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.h_kv * self.d
    }
}

impl ModelConfig {
    /// The one place where the two vocabularies of sizes meet.
    #[must_use]
    pub fn dims(&self) -> Dims {
        let experts = self.experts.as_ref();
        Dims {
            e: experts.map_or(0, |e| e.num_experts),
            f_expert: experts.map_or(0, |e| e.intermediate_size),
            f_shared: experts.and_then(|e| e.shared_intermediate_size).unwrap_or(0),
            c: self.hidden_size,
            l: self.num_hidden_layers,
            h: self.num_attention_heads,
            h_kv: self.num_key_value_heads,
            d: self.head_dim,
            f: self.intermediate_size,
            v: self.vocab_size,
            n_out: self.labels.map_or(self.vocab_size, |labels| labels.num_labels),
        }
    }

    /// Number of weights.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        let dims = self.dims();
        let head = if self.tie_word_embeddings { 0 } else { dims.n_out };
        let layer = |layer: usize| -> usize {
            let linears = self.linears(layer).into_iter();
            let linears: usize = linears
                .map(|linear| {
                    let [n_out, n_in] = linear.shape(&dims);
                    n_out * n_in + if self.has_bias(linear) { n_out } else { 0 }
                })
                .sum();
            linears + self.norms().iter().map(|norm| norm.width(&dims)).sum::<usize>()
        };
        (0..dims.l).map(layer).sum::<usize>() + (dims.v + head) * dims.c + dims.c
    }

    /// The linear layers of a decoder layer, in the order of the forward pass.
    #[must_use]
    pub fn linears(&self, layer: usize) -> Vec<Linear> {
        let mut linears = match self.attention.is_fused {
            true => vec![Linear::Qkv, Linear::O],
            false => vec![Linear::Q, Linear::K, Linear::V, Linear::O],
        };
        match self.layer_experts(layer) {
            Some(experts) => linears.extend(experts.linears()),
            None if self.mlp.is_fused => linears.extend([Linear::GateUp, Linear::Down]),
            None => linears.extend([Linear::Gate, Linear::Up, Linear::Down]),
        }
        linears
    }

    /// The norms of every decoder layer, in the order of the forward pass.
    #[must_use]
    pub fn norms(&self) -> Vec<Norm> {
        let mut norms = vec![Norm::Input];
        if self.attention.qk_norm {
            norms.extend([Norm::Query, Norm::Key]);
        }
        norms.push(Norm::PostAttention);
        if self.norms.post_norms {
            norms.extend([Norm::PreFeedforward, Norm::PostFeedforward]);
        }
        norms
    }

    /// The norm before the MLP.
    #[must_use]
    pub fn mlp_norm(&self) -> Norm {
        if self.norms.post_norms { Norm::PreFeedforward } else { Norm::PostAttention }
    }

    /// Whether a Hugging Face folder stores this tensor as what is added to 1.
    pub(crate) fn is_norm_offset(&self, role: Role) -> bool {
        self.norms.stored_as_offsets && matches!(role, Role::Norm(..) | Role::FinalNorm)
    }

    /// How modules of experts are named.
    #[must_use]
    pub fn module_names(&self) -> ModuleNames {
        self.experts.as_ref().map_or(ModuleNames::default(), |experts| experts.names)
    }

    /// Whether a linear layer has a bias.
    #[must_use]
    pub fn has_bias(&self, linear: Linear) -> bool {
        match linear {
            Linear::Q | Linear::K | Linear::V | Linear::Qkv => self.attention.qkv_bias,
            Linear::O => self.attention.o_bias,
            Linear::Gate | Linear::Up | Linear::GateUp | Linear::Down => self.mlp.bias,
            Linear::Router
            | Linear::SharedGate
            | Linear::SharedUp
            | Linear::SharedDown
            | Linear::SharedExpertGate
            | Linear::Expert(..) => false,
        }
    }

    /// The experts of a layer; `None` where it has an MLP.
    #[must_use]
    pub fn layer_experts(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer).is_some_and(|on| *on))
    }

    /// How far back a layer looks; `None` for all the way.
    #[must_use]
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.is_windowed(layer))
    }

    /// Whether a layer is one of those that have a window.
    pub(crate) fn is_windowed(&self, layer: usize) -> bool {
        self.attention.windowed_layers.get(layer).is_some_and(|on| *on)
    }

    /// Factor on the scores of attention.
    #[must_use]
    pub fn attention_scale(&self) -> f32 {
        let width = self.attention.query_pre_attn_scalar.unwrap_or(self.head_dim as f64);
        (1.0 / width.sqrt()) as f32
    }

    /// The part of a head that is rotated, R.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        self.attention.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Puts another window in the place of the model's own, in the layers that have one. In a
    /// family whose members may have a window but whose `config.json` switches it off, every layer
    /// gets it. Returns whether the family knows windows at all; if not, nothing changes.
    #[must_use]
    pub fn override_sliding_window(&mut self, window: usize) -> bool {
        use crate::architecture::{AVAILABLE, Windows};
        let knows = |a: &&crate::Architecture| a.model_type == self.model_type;
        let family = AVAILABLE.iter().find(knows);
        if family.is_none_or(|family| family.windows == Windows::Never) {
            return false;
        }
        self.sliding_window = Some(window);
        if !self.attention.windowed_layers.contains(&true) {
            self.attention.windowed_layers = vec![true; self.num_hidden_layers];
        }
        true
    }

    /// Checks that the numbers agree with each other. Readers call it; call it again after
    /// changing a field.
    ///
    /// # Errors
    /// Names both numbers of the first contradiction.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let contradiction =
            |what: String| Err(ConfigError::Contradiction { place: self.place.clone(), what });
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > MAX_SIZE {
                return Err(ConfigError::Wrong {
                    place: self.place.clone(),
                    key: key.to_owned(),
                    found: value.to_string(),
                    expected: format!("a number from 1 to {MAX_SIZE}"),
                });
            }
        }
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if heads % kv != 0 {
            return contradiction(format!(
                "`num_attention_heads` is {heads}, which is not a multiple of \
                 `num_key_value_heads`, {kv}"
            ));
        }
        let rotary_dim = self.rotary_dim();
        if !self.head_dim.is_multiple_of(2) {
            return contradiction(format!(
                "`head_dim` is {}; the rotary embedding needs an even number",
                self.head_dim
            ));
        }
        if rotary_dim == 0 || rotary_dim > self.head_dim || !rotary_dim.is_multiple_of(2) {
            return contradiction(format!(
                "{rotary_dim} elements of a head are rotated, but `head_dim` is {}; expected an \
                 even number up to it",
                self.head_dim
            ));
        }
        if let Some(scalar) = self.attention.query_pre_attn_scalar
            && !(scalar > 0.0 && scalar.is_finite())
        {
            return contradiction(format!(
                "`query_pre_attn_scalar` is {scalar}; expected a positive number"
            ));
        }
        if self.sliding_window == Some(0) {
            return contradiction("`sliding_window` is 0; expected at least 1, or null".to_owned());
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return contradiction(format!(
                "`rms_norm_eps` is {}; expected a small positive number",
                self.rms_norm_eps
            ));
        }
        if self.attention.windowed_layers.len() != self.num_hidden_layers {
            return contradiction(format!(
                "the kinds of {} layers are given, but `num_hidden_layers` is {}",
                self.attention.windowed_layers.len(),
                self.num_hidden_layers
            ));
        }
        for (key, cap) in [
            ("attn_logit_softcapping", self.attention.soft_cap),
            ("final_logit_softcapping", self.final_soft_cap),
        ] {
            if let Some(cap) = cap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
                return contradiction(format!("`{key}` is {cap}; expected a positive number"));
            }
        }
        if let Some(experts) = &self.experts {
            experts.validate(&self.place, self.num_hidden_layers)?;
        }
        self.validate_rope()
    }

    /// Checks that every token the tokenizer can make has a row in the embedding. An embedding
    /// that is padded to more rows is right.
    ///
    /// # Errors
    /// If the tokenizer is larger; with both numbers.
    pub fn check_tokenizer_size(&self, n_tokens: usize) -> Result<(), ConfigError> {
        if n_tokens <= self.vocab_size {
            return Ok(());
        }
        Err(ConfigError::Contradiction {
            place: self.place.clone(),
            what: format!(
                "the tokenizer has {n_tokens} tokens, but the embedding only {} rows \
                 (`vocab_size`)",
                self.vocab_size
            ),
        })
    }
}

/// No size of a real model is near this; it keeps products of two sizes far from overflow.
const MAX_SIZE: usize = 1 << 28;
