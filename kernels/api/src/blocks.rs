//! Quantized weights that stay packed: what their codes and scales stand for.
//!
//! One description covers every block format there is: NF4, FP4, 8-bit rows and the block types of
//! GGUF. A weight in column c of a row lies in group `g = c / group_len` and is
//!
//! `w = values[code] * scale[g] + min[g]`,
//!
//! every product and sum rounded to f32 on its own; without a `min`, nothing is added. A scale (or
//! min) is a number itself, or `values[byte] * outer[i / outer_len] + offset`, where i counts the
//! groups of the whole matrix, row by row.

use std::ops::Range;

/// How a weight's codes are stored and what they stand for.
#[derive(Clone, Debug, PartialEq)]
pub enum Codes {
    /// Four bits: one of these values.
    Four {
        /// By code.
        values: [f32; 16],
    },
    /// A signed byte: the number itself.
    Eight,
}

/// How the scales or mins of groups are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Factors {
    /// An f32 a group.
    Plain,
    /// A byte a group: `values[byte] * outer[i / outer_len] + offset`.
    Nested {
        /// By byte.
        values: Box<[f32; 256]>,
        /// Groups that share an outer factor.
        outer_len: usize,
        /// Added, if there is one.
        offset: Option<f32>,
    },
}

/// What weights are rounded to before a product rounds them to its own format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// They stay as the formula gives them.
    Exact,
    /// To half precision, to nearest even (a compute dtype of `float16`).
    F16,
    /// To bfloat16, to nearest even (blocks that stand for a weight of that format).
    Bf16,
}

/// A block format, for one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockFormat {
    /// Codes of weights.
    pub codes: Codes,
    /// Neighbors in a row that share a scale; divides K.
    pub group_len: usize,
    /// Scales of groups.
    pub scale: Factors,
    /// What is added, if anything is.
    pub min: Option<Factors>,
    /// A last rounding of the weights.
    pub rounding: Rounding,
}

/// Scales or mins of some rows; shapes [n, G], with G groups a row.
#[derive(Clone, Debug, PartialEq)]
pub enum FactorRows {
    /// For [`Factors::Plain`].
    Plain(Vec<f32>),
    /// For [`Factors::Nested`].
    Nested(Vec<u8>),
}

/// Some rows of a packed matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRows {
    /// One code a byte, below 16 or a signed byte. Shape [n, K].
    pub codes: Vec<u8>,
    /// Scales.
    pub scale: FactorRows,
    /// Mins, where the format has them.
    pub min: Option<FactorRows>,
}

/// Which of the two factors of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// The scale.
    Scale,
    /// The min.
    Min,
}

/// A matrix in blocks. Rows are in the order of [`RowSource`](crate::RowSource).
pub trait BlockSource: Sync {
    /// What codes and factors stand for.
    fn format(&self) -> &BlockFormat;

    /// Codes and factors of some rows.
    ///
    /// # Panics
    /// If there are no such rows: a bug in the caller.
    fn read_blocks(&self, rows: Range<usize>) -> BlockRows;

    /// The outer factors of a [`Factors::Nested`], for the whole matrix; empty for a plain one.
    fn outer(&self, factor: Factor) -> Vec<f32>;
}

impl Factors {
    /// The factor of group `i` (of the whole matrix), stored as `byte`.
    ///
    /// # Panics
    /// If this is [`Factors::Plain`], or `outer` has no such element.
    #[inline]
    #[must_use]
    pub fn nested(&self, byte: u8, outer: &[f32], i: usize) -> f32 {
        let Self::Nested { values, outer_len, offset } = self else {
            panic!("plain factors are not nested");
        };
        let product = values[usize::from(byte)] * outer[i / outer_len];
        offset.map_or(product, |offset| product + offset)
    }
}

impl BlockFormat {
    /// Groups of a row of K values.
    ///
    /// # Panics
    /// If K is not whole groups.
    #[must_use]
    pub fn n_groups(&self, n_cols: usize) -> usize {
        assert!(n_cols.is_multiple_of(self.group_len), "a row is not whole groups");
        n_cols / self.group_len
    }

    /// What a code stands for, before its factors.
    ///
    /// # Panics
    /// If a four-bit code is not below 16.
    #[inline]
    #[must_use]
    pub fn value(&self, code: u8) -> f32 {
        match &self.codes {
            Codes::Four { values } => values[usize::from(code)],
            Codes::Eight => f32::from(code.cast_signed()),
        }
    }
}
