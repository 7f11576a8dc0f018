//! How the weights of linear layers are kept in memory: densely, in the blocks of their file, or
//! quantized when they are read.

use std::collections::BTreeMap;

use forgelm_kernels_api::{Compute, Rounding, RowSource};
use forgelm_tensor::{FourBit, FourBitMatrix, ScaleStorage};

use crate::names::Linear;

/// How the linear layers of the decoder's layers are kept. Embedding, head and norms are always
/// dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinearStorage {
    /// In the compute format.
    #[default]
    Dense,
    /// In the blocks of the file, where it has blocks; densely elsewhere.
    Blocks,
    /// Four bits a weight, as [`LinearStorage::Blocks`] where the file has blocks already.
    FourBit(FourBitStorage),
    /// Eight bits and one scale a row, as [`LinearStorage::Blocks`] where the file has blocks
    /// already.
    Int8Rows,
}

/// Paper: Dettmers et al. 2023, arXiv:2305.14314.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourBitStorage {
    /// What codes stand for.
    pub kind: FourBit,
    /// Whether the scales are quantized, too.
    pub scales: ScaleStorage,
    /// [`Rounding::F16`] stands for a compute dtype of `float16`: weights are rounded to half
    /// precision, products are formed in float32.
    pub rounding: Rounding,
}

/// How a model is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Format in which products with frozen weights are formed.
    pub compute: Compute,
    /// How linear layers are kept.
    pub linear: LinearStorage,
    /// Experts that are kept in a way of their own, by number.
    pub experts: BTreeMap<u16, LinearStorage>,
}

impl LoadOptions {
    /// Experts as every other linear layer.
    #[must_use]
    pub const fn new(compute: Compute, linear: LinearStorage) -> Self {
        Self { compute, linear, experts: BTreeMap::new() }
    }

    /// Everything dense.
    #[must_use]
    pub const fn dense(compute: Compute) -> Self {
        Self::new(compute, LinearStorage::Dense)
    }

    /// How a linear layer is kept.
    pub(crate) fn storage(&self, linear: Linear) -> LinearStorage {
        match linear {
            // A router decides by small differences, and is small.
            _ if linear.is_router() => LinearStorage::Dense,
            Linear::Expert(expert, _) => self.experts.get(&expert).copied().unwrap_or(self.linear),
            _ => self.linear,
        }
    }
}

impl FourBitStorage {
    pub(crate) fn quantize(self, rows: &dyn RowSource) -> FourBitMatrix {
        FourBitMatrix::quantize(rows, self.kind, self.scales, self.rounding)
    }

    /// For evidence: `nf4, double quantized`.
    pub(crate) fn label(self) -> String {
        let scales = match self.scales {
            ScaleStorage::Single => "",
            ScaleStorage::Double => ", double quantized",
        };
        let rounding = match self.rounding {
            Rounding::Exact => "",
            Rounding::F16 => ", rounded to float16",
        };
        format!("{}{scales}{rounding}", self.kind.name())
    }
}
