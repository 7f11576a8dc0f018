//! One vector of each instruction set behind one trait, and the choice between them at run time.
//!
//! A value of a type that implements [`Simd`] exists only where the processor has the
//! instructions: it is the proof that makes calling them safe. Kernels are generic functions that
//! are always inlined into [`Simd::vectorize`], the one place that is compiled for the instruction
//! set; [`on_isa`] chooses.

#[cfg(isa = "avx2")]
mod avx2;
#[cfg(any(isa = "avx512bf16", isa = "avx512"))]
mod avx512;
#[cfg(isa = "neon")]
mod neon;
mod plain;

/// Vectors of f32 and of pairs of bfloat16. Slices passed to a method must be long enough:
/// it panics otherwise.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` numbers.
    type V: Copy;
    /// `LANES` pairs of bfloat16; the lower half of the bits comes first.
    type P: Copy;

    const LANES: usize;
    /// Rows of a register tile: with 3 vectors a row, the accumulators fill the registers.
    const ROWS: usize;

    /// Runs `f`, compiled for this instruction set.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32]) -> Self::V;
    /// Fewer than `LANES` numbers (or as many); the rest is 0.
    fn load_part(self, x: &[f32]) -> Self::V;
    fn store(self, to: &mut [f32], v: Self::V);
    /// The first `to.len()` lanes, at most `LANES`.
    fn store_part(self, to: &mut [f32], v: Self::V);

    /// # Safety
    /// `LANES` numbers can be read at `x`.
    unsafe fn load_at(self, x: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` pairs can be read at `x`.
    unsafe fn load_pairs_at(self, x: *const u32) -> Self::P;
    /// Asks for a cache line that will be needed soon. Any address is allowed.
    fn prefetch<T>(self, address: *const T);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// To the nearest whole number.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^a` for whole numbers in -126..=127.
    fn pow2(self, a: Self::V) -> Self::V;
    /// `if a < b { x } else { y }`, lane by lane.
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Sum of the lanes, in an order of its own that never changes.
    fn sum(self, a: Self::V) -> f32;
    fn largest(self, a: Self::V) -> f32;

    fn splat_pair(self, x: u32) -> Self::P;
    /// `acc + a.low * b.low + a.high * b.high`. Where the processor has an instruction for it,
    /// that flushes denormal factors and sums to zero.
    fn dot_pairs(self, acc: Self::V, a: Self::P, b: Self::P) -> Self::V;
    /// Rounds to bfloat16 (nearest even) and joins neighbors; an odd last one gets a zero.
    /// Shapes: `x` [K] read, `to` [ceil(K / 2)] written.
    fn pack_pairs(self, to: &mut [u32], x: &[f32]);
    /// As [`Simd::pack_pairs`], from the bits of f32 into the front of the same memory.
    fn pack_pairs_in_place(self, x: &mut [u32]) {
        pack_pairs_in_place_plain(x);
    }
    /// Rounds two rows to bfloat16 and joins numbers of the same index; without a second row the
    /// upper halves are zero. Shapes: all [N].
    fn join_pairs(self, to: &mut [u32], low: &[f32], high: Option<&[f32]>) {
        join_pairs_plain(to, low, high);
    }
    /// Rounds two vectors to bfloat16 as [`Simd::pack_pairs`] does, and joins them lane by lane.
    /// Shapes: `to` at least [LANES] written.
    #[inline(always)]
    fn store_pairs(self, to: &mut [u32], low: Self::V, high: Self::V) {
        let (mut a, mut b) = ([0.0; LANES_MAX], [0.0; LANES_MAX]);
        self.store(&mut a, low);
        self.store(&mut b, high);
        let to = &mut to[..Self::LANES];
        for (to, (&a, &b)) in to.iter_mut().zip(a.iter().zip(&b)) {
            *to = bf16_bits(a) | (bf16_bits(b) << 16);
        }
    }
    /// Rounds to half precision, to nearest even.
    #[inline(always)]
    fn round_to_f16(self, v: Self::V) -> Self::V {
        self.lane_by_lane(v, |x| half::f16::from_f32(x).to_f32())
    }
    /// To bfloat16 and back, to nearest even.
    #[inline(always)]
    fn round_to_bf16(self, v: Self::V) -> Self::V {
        self.lane_by_lane(v, |x| f32::from_bits(bf16_bits(x) << 16))
    }
    /// What there is no instruction for.
    #[inline(always)]
    fn lane_by_lane(self, v: Self::V, f: impl Fn(f32) -> f32) -> Self::V {
        let mut x = [0.0; LANES_MAX];
        self.store(&mut x, v);
        for x in &mut x[..Self::LANES] {
            *x = f(*x);
        }
        self.load(&x)
    }
    /// What the lower and the upper four bits of each byte stand for. Shapes: `codes` at least
    /// [LANES] read.
    fn look_up(self, values: &[f32; 16], codes: &[u8]) -> (Self::V, Self::V);
    /// Signed bytes as numbers. Shapes: `codes` at least [LANES] read.
    fn integers(self, codes: &[u8]) -> Self::V;
    /// Swaps rows and columns. Shapes: `to[c * to_stride + r] = from[r * from_stride + c]` for
    /// `r < rows`, `c < columns`.
    fn transpose(self, to: Grid<&mut [u32]>, from: Grid<&[u32]>, rows: usize, columns: usize) {
        transpose_plain(to, from, rows, columns);
    }
    /// As [`Simd::transpose`] with elements of two neighboring u32, a square of 2 x 2 bfloat16
    /// each, which is itself transposed. Strides and counts are in such elements.
    fn transpose_squares(
        self,
        to: Grid<&mut [u32]>,
        from: Grid<&[u32]>,
        rows: usize,
        columns: usize,
    ) {
        transpose_squares_plain(to, from, rows, columns);
    }
}

