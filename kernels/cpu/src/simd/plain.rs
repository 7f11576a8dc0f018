//! Eight lanes in plain code.

use super::{Simd, pack_pairs_plain};

/// Always available.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

const LANES: usize = 8;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut v = [0.0; LANES];
    for (i, v) in v.iter_mut().enumerate() {
        *v = f(i);
    }
    v
}

impl Simd for Plain {
    type V = [f32; LANES];
    type P = [u32; LANES];

    const LANES: usize = LANES;
    const ROWS: usize = 2;

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::V {
        each(|i| x[i])
    }

    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        assert!(x.len() <= LANES, "more numbers than lanes");
        each(|i| x.get(i).copied().unwrap_or(0.0))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], v: Self::V) {
        to[..LANES].copy_from_slice(&v);
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: Self::V) {
        to.copy_from_slice(&v[..to.len()]);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Self::V {
        // SAFETY: the caller promises LANES numbers at x.
        unsafe { x.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, x: *const u32) -> Self::P {
        // SAFETY: the caller promises LANES pairs at x.
        unsafe { x.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn sqrt(self, a: Self::V) -> Self::V {
        each(|i| a[i].sqrt())
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        // Adding and taking away 1.5 * 2^23 leaves a whole number; wider ones are whole already.
        const WHOLE: f32 = 12_582_912.0;
        each(|i| if a[i].abs() < 4_194_304.0 { (a[i] + WHOLE) - WHOLE } else { a[i] })
    }

    #[inline(always)]
    fn pow2(self, a: Self::V) -> Self::V {
        each(|i| f32::from_bits(((a[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn sum(self, a: Self::V) -> f32 {
        let half = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
        (half[0] + half[2]) + (half[1] + half[3])
    }

    #[inline(always)]
    fn largest(self, a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn splat_pair(self, x: u32) -> Self::P {
        [x; LANES]
    }

    #[inline(always)]
    fn dot_pairs(self, acc: Self::V, a: Self::P, b: Self::P) -> Self::V {
        let low = |x: u32| f32::from_bits(x << 16);
        let high = |x: u32| f32::from_bits(x & 0xffff_0000);
        each(|i| acc[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }

    #[inline(always)]
    fn pack_pairs(self, to: &mut [u32], x: &[f32]) {
        pack_pairs_plain(to, x);
    }

    #[inline(always)]
    fn look_up(self, values: &[f32; 16], codes: &[u8]) -> (Self::V, Self::V) {
        let codes = &codes[..LANES];
        (each(|i| values[usize::from(codes[i] & 15)]), each(|i| values[usize::from(codes[i] >> 4)]))
    }

    #[inline(always)]
    fn integers(self, codes: &[u8]) -> Self::V {
        let codes = &codes[..LANES];
        each(|i| f32::from(codes[i].cast_signed()))
    }
}
