//! Four bits a weight: NF4 and FP4 in blocks of 64, their scales once more quantized if wished.
//!
//! Paper: Dettmers et al. 2023, arXiv:2305.14314 (QLoRA), section 3. Codes, scales and values are
//! equal to the last bit to those of bitsandbytes 0.50 on a CPU (core/artifact:
//! `tests/quantized.rs`).

use crate::DynamicMap;

/// Values that share a scale.
pub const FOUR_BIT_BLOCK: usize = 64;
/// Scales that share a scale of their own, when they are quantized.
pub const NESTED_BLOCK: usize = 256;

/// What the sixteen codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourBit {
    /// Quantiles of the normal distribution, ascending.
    Nf4,
    /// Sign, two bits of exponent, one of fraction.
    Fp4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Codes of FP4 by ascending value. Two of them are 0, in the order in which bitsandbytes sorts
/// them: numbers just above 0 get code 8.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];
const NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const fn midpoints(values: &[f32; 16], order: &[u8; 16]) -> [f32; 15] {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0;
        i += 1;
    }
    middles
}

const NF4_MIDDLES: [f32; 15] = midpoints(&NF4, &NF4_ORDER);
const FP4_MIDDLES: [f32; 15] = midpoints(&FP4, &FP4_ORDER);

impl FourBit {
    /// What each code stands for, as a share of the block's largest size.
    #[must_use]
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// As configurations write it: `nf4`, `fp4`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The code of the nearest value; exactly midway, of the lower one.
    #[inline]
    #[must_use]
    pub fn code(self, x: f32) -> u8 {
        self.codes([x])[0]
    }

    /// Counts the middles below each number: without a branch, so that the compiler makes vectors
    /// of several numbers.
    #[inline]
    fn codes<const N: usize>(self, x: [f32; N]) -> [u8; N] {
        let (middles, order) = match self {
            Self::Nf4 => (&NF4_MIDDLES, &NF4_ORDER),
            Self::Fp4 => (&FP4_MIDDLES, &FP4_ORDER),
        };
        let mut places = [0_u32; N];
        for &m in middles {
            for (place, &x) in places.iter_mut().zip(&x) {
                *place += u32::from(x > m);
            }
        }
        places.map(|place| order[(place & 15) as usize])
    }
}

/// Scales of blocks of [`FOUR_BIT_BLOCK`] values.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockScales {
    /// One f32 a block: its largest size.
    Single(Vec<f32>),
    /// `values[codes[b]] * absmax[b / 256] + offset`, with the values of [`DynamicMap::Signed`].
    Double(NestedScales),
}

/// Scales that are quantized themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedScales {
    /// One a block of values.
    pub codes: Vec<u8>,
    /// One for each [`NESTED_BLOCK`] blocks.
    pub absmax: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

impl NestedScales {
    /// Quantizes scales.
    #[must_use]
    pub fn quantize(scales: &[f32]) -> Self {
        let offset = mean(scales);
        let shifted: Vec<f32> = scales.iter().map(|s| s - offset).collect();
        let mut codes = vec![0; scales.len()];
        let mut absmax = vec![0.0; scales.len().div_ceil(NESTED_BLOCK)];
        DynamicMap::Signed.quantize(&shifted, NESTED_BLOCK, &mut codes, &mut absmax);
        Self { codes, absmax, offset }
    }

    /// The scale of block `b`.
    #[inline]
    #[must_use]
    pub fn get(&self, b: usize) -> f32 {
        let value = DynamicMap::Signed.values()[usize::from(self.codes[b])];
        value * self.absmax[b / NESTED_BLOCK] + self.offset
    }
}

/// The mean in the order of PyTorch's sum on one thread, whose last bit the offset is made of:
/// eight lanes, four rows of lanes at a time, in a cascade of four levels.
#[expect(clippy::cast_precision_loss, reason = "the divisor is rounded as PyTorch does")]
fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    type Sums = [f32; LANES * ROWS];
    fn add(to: &mut Sums, from: &[f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
    let (groups, rest) = values.as_chunks::<{ LANES * ROWS }>();
    let power = 4.max(groups.len().next_power_of_two().trailing_zeros() / 4);
    let mask = (1_usize << power) - 1;
    let mut levels = [[0.0; LANES * ROWS]; 4];
    for (i, group) in groups.iter().enumerate() {
        add(&mut levels[0], group);
        let done = i + 1;
        if done & mask == 0 {
            for level in 1..4 {
                let below = std::mem::replace(&mut levels[level - 1], [0.0; LANES * ROWS]);
                add(&mut levels[level], &below);
                if done >> (level * power as usize) & mask != 0 {
                    break;
                }
            }
        }
    }
    let [mut sums, upper @ ..] = levels;
    upper.iter().for_each(|level| add(&mut sums, level));
    let (rows, last) = rest.as_chunks::<LANES>();
    rows.iter().for_each(|row| add(&mut sums, row));
    let (lanes, more) = sums.split_at_mut(LANES);
    for row in more.as_chunks::<LANES>().0 {
        lanes.iter_mut().zip(row).for_each(|(to, from)| *to += from);
    }
    let total = last.iter().chain(lanes.iter()).fold(0.0, |sum, v| sum + v);
    total / values.len().max(1) as f32
}

/// A tensor in four bits a value, flattened row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct FourBitTensor {
    /// What codes stand for.
    pub kind: FourBit,
    /// Values.
    pub n_values: usize,
    /// Two codes a byte, the earlier one in the upper half.
    pub packed: Vec<u8>,
    /// One scale for each [`FOUR_BIT_BLOCK`] values; the last block may be shorter.
    pub scales: BlockScales,
}

