//! AdamW with moments in 8 bits.
//!
//! Paper: Dettmers et al. 2021, arXiv:2110.02861, section 2.
//!
//! Numerics: as `adamw`, element by element in f32. A code is found by a table over the upper half
//! of a number's bits, which no two boundaries between codes share, and one comparison with the
//! boundary (the middle of two numbers of the map, rounded to f32).

use forgelm_kernels_api::dynamic_map::{SIGNED, UNSIGNED};
use forgelm_kernels_api::{AdamW, Blocks8bit};

use crate::adamw::{Factors, part};
use crate::pool::Pool;
use crate::simd::on_isa;
use crate::simd::{Isa, Simd};

const BLOCK: usize = Blocks8bit::BLOCK;
/// Blocks of a task.
const BLOCKS: usize = 64;
const CHUNK: usize = BLOCKS * BLOCK;

/// Shapes: `param` [P], `m`, `v` of P elements changed, `grad` [P] read.
pub(crate) fn step(
    pool: &Pool,
    isa: Isa,
    param: &mut [f32],
    m: Blocks8bit<'_>,
    v: Blocks8bit<'_>,
    grad: &[f32],
    constants: &AdamW,
) {
    assert_eq!(grad.len(), param.len(), "grad and param differ in length");
    m.check("m", param.len());
    v.check("v", param.len());
    let factors = Factors::new(constants);
    let mut tasks: Vec<Task<'_>> = Vec::with_capacity(param.len().div_ceil(CHUNK));
    let parts = param.chunks_mut(CHUNK).zip(grad.chunks(CHUNK));
    let ((m, m_max), (v, v_max)) = (m.on_host(), v.on_host());
    let m = m.chunks_mut(CHUNK).zip(m_max.chunks_mut(BLOCKS));
    let v = v.chunks_mut(CHUNK).zip(v_max.chunks_mut(BLOCKS));
    for (((param, grad), m), v) in parts.zip(m).zip(v) {
        tasks.push(Task { param, grad, m, v });
    }
    pool.chunks(&mut tasks, 1, |_, task| {
        on_isa!(isa, s => task[0].run(s, &factors));
    });
}

struct Task<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: (&'a mut [u8], &'a mut [f32]),
    v: (&'a mut [u8], &'a mut [f32]),
}

impl Task<'_> {
    #[inline(always)]
    fn run<S: Simd>(&mut self, s: S, factors: &Factors) {
        let parts = self.param.chunks_mut(BLOCK).zip(self.grad.chunks(BLOCK));
        let m = self.m.0.chunks_mut(BLOCK).zip(&mut *self.m.1);
        let v = self.v.0.chunks_mut(BLOCK).zip(&mut *self.v.1);
        for (((param, grad), (m, m_max)), (v, v_max)) in parts.zip(m).zip(v) {
            let n = param.len();
            let mut m_whole = [0.0; BLOCK];
            let mut v_whole = [0.0; BLOCK];
            read(&SIGNED, m, *m_max, &mut m_whole);
            read(&UNSIGNED, v, *v_max, &mut v_whole);
            part(s, param, &mut m_whole[..n], &mut v_whole[..n], grad, factors);
            *m_max = write(s, &m_whole, m, |x| SIGNED_CODES.signed(x));
            *v_max = write(s, &v_whole, v, |x| UNSIGNED_CODES.size(x) as u8);
        }
    }
}

#[inline(always)]
fn read(map: &[f32; 256], codes: &[u8], absmax: f32, to: &mut [f32; BLOCK]) {
    for (to, &code) in to.iter_mut().zip(codes) {
        *to = map[usize::from(code)] * absmax;
    }
}

