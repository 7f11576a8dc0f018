//! AVX-512, with and without `vdpbf16ps`: sixteen lanes.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the intrinsics carry their own prefix")
)]

use std::arch::x86_64::*;

use super::{
    Grid, Simd, bf16_bits, join_pairs_plain, pack_pairs_plain, transpose_plain,
    transpose_squares_plain,
};
use crate::scratch::Bits;

/// Proof that the processor has AVX-512 F, BW and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof that the processor has AVX-512 BF16 besides.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512 {
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

impl Avx512Bf16 {
    pub(crate) fn new() -> Option<Self> {
        let base = Avx512::new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(base))
    }
}

const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
unsafe fn compiled<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma,avx512bf16")]
unsafe fn compiled_bf16<R>(f: impl FnOnce() -> R) -> R {
    f()
}

macro_rules! instruction {
    ($call:expr) => {
        // SAFETY: `self` exists only where the processor has these instructions; an address comes
        // from a slice whose length was checked above, or from the caller, who promises it.
        unsafe { $call }
    };
}

/// The lanes below `n`.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    assert!(n <= LANES, "more numbers than lanes");
    ((1_u32 << n) - 1) as __mmask16
}

impl Simd for Avx512 {
    type V = __m512;
    type P = __m512i;

    const LANES: usize = LANES;
    const ROWS: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        instruction!(compiled(f))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        instruction!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= LANES, "too few numbers for a vector");
        instruction!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        instruction!(_mm512_maskz_loadu_ps(first(x.len()), x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], v: Self::V) {
        assert!(to.len() >= LANES, "too little room for a vector");
        instruction!(_mm512_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: Self::V) {
        instruction!(_mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), v));
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::V {
        instruction!(_mm512_loadu_ps(x))
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, x: *const u32) -> Self::P {
        instruction!(_mm512_loadu_si512(x.cast()))
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        instruction!(_mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        instruction!(_mm512_sqrt_ps(a))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        instruction!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        instruction!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        instruction!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        let exponent =
            instruction!(_mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127)));
        instruction!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
    }

    #[inline(always)]
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        instruction!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }

    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        instruction!(_mm512_reduce_add_ps(a))
    }

    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        instruction!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn splat_pair(self, x: u32) -> Self::P {
        instruction!(_mm512_set1_epi32(x as i32))
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: Self::P, b: Self::P) -> Self::V {
        let (a_low, b_low) = instruction!((
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a)),
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b)),
        ));
        let mask = instruction!(_mm512_set1_epi32(0xffff_0000_u32 as i32));
        let (a_high, b_high) = instruction!((
            _mm512_castsi512_ps(_mm512_and_si512(a, mask)),
            _mm512_castsi512_ps(_mm512_and_si512(b, mask)),
        ));
        self.mul_add(a_high, b_high, self.mul_add(a_low, b_low, acc))
    }

    #[inline(always)]
    fn look_up(self, values: &[f32; 16], codes: &[u8]) -> (Self::V, Self::V) {
        assert!(codes.len() >= LANES, "too few codes for a vector");
        let values = self.load(values);
        let low = instruction!(_mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast())));
        let high = instruction!(_mm512_srli_epi32::<4>(low));
        // The lower four bits of an index count.
        instruction!((_mm512_permutexvar_ps(low, values), _mm512_permutexvar_ps(high, values)))
    }

    #[inline(always)]
    fn integers(self, codes: &[u8]) -> Self::V {
        assert!(codes.len() >= LANES, "too few codes for a vector");
        let wide = instruction!(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes.as_ptr().cast())));
        instruction!(_mm512_cvtepi32_ps(wide))
    }

    #[inline(always)]
    fn round_to_f16(self, v: Self::V) -> Self::V {
        let half = instruction!(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(v));
        instruction!(_mm512_cvtph_ps(half))
    }

    #[inline(always)]
    fn pack_pairs(self, to: &mut [u32], x: &[f32]) {
        pack_pairs_plain(to, x);
    }

    #[inline(always)]
    fn transpose(self, to: Grid<&mut [u32]>, from: Grid<&[u32]>, rows: usize, columns: usize) {
        if rows == 0 || columns == 0 {
            return;
        }
        let (n_r, n_c) = (rows / 16 * 16, columns / 16 * 16);
        for r in (0..n_r).step_by(16) {
            for c in (0..n_c).step_by(16) {
                self.transpose_16(
                    Grid { data: &mut to.data[c * to.stride + r..], stride: to.stride },
                    Grid { data: &from.data[r * from.stride + c..], stride: from.stride },
                );
            }
        }
        // What is left on the right and below.
        for (r0, c0, rows, columns) in [(0, n_c, n_r, columns - n_c), (n_r, 0, rows - n_r, columns)]
        {
            if rows > 0 && columns > 0 {
                transpose_plain(
                    Grid { data: &mut to.data[c0 * to.stride + r0..], stride: to.stride },
                    Grid { data: &from.data[r0 * from.stride + c0..], stride: from.stride },
                    rows,
                    columns,
                );
            }
        }
    }

    #[inline(always)]
    fn transpose_squares(
        self,
        to: Grid<&mut [u32]>,
        from: Grid<&[u32]>,
        rows: usize,
        columns: usize,
    ) {
        if rows == 0 || columns == 0 {
            return;
        }
        let (n_r, n_c) = (rows / 8 * 8, columns / 8 * 8);
        for r in (0..n_r).step_by(8) {
            for c in (0..n_c).step_by(8) {
                self.transpose_8_squares(
                    Grid { data: &mut to.data[2 * (c * to.stride + r)..], stride: to.stride },
                    Grid { data: &from.data[2 * (r * from.stride + c)..], stride: from.stride },
                );
            }
        }
        for (r0, c0, rows, columns) in [(0, n_c, n_r, columns - n_c), (n_r, 0, rows - n_r, columns)]
        {
            if rows > 0 && columns > 0 {
                transpose_squares_plain(
                    Grid { data: &mut to.data[2 * (c0 * to.stride + r0)..], stride: to.stride },
                    Grid { data: &from.data[2 * (r0 * from.stride + c0)..], stride: from.stride },
                    rows,
                    columns,
                );
            }
        }
    }
}

