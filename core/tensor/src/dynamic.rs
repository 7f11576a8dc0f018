//! Eight-bit numbers of the dynamic map, in blocks that share their largest size.
//!
//! Paper: Dettmers 2015, arXiv:1511.04561, section 2.1 (dynamic tree type); blocks: Dettmers et al.
//! 2021, arXiv:2110.02861. For the exponents i = 0..7 the interval [0.1, 1] is cut into 2^i parts
//! (2^(i + 1) in the unsigned map); the middles of the parts, times 10^(i - 6), are in the map, with
//! both signs in the signed one, and 0 and 1.
//!
//! Codes are those of bitsandbytes on a CPU (0.50): a value is first rounded to one of 65,536
//! numbers that lie evenly in [-1, 1], and these have their nearest code (a tie goes to the lower
//! one). Next to zero that is coarser than the map: 0 itself becomes 2.1e-5 of the block's largest.

use std::sync::LazyLock;

use forgelm_kernels_api::dynamic_map;

/// Which of the two maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicMap {
    /// Values of both signs.
    Signed,
    /// Values that are never negative.
    Unsigned,
}

/// Places of the finer scale that values are rounded to first.
const PLACES: usize = 65_536;
/// Places in an interval of length 1.
const PER_UNIT: f32 = 32_767.5;

struct Map {
    values: [f32; 256],
    /// Code of each place.
    codes: Vec<u8>,
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(dynamic_map::SIGNED));

static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(dynamic_map::UNSIGNED));

impl Map {
    #[expect(clippy::cast_precision_loss, reason = "places are below 2^24")]
    fn new(values: [f32; 256]) -> Self {
        let codes = (0..PLACES).map(|i| nearest(&values, i as f32 / PER_UNIT - 1.0)).collect();
        Self { values, codes }
    }
}

/// The nearest of ascending values; a tie goes to the lower one.
#[expect(clippy::cast_possible_truncation, reason = "an index below 256")]
fn nearest(values: &[f32; 256], x: f32) -> u8 {
    let right = values.partition_point(|&v| v < x).clamp(1, 255);
    let left = right - 1;
    let closer = (values[right] - x).abs() < (x - values[left]).abs();
    (if closer { right } else { left }) as u8
}

impl DynamicMap {
    /// What each code stands for, ascending.
    #[must_use]
    pub fn values(self) -> &'static [f32; 256] {
        &self.map().values
    }

    fn map(self) -> &'static Map {
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }

    /// The code of a number in [-1, 1]; what lies outside is clamped.
    #[must_use]
    pub fn code(self, x: f32) -> u8 {
        Self::code_in(&self.map().codes, x)
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped: 0 to 65,535; NaN becomes 0"
    )]
    fn code_in(codes: &[u8], x: f32) -> u8 {
        codes[((x.clamp(-1.0, 1.0) + 1.0) * PER_UNIT + 0.5) as usize]
    }

    /// Quantizes blocks of `block_len` values; the last one may be shorter.
    ///
    /// Shapes: `values` [n] read, `codes` [n] written, `absmax` [ceil(n / `block_len`)] written:
    /// the largest size in each block.
    ///
    /// # Panics
    /// If the lengths disagree, or a block has no values.
    pub fn quantize(self, values: &[f32], block_len: usize, codes: &mut [u8], absmax: &mut [f32]) {
        assert!(block_len > 0, "a block without values");
        assert_eq!(codes.len(), values.len(), "codes is not [n]");
        assert_eq!(absmax.len(), values.len().div_ceil(block_len), "absmax is not [blocks]");
        let map = &self.map().codes;
        let blocks = values.chunks(block_len).zip(codes.chunks_mut(block_len));
        for ((values, codes), absmax) in blocks.zip(absmax) {
            let largest = values.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
            let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
            for (code, &v) in codes.iter_mut().zip(values) {
                *code = Self::code_in(map, v * inverse);
            }
            *absmax = largest;
        }
    }

    /// `out[i] = values[codes[i]] * absmax[i / block_len]`.
    ///
    /// Shapes: `codes` [n], `absmax` [ceil(n / `block_len`)] read, `out` [n] written.
    ///
    /// # Panics
    /// If the lengths disagree, or a block has no values.
    pub fn dequantize(self, codes: &[u8], absmax: &[f32], block_len: usize, out: &mut [f32]) {
        assert!(block_len > 0, "a block without values");
        assert_eq!(out.len(), codes.len(), "out is not [n]");
        assert_eq!(absmax.len(), codes.len().div_ceil(block_len), "absmax is not [blocks]");
        let values = self.values();
        for ((codes, out), &scale) in
            codes.chunks(block_len).zip(out.chunks_mut(block_len)).zip(absmax)
        {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = values[usize::from(code)] * scale;
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values")]
mod tests {
    use super::DynamicMap;

    /// The formula of the module's doc, in f64.
    fn formula(parts: impl Fn(i32) -> u32, both_signs: bool) -> Vec<f64> {
        let mut values = vec![0.0, 1.0];
        for i in 0..7 {
            let n = parts(i);
            for j in 0..n {
                let middle = 0.1 + 0.9 * (f64::from(j) + 0.5) / f64::from(n);
                let v = middle * 10_f64.powi(i - 6);
                values.push(v);
                if both_signs {
                    values.push(-v);
                }
            }
        }
        values.sort_by(f64::total_cmp);
        values
    }

    #[test]
    fn the_maps_are_those_of_the_formula() {
        let signed = formula(|i| 1 << i, true);
        let unsigned = formula(|i| 2 << i, false);
        for (map, expected) in [(DynamicMap::Signed, signed), (DynamicMap::Unsigned, unsigned)] {
            assert_eq!(expected.len(), 256);
            for (&v, e) in map.values().iter().zip(expected) {
                assert!((f64::from(v) - e).abs() <= e.abs() * 3e-7, "{v} is not {e}");
            }
        }
    }

    #[test]
    fn every_value_of_a_map_that_the_first_rounding_can_tell_keeps_its_code() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let mut n = 0;
            for (i, &v) in map.values().iter().enumerate().filter(|(_, v)| v.abs() > 0.001) {
                assert_eq!(usize::from(map.code(v)), i, "{map:?} {v}");
                n += 1;
            }
            assert!(n > 200, "{n}");
        }
        assert_eq!(DynamicMap::Signed.code(2.0), 255);
        assert_eq!(DynamicMap::Signed.code(-2.0), 0);
        assert_eq!(DynamicMap::Unsigned.code(-2.0), 0);
    }

    #[test]
    fn a_block_of_zeros_and_a_short_last_block() {
        let values = [0.0, 0.0, 0.5, -2.0, 3.0];
        let (mut codes, mut absmax, mut back) = ([0; 5], [0.0; 3], [0.0; 5]);
        DynamicMap::Signed.quantize(&values, 2, &mut codes, &mut absmax);
        assert_eq!(absmax, [0.0, 2.0, 3.0]);
        DynamicMap::Signed.dequantize(&codes, &absmax, 2, &mut back);
        assert_eq!(back[..2], [0.0, 0.0]);
        // The lowest value of the signed map is -0.99296874.
        assert_eq!(back[3], -0.992_968_74 * 2.0);
        assert_eq!(back[4], 3.0);
    }
}
