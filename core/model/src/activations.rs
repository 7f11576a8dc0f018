//! Every buffer of a step: planned by sizes, allocated once, reused by every step.
//!
//! A layer keeps what its backward pass reads and nothing else: the residual stream before and
//! after attention, q, k, v after rotation, attention's output and log-denominators, gate and up,
//! and the low-rank products of adapted modules. Norms and the gated product are computed again.
//! With [`Keep::LayerInputs`] only the residual stream entering each layer is kept, and the layer
//! runs forward a second time.
//!
//! **Invariant:** the plan and the allocation are the same list ([`Activations::memory_plan`]).

// long because: the buffers of a step, their sizes and their plan are one list, read together.

mod not_finite;

use std::fmt;

use forgelm_kernels_api::{
    Buffer, Compute, MemoryRefused, Ops, Precision, Slice, SliceMut, Workload,
};
use thiserror::Error;

use crate::adapter::AdaptedModule;
use crate::config::{Dims, ModelConfig};
use crate::decoder::Decoder;
use crate::decoder::routing::{Balance, Routed};
use crate::names::{ExpertPart, Linear};
use crate::trainable::Adapter;
pub use not_finite::NotFiniteAt;

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: scoring and generation.
    Nothing,
    /// All that backward needs.
    Everything,
    /// The input of each layer; the rest is computed again (gradient checkpointing).
    LayerInputs,
}

/// The largest step that will be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSize {
    /// Packed rows of a micro-batch, T.
    pub tokens_max: usize,
    /// Scored rows of a micro-batch, R.
    pub scored_rows_max: usize,
}

/// One line of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuffer {
    /// What it holds.
    pub name: String,
    /// Size.
    pub bytes: usize,
}

/// Every buffer and its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// In the order of allocation.
    pub buffers: Vec<PlannedBuffer>,
}

impl StepSize {
    /// Sizes of the calls of such a step, for what they take for their own time. `longest` is the
    /// longest sequence in tokens; `in_blocks` whether linear layers stay in blocks.
    #[must_use]
    pub fn workload(
        self,
        model: &ModelConfig,
        longest: usize,
        compute: Compute,
        in_blocks: bool,
    ) -> Workload {
        let dims = model.dims();
        let linears = (0..dims.l).flat_map(|layer| model.linears(layer));
        let shapes: Vec<[usize; 2]> = linears.map(|linear| linear.shape(&dims)).collect();
        Workload {
            compute,
            n_tokens: self.tokens_max,
            longest,
            n_scored: self.scored_rows_max,
            hidden: dims.c,
            n_heads: dims.h,
            n_kv_heads: dims.h_kv,
            head_dim: dims.d,
            widest: shapes.iter().flatten().copied().max().unwrap_or(0),
            largest_weight: shapes.iter().map(|[n, k]| n * k).max().unwrap_or(0),
            vocabulary: dims.n_out,
            n_experts: dims.e,
            in_blocks,
        }
    }
}

impl MemoryPlan {
    /// Adds a line (weights, optimizer state: what others hold).
    pub fn add(&mut self, name: impl Into<String>, bytes: usize) {
        self.buffers.push(PlannedBuffer { name: name.into(), bytes });
    }

    /// Sum of all lines.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.buffers.iter().map(|b| b.bytes).sum()
    }
}

/// The system refused the memory.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{bytes} bytes for `{buffer}` are not available; the plan of this step is {total} bytes")]
pub struct OutOfMemory {
    /// The buffer that did not fit.
    pub buffer: String,
    /// Its size.
    pub bytes: usize,
    /// Size of all buffers.
    pub total: usize,
}

/// A buffer of a step: planned by its size, then allocated.
trait Planned {
    /// What it will hold, in bytes.
    fn n_bytes(&self, engine: Engine<'_>) -> usize;

    fn allocate(&mut self, engine: Engine<'_>) -> Result<(), MemoryRefused>;

    /// What it holds.
    fn n_bytes_held(&self) -> usize;
}

/// A buffer of rows, of which a step uses the first few.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    width: usize,
    rows_max: usize,
    /// Whether it lives within a layer only, and may be stored as products read it.
    is_inner: bool,
    data: Buffer,
}

/// What buffers are made for: the kernel library, and the format of products.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// The kernel library.
    pub ops: &'a dyn Ops,
    /// The format.
    pub compute: Compute,
}