/// Lanes of the widest vector.
const LANES_MAX: usize = 16;

/// A slice read as rows.
pub(crate) struct Grid<T> {
    pub data: T,
    pub stride: usize,
}

#[inline(always)]
fn transpose_plain(to: Grid<&mut [u32]>, from: Grid<&[u32]>, rows: usize, columns: usize) {
    for r in 0..rows {
        for c in 0..columns {
            to.data[c * to.stride + r] = from.data[r * from.stride + c];
        }
    }
}

#[inline(always)]
fn transpose_squares_plain(to: Grid<&mut [u32]>, from: Grid<&[u32]>, rows: usize, columns: usize) {
    for r in 0..rows {
        for c in 0..columns {
            let at = 2 * (r * from.stride + c);
            let (a, b) = (from.data[at], from.data[at + 1]);
            let at = 2 * (c * to.stride + r);
            to.data[at] = (a & 0xffff) | (b << 16);
            to.data[at + 1] = (a >> 16) | (b & 0xffff_0000);
        }
    }
}

/// Bits of the nearest bfloat16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

#[inline(always)]
fn pack_pairs_plain(to: &mut [u32], x: &[f32]) {
    let (pairs, last) = x.as_chunks::<2>();
    assert_eq!(to.len(), x.len().div_ceil(2), "to is not [ceil(K / 2)]");
    for (to, pair) in to.iter_mut().zip(pairs) {
        *to = bf16_bits(pair[0]) | (bf16_bits(pair[1]) << 16);
    }
    if let (Some(to), [last]) = (to.last_mut(), last) {
        *to = bf16_bits(*last);
    }
}

#[inline(always)]
fn pack_pairs_in_place_plain(x: &mut [u32]) {
    for i in 0..x.len().div_ceil(2) {
        let high = x.get(2 * i + 1).map_or(0, |&bits| bf16_bits(f32::from_bits(bits)));
        x[i] = bf16_bits(f32::from_bits(x[2 * i])) | (high << 16);
    }
}

