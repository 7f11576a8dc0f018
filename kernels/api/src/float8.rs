//! Floats of eight bits and the scales of their blocks: how models are published in FP8.
//!
//! Paper: Micikevicius et al. 2022, arXiv:2209.05433; the block scales: DeepSeek-AI 2024,
//! arXiv:2412.19437, sec. 3.3.2.

/// Which of the two formats of eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float8 {
    /// Four bits of exponent (bias 7) and three of fraction. No infinity: 0x7f and 0xff are NaN, and
    /// the largest number is 448.
    E4m3,
    /// Five bits of exponent (bias 15) and two of fraction: the upper half of an IEEE half, with its
    /// infinities and NaN. The largest number is 57,344.
    E5m2,
}

impl Float8 {
    /// What a code stands for: exact in f32.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "fractions are below 8")]
    pub const fn value(self, code: u8) -> f32 {
        let (exponent_bits, bias) = match self {
            Self::E4m3 => (4, 7),
            Self::E5m2 => (5, 15),
        };
        let fraction_bits = 7 - exponent_bits;
        let exponent = (code as u32 & 0x7f) >> fraction_bits;
        let fraction = code as u32 & ((1 << fraction_bits) - 1);
        let sign = (code as u32 >> 7) << 31;
        let special = match self {
            Self::E4m3 if code & 0x7f == 0x7f => Some(f32::NAN),
            Self::E5m2 if exponent == 31 && fraction == 0 => Some(f32::INFINITY),
            Self::E5m2 if exponent == 31 => Some(f32::NAN),
            Self::E4m3 | Self::E5m2 => None,
        };
        let magnitude = match special {
            Some(special) => special,
            // 2^(1 - bias - fraction_bits) is the distance of numbers without a leading one.
            None if exponent == 0 => {
                fraction as f32 * f32::from_bits((128 - bias - fraction_bits) << 23)
            }
            None => {
                f32::from_bits((exponent + 127 - bias) << 23 | fraction << (23 - fraction_bits))
            }
        };
        f32::from_bits(magnitude.to_bits() | sign)
    }

    /// What each code stands for.
    #[must_use]
    pub const fn values(self) -> &'static [f32; 256] {
        #[expect(clippy::cast_possible_truncation, reason = "codes are below 256")]
        const fn table(format: Float8) -> [f32; 256] {
            let mut values = [0.0; 256];
            let mut code = 0;
            while code < 256 {
                values[code] = format.value(code as u8);
                code += 1;
            }
            values
        }
        const E4M3: [f32; 256] = table(Float8::E4m3);
        const E5M2: [f32; 256] = table(Float8::E5m2);
        match self {
            Self::E4m3 => &E4M3,
            Self::E5m2 => &E5M2,
        }
    }

    /// The largest finite number.
    #[must_use]
    pub const fn max(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E5m2 => 57_344.0,
        }
    }

    /// Whether a code stands for a finite number.
    #[must_use]
    pub const fn is_finite(self, code: u8) -> bool {
        match self {
            Self::E4m3 => code & 0x7f != 0x7f,
            Self::E5m2 => code & 0x7c != 0x7c,
        }
    }
}

/// How the codes of a matrix [N, K] share scales: one for each block of rows and columns, blocks at
/// the ends may be smaller. One scale for all of it is a block as large as the matrix, one for each
/// row a block of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float8Layout {
    /// Format of the codes.
    pub format: Float8,
    /// K.
    pub n_cols: usize,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
}

impl Float8Layout {
    /// N, of so many codes.
    ///
    /// # Panics
    /// If they are not whole rows, or a block has no elements.
    #[must_use]
    pub fn n_rows(&self, n_codes: usize) -> usize {
        assert!(self.block_rows > 0 && self.block_cols > 0, "a block without elements");
        assert!(self.n_cols > 0 && n_codes.is_multiple_of(self.n_cols), "codes is not [N, K]");
        n_codes / self.n_cols
    }

    /// Scales of a row of blocks.
    #[must_use]
    pub const fn scales_per_row(&self) -> usize {
        self.n_cols.div_ceil(self.block_cols)
    }

