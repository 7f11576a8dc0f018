//! Low-rank adapters: what kind, and which modules are adapted.
//!
//! Papers: Hu et al. 2021, arXiv:2106.09685, eq. 3; the rank-stabilized scale: Kalajdzievski 2023,
//! arXiv:2312.03732; magnitudes: Liu et al. 2024, arXiv:2402.09353; principal components: Meng et
//! al. 2024, arXiv:2404.02948. The numbers are in a [`Trainable`](crate::Trainable); files are in
//! [`peft`](crate::adapter::PeftInfo).

mod peft;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use forgelm_artifact::open::OpenError;
use forgelm_artifact::pieces::PiecesError;
use thiserror::Error;

use crate::config::{Dims, ModelConfig};
use crate::names::Linear;
pub use peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoadedAdapter, PeftInfo, TRAINED_WEIGHTS};

/// The word that stands for every linear layer but the head.
pub const ALL_LINEAR: &str = "all-linear";

/// Where A and B begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// A random, B zero: nothing changes yet.
    #[default]
    Noise,
    /// The principal components of the weight, which are taken out of the base (PiSSA).
    PrincipalComponents,
}

/// Which biases are trained beside the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrainedBias {
    /// None.
    #[default]
    None,
    /// All of the model.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

impl TrainedBias {
    /// The word of configurations and adapter files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }
}

/// What kind of adapter, as `lora:` of the configuration says it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Chance that an input of A becomes zero while training.
    pub dropout: f32,
    /// Modules to adapt: last components of names, whole names, or `all-linear`.
    pub target_modules: Vec<String>,
    /// Scale `alpha / sqrt(r)` rather than `alpha / r`.
    pub rslora: bool,
    /// A magnitude is trained for each output of an adapted layer (DoRA).
    pub dora: bool,
    /// Where A and B begin.
    pub init: LoraInit,
    /// Which biases are trained.
    pub bias: TrainedBias,
    /// Ranks that differ, by module name as in `target_modules`.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas that differ, by module name as in `target_modules`.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl LoraConfig {
    /// Rank and alpha for these modules, everything else at its default.
    #[must_use]
    pub fn new(r: usize, alpha: f64, target_modules: &[&str]) -> Self {
        Self {
            r,
            alpha,
            dropout: 0.0,
            target_modules: target_modules.iter().map(|&s| s.to_owned()).collect(),
            rslora: false,
            dora: false,
            init: LoraInit::Noise,
            bias: TrainedBias::None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }

    /// The same adapter with, of all experts, only these adapted: `moe.experts_to_train`. The
    /// targets become names that say which, so that a saved adapter says it too.
    ///
    /// # Errors
    /// If there is no such expert, or a target names nothing.
    pub fn for_experts(self, experts: &[usize], model: &ModelConfig) -> Result<Self, AdapterError> {
        let n_experts = model.dims().e;
        if let Some(&bad) = experts.iter().find(|&&e| e >= n_experts) {
            return Err(AdapterError::NoSuchExpert { found: bad, n_experts });
        }
        let is_kept = |m: &AdaptedModule| match m.linear {
            Linear::Expert(expert, _) => experts.contains(&usize::from(expert)),
            _ => true,
        };
        // Names without the layer, unless a target is of one layer only.
        let is_of_layer = self.target_modules.iter().any(|t| t.contains("layers."));
        let name = |m: &AdaptedModule| match is_of_layer {
            true => m.path.clone(),
            false => m.linear.module(model.module_names()),
        };
        let modules = adapted_modules(&self, model)?;
        let names: BTreeSet<String> = modules.iter().filter(|m| is_kept(m)).map(name).collect();
        Ok(Self { target_modules: names.into_iter().collect(), ..self })
    }

    /// Rank and scale of one module.
    fn rank_and_scale(&self, path: &str) -> (usize, f32) {
        let r = by_pattern(&self.rank_pattern, path).unwrap_or(self.r);
        let alpha = by_pattern(&self.alpha_pattern, path).unwrap_or(self.alpha);
        let divisor = if self.rslora { (r as f64).sqrt() } else { r as f64 };
        (r, (alpha / divisor) as f32)
    }
}

