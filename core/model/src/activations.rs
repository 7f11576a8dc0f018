//! Every buffer of a step: planned by sizes, allocated once, reused by every step.
//!
//! A layer keeps what its backward pass reads and nothing else: the residual stream before and
//! after attention, q, k, v after rotation, attention's output and log-denominators, gate and up,
//! and the low-rank products of adapted modules. Norms and the gated product are computed again.
//! With [`Keep::LayerInputs`] only the residual stream entering each layer is kept, and the layer
//! runs forward a second time.
//!
//! **Invariant:** the plan and the allocation are the same list ([`Activations::memory_plan`]).

mod not_finite;

use thiserror::Error;

use crate::adapter::Adapter;
use crate::config::{Dims, ModelConfig};
use crate::names::Linear;
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

/// A buffer of rows, of which a step uses the first few.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    width: usize,
    rows_max: usize,
    data: Vec<f32>,
}

impl Rows {
    fn planned(rows_max: usize, width: usize) -> Self {
        Self { width, rows_max, data: Vec::new() }
    }

    fn n_bytes(&self) -> usize {
        self.width * self.rows_max * size_of::<f32>()
    }

    fn allocate(&mut self) -> Result<(), usize> {
        let n = self.width * self.rows_max;
        self.data.try_reserve_exact(n).map_err(|_| self.n_bytes())?;
        self.data.resize(n, 0.0);
        Ok(())
    }

    /// The first `n` rows.
    pub(crate) fn get(&self, n: usize) -> &[f32] {
        &self.data[..n * self.width]
    }

    /// The first `n` rows.
    pub(crate) fn get_mut(&mut self, n: usize) -> &mut [f32] {
        &mut self.data[..n * self.width]
    }
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
    /// `dropout(x) A^T` of each adapted module [T, r].
    pub(crate) u: [Rows; 7],
}