    /// Scales of so many rows.
    #[must_use]
    pub const fn n_scales(&self, n_rows: usize) -> usize {
        n_rows.div_ceil(self.block_rows) * self.scales_per_row()
    }
}

/// A matrix in floats of eight bits, in the memory of the host.
#[derive(Clone, Copy, Debug)]
pub struct Float8Rows<'a> {
    /// Format and blocks.
    pub layout: Float8Layout,
    /// [N, K].
    pub codes: &'a [u8],
    /// By row of blocks [ceil(N / `block_rows`), ceil(K / `block_cols`)].
    pub scales: &'a [f32],
}

impl Float8Rows<'_> {
    /// Rows `first_row..`, as many as fit: `out[r, c] = value(codes[r, c]) * scale`, rounded to f32
    /// once.
    ///
    /// Shapes: `out` [n, K] written.
    ///
    /// # Panics
    /// If `out` is not whole rows or reaches past the last row, or scales are missing.
    pub fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        let Self { layout, codes, scales } = *self;
        let Float8Layout { format, n_cols, block_rows, block_cols } = layout;
        assert_eq!(scales.len(), layout.n_scales(layout.n_rows(codes.len())), "scales");
        let values = format.values();
        let codes = &codes[first_row * n_cols..][..out.len()];
        for (i, (row, codes)) in
            out.chunks_exact_mut(n_cols).zip(codes.chunks_exact(n_cols)).enumerate()
        {
            let first_scale = (first_row + i) / block_rows * layout.scales_per_row();
            let blocks = row.chunks_mut(block_cols).zip(codes.chunks(block_cols));
            for ((out, codes), &scale) in blocks.zip(&scales[first_scale..]) {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = values[usize::from(code)] * scale;
                }
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values")]
mod tests {
    use super::{Float8, Float8Layout, Float8Rows};

    /// E4M3: 0x38 is 2^0, 0x01 is 2^-6 / 8, 0x7e is 2^8 * 1.75. E5M2: 0x3c is 2^0, 0x01 is
    /// 2^-14 / 4, 0x7b is 2^15 * 1.75.
    #[test]
    fn codes_stand_for_the_numbers_of_the_paper() {
        for (format, one, smallest, largest) in [
            (Float8::E4m3, 0x38, 2.0_f32.powi(-9), 0x7e),
            (Float8::E5m2, 0x3c, 2.0_f32.powi(-16), 0x7b),
        ] {
            assert_eq!(format.value(one), 1.0);
            assert_eq!(format.value(one | 0x80), -1.0);
            assert_eq!(format.value(1), smallest);
            assert_eq!(format.value(largest), format.max());
            assert_eq!(format.value(0x80).to_bits(), (-0.0_f32).to_bits());
        }
        assert!(Float8::E4m3.value(0x7f).is_nan() && Float8::E4m3.value(0xff).is_nan());
        assert_eq!(Float8::E5m2.value(0xfc), f32::NEG_INFINITY);
        assert!(Float8::E5m2.value(0x7d).is_nan());
    }

    #[test]
    fn what_is_finite_is_what_its_value_says() {
        for (format, n_finite) in [(Float8::E4m3, 254), (Float8::E5m2, 248)] {
            let is_finite = |code: &u8| format.is_finite(*code);
            assert!((0..=255).all(|code| format.value(code).is_finite() == is_finite(&code)));
            assert_eq!((0..=255).filter(is_finite).count(), n_finite);
        }
    }

    /// 3 rows of 5 columns in blocks of 2 by 2: the last ones are smaller. Codes of 1.
    #[test]
    fn the_last_blocks_may_be_smaller() {
        let layout = Float8Layout { format: Float8::E4m3, n_cols: 5, block_rows: 2, block_cols: 2 };
        let scales = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = Float8Rows { layout, codes: &[0x38; 15], scales: &scales };
        let mut out = [0.0; 10];
        rows.read_rows(1, &mut out);
        assert_eq!(out, [1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 5.0, 5.0, 6.0]);
    }
}
