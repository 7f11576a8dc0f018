//! A model as a GGUF file holds it: the tensors under their names there, in the order of rows that
//! the `llama.cpp` project's converter gives them.

use forgelm_artifact::gguf::Value;
use forgelm_kernels_api::RowSource;

use crate::architecture::AVAILABLE;
use crate::config::ConfigError;
use crate::names::{Linear, Role};
use crate::open::OpenModel;
use crate::weights::WeightsError;
use crate::whole::WholeTensor;

/// The content of a GGUF file, but for the tokenizer and the number formats.
pub struct GgufModel<'a> {
    /// What describes the model.
    pub metadata: Vec<(String, Value)>,
    /// Its tensors.
    pub tensors: Vec<GgufTensor<'a>>,
}

/// A tensor of a GGUF file. Its rows are those of the last axis.
pub struct GgufTensor<'a> {
    /// Its name there.
    pub name: String,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    rows: Rows<'a>,
}

enum Rows<'a> {
    /// Numbers that are no tensor of a folder.
    Values(Vec<f32>),
    /// Tensors of a folder, one behind another: all experts of a layer.
    Parts(Vec<WholeTensor<'a>>, Order),
}

/// How rows differ from those of a folder.
#[derive(Clone, Copy)]
enum Order {
    Same,
    /// The two halves of each head of this width are interleaved.
    Interleaved(usize),
    /// One is added to each number: norms that multiply by `1 + w`.
    PlusOne,
}

impl OpenModel {
    /// This model as a GGUF file holds it.
    ///
    /// # Errors
    /// If an option of the model has no place in such a file, or a tensor is missing or of the
    /// wrong shape or format.
    pub fn to_gguf(&self) -> Result<GgufModel<'_>, crate::LoadError> {
        let metadata = self.config().to_gguf_metadata()?;
        let tensors = self.gguf_tensors()?;
        Ok(GgufModel { metadata, tensors })
    }

    fn gguf_tensors(&self) -> Result<Vec<GgufTensor<'_>>, WeightsError> {
        let config = self.config();
        let is_llama =
            AVAILABLE.iter().any(|a| a.gguf == "llama" && a.model_type == config.model_type);
        let mut tensors: Vec<GgufTensor<'_>> = Vec::new();
        for (name, values) in config.gguf_divisors() {
            let (name, shape) = (name.to_owned(), vec![values.len()]);
            tensors.push(GgufTensor { name, shape, rows: Rows::Values(values) });
        }
        for whole in self.whole_tensors(None)? {
            let role = whole.role();
            let order = match role {
                _ if config.is_norm_offset(role) => Order::PlusOne,
                Role::Linear(_, Linear::Q | Linear::K) | Role::Bias(_, Linear::Q | Linear::K)
                    if is_llama =>
                {
                    Order::Interleaved(config.head_dim)
                }
                _ => Order::Same,
            };
            let name = role.gguf_name(config.norms.post_norms);
            let mut shape = whole.shape().to_vec();
            if let Role::Linear(_, Linear::Expert(..)) = role {
                let parts = tensors.iter_mut().rev().find(|t| t.name == name);
                if let Some(GgufTensor { rows: Rows::Parts(parts, _), .. }) = parts {
                    parts.push(whole);
                    continue;
                }
                shape.insert(0, config.dims().e);
            }
            // The tool drops axes of length 1.
            if let Role::Linear(_, Linear::SharedExpertGate) = role {
                shape.remove(0);
            }
            tensors.push(GgufTensor { name, shape, rows: Rows::Parts(vec![whole], order) });
        }
        Ok(tensors)
    }

    /// Refuses a GGUF file, read as `found`, that describes another model than this one.
    ///
    /// # Errors
    /// Naming the first option that differs.
    pub fn check_gguf(&self, found: &Self) -> Result<(), ConfigError> {
        self.config().check_gguf(found.config())
    }
}

impl RowSource for GgufTensor<'_> {
    fn n_rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    fn n_cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        let n_cols = self.n_cols();
        let (parts, order) = match &self.rows {
            Rows::Values(values) => {
                out.copy_from_slice(&values[first_row * n_cols..][..out.len()]);
                return;
            }
            Rows::Parts(parts, order) => (parts, *order),
        };
        if let ([only], [n]) = (&parts[..], &self.shape[..]) {
            read_vector(only, *n, order, out);
            return;
        }
        let of_part = self.n_rows() / parts.len();
        for (i, out) in out.chunks_exact_mut(n_cols).enumerate() {
            let (part, row) = ((first_row + i) / of_part, (first_row + i) % of_part);
            parts[part].read_rows(order.row(row), out);
        }
    }
}

/// A vector may be a row of the folder's file, or a column.
fn read_vector(whole: &WholeTensor<'_>, n: usize, order: Order, out: &mut [f32]) {
    let mut values = vec![0.0; n];
    whole.read_rows(0, &mut values);
    let plus = if let Order::PlusOne = order { 1.0 } else { 0.0 };
    for (i, out) in out.iter_mut().enumerate() {
        *out = values[order.row(i)] + plus;
    }
}

impl Order {
    /// The folder's row that is row `row` of the file: rows j and j + D / 2 of a head lie side by
    /// side there.
    fn row(self, row: usize) -> usize {
        let Self::Interleaved(d) = self else { return row };
        let (head, within) = (row / d, row % d);
        head * d + within % 2 * (d / 2) + within / 2
    }
}

impl GgufTensor<'_> {
    /// Bytes that the model's files keep it in.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        match &self.rows {
            Rows::Values(values) => values.len() * size_of::<f32>(),
            Rows::Parts(parts, _) => parts.iter().map(WholeTensor::stored_bytes).sum(),
        }
    }

    /// Lets go of the memory of the file's bytes; they can be read again.
    pub fn release(&self) {
        if let Rows::Parts(parts, _) = &self.rows {
            parts.iter().for_each(WholeTensor::release);
        }
    }
}
