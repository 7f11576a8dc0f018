//! GGUF's `Q6_K`: blocks of 256 in sixteen groups, scales of eight bits, q of six.
//!
//! Source: ggml, `quantize_row_q6_K_ref`: each group's scale is the best of 19 trials by a weighted
//! squared error.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const Q6_K: Descriptor = Descriptor {
    name: "q6_k",
    summary: "GGUF Q6_K: six bits, sixteen scales in blocks of 256",
    source: "ggml, quantize_row_q6_K_ref",
    build: |options| crate::host::build("q6_k", options),
};
