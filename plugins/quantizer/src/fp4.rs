//! Four-bit floats: blocks of 64, one f32 scale each.
//!
//! Source: bitsandbytes' `fp4`: sign, two bits of exponent, one of fraction; the largest value is the
//! block's largest size. Codes and scales are those of bitsandbytes.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const FP4: Descriptor = Descriptor {
    name: "fp4",
    summary: "four-bit floats, blocks of 64",
    source: "bitsandbytes 0.50, `fp4`",
    build: |options| crate::host::build("fp4", options),
};
