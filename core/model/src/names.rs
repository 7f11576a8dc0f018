//! Which tensor plays which part: the names of Hugging Face folders and of GGUF files.
//!
//! Inside, and in every message, the Hugging Face name is used: it is also the name that
//! `lora.target_modules` and adapter files speak.

/// The linear layers of one decoder layer, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linear {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Output projection of attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// The MLP's widening projection.
    Up,
    /// The MLP's narrowing projection.
    Down,
}

impl Linear {
    /// All, in order.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Position in [`Linear::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Module name within a layer.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Name of the whole module: `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.module())
    }

    /// Rows and columns (out and in features) of its weight.
    #[must_use]
    pub fn shape(self, dims: &crate::Dims) -> [usize; 2] {
        match self {
            Self::Q => [dims.q_width(), dims.c],
            Self::K | Self::V => [dims.kv_width(), dims.c],
            Self::O => [dims.c, dims.q_width()],
            Self::Gate | Self::Up => [dims.f, dims.c],
            Self::Down => [dims.c, dims.f],
        }
    }
}

/// The norms of one decoder layer, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Norm {
    /// Before attention.
    Input,
    /// Before the MLP.
    PostAttention,
}

impl Norm {
    /// All, in order.
    pub const ALL: [Self; 2] = [Self::Input, Self::PostAttention];

    /// Module name within a layer.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Input => "input_layernorm",
            Self::PostAttention => "post_attention_layernorm",
        }
    }
}

/// The part that a tensor plays in the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Table of token vectors [V, C].
    Embedding,
    /// Output head [V, C].
    Head,
    /// Norm before the head [C].
    FinalNorm,
    /// A norm of a decoder layer [C].
    Norm(usize, Norm),
    /// A linear layer of a decoder layer.
    Linear(usize, Linear),
    /// Divisors of the rotary frequencies [D / 2] (GGUF only; part of the configuration).
    RopeDivisors,
}

impl Role {
    /// The tensor's name in a Hugging Face folder.
    #[must_use]
    pub fn hf_name(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".to_owned(),
            Self::Head => "lm_head.weight".to_owned(),
            Self::FinalNorm => "model.norm.weight".to_owned(),
            Self::Norm(layer, norm) => format!("model.layers.{layer}.{}.weight", norm.module()),
            Self::Linear(layer, linear) => format!("{}.weight", linear.path(layer)),
            Self::RopeDivisors => "rope_freqs.weight".to_owned(),
        }
    }

    /// The tensor's name in a GGUF file.
    #[must_use]
    pub fn gguf_name(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".to_owned(),
            Self::Head => "output.weight".to_owned(),
            Self::FinalNorm => "output_norm.weight".to_owned(),
            Self::Norm(layer, norm) => {
                let part = match norm {
                    Norm::Input => "attn_norm",
                    Norm::PostAttention => "ffn_norm",
                };
                format!("blk.{layer}.{part}.weight")
            }
            Self::Linear(layer, linear) => {
                let part = match linear {
                    Linear::Q => "attn_q",
                    Linear::K => "attn_k",
                    Linear::V => "attn_v",
                    Linear::O => "attn_output",
                    Linear::Gate => "ffn_gate",
                    Linear::Up => "ffn_up",
                    Linear::Down => "ffn_down",
                };
                format!("blk.{layer}.{part}.weight")
            }
            Self::RopeDivisors => "rope_freqs.weight".to_owned(),
        }
    }

    /// Shape of the tensor, outermost axis first.
    #[must_use]
    pub fn shape(self, dims: &crate::Dims) -> Vec<usize> {
        match self {
            Self::Embedding | Self::Head => vec![dims.v, dims.c],
            Self::FinalNorm | Self::Norm(..) => vec![dims.c],
            Self::Linear(_, linear) => linear.shape(dims).to_vec(),
            Self::RopeDivisors => vec![dims.d / 2],
        }
    }

    /// Every role of a model of `n_layers`, but the head and the rotary divisors, which not every
    /// model has.
    pub fn always(n_layers: usize) -> impl Iterator<Item = Self> {
        let layers = (0..n_layers).flat_map(|layer| {
            let norms = Norm::ALL.into_iter().map(move |norm| Self::Norm(layer, norm));
            norms.chain(Linear::ALL.into_iter().map(move |linear| Self::Linear(layer, linear)))
        });
        [Self::Embedding, Self::FinalNorm].into_iter().chain(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::{Linear, Role};

    #[test]
    fn every_role_has_one_name_in_each_format() {
        let roles: Vec<Role> = Role::always(3).chain([Role::Head]).collect();
        assert_eq!(roles.len(), 3 + 3 * 9);
        for name in [Role::hf_name, Role::gguf_name] {
            let mut names: Vec<String> = roles.iter().map(|r| name(*r)).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), roles.len());
        }
    }

    #[test]
    fn index_is_the_position_in_the_list() {
        for (i, linear) in Linear::ALL.into_iter().enumerate() {
            assert_eq!(linear.index(), i);
        }
    }
}
