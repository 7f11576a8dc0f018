//! What a model is: sizes and options, read from `config.json` or from GGUF metadata.
//!
//! One decoder with options covers the families in [`architecture`](crate::architecture); what it
//! does not cover is refused here, before any weight is read. Start at [`ModelConfig`].

mod gguf;
mod hf;
mod write;

use thiserror::Error;

use crate::rope::{Rope, RopeScaling};
pub use hf::read_config_json;

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
    /// Position p attends to `(p - window, p]`; `None` to everything before.
    pub sliding_window: Option<usize>,
    /// Whether the embedding is also the output head.
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// First token of every text, when the model names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
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
        Dims {
            c: self.hidden_size,
            l: self.num_hidden_layers,
            h: self.num_attention_heads,
            h_kv: self.num_key_value_heads,
            d: self.head_dim,
            f: self.intermediate_size,
            v: self.vocab_size,
        }
    }

    /// Number of weights.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        let Dims { c, l, f, v, .. } = self.dims();
        let attention = 2 * c * (self.dims().q_width() + self.dims().kv_width());
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        l * (attention + 3 * c * f + 2 * c) + heads * v * c + c
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
        if !self.head_dim.is_multiple_of(2) {
            return contradiction(format!(
                "`head_dim` is {}; the rotary embedding needs an even number",
                self.head_dim
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
        self.validate_rope()
    }

    fn validate_rope(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, found: String, expected: &str| {
            Err(ConfigError::Wrong {
                place: self.place.clone(),
                key: key.to_owned(),
                found,
                expected: expected.to_owned(),
            })
        };
        if !(self.rope.theta > 1.0 && self.rope.theta.is_finite()) {
            return wrong("rope_theta", self.rope.theta.to_string(), "a number above 1");
        }
        match &self.rope.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } | RopeScaling::Yarn { factor, .. } => {
                if !(*factor >= 1.0 && factor.is_finite()) {
                    return wrong("rope_scaling.factor", factor.to_string(), "at least 1");
                }
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                if !(*factor >= 1.0 && factor.is_finite()) {
                    return wrong("rope_scaling.factor", factor.to_string(), "at least 1");
                }
                if !(high_freq_factor > low_freq_factor && *low_freq_factor > 0.0) {
                    return wrong(
                        "rope_scaling.high_freq_factor",
                        high_freq_factor.to_string(),
                        &format!("above `low_freq_factor`, {low_freq_factor}"),
                    );
                }
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != self.head_dim / 2 {
                    return wrong(
                        "rope_freqs.weight",
                        format!("{} numbers", divisors.len()),
                        &format!("{}, half of head_dim", self.head_dim / 2),
                    );
                }
                if let Some(bad) = divisors.iter().find(|d| !(**d > 0.0 && d.is_finite())) {
                    return wrong("rope_freqs.weight", bad.to_string(), "positive numbers");
                }
            }
        }
        Ok(())
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
