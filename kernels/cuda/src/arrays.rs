//! Small arrays of the host that kernels read: tokens, segments, lists of tiles, keys of rows.
//!
//! Every layer of a model asks for the same ones, so they are kept on the device by their content:
//! the first layer pays for the copy. How many are kept is bounded; of those, the ones that were
//! asked for longest ago go first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::device::{Device, lock};
use crate::error::CudaError;
use crate::pool::Allocation;
use crate::staging;

/// The most that is kept, in bytes and in arrays.
const BYTES_MAX: usize = 16 << 20;
const ARRAYS_MAX: usize = 256;

#[derive(Debug)]
struct Kept {
    memory: Arc<Allocation>,
    /// When it was last asked for.
    asked: u64,
}

/// The arrays that are kept.
#[derive(Debug, Default)]
pub(crate) struct Arrays {
    by_content: BTreeMap<Vec<u8>, Kept>,
    n_bytes: usize,
    n_asked: u64,
}

impl Arrays {
    fn get(&mut self, content: &[u8]) -> Option<Arc<Allocation>> {
        self.n_asked += 1;
        let kept = self.by_content.get_mut(content)?;
        kept.asked = self.n_asked;
        Some(Arc::clone(&kept.memory))
    }

    fn keep(&mut self, content: &[u8], memory: &Arc<Allocation>) {
        self.n_bytes += content.len();
        let kept = Kept { memory: Arc::clone(memory), asked: self.n_asked };
        self.by_content.insert(content.to_vec(), kept);
        while self.n_bytes > BYTES_MAX || self.by_content.len() > ARRAYS_MAX {
            let oldest = self.by_content.iter().min_by_key(|(_, kept)| kept.asked);
            let Some((content, _)) = oldest else { break };
            let content = content.clone();
            self.n_bytes -= content.len();
            self.by_content.remove(&content);
        }
    }
}

/// The memory of an array with this content, uploaded if none is kept. Whoever launches kernels on
/// it holds it until they are in the stream.
pub(crate) fn array(
    device: &Device,
    op: &'static str,
    content: &[u8],
) -> Result<Arc<Allocation>, CudaError> {
    let mut arrays = lock(&device.arrays);
    if let Some(memory) = arrays.get(content) {
        return Ok(memory);
    }
    let memory = Arc::new(device.allocate(content.len())?);
    staging::upload(device, op, memory.address(), content.len(), |begin, piece| {
        piece.copy_from_slice(&content[begin..][..piece.len()]);
    })?;
    arrays.keep(content, &memory);
    Ok(memory)
}
