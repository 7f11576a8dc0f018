//! What calls take for their own time.

use forgelm_kernels_api::{Format, Workload};

use crate::frozen::format_of;
use crate::{attention, columns, cublaslt, cudnn, gemm, routing, token_logprobs};

/// The most that one call takes, and what products share: calls follow each other.
pub(crate) fn bytes(work: &Workload, has_cudnn: bool) -> usize {
    let Workload { n_tokens, longest, hidden, n_heads, n_kv_heads, head_dim, .. } = *work;
    let format = format_of(work.compute);
    // What is multiplied, in the weight's format, and the weight out of its blocks.
    let unpacked = if work.in_blocks { work.largest_weight } else { 0 };
    let product = (n_tokens * work.widest + unpacked) * format.n_bytes();
    let head = token_logprobs::workspace_bytes(work, format);
    // A number for each row of a head; a cache of keys and values that is read in splits.
    let attention = n_tokens * n_heads * Format::F32.n_bytes()
        + attention::split_bytes(longest, n_heads, head_dim);
    let sums = columns::partials_bytes(n_tokens, work.widest.max(hidden));
    let routing = routing::workspace_bytes(n_tokens, work.n_experts);
    // cuDNN is compared with our own kernels before it is used, and keeps memory from then on.
    let (trial, cudnn) = match has_cudnn {
        true => (cudnn::trial_bytes(n_heads, n_kv_heads, head_dim), cudnn::WORKSPACE_MAX),
        false => (0, 0),
    };
    let largest = [product, head, attention, sums, routing, trial].into_iter().max().unwrap_or(0);
    cublaslt::WORKSPACE + gemm::PARTIALS_BYTES_MAX + cudnn + largest
}