impl fmt::Debug for Engine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.ops.name(), self.compute)
    }
}

impl Rows {
    /// Rows that are stored exactly.
    pub(crate) fn exact(rows_max: usize, width: usize) -> Self {
        Self { width, rows_max, is_inner: false, data: Buffer::default() }
    }

    /// Rows that may be stored as products read them.
    fn inner(rows_max: usize, width: usize) -> Self {
        Self { is_inner: true, ..Self::exact(rows_max, width) }
    }

    fn precision(&self, compute: Compute) -> Precision {
        if self.is_inner { Precision::Like(compute) } else { Precision::Exact }
    }

    /// Numbers of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The first `n` rows.
    pub(crate) fn get(&self, n: usize) -> Slice<'_> {
        self.data.part(0..n * self.width)
    }

    /// The first `n` rows.
    pub(crate) fn get_mut(&mut self, n: usize) -> SliceMut<'_> {
        self.data.part_mut(0..n * self.width)
    }
}

impl Planned for Rows {
    fn n_bytes(&self, engine: Engine<'_>) -> usize {
        let of_one = engine.ops.bytes_per_number(self.precision(engine.compute));
        self.width * self.rows_max * of_one
    }

    fn allocate(&mut self, engine: Engine<'_>) -> Result<(), MemoryRefused> {
        let n = self.width * self.rows_max;
        self.data = engine.ops.allocate(n, self.precision(engine.compute))?;
        Ok(())
    }

    fn n_bytes_held(&self) -> usize {
        self.data.n_bytes()
    }
}

/// A buffer of indices, of which a step uses the first few.
#[derive(Debug, Default)]
pub(crate) struct Indices {
    n_max: usize,
    data: Buffer<u32>,
}

impl Indices {
    /// Room for so many.
    pub(crate) fn new(n_max: usize) -> Self {
        Self { n_max, data: Buffer::default() }
    }

    /// The first `n`.
    pub(crate) fn get(&self, n: usize) -> Slice<'_, u32> {
        self.data.part(0..n)
    }

    /// The first `n`.
    pub(crate) fn get_mut(&mut self, n: usize) -> SliceMut<'_, u32> {
        self.data.part_mut(0..n)
    }
}

impl Planned for Indices {
    fn n_bytes(&self, _engine: Engine<'_>) -> usize {
        self.n_max * size_of::<u32>()
    }

    fn allocate(&mut self, engine: Engine<'_>) -> Result<(), MemoryRefused> {
        self.data = engine.ops.allocate_indices(self.n_max)?;
        Ok(())
    }

    fn n_bytes_held(&self) -> usize {
        self.data.n_bytes()
    }
}

/// What the adapter of one linear layer keeps for backward.
#[derive(Debug, Default)]
pub(crate) struct AdapterRows {
    /// `dropout(x) A^T` [T, r].
    pub(crate) u: Rows,
    /// Output before the magnitudes [T, n_out]; empty where none train.
    pub(crate) z: Rows,
}

impl AdapterRows {
    /// The first `t` rows of `z`, `n_out` numbers each.
    pub(crate) fn z(&self, t: usize, n_out: usize) -> Slice<'_> {
        self.z.data.part(0..t * n_out)
    }
}

/// What an adapter works in.
#[derive(Debug, Default)]
pub(crate) struct AdapterScratch {
    /// Input of A after dropout, and the gradient before it [T, widest input].
    pub(crate) dropped: Rows,
    /// Gradient of the output before the magnitudes [T, widest output].
    pub(crate) dz: Rows,
}

