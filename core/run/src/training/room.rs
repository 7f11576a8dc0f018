//! Whether the machine has room for a run, and in which pieces its steps fit.

use super::tokenized::TokenizedData;
use crate::distributed::{Strategy, checkpoint_bytes};
use crate::error::RunError;
use crate::footprint::{self, Sizes};
use crate::memory::{self, Room};
use crate::model::FoundModel;
use crate::plan::Plan;
use crate::recovery::{Ladder, Rung};
use forgelm_artifact::write;
use forgelm_kernels_api::Ops;
use forgelm_model::{Engine, LoadOptions, MemoryPlan, StepSize, Trainable};
use forgelm_train::feed::Feed;
use forgelm_train::optimizer::OptimizerMemory;
use forgelm_train::session::{Cut, shared_memory_plan};

/// What the memory of a run follows from.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) data: &'a TokenizedData,
    pub(crate) found: &'a FoundModel,
    pub(crate) adapter: &'a Trainable,
    pub(crate) optimizer: OptimizerMemory,
    pub(crate) options: LoadOptions,
    pub(crate) ops: &'a dyn Ops,
    /// What the process holds before weights and buffers.
    pub(crate) held: u64,
    /// Processes that hold the frozen weights together.
    pub(crate) n_holders: usize,
    /// Whether their parts are in the memory of the host, where a device computes.
    pub(crate) parts_on_host: bool,
    /// Processes that share a step.
    pub(crate) n_ranks: usize,
}

/// A rung that was too large, the next one, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Try {
    pub(super) from: Rung,
    pub(super) to: Rung,
    pub(super) reason: String,
}

/// A rung that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) rung: Rung,
    pub(super) bytes_planned: u64,
    pub(super) tried: Vec<Try>,
}

/// The cut that a config asks for.
pub(crate) fn configured_cut(plan: &Plan) -> Cut {
    let training = &plan.run.training;
    Cut {
        batch_size: training.per_device_train_batch_size,
        accumulation: training.gradient_accumulation_steps,
    }
}

