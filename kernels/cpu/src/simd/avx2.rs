//! AVX2 and FMA: eight lanes.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the intrinsics carry their own prefix")
)]

use std::arch::x86_64::*;

use super::{Simd, pack_pairs_plain};

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

const LANES: usize = 8;

#[target_feature(enable = "avx2,fma")]
unsafe fn compiled<R>(f: impl FnOnce() -> R) -> R {
    f()
}

macro_rules! instruction {
    ($call:expr) => {
        // SAFETY: `self` exists only where the processor has AVX2 and FMA; an address comes from
        // a slice whose length was checked above, or from the caller, who promises it.
        unsafe { $call }
    };
}

impl Simd for Avx2 {
    type V = __m256;
    type P = __m256i;

    const LANES: usize = LANES;
    const ROWS: usize = 4;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        instruction!(compiled(f))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        instruction!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= LANES, "too few numbers for a vector");
        instruction!(_mm256_loadu_ps(x.as_ptr()))
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
        instruction!(_mm256_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: Self::V) {
        let mut whole = [0.0; LANES];
        self.store(&mut whole, v);
        to.copy_from_slice(&whole[..to.len()]);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::V {
        instruction!(_mm256_loadu_ps(x))
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, x: *const u32) -> Self::P {
        instruction!(_mm256_loadu_si256(x.cast()))
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        instruction!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        instruction!(_mm256_sqrt_ps(a))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        instruction!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        instruction!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        let exponent =
            instruction!(_mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127)));
        instruction!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }

    #[inline(always)]
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        instruction!(_mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }

    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let mut v = [0.0; LANES];
        self.store(&mut v, a);
        let half = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (half[0] + half[2]) + (half[1] + half[3])
    }

    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        let mut v = [0.0; LANES];
        self.store(&mut v, a);
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn splat_pair(self, x: u32) -> Self::P {
        instruction!(_mm256_set1_epi32(x as i32))
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: Self::P, b: Self::P) -> Self::V {
        let (a_low, b_low) = instruction!((
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
        ));
        let mask = instruction!(_mm256_set1_epi32(0xffff_0000_u32 as i32));
        let (a_high, b_high) = instruction!((
            _mm256_castsi256_ps(_mm256_and_si256(a, mask)),
            _mm256_castsi256_ps(_mm256_and_si256(b, mask)),
        ));
        self.mul_add(a_high, b_high, self.mul_add(a_low, b_low, acc))
    }

    #[inline(always)]
    fn look_up(self, values: &[f32; 16], codes: &[u8]) -> (Self::V, Self::V) {
        assert!(codes.len() >= LANES, "too few codes for a vector");
        let (first, second) = (self.load(&values[..LANES]), self.load(&values[LANES..]));
        let low = instruction!(_mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())));
        let high = instruction!(_mm256_srli_epi32::<4>(low));
        // The lower three bits choose within a half of the values, the fourth one the half.
        let pick = |code: __m256i| {
            let (a, b) = instruction!((
                _mm256_permutevar8x32_ps(first, code),
                _mm256_permutevar8x32_ps(second, code),
            ));
            let half = instruction!(_mm256_castsi256_ps(_mm256_slli_epi32::<28>(code)));
            instruction!(_mm256_blendv_ps(a, b, half))
        };
        (pick(low), pick(high))
    }

    #[inline(always)]
    fn integers(self, codes: &[u8]) -> Self::V {
        assert!(codes.len() >= LANES, "too few codes for a vector");
        let wide = instruction!(_mm256_cvtepi8_epi32(_mm_loadl_epi64(codes.as_ptr().cast())));
        instruction!(_mm256_cvtepi32_ps(wide))
    }

    #[inline(always)]
    fn pack_pairs(self, to: &mut [u32], x: &[f32]) {
        pack_pairs_plain(to, x);
    }
}