/// What one layer keeps.
#[derive(Debug, Default)]
pub(crate) struct LayerBuffers {
    /// Residual stream after attention [T, C].
    pub(crate) x_mid: Rows,
    /// [T]
    pub(crate) input_inv_rms: Rows,
    /// [T]
    pub(crate) post_inv_rms: Rows,
    /// After rotation [T, H D].
    pub(crate) q: Rows,
    /// After rotation [T, H_kv D].
    pub(crate) k: Rows,
    /// [T, H_kv D]
    pub(crate) v: Rows,
    /// Output of attention [T, H D].
    pub(crate) attn: Rows,
    /// [T, H]
    pub(crate) lse: Rows,
    /// [T, F]; holds its gradient after backward.
    pub(crate) gate: Rows,
    /// [T, F]; holds its gradient after backward.
    pub(crate) up: Rows,
    /// Before their norm [T, H D], where heads are normed.
    pub(crate) raw_q: Rows,
    /// [T, H_kv D]
    pub(crate) raw_k: Rows,
    /// [T, H]
    pub(crate) q_inv_rms: Rows,
    /// [T, H_kv]
    pub(crate) k_inv_rms: Rows,
    /// Result of attention before its norm [T, C], where it is normed.
    pub(crate) attn_out: Rows,
    /// [T]
    pub(crate) attn_out_inv_rms: Rows,
    /// Result of the MLP before its norm [T, C], where it is normed.
    pub(crate) mlp_out: Rows,
    /// [T]
    pub(crate) mlp_out_inv_rms: Rows,
    /// Probability of each expert [T, E].
    pub(crate) probs: Rows,
    /// Gates of the chosen experts, rows ordered by expert [T k, F_expert]; holds its gradient
    /// after backward.
    pub(crate) expert_gate: Rows,
    /// As the gates.
    pub(crate) expert_up: Rows,
    /// [T, F_shared]; holds its gradient after backward.
    pub(crate) shared_gate: Rows,
    /// [T, F_shared]; holds its gradient after backward.
    pub(crate) shared_up: Rows,
    /// Score of the shared expert [T]; holds its gradient after backward.
    pub(crate) shared_score: Rows,
    /// What the adapter of each linear layer keeps, by [`Linear::index`].
    pub(crate) u: Vec<AdapterRows>,
}

/// What lives only within a layer.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// [T, R / 2]
    pub(crate) cos: Rows,
    /// [T, R / 2]
    pub(crate) sin: Rows,
    /// Of windowed layers, where they have a rotary embedding of their own [T, R / 2].
    pub(crate) local_cos: Rows,
    /// [T, R / 2]
    pub(crate) local_sin: Rows,
    /// Query, key and value side by side, and later their gradients [T, (H + 2 H_kv) D], where one
    /// matrix makes them.
    pub(crate) qkv: Rows,
    /// Gate and up side by side, and later their gradients [T, 2 F], where one matrix makes them.
    pub(crate) gate_up: Rows,
    /// Gradient of what a half adds to the residual stream, before its norm [T, C], where it is
    /// normed.
    pub(crate) dbranch: Rows,
    /// Normed rows, and later their gradient [T, C].
    pub(crate) xn: Rows,
    /// Factors of a norm that is computed again [T].
    pub(crate) inv_rms: Rows,
    /// Gated product, and later its gradient [T, F].
    pub(crate) h: Rows,
    /// What adapters work in.
    pub(crate) dropped: AdapterScratch,
    /// Gradient of the residual stream [T, C].
    pub(crate) dx: Rows,
    /// [T, H D]
    pub(crate) dattn: Rows,
    /// [T, H D]
    pub(crate) dq: Rows,
    /// [T, H_kv D]
    pub(crate) dk: Rows,
    /// [T, H_kv D]
    pub(crate) dv: Rows,
    /// Gradients of `u` of the modules that share an input [T, largest rank].
    pub(crate) du: [Rows; 3],
    /// What one expert needs at a time.
    pub(crate) experts: ExpertSpace,
    /// Which rows go to which experts. Beside the plan, on the host: 8 bytes for each row and choice
    /// where there is dropout.
    pub(crate) routing: Routed,
    /// How evenly they go.
    pub(crate) balance: Balance,
}

/// What lives only within an expert; an expert has at most T rows.
#[derive(Debug, Default)]
pub(crate) struct ExpertSpace {
    /// Gathered rows, and later the result or the gradient [T, C].
    pub(crate) x: Rows,
    /// Gathered gradient of the result [T, C].
    pub(crate) dy: Rows,
    /// Gated product [T, F_expert].
    pub(crate) h: Rows,
    /// The same times the expert's factor [T, F_expert].
    pub(crate) scaled_h: Rows,
    /// [T, F_expert]
    pub(crate) dh: Rows,
    /// What the adapter of an expert keeps within its products.
    pub(crate) u: AdapterRows,
    /// Gated product of the shared expert [T, F_shared].
    pub(crate) shared_h: Rows,
    /// [T, F_shared]
    pub(crate) shared_dh: Rows,
    /// Gradient of the normed rows [T, C].
    pub(crate) dxn: Rows,
    /// Gradient of the router's scores [T, E].
    pub(crate) dscores: Rows,
}

