//! A `config.json` for a model that was read from something else.

use forgelm_kernels_api::Activation;
use serde_json::{Map, Value, json};

use super::{ConfigError, ModelConfig};
use crate::architecture::{AVAILABLE, Architecture, AttentionBias, ExpertFamily, Windows};
use crate::rope::{Rope, RopeScaling};

impl ModelConfig {
    /// The content of a `config.json` that describes this model.
    ///
    /// # Errors
    /// If an option of the model has no place in it.
    pub fn to_hf_json(&self) -> Result<Value, ConfigError> {
        let family = AVAILABLE.iter().find(|a| a.model_type == self.model_type);
        let family = family.ok_or_else(|| self.cannot_write("this architecture"))?;
        let mut map = Map::new();
        self.write_sizes(family, &mut map);
        self.write_options(family, &mut map);
        self.write_windows(family, &mut map);
        self.write_experts(family, &mut map);
        self.write_rope(family, &mut map)?;
        let value = Value::Object(map);
        // Whatever has no place above would silently become its default.
        let mut read = Self::from_hf_json(&value, &self.place)?;
        read.place.clone_from(&self.place);
        if &read == self { Ok(value) } else { Err(self.cannot_write("all options of this model")) }
    }

    fn cannot_write(&self, what: &str) -> ConfigError {
        ConfigError::NotAvailable {
            place: self.place.clone(),
            what: format!("a `config.json` for {what}"),
            hint: "use the model's Hugging Face folder as the base".to_owned(),
        }
    }

    fn write_sizes(&self, family: &Architecture, map: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("architectures", json!([family.class]));
        put("model_type", json!(self.model_type));
        put("hidden_size", json!(self.hidden_size));
        put("num_hidden_layers", json!(self.num_hidden_layers));
        put("num_attention_heads", json!(self.num_attention_heads));
        put("num_key_value_heads", json!(self.num_key_value_heads));
        put("head_dim", json!(self.head_dim));
        put("intermediate_size", json!(self.intermediate_size));
        put("vocab_size", json!(self.vocab_size));
        put("rms_norm_eps", number(self.rms_norm_eps));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        if let Some(id) = self.bos_token_id {
            put("bos_token_id", json!(id));
        }
        let ids = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        put("eos_token_id", ids);
    }

    fn write_options(&self, family: &Architecture, map: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        let act = match self.mlp.act {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        };
        let is_later_gemma = family.is_gemma && family.post_norms;
        put(if is_later_gemma { "hidden_activation" } else { "hidden_act" }, json!(act));
        match family.attention_bias {
            AttentionBias::Never | AttentionBias::Qkv => {}
            AttentionBias::QkvUnlessOff => {
                put("qkv_bias", json!(self.attention.qkv_bias));
            }
            AttentionBias::IfAsked => {
                put("attention_bias", json!(self.attention.qkv_bias));
            }
        }
        if family.mlp_bias {
            put("mlp_bias", json!(self.mlp.bias));
        }
        if family.soft_caps {
            put("attn_logit_softcapping", json!(self.attention.soft_cap.map(number)));
            put("final_logit_softcapping", json!(self.final_soft_cap.map(number)));
        }
        if let Some(scalar) = self.attention.query_pre_attn_scalar {
            put("query_pre_attn_scalar", json!(scalar));
        }
        if let Some(rotary_dim) = self.attention.rotary_dim {
            let factor = rotary_dim as f64 / self.head_dim as f64;
            put("partial_rotary_factor", json!(factor));
        }
        // The factor on the embedding is rounded to this format by who reads it.
        let exact = (self.hidden_size as f64).sqrt() as f32;
        let is_exact = self.embedding_scale.is_none_or(|s| s.to_bits() == exact.to_bits());
        let dtype = if self.embedding_scale.is_some() && is_exact { "float32" } else { "bfloat16" };
        put("torch_dtype", json!(dtype));
    }

    fn write_windows(&self, family: &Architecture, map: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        if family.windows == Windows::Never {
            return;
        }
        put("sliding_window", json!(self.sliding_window));
        let used = self.attention.windowed_layers.contains(&true);
        match family.windows {
            Windows::Never | Windows::Always => {}
            Windows::WhenUsed => {
                put("use_sliding_window", json!(used));
            }
            Windows::FromLayer | Windows::AlternateBelow | Windows::AllButEvery(_) => {
                if !matches!(family.windows, Windows::AllButEvery(_)) {
                    put("use_sliding_window", json!(used));
                }
                let kind = |windowed: &bool| match windowed {
                    true => "sliding_attention",
                    false => "full_attention",
                };
                let kinds: Vec<&str> = self.attention.windowed_layers.iter().map(kind).collect();
                put("layer_types", json!(kinds));
            }
        }
    }

    fn write_experts(&self, family: &Architecture, map: &mut Map<String, Value>) {
        let (Some(experts), Some(kind)) = (&self.experts, family.experts) else { return };
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("num_experts_per_tok", json!(experts.num_experts_per_tok));
        put("router_aux_loss_coef", number(experts.router_aux_loss_coef));
        put("output_router_logits", json!(experts.output_router_logits));
        if kind == ExpertFamily::Mixtral {
            put("num_local_experts", json!(experts.num_experts));
            put("intermediate_size", json!(experts.intermediate_size));
            return;
        }
        put("num_experts", json!(experts.num_experts));
        put("moe_intermediate_size", json!(experts.intermediate_size));
        put("norm_topk_prob", json!(experts.norm_topk_prob));
        put("decoder_sparse_step", json!(1));
        let layers = experts.layers.iter().enumerate();
        let dense: Vec<usize> = layers.filter(|(_, on)| !**on).map(|(layer, _)| layer).collect();
        put("mlp_only_layers", json!(dense));
        if let Some(width) = experts.shared_intermediate_size {
            put("shared_expert_intermediate_size", json!(width));
        }
    }

    fn write_rope(
        &self,
        family: &Architecture,
        map: &mut Map<String, Value>,
    ) -> Result<(), ConfigError> {
        let global = self.rope_json(&self.rope)?;
        match &self.attention.local_rope {
            Some(local) if family.local_rope => {
                let local = self.rope_json(local)?;
                let both = json!({"full_attention": global, "sliding_attention": local});
                map.insert("rope_parameters".to_owned(), both);
            }
            _ => {
                map.insert("rope_theta".to_owned(), json!(self.rope.theta));
                if self.rope.scaling != RopeScaling::Default {
                    map.insert("rope_scaling".to_owned(), global);
                }
            }
        }
        Ok(())
    }

    fn rope_json(&self, rope: &Rope) -> Result<Value, ConfigError> {
        let mut value = match &rope.scaling {
            RopeScaling::Default => json!({"rope_type": "default"}),
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => json!({
                "rope_type": "dynamic",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "truncate": truncate,
            }),
            RopeScaling::Longrope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
            } => json!({
                "rope_type": "longrope",
                "short_factor": short_factor.iter().copied().map(number).collect::<Vec<_>>(),
                "long_factor": long_factor.iter().copied().map(number).collect::<Vec<_>>(),
                "original_max_position_embeddings": original_max_position_embeddings,
                "attention_factor": attention_factor,
            }),
            RopeScaling::Divisors(_) => return Err(self.cannot_write("this rotary scaling")),
        };
        value["rope_theta"] = json!(rope.theta);
        Ok(value)
    }
}

/// The shortest decimal of an f32, not its digits as an f64.
fn number(x: f32) -> Value {
    json!(x.to_string().parse::<f64>().unwrap_or_else(|_| f64::from(x)))
}
