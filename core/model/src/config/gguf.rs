//! The metadata of a GGUF file. What a family has always, and what its files do not say, is in its
//! line of [`AVAILABLE`]; the rest are keys that begin with the name of the architecture.

use forgelm_artifact::gguf::{GgufError, GgufFile};
use forgelm_kernels_api::Activation;
use forgelm_tensor::dequantize;

use super::hf::MAX_LAYERS;
use super::{AttentionOptions, ConfigError, Experts, MlpOptions, ModelConfig, NormOptions};
use crate::architecture::{
    AVAILABLE, Architecture, ExpertFamily, Windows, available_names, what_is_missing,
};
use crate::names::{ModuleNames, gguf as names};
use crate::rope::{Rope, RopeScaling, longrope_attention_factor, yarn_attention_factor};

impl ModelConfig {
    /// Reads the metadata.
    ///
    /// # Errors
    /// If a key is missing, of the wrong type or contradicts another, or the architecture is not
    /// available.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ConfigError> {
        let keys = Keys::new(file)?;
        let family = keys.family;
        let hidden_size = keys.size("embedding_length")?;
        let heads = keys.size("attention.head_count")?;
        let head_dim = match keys.optional("attention.key_length")? {
            Some(given) => given,
            None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(keys.contradiction(format!(
                    "`{0}.embedding_length` is {hidden_size}, which is not a multiple of \
                     `{0}.attention.head_count`, {heads}",
                    keys.arch()
                )));
            }
        };
        let n_layers = keys.size("block_count")?;
        if n_layers > MAX_LAYERS {
            return Err(keys.contradiction(format!("{n_layers} layers; at most {MAX_LAYERS}")));
        }
        let rows = file.tensor(names::EMBEDDING).and_then(|t| t.shape.first().copied());
        let max_position_embeddings = keys.size("context_length")?;
        let (sliding_window, windowed_layers) = keys.windows(n_layers)?;
        let local_theta = keys.optional_number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        let cap = |key: &str| -> Result<Option<f32>, ConfigError> {
            Ok(keys.optional_number(key)?.filter(|_| family.soft_caps).map(|cap| cap as f32))
        };
        let has = |part: &str| file.tensor(&format!("blk.0.{part}.bias")).is_some();
        let config = Self {
            model_type: family.model_type.to_owned(),
            hidden_size,
            num_hidden_layers: n_layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate_size: match family.experts {
                // Files of models without a dense layer may leave it out.
                Some(_) => keys.optional("feed_forward_length")?.filter(|f| *f > 0).unwrap_or(1),
                None => keys.size("feed_forward_length")?,
            },
            vocab_size: match (keys.optional("vocab_size")?, rows) {
                (Some(given), _) => given,
                (None, Some(rows)) => rows,
                (None, None) => return Err(keys.missing("vocab_size")),
            },
            rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")?,
            rope: keys.rope(max_position_embeddings)?,
            sliding_window,
            attention: AttentionOptions {
                qkv_bias: has("attn_q") || has("attn_qkv"),
                o_bias: has("attn_output"),
                is_fused: family.is_fused,
                qk_norm: family.qk_norm,
                query_pre_attn_scalar: keys.query_scalar(hidden_size, (heads, head_dim), n_layers),
                soft_cap: cap("attn_logit_softcapping")?,
                windowed_layers,
                local_rope: family
                    .local_rope
                    .then_some(Rope { theta: local_theta, scaling: RopeScaling::Default }),
                rotary_dim: keys.rotary_dim(head_dim)?,
            },
            norms: NormOptions {
                stored_as_offsets: family.is_gemma,
                post_norms: family.post_norms,
            },
            mlp: MlpOptions {
                bias: has("ffn_gate") || has("ffn_up"),
                is_fused: family.is_fused,
                act: if family.is_gemma { Activation::GeluTanh } else { Activation::Silu },
            },
            experts: keys.experts(n_layers)?,
            embedding_scale: family.is_gemma.then_some((hidden_size as f64).sqrt() as f32),
            final_soft_cap: cap("final_logit_softcapping")?,
            tie_word_embeddings: file.tensor(names::HEAD).is_none(),
            max_position_embeddings,
            bos_token_id: keys.token("bos")?,
            eos_token_ids: keys.end_tokens()?,
            labels: None,
            float8: None,
            place: keys.place,
        };
        config.validate()?;
        Ok(config)
    }
}

