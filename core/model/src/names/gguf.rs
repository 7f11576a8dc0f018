//! The names of GGUF files, as the `llama.cpp` project defines them.

use super::{ExpertPart, Linear, Norm, Role};

/// Divisors of the rotary frequencies.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Divisors for sequences beyond the original length.
pub(crate) const ROPE_LONG: &str = "rope_factors_long.weight";
/// Divisors for sequences up to the original length.
pub(crate) const ROPE_SHORT: &str = "rope_factors_short.weight";
/// Table of token vectors.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// Output head.
pub(crate) const HEAD: &str = "output.weight";

/// The tensor that holds a role. All experts of a layer lie in one tensor, one behind another.
///
/// `post_norms` says whether the model norms again after attention and MLP: the norm before the
/// MLP is called by another name in Hugging Face folders, and by the same here.
pub(crate) fn name(role: Role, post_norms: bool) -> String {
    match role {
        Role::Embedding => EMBEDDING.to_owned(),
        Role::Head => HEAD.to_owned(),
        Role::FinalNorm => "output_norm.weight".to_owned(),
        Role::Norm(layer, norm) => {
            let part = match norm {
                Norm::Input => "attn_norm",
                Norm::Query => "attn_q_norm",
                Norm::Key => "attn_k_norm",
                Norm::PostAttention if post_norms => "post_attention_norm",
                Norm::PostAttention | Norm::PreFeedforward => "ffn_norm",
                Norm::PostFeedforward => "post_ffw_norm",
            };
            format!("blk.{layer}.{part}.weight")
        }
        Role::Linear(layer, linear) => format!("blk.{layer}.{}.weight", part(linear)),
        Role::Bias(layer, linear) => format!("blk.{layer}.{}.bias", part(linear)),
        Role::RopeDivisors => ROPE_DIVISORS.to_owned(),
    }
}

fn part(linear: Linear) -> &'static str {
    match linear {
        Linear::Q => "attn_q",
        Linear::K => "attn_k",
        Linear::V => "attn_v",
        Linear::Qkv => "attn_qkv",
        Linear::O => "attn_output",
        Linear::Gate => "ffn_gate",
        // A fused gate lies in the upper half of this tensor.
        Linear::Up | Linear::GateUp => "ffn_up",
        Linear::Down => "ffn_down",
        Linear::Router => "ffn_gate_inp",
        Linear::SharedGate => "ffn_gate_shexp",
        Linear::SharedUp => "ffn_up_shexp",
        Linear::SharedDown => "ffn_down_shexp",
        Linear::SharedExpertGate => "ffn_gate_inp_shexp",
        Linear::Expert(_, ExpertPart::Gate) => "ffn_gate_exps",
        Linear::Expert(_, ExpertPart::Up) => "ffn_up_exps",
        Linear::Expert(_, ExpertPart::Down) => "ffn_down_exps",
    }
}
