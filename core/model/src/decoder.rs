//! The decoder: packed weights and the functions that run them.
//!
//! A step is [`Decoder::forward`], [`Decoder::logprobs`], [`Decoder::backward`], in this order,
//! over one [`Activations`]. Generation is [`Decoder::forward_cached`].

mod attention;
mod backward;
mod cached;
pub(crate) mod descent;
mod dora;
mod experts;
mod forward;
mod grads;
mod linear;
mod lora;
mod mlp;
mod noise;
mod norm;
pub(crate) mod routing;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use forgelm_collective::CollectiveError;
use forgelm_kernels_api::{
    AttentionShape, Columns, Compute, FrozenMatrix, Ops, RowSource, Segment, Slice, SliceMut,
};
use forgelm_tensor::random::Stream;

use crate::activations::Engine;
use crate::config::{Dims, ModelConfig};
use crate::names::{Linear, Role};
use crate::parts::Holders;
use crate::rope::{Rope, Rotary};
use crate::storage::{LinearStorage, LoadOptions};
use crate::store::TensorStore;
use crate::trainable::Trainable;
use crate::weights::{LayerRef, Weights, WeightsError, freeze_linear};
pub use cached::{CachedSequence, KvCache, Stem};
pub use descent::Descent;
pub(crate) use descent::Part;
pub use grads::PartialGradient;
pub use noise::EmbeddingNoise;

/// A model ready to run. Its weights never change.
pub struct Decoder {
    config: ModelConfig,
    dims: Dims,
    ops: Arc<dyn Ops>,
    compute: Compute,
    storage: LinearStorage,
    weights: Weights,
    rotary: Rotary,
    /// Of the windowed layers, where it is another.
    local_rotary: Option<Rotary>,
}

/// Tokens of many sequences laid end to end.
#[derive(Clone, Copy, Debug)]
pub struct PackedInput<'a> {
    /// [T], each below V.
    pub tokens: &'a [u32],
    /// Position of each token in its sequence [T].
    pub positions: &'a [u32],
    /// The sequences; they cover all rows.
    pub segments: &'a [Segment],
    /// A number for each token that does not depend on where it lies in the batch [T]: names its
    /// dropout mask. May be empty when there is no dropout.
    pub row_keys: &'a [u64],
}

/// Names the dropout masks of one optimizer step.
#[derive(Clone, Copy, Debug)]
pub struct DropoutStep<'a> {
    /// The run's dropout stream.
    pub stream: &'a Stream,
    /// Optimizer step.
    pub step: u64,
}

/// What a pass over the model is told; the same for forward and backward.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// What stands beside or in the place of frozen weights; `None` runs the model as it is.
    pub adapter: Option<&'a Trainable>,
    /// Rows.
    pub batch: PackedInput<'a>,
    /// `None` turns the adapter's dropout off (evaluation).
    pub dropout: Option<DropoutStep<'a>>,
}

/// Rows whose next token is scored.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// Packed rows [R]: row t predicts the token that follows it.
    pub rows: &'a [u32],
    /// The token that follows [R], each below V.
    pub labels: &'a [u32],
}

/// One pass over the layers: what the layer functions share.
#[derive(Clone, Copy)]
struct Step<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Trainable>,
    dropout: Option<DropoutStep<'a>>,
    row_keys: &'a [u64],
    /// Number of rows, T.
    t: usize,
    /// The layer that runs.
    layer: Option<&'a LayerRef<'a>>,
}

impl Decoder {
    /// Reads and packs the weights.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, of the wrong shape or format, or holds a value that is
    /// not a number.
    pub fn from_store(
        config: ModelConfig,
        store: &dyn TensorStore,
        ops: Arc<dyn Ops>,
        compute: Compute,
    ) -> Result<Self, WeightsError> {
        Self::from_store_as(config, store, ops, LoadOptions::dense(compute), None)
    }

    /// As [`Decoder::from_store`], with the linear layers kept as the options say; and with a part of
    /// each matrix where `holders` have the rest of it. All of them must then run the same passes, or
    /// [`Decoder::accompany`] those of the others.
    ///
    /// # Errors
    /// As [`Decoder::from_store`].
    pub fn from_store_as(
        config: ModelConfig,
        store: &dyn TensorStore,
        ops: Arc<dyn Ops>,
        options: LoadOptions,
        holders: Option<Holders>,
    ) -> Result<Self, WeightsError> {
        let weights = Weights::load(store, &config, &ops, options, holders)?;
        let rotary = |rope: &Rope| Rotary::new(rope.clone(), config.rotary_dim());
        Ok(Self {
            dims: config.dims(),
            rotary: rotary(&config.rope),
            local_rotary: config.attention.local_rope.as_ref().map(rotary),
            config,
            ops,
            compute: options.compute,
            storage: options.linear,
            weights,
        })
    }

    /// Gives this process's parts of the weights to the others, where each has some, until none of
    /// them runs a pass: what every process calls at the end of work that is shared out unevenly.
    ///
    /// # Errors
    /// If they no longer speak to each other. A pass ends what is being done with that error.
    pub fn accompany(&self) -> Result<(), CollectiveError> {
        self.weights.accompany(&mut |_| Ok(()))
    }

    /// As [`Decoder::accompany`]; `left` is called with the index of each of
    /// [`Trainable::descending_parts`](crate::Trainable::descending_parts) where
    /// [`Decoder::descend`] has left it on a process that runs it: its calls and those of this process
    /// stay in one order.
    ///
    /// # Errors
    /// As [`Decoder::accompany`], and those of `left`.
    pub fn accompany_descent(
        &self,
        trainable: &Trainable,
        left: &mut dyn FnMut(usize) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        let mut n_left = 0;
        self.weights.accompany(&mut |part| {
            if part == Part::Head {
                n_left = 0;
            }
            if trainable.part(part).is_empty() {
                return Ok(());
            }
            n_left += 1;
            left(n_left - 1)
        })
    }

