//! Number formats of stored tensors, what their bytes mean, the engine's random numbers, and
//! singular values.
//!
//! It refuses to know what a file, a model or a thread is. Start reading at [`Dtype`],
//! [`dequantize`], [`rows`], [`random::Stream`] and [`linalg::svd_thin`].
//!
//! **Invariant:** dequantized values are exactly those of the reference implementation of each
//! format (core/artifact: `tests/golden.rs`); random numbers are a function of (seed, purpose, step, index) that
//! never changes (`random::tests`).

mod dequantize;
mod dtype;
mod dynamic;
mod four_bit;
mod int8;
mod k_quants;
pub mod linalg;
mod matrix;
mod quantize;
pub mod random;
pub mod rows;
mod split;

pub use dequantize::{DequantizeError, dequantize};
pub use dtype::Dtype;
pub use dynamic::DynamicMap;
pub use four_bit::{
    BlockScales, FOUR_BIT_BLOCK, FourBit, FourBitTensor, FourBitWriter, NESTED_BLOCK, NestedScales,
};
pub use int8::Int8Rows;
pub use matrix::{FourBitMatrix, Int8Matrix, ScaleStorage};
pub use quantize::{QuantizeError, quantize, round_to_bf16, round_to_f16, store_f32};
pub use split::{block_format, no_rows, outer_factors, split_blocks};
