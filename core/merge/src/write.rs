//! From tensors to the files of a model.

use crate::engine::Engine;
use crate::{MergeError, Tensor};
use forgelm_artifact::safetensors::PlannedTensor;
use forgelm_artifact::sharded::write_model;
use forgelm_artifact::write::StagedDir;
use forgelm_sdk::merge_method::{MergeMethod, Scope};
use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};

/// How a merge runs.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    /// How much of a tensor the method must see at once.
    pub scope: Scope,
    /// Threads that compute; one more writes.
    pub n_threads: usize,
    /// Largest file written, in bytes.
    pub shard_bytes_max: usize,
    /// Asked between pieces.
    pub is_stopped: &'a (dyn Fn() -> bool + Sync),
}

/// Merges `tensors` and writes the result to `dir`: one safetensors file, or several with their
/// index.
///
/// Memory: about 64 pieces of 2^17 elements three times over, and for each thread one piece of
/// every model, whatever the models' size; with [`Scope::Tensor`] the largest tensor instead of a
/// piece.
///
/// # Errors
/// If the method gives up, a result cannot be stored, or the system refuses. What was written then
/// is no model: drop `dir`.
///
/// # Panics
/// If a tensor's rows do not fit its shape, or a name is there twice.
pub fn write_merged(
    dir: &mut StagedDir,
    mut tensors: Vec<Tensor<'_>>,
    method: &dyn MergeMethod,
    settings: Settings<'_>,
) -> Result<(), MergeError> {
    // The order in which a file has its tensors, so that they can be merged ahead of the writing.
    tensors.sort_by_key(|t| (std::cmp::Reverse(t.dtype.block_bytes()), t.name));
    let planned: Vec<PlannedTensor<'_>> = tensors
        .iter()
        .map(|t| PlannedTensor { name: t.name, dtype: t.dtype, shape: t.shape })
        .collect();
    let engine = Engine {
        tensors: &tensors,
        method,
        scope: settings.scope,
        n_threads: settings.n_threads,
        is_stopped: settings.is_stopped,
    };
    let (sender, receiver) = sync_channel(1);
    let stream = RefCell::new(Stream { receiver, part: Vec::new(), used: 0 });
    std::thread::scope(|scope| {
        let merging = scope.spawn(move || engine.run(&mut |part| sender.send(part).is_ok()));
        let mut fill =
            |i: usize, w: &mut dyn Write| stream.borrow_mut().copy(planned[i].n_bytes(), w);
        let written = write_model(dir, &planned, settings.shard_bytes_max, &mut fill);
        // A writer that failed wants no more, and the other side must learn it.
        drop(stream);
        let merged = merging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Why there was nothing to write matters more than that there was nothing.
        merged?;
        Ok(written?)
    })
}

/// Parts of bytes, end to end.
struct Stream {
    receiver: Receiver<Vec<u8>>,
    part: Vec<u8>,
    used: usize,
}

impl Stream {
    fn copy(&mut self, mut n_bytes: usize, w: &mut dyn Write) -> io::Result<()> {
        while n_bytes > 0 {
            if self.used == self.part.len() {
                self.part = self.receiver.recv().map_err(io::Error::other)?;
                self.used = 0;
            }
            let n = n_bytes.min(self.part.len() - self.used);
            w.write_all(&self.part[self.used..self.used + n])?;
            self.used += n;
            n_bytes -= n;
        }
        Ok(())
    }
}
