//! Low-rank adapters: which modules are adapted, and one flat buffer with every trainable number.
//!
//! Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3; the rank-stabilized scale: Kalajdzievski 2023,
//! arXiv:2312.03732. Optimizer, checkpoint and hash see [`Adapter::params`] and nothing else.
//! Start at [`Adapter::new`]; files are in [`peft`](crate::adapter::PeftInfo).

mod peft;

use std::collections::BTreeMap;
use std::ops::Range;

use forgelm_artifact::open::OpenError;
use forgelm_artifact::safetensors::SafetensorsError;
use forgelm_kernels_api::FrozenMatrix;
use forgelm_tensor::random::Stream;
use thiserror::Error;

use crate::config::{Dims, ModelConfig};
use crate::names::Linear;
pub use peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoadedAdapter, PeftInfo};

/// The word that stands for every linear layer but the head.
pub const ALL_LINEAR: &str = "all-linear";

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
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
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
fn names_module(target: &str, path: &str) -> bool {
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
    /// Adapters of this kind cannot be used yet.
    #[error("{place}: {what} is not available yet")]
    NotAvailable {
        /// File.
        place: String,
        /// What the file asks for.
        what: String,
    },
    /// The settings file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The tensor file is not as its format asks.
    #[error(transparent)]
    Tensors(#[from] SafetensorsError),
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
}

impl AdaptedModule {
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

/// A named part of the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSlice {
    /// Name as in adapter files.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Where it lies.
    pub range: Range<usize>,
}

/// LoRA on some linear layers of a model.
///
/// **Invariant:** the slices of [`Adapter::slices`] cover the buffer without gap or overlap, in
/// the order layer, module (q, k, v, o, gate, up, down), A before B.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    config: LoraConfig,
    params: Vec<f32>,
    modules: Vec<AdaptedModule>,
    /// Index into `modules` by layer and linear.
    places: Vec<Vec<Option<usize>>>,
    /// What `all-linear` means: last components of names, sorted.
    all_linear: Vec<String>,
}

impl Adapter {
    /// A new adapter: A uniform in `[-1/sqrt(n_in), 1/sqrt(n_in)]` from the stream, B = 0, so that
    /// it changes nothing yet.
    ///
    /// Element i of A of module m is `(2 uniform(m, i) - 1) / sqrt(n_in)`.
    ///
    /// # Errors
    /// If a setting is out of range or a target names nothing.
    pub fn new(
        config: LoraConfig,
        model: &ModelConfig,
        stream: &Stream,
    ) -> Result<Self, AdapterError> {
        let mut adapter = Self::zeroed(config, model)?;
        for module in &adapter.modules {
            let bound = 1.0 / (module.n_in as f32).sqrt();
            for (i, value) in adapter.params[module.a.clone()].iter_mut().enumerate() {
                *value = (2.0 * stream.uniform(module.index(), i as u64) - 1.0) * bound;
            }
        }
        Ok(adapter)
    }

    /// An adapter whose every number is zero, to be filled from a file.
    ///
    /// # Errors
    /// If a setting is out of range or a target names nothing.
    pub fn zeroed(config: LoraConfig, model: &ModelConfig) -> Result<Self, AdapterError> {
        check_settings(&config)?;
        let dims = model.dims();
        check_targets(&config.target_modules, model)?;
        let mut modules = Vec::new();
        let mut places = vec![vec![None; Linear::n_places(&dims)]; dims.l];
        let mut end = 0;
        for (layer, place) in places.iter_mut().enumerate() {
            for linear in model.linears(layer) {
                let path = linear.path(layer, model.module_names());
                let is_target =
                    |t: &String| (t == ALL_LINEAR && !linear.is_router()) || names_module(t, &path);
                if !config.target_modules.iter().any(is_target) {
                    continue;
                }
                place[linear.index()] = Some(modules.len());
                let module = adapted_module(&config, &dims, layer, linear, path, end);
                end = module.b.end;
                modules.push(module);
            }
        }
        // Whole names may point at layers that do not exist.
        for target in &config.target_modules {
            let found = |m: &AdaptedModule| target == ALL_LINEAR || names_module(target, &m.path);
            if !modules.iter().any(found) {
                return Err(no_such_module(target, model));
            }
        }
        let all_linear = last_names(model);
        Ok(Self { config, params: vec![0.0; end], modules, places, all_linear })
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Every trainable number.
    #[must_use]
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// Every trainable number, for the optimizer.
    pub fn params_mut(&mut self) -> &mut [f32] {
        &mut self.params
    }

    /// Adapted modules, in the order of the buffer.
    #[must_use]
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// The adapter of one linear layer.
    #[must_use]
    pub fn module(&self, layer: usize, linear: Linear) -> Option<&AdaptedModule> {
        self.places.get(layer)?[linear.index()].map(|i| &self.modules[i])
    }

    /// Lowest decoder layer that is adapted; nothing below it needs a gradient.
    #[must_use]
    pub fn first_layer(&self) -> usize {
        self.modules.first().map_or(0, |m| m.layer)
    }

    /// The parts of the buffer under the names that adapter files use.
    #[must_use]
    pub fn slices(&self) -> Vec<NamedSlice> {
        self.modules
            .iter()
            .flat_map(|m| {
                let name = |part| format!("base_model.model.{}.{part}.weight", m.path);
                [
                    NamedSlice { name: name("lora_A"), shape: [m.r, m.n_in], range: m.a.clone() },
                    NamedSlice { name: name("lora_B"), shape: [m.n_out, m.r], range: m.b.clone() },
                ]
            })
            .collect()
    }

    /// A [r, n_in] of a module.
    pub(crate) fn a(&self, module: &AdaptedModule) -> &[f32] {
        &self.params[module.a.clone()]
    }

    /// B [n_out, r] of a module.
    pub(crate) fn b(&self, module: &AdaptedModule) -> &[f32] {
        &self.params[module.b.clone()]
    }

    /// The weight with its adapter folded in, `W + s B A`: what a merged model stores.
    ///
    /// Shapes: result [n_out, n_in]; sums in f64.
    ///
    /// # Panics
    /// If `weight` is not the weight of `module`.
    #[must_use]
    pub fn merged(&self, module: &AdaptedModule, weight: &dyn FrozenMatrix) -> Vec<f32> {
        assert_eq!(weight.n_rows(), module.n_out, "not the weight of this module");
        assert_eq!(weight.n_cols(), module.n_in, "not the weight of this module");
        let mut merged = vec![0.0; module.n_out * module.n_in];
        weight.read_rows(0, &mut merged);
        let (a, b) = (self.a(module), self.b(module));
        for (row, b_row) in merged.chunks_exact_mut(module.n_in).zip(b.chunks_exact(module.r)) {
            for (column, value) in row.iter_mut().enumerate() {
                let sum: f64 = b_row
                    .iter()
                    .enumerate()
                    .map(|(j, &b)| f64::from(b) * f64::from(a[j * module.n_in + column]))
                    .sum();
                *value = (f64::from(*value) + f64::from(module.scale) * sum) as f32;
            }
        }
        merged
    }
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
    AdaptedModule { layer, linear, path, r, scale, n_in, n_out, a, b }
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
fn last_names(model: &ModelConfig) -> Vec<String> {
    let mut names = std::collections::BTreeSet::new();
    for linear in (0..model.num_hidden_layers).flat_map(|layer| model.linears(layer)) {
        let module = linear.module(model.module_names());
        if let Some((_, last)) = module.rsplit_once('.').filter(|_| !linear.is_router()) {
            names.insert(last.to_owned());
        }
    }
    names.into_iter().collect()
}
