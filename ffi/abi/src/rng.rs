//! `forgelm.rng/1`: random numbers as a function of (seed, step, index), without state.

use std::ffi::{CStr, c_void};

/// Id of the host's [`forgelm_rng`].
pub const RNG: &CStr = c"forgelm.rng/1";
/// The word in the counter from which the key of a seed is made: `PLUG`.
pub const RNG_PURPOSE: u32 = 0x504c_5547;

/// Host service `forgelm.rng/1`.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_rng {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub service_data: *mut c_void,
    /// 32 random bits each.
    pub bits: Option<
        unsafe extern "C" fn(
            rng: *const forgelm_rng,
            seed: u64,
            step: u64,
            first: u64,
            n: usize,
            out: *mut u32,
        ),
    >,
    /// Uniform in [0, 1): the upper 24 bits of each, times 2^-24.
    pub uniform: Option<
        unsafe extern "C" fn(
            rng: *const forgelm_rng,
            seed: u64,
            step: u64,
            first: u64,
            n: usize,
            out: *mut f32,
        ),
    >,
}
