//! The memory of a whole run, by sizes alone: the sum that `--fit-check` prints and that a run is
//! held to before it starts.

use crate::evaluators;
use crate::memory::MemoryUse;
use forgelm_kernels_api::{Compute, Ops};
use forgelm_model::{
    Activations, Engine, Keep, LinearStorage, LoadOptions, MemoryPlan, ModelConfig, PlannedBuffer,
    StepSize, Trainable,
};
use forgelm_tensor::ScaleStorage;
use forgelm_train::optimizer::OptimizerMemory;
use forgelm_train::session;

/// Tokens of the sample that is asked before and after training, prompt and answer.
const SAMPLE_TOKENS: usize = 256;
/// Small allocations of a step, beside what grows with its size.
const STEP_BYTES: u64 = 16 << 20;
/// What follows the last step takes at most, beside what steps give back: documents, and threads that
/// hash files, each with a stack and a heap of its own.
pub const END_BYTES: u64 = 8 << 20;
/// Bytes a token of a packed batch: ids, positions, keys, labels.
const TOKEN_BYTES: u64 = 64;

/// What must be left over for the small things that a step allocates.
#[must_use]
pub fn step_slack(step: StepSize) -> u64 {
    STEP_BYTES + TOKEN_BYTES * step.tokens_max as u64
}

/// What must be left over for the small things of a whole run.
#[must_use]
pub fn slack(step: StepSize) -> u64 {
    step_slack(step) + END_BYTES
}

/// What decides the memory of a run.
#[derive(Clone, Copy)]
pub struct Sizes<'a> {
    /// The base model.
    pub model: &'a ModelConfig,
    /// What trains, before it begins: nothing of it is packed yet.
    pub adapter: &'a Trainable,
    /// How the frozen weights are kept.
    pub options: LoadOptions,
    /// The largest micro-batch.
    pub step: StepSize,
    /// The longest sequence, in tokens.
    pub longest: usize,
    /// What the optimizer takes.
    pub optimizer: OptimizerMemory,
    /// What the forward pass keeps.
    pub keep: Keep,
    /// The kernel library.
    pub ops: &'a dyn Ops,
    /// What the process holds before weights and buffers: program, tokenizer, data.
    pub held: u64,
    /// Processes that hold the frozen weights together, each a part of them.
    pub n_holders: usize,
    /// Whether these parts are in the memory of the host, where a device computes.
    pub parts_on_host: bool,
    /// What a checkpoint takes while it is written.
    pub checkpoint_bytes: usize,
    /// Whether evaluators are asked at the end.
    pub is_judged: bool,
}

impl Sizes<'_> {
    fn engine(&self) -> Engine<'_> {
        Engine { ops: self.ops, compute: self.options.compute }
    }
}

/// What this process holds now, in bytes.
#[must_use]
pub fn held_now() -> u64 {
    MemoryUse::now().resident.unwrap_or(0)
}

/// [`held_now`] in the memory that a kernel library works in: nothing, where that is a device's.
#[must_use]
pub fn held_beside(ops: &dyn Ops) -> u64 {
    if ops.free_memory().is_some() { 0 } else { held_now() }
}

/// The packed weights of a model, in bytes.
#[must_use]
pub fn weights_bytes(model: &ModelConfig, options: LoadOptions) -> u64 {
    let per_number = match options.compute {
        Compute::F32 => 4,
        Compute::Bf16 => 2,
    };
    let n_params = model.n_parameters() as u64;
    let head = (model.vocab_size * model.hidden_size) as u64;
    // The head of a classifier has a row a label.
    let out = (model.dims().n_out * model.hidden_size) as u64;
    let dense = if model.tie_word_embeddings { head } else { head + out };
    // Bits of a weight in a linear layer, with its share of the scales of a block of 64.
    let bits = match options.linear {
        LinearStorage::Dense | LinearStorage::Blocks => 8 * per_number,
        LinearStorage::Int8Rows | LinearStorage::Int8Experts => 8,
        LinearStorage::FourBit(storage) => match storage.scales {
            ScaleStorage::Single => return dense * per_number + (n_params - dense) * 9 / 16,
            ScaleStorage::Double => return dense * per_number + (n_params - dense) * 33 / 64,
        },
    };
    dense * per_number + (n_params - dense) * bits / 8
}

