//! GGUF's `Q8_0`: blocks of 32, a half-precision d, `d q` with q of eight bits.
//!
//! Source: ggml, `quantize_row_q8_0_ref`: d is the largest size over 127.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const Q8_0: Descriptor = Descriptor {
    name: "q8_0",
    summary: "GGUF Q8_0: eight bits, blocks of 32",
    source: "ggml, quantize_row_q8_0_ref",
    build: |options| crate::host::build("q8_0", options),
};
