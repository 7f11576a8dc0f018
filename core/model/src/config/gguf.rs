//! The metadata of a GGUF file of the `llama` architecture.

use forgelm_artifact::gguf::{GgufError, GgufFile};
use forgelm_tensor::dequantize;

use super::{ConfigError, ModelConfig};
use crate::architecture::{AVAILABLE, available_names, what_is_missing};
use crate::names::Role;
use crate::rope::{Rope, RopeScaling, yarn_attention_factor};

impl ModelConfig {
    /// Reads the metadata.
    ///
    /// # Errors
    /// If a key is missing, of the wrong type or contradicts another, or the architecture is not
    /// available.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ConfigError> {
        let keys = Keys { place: file.path().display().to_string(), file };
        keys.check_architecture()?;
        let hidden_size = keys.size("embedding_length")?;
        let heads = keys.size("attention.head_count")?;
        let head_dim = match keys.optional("attention.key_length")? {
            Some(given) => given,
            None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(keys.contradiction(format!(
                    "`llama.embedding_length` is {hidden_size}, which is not a multiple of \
                     `llama.attention.head_count`, {heads}"
                )));
            }
        };
        for (key, expected) in
            [("rope.dimension_count", head_dim), ("attention.value_length", head_dim)]
        {
            if let Some(found) = keys.optional(key)?.filter(|found| *found != expected) {
                return Err(keys.not_available(
                    format!("`llama.{key}: {found}` with a head width of {expected}"),
                    "available: the same width for queries, keys, values and rotation",
                ));
            }
        }
        let embedding = Role::Embedding.gguf_name();
        let rows = file.tensor(&embedding).and_then(|t| t.shape.first().copied());
        let max_position_embeddings = keys.size("context_length")?;
        let config = Self {
            model_type: "llama".to_owned(),
            hidden_size,
            num_hidden_layers: keys.size("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: keys.optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate_size: keys.size("feed_forward_length")?,
            vocab_size: match (keys.optional("vocab_size")?, rows) {
                (Some(given), _) => given,
                (None, Some(rows)) => rows,
                (None, None) => return Err(keys.missing("llama.vocab_size".to_owned())),
            },
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?,
            rope: keys.rope(max_position_embeddings)?,
            sliding_window: keys.optional("attention.sliding_window")?.filter(|w| *w > 0),
            tie_word_embeddings: file.tensor(&Role::Head.gguf_name()).is_none(),
            max_position_embeddings,
            bos_token_id: keys.token("bos")?,
            eos_token_ids: keys.end_tokens()?,
            place: keys.place,
        };
        config.validate()?;
        Ok(config)
    }
}

struct Keys<'a> {
    place: String,
    file: &'a GgufFile,
}

impl Keys<'_> {
    fn check_architecture(&self) -> Result<(), ConfigError> {
        let name = self.known(self.file.require_str("general.architecture"))?;
        if AVAILABLE.iter().any(|a| a.gguf == name) {
            let experts = self.optional("expert_count")?.unwrap_or(0);
            return if experts == 0 {
                Ok(())
            } else {
                Err(self.not_available(
                    format!("a mixture of experts (`llama.expert_count: {experts}`)"),
                    "use a model without experts",
                ))
            };
        }
        let what = match what_is_missing(name) {
            Some(lacks) => format!("the architecture `{name}` ({lacks})"),
            None => format!("the architecture `{name}`"),
        };
        Err(self.not_available(what, &format!("available: {}", available_names())))
    }

    /// The reader's errors name the file, the key, what was found and what was expected.
    fn known<T>(&self, result: Result<T, GgufError>) -> Result<T, ConfigError> {
        result.map_err(|cause| ConfigError::Gguf { cause: cause.to_string() })
    }

    fn optional(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let found = self.known(self.file.get_u32(&format!("llama.{key}")))?;
        Ok(found.map(|n| n as usize))
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional(key)?.ok_or_else(|| self.missing(format!("llama.{key}")))
    }

    fn number(&self, key: &str) -> Result<f32, ConfigError> {
        self.known(self.file.require_f32(&format!("llama.{key}")))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        Ok(self.known(self.file.get_f32(&format!("llama.{key}")))?.map(f64::from))
    }

    fn token(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        self.known(self.file.get_u32(&format!("tokenizer.ggml.{name}_token_id")))
    }

    /// End of text, and the end of a turn where it is another token.
    fn end_tokens(&self) -> Result<Vec<u32>, ConfigError> {
        let mut ids = Vec::new();
        for name in ["eos", "eot", "eom"] {
            match self.token(name)? {
                Some(id) if !ids.contains(&id) => ids.push(id),
                Some(_) | None => {}
            }
        }
        Ok(ids)
    }

    fn rope(&self, max_position: usize) -> Result<Rope, ConfigError> {
        let theta = self.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
        if let Some(divisors) = self.file.tensor(&Role::RopeDivisors.gguf_name()) {
            let mut values = vec![0.0; divisors.n_values()];
            dequantize(divisors.dtype, divisors.bytes, &mut values)
                .map_err(|e| self.contradiction(format!("tensor `rope_freqs.weight`: {e}")))?;
            return Ok(Rope { theta, scaling: RopeScaling::Divisors(values) });
        }
        let kind = self.known(self.file.get_str("llama.rope.scaling.type"))?.unwrap_or("none");
        let factor = self.optional_number("rope.scaling.factor")?.unwrap_or(1.0);
        let scaling = match kind {
            "none" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor },
            "yarn" => RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: self
                    .optional("rope.scaling.original_context_length")?
                    .unwrap_or(max_position),
                beta_fast: self.optional_number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.optional_number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: match self.optional_number("rope.scaling.attn_factor")? {
                    Some(extra) => extra * yarn_attention_factor(factor, 1.0),
                    None => yarn_attention_factor(factor, 1.0),
                },
                truncate: true,
            },
            other => {
                return Err(self.not_available(
                    format!("the rotary scaling `{other}`"),
                    "available: `none`, `linear`, `yarn`, and divisors in `rope_freqs.weight`",
                ));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn missing(&self, key: String) -> ConfigError {
        ConfigError::Missing { place: self.place.clone(), key }
    }

    fn contradiction(&self, what: String) -> ConfigError {
        ConfigError::Contradiction { place: self.place.clone(), what }
    }

    fn not_available(&self, what: String, hint: &str) -> ConfigError {
        ConfigError::NotAvailable { place: self.place.clone(), what, hint: hint.to_owned() }
    }
}
