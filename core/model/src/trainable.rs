//! Everything that trains, in one flat buffer: adapters, magnitudes, biases, whole weights.
//!
//! Optimizer, checkpoint and hash see [`Trainable::params`] and [`Trainable::slices`] and nothing
//! else. What the kernels read of it in another form (a trained weight packed for products, the
//! factors of DoRA) is derived: [`Decoder::refresh`] forms it again after every change, and a pass
//! over the model refuses numbers whose derived form is old.
//!
//! A weight that trains lies here in f32, whatever format products are formed in, and is used in
//! the place of the decoder's own, which stays as it was loaded.

mod derived;
mod merge;
mod own;
mod pissa;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use forgelm_kernels_api::{Buffer, FrozenMatrix, Slice, SliceMut};
use forgelm_tensor::random::Stream;

use crate::adapter::{
    AdaptedModule, AdapterError, LoraConfig, TrainedBias, adapted_modules, last_names,
};
use crate::config::ModelConfig;
use crate::names::{Linear, Role};
pub(crate) use derived::DoraFactors;
pub use own::Places;

/// What trains.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// A low-rank adapter; the base stays as it is, but for biases where the adapter says so.
    Adapter(LoraConfig),
    /// Every weight of the model.
    Everything,
    /// Some weights of the model, by their names in a Hugging Face folder.
    Weights(Vec<String>),
}

impl From<LoraConfig> for Selection {
    fn from(config: LoraConfig) -> Self {
        Self::Adapter(config)
    }
}

/// A named part of the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSlice {
    /// Name as in adapter files, or as in a Hugging Face folder for a weight of the base.
    pub name: String,
    /// Rows and columns, or the length of a vector.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub range: Range<usize>,
}

impl NamedSlice {
    /// Rows and columns; a vector is one row.
    #[must_use]
    pub fn matrix_shape(&self) -> [usize; 2] {
        match self.shape.as_slice() {
            [rows, columns] => [*rows, *columns],
            _ => [1, self.range.len()],
        }
    }
}

/// A weight of the base that trains.
#[derive(Clone)]
pub(crate) struct BaseTensor {
    /// Name in a Hugging Face folder.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
    /// A matrix as the kernels read it; derived.
    packed: Option<Arc<dyn FrozenMatrix>>,
    /// Of a norm whose weight is stored as w, what is used is `1 + w`. What trains (and decays) is w.
    is_offset: bool,
    /// A vector as the kernels read it, where that is not how it lies in the buffer; derived.
    whole: Option<Arc<Buffer>>,
}

impl std::fmt::Debug for BaseTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BaseTensor").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every number that trains.
///
/// **Invariant:** the slices of [`Trainable::slices`] cover the buffer without gap or overlap:
/// adapted modules by layer and forward pass, each A, B and magnitudes; then weights of the base in
/// the order of [`Role`].
#[derive(Clone, Debug)]
pub struct Trainable {
    selection: Selection,
    /// How many numbers train, P.
    n_params: usize,
    /// [P], or those that this process has.
    params: Buffer,
    /// Which ones these are, where they are not all.
    places: Option<Arc<Places>>,
    modules: Vec<AdaptedModule>,
    /// Index into `modules` by layer and linear.
    module_at: Vec<Vec<Option<usize>>>,
    /// What `all-linear` means: last components of names, sorted.
    pub(crate) all_linear: Vec<String>,
    base: BTreeMap<Role, BaseTensor>,
    /// Whether head and embedding are one tensor.
    is_tied: bool,
    /// A and B as PiSSA began them, which the base lacks since; else empty.
    initial: Vec<f32>,
    derived: derived::Derived,
}

/// What who only runs a model calls it: the content of an adapter folder.
pub type Adapter = Trainable;

impl PartialEq for Trainable {
    /// Derived forms follow from the rest.
    fn eq(&self, other: &Self) -> bool {
        self.selection == other.selection
            && self.params() == other.params()
            && self.initial == other.initial
    }
}