/// Returns the largest size.
#[inline(always)]
fn write<S: Simd>(s: S, values: &[f32; BLOCK], codes: &mut [u8], code: impl Fn(f32) -> u8) -> f32 {
    let zero = s.splat(0.0);
    let mut largest = zero;
    for i in (0..BLOCK).step_by(S::LANES) {
        let x = s.load(&values[i..i + S::LANES]);
        largest = s.max(largest, s.max(x, s.sub(zero, x)));
    }
    let largest = s.largest(largest);
    let divisor = if largest > 0.0 { largest } else { 1.0 };
    let mut parts = [0.0; BLOCK];
    for i in (0..BLOCK).step_by(S::LANES) {
        let x = s.load(&values[i..i + S::LANES]);
        s.store(&mut parts[i..i + S::LANES], s.div(x, s.splat(divisor)));
    }
    for (to, &x) in codes.iter_mut().zip(&parts) {
        *to = code(x);
    }
    largest
}

/// Upper half of the bits of 2^-24: what is below is nearest to zero in both maps.
const FIRST: usize = 0x3380;
/// Upper half of the bits of 1.
const LAST: usize = 0x3f80;

/// Finds the nearest of ascending numbers from 0 to 1.
struct Codes {
    /// Of numbers with these upper halves: places of the boundaries below them.
    below: [u8; LAST - FIRST + 1],
    /// Boundary i is between numbers i and i + 1.
    boundaries: [f32; 256],
}

static SIGNED_CODES: Codes = Codes::new(&SIGNED, 127);
static UNSIGNED_CODES: Codes = Codes::new(&UNSIGNED, 0);

impl Codes {
    /// Of the numbers of a map from place `zero` on.
    const fn new(map: &[f32; 256], zero: usize) -> Self {
        let mut boundaries = [f32::INFINITY; 256];
        let mut i = 0;
        while zero + i < 255 {
            boundaries[i] = f32::midpoint(map[zero + i], map[zero + i + 1]);
            i += 1;
        }
        let mut below = [0; LAST - FIRST + 1];
        let (mut key, mut place) = (FIRST, 0);
        while key <= LAST {
            while boundaries[place as usize] < f32::from_bits((key as u32) << 16) {
                place += 1;
            }
            below[key - FIRST] = place;
            key += 1;
        }
        Self { below, boundaries }
    }

    /// Place from zero on of the number nearest to `x`, which is in [0, 1].
    #[inline(always)]
    fn size(&self, x: f32) -> usize {
        let key = (x.to_bits() >> 16) as usize;
        let below = usize::from(self.below[key.clamp(FIRST, LAST) - FIRST]);
        below + usize::from(x > self.boundaries[below])
    }

    /// Place in the signed map of the number nearest to `x`, which is in [-1, 1]: the map has no
    /// -1, and of two equally near the lower is taken.
    #[inline(always)]
    fn signed(&self, x: f32) -> u8 {
        let size = self.size(x.abs());
        if x < 0.0 { 127 - size.min(127) as u8 } else { 127 + size as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_kernels_api::dynamic_map::nearest;

    /// Every upper half of a number, with lower halves at both ends and between.
    #[test]
    fn codes_are_the_nearest_numbers() {
        let mut n_checked = 0;
        for high in 0..=LAST as u32 {
            for low in [0, 1, 0x5555, 0x8000, 0xaaaa, 0xffff] {
                let x = f32::from_bits((high << 16) | low);
                if x > 1.0 {
                    continue;
                }
                let found = UNSIGNED_CODES.size(x);
                let expected = usize::from(nearest(&UNSIGNED, f64::from(x)));
                assert!(found == expected || is_boundary(&UNSIGNED_CODES, x), "{x:e}");
                for x in [x, -x] {
                    let (found, expected) = (SIGNED_CODES.signed(x), nearest(&SIGNED, x.into()));
                    assert!(found == expected || is_boundary(&SIGNED_CODES, x.abs()), "{x:e}");
                }
                n_checked += 1;
            }
        }
        assert_eq!(n_checked, LAST * 6 + 1);
    }

    fn is_boundary(codes: &Codes, x: f32) -> bool {
        codes.boundaries.iter().any(|b| (b - x).abs() <= f32::EPSILON * x)
    }
}
