//! Which tensor plays which part: the names of Hugging Face folders and of GGUF files.
//!
//! Inside, and in every message, the Hugging Face name is used: it is also the name that
//! `lora.target_modules` and adapter files speak.

pub(crate) mod gguf;

/// How the modules of experts are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModuleNames {
    /// `mlp.experts.3.gate_proj`.
    #[default]
    Qwen,
    /// `block_sparse_moe.experts.3.w1`.
    Mixtral,
}

/// A linear layer of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpertPart {
    /// Gate.
    Gate,
    /// Widening projection.
    Up,
    /// Narrowing projection.
    Down,
}

impl ExpertPart {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];
}

/// A linear layer of a decoder layer. Which of them a layer has, and in what order they run, says
/// [`ModelConfig::linears`](crate::ModelConfig::linears).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linear {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Query, key and value in one matrix.
    Qkv,
    /// Output projection of attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// The MLP's widening projection.
    Up,
    /// Gate and widening projection in one matrix.
    GateUp,
    /// The MLP's narrowing projection.
    Down,
    /// Scores of the experts.
    Router,
    /// Gate of the shared expert.
    SharedGate,
    /// The shared expert's widening projection.
    SharedUp,
    /// The shared expert's narrowing projection.
    SharedDown,
    /// How much of the shared expert is added.
    SharedExpertGate,
    /// A linear layer of an expert, by its number.
    Expert(u16, ExpertPart),
}

impl Linear {
    /// Those without a number, in order.
    const FIXED: [Self; 14] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::Qkv,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::GateUp,
        Self::Down,
        Self::Router,
        Self::SharedGate,
        Self::SharedUp,
        Self::SharedDown,
        Self::SharedExpertGate,
    ];

    /// Places that tables by [`Linear::index`] need without experts.
    pub const N_FIXED: usize = Self::FIXED.len();

    /// Places that tables by [`Linear::index`] need.
    #[must_use]
    pub fn n_places(dims: &crate::Dims) -> usize {
        Self::N_FIXED + dims.e * ExpertPart::ALL.len()
    }

    /// A number of its own below [`Linear::n_places`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Expert(expert, part) => {
                Self::N_FIXED + usize::from(expert) * ExpertPart::ALL.len() + part as usize
            }
            Self::Q => 0,
            Self::K => 1,
            Self::V => 2,
            Self::Qkv => 3,
            Self::O => 4,
            Self::Gate => 5,
            Self::Up => 6,
            Self::GateUp => 7,
            Self::Down => 8,
            Self::Router => 9,
            Self::SharedGate => 10,
            Self::SharedUp => 11,
            Self::SharedDown => 12,
            Self::SharedExpertGate => 13,
        }
    }

    /// Whether it belongs to the second half of a decoder layer.
    #[must_use]
    pub fn is_mlp(self) -> bool {
        self >= Self::Gate
    }

    /// Whether it chooses among experts: such layers are adapted only when they are named.
    #[must_use]
    pub fn is_router(self) -> bool {
        matches!(self, Self::Router | Self::SharedExpertGate)
    }

    /// Module name within a layer.
    #[must_use]
    pub fn module(self, names: ModuleNames) -> String {
        let block = match names {
            ModuleNames::Qwen => "mlp",
            ModuleNames::Mixtral => "block_sparse_moe",
        };
        match self {
            Self::Q => "self_attn.q_proj".to_owned(),
            Self::K => "self_attn.k_proj".to_owned(),
            Self::V => "self_attn.v_proj".to_owned(),
            Self::Qkv => "self_attn.qkv_proj".to_owned(),
            Self::O => "self_attn.o_proj".to_owned(),
            Self::Gate => "mlp.gate_proj".to_owned(),
            Self::Up => "mlp.up_proj".to_owned(),
            Self::GateUp => "mlp.gate_up_proj".to_owned(),
            Self::Down => "mlp.down_proj".to_owned(),
            Self::Router => format!("{block}.gate"),
            Self::SharedGate => "mlp.shared_expert.gate_proj".to_owned(),
            Self::SharedUp => "mlp.shared_expert.up_proj".to_owned(),
            Self::SharedDown => "mlp.shared_expert.down_proj".to_owned(),
            Self::SharedExpertGate => "mlp.shared_expert_gate".to_owned(),
            Self::Expert(expert, part) => {
                let part = match (names, part) {
                    (ModuleNames::Qwen, ExpertPart::Gate) => "gate_proj",
                    (ModuleNames::Qwen, ExpertPart::Up) => "up_proj",
                    (ModuleNames::Qwen, ExpertPart::Down) => "down_proj",
                    (ModuleNames::Mixtral, ExpertPart::Gate) => "w1",
                    (ModuleNames::Mixtral, ExpertPart::Up) => "w3",
                    (ModuleNames::Mixtral, ExpertPart::Down) => "w2",
                };
                format!("{block}.experts.{expert}.{part}")
            }
        }
    }

    /// Name of the whole module: `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn path(self, layer: usize, names: ModuleNames) -> String {
        format!("model.layers.{layer}.{}", self.module(names))
    }

    /// Rows and columns (out and in features) of its weight.
    #[must_use]
    pub fn shape(self, dims: &crate::Dims) -> [usize; 2] {
        match self {
            Self::Q => [dims.q_width(), dims.c],
            Self::K | Self::V => [dims.kv_width(), dims.c],
            Self::Qkv => [dims.q_width() + 2 * dims.kv_width(), dims.c],
            Self::O => [dims.c, dims.q_width()],
            Self::Gate | Self::Up => [dims.f, dims.c],
            Self::GateUp => [2 * dims.f, dims.c],
            Self::Down => [dims.c, dims.f],
            Self::Router => [dims.e, dims.c],
            Self::SharedGate | Self::SharedUp => [dims.f_shared, dims.c],
            Self::SharedDown => [dims.c, dims.f_shared],
            Self::SharedExpertGate => [1, dims.c],
            Self::Expert(_, ExpertPart::Gate | ExpertPart::Up) => [dims.f_expert, dims.c],
            Self::Expert(_, ExpertPart::Down) => [dims.c, dims.f_expert],
        }
    }
}

