//! Which model families the decoder can run, as data, and in what the others differ.
//!
//! A family is a line of [`AVAILABLE`]: which options of the decoder it has always, which keys of
//! `config.json` it knows, and what an absent key means. To add one whose options all exist, add a
//! line here, its golden case in `tests/golden`, and nothing else.

use forgelm_kernels_api::Activation;

/// Which layers look back only as far as the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The family has no window.
    Never,
    /// Every layer, when `sliding_window` is a number.
    Always,
    /// With `use_sliding_window`, the layers from `max_window_layers` on.
    FromLayer,
    /// With `use_sliding_window`, every other layer below `max_window_layers`.
    AlternateBelow,
    /// With `use_sliding_window`, every layer.
    WhenUsed,
    /// All but every n-th layer: `sliding_window_pattern`, or this.
    AllButEvery(usize),
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// None.
    Never,
    /// Query, key and value, always.
    Qkv,
    /// Query, key and value, unless `qkv_bias` is false.
    QkvUnlessOff,
    /// Query, key, value and output, if `attention_bias` is true.
    IfAsked,
}

/// How experts are named and configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertFamily {
    /// `block_sparse_moe.experts.<n>.w1`; every layer; chosen probabilities sum to 1.
    Mixtral,
    /// `mlp.experts.<n>.gate_proj`, and a shared expert beside them.
    Qwen2,
    /// `mlp.experts.<n>.gate_proj`.
    Qwen3,
}

/// A family of models that the decoder runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Architecture {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The entry of `architectures` in `config.json`.
    pub class: &'static str,
    /// `general.architecture` of a GGUF file.
    pub gguf: &'static str,
    /// Which layers have a window.
    pub windows: Windows,
    /// Biases of attention.
    pub attention_bias: AttentionBias,
    /// Whether `mlp_bias` is known.
    pub mlp_bias: bool,
    /// Whether each query and key head is normed.
    pub qk_norm: bool,
    /// Whether the stored norm weights are what is added to 1, and the embedding is scaled by the
    /// root of its width.
    pub is_gemma: bool,
    /// Whether attention and MLP are normed again before they are added to the residual stream.
    pub post_norms: bool,
    /// Whether `attn_logit_softcapping` and `final_logit_softcapping` are known.
    pub soft_caps: bool,
    /// Whether windowed layers have a rotary base of their own.
    pub local_rope: bool,
    /// Whether query, key and value are one matrix, and gate and up another; and whether only a
    /// part of a head may be rotated.
    pub is_fused: bool,
    /// Experts.
    pub experts: Option<ExpertFamily>,
    /// The gate's non-linearity when `config.json` names none.
    pub act: Activation,
    /// `rope_theta` when `config.json` names none.
    pub rope_theta: f64,
    /// `head_dim` when `config.json` names none; 0 for hidden width by heads.
    pub head_dim: usize,
    /// `tie_word_embeddings` when `config.json` does not say.
    pub is_tied: bool,
}

/// Llama, from which the others differ.
const LLAMA: Architecture = Architecture {
    model_type: "llama",
    class: "LlamaForCausalLM",
    gguf: "llama",
    windows: Windows::Never,
    attention_bias: AttentionBias::IfAsked,
    mlp_bias: true,
    qk_norm: false,
    is_gemma: false,
    post_norms: false,
    soft_caps: false,
    local_rope: false,
    is_fused: false,
    experts: None,
    act: Activation::Silu,
    rope_theta: 10_000.0,
    head_dim: 0,
    is_tied: false,
};

/// Gemma 1, from which its successors differ.
const GEMMA: Architecture = Architecture {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    gguf: "gemma",
    mlp_bias: false,
    is_gemma: true,
    act: Activation::GeluTanh,
    head_dim: 256,
    is_tied: true,
    ..LLAMA
};

/// Every family that runs.
pub const AVAILABLE: [Architecture; 11] = [
    LLAMA,
    // Mistral is Llama with an attention window; its GGUF files call themselves `llama`.
    Architecture {
        model_type: "mistral",
        class: "MistralForCausalLM",
        windows: Windows::Always,
        attention_bias: AttentionBias::Never,
        mlp_bias: false,
        ..LLAMA
    },
    Architecture {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        windows: Windows::Always,
        attention_bias: AttentionBias::Never,
        mlp_bias: false,
        experts: Some(ExpertFamily::Mixtral),
        rope_theta: 1e6,
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        gguf: "qwen2",
        windows: Windows::FromLayer,
        attention_bias: AttentionBias::Qkv,
        mlp_bias: false,
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        gguf: "qwen2moe",
        windows: Windows::AlternateBelow,
        attention_bias: AttentionBias::QkvUnlessOff,
        mlp_bias: false,
        experts: Some(ExpertFamily::Qwen2),
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        gguf: "qwen3",
        windows: Windows::FromLayer,
        mlp_bias: false,
        qk_norm: true,
        head_dim: 128,
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        gguf: "qwen3moe",
        windows: Windows::WhenUsed,
        mlp_bias: false,
        qk_norm: true,
        experts: Some(ExpertFamily::Qwen3),
        ..LLAMA
    },
    GEMMA,
    Architecture {
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        gguf: "gemma2",
        windows: Windows::AllButEvery(2),
        post_norms: true,
        soft_caps: true,
        ..GEMMA
    },
    Architecture {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        gguf: "gemma3",
        windows: Windows::AllButEvery(6),
        qk_norm: true,
        post_norms: true,
        soft_caps: true,
        local_rope: true,
        rope_theta: 1e6,
        ..GEMMA
    },
    Architecture {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        gguf: "phi3",
        windows: Windows::Always,
        attention_bias: AttentionBias::Never,
        mlp_bias: false,
        is_fused: true,
        ..LLAMA
    },
];

/// Families that are known but do not run yet: `model_type` (GGUF spells it the same, or without
/// the underscore) and what the decoder lacks.
const NOT_YET: [(&str, &str); 6] = [
    ("gemma3", "images beside the text; the text model alone is `gemma3_text`"),
    ("phi", "biases, a parallel block and a partial rotary embedding"),
    ("gpt2", "learned positions, layer norms with bias and an ungated MLP"),
    ("gpt_neox", "a parallel block, layer norms with bias and an ungated MLP"),
    ("falcon", "a parallel block and an ungated MLP"),
    ("mllama", "images and cross-attention"),
];

/// What the decoder lacks for `model_type`, when that family is known.
#[must_use]
pub fn what_is_missing(model_type: &str) -> Option<&'static str> {
    let bare = |name: &str| name.replace(['_', '-'], "");
    NOT_YET.iter().find(|(name, _)| bare(name) == bare(model_type)).map(|(_, lacks)| *lacks)
}

/// The names of the families that run, for messages.
#[must_use]
pub fn available_names() -> String {
    let names: Vec<String> = AVAILABLE.iter().map(|a| format!("`{}`", a.model_type)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{AVAILABLE, NOT_YET, what_is_missing};

    #[test]
    fn no_family_is_both_available_and_not() {
        for family in AVAILABLE {
            assert_eq!(what_is_missing(family.model_type), None, "{}", family.model_type);
        }
        assert_eq!(AVAILABLE.len(), 11);
        assert_eq!(NOT_YET.len(), 6);
    }

    #[test]
    fn gguf_spelling_finds_the_same_family() {
        assert_eq!(what_is_missing("gptneox"), what_is_missing("gpt_neox"));
        assert!(what_is_missing("gptneox").is_some_and(|s| s.contains("parallel")));
    }
}