struct Keys<'a> {
    place: String,
    file: &'a GgufFile,
    family: Architecture,
}

impl<'a> Keys<'a> {
    /// Finds the family. Mistral and Mixtral files call themselves `llama`.
    fn new(file: &'a GgufFile) -> Result<Self, ConfigError> {
        let place = file.path().display().to_string();
        let mut keys = Self { place, file, family: AVAILABLE[0] };
        let name = keys.known(file.require_str("general.architecture"))?;
        let by_type =
            |model_type: &str| AVAILABLE.iter().find(|a| a.model_type == model_type).copied();
        keys.family = match AVAILABLE.iter().find(|a| a.gguf == name) {
            Some(family) => *family,
            None => {
                let what = match what_is_missing(name) {
                    Some(lacks) => format!("the architecture `{name}` ({lacks})"),
                    None => format!("the architecture `{name}`"),
                };
                let hint = format!("available: {}", available_names());
                return Err(keys.not_available(what, &hint));
            }
        };
        if keys.family.gguf == "llama" {
            let has_experts = keys.optional("expert_count")?.is_some_and(|n| n > 0);
            let has_window = keys.optional("attention.sliding_window")?.is_some_and(|w| w > 0);
            let model_type = match (has_experts, has_window) {
                (true, _) => "mixtral",
                (false, true) => "mistral",
                (false, false) => "llama",
            };
            keys.family = by_type(model_type).unwrap_or(keys.family);
        }
        Ok(keys)
    }