impl FourBitTensor {
    /// Quantizes values; `double` quantizes the scales, too.
    #[must_use]
    pub fn quantize(kind: FourBit, values: &[f32], double: bool) -> Self {
        let mut writer = FourBitWriter::new(kind, values.len());
        writer.push(values);
        writer.finish(double)
    }

    /// The scale of block `b`.
    ///
    /// # Panics
    /// If there is no such block.
    #[inline]
    #[must_use]
    pub fn scale(&self, b: usize) -> f32 {
        match &self.scales {
            BlockScales::Single(scales) => scales[b],
            BlockScales::Double(nested) => nested.get(b),
        }
    }

    /// Code of value `i`.
    ///
    /// # Panics
    /// If there is no such value.
    #[inline]
    #[must_use]
    pub fn code(&self, i: usize) -> u8 {
        code(&self.packed, i)
    }

    /// Values `first..` as many as fit `out`: `value[code] * scale`.
    ///
    /// # Panics
    /// If that reaches past the last value.
    pub fn dequantize(&self, first: usize, out: &mut [f32]) {
        assert!(first + out.len() <= self.n_values, "values past the last one");
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let block = at / FOUR_BIT_BLOCK;
            let len = ((block + 1) * FOUR_BIT_BLOCK - at).min(rest.len());
            let (run, later) = rest.split_at_mut(len);
            dequantize_run(self.kind, &self.packed, at, self.scale(block), run);
            at += len;
            rest = later;
        }
    }
}

/// Quantizes a tensor piece by piece, so that no dense copy of it need exist.
#[derive(Debug)]
pub struct FourBitWriter {
    kind: FourBit,
    n_values: usize,
    packed: Vec<u8>,
    scales: Vec<f32>,
    /// Values of a block that is not whole yet.
    waiting: Vec<f32>,
}

impl FourBitWriter {
    /// A writer with room for `n_values`.
    #[must_use]
    pub fn new(kind: FourBit, n_values: usize) -> Self {
        Self {
            kind,
            n_values: 0,
            packed: Vec::with_capacity(n_values.div_ceil(2)),
            scales: Vec::with_capacity(n_values.div_ceil(FOUR_BIT_BLOCK)),
            waiting: Vec::with_capacity(FOUR_BIT_BLOCK),
        }
    }

    /// Appends values.
    pub fn push(&mut self, values: &[f32]) {
        self.n_values += values.len();
        let mut values = values;
        if !self.waiting.is_empty() {
            let missing = (FOUR_BIT_BLOCK - self.waiting.len()).min(values.len());
            self.waiting.extend_from_slice(&values[..missing]);
            values = &values[missing..];
            if self.waiting.len() < FOUR_BIT_BLOCK {
                return;
            }
            let block = std::mem::take(&mut self.waiting);
            self.block(&block);
        }
        let blocks = values.chunks_exact(FOUR_BIT_BLOCK);
        self.waiting.extend_from_slice(blocks.remainder());
        for block in blocks {
            self.block(block);
        }
    }

    /// Appends what another writer has.
    ///
    /// # Panics
    /// If this one is within a block.
    pub fn append(&mut self, other: Self) {
        assert!(self.waiting.is_empty(), "blocks do not go over the border of two writers");
        self.n_values += other.n_values;
        self.packed.extend(other.packed);
        self.scales.extend(other.scales);
        self.waiting = other.waiting;
    }