/// Every part of a run's memory, by name and size.
#[must_use]
pub fn plan(sizes: &Sizes<'_>) -> MemoryPlan {
    let Sizes { model, adapter, step, .. } = *sizes;
    let mut plan =
        session::memory_plan(model, adapter, sizes.optimizer, step, sizes.keep, sizes.engine());
    let n_bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    plan.add("program, tokenizer and data", n_bytes(sizes.held));
    // The frozen copies of weights that train are given back.
    let trained = adapter.packed_bytes(sizes.options.compute);
    let frozen = weights_bytes(model, sizes.options).saturating_sub(trained as u64);
    let n_holders = sizes.n_holders.max(1) as u64;
    let (kept, trained) = match sizes.optimizer.n_owners {
        0 | 1 => (frozen, trained),
        _ => (frozen + trained as u64, 0),
    };
    match n_holders {
        1 => plan.add("packed weights", n_bytes(kept)),
        n => {
            if sizes.ops.free_memory().is_none() || !sizes.parts_on_host {
                plan.add("parts of the packed weights", n_bytes(kept.div_ceil(n)));
            }
            plan.add("packed weights of a layer and the next", n_bytes(2 * unit_bytes(sizes)));
        }
    }
    plan.add("packed weights that train", trained);
    plan.add("workspace of the kernels", workspace(sizes));
    let dims = model.dims();
    plan.add("cache of the sample", SAMPLE_TOKENS * 2 * dims.l * dims.kv_width() * 4);
    plan.add("checkpoint while it is written", sizes.checkpoint_bytes);
    if sizes.is_judged {
        plan.add("evaluators, beyond the buffers of a step", judging(sizes));
    }
    plan
}

/// The packed weights that are gathered together at most: of a layer, or of the head.
fn unit_bytes(sizes: &Sizes<'_>) -> u64 {
    let Sizes { model, options, .. } = *sizes;
    let per_number = match options.compute {
        Compute::F32 => 4,
        Compute::Bf16 => 2,
    };
    let head = (model.vocab_size * model.hidden_size) as u64 * per_number;
    let wide = if model.tie_word_embeddings { head } else { 2 * head };
    let layers = weights_bytes(model, options).saturating_sub(wide);
    head.max(layers / model.num_hidden_layers.max(1) as u64)
}

/// What evaluators take more than training did: the buffers of steps are given back before they are
/// asked. Mostly nothing, since scoring keeps no layer's activations for a backward pass.
fn judging(sizes: &Sizes<'_>) -> usize {
    let Sizes { model, adapter, .. } = *sizes;
    let (engine, keep) = (sizes.engine(), sizes.keep);
    let given_back = Activations::memory_plan(model, Some(adapter), sizes.step, keep, engine);
    let taken = evaluators::memory_plan(model, Some(adapter), sizes.longest, engine);
    taken.total_bytes().saturating_sub(given_back.total_bytes())
}

/// What the kernels take for their own time.
fn workspace(sizes: &Sizes<'_>) -> usize {
    let in_blocks = sizes.options.linear != LinearStorage::Dense;
    let compute = sizes.options.compute;
    let work = sizes.step.workload(sizes.model, sizes.longest, compute, in_blocks);
    sizes.ops.workspace_bytes(&work)
}

/// The bytes of a plan that are not yet in memory when only `held` is.
#[must_use]
pub fn still_needed(plan: &MemoryPlan, held: u64) -> u64 {
    (plan.total_bytes() as u64).saturating_sub(held)
}

/// The largest parts of a plan, largest first.
#[must_use]
pub fn largest(plan: &MemoryPlan, n: usize) -> Vec<PlannedBuffer> {
    let mut buffers = plan.buffers.clone();
    buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
    buffers.truncate(n);
    buffers
}
