//! Number formats of stored tensors, what their bytes mean, the engine's random numbers, and
//! singular values.
//!
//! It refuses to know what a file, a model or a thread is. Start reading at [`Dtype`],
//! [`dequantize`], [`random::Stream`] and [`linalg::svd_thin`].
//!
//! **Invariant:** dequantized values are exactly those of the reference implementation of each
//! format (core/artifact: `tests/golden.rs`); random numbers are a function of (seed, purpose, step, index) that
//! never changes (`random::tests`).

mod dequantize;
mod dtype;
pub mod linalg;
mod quantize;
pub mod random;

pub use dequantize::{DequantizeError, dequantize};
pub use dtype::Dtype;
pub use quantize::{QuantizeError, quantize};
