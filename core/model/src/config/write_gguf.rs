//! The metadata of a GGUF file for a model that was read from something else.

use forgelm_artifact::gguf::Value;

use super::{AttentionOptions, ConfigError, ModelConfig};
use crate::architecture::{AVAILABLE, Architecture, ExpertFamily, Windows};
use crate::rope::{RopeScaling, yarn_attention_factor};

impl ModelConfig {
    /// The keys that describe this model in a GGUF file, by the rules of the `llama.cpp` project's
    /// converter. Divisors of rotary frequencies are tensors there:
    /// [`ModelConfig::gguf_divisors`].
    ///
    /// # Errors
    /// If an option of the model has no place in it.
    pub fn to_gguf_metadata(&self) -> Result<Vec<(String, Value)>, ConfigError> {
        let family = self.family_for_gguf()?;
        let mut keys = Keys { arch: family.gguf, list: Vec::new() };
        let name = Value::String(family.gguf.to_owned());
        keys.list.push(("general.architecture".to_owned(), name));
        self.put_sizes(family, &mut keys);
        keys.real("attention.layer_norm_rms_epsilon", f64::from(self.rms_norm_eps));
        if let Some(window) = self.sliding_window {
            keys.whole("attention.sliding_window", window);
        }
        if let Windows::AllButEvery(usual) = family.windows {
            let first_whole = self.attention.windowed_layers.iter().position(|on| !on);
            if let Some(n) = first_whole.map(|layer| layer + 1).filter(|n| *n != usual) {
                keys.whole("attention.sliding_window_pattern", n);
            }
        }
        if let Some(cap) = self.attention.soft_cap {
            keys.real("attn_logit_softcapping", f64::from(cap));
        }
        if let Some(cap) = self.final_soft_cap {
            keys.real("final_logit_softcapping", f64::from(cap));
        }
        self.put_rope(&mut keys)?;
        Ok(keys.list)
    }

    /// Divisors of rotary frequencies, by the name of the tensor that holds them.
    #[must_use]
    pub fn gguf_divisors(&self) -> Vec<(&'static str, Vec<f32>)> {
        use crate::names::gguf::{ROPE_DIVISORS, ROPE_LONG, ROPE_SHORT};
        match &self.rope.scaling {
            RopeScaling::Divisors(divisors) => vec![(ROPE_DIVISORS, divisors.clone())],
            RopeScaling::Llama3 { .. } => {
                vec![(ROPE_DIVISORS, self.rope.llama3_divisors(self.rotary_dim()))]
            }
            RopeScaling::Longrope { short_factor, long_factor, .. } => {
                vec![(ROPE_LONG, long_factor.clone()), (ROPE_SHORT, short_factor.clone())]
            }
            RopeScaling::Default
            | RopeScaling::Linear { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Yarn { .. } => Vec::new(),
        }
    }

    /// Refuses a GGUF file, read as `found`, that describes another model than this one. What only
    /// training reads has no place in such files and is not compared.
    ///
    /// # Errors
    /// Naming the first option that differs.
    pub fn check_gguf(&self, found: &Self) -> Result<(), ConfigError> {
        let (own, other) = (self.as_gguf_says_it(), found.as_gguf_says_it());
        let frequencies = |c: &Self| c.rope.inv_freq(c.rotary_dim(), 1);
        let factor = |c: &Self| c.rope.attention_factor();
        let windows =
            |c: &Self| -> Vec<_> { (0..c.num_hidden_layers).map(|l| c.window(l)).collect() };
        let bits = f32::to_bits;
        let differs = [
            ("its sizes", own.dims() != other.dims()),
            (
                "its rotary embedding",
                frequencies(&own) != frequencies(&other)
                    || own.gguf_divisors() != other.gguf_divisors()
                    || (factor(&own) - factor(&other)).abs() > 1e-6,
            ),
            ("its layers with a window", windows(&own) != windows(&other)),
            (
                "`query_pre_attn_scalar`",
                bits(own.attention_scale()) != bits(other.attention_scale()),
            ),
            ("its attention", {
                let rest = |c: &Self| AttentionOptions {
                    windowed_layers: Vec::new(),
                    rotary_dim: Some(c.rotary_dim()),
                    query_pre_attn_scalar: None,
                    ..c.attention.clone()
                };
                rest(&own) != rest(&other)
            }),
            (
                "its norms",
                own.norms != other.norms || bits(own.rms_norm_eps) != bits(other.rms_norm_eps),
            ),
            ("its MLP", own.mlp != other.mlp),
            ("its experts", own.experts != other.experts),
            ("`final_logit_softcapping`", own.final_soft_cap != other.final_soft_cap),
            ("`tie_word_embeddings`", own.tie_word_embeddings != other.tie_word_embeddings),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((what, _)) => Err(self.no_place(what.to_owned())),
        }
    }

    /// The same model, with what GGUF files say in another way said so, and without what only
    /// training reads.
    fn as_gguf_says_it(&self) -> Self {
        let mut config = self.clone();
        if let Some(experts) = &mut config.experts {
            (experts.router_aux_loss_coef, experts.output_router_logits) = (0.0, false);
        }
        if let RopeScaling::Llama3 { .. } = config.rope.scaling {
            let divisors = config.rope.llama3_divisors(config.rotary_dim());
            config.rope.scaling = RopeScaling::Divisors(divisors);
        }
        config
    }

    fn family_for_gguf(&self) -> Result<&'static Architecture, ConfigError> {
        let family = AVAILABLE.iter().find(|a| a.model_type == self.model_type);
        family.ok_or_else(|| self.no_place(format!("the architecture `{}`", self.model_type)))
    }