    fn arch(&self) -> &'static str {
        self.family.gguf
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch())
    }

    /// The window, and which layers have it: the files do not say, the families do.
    fn windows(&self, n_layers: usize) -> Result<(Option<usize>, Vec<bool>), ConfigError> {
        let window = self.optional("attention.sliding_window")?.filter(|w| *w > 0);
        let windows = match self.family.windows {
            Windows::AllButEvery(n) => {
                let n = self.optional("attention.sliding_window_pattern")?.unwrap_or(n);
                Windows::AllButEvery(n.max(1))
            }
            other => other,
        };
        let is_windowed = |layer: usize| match windows {
            // The tool that writes such files refuses Qwen models that use their window.
            Windows::Never | Windows::FromLayer | Windows::AlternateBelow | Windows::WhenUsed => {
                false
            }
            Windows::Always => window.is_some(),
            Windows::AllButEvery(n) => !(layer + 1).is_multiple_of(n),
        };
        let layers: Vec<bool> = (0..n_layers).map(is_windowed).collect();
        let has_windows = layers.contains(&true);
        if window.is_none() && has_windows {
            return Err(self.missing("attention.sliding_window"));
        }
        Ok((window.filter(|_| has_windows), layers))
    }

    /// Gemma files do not hold it: the width of a head, but for the largest of each generation.
    fn query_scalar(
        &self,
        hidden_size: usize,
        (heads, head_dim): (usize, usize),
        n_layers: usize,
    ) -> Option<f64> {
        let largest = match self.family.model_type {
            "gemma2" => 46,
            "gemma3_text" => 62,
            _ => return None,
        };
        let is_largest = n_layers == largest && heads > 0;
        Some(if is_largest { hidden_size as f64 / heads as f64 } else { head_dim as f64 })
    }

    fn rotary_dim(&self, head_dim: usize) -> Result<Option<usize>, ConfigError> {
        if let Some(width) = self.optional("attention.value_length")?.filter(|w| *w != head_dim) {
            return Err(self.not_available(
                format!("`{}: {width}`", self.key("attention.value_length")),
                &format!("the width of a query head is {head_dim}; available: the same"),
            ));
        }
        match self.optional("rope.dimension_count")?.filter(|r| *r != head_dim) {
            None => Ok(None),
            Some(rotary_dim) if self.family.is_fused => Ok(Some(rotary_dim)),
            Some(found) => Err(self.not_available(
                format!(
                    "`{}: {found}` with a head width of {head_dim}",
                    self.key("rope.dimension_count")
                ),
                "available in this family: a rotary embedding over the whole head",
            )),
        }
    }

    fn experts(&self, n_layers: usize) -> Result<Option<Experts>, ConfigError> {
        let count = self.optional("expert_count")?.unwrap_or(0);
        let Some(kind) = self.family.experts else {
            return if count == 0 {
                Ok(None)
            } else {
                Err(self.not_available(
                    format!("a mixture of experts (`{}: {count}`)", self.key("expert_count")),
                    "use a model without experts",
                ))
            };
        };
        let is_sparse =
            |layer: usize| self.file.tensor(&format!("blk.{layer}.ffn_gate_inp.weight")).is_some();
        let is_mixtral = kind == ExpertFamily::Mixtral;
        let own_width = self.optional("expert_feed_forward_length")?.filter(|f| *f > 0);
        let intermediate_size = match own_width {
            Some(width) => width,
            None if is_mixtral => self.size("feed_forward_length")?,
            None => return Err(self.missing("expert_feed_forward_length")),
        };
        let shared = match kind {
            ExpertFamily::Qwen2 => Some(self.size("expert_shared_feed_forward_length")?),
            ExpertFamily::Mixtral | ExpertFamily::Qwen3 => None,
        };
        Ok(Some(Experts {
            num_experts: self.size("expert_count")?,
            num_experts_per_tok: self.size("expert_used_count")?,
            intermediate_size,
            shared_intermediate_size: shared,
            norm_topk_prob: kind != ExpertFamily::Qwen2,
            layers: (0..n_layers).map(is_sparse).collect(),
            router_aux_loss_coef: 0.001,
            output_router_logits: false,
            names: if is_mixtral { ModuleNames::Mixtral } else { ModuleNames::Qwen },
        }))
    }

    /// The reader's errors name the file, the key, what was found and what was expected.
    fn known<T>(&self, result: Result<T, GgufError>) -> Result<T, ConfigError> {
        result.map_err(|cause| ConfigError::Gguf { cause: cause.to_string() })
    }

    fn optional(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let found = self.known(self.file.get_u32(&self.key(key)))?;
        Ok(found.map(|n| n as usize))
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<f32, ConfigError> {
        self.known(self.file.require_f32(&self.key(key)))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        Ok(self.known(self.file.get_f32(&self.key(key)))?.map(f64::from))
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
        if let Some(values) = self.divisors(names::ROPE_DIVISORS)? {
            return Ok(Rope { theta, scaling: RopeScaling::Divisors(values) });
        }
        if let Some(scaling) = self.longrope(max_position)? {
            return Ok(Rope { theta, scaling });
        }
        let kind = self.key("rope.scaling.type");
        let kind = self.known(self.file.get_str(&kind))?.unwrap_or("none");
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

    /// Phi-3's two lists of divisors.
    fn longrope(&self, max_position: usize) -> Result<Option<RopeScaling>, ConfigError> {
        let (short, long) = (self.divisors(names::ROPE_SHORT)?, self.divisors(names::ROPE_LONG)?);
        let (Some(short_factor), Some(long_factor)) = (short, long) else { return Ok(None) };
        let original =
            self.optional("rope.scaling.original_context_length")?.unwrap_or(max_position);
        let factor = max_position as f64 / original as f64;
        let given = self.optional_number("rope.scaling.attn_factor")?;
        Ok(Some(RopeScaling::Longrope {
            short_factor,
            long_factor,
            original_max_position_embeddings: original,
            attention_factor: match given {
                Some(given) => given,
                None => longrope_attention_factor(factor, original),
            },
        }))
    }

    fn divisors(&self, name: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        let Some(divisors) = self.file.tensor(name) else { return Ok(None) };
        let mut values = vec![0.0; divisors.n_values()];
        dequantize(divisors.dtype, divisors.bytes, &mut values)
            .map_err(|e| self.contradiction(format!("tensor `{name}`: {e}")))?;
        Ok(Some(values))
    }

    fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { place: self.place.clone(), key: self.key(key) }
    }

    fn contradiction(&self, what: String) -> ConfigError {
        ConfigError::Contradiction { place: self.place.clone(), what }
    }

    fn not_available(&self, what: String, hint: &str) -> ConfigError {
        ConfigError::NotAvailable { place: self.place.clone(), what, hint: hint.to_owned() }
    }
}