impl Avx512 {
    /// 16 x 16 numbers.
    #[inline(always)]
    fn transpose_16(self, to: Grid<&mut [u32]>, from: Grid<&[u32]>) {
        assert!(from.data.len() >= 15 * from.stride + 16, "from is not 16 x 16");
        assert!(to.data.len() >= 15 * to.stride + 16, "to is not 16 x 16");
        let mut v = [instruction!(_mm512_setzero_si512()); 16];
        for (i, v) in v.iter_mut().enumerate() {
            *v = instruction!(_mm512_loadu_si512(from.data.as_ptr().add(i * from.stride).cast()));
        }
        // Pairs of rows, then pairs of pairs: within each quarter of a vector, 4 x 4 are done.
        let mut pairs = v;
        for i in 0..8 {
            pairs[2 * i] = instruction!(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]));
            pairs[2 * i + 1] = instruction!(_mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
        }
        let mut fours = v;
        for i in 0..4 {
            for j in 0..2 {
                let (a, b) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                fours[4 * i + 2 * j] = instruction!(_mm512_unpacklo_epi64(a, b));
                fours[4 * i + 2 * j + 1] = instruction!(_mm512_unpackhi_epi64(a, b));
            }
        }
        // fours[4 i + c], quarter q: rows 4 i.. of column 4 q + c. Gather the quarters.
        for c in 0..4 {
            let (a, b, e, f) = (fours[c], fours[4 + c], fours[8 + c], fours[12 + c]);
            let ab02 = instruction!(_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b));
            let ab13 = instruction!(_mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
            let ef02 = instruction!(_mm512_shuffle_i32x4::<0b10_00_10_00>(e, f));
            let ef13 = instruction!(_mm512_shuffle_i32x4::<0b11_01_11_01>(e, f));
            let columns = [
                instruction!(_mm512_shuffle_i32x4::<0b10_00_10_00>(ab02, ef02)),
                instruction!(_mm512_shuffle_i32x4::<0b10_00_10_00>(ab13, ef13)),
                instruction!(_mm512_shuffle_i32x4::<0b11_01_11_01>(ab02, ef02)),
                instruction!(_mm512_shuffle_i32x4::<0b11_01_11_01>(ab13, ef13)),
            ];
            for (q, column) in columns.into_iter().enumerate() {
                let at = (4 * q + c) * to.stride;
                instruction!(_mm512_storeu_si512(to.data.as_mut_ptr().add(at).cast(), column));
            }
        }
    }

    /// 8 x 8 squares of 2 x 2 bfloat16.
    #[inline(always)]
    fn transpose_8_squares(self, to: Grid<&mut [u32]>, from: Grid<&[u32]>) {
        assert!(from.data.len() >= 14 * from.stride + 16, "from is not 8 x 8 squares");
        assert!(to.data.len() >= 14 * to.stride + 16, "to is not 8 x 8 squares");
        // In each square the second and third of four halves change places.
        let swap =
            instruction!(_mm512_set4_epi32(0x0f0e_0b0a, 0x0d0c_0908, 0x0706_0302, 0x0504_0100));
        let mut v = [swap; 8];
        for (i, v) in v.iter_mut().enumerate() {
            let at = 2 * i * from.stride;
            let row = instruction!(_mm512_loadu_si512(from.data.as_ptr().add(at).cast()));
            *v = instruction!(_mm512_shuffle_epi8(row, swap));
        }
        let mut pairs = v;
        for i in 0..4 {
            pairs[2 * i] = instruction!(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]));
            pairs[2 * i + 1] = instruction!(_mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
        }
        // pairs[2 i + c], quarter q: rows 2 i.. of column 2 q + c. Gather the quarters.
        for c in 0..2 {
            let (a, b, e, f) = (pairs[c], pairs[2 + c], pairs[4 + c], pairs[6 + c]);
            let ab02 = instruction!(_mm512_shuffle_i64x2::<0b10_00_10_00>(a, b));
            let ab13 = instruction!(_mm512_shuffle_i64x2::<0b11_01_11_01>(a, b));
            let ef02 = instruction!(_mm512_shuffle_i64x2::<0b10_00_10_00>(e, f));
            let ef13 = instruction!(_mm512_shuffle_i64x2::<0b11_01_11_01>(e, f));
            let columns = [
                instruction!(_mm512_shuffle_i64x2::<0b10_00_10_00>(ab02, ef02)),
                instruction!(_mm512_shuffle_i64x2::<0b10_00_10_00>(ab13, ef13)),
                instruction!(_mm512_shuffle_i64x2::<0b11_01_11_01>(ab02, ef02)),
                instruction!(_mm512_shuffle_i64x2::<0b11_01_11_01>(ab13, ef13)),
            ];
            for (q, column) in columns.into_iter().enumerate() {
                let at = 2 * (2 * q + c) * to.stride;
                instruction!(_mm512_storeu_si512(to.data.as_mut_ptr().add(at).cast(), column));
            }
        }
    }
}