/// The wide end.
#[derive(Debug, Default)]
pub(crate) struct HeadBuffers {
    /// Scored rows before the last norm [R, C].
    pub(crate) x: Rows,
    /// After it [R, C].
    pub(crate) xn: Rows,
    /// [R]
    pub(crate) inv_rms: Rows,
    /// [R]
    pub(crate) lse: Rows,
    /// Gradient of `xn` [R, C].
    pub(crate) dxn: Rows,
    /// Gradient of `x` [R, C].
    pub(crate) dx: Rows,
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing was computed.
    Empty,
    /// `forward` ran.
    Forwarded,
    /// `logprobs` ran for this many rows.
    Scored(usize),
    /// `logprobs_with_gradient` ran for this many rows: their gradients are in `head.dxn`.
    Differentiated(usize),
}

/// All buffers of a step.
#[derive(Debug)]
pub struct Activations {
    pub(crate) keep: Keep,
    pub(crate) size: StepSize,
    /// Lowest layer that backward reaches.
    first_layer: usize,
    /// Residual stream entering each kept layer, and leaving the last [T, C].
    pub(crate) inputs: Vec<Rows>,
    pub(crate) layers: Vec<LayerBuffers>,
    pub(crate) ws: Workspace,
    pub(crate) head: HeadBuffers,
    pub(crate) stage: Stage,
    pub(crate) n_tokens: usize,
}

