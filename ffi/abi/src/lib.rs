//! The plugin ABI as Rust types: what `ffi/include/forgelm_plugin.h` declares, byte for byte.
//!
//! Plain tables of numbers, pointers and functions, the same for Rust, C and C++. It refuses to
//! know what a host or a plugin does with them: `ffi/sdk` has the plugin's side, `ffi/loader` the
//! host's. Names are those of the header, and what a function promises (thread, ownership, errors)
//! is written there, once.
//!
//! **Invariant:** the header and these types are the same on the compilers of this machine
//! (`tests/header.rs`). Start reading at [`forgelm_entry`].
#![expect(non_camel_case_types, reason = "types have the names of the C header")]

mod border;
mod collective;
mod device;
mod evaluator;
mod kernels;
mod layout;
mod merge_method;
mod quantizer;
mod reward;
mod rng;
mod tensor;
mod trainer;
mod witness;

pub use border::{
    ABI_MAJOR, ABI_MINOR, ENTRY_SYMBOL, MAGIC, forgelm_entry, forgelm_host, forgelm_plugin_error,
    forgelm_status, forgelm_str, log_level, status,
};
pub use collective::{
    COLLECTIVE_FACTORY, forgelm_collective, forgelm_collective_descriptor,
    forgelm_collective_factory,
};
pub use device::{
    DEVICE_KERNELS, MERGE_METHOD_ON_DEVICE, QUANTIZER_ON_DEVICE, QuantizeOnDevice, election,
    forgelm_device_kernels, forgelm_device_models, forgelm_drop_mask, forgelm_managed_tensor,
    forgelm_merge_method_on_device, forgelm_quantizer_on_device,
};
pub use evaluator::{
    EVALUATOR_FACTORY, GENERATE, HELD_OUT, SCORE, forgelm_evaluator, forgelm_evaluator_descriptor,
    forgelm_evaluator_factory, forgelm_generate, forgelm_held_out, forgelm_score,
    forgelm_text_pair, forgelm_writer,
};
pub use kernels::{
    KERNELS, Reduction, forgelm_gemm, forgelm_kernels, forgelm_work, gemm_layout, write,
};
pub use layout::{EXTENSION_LAYOUTS, Field, LAYOUT_HASH, LAYOUTS, Layout};
pub use merge_method::{
    MERGE_METHOD_FACTORY, forgelm_merge_method, forgelm_merge_method_descriptor,
    forgelm_merge_method_factory, forgelm_merge_pass, forgelm_merge_piece, forgelm_merge_tensor,
    merge_scope,
};
pub use quantizer::{
    QUANTIZER_FACTORY, forgelm_quantizer, forgelm_quantizer_descriptor, forgelm_quantizer_factory,
};
pub use reward::{
    REWARD_FACTORY, forgelm_answer, forgelm_reward, forgelm_reward_descriptor,
    forgelm_reward_factory,
};
pub use rng::{RNG, RNG_PURPOSE, forgelm_rng};
pub use tensor::{
    DEVICE_CPU, DEVICE_CUDA, dtype_code, forgelm_device, forgelm_dtype, forgelm_tensor,
};
pub use trainer::{
    TRAINER_FACTORY, forgelm_loss, forgelm_role_totals, forgelm_scored, forgelm_sequence,
    forgelm_trainer, forgelm_trainer_descriptor, forgelm_trainer_factory, records, role,
    trainer_needs,
};
pub use witness::{LAYOUTS_SYMBOL, WITNESS, forgelm_field_layout, forgelm_layouts};
