//! GGUF's `Q4_0`: blocks of 32, a half-precision d, `d (q - 8)` with q of four bits.
//!
//! Source: ggml, `quantize_row_q4_0_ref`: d is the number of largest size over -8.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const Q4_0: Descriptor = Descriptor {
    name: "q4_0",
    summary: "GGUF Q4_0: four bits, blocks of 32",
    source: "ggml, quantize_row_q4_0_ref",
    build: |options| crate::host::build("q4_0", options),
};