impl Activations {
    /// Allocates every buffer.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        size: StepSize,
        keep: Keep,
    ) -> Result<Self, OutOfMemory> {
        let mut acts = Self::planned(decoder.config(), adapter, size, keep);
        let engine = decoder.engine();
        let total = acts.plan(engine).total_bytes();
        let mut refused = None;
        acts.each(&mut |name, buffer| {
            if let (None, Err(MemoryRefused { bytes })) = (&refused, buffer.allocate(engine)) {
                refused = Some(OutOfMemory { buffer: name.to_owned(), bytes, total });
            }
        });
        refused.map_or(Ok(acts), Err)
    }

    /// What [`Activations::new`] would allocate with a kernel library and format of products.
    #[must_use]
    pub fn memory_plan(
        model: &ModelConfig,
        adapter: Option<&Adapter>,
        size: StepSize,
        keep: Keep,
        engine: Engine<'_>,
    ) -> MemoryPlan {
        Self::planned(model, adapter, size, keep).plan(engine)
    }

    /// Bytes allocated.
    #[must_use]
    pub fn n_bytes(&mut self) -> usize {
        let mut sum = 0;
        self.each(&mut |_, buffer| sum += buffer.n_bytes_held());
        sum
    }

    /// The largest step that fits.
    #[must_use]
    pub fn size(&self) -> StepSize {
        self.size
    }

    /// The balance loss of the last forward pass, `E sum_e f_e P_e` over the rows of all layers; 1
    /// when every expert is used alike, `None` for a model without experts.
    #[must_use]
    pub fn balance_loss(&self) -> Option<f64> {
        self.ws.balance.loss()
    }

    /// Rows of the last forward pass.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn planned(model: &ModelConfig, adapter: Option<&Adapter>, size: StepSize, keep: Keep) -> Self {
        let dims = &model.dims();
        let t = size.tokens_max;
        let first_layer = match keep {
            Keep::Nothing => dims.l,
            Keep::Everything | Keep::LayerInputs => adapter.map_or(dims.l, Adapter::first_layer),
        };
        let n_kept = match keep {
            Keep::Everything => (dims.l - first_layer).max(1),
            Keep::Nothing | Keep::LayerInputs => 1,
        };
        let layers = (0..n_kept)
            .map(|slot| {
                let layer = (keep == Keep::Everything).then_some(first_layer + slot);
                layer_buffers(model, t, (layer, adapter_widths(adapter, layer)))
            })
            .collect();
        Self {
            keep,
            size,
            first_layer,
            inputs: (first_layer..=dims.l).map(|_| Rows::exact(t, dims.c)).collect(),
            layers,
            ws: workspace(model, t, adapter, keep),
            head: head_buffers(dims, size.scored_rows_max, keep),
            stage: Stage::Empty,
            n_tokens: 0,
        }
    }

    /// Where the residual stream entering `layer` lies (`layer = L`: leaving the last). Layers
    /// below the first adapted one share one place.
    pub(crate) fn input(&self, layer: usize) -> usize {
        layer.saturating_sub(self.first_layer)
    }

    /// Where the buffers of `layer` lie.
    pub(crate) fn slot(&self, layer: usize) -> usize {
        self.input(layer).min(self.layers.len() - 1)
    }

    fn plan(&mut self, engine: Engine<'_>) -> MemoryPlan {
        let mut plan = MemoryPlan::default();
        self.each(&mut |name, buffer| {
            let bytes = buffer.n_bytes(engine);
            // One line for the same buffer of every layer.
            match plan.buffers.iter_mut().find(|b| b.name == name) {
                Some(line) => line.bytes += bytes,
                None if bytes > 0 => plan.add(name, bytes),
                None => {}
            }
        });
        plan
    }

    /// The one list of all buffers.
    fn each(&mut self, visit: &mut dyn FnMut(&str, &mut dyn Planned)) {
        for rows in &mut self.inputs {
            visit("residual stream", rows);
        }
        for layer in &mut self.layers {
            visit("residual stream after attention", &mut layer.x_mid);
            visit("norm factors", &mut layer.input_inv_rms);
            visit("norm factors", &mut layer.post_inv_rms);
            visit("queries", &mut layer.q);
            visit("keys", &mut layer.k);
            visit("values", &mut layer.v);
            visit("attention output", &mut layer.attn);
            visit("attention denominators", &mut layer.lse);
            visit("gate", &mut layer.gate);
            visit("up", &mut layer.up);
            visit("queries before their norm", &mut layer.raw_q);
            visit("keys before their norm", &mut layer.raw_k);
            visit("norm factors", &mut layer.q_inv_rms);
            visit("norm factors", &mut layer.k_inv_rms);
            visit("results before their norm", &mut layer.attn_out);
            visit("norm factors", &mut layer.attn_out_inv_rms);
            visit("results before their norm", &mut layer.mlp_out);
            visit("norm factors", &mut layer.mlp_out_inv_rms);
            visit("expert probabilities", &mut layer.probs);
            visit("gates of experts", &mut layer.expert_gate);
            visit("ups of experts", &mut layer.expert_up);
            visit("gates of experts", &mut layer.shared_gate);
            visit("ups of experts", &mut layer.shared_up);
            visit("expert probabilities", &mut layer.shared_score);
            for rows in &mut layer.u {
                visit("low-rank products", &mut rows.u);
                visit("outputs before magnitudes", &mut rows.z);
            }
        }
        let ws = &mut self.ws;
        visit("rotary tables", &mut ws.cos);
        visit("rotary tables", &mut ws.sin);
        visit("rotary tables", &mut ws.local_cos);
        visit("rotary tables", &mut ws.local_sin);
        visit("fused projections", &mut ws.qkv);
        visit("fused projections", &mut ws.gate_up);
        visit("gradient of results before their norm", &mut ws.dbranch);
        visit("normed rows", &mut ws.xn);
        visit("norm factors", &mut ws.inv_rms);
        visit("gated product", &mut ws.h);
        visit("dropped-out input", &mut ws.dropped.dropped);
        visit("gradient before magnitudes", &mut ws.dropped.dz);
        visit("gradient of the residual stream", &mut ws.dx);
        visit("gradient of attention output", &mut ws.dattn);
        visit("gradient of queries", &mut ws.dq);
        visit("gradient of keys", &mut ws.dk);
        visit("gradient of values", &mut ws.dv);
        for rows in &mut ws.du {
            visit("gradients of low-rank products", rows);
        }
        let experts = &mut ws.experts;
        for rows in [
            &mut experts.x,
            &mut experts.dy,
            &mut experts.h,
            &mut experts.scaled_h,
            &mut experts.dh,
            &mut experts.u.u,
            &mut experts.u.z,
            &mut experts.shared_h,
            &mut experts.shared_dh,
            &mut experts.dxn,
            &mut experts.dscores,
        ] {
            visit("rows of an expert", rows);
        }
        let routing = &mut ws.routing;
        visit("choices of experts", &mut routing.chosen);
        visit("choices of experts", &mut routing.places);
        visit("choices of experts", &mut routing.rows);
        visit("choices of experts", &mut routing.weights);
        visit("choices of experts", &mut routing.dweights);
        let head = &mut self.head;
        visit("scored rows", &mut head.x);
        visit("scored rows", &mut head.xn);
        visit("scored rows", &mut head.inv_rms);
        visit("scored rows", &mut head.lse);
        visit("gradient of scored rows", &mut head.dxn);
        visit("gradient of scored rows", &mut head.dx);
    }
}

