//! How the weights of linear layers are kept in memory: densely, in the blocks of their file, or
//! quantized when they are read.

use forgelm_kernels_api::{Compute, Rounding, RowSource};
use forgelm_tensor::{FourBit, FourBitMatrix, ScaleStorage};

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
    /// The experts of a mixture as [`LinearStorage::Int8Rows`], everything else densely.
    Int8Experts,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Format in which products with frozen weights are formed.
    pub compute: Compute,
    /// How linear layers are kept.
    pub linear: LinearStorage,
}

impl LoadOptions {
    /// Everything dense.
    #[must_use]
    pub const fn dense(compute: Compute) -> Self {
        Self { compute, linear: LinearStorage::Dense }
    }
}

impl FourBitStorage {
    pub(crate) fn quantize(self, rows: &dyn RowSource, n_threads: usize) -> FourBitMatrix {
        FourBitMatrix::quantize(rows, self.kind, self.scales, self.rounding, n_threads)
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
            Rounding::Bf16 => ", rounded to bfloat16",
        };
        format!("{}{scales}{rounding}", self.kind.name())
    }
}