    /// Whether this process has only a part of the weights.
    #[must_use]
    pub fn is_in_parts(&self) -> bool {
        self.weights.is_in_parts()
    }

    /// Of the leader: the others, if they accompany a pass of its own, wait for its commands again.
    ///
    /// # Errors
    /// As [`Decoder::accompany`].
    pub fn let_go(&self) -> Result<(), CollectiveError> {
        self.weights.let_go()
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its sizes.
    #[must_use]
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// The kernel library that runs it.
    #[must_use]
    pub fn ops(&self) -> &Arc<dyn Ops> {
        &self.ops
    }

    /// Format in which products with frozen weights are formed.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// What buffers of its passes are made for.
    #[must_use]
    pub fn engine(&self) -> Engine<'_> {
        Engine { ops: self.ops.as_ref(), compute: self.compute }
    }

    /// Memory of the packed weights, in bytes.
    #[must_use]
    pub fn weights_bytes(&self) -> usize {
        self.weights.n_bytes()
    }

    /// How the linear layers are kept in memory, and how many of them: `dense`, the name of the
    /// file's block format (`Q4_1`), `nf4, double quantized` and the like. For evidence.
    #[must_use]
    pub fn linear_formats(&self) -> &BTreeMap<String, usize> {
        &self.weights.formats
    }

    /// The packed weight of a linear layer, as the kernels see it.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn linear(
        &self,
        layer: usize,
        linear: Linear,
    ) -> impl Deref<Target = dyn FrozenMatrix + '_> {
        self.weights.linear(layer, linear)
    }

    /// Puts other values in the place of a linear layer's weight, in the form that the others have.
    pub(crate) fn replace_linear(
        &mut self,
        (layer, linear): (usize, Linear),
        values: &dyn RowSource,
    ) {
        let options = LoadOptions { compute: self.compute, linear: self.storage };
        let (weight, _) = freeze_linear(self.ops.as_ref(), options, linear, values);
        self.replace(Role::Linear(layer, linear), weight);
    }

    /// Puts a matrix in the place of another, which may be kept in another form.
    pub(crate) fn replace(&mut self, role: Role, matrix: Box<dyn FrozenMatrix>) {
        self.weights.replace(role, matrix);
    }

    /// Gives back the memory of a matrix that a trained one stands for.
    pub(crate) fn release(&mut self, role: Role) {
        self.weights.release(role);
    }

    /// Whether linear layers were quantized when they were read: what runs is then not what the
    /// files hold.
    pub(crate) fn is_quantized_on_load(&self) -> bool {
        match self.storage {
            LinearStorage::FourBit(_) | LinearStorage::Int8Rows | LinearStorage::Int8Experts => {
                true
            }
            LinearStorage::Dense | LinearStorage::Blocks => false,
        }
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    fn attention_shape(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            n_heads: self.dims.h,
            n_kv_heads: self.dims.h_kv,
            head_dim: self.dims.d,
            scale: self.config.attention_scale(),
            window: self.config.window(layer),
            soft_cap: self.config.attention.soft_cap,
            compute: self.compute,
        }
    }

    fn step<'a>(&'a self, pass: &Pass<'a>) -> Step<'a> {
        check_current(pass.adapter);
        Step {
            decoder: self,
            adapter: pass.adapter,
            dropout: pass.dropout.filter(|_| pass.adapter.is_some_and(|a| a.dropout() > 0.0)),
            row_keys: pass.batch.row_keys,
            t: pass.batch.tokens.len(),
            layer: None,
        }
    }
}

impl<'a> Step<'a> {
    /// The same in a layer.
    fn on<'b>(&self, layer: &'b LayerRef<'b>) -> Step<'b>
    where
        'a: 'b,
    {
        Step { layer: Some(layer), ..*self }
    }

    /// The weights of the layer that runs.
    fn weights(&self) -> &'a LayerRef<'a> {
        self.layer.expect("a layer runs")
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("config", &self.config)
            .field("ops", &self.ops.name())
            .field("compute", &self.compute)
            .finish_non_exhaustive()
    }
}

/// Refuses trained numbers whose derived form is old: the pass would run other weights.
fn check_current(trainable: Option<&Trainable>) {
    let is_current = trainable.is_none_or(Trainable::is_current);
    assert!(is_current, "the trained numbers changed; `Decoder::refresh` comes first");
}

/// Takes the columns of `from` apart, from left to right.
///
/// Shapes: `parts` [T, their width] written, `from` [T, sum of the widths] read.
fn split_columns<const N: usize>(
    ops: &dyn Ops,
    parts: [SliceMut<'_>; N],
    from: Slice<'_>,
    t: usize,
) {
    let width = from.len() / t;
    let mut first = 0;
    for part in parts {
        let n = part.len() / t;
        ops.copy_columns(part, Columns { width: n, first: 0 }, from, Columns { width, first }, n);
        first += n;
    }
    assert_eq!(first, width, "the parts are not the whole");
}

/// Lays matrices side by side: the inverse of [`split_columns`].
///
/// Shapes: `to` [T, sum of the widths] written, `parts` [T, their width] read.
fn join_columns<const N: usize>(
    ops: &dyn Ops,
    mut to: SliceMut<'_>,
    parts: [Slice<'_>; N],
    t: usize,
) {
    let width = to.len() / t;
    let mut first = 0;
    for part in parts {
        let n = part.len() / t;
        let (left, whole) = (Columns { width: n, first: 0 }, Columns { width, first });
        ops.copy_columns(to.reborrow(), whole, part, left, n);
        first += n;
    }
    assert_eq!(first, width, "the parts are not the whole");
}