impl Trainable {
    /// What trains, before it begins. Of an adapter: A uniform in `[-1/sqrt(n_in), 1/sqrt(n_in)]` from the stream, B = 0, so that
    /// it changes nothing yet. What begins at values of the base (weights, magnitudes, biases,
    /// principal components) comes with [`Decoder::begin`](crate::Decoder::begin).
    ///
    /// Element i of A of module m is `(2 uniform(m, i) - 1) / sqrt(n_in)`.
    ///
    /// # Errors
    /// If a setting is out of range or a target names nothing.
    pub fn new(
        selection: impl Into<Selection>,
        model: &ModelConfig,
        stream: &Stream,
    ) -> Result<Self, AdapterError> {
        let mut adapter = Self::zeroed(selection.into(), model)?;
        for module in adapter.modules.clone() {
            let bound = 1.0 / (module.n_in as f32).sqrt();
            for (i, value) in adapter.params_mut()[module.a.clone()].iter_mut().enumerate() {
                *value = (2.0 * stream.uniform(module.index(), i as u64) - 1.0) * bound;
            }
        }
        Ok(adapter)
    }

    /// A set whose every number is zero, to be filled from the base or from a file.
    ///
    /// # Errors
    /// If a setting is out of range or a name means nothing.
    pub fn zeroed(
        selection: impl Into<Selection>,
        model: &ModelConfig,
    ) -> Result<Self, AdapterError> {
        let selection = selection.into();
        let modules = match &selection {
            Selection::Adapter(config) => adapted_modules(config, model)?,
            Selection::Everything | Selection::Weights(_) => Vec::new(),
        };
        let mut module_at = vec![vec![None; Linear::n_places(&model.dims())]; model.dims().l];
        for (i, module) in modules.iter().enumerate() {
            module_at[module.layer][module.linear.index()] = Some(i);
        }
        let end = modules.last().map_or(0, AdaptedModule::end);
        let base = base_tensors(&selection, &modules, model, end)?;
        let end = base.values().last().map_or(end, |tensor| tensor.range.end);
        Ok(Self {
            derived: derived::Derived::new(&modules, &base),
            selection,
            n_params: end,
            params: vec![0.0; end].into(),
            places: None,
            modules,
            module_at,
            base,
            all_linear: last_names(model),
            is_tied: model.tie_word_embeddings,
            initial: Vec::new(),
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The kind of adapter; `None` where only weights of the base train.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraConfig> {
        match &self.selection {
            Selection::Adapter(config) => Some(config),
            Selection::Everything | Selection::Weights(_) => None,
        }
    }

    /// Chance that an input of A becomes zero while training.
    #[must_use]
    pub fn dropout(&self) -> f32 {
        self.lora().map_or(0.0, |config| config.dropout)
    }

    /// How many numbers train.
    #[must_use]
    pub fn n_params(&self) -> usize {
        self.n_params
    }

    /// Every trainable number; a copy where they lie on a device.
    ///
    /// # Panics
    /// If this process has not all of them: a bug of the caller.
    #[must_use]
    pub fn params(&self) -> Cow<'_, [f32]> {
        assert!(!self.is_in_parts(), "this process has only some of the numbers");
        self.params.all().to_host()
    }

    /// Every trainable number that this process has, brought to the host. Call
    /// [`Decoder::refresh`](crate::Decoder::refresh) when they have changed.
    pub fn params_mut(&mut self) -> &mut [f32] {
        self.derived.outdate();
        if let Buffer::Device(_) = self.params {
            self.params = self.params.clone();
        }
        self.params.all_mut().on_host()
    }

    /// Every trainable number that this process has where it lies, for the optimizer. Call
    /// [`Decoder::refresh`](crate::Decoder::refresh) when they have changed.
    pub fn numbers_mut(&mut self) -> SliceMut<'_> {
        self.derived.outdate();
        self.params.all_mut()
    }

    /// Adapted modules, in the order of the buffer.
    #[must_use]
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// The adapter of one linear layer.
    #[must_use]
    pub fn module(&self, layer: usize, linear: Linear) -> Option<&AdaptedModule> {
        self.module_at.get(layer)?[linear.index()].map(|i| &self.modules[i])
    }

    /// Weights of the base that train, with where they lie in the buffer.
    pub fn base_tensors(&self) -> impl Iterator<Item = (Role, Range<usize>)> {
        self.base.iter().map(|(role, tensor)| (*role, tensor.range.clone()))
    }

    /// Decoder layers of the model.
    pub(crate) fn n_layers(&self) -> usize {
        self.module_at.len()
    }

    /// Lowest decoder layer in or below which something trains; nothing below it needs a gradient.
    /// The number of layers when only the last norm or the head train.
    #[must_use]
    pub fn first_layer(&self) -> usize {
        let adapted = self.modules.first().map(|m| m.layer);
        let of_base = self.base.keys().filter_map(|role| self.layer_of(*role)).min();
        adapted.into_iter().chain(of_base).min().unwrap_or(self.module_at.len())
    }

    fn layer_of(&self, role: Role) -> Option<usize> {
        match role {
            Role::Embedding => Some(0),
            Role::Norm(layer, _) | Role::Linear(layer, _) | Role::Bias(layer, _) => Some(layer),
            Role::Head | Role::FinalNorm | Role::RopeDivisors => None,
        }
    }

    /// The lowest trained linear of the lowest trained layer, if backward may end with it; `None`
    /// when something below it trains as well, and for other layers.
    pub(crate) fn lowest_linear(&self, layer: usize, model: &ModelConfig) -> Option<Linear> {
        let is_below = |role: &Role| match role {
            Role::Embedding => true,
            Role::Norm(l, _) => *l == layer,
            Role::Linear(..)
            | Role::Bias(..)
            | Role::Head
            | Role::FinalNorm
            | Role::RopeDivisors => false,
        };
        if layer > self.first_layer() || self.base.keys().any(is_below) {
            return None;
        }
        model.linears(layer).into_iter().find(|linear| self.trains(layer, *linear))
    }

    /// Whether a router of experts trains.
    #[must_use]
    pub fn trains_router(&self) -> bool {
        let of_base = self.base.keys().any(|role| matches!(role, Role::Linear(_, Linear::Router)));
        of_base || self.modules.iter().any(|m| m.linear == Linear::Router)
    }

    /// Whether anything of a linear layer trains.
    pub(crate) fn trains(&self, layer: usize, linear: Linear) -> bool {
        self.module(layer, linear).is_some()
            || self.base.contains_key(&Role::Linear(layer, linear))
            || self.base.contains_key(&Role::Bias(layer, linear))
    }

    /// The parts of the buffer under the names that files use.
    #[must_use]
    pub fn slices(&self) -> Vec<NamedSlice> {
        let mut slices = Vec::new();
        for m in &self.modules {
            let name = |part| format!("base_model.model.{}.{part}", m.path);
            let (a, b) = (name("lora_A.weight"), name("lora_B.weight"));
            slices.push(NamedSlice { name: a, shape: vec![m.r, m.n_in], range: m.a.clone() });
            slices.push(NamedSlice { name: b, shape: vec![m.n_out, m.r], range: m.b.clone() });
            if let Some(range) = m.magnitude.clone() {
                let name = name("lora_magnitude_vector");
                slices.push(NamedSlice { name, shape: vec![m.n_out], range });
            }
        }
        let prefix = if self.lora().is_some() { "base_model.model." } else { "" };
        slices.extend(self.base.values().map(|tensor| NamedSlice {
            name: format!("{prefix}{}", tensor.name),
            shape: tensor.shape.clone(),
            range: tensor.range.clone(),
        }));
        slices
    }

    /// A [r, n_in] of a module.
    pub(crate) fn a(&self, module: &AdaptedModule) -> Slice<'_> {
        self.params.part(module.a.clone())
    }

