//! A stored tensor, borrowed from its file.

use forgelm_tensor::{DequantizeError, Dtype, dequantize};

/// A tensor as it lies in a file: nothing is copied.
///
/// **Invariant:** `bytes` has exactly the length that `dtype` and `shape` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Number format.
    pub dtype: Dtype,
    /// Axes, outermost first (GGUF's reversed order is turned round).
    pub shape: &'a [usize],
    /// Little-endian values, row-major.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// Number of values.
    #[must_use]
    pub fn n_values(&self) -> usize {
        self.shape.iter().product()
    }

    /// All values as f32.
    ///
    /// # Errors
    /// If the tensor holds integers.
    pub fn to_f32(&self) -> Result<Vec<f32>, DequantizeError> {
        let mut out = vec![0.0; self.n_values()];
        dequantize(self.dtype, self.bytes, &mut out)?;
        Ok(out)
    }

    /// The bytes of rows `first_row..first_row + n_rows`, where a row is the last axis.
    ///
    /// # Panics
    /// If the rows reach past the end: a bug in the caller.
    #[must_use]
    pub fn row_bytes(&self, first_row: usize, n_rows: usize) -> &[u8] {
        let n_cols = self.shape.last().copied().unwrap_or(1);
        let row = self.dtype.row_bytes(n_cols).expect("checked when the file was opened");
        &self.bytes[first_row * row..(first_row + n_rows) * row]
    }
}

/// What keeps a name from being a tensor's; `None` if nothing does. Names may become paths when a
/// model is exported, and are shown in messages.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    const NAME_BYTES_MAX: usize = 1024;
    if name.is_empty() {
        Some("a name may not be empty")
    } else if name.len() > NAME_BYTES_MAX {
        Some("a name may not be longer than 1024 bytes")
    } else if name.chars().any(char::is_control) {
        Some("a name may not have control characters")
    } else if name.split(['/', '\\']).any(|part| part == "..") || name.starts_with('/') {
        Some("a name may not lead out of its folder")
    } else {
        None
    }
}
