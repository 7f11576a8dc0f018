//! A `config.json` for a model that was read from something else.

use forgelm_kernels_api::Activation;
use serde_json::{Map, Value, json};

use super::{ConfigError, ModelConfig};
use crate::architecture::AVAILABLE;
use crate::rope::RopeScaling;

impl ModelConfig {
    /// The content of a `config.json` that describes this model.
    ///
    /// # Errors
    /// If an option of the model has no place in it.
    pub fn to_hf_json(&self) -> Result<Value, ConfigError> {
        let not_available = |what: &str| ConfigError::NotAvailable {
            place: self.place.clone(),
            what: format!("a `config.json` for {what}"),
            hint: "use the model's Hugging Face folder as the base".to_owned(),
        };
        let family = AVAILABLE.iter().find(|a| a.model_type == self.model_type);
        let family = family.ok_or_else(|| not_available("this architecture"))?;
        let mut map = Map::new();
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
        put(
            "hidden_act",
            match self.mlp.act {
                Activation::Silu => json!("silu"),
                Activation::GeluTanh => json!("gelu_pytorch_tanh"),
            },
        );
        // The shortest decimal of the f32, not its digits as an f64.
        put("rms_norm_eps", json!(self.rms_norm_eps.to_string().parse::<f64>().unwrap_or(1e-6)));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        put("rope_theta", json!(self.rope.theta));
        match &self.rope.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => {
                put("rope_scaling", json!({"rope_type": "linear", "factor": factor}));
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let scaling = json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                });
                put("rope_scaling", scaling);
            }
            _ => return Err(not_available("this rotary scaling")),
        }
        if let Some(window) = self.sliding_window {
            put("sliding_window", json!(window));
        }
        put("torch_dtype", json!("bfloat16"));
        if let Some(id) = self.bos_token_id {
            put("bos_token_id", json!(id));
        }
        put(
            "eos_token_id",
            match self.eos_token_ids.as_slice() {
                [] => Value::Null,
                [id] => json!(id),
                ids => json!(ids),
            },
        );
        let value = Value::Object(map);
        // Whatever has no place above would silently become its default.
        let mut read = Self::from_hf_json(&value, &self.place)?;
        read.place.clone_from(&self.place);
        if &read == self { Ok(value) } else { Err(not_available("all options of this model")) }
    }
}