    /// The tensor; `double` quantizes its scales, too.
    #[must_use]
    pub fn finish(mut self, double: bool) -> FourBitTensor {
        if !self.waiting.is_empty() {
            let block = std::mem::take(&mut self.waiting);
            self.block(&block);
        }
        let scales = if double {
            BlockScales::Double(NestedScales::quantize(&self.scales))
        } else {
            BlockScales::Single(self.scales)
        };
        FourBitTensor { kind: self.kind, n_values: self.n_values, packed: self.packed, scales }
    }

    fn block(&mut self, block: &[f32]) {
        let mut codes = [0; FOUR_BIT_BLOCK / 2];
        let codes = &mut codes[..block.len().div_ceil(2)];
        self.scales.push(quantize_block(self.kind, block, codes));
        self.packed.extend_from_slice(codes);
    }
}

/// Writes the codes of a block of at most [`FOUR_BIT_BLOCK`] values, two a byte; returns its scale.
/// bitsandbytes multiplies by the inverse in whole blocks and divides in a short last one.
pub(crate) fn quantize_block(kind: FourBit, block: &[f32], packed: &mut [u8]) -> f32 {
    let mut absmax = block.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let whole = block.len() == FOUR_BIT_BLOCK;
    if !whole {
        absmax = absmax.max(1e-38);
    }
    let inverse = 1.0 / absmax.max(1e-38);
    let mut scaled = [0.0; FOUR_BIT_BLOCK];
    for (x, &v) in scaled.iter_mut().zip(block) {
        *x = (if whole { v * inverse } else { v / absmax }).clamp(-1.0, 1.0);
    }
    let mut codes = [0; FOUR_BIT_BLOCK];
    for (codes, &x) in codes.as_chunks_mut::<8>().0.iter_mut().zip(scaled.as_chunks::<8>().0) {
        *codes = kind.codes(x);
    }
    for (byte, [a, b]) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = a << 4 | b;
    }
    absmax
}

/// Writes `value[code] * scale` of the codes `first..`, as many as fit `out`.
pub(crate) fn dequantize_run(
    kind: FourBit,
    packed: &[u8],
    first: usize,
    scale: f32,
    out: &mut [f32],
) {
    let values = kind.values();
    for (i, out) in (first..).zip(out) {
        *out = values[usize::from(code(packed, i))] * scale;
    }
}

/// Code `i` of two a byte.
#[inline]
fn code(packed: &[u8], i: usize) -> u8 {
    let byte = packed[i / 2];
    if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values")]
mod tests {
    use super::{BlockScales, FourBit, FourBitTensor, FourBitWriter};

    /// Worked by hand: a block whose largest size is 1.
    #[test]
    fn a_short_block_by_hand() {
        let values = [0.5, -0.25, 0.1, -1.0, 0.0, 0.75, 0.03, -0.6];
        let tensor = FourBitTensor::quantize(FourBit::Nf4, &values, false);
        assert_eq!(tensor.packed, [0xc4, 0x80, 0x7e, 0x72]);
        assert_eq!(tensor.scales, BlockScales::Single(vec![1.0]));
        let mut back = [9.0; 8];
        tensor.dequantize(0, &mut back);
        let expected =
            [0.440_709_83, -0.284_441_38, 0.079_580_3, -1.0, 0.0, 0.722_956_84, 0.0, -0.525_073_05];
        assert_eq!(back, expected);
    }

    #[test]
    fn every_value_keeps_its_code_and_midway_goes_down() {
        for kind in [FourBit::Nf4, FourBit::Fp4] {
            for (code, &v) in kind.values().iter().enumerate() {
                // Code 8 of FP4 is a second 0.
                let expected = if v == 0.0 && kind == FourBit::Fp4 { 0 } else { code };
                assert_eq!(usize::from(kind.code(v)), expected, "{kind:?} {v}");
            }
        }
        assert_eq!(FourBit::Nf4.code((0.722_956_84 + 1.0) / 2.0), 14);
        assert_eq!(FourBit::Fp4.code(1e-3), 8);
        assert_eq!(FourBit::Fp4.code(-1e-3), 0);
    }

    #[test]
    fn pieces_of_any_length_give_the_same_tensor() {
        let values: Vec<f32> = (0_u16..1000).map(|i| (f32::from(i) * 0.7).sin()).collect();
        let whole = FourBitTensor::quantize(FourBit::Fp4, &values, true);
        for len in [1, 7, 64, 65, 999] {
            let mut writer = FourBitWriter::new(FourBit::Fp4, values.len());
            values.chunks(len).for_each(|piece| writer.push(piece));
            assert_eq!(writer.finish(true), whole, "pieces of {len}");
        }
        let mut all = vec![0.0; 1000];
        whole.dequantize(0, &mut all);
        let mut some = vec![0.0; 300];
        whole.dequantize(61, &mut some);
        assert_eq!(some, all[61..361]);
    }
}
