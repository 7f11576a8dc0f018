//! NEON: four lanes. With 32 registers a tile of 8 rows and 3 vectors fits, as with AVX-512.
//!
//! bfloat16 is widened to f32 and multiplied in two halves: the instruction for pairs (`bfdot`) is
//! not in the stable compiler.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the intrinsics carry their own prefix")
)]

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::{Simd, pack_pairs_plain};

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

const LANES: usize = 4;

#[target_feature(enable = "neon")]
unsafe fn compiled<R>(f: impl FnOnce() -> R) -> R {
    f()
}

macro_rules! instruction {
    ($call:expr) => {
        // SAFETY: `self` exists only where the processor has NEON; an address comes from a slice
        // whose length was checked above, or from the caller, who promises it.
        unsafe { $call }
    };
}

impl Simd for Neon {
    type V = float32x4_t;
    type P = uint32x4_t;

    const LANES: usize = LANES;
    const ROWS: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        instruction!(compiled(f))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        instruction!(vdupq_n_f32(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= LANES, "too few numbers for a vector");
        instruction!(vld1q_f32(x.as_ptr()))
    }

    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        let mut whole = [0.0; LANES];
        whole[..x.len()].copy_from_slice(x);
        self.load(&whole)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], v: Self::V) {
        assert!(to.len() >= LANES, "too little room for a vector");
        instruction!(vst1q_f32(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: Self::V) {
        let mut whole = [0.0; LANES];
        self.store(&mut whole, v);
        to.copy_from_slice(&whole[..to.len()]);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::V {
        instruction!(vld1q_f32(x))
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, x: *const u32) -> Self::P {
        instruction!(vld1q_u32(x))
    }

    /// The stable compiler has no such instruction for this processor.
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        instruction!(vsqrtq_f32(a))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(vmaxnmq_f32(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(vminnmq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        instruction!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        instruction!(vrndnq_f32(a))
    }

    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        let exponent = instruction!(vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127)));
        instruction!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
    }

    #[inline(always)]
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        instruction!(vbslq_f32(vcltq_f32(a, b), x, y))
    }

    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let mut v = [0.0; LANES];
        self.store(&mut v, a);
        (v[0] + v[2]) + (v[1] + v[3])
    }

    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        instruction!(vmaxnmvq_f32(a))
    }

    #[inline(always)]
    fn splat_pair(self, x: u32) -> Self::P {
        instruction!(vdupq_n_u32(x))
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: Self::P, b: Self::P) -> Self::V {
        let (a_low, b_low) = instruction!((
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(a)),
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(b)),
        ));
        let mask = instruction!(vdupq_n_u32(0xffff_0000));
        let (a_high, b_high) = instruction!((
            vreinterpretq_f32_u32(vandq_u32(a, mask)),
            vreinterpretq_f32_u32(vandq_u32(b, mask)),
        ));
        self.mul_add(a_high, b_high, self.mul_add(a_low, b_low, acc))
    }

    #[inline(always)]
    fn pack_pairs(self, to: &mut [u32], x: &[f32]) {
        pack_pairs_plain(to, x);
    }

    #[inline(always)]
    fn look_up(self, values: &[f32; 16], codes: &[u8]) -> (Self::V, Self::V) {
        let codes = &codes[..LANES];
        let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
        for (i, &code) in codes.iter().enumerate() {
            low[i] = values[usize::from(code & 15)];
            high[i] = values[usize::from(code >> 4)];
        }
        (self.load(&low), self.load(&high))
    }

    #[inline(always)]
    fn integers(self, codes: &[u8]) -> Self::V {
        let mut numbers = [0.0; LANES];
        for (to, &code) in numbers.iter_mut().zip(&codes[..LANES]) {
            *to = f32::from(code.cast_signed());
        }
        self.load(&numbers)
    }
}