/// What lives only within a layer.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// [T, D / 2]
    pub(crate) cos: Rows,
    /// [T, D / 2]
    pub(crate) sin: Rows,
    /// Normed rows, and later their gradient [T, C].
    pub(crate) xn: Rows,
    /// Factors of a norm that is computed again [T].
    pub(crate) inv_rms: Rows,
    /// Gated product, and later its gradient [T, F].
    pub(crate) h: Rows,
    /// Input of A after dropout, and the gradient before it [T, widest input].
    pub(crate) dropped: Rows,
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
        model: &ModelConfig,
        adapter: Option<&Adapter>,
        size: StepSize,
        keep: Keep,
    ) -> Result<Self, OutOfMemory> {
        let mut acts = Self::planned(&model.dims(), adapter, size, keep);
        let total = acts.plan().total_bytes();
        let mut refused = None;
        acts.each(&mut |name, rows| {
            if let (None, Err(bytes)) = (&refused, rows.allocate()) {
                refused = Some(OutOfMemory { buffer: name.to_owned(), bytes, total });
            }
        });
        refused.map_or(Ok(acts), Err)
    }

    /// What [`Activations::new`] would allocate.
    #[must_use]
    pub fn memory_plan(
        model: &ModelConfig,
        adapter: Option<&Adapter>,
        size: StepSize,
        keep: Keep,
    ) -> MemoryPlan {
        Self::planned(&model.dims(), adapter, size, keep).plan()
    }

    /// Bytes allocated.
    #[must_use]
    pub fn n_bytes(&mut self) -> usize {
        let mut sum = 0;
        self.each(&mut |_, rows| sum += rows.data.capacity() * size_of::<f32>());
        sum
    }

    /// The largest step that fits.
    #[must_use]
    pub fn size(&self) -> StepSize {
        self.size
    }

    /// Rows of the last forward pass.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn planned(dims: &Dims, adapter: Option<&Adapter>, size: StepSize, keep: Keep) -> Self {
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
                layer_buffers(dims, t, &ranks(adapter, layer))
            })
            .collect();
        Self {
            keep,
            size,
            first_layer,
            inputs: (first_layer..=dims.l).map(|_| Rows::planned(t, dims.c)).collect(),
            layers,
            ws: workspace(dims, t, adapter, keep),
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

    fn plan(&mut self) -> MemoryPlan {
        let mut plan = MemoryPlan::default();
        self.each(&mut |name, rows| {
            let bytes = rows.n_bytes();
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
    fn each(&mut self, visit: &mut dyn FnMut(&str, &mut Rows)) {
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
            for rows in &mut layer.u {
                visit("low-rank products", rows);
            }
        }
        let ws = &mut self.ws;
        visit("rotary tables", &mut ws.cos);
        visit("rotary tables", &mut ws.sin);
        visit("normed rows", &mut ws.xn);
        visit("norm factors", &mut ws.inv_rms);
        visit("gated product", &mut ws.h);
        visit("dropped-out input", &mut ws.dropped);
        visit("gradient of the residual stream", &mut ws.dx);
        visit("gradient of attention output", &mut ws.dattn);
        visit("gradient of queries", &mut ws.dq);
        visit("gradient of keys", &mut ws.dk);
        visit("gradient of values", &mut ws.dv);
        for rows in &mut ws.du {
            visit("gradients of low-rank products", rows);
        }
        let head = &mut self.head;
        visit("scored rows", &mut head.x);
        visit("scored rows", &mut head.xn);
        visit("scored rows", &mut head.inv_rms);
        visit("scored rows", &mut head.lse);
        visit("gradient of scored rows", &mut head.dxn);
        visit("gradient of scored rows", &mut head.dx);
    }
}

/// Rank of each linear of a layer, or the largest of any layer when buffers are shared.
fn ranks(adapter: Option<&Adapter>, layer: Option<usize>) -> [usize; 7] {
    let mut ranks = [0; 7];
    for module in adapter.iter().flat_map(|a| a.modules()) {
        if layer.is_none_or(|layer| layer == module.layer) {
            let rank = &mut ranks[module.linear.index()];
            *rank = module.r.max(*rank);
        }
    }
    ranks
}

fn layer_buffers(dims: &Dims, t: usize, ranks: &[usize; 7]) -> LayerBuffers {
    let rows = |width| Rows::planned(t, width);
    LayerBuffers {
        x_mid: rows(dims.c),
        input_inv_rms: rows(1),
        post_inv_rms: rows(1),
        q: rows(dims.q_width()),
        k: rows(dims.kv_width()),
        v: rows(dims.kv_width()),
        attn: rows(dims.q_width()),
        lse: rows(dims.h),
        gate: rows(dims.f),
        up: rows(dims.f),
        u: ranks.map(rows),
    }
}

fn workspace(dims: &Dims, t: usize, adapter: Option<&Adapter>, keep: Keep) -> Workspace {
    let rows = |width| Rows::planned(t, width);
    let mut ws = Workspace {
        cos: rows(dims.d / 2),
        sin: rows(dims.d / 2),
        xn: rows(dims.c),
        h: rows(dims.f),
        ..Workspace::default()
    };
    if let Some(adapter) = adapter.filter(|a| a.config().dropout > 0.0) {
        ws.dropped = rows(adapter.modules().iter().map(|m| m.n_in).max().unwrap_or(0));
    }
    if keep != Keep::Nothing {
        ws.inv_rms = rows(1);
        ws.dx = rows(dims.c);
        ws.dattn = rows(dims.q_width());
        ws.dq = rows(dims.q_width());
        ws.dk = rows(dims.kv_width());
        ws.dv = rows(dims.kv_width());
        let rank_of = |linears: &[Linear]| {
            let r = ranks(adapter, None);
            linears.iter().map(|l| r[l.index()]).max().unwrap_or(0)
        };
        ws.du = [
            rows(rank_of(&[Linear::Q, Linear::O, Linear::Gate, Linear::Down])),
            rows(rank_of(&[Linear::K, Linear::Up])),
            rows(rank_of(&[Linear::V])),
        ];
    }
    ws
}

fn head_buffers(dims: &Dims, r: usize, keep: Keep) -> HeadBuffers {
    let rows = |width| Rows::planned(r, width);
    let mut head = HeadBuffers {
        x: rows(dims.c),
        xn: rows(dims.c),
        inv_rms: rows(1),
        lse: rows(1),
        ..HeadBuffers::default()
    };
    if keep != Keep::Nothing {
        head.dxn = rows(dims.c);
        head.dx = rows(dims.c);
    }
    head
}
