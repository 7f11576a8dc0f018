//! Several models into one, tensor by tensor: the engine under every merge method.
//!
//! It reads rows, cuts tensors into pieces, runs a [`MergeMethod`] over them on several threads and
//! writes the result as it comes, so that the memory of a merge does not grow with the models. It
//! refuses to know which models these are, where they came from and what a method does.
//!
//! **Invariants:**
//! - the bytes written depend on the tensors and the method alone: pieces are cut by sizes, sums are
//!   added in the order of the pieces (`the_same_bytes_for_any_number_of_threads`);
//! - a result that is not a number is an error and never a file.
//!
//! Start reading at [`write_merged`].
//!
//! [`MergeMethod`]: forgelm_sdk::merge_method::MergeMethod

mod engine;
mod on_device;
mod piece;
mod threads;
mod write;

use forgelm_artifact::write::WriteError;
use forgelm_kernels_api::RowSource;
use forgelm_tensor::Dtype;

pub use on_device::MergedOnDevice;
pub use write::{Settings, write_merged};

/// Rows of a tensor that lies in a file, usually.
pub trait Source: RowSource {
    /// Lets go of what reading left in memory: no more rows are needed. Reading again must work.
    fn release(&self) {}
}

/// One tensor of the models that are merged.
pub struct Tensor<'a> {
    /// Its name in the result.
    pub name: &'a str,
    /// Number format of the result: F32, F16 or BF16.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: &'a [usize],
    /// Its rows in the base model.
    pub base: &'a dyn Source,
    /// Its rows in each input; `None` where an input leaves the base as it is.
    pub inputs: Vec<Option<&'a dyn Source>>,
}

impl Tensor<'_> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.base.n_rows() * self.base.n_cols()
    }

    /// Whether it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no input changes it: the result is the base, whatever the method.
    fn is_unchanged(&self) -> bool {
        self.inputs.iter().all(Option::is_none)
    }
}

/// Why a merge was given up. What was written is not a model.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The method gave up.
    #[error("tensor `{tensor}`: the merge method gave up: {message}")]
    Method {
        /// The tensor.
        tensor: String,
        /// What the method said.
        message: String,
    },
    /// A result is not a number, or too large for the format that it is stored in.
    #[error(
        "tensor `{tensor}`: element {index} of the result is {value}, which {dtype} cannot hold"
    )]
    NotStorable {
        /// The tensor.
        tensor: String,
        /// Which element, row-major.
        index: usize,
        /// The value.
        value: f32,
        /// Number format of the result.
        dtype: Dtype,
    },
    /// Asked to stop.
    #[error("interrupted")]
    Stopped,
    /// The system refused.
    #[error(transparent)]
    Write(#[from] WriteError),
}
