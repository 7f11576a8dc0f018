//! What a parameter's name says about its weight decay.

/// Whether weight decay applies: not to biases and not to the weights of norms.
///
/// The rule of the Hugging Face Trainer: `bias`, `layernorm` or `rmsnorm` anywhere in the name, or
/// a part of the path that is `norm` or ends in `_norm`.
#[must_use]
pub fn is_decayed(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_norm = |part: &str| part == "norm" || part.ends_with("_norm");
    !["bias", "layernorm", "rmsnorm"].iter().any(|part| name.contains(part))
        && !name.split('.').any(is_norm)
}

#[cfg(test)]
mod tests {
    use super::is_decayed;

    #[test]
    fn biases_and_norms_are_exempt() {
        for (name, expected) in [
            ("model.layers.0.self_attn.q_proj.weight", true),
            ("model.layers.0.self_attn.q_proj.bias", false),
            ("model.layers.0.self_attn.q_norm.weight", false),
            ("model.layers.0.input_layernorm.weight", false),
            ("model.norm.weight", false),
            ("model.embed_tokens.weight", true),
            ("model.layers.0.normalize.weight", true),
            ("base_model.model.model.layers.3.mlp.up_proj.lora_A.weight", true),
            ("base_model.model.model.layers.3.mlp.up_proj.lora_magnitude_vector.weight", true),
        ] {
            assert_eq!(is_decayed(name), expected, "{name}");
        }
    }
}