/// The value of the first pattern that names this module.
fn by_pattern<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
    patterns.iter().find(|(key, _)| names_module(key, path)).map(|(_, value)| *value)
}

/// Whether `target` is the module's whole name or the last components of it.
pub(crate) fn names_module(target: &str, path: &str) -> bool {
    path.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Why an adapter cannot be made or read.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// A setting is out of range.
    #[error("`lora.{key}` is {found}; expected {expected}")]
    Setting {
        /// Key.
        key: &'static str,
        /// Value found.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A target names no module of the model.
    #[error(
        "`lora.target_modules`: `{target}` names no linear layer of this model\n  \
         hint: it has {available}, and `all-linear` means all of them"
    )]
    NoSuchModule {
        /// The target.
        target: String,
        /// The last components that exist.
        available: String,
    },
    /// An expert that the model does not have.
    #[error("`moe.experts_to_train` names expert {found}, but the model has {n_experts} experts")]
    NoSuchExpert {
        /// The number.
        found: usize,
        /// Number of experts, counted from 0.
        n_experts: usize,
    },
    /// A name means no weight of the model.
    #[error("`{name}` is no weight of this model\n  hint: `model.norm.weight` is one")]
    NoSuchWeight {
        /// The name.
        name: String,
    },
    /// The list of weights to train is empty.
    #[error("nothing would train: the list of weights is empty")]
    NothingTrains,
    /// Adapters of this kind cannot be used yet.
    #[error("{place}: {what} is not available yet")]
    NotAvailable {
        /// File.
        place: String,
        /// What the file asks for.
        what: String,
    },
    /// The numbers of a checkpoint lie in shards.
    #[error(
        "{place}: the adapter lies in shards\n  hint: `forgelm checkpoint merge` makes a whole one"
    )]
    InShards {
        /// Folder.
        place: String,
    },
    /// The settings file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The tensor file is not as its format asks.
    #[error(transparent)]
    Tensors(#[from] PiecesError),
    /// The settings file does not say what it must.
    #[error("{place}: {cause}")]
    Settings {
        /// File.
        place: String,
        /// What is wrong.
        cause: String,
    },
    /// The adapter is not the one that was expected.
    #[error("{place}: this adapter does not fit: {}", differences.join("; "))]
    Differs {
        /// File.
        place: String,
        /// Each difference, with both values.
        differences: Vec<String>,
    },
}

/// One adapted linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedModule {
    /// Decoder layer.
    pub layer: usize,
    /// Which linear layer of it.
    pub linear: Linear,
    /// Whole name: `model.layers.3.mlp.up_proj`.
    pub path: String,
    /// Rank.
    pub r: usize,
    /// Factor s on `B A x`.
    pub scale: f32,
    /// Columns of A.
    pub n_in: usize,
    /// Rows of B.
    pub n_out: usize,
    /// Where A [r, n_in] lies in the flat buffer.
    pub a: Range<usize>,
    /// Where B [n_out, r] lies in the flat buffer.
    pub b: Range<usize>,
    /// Where the magnitudes [n_out] lie in the flat buffer, if they are trained.
    pub magnitude: Option<Range<usize>>,
}

impl AdaptedModule {
    /// Where its part of the flat buffer ends.
    pub(crate) fn end(&self) -> usize {
        self.magnitude.as_ref().unwrap_or(&self.b).end
    }

    /// A number that names the module whatever else is adapted: the step of its first values and
    /// the index of its dropout mask.
    #[must_use]
    pub fn index(&self) -> u64 {
        // The first seven keep the numbers that they had when there were no others, so that a seed
        // still means the same adapter.
        let first = match self.linear {
            Linear::Q => 0,
            Linear::K => 1,
            Linear::V => 2,
            Linear::O => 3,
            Linear::Gate => 4,
            Linear::Up => 5,
            Linear::Down => 6,
            other => return 1 << 63 | (self.layer as u64) << 32 | other.index() as u64,
        };
        self.layer as u64 * 7 + first
    }
}