/// The norms of one decoder layer, by their names. Which of them a layer has says
/// [`ModelConfig::norms`](crate::ModelConfig::norms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Norm {
    /// Before attention.
    Input,
    /// Over each query head.
    Query,
    /// Over each key head.
    Key,
    /// Before the MLP; in families that norm again, after attention.
    PostAttention,
    /// Before the MLP, in families that norm again.
    PreFeedforward,
    /// After the MLP, in families that norm again.
    PostFeedforward,
}

impl Norm {
    /// All, in order.
    pub const ALL: [Self; 6] = [
        Self::Input,
        Self::Query,
        Self::Key,
        Self::PostAttention,
        Self::PreFeedforward,
        Self::PostFeedforward,
    ];

    /// Position in [`Norm::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Module name within a layer.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            Self::Input => "input_layernorm",
            Self::Query => "self_attn.q_norm",
            Self::Key => "self_attn.k_norm",
            Self::PostAttention => "post_attention_layernorm",
            Self::PreFeedforward => "pre_feedforward_layernorm",
            Self::PostFeedforward => "post_feedforward_layernorm",
        }
    }

    /// Number of weights.
    #[must_use]
    pub fn width(self, dims: &crate::Dims) -> usize {
        match self {
            Self::Query | Self::Key => dims.d,
            Self::Input | Self::PostAttention | Self::PreFeedforward | Self::PostFeedforward => {
                dims.c
            }
        }
    }
}

/// The part that a tensor plays in the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Table of token vectors [V, C].
    Embedding,
    /// Output head [V, C]; of a classifier [labels, C].
    Head,
    /// Norm before the head [C].
    FinalNorm,
    /// A norm of a decoder layer [C], or [D] for heads.
    Norm(usize, Norm),
    /// A linear layer of a decoder layer.
    Linear(usize, Linear),
    /// The bias of a linear layer.
    Bias(usize, Linear),
    /// Divisors of the rotary frequencies [R / 2] (GGUF only; part of the configuration).
    RopeDivisors,
}

impl Role {
    /// The tensor's name in a Hugging Face folder.
    #[must_use]
    pub fn hf_name(self, names: ModuleNames) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".to_owned(),
            Self::Head => "lm_head.weight".to_owned(),
            Self::FinalNorm => "model.norm.weight".to_owned(),
            Self::Norm(layer, norm) => format!("model.layers.{layer}.{}.weight", norm.module()),
            Self::Linear(layer, linear) => format!("{}.weight", linear.path(layer, names)),
            Self::Bias(layer, linear) => format!("{}.bias", linear.path(layer, names)),
            Self::RopeDivisors => gguf::ROPE_DIVISORS.to_owned(),
        }
    }

    /// The tensor's name in a GGUF file. All experts of a layer share one.
    ///
    /// `post_norms` says whether the model norms again after attention and MLP.
    #[must_use]
    pub fn gguf_name(self, post_norms: bool) -> String {
        gguf::name(self, post_norms)
    }

    /// Shape of the tensor, outermost axis first.
    #[must_use]
    pub fn shape(self, dims: &crate::Dims) -> Vec<usize> {
        match self {
            Self::Embedding => vec![dims.v, dims.c],
            Self::Head => vec![dims.n_out, dims.c],
            Self::FinalNorm => vec![dims.c],
            Self::Norm(_, norm) => vec![norm.width(dims)],
            Self::Linear(_, linear) => linear.shape(dims).to_vec(),
            Self::Bias(_, linear) => vec![linear.shape(dims)[0]],
            Self::RopeDivisors => vec![dims.d / 2],
        }
    }

    /// Every role of a model, but the head, which a tied model need not have, and the rotary
    /// divisors.
    #[must_use]
    pub fn always(config: &crate::ModelConfig) -> Vec<Self> {
        let mut roles = vec![Self::Embedding, Self::FinalNorm];
        for layer in 0..config.num_hidden_layers {
            roles.extend(config.norms().into_iter().map(|norm| Self::Norm(layer, norm)));
            for linear in config.linears(layer) {
                roles.push(Self::Linear(layer, linear));
                if config.has_bias(linear) {
                    roles.push(Self::Bias(layer, linear));
                }
            }
        }
        roles
    }
}

#[cfg(test)]
mod tests {
    use super::{ExpertPart, Linear, Norm};

    #[test]
    fn index_is_the_position_in_the_list() {
        let experts = (0..3).flat_map(|e| ExpertPart::ALL.map(|part| Linear::Expert(e, part)));
        let all: Vec<Linear> = Linear::FIXED.into_iter().chain(experts).collect();
        assert_eq!(all.len(), 14 + 9);
        for (i, linear) in all.iter().enumerate() {
            assert_eq!(linear.index(), i);
        }
        assert!(all.is_sorted(), "the order of the list is that of the forward pass");
        for (i, norm) in Norm::ALL.into_iter().enumerate() {
            assert_eq!(norm.index(), i);
        }
    }

    #[test]
    fn the_second_half_begins_at_the_gate() {
        let first: Vec<Linear> = Linear::FIXED.into_iter().filter(|l| !l.is_mlp()).collect();
        assert_eq!(first, [Linear::Q, Linear::K, Linear::V, Linear::Qkv, Linear::O]);
    }
}
