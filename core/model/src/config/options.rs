//! The options in which families differ, with the values of Llama as defaults.

use forgelm_kernels_api::{Activation, Choice};

use super::ConfigError;
use crate::names::{ExpertPart, Linear, ModuleNames};
use crate::rope::Rope;

/// Options of attention.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionOptions {
    /// Biases on query, key and value.
    pub qkv_bias: bool,
    /// A bias on the output projection.
    pub o_bias: bool,
    /// Query, key and value are one matrix, in this order of rows.
    pub is_fused: bool,
    /// Each query and key head is normed before it is rotated.
    pub qk_norm: bool,
    /// Scores are divided by its root; `None` for the width of a head.
    pub query_pre_attn_scalar: Option<f64>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// By layer: whether it has the window. As long as there are layers.
    pub windowed_layers: Vec<bool>,
    /// Rotary embedding of the windowed layers, where it is another.
    pub local_rope: Option<Rope>,
    /// The first elements of a head that are rotated; `None` for all.
    pub rotary_dim: Option<usize>,
}

/// Options of the norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NormOptions {
    /// Hugging Face folders store `w` where the norm multiplies by `1 + w` (GGUF files store the
    /// sum).
    pub stored_as_offsets: bool,
    /// Attention and MLP are normed again before they are added to the residual stream.
    pub post_norms: bool,
}

/// Options of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpOptions {
    /// Biases on gate, up and down.
    pub bias: bool,
    /// Gate and up are one matrix, in this order of rows.
    pub is_fused: bool,
    /// The gate's non-linearity, of experts too.
    pub act: Activation,
}

impl Default for MlpOptions {
    fn default() -> Self {
        Self { bias: false, is_fused: false, act: Activation::Silu }
    }
}

/// A mixture of experts.
///
/// Paper: Fedus et al. 2021, arXiv:2101.03961 (routing and the balance loss); Jiang et al. 2024,
/// arXiv:2401.04088 (top-k of a softmax).
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// E.
    pub num_experts: usize,
    /// Experts that each token goes to.
    pub num_experts_per_tok: usize,
    /// Width of each expert's MLP.
    pub intermediate_size: usize,
    /// Width of the MLP that every token goes to, if there is one.
    pub shared_intermediate_size: Option<usize>,
    /// The chosen probabilities are divided by their sum.
    pub norm_topk_prob: bool,
    /// By layer: whether it has experts. As long as there are layers.
    pub layers: Vec<bool>,
    /// Weight of the balance loss.
    pub router_aux_loss_coef: f32,
    /// Whether the model asks for the balance loss (`output_router_logits`).
    pub output_router_logits: bool,
    /// How modules are named.
    pub names: ModuleNames,
}

impl Experts {
    /// The linear layers in the place of the MLP, in the order of the forward pass.
    pub(super) fn linears(&self) -> Vec<Linear> {
        let mut linears = vec![Linear::Router];
        for expert in 0..self.num_experts {
            let part = |part| Linear::Expert(expert as u16, part);
            linears.extend(ExpertPart::ALL.map(part));
        }
        if self.shared_intermediate_size.is_some() {
            linears.extend([
                Linear::SharedGate,
                Linear::SharedUp,
                Linear::SharedDown,
                Linear::SharedExpertGate,
            ]);
        }
        linears
    }

    pub(super) fn validate(&self, place: &str, n_layers: usize) -> Result<(), ConfigError> {
        let contradiction =
            |what: String| Err(ConfigError::Contradiction { place: place.to_owned(), what });
        let (experts, chosen) = (self.num_experts, self.num_experts_per_tok);
        if experts > Choice::EXPERTS_MAX {
            let most = Choice::EXPERTS_MAX;
            return contradiction(format!("{experts} experts; at most {most} can be run"));
        }
        if chosen == 0 || chosen > experts {
            return contradiction(format!(
                "`num_experts_per_tok` is {chosen}, but there are {experts} experts"
            ));
        }
        if chosen > Choice::CHOSEN_MAX {
            let most = Choice::CHOSEN_MAX;
            return contradiction(format!(
                "`num_experts_per_tok` is {chosen}; at most {most} can be run"
            ));
        }
        if self.intermediate_size == 0 || self.shared_intermediate_size == Some(0) {
            return contradiction("an expert's `intermediate_size` is 0".to_owned());
        }
        if self.layers.len() != n_layers {
            return contradiction(format!(
                "the kinds of {} layers are given, but `num_hidden_layers` is {n_layers}",
                self.layers.len()
            ));
        }
        Ok(())
    }
}