/// Everything but products of pairs is as in [`Avx512`].
macro_rules! as_avx512 {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $type),*) $(-> $out)? {
                self.0.$name($($arg),*)
            }
        )*
    };
}

impl Simd for Avx512Bf16 {
    type V = __m512;
    type P = __m512i;

    const LANES: usize = LANES;
    const ROWS: usize = 8;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        instruction!(compiled_bf16(f))
    }

    as_avx512! {
        splat(x: f32) -> Self::V;
        load(x: &[f32]) -> Self::V;
        load_part(x: &[f32]) -> Self::V;
        store(to: &mut [f32], v: Self::V);
        store_part(to: &mut [f32], v: Self::V);
        add(a: Self::V, b: Self::V) -> Self::V;
        sub(a: Self::V, b: Self::V) -> Self::V;
        mul(a: Self::V, b: Self::V) -> Self::V;
        div(a: Self::V, b: Self::V) -> Self::V;
        sqrt(a: Self::V) -> Self::V;
        max(a: Self::V, b: Self::V) -> Self::V;
        min(a: Self::V, b: Self::V) -> Self::V;
        mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
        round(a: Self::V) -> Self::V;
        pow2(a: Self::V) -> Self::V;
        if_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
        sum(a: Self::V) -> f32;
        largest(a: Self::V) -> f32;
        splat_pair(x: u32) -> Self::P;
        look_up(values: &[f32; 16], codes: &[u8]) -> (Self::V, Self::V);
        integers(codes: &[u8]) -> Self::V;
        round_to_f16(v: Self::V) -> Self::V;
        transpose(to: Grid<&mut [u32]>, from: Grid<&[u32]>, rows: usize, columns: usize);
        transpose_squares(to: Grid<&mut [u32]>, from: Grid<&[u32]>, rows: usize, columns: usize);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::V {
        instruction!(self.0.load_at(x))
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, x: *const u32) -> Self::P {
        instruction!(self.0.load_pairs_at(x))
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        self.0.prefetch(address);
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: Self::P, b: Self::P) -> Self::V {
        // SAFETY: the same 512 bits under another name.
        let (a, b) = unsafe {
            (
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        };
        instruction!(_mm512_dpbf16_ps(acc, a, b))
    }

    #[inline(always)]
    fn store_pairs(self, to: &mut [u32], low: Self::V, high: Self::V) {
        assert!(to.len() >= LANES, "too little room for a vector");
        // Halves 0..16 are of `low`, 16..32 of `high`: half i and half 16 + i become neighbors.
        let order = instruction!(_mm512_set_epi32(
            0x1f_000f, 0x1e_000e, 0x1d_000d, 0x1c_000c, 0x1b_000b, 0x1a_000a, 0x19_0009, 0x18_0008,
            0x17_0007, 0x16_0006, 0x15_0005, 0x14_0004, 0x13_0003, 0x12_0002, 0x11_0001, 0x10_0000,
        ));
        let rounded = instruction!(_mm512_cvtne2ps_pbh(high, low));
        // SAFETY: the same 512 bits under another name.
        let rounded = unsafe { std::mem::transmute::<__m512bh, __m512i>(rounded) };
        let pairs = instruction!(_mm512_permutexvar_epi16(order, rounded));
        instruction!(_mm512_storeu_si512(to.as_mut_ptr().cast(), pairs));
    }

    #[inline(always)]
    fn pack_pairs(self, to: &mut [u32], x: &[f32]) {
        assert_eq!(to.len(), x.len().div_ceil(2), "to is not [ceil(K / 2)]");
        let (blocks, rest) = x.as_chunks::<32>();
        let (to_blocks, to_rest) = to.split_at_mut(16 * blocks.len());
        for (to, x) in to_blocks.as_chunks_mut::<16>().0.iter_mut().zip(blocks) {
            let (low, high) = (self.load(&x[..16]), self.load(&x[16..]));
            let pairs = instruction!(_mm512_cvtne2ps_pbh(high, low));
            instruction!(to.as_mut_ptr().cast::<__m512bh>().write_unaligned(pairs));
        }
        pack_pairs_plain(to_rest, rest);
    }

    #[inline(always)]
    fn pack_pairs_in_place(self, x: &mut [u32]) {
        let n = x.len() / 32;
        for i in 0..n {
            let from = &x[32 * i..32 * i + 32];
            let (low, high) =
                (self.load(f32::view(&from[..16])), self.load(f32::view(&from[16..])));
            let pairs = instruction!(_mm512_cvtne2ps_pbh(high, low));
            let to = &mut x[16 * i..16 * i + 16];
            instruction!(to.as_mut_ptr().cast::<__m512bh>().write_unaligned(pairs));
        }
        for i in 16 * n..x.len().div_ceil(2) {
            let high = x.get(2 * i + 1).map_or(0, |&bits| bf16_bits(f32::from_bits(bits)));
            x[i] = bf16_bits(f32::from_bits(x[2 * i])) | (high << 16);
        }
    }

    #[inline(always)]
    fn join_pairs(self, to: &mut [u32], low: &[f32], high: Option<&[f32]>) {
        assert_eq!(to.len(), low.len(), "rows of different lengths");
        assert!(high.is_none_or(|high| high.len() == to.len()), "rows of different lengths");
        // Halves 0 and 16, 1 and 17, and so on.
        let order = instruction!(_mm512_add_epi16(
            _mm512_set1_epi32(16 << 16),
            _mm512_mullo_epi32(
                _mm512_set1_epi32(0x1_0001),
                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            ),
        ));
        let whole = to.len() / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let a = self.load(&low[i..]);
            let b = high.map_or_else(|| self.splat(0.0), |high| self.load(&high[i..]));
            let halves = instruction!(_mm512_cvtne2ps_pbh(b, a));
            // SAFETY: the same 512 bits under another name.
            let halves = unsafe { std::mem::transmute::<__m512bh, __m512i>(halves) };
            let pairs = instruction!(_mm512_permutexvar_epi16(order, halves));
            let to = &mut to[i..i + LANES];
            instruction!(_mm512_storeu_si512(to.as_mut_ptr().cast(), pairs));
        }
        join_pairs_plain(&mut to[whole..], &low[whole..], high.map(|high| &high[whole..]));
    }
}
