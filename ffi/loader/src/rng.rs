//! The host's end of `forgelm.rng/1`: Philox4x32-10, keyed by the seed under a purpose of its own, so
//! that no plugin gets the numbers of the run's order, dropout or start.

use crate::border::size;
use forgelm_abi::{RNG_PURPOSE, forgelm_rng};
use forgelm_kernels_api::philox::philox4x32;
use std::ptr::null_mut;

/// The table, the same for every plugin.
pub(crate) struct Rng(pub(crate) forgelm_rng);

// SAFETY: its only pointer is null.
unsafe impl Sync for Rng {}

pub(crate) static TABLE: Rng = Rng(forgelm_rng {
    struct_size: size::<forgelm_rng>(),
    reserved: 0,
    service_data: null_mut(),
    bits: Some(bits),
    uniform: Some(uniform),
});

/// Low and high half.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
const fn halves(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

/// The bits of `first`, `first + 1`, ...
fn words(seed: u64, step: u64, first: u64) -> impl Iterator<Item = u32> {
    let [k0, k1, ..] = philox4x32([RNG_PURPOSE, 0, 0, 0], halves(seed));
    let [s0, s1] = halves(step);
    (0_u64..).map(move |i| {
        let [i0, i1] = halves(first.wrapping_add(i));
        philox4x32([i0, i1, s0, s1], [k0, k1])[0]
    })
}

unsafe extern "C" fn bits(
    _rng: *const forgelm_rng,
    seed: u64,
    step: u64,
    first: u64,
    n: usize,
    out: *mut u32,
) {
    if out.is_null() {
        return;
    }
    // SAFETY: n places that the plugin may write, as the header says.
    let out = unsafe { std::slice::from_raw_parts_mut(out, n) };
    out.iter_mut().zip(words(seed, step, first)).for_each(|(to, word)| *to = word);
}

#[expect(clippy::cast_precision_loss, reason = "24 bits fit a f32")]
unsafe extern "C" fn uniform(
    _rng: *const forgelm_rng,
    seed: u64,
    step: u64,
    first: u64,
    n: usize,
    out: *mut f32,
) {
    if out.is_null() {
        return;
    }
    // SAFETY: n places that the plugin may write, as the header says.
    let out = unsafe { std::slice::from_raw_parts_mut(out, n) };
    for (to, word) in out.iter_mut().zip(words(seed, step, first)) {
        *to = (word >> 8) as f32 / 16_777_216.0;
    }
}