#[inline(always)]
fn join_pairs_plain(to: &mut [u32], low: &[f32], high: Option<&[f32]>) {
    assert_eq!(to.len(), low.len(), "rows of different lengths");
    match high {
        None => {
            for (to, &low) in to.iter_mut().zip(low) {
                *to = bf16_bits(low);
            }
        }
        Some(high) => {
            assert_eq!(to.len(), high.len(), "rows of different lengths");
            for ((to, &low), &high) in to.iter_mut().zip(low).zip(high) {
                *to = bf16_bits(low) | (bf16_bits(high) << 16);
            }
        }
    }
}

/// Instruction sets that kernels are written for, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
    /// AVX-512 F, BW and VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// NEON of 64-bit ARM. Compiled for, not measured.
    Neon,
    /// Whatever the compiler makes of plain code.
    Plain,
}

impl InstructionSet {
    /// All of them, the best first.
    pub const ALL: [Self; 5] =
        [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Neon, Self::Plain];

    /// Those that this processor has, the best first. Never empty.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|&set| Isa::new(set).is_some()).collect()
    }

    /// As it stands in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Plain => "plain",
        }
    }
}

/// The instruction set in use, with the proof that the processor has it.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    #[cfg(isa = "avx512bf16")]
    Avx512Bf16(avx512::Avx512Bf16),
    #[cfg(isa = "avx512")]
    Avx512(avx512::Avx512),
    #[cfg(isa = "avx2")]
    Avx2(avx2::Avx2),
    #[cfg(isa = "neon")]
    Neon(neon::Neon),
    Plain(plain::Plain),
}

impl Isa {
    pub(crate) fn new(set: InstructionSet) -> Option<Self> {
        match set {
            #[cfg(isa = "avx512bf16")]
            InstructionSet::Avx512Bf16 => avx512::Avx512Bf16::new().map(Self::Avx512Bf16),
            #[cfg(isa = "avx512")]
            InstructionSet::Avx512 => avx512::Avx512::new().map(Self::Avx512),
            #[cfg(isa = "avx2")]
            InstructionSet::Avx2 => avx2::Avx2::new().map(Self::Avx2),
            #[cfg(isa = "neon")]
            InstructionSet::Neon => neon::Neon::new().map(Self::Neon),
            InstructionSet::Plain => Some(Self::Plain(plain::Plain)),
            // not compiled for
            _ => None,
        }
    }

    /// Whether rounding to bfloat16 takes denormal numbers for zero.
    pub(crate) fn flushes_denormals(self) -> bool {
        match self {
            #[cfg(isa = "avx512bf16")]
            Self::Avx512Bf16(_) => true,
            #[cfg(isa = "avx512")]
            Self::Avx512(_) => false,
            #[cfg(isa = "avx2")]
            Self::Avx2(_) => false,
            #[cfg(isa = "neon")]
            Self::Neon(_) => false,
            Self::Plain(_) => false,
        }
    }
}

/// `on_isa!(isa, s => kernel(s, ...))`: calls a kernel, compiled for the instruction set in use.
macro_rules! on_isa {
    ($isa:expr, $s:ident => $call:expr) => {
        match $isa {
            #[cfg(isa = "avx512bf16")]
            $crate::simd::Isa::Avx512Bf16($s) => $crate::simd::Simd::vectorize(
                $s,
                #[inline(always)]
                || $call,
            ),
            #[cfg(isa = "avx512")]
            $crate::simd::Isa::Avx512($s) => $crate::simd::Simd::vectorize(
                $s,
                #[inline(always)]
                || $call,
            ),
            #[cfg(isa = "avx2")]
            $crate::simd::Isa::Avx2($s) => $crate::simd::Simd::vectorize(
                $s,
                #[inline(always)]
                || $call,
            ),
            #[cfg(isa = "neon")]
            $crate::simd::Isa::Neon($s) => $crate::simd::Simd::vectorize(
                $s,
                #[inline(always)]
                || $call,
            ),
            $crate::simd::Isa::Plain($s) => $crate::simd::Simd::vectorize(
                $s,
                #[inline(always)]
                || $call,
            ),
        }
    };
}
pub(crate) use on_isa;
