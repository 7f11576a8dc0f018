//! Whether the machine has room for a run.

use super::tokenized::TokenizedData;
use crate::error::RunError;
use crate::memory;
use crate::model::LoadedModel;
use crate::plan::Plan;
use forgelm_artifact::write;
use forgelm_model::Trainable;
use forgelm_train::session;

/// Refuses a run that does not fit into memory or onto the disk; returns the planned memory.
pub(super) fn check_room(
    plan: &Plan,
    data: &TokenizedData,
    loaded: &LoadedModel,
    adapter: &Trainable,
) -> Result<u64, RunError> {
    let size = session::largest_step(&data.prepared.train, &data.prepared.validation, &data.plan);
    let memory_plan = session::memory_plan(&loaded.decoder, adapter, size);
    let needed = memory_plan.total_bytes() as u64;
    let held = loaded.decoder.weights_bytes() as u64;
    if let Some(available) = memory::available().filter(|&free| free < needed - held) {
        let mut buffers = memory_plan.buffers;
        buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
        let named = |buffer: &forgelm_model::PlannedBuffer| {
            format!("{} ({} bytes)", buffer.name, buffer.bytes)
        };
        let largest = buffers.iter().take(3).map(named).collect::<Vec<_>>().join(", ");
        let hint = "halve `training.per_device_train_batch_size` and double \
                    `training.gradient_accumulation_steps`: the result is the same"
            .to_owned();
        return Err(RunError::Memory { needed: needed - held, available, largest, hint });
    }
    let checkpoint_bytes = 3 * size_of_val(adapter.params()) as u64 + (1 << 20);
    let n_checkpoints = plan.run.training.save_total_limit as u64 + 3;
    let needed_on_disk = n_checkpoints * checkpoint_bytes + (32 << 20);
    let dir = plan.output.root();
    match write::free_bytes(dir) {
        Ok(available) if available < needed_on_disk => {
            Err(RunError::Disk { dir: dir.to_owned(), needed: needed_on_disk, available })
        }
        // A system that does not say how much is free cannot be asked.
        Ok(_) | Err(_) => Ok(needed),
    }
}
