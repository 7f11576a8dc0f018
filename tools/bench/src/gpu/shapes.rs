//! Sizes of the models that are measured, and what they cost.

use forgelm_model::{ModelConfig, ModuleNames};
use serde_json::{Value, json};

/// Sizes of a decoder of the family of Qwen3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub name: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mlp: usize,
    pub vocabulary: usize,
    /// Whether the head is the table of embeddings.
    pub is_tied: bool,
}

pub(crate) const QWEN3_0_6B: Shape = Shape {
    name: "Qwen3-0.6B",
    hidden: 1024,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    mlp: 3072,
    vocabulary: 151_936,
    is_tied: true,
};
pub(crate) const QWEN3_8B: Shape = Shape {
    name: "Qwen3-8B",
    hidden: 4096,
    layers: 36,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    mlp: 12_288,
    vocabulary: 151_936,
    is_tied: false,
};
/// For an emulated device.
pub(crate) const TINY: Shape = Shape {
    name: "tiny",
    hidden: 64,
    layers: 2,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    mlp: 96,
    vocabulary: 128,
    is_tied: true,
};

/// Rank of the adapters on all linear layers.
pub(crate) const RANK: usize = 16;

impl Shape {
    /// Width of all query heads.
    pub(crate) fn q(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads.
    pub(crate) fn kv(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Name, rows and columns of the weights of a layer, each once for each time it is used.
    pub(crate) fn weights(&self) -> [(&'static str, usize, usize); 7] {
        let Self { hidden, mlp, .. } = *self;
        [
            ("q", self.q(), hidden),
            ("k", self.kv(), hidden),
            ("v", self.kv(), hidden),
            ("o", hidden, self.q()),
            ("gate", mlp, hidden),
            ("up", mlp, hidden),
            ("down", hidden, mlp),
        ]
    }

    /// Weights of a layer that are multiplied with.
    pub(crate) fn layer_parameters(&self) -> usize {
        self.weights().iter().map(|(_, n, k)| n * k).sum()
    }

    /// As `config.json` says it, with so many layers.
    pub(crate) fn hf_json(&self, n_layers: usize) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": false,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "max_position_embeddings": 40_960,
            "num_attention_heads": self.heads,
            "num_hidden_layers": n_layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": self.is_tied,
            "use_sliding_window": false,
            "vocab_size": self.vocabulary,
        })
    }

    pub(crate) fn config(&self, n_layers: usize) -> Result<ModelConfig, String> {
        ModelConfig::from_hf_json(&self.hf_json(n_layers), self.name)
            .map_err(|error| error.to_string())
    }
}

/// How modules of these models are named.
pub(crate) const NAMES: ModuleNames = ModuleNames::Qwen;

#[cfg(test)]
mod tests {
    use super::{QWEN3_0_6B, QWEN3_8B, TINY};

    #[test]
    fn shapes_have_as_many_parameters_as_the_models_have() {
        // 8.19e9 and 0.596e9, as their model cards say
        for (shape, expected) in [(QWEN3_8B, 8_190_735_360), (QWEN3_0_6B, 596_049_920)] {
            let config = shape.config(shape.layers).unwrap();
            assert_eq!(config.n_parameters(), expected, "{}", shape.name);
        }
        let config = TINY.config(1).unwrap();
        assert_eq!(config.num_hidden_layers, 1);
    }

    #[test]
    fn parameters_of_a_layer_are_those_of_the_config() {
        let [two, one] = [2, 1].map(|n| QWEN3_8B.config(n).unwrap().n_parameters());
        let norms = 2 * QWEN3_8B.hidden + 2 * QWEN3_8B.head_dim;
        assert_eq!(QWEN3_8B.layer_parameters() + norms, two - one);
    }
}