    /// B [n_out, r] of a module.
    pub(crate) fn b(&self, module: &AdaptedModule) -> Slice<'_> {
        self.params.part(module.b.clone())
    }

    /// A weight of the base that trains.
    pub(crate) fn base_tensor(&self, role: Role) -> Option<&BaseTensor> {
        // A tied head is the embedding.
        let role = if role == Role::Head && self.is_tied { Role::Embedding } else { role };
        self.base.get(&role)
    }

    /// A trained matrix as the kernels read it.
    pub(crate) fn matrix(&self, role: Role) -> Option<&dyn FrozenMatrix> {
        self.base_tensor(role)?.packed.as_deref()
    }

    /// A trained vector as the kernels read it.
    pub(crate) fn vector(&self, role: Role) -> Option<Slice<'_>> {
        let tensor = self.base_tensor(role)?;
        let own = || self.params.part(tensor.range.clone());
        Some(tensor.whole.as_deref().map_or_else(own, Buffer::all))
    }

    /// A trained weight as a Hugging Face folder stores it.
    pub(crate) fn stored(&self, role: Role) -> Option<Cow<'_, [f32]>> {
        self.base_tensor(role).map(|tensor| self.params.part(tensor.range.clone()).to_host())
    }

    /// Where the gradient of a role goes.
    pub(crate) fn range(&self, role: Role) -> Option<Range<usize>> {
        self.base_tensor(role).map(|tensor| tensor.range.clone())
    }
}

