//! Which model families the decoder can run, as data, and in what the others differ.
//!
//! A family becomes available by adding the option in which it differs to
//! [`ModelConfig`](crate::ModelConfig) and the decoder, and then moving its line up.

/// A family of models that the decoder runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The entry of `architectures` in `config.json`.
    pub class: &'static str,
    /// `general.architecture` of a GGUF file.
    pub gguf: &'static str,
    /// Whether the family knows `sliding_window`.
    pub has_sliding_window: bool,
}

/// Every family that runs.
pub const AVAILABLE: [Architecture; 2] = [
    Architecture {
        model_type: "llama",
        class: "LlamaForCausalLM",
        gguf: "llama",
        has_sliding_window: false,
    },
    // Mistral is Llama with an attention window; its GGUF files call themselves `llama`.
    Architecture {
        model_type: "mistral",
        class: "MistralForCausalLM",
        gguf: "llama",
        has_sliding_window: true,
    },
];

/// Families that are known but do not run yet: `model_type` (GGUF spells it the same, or without
/// the underscore) and what the decoder lacks.
const NOT_YET: [(&str, &str); 14] = [
    ("qwen2", "biases on the query, key and value projections"),
    ("qwen3", "a norm over each query and key head"),
    ("qwen3_moe", "a norm over each query and key head, and a mixture of experts"),
    ("mixtral", "a mixture of experts"),
    ("gemma", "norm weights stored as 1 + w, a scaled embedding and a GELU gate"),
    (
        "gemma2",
        "norms after each block, soft-capped scores and logits, and a window on every other layer",
    ),
    (
        "gemma3_text",
        "norms after each block, a norm over each query and key head, and two rotary bases",
    ),
    ("gemma3", "images, norms after each block, and a norm over each query and key head"),
    ("phi3", "one fused matrix for query, key and value, and one for gate and up"),
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
        assert_eq!(AVAILABLE.len(), 2);
        assert_eq!(NOT_YET.len(), 14);
    }

    #[test]
    fn gguf_spelling_finds_the_same_family() {
        assert_eq!(what_is_missing("qwen3moe"), what_is_missing("qwen3_moe"));
        assert!(what_is_missing("qwen3moe").is_some_and(|s| s.contains("experts")));
    }
}
