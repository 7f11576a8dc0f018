//! Whole numbers of eight bits, one f32 scale a row.
//!
//! Source: Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8()), section 2.1: absolute-maximum
//! quantization, by rows. `scale = max |w| / 127`, `q = round(w / scale)`, halves away from zero. Ours
//! differs in that nothing is kept in 16 bits beside it.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const INT8: Descriptor = Descriptor {
    name: "int8",
    summary: "whole numbers of eight bits, one scale a row",
    source: "Dettmers et al. 2022, arXiv:2208.07339, sec. 2.1",
    build: |options| crate::host::build("int8", options),
};
