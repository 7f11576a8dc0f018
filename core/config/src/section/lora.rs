//! `lora:` the adapter that is trained.

use serde_json::Value as Json;

use super::text_rule::NOT_BLANK;
use crate::declare::{choice, section};
use crate::diagnostic::Code;
use crate::read::{Readable, Reader};
use crate::spec::{Kind, Rules};
use crate::yaml::{Node, Value};

section! {
    /// The low-rank adapter that is trained beside the frozen model.
    Lora {
        /// Whether an adapter is trained; without one every weight of the model is, and the run's result is a whole model.
        enabled: bool = true;
        /// Rank of the update.
        r: usize = 8, min(1.0), max(65_536.0);
        /// Numerator of the scale: alpha / r, or alpha / sqrt(r) for rslora.
        alpha: u64 = 16, min(1.0), max(1_000_000.0);
        /// Share of the adapter's inputs that is dropped in training.
        dropout: f64 = 0.1, share();
        /// Which biases are trained.
        bias: LoraBias = LoraBias::None;
        /// The variant.
        method: LoraMethod = LoraMethod::Lora;
        /// The same as `method: dora`; may be combined with rslora.
        use_dora: bool = false;
        /// The same as `method: rslora`; may be combined with dora.
        use_rslora: bool = false;
        /// Names of the linear layers that get an adapter, matched at the end of the module's name; or `all-linear`: every linear layer but the output.
        target_modules: TargetModules = TargetModules::default();
        /// The kind of model; only `CAUSAL_LM` has a meaning.
        task_type: String = "CAUSAL_LM".to_owned(), text(NOT_BLANK);
    }
}

impl Lora {
    /// Whether the scale is alpha / sqrt(r): by `use_rslora` or by `method`.
    #[must_use]
    pub fn is_rslora(&self) -> bool {
        self.use_rslora || self.method == LoraMethod::Rslora
    }

    /// Whether magnitudes are trained apart: by `use_dora` or by `method`.
    #[must_use]
    pub fn is_dora(&self) -> bool {
        self.use_dora || self.method == LoraMethod::Dora
    }

    /// Whether the adapter begins at the principal components of the weights.
    #[must_use]
    pub fn is_pissa(&self) -> bool {
        self.method == LoraMethod::Pissa
    }

    /// The factor of the adapter's output: alpha / r, or alpha / sqrt(r) for rslora.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "both are below 2^53 by their ranges")]
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha as f64 / if self.is_rslora() { r.sqrt() } else { r }
    }
}

choice! {
    /// Which biases are trained.
    LoraBias {
        /// None.
        None = "none",
        /// All biases of the model.
        All = "all",
        /// The biases of the layers that have an adapter.
        LoraOnly = "lora_only",
    }
}

choice! {
    /// The variant of the adapter.
    LoraMethod {
        /// Hu et al. 2021.
        Lora = "lora",
        /// Weight-decomposed; Liu et al. 2024.
        Dora = "dora",
        /// Begins at the principal components; Meng et al. 2024.
        Pissa = "pissa",
        /// Scaled by alpha / sqrt(r); Kalajdzievski 2023.
        Rslora = "rslora",
    }
}

/// The word for every linear layer but the output.
const ALL_LINEAR: &str = "all-linear";

/// Which linear layers get an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer but the output.
    AllLinear,
    /// Those whose names end in one of these, as whole parts between dots.
    Suffixes(Vec<String>),
}

impl TargetModules {
    /// Whether the module of this dotted name, such as `model.layers.0.self_attn.q_proj`, is
    /// meant. For `AllLinear` every name is; the caller passes linear layers but the output.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Suffixes(suffixes) => suffixes.iter().any(|suffix| {
                name.strip_suffix(suffix.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::Suffixes(vec!["q_proj".to_owned(), "v_proj".to_owned()])
    }
}

impl Readable for TargetModules {
    const KIND: Kind = Kind::TargetModules;

    fn read(node: &Node, path: &str, rules: &Rules, reader: &mut Reader) -> Option<Self> {
        let expected = Self::KIND.expected(rules);
        match &node.value {
            Value::Scalar { text, .. } if text == ALL_LINEAR => Some(Self::AllLinear),
            Value::List(items) if items.is_empty() => {
                reader.mismatch(node, path, Code::OutOfRange, &expected);
                None
            }
            Value::List(items) => {
                let names = Vec::<String>::read(node, path, &rules.text(NOT_BLANK), reader)?;
                let all = names.iter().position(|n| n == ALL_LINEAR);
                if let Some(i) = all.filter(|_| items.len() > 1) {
                    let alone = "`all-linear` alone, or names of modules";
                    reader.mismatch(&items[i], &format!("{path}[{i}]"), Code::Conflict, alone);
                    return None;
                }
                Some(if all.is_some() { Self::AllLinear } else { Self::Suffixes(names) })
            }
            Value::Scalar { .. } | Value::Null | Value::Map(_) => {
                reader.mismatch(node, path, Code::WrongType, &expected);
                None
            }
        }
    }

    fn to_json(&self) -> Json {
        match self {
            Self::AllLinear => ALL_LINEAR.into(),
            Self::Suffixes(names) => names.iter().map(String::as_str).collect(),
        }
    }
}