/// Rank and width of the outputs before magnitudes of each linear of a layer, or the largest of any
/// layer when buffers are shared.
fn adapter_widths(
    adapter: Option<&Adapter>,
    layer: Option<usize>,
) -> [(usize, usize); Linear::N_FIXED] {
    let mut widths = [(0, 0); Linear::N_FIXED];
    for module in adapter.iter().flat_map(|a| a.modules()) {
        let is_here = layer.is_none_or(|layer| layer == module.layer);
        // Products of experts are not kept.
        let place = widths.get_mut(module.linear.index()).filter(|_| is_here);
        if let Some((rank, outputs)) = place {
            *rank = module.r.max(*rank);
            *outputs = magnitudes(module).max(*outputs);
        }
    }
    widths
}

/// Number of magnitudes that a module trains.
fn magnitudes(module: &AdaptedModule) -> usize {
    if module.magnitude.is_some() { module.n_out } else { 0 }
}

/// The largest number of magnitudes of any module.
fn widest_magnitudes(adapter: Option<&Adapter>) -> usize {
    adapter.iter().flat_map(|a| a.modules()).map(magnitudes).max().unwrap_or(0)
}

/// Buffers of one layer, or of any when they are shared.
fn layer_buffers(
    model: &ModelConfig,
    t: usize,
    (layer, widths): (Option<usize>, [(usize, usize); Linear::N_FIXED]),
) -> LayerBuffers {
    let dims = &model.dims();
    let is = |kind: &dyn Fn(usize) -> bool| match layer {
        Some(layer) => kind(layer.min(dims.l - 1)),
        None => (0..dims.l).any(kind),
    };
    let has_experts = is(&|layer| model.layer_experts(layer).is_some());
    let has_mlp = is(&|layer| model.layer_experts(layer).is_none());
    let k = model.experts.as_ref().map_or(0, |experts| experts.num_experts_per_tok);
    let (rows, exact) = (|width| Rows::inner(t, width), |width| Rows::exact(t, width));
    let rows_if = |is_needed, width| if is_needed { rows(width) } else { Rows::default() };
    let exact_if = |is_needed, width| if is_needed { exact(width) } else { Rows::default() };
    let (qk_norm, post_norms) = (model.attention.qk_norm, model.norms.post_norms);
    LayerBuffers {
        x_mid: exact(dims.c),
        input_inv_rms: exact(1),
        post_inv_rms: exact(1),
        q: rows(dims.q_width()),
        k: rows(dims.kv_width()),
        v: rows(dims.kv_width()),
        attn: rows(dims.q_width()),
        lse: exact(dims.h),
        gate: rows_if(has_mlp, dims.f),
        up: rows_if(has_mlp, dims.f),
        probs: exact_if(has_experts, dims.e),
        expert_gate: rows_if(has_experts, k * dims.f_expert),
        expert_up: rows_if(has_experts, k * dims.f_expert),
        shared_gate: rows_if(has_experts, dims.f_shared),
        shared_up: rows_if(has_experts, dims.f_shared),
        shared_score: exact_if(has_experts && dims.f_shared > 0, 1),
        raw_q: rows_if(qk_norm, dims.q_width()),
        raw_k: rows_if(qk_norm, dims.kv_width()),
        q_inv_rms: exact_if(qk_norm, dims.h),
        k_inv_rms: exact_if(qk_norm, dims.h_kv),
        attn_out: rows_if(post_norms, dims.c),
        attn_out_inv_rms: exact_if(post_norms, 1),
        mlp_out: rows_if(post_norms, dims.c),
        mlp_out_inv_rms: exact_if(post_norms, 1),
        u: widths.map(|(r, n_out)| AdapterRows { u: rows(r), z: rows(n_out) }).into(),
    }
}

