//! The closed list of number formats that a stored tensor may have.

use std::fmt;

/// How the numbers of a stored tensor are encoded.
///
/// The block formats are those of the GGUF file format: `block_len` neighbors of one row share
/// their scales and are stored in `block_bytes` bytes. For all other formats a block is one
/// element. All formats are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// IEEE 754 double.
    F64,
    /// IEEE 754 single.
    F32,
    /// IEEE 754 half.
    F16,
    /// The upper half of an IEEE 754 single.
    Bf16,
    /// Eight-bit float: four bits of exponent, three of fraction, no infinity (OCP E4M3, `E4M3FN`).
    F8E4m3,
    /// Eight-bit float: five bits of exponent, two of fraction (OCP E5M2).
    F8E5m2,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed byte.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// 32 values: f16 d, 4-bit q; `d (q - 8)`.
    Q4_0,
    /// 32 values: f16 d, f16 m, 4-bit q; `d q + m`.
    Q4_1,
    /// 32 values: f16 d, fifth bits, 4-bit q; `d (q - 16)`.
    Q5_0,
    /// 32 values: f16 d, f16 m, fifth bits, 4-bit q; `d q + m`.
    Q5_1,
    /// 32 values: f16 d, i8 q; `d q`.
    Q8_0,
    /// 256 values in 16 groups, 2-bit q; `d sc q - dmin m`.
    Q2K,
    /// 256 values in 16 groups, 3-bit q; `d sc q`.
    Q3K,
    /// 256 values in 8 groups, 4-bit q; `d sc q - dmin m`.
    Q4K,
    /// 256 values in 8 groups, 5-bit q; `d sc q - dmin m`.
    Q5K,
    /// 256 values in 16 groups, 6-bit q; `d sc q`.
    Q6K,
}

impl Dtype {
    /// Every format, in the order of declaration.
    pub const ALL: [Self; 25] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4m3,
        Self::F8E5m2,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Values in a block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4m3 | Self::F8E5m2 => 1,
            Self::I64 | Self::I32 | Self::I16 | Self::I8 => 1,
            Self::U64 | Self::U32 | Self::U16 | Self::U8 | Self::Bool => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F8E4m3 | Self::F8E5m2 | Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `n_cols` values; `None` when it is not a whole number of blocks or the
    /// number does not fit.
    #[must_use]
    pub const fn row_bytes(self, n_cols: usize) -> Option<usize> {
        if !n_cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor of this shape (rows are the last axis); `None` as for
    /// [`Dtype::row_bytes`]. A shape of no axes is one value.
    #[must_use]
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let (rows, n_cols) = match shape.split_last() {
            Some((&n_cols, outer)) => (outer, n_cols),
            None => (&[][..], 1),
        };
        let n_rows = rows.iter().try_fold(1_usize, |product, &n| product.checked_mul(n))?;
        n_rows.checked_mul(self.row_bytes(n_cols)?)
    }

    /// Whether values have an exact or rounded f32 meaning, that is, [`crate::dequantize`]
    /// accepts the format.
    #[must_use]
    pub const fn is_float(self) -> bool {
        !matches!(
            self,
            Self::I64
                | Self::I32
                | Self::I16
                | Self::I8
                | Self::U64
                | Self::U32
                | Self::U16
                | Self::U8
                | Self::Bool
        )
    }

    /// The name as the file formats write it: `F32`, `BF16`, `Q4_1`, `Q6_K`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E5m2 => "F8_E5M2",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The format with this [`name`](Dtype::name).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Dtype;

    #[test]
    fn names_are_unique_and_found_again() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F31"), None);
    }

    /// 576 columns are 18 blocks of 32: 18 * 20 bytes in `Q4_1`, but 2.25 blocks of 256.
    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(Dtype::Q4_1.row_bytes(576).unwrap(), 360);
        assert_eq!(Dtype::Q6K.row_bytes(576), None);
        assert_eq!(Dtype::F32.tensor_bytes(&[3, 5]).unwrap(), 60);
        assert_eq!(Dtype::F32.tensor_bytes(&[]).unwrap(), 4);
        assert_eq!(Dtype::U8.tensor_bytes(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F32.tensor_bytes(&[0, 7]).unwrap(), 0);
    }
}