/// The modules that `config` adapts, in the order of the buffer: layer, then forward pass; A before
/// B before the magnitudes.
///
/// # Errors
/// If a setting is out of range or a target names nothing.
pub(crate) fn adapted_modules(
    config: &LoraConfig,
    model: &ModelConfig,
) -> Result<Vec<AdaptedModule>, AdapterError> {
    check_settings(config)?;
    check_targets(&config.target_modules, model)?;
    let dims = model.dims();
    let mut modules: Vec<AdaptedModule> = Vec::new();
    for layer in 0..dims.l {
        for linear in model.linears(layer) {
            let path = linear.path(layer, model.module_names());
            let is_target =
                |t: &String| (t == ALL_LINEAR && !linear.is_router()) || names_module(t, &path);
            if config.target_modules.iter().any(is_target) {
                let start = modules.last().map_or(0, AdaptedModule::end);
                modules.push(adapted_module(config, &dims, layer, linear, path, start));
            }
        }
    }
    // Whole names may point at layers that do not exist.
    for target in &config.target_modules {
        let found = |m: &AdaptedModule| target == ALL_LINEAR || names_module(target, &m.path);
        if !modules.iter().any(found) {
            return Err(no_such_module(target, model));
        }
    }
    Ok(modules)
}

fn adapted_module(
    config: &LoraConfig,
    dims: &Dims,
    layer: usize,
    linear: Linear,
    path: String,
    start: usize,
) -> AdaptedModule {
    let [n_out, n_in] = linear.shape(dims);
    let (r, scale) = config.rank_and_scale(&path);
    let a = start..start + r * n_in;
    let b = a.end..a.end + n_out * r;
    let magnitude = config.dora.then(|| b.end..b.end + n_out);
    AdaptedModule { layer, linear, path, r, scale, n_in, n_out, a, b, magnitude }
}

fn check_settings(config: &LoraConfig) -> Result<(), AdapterError> {
    let ranks = config.rank_pattern.values().copied().chain([config.r]);
    if let Some(bad) = ranks.into_iter().find(|r| *r == 0 || *r > 65_536) {
        return Err(AdapterError::Setting {
            key: "r",
            found: bad.to_string(),
            expected: "a number from 1 to 65536",
        });
    }
    let alphas = config.alpha_pattern.values().copied().chain([config.alpha]);
    if let Some(bad) = alphas.into_iter().find(|alpha| !(*alpha > 0.0 && alpha.is_finite())) {
        return Err(AdapterError::Setting {
            key: "alpha",
            found: bad.to_string(),
            expected: "a positive number",
        });
    }
    if !(0.0..1.0).contains(&config.dropout) {
        return Err(AdapterError::Setting {
            key: "dropout",
            found: config.dropout.to_string(),
            expected: "at least 0 and below 1",
        });
    }
    Ok(())
}

/// Refuses an empty list early; single targets are checked against the modules.
fn check_targets(targets: &[String], model: &ModelConfig) -> Result<(), AdapterError> {
    if targets.is_empty() {
        return Err(AdapterError::Setting {
            key: "target_modules",
            found: "an empty list".to_owned(),
            expected: "at least one module name, or `all-linear`",
        });
    }
    if let Some(empty) = targets.iter().find(|t| t.is_empty()) {
        return Err(no_such_module(empty, model));
    }
    Ok(())
}

fn no_such_module(target: &str, model: &ModelConfig) -> AdapterError {
    let names: Vec<String> = last_names(model).iter().map(|name| format!("`{name}`")).collect();
    AdapterError::NoSuchModule { target: target.to_owned(), available: names.join(", ") }
}

/// Last components of the names of the linear layers that `all-linear` means, sorted.
pub(crate) fn last_names(model: &ModelConfig) -> Vec<String> {
    let mut names = BTreeSet::new();
    for linear in (0..model.num_hidden_layers).flat_map(|layer| model.linears(layer)) {
        let module = linear.module(model.module_names());
        if let Some((_, last)) = module.rsplit_once('.').filter(|_| !linear.is_router()) {
            names.insert(last.to_owned());
        }
    }
    names.into_iter().collect()
}