impl Inputs<'_> {
    /// The cut that the config asks for.
    pub(crate) fn configured(&self) -> Cut {
        configured_cut(self.plan)
    }

    fn feed(&self) -> Feed<'_> {
        self.data.feed(&self.found.tokenizer)
    }

    /// Micro-batches of a step with this cut.
    pub(crate) fn n_micro_batches(&self, cut: Cut) -> usize {
        self.feed().n_micro_batches(cut)
    }

    /// The largest micro-batch with this cut.
    fn step_size(&self, cut: Cut) -> StepSize {
        self.feed().largest_step(cut)
    }

    /// The bytes that are not yet in memory, with something left for small things.
    fn needed(&self, memory: &MemoryPlan, rung: Rung) -> u64 {
        let slack = footprint::slack(self.step_size(rung.cut));
        footprint::still_needed(memory, self.held) + slack
    }

    /// Every buffer of the run on this rung.
    pub(crate) fn memory(&self, rung: Rung) -> MemoryPlan {
        let [train, validation] = &self.data.prepared.statistics;
        let longest = train.longest.max(validation.longest);
        let strategy = Strategy::of(self.plan);
        let mut memory = footprint::plan(&Sizes {
            model: self.found.open.config(),
            adapter: self.adapter,
            optimizer: self.optimizer,
            options: self.options,
            step: self.step_size(rung.cut),
            longest: usize::try_from(longest).unwrap_or(usize::MAX),
            keep: rung.keep,
            ops: self.ops,
            held: self.held,
            n_holders: self.n_holders,
            parts_on_host: self.parts_on_host,
            checkpoint_bytes: match &strategy {
                Some(strategy) => strategy.checkpoint_bytes(self.adapter.n_params(), self.n_ranks),
                None => checkpoint_bytes(self.adapter.n_params()),
            },
            is_judged: self.plan.run.plugins.iter().any(|plugins| !plugins.evaluators.is_empty()),
        });
        if let Some(rollouts) = self.feed().rollouts {
            let n_answers = rung.cut.batch_size * rung.cut.accumulation;
            let model = self.found.open.config();
            let engine = Engine { ops: self.ops, compute: self.options.compute };
            memory
                .buffers
                .extend(rollouts.memory_plan(model, self.adapter, n_answers, engine).buffers);
            memory.buffers.extend(self.data.judging_memory().buffers);
        }
        if let Some(strategy) = strategy {
            let n_leaves = self.n_micro_batches(rung.cut);
            let shared = (strategy.sharing, self.n_ranks);
            memory.buffers.extend(shared_memory_plan(self.adapter, n_leaves, shared).buffers);
        }
        memory
    }

    /// The first rung from `cut` down that `room` has room for.
    pub(super) fn fit(&self, cut: Cut, room: Option<Room>) -> Result<Fit, RunError> {
        let ladder = Ladder::of(&self.plan.run);
        let mut rung = ladder.first(cut);
        let mut tried = Vec::new();
        loop {
            let memory = self.memory(rung);
            let needed = self.needed(&memory, rung);
            let Some(room) = room.filter(|room| room.bytes < needed) else {
                return Ok(Fit { rung, bytes_planned: memory.total_bytes() as u64, tried });
            };
            let Some(next) = ladder.below(rung) else {
                return Err(self.refusal(&memory, needed, room));
            };
            let reason =
                format!("{needed} bytes are needed, {} leaves {}", room.ceiling.name(), room.bytes);
            tried.push(Try { from: rung, to: next, reason });
            rung = next;
        }
    }

    fn refusal(&self, memory: &MemoryPlan, needed: u64, room: Room) -> RunError {
        let named = footprint::largest(memory, 3)
            .iter()
            .map(|buffer| format!("{} ({} bytes)", buffer.name, buffer.bytes))
            .collect::<Vec<_>>();
        let fits = |rung: &Rung| self.needed(&self.memory(*rung), *rung) <= room.bytes;
        // Where each layer is updated at once, a step is one micro-batch.
        let is_recovering = !self.optimizer.is_layerwise;
        let any = Ladder { gradient_checkpointing: None, is_recovering, min_batch_size: 1 };
        let hint = match any.rungs(self.configured()).find(fits) {
            Some(rung) => change(self.configured(), rung),
            None => {
                "lower `model.max_length`, or take a smaller model: not even one row at a time \
                     fits"
                    .to_owned()
            }
        };
        RunError::Memory {
            needed,
            available: room.bytes,
            ceiling: room.ceiling.name(),
            largest: named.join(", "),
            hint,
        }
    }
}

/// The change of the config that makes `rung` of what it asks for.
pub(crate) fn change(configured: Cut, rung: Rung) -> String {
    let recompute = "`training.gradient_checkpointing: true` (the same bits, a third more time)";
    let smaller = format!(
        "`training.per_device_train_batch_size: {}` with `training.gradient_accumulation_steps: \
         {}` (the same effective batch and result)",
        rung.cut.batch_size, rung.cut.accumulation
    );
    match (rung.cut == configured, rung.keep) {
        (true, _) => recompute.to_owned(),
        (false, forgelm_model::Keep::LayerInputs) => format!("{smaller} and {recompute}"),
        (false, forgelm_model::Keep::Everything | forgelm_model::Keep::Nothing) => smaller,
    }
}

/// Refuses a run that does not fit into memory or onto the disk.
pub(super) fn check_room(inputs: &Inputs<'_>, cut: Cut) -> Result<Fit, RunError> {
    let fit = inputs.fit(cut, memory::room_of(inputs.ops))?;
    let n_bytes = 4 * inputs.adapter.n_params() + inputs.optimizer.state_bytes;
    let checkpoint_bytes = n_bytes as u64 + (1 << 20);
    let n_checkpoints = inputs.plan.run.training.save_total_limit as u64 + 3;
    let needed_on_disk = n_checkpoints * checkpoint_bytes + (32 << 20);
    let dir = inputs.plan.output.root();
    match write::free_bytes(dir) {
        Ok(available) if available < needed_on_disk => Err(RunError::Disk {
            dir: dir.to_owned(),
            needed: needed_on_disk,
            available,
            hint: "free some space, or lower `training.save_total_limit`",
        }),
        // A system that does not say how much is free cannot be asked.
        Ok(_) | Err(_) => Ok(fit),
    }
}
