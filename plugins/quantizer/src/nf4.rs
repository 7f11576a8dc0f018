//! Four bits by quantiles of the normal distribution: blocks of 64, one f32 scale each.
//!
//! Paper: Dettmers et al. 2023, arXiv:2305.14314 (QLoRA), section 3. A block's numbers over its largest
//! size become the nearest of 16 values that are equally likely under a normal distribution; exactly
//! midway, the lower one. Codes and scales are those of bitsandbytes.
//!
//! No options.

use forgelm_sdk::quantizer::Descriptor;

/// The entry in the kind's list.
pub const NF4: Descriptor = Descriptor {
    name: "nf4",
    summary: "four bits by quantiles of the normal distribution, blocks of 64",
    source: "Dettmers et al. 2023, arXiv:2305.14314, sec. 3",
    build: |options| crate::host::build("nf4", options),
};