    fn no_place(&self, what: String) -> ConfigError {
        ConfigError::NotAvailable {
            place: self.place.clone(),
            what: format!("{what} in a GGUF file"),
            hint: "such files have no key for it; choose a method that makes a folder".to_owned(),
        }
    }

    fn put_sizes(&self, family: &Architecture, keys: &mut Keys) {
        let is_mixtral = family.experts == Some(ExpertFamily::Mixtral);
        let experts = self.experts.as_ref();
        let mlp = experts.filter(|_| is_mixtral).map(|experts| experts.intermediate_size);
        keys.whole("context_length", self.max_position_embeddings);
        keys.whole("embedding_length", self.hidden_size);
        keys.whole("block_count", self.num_hidden_layers);
        keys.whole("feed_forward_length", mlp.unwrap_or(self.intermediate_size));
        keys.whole("attention.head_count", self.num_attention_heads);
        keys.whole("attention.head_count_kv", self.num_key_value_heads);
        keys.whole("attention.key_length", self.head_dim);
        keys.whole("attention.value_length", self.head_dim);
        keys.whole("rope.dimension_count", self.rotary_dim());
        keys.whole("vocab_size", self.vocab_size);
        let Some(experts) = experts else { return };
        keys.whole("expert_count", experts.num_experts);
        keys.whole("expert_used_count", experts.num_experts_per_tok);
        if !is_mixtral {
            keys.whole("expert_feed_forward_length", experts.intermediate_size);
        }
        if let Some(width) = experts.shared_intermediate_size {
            keys.whole("expert_shared_feed_forward_length", width);
        }
    }

    fn put_rope(&self, keys: &mut Keys) -> Result<(), ConfigError> {
        keys.real("rope.freq_base", self.rope.theta);
        if let Some(local) = &self.attention.local_rope {
            keys.real("rope.freq_base_swa", local.theta);
        }
        match &self.rope.scaling {
            RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {}
            RopeScaling::Linear { factor } => {
                keys.text("rope.scaling.type", "linear");
                keys.real("rope.scaling.factor", *factor);
            }
            RopeScaling::Dynamic { .. } => {
                return Err(self.no_place("the rotary scaling `dynamic`".to_owned()));
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate: _,
            } => {
                keys.text("rope.scaling.type", "yarn");
                keys.real("rope.scaling.factor", *factor);
                keys.whole(
                    "rope.scaling.original_context_length",
                    *original_max_position_embeddings,
                );
                keys.real("rope.scaling.yarn_beta_fast", *beta_fast);
                keys.real("rope.scaling.yarn_beta_slow", *beta_slow);
                let usual = yarn_attention_factor(*factor, 1.0);
                if (attention_factor - usual).abs() > f64::from(f32::EPSILON) {
                    keys.real("rope.scaling.attn_factor", attention_factor / usual);
                }
            }
            RopeScaling::Longrope {
                original_max_position_embeddings, attention_factor, ..
            } => {
                let original = *original_max_position_embeddings;
                keys.whole("rope.scaling.original_context_length", original);
                keys.real("rope.scaling.attn_factor", *attention_factor);
            }
        }
        Ok(())
    }
}

/// Keys under the name of the architecture.
struct Keys {
    arch: &'static str,
    list: Vec<(String, Value)>,
}

impl Keys {
    fn put(&mut self, key: &str, value: Value) {
        self.list.push((format!("{}.{key}", self.arch), value));
    }

    fn whole(&mut self, key: &str, n: usize) {
        self.put(key, Value::U32(n as u32));
    }

    fn real(&mut self, key: &str, x: f64) {
        self.put(key, Value::F32(x as f32));
    }

    fn text(&mut self, key: &str, text: &str) {
        self.put(key, Value::String(text.to_owned()));
    }
}