/// The weights of the base that train, behind the adapter in the buffer.
fn base_tensors(
    selection: &Selection,
    modules: &[AdaptedModule],
    model: &ModelConfig,
    mut end: usize,
) -> Result<BTreeMap<Role, BaseTensor>, AdapterError> {
    let head = (!model.tie_word_embeddings).then_some(Role::Head);
    let mut roles: Vec<Role> = Role::always(model).into_iter().chain(head).collect();
    roles.sort();
    let names = model.module_names();
    let named = |name: &str| roles.iter().copied().find(|role| role.hf_name(names) == name);
    match selection {
        Selection::Adapter(config) => roles.retain(|role| is_trained_bias(config, modules, *role)),
        Selection::Everything => {}
        Selection::Weights(list) => {
            if let Some(unknown) = list.iter().find(|name| named(name).is_none()) {
                return Err(AdapterError::NoSuchWeight { name: unknown.clone() });
            }
            if list.is_empty() {
                return Err(AdapterError::NothingTrains);
            }
            roles.retain(|role| list.contains(&role.hf_name(names)));
        }
    }
    let dims = model.dims();
    let tensor = |role: Role| {
        let shape = role.shape(&dims);
        let start = end;
        end += shape.iter().product::<usize>();
        let name = base_name(role, modules, model);
        let is_offset = model.is_norm_offset(role);
        let whole = is_offset.then(Arc::default);
        (role, BaseTensor { name, shape, range: start..end, packed: None, is_offset, whole })
    };
    Ok(roles.into_iter().map(tensor).collect())
}

/// Name of a weight of the base in files. The bias of an adapted layer is called as PEFT calls it.
fn base_name(role: Role, modules: &[AdaptedModule], model: &ModelConfig) -> String {
    match role {
        Role::Bias(layer, linear) if is_adapted(modules, layer, linear) => {
            format!("{}.base_layer.bias", linear.path(layer, model.module_names()))
        }
        _ => role.hf_name(model.module_names()),
    }
}

fn is_adapted(modules: &[AdaptedModule], layer: usize, linear: Linear) -> bool {
    modules.iter().any(|m| m.layer == layer && m.linear == linear)
}

/// Whether `bias` of an adapter means this tensor.
fn is_trained_bias(config: &LoraConfig, modules: &[AdaptedModule], role: Role) -> bool {
    let Role::Bias(layer, linear) = role else { return false };
    match config.bias {
        TrainedBias::None => false,
        TrainedBias::All => true,
        TrainedBias::LoraOnly => modules.iter().any(|m| (m.layer, m.linear) == (layer, linear)),
    }
}
