//! What calls take for their own time.

use forgelm_kernels_api::Workload;

use crate::attention::backward;
use crate::token_logprobs;

/// Of a thread: a block of weights turned around, packed rows, logits of a chunk.
const THREAD: usize = 6 << 20;

/// Of every thread; panels of keys and values and their partial gradients in attention; the head's
/// partial gradients, one for each slice of the vocabulary.
pub(crate) fn bytes(work: &Workload, n_threads: usize) -> usize {
    let Workload { n_tokens, longest, n_scored, hidden, n_kv_heads, head_dim, .. } = *work;
    let n_chunks = longest.div_ceil(backward::CHUNK).clamp(1, backward::CHUNKS);
    // A chunk of queries adds to every key before its end: on average half the sequence.
    let attention = n_tokens * n_kv_heads * head_dim * size_of::<f32>() * (3 + (n_chunks + 1));
    let n_slices = token_logprobs::slices_max(n_scored);
    let head = (n_slices - 1) * n_scored * hidden * size_of::<f32>();
    n_threads * THREAD + attention + head
}
