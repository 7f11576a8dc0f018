//! GGUF's `Q4_K`: blocks of 256 in eight groups, scales and minima of six bits, q of four.
//!
//! Source: ggml, `quantize_row_q4_K_ref`: each group's line is the best of 22 trials by a weighted
//! squared error.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const Q4_K: Descriptor = Descriptor {
    name: "q4_k",
    summary: "GGUF Q4_K: four bits, eight scales and minima in blocks of 256",
    source: "ggml, quantize_row_q4_K_ref",
    build: |options| crate::host::build("q4_k", options),
};