/// Which of the buffers for the gradient of `u` a module uses.
fn du_place(linear: Linear) -> usize {
    match linear {
        Linear::K | Linear::Up | Linear::Expert(_, ExpertPart::Up) => 1,
        Linear::V => 2,
        Linear::Q
        | Linear::Qkv
        | Linear::O
        | Linear::Gate
        | Linear::GateUp
        | Linear::Down
        | Linear::Router
        | Linear::SharedGate
        | Linear::SharedUp
        | Linear::SharedDown
        | Linear::SharedExpertGate
        | Linear::Expert(_, ExpertPart::Gate | ExpertPart::Down) => 0,
    }
}

fn workspace(model: &ModelConfig, t: usize, adapter: Option<&Adapter>, keep: Keep) -> Workspace {
    let dims = &model.dims();
    let (rows, exact) = (|width| Rows::inner(t, width), |width| Rows::exact(t, width));
    let half = model.rotary_dim() / 2;
    let mut ws = Workspace {
        cos: exact(half),
        sin: exact(half),
        xn: rows(dims.c),
        h: rows(if (0..dims.l).any(|l| model.layer_experts(l).is_none()) { dims.f } else { 0 }),
        experts: expert_space(model, t, adapter, keep),
        ..Workspace::default()
    };
    if let Some(experts) = &model.experts {
        ws.routing = Routed::planned(t, experts, keep != Keep::Nothing);
    }
    if model.attention.local_rope.is_some() {
        (ws.local_cos, ws.local_sin) = (exact(half), exact(half));
    }
    if model.attention.is_fused {
        ws.qkv = rows(dims.q_width() + 2 * dims.kv_width());
    }
    if model.mlp.is_fused {
        ws.gate_up = rows(2 * dims.f);
    }
    if let Some(adapter) = adapter.filter(|a| a.dropout() > 0.0) {
        ws.dropped.dropped = rows(adapter.modules().iter().map(|m| m.n_in).max().unwrap_or(0));
    }
    if keep != Keep::Nothing {
        ws.inv_rms = exact(1);
        ws.dx = exact(dims.c);
        if model.norms.post_norms {
            ws.dbranch = rows(dims.c);
        }
        ws.dattn = rows(dims.q_width());
        ws.dq = rows(dims.q_width());
        ws.dk = rows(dims.kv_width());
        ws.dv = rows(dims.kv_width());
        ws.dropped.dz = rows(widest_magnitudes(adapter));
        // Modules that share an input have places of their own; every other is first.
        let rank_of = |place: usize| {
            let modules = adapter.iter().flat_map(|a| a.modules());
            let here = modules.filter(|m| du_place(m.linear) == place);
            here.map(|m| m.r).max().unwrap_or(0)
        };
        ws.du = [0, 1, 2].map(|place| rows(rank_of(place)));
    }
    ws
}

fn expert_space(
    model: &ModelConfig,
    t: usize,
    adapter: Option<&Adapter>,
    keep: Keep,
) -> ExpertSpace {
    if model.experts.is_none() {
        return ExpertSpace::default();
    }
    let (dims, rows) = (&model.dims(), |width| Rows::inner(t, width));
    let modules = adapter.iter().flat_map(|a| a.modules());
    let of_experts: Vec<_> = modules.filter(|m| matches!(m.linear, Linear::Expert(..))).collect();
    let rank = of_experts.iter().map(|m| m.r).max().unwrap_or(0);
    let outputs = of_experts.iter().map(|m| magnitudes(m)).max().unwrap_or(0);
    let mut space = ExpertSpace {
        x: rows(dims.c),
        h: rows(dims.f_expert),
        u: AdapterRows { u: rows(rank), z: rows(outputs) },
        shared_h: rows(dims.f_shared),
        ..ExpertSpace::default()
    };
    if keep != Keep::Nothing {
        space.dy = rows(dims.c);
        space.scaled_h = rows(dims.f_expert);
        space.dh = rows(dims.f_expert);
        space.shared_dh = rows(dims.f_shared);
        space.dxn = Rows::exact(t, dims.c);
        space.dscores = Rows::exact(t, dims.e);
    }
    space
}

fn head_buffers(dims: &Dims, r: usize, keep: Keep) -> HeadBuffers {
    let (rows, exact) = (|width| Rows::inner(r, width), |width| Rows::exact(r, width));
    let mut head = HeadBuffers {
        x: exact(dims.c),
        xn: rows(dims.c),
        inv_rms: exact(1),
        lse: exact(1),
        ..HeadBuffers::default()
    };
    if keep != Keep::Nothing {
        head.dxn = rows(dims.c);
        head.dx = exact(dims.c);
    }
    head
}
