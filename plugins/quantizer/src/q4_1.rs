//! GGUF's `Q4_1`: blocks of 32, half-precision d and m, `d q + m` with q of four bits.
//!
//! Source: ggml, `quantize_row_q4_1_ref`: from the smallest number of a block to its largest.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const Q4_1: Descriptor = Descriptor {
    name: "q4_1",
    summary: "GGUF Q4_1: four bits and a minimum, blocks of 32",
    source: "ggml, quantize_row_q4_1_ref",
    build: |options| crate::host::build("q4_1", options),
};
