//! From stored tensors to packed weights, strictly: every tensor has a role and every role a
//! tensor, shapes agree with the configuration, and every value is a number.

mod held;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forgelm_kernels_api::{Buffer, Compute, FrozenMatrix, Ops, RowSource};
use forgelm_tensor::{Dtype, Int8Matrix};
use thiserror::Error;

use crate::config::{Dims, ModelConfig};
use crate::names::{Linear, Norm, Role, gguf};
use crate::parts::{Holders, Parts};
use crate::storage::{LinearStorage, LoadOptions};
use crate::store::{Located, NotFinite, RotaryOrder, StoredRows, StoredTensor, TensorStore};

pub(crate) use held::{LayerRef, MatrixRef, Weights};
use held::{LayerWeights, place_of};

/// Why weights cannot be used.
#[derive(Debug, Error, PartialEq)]
pub enum WeightsError {
    /// A tensor that the model needs is not there.
    #[error("{place}: tensor `{name}` is missing")]
    Missing {
        /// File or folder.
        place: String,
        /// Name as the file would spell it.
        name: String,
    },
    /// Tensors that have no part in the model.
    #[error("{place}: {count} tensor(s) have no part in this model, first `{first}`")]
    Unexpected {
        /// File or folder.
        place: String,
        /// The first of them.
        first: String,
        /// How many.
        count: usize,
    },
    /// The shape is not what the configuration says.
    #[error("{place}: tensor `{name}` has shape {found:?}; the configuration says {expected:?}")]
    Shape {
        /// File or folder.
        place: String,
        /// Tensor.
        name: String,
        /// Shape of the tensor.
        found: Vec<usize>,
        /// Shape that follows from the configuration.
        expected: Vec<usize>,
    },
    /// The number format cannot hold weights, or its blocks do not fit the rows.
    #[error("{place}: tensor `{name}` of shape {shape:?} cannot be read as {dtype}")]
    Format {
        /// File or folder.
        place: String,
        /// Tensor.
        name: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Number format.
        dtype: String,
    },
    /// A weight is NaN or infinite.
    #[error("{place}: tensor `{name}` has the value {value} at row {row}, column {column}")]
    NotFinite {
        /// File or folder.
        place: String,
        /// Tensor.
        name: String,
        /// `NaN` or `inf`.
        value: String,
        /// Row in the model's order.
        row: usize,
        /// Column.
        column: usize,
    },
    /// A weight in four bits whose parts do not belong together.
    #[error("{place}: {what}")]
    FourBit {
        /// Folder.
        place: String,
        /// Which tensor, and what is wrong with it.
        what: String,
    },
    /// A weight in floats of eight bits whose parts do not belong together.
    #[error("{place}: {what}")]
    Float8 {
        /// Folder.
        place: String,
        /// Which tensor, and what is wrong with it.
        what: String,
    },
    /// The configuration ties head and embedding, but the file has a head that differs.
    #[error(
        "{place}: `tie_word_embeddings` is true, but tensor `{head}` differs from `{embedding}` \
         in row {row}"
    )]
    HeadNotTied {
        /// File or folder.
        place: String,
        /// Name of the head.
        head: String,
        /// Name of the embedding.
        embedding: String,
        /// First row that differs.
        row: usize,
    },
}

impl Weights {
    /// Reads and packs every tensor, and keeps of each matrix the part of this process where there
    /// are others that hold the rest.
    pub(crate) fn load(
        store: &dyn TensorStore,
        config: &ModelConfig,
        ops: &Arc<dyn Ops>,
        options: LoadOptions,
        holders: Option<Holders>,
    ) -> Result<Self, WeightsError> {
        let dims = config.dims();
        let formats = RefCell::default();
        let reader = Reader { store, config, dims, ops: ops.as_ref(), options, formats };
        let has_head = check_names(store, config)?;
        let mut parts = holders.map(|holders| Parts::new(holders, ops, config.num_hidden_layers));
        let layers = (0..config.num_hidden_layers)
            .map(|n| reader.layer(n, parts.as_mut()))
            .collect::<Result<_, _>>()?;
        let head = match (config.tie_word_embeddings, has_head) {
            (false, _) => reader.part(Role::Head, parts.as_mut())?,
            (true, true) => {
                check_head_is_embedding(store, config)?;
                None
            }
            (true, false) => None,
        };
        Ok(Self {
            embedding: reader.part(Role::Embedding, parts.as_mut())?,
            head,
            final_norm: reader.vector(Role::FinalNorm)?,
            layers,
            formats: reader.formats.into_inner(),
            parts,
        })
    }
}

/// The weight of a linear layer that has no blocks of its own, kept as the options say, and the
/// name of what it is kept in.
pub(crate) fn freeze_linear(
    ops: &dyn Ops,
    options: LoadOptions,
    linear: Linear,
    rows: &dyn RowSource,
) -> (Box<dyn FrozenMatrix>, String) {
    let compute = options.compute;
    let is_expert = matches!(linear, Linear::Expert(..));
    match options.linear {
        LinearStorage::Dense | LinearStorage::Blocks => {
            (ops.freeze(rows, compute), "dense".to_owned())
        }
        LinearStorage::Int8Experts if !is_expert => (ops.freeze(rows, compute), "dense".to_owned()),
        LinearStorage::FourBit(storage) => {
            keep(ops, compute, &storage.quantize(rows, ops.n_threads()), storage.label())
        }
        LinearStorage::Int8Rows | LinearStorage::Int8Experts => {
            keep(ops, compute, &Int8Matrix::quantize(rows, ops.n_threads()), "int8 rows".to_owned())
        }
    }
}

/// In blocks, if the kernel library can keep them.
fn keep(
    ops: &dyn Ops,
    compute: Compute,
    rows: &dyn RowSource,
    format: String,
) -> (Box<dyn FrozenMatrix>, String) {
    match ops.freeze_packed(rows, compute) {
        Some(packed) => (packed, format),
        None => (ops.freeze(rows, compute), format + ", unpacked"),
    }
}

/// The values of one tensor in f32, as a Hugging Face folder holds them.
///
/// # Errors
/// If the tensor is missing, of the wrong shape or format, or holds a value that is not a number.
pub(crate) fn read_values(
    store: &dyn TensorStore,
    config: &ModelConfig,
    role: Role,
) -> Result<Vec<f32>, WeightsError> {
    let rows = stored_rows(store, config, role)?.1;
    values(store, config, role, &rows)
}

fn values(
    store: &dyn TensorStore,
    config: &ModelConfig,
    role: Role,
    rows: &StoredRows<'_>,
) -> Result<Vec<f32>, WeightsError> {
    let mut values = vec![0.0; rows.n_rows() * rows.n_cols()];
    rows.read_rows(0, &mut values);
    check_finite(store, config, role, rows)?;
    Ok(values)
}

/// The rows of one tensor as a Hugging Face folder holds them, and the number format they are
/// stored in.
///
/// # Errors
/// If the tensor is missing, or of the wrong shape or format.
pub(crate) fn stored_rows<'a>(
    store: &'a dyn TensorStore,
    config: &ModelConfig,
    role: Role,
) -> Result<(Dtype, StoredRows<'a>), WeightsError> {
    let is_whole = store.has_whole_norms() && config.is_norm_offset(role);
    let offset = if is_whole { -1.0 } else { 0.0 };
    let rows = rows(store, config, role)?;
    Ok((rows.dtype(), rows.plus(offset)))
}

fn missing(store: &dyn TensorStore, name: String) -> WeightsError {
    WeightsError::Missing { place: store.place(), name }
}

/// What is added to the stored weights of a norm.
fn norm_offset(store: &dyn TensorStore, config: &ModelConfig, role: Role) -> f32 {
    if config.is_norm_offset(role) && !store.has_whole_norms() { 1.0 } else { 0.0 }
}

/// The tensor of a role, its shape checked, cut down to the rows of the role.
fn tensor<'a>(
    store: &'a dyn TensorStore,
    dims: &Dims,
    role: Role,
) -> Result<StoredTensor<'a>, WeightsError> {
    let Located { name, shape: expected, first_row } = store.locate(role, dims);
    let Some(mut tensor) = store.tensor(&name) else { return Err(missing(store, name)) };
    // A matrix of one row may be stored as a vector.
    let is_row = expected.len() == 2 && expected[0] == 1 && tensor.shape == expected[1..];
    if tensor.shape != expected && !is_row {
        let place = store.place();
        return Err(WeightsError::Shape { place, name, found: tensor.shape, expected });
    }
    let shape = role.shape(dims);
    if shape != expected {
        let n_cols = expected.last().copied().unwrap_or(0);
        let row_bytes = tensor.dtype.row_bytes(n_cols);
        let bytes = row_bytes.and_then(|row_bytes| {
            tensor.bytes.get(first_row * row_bytes..(first_row + shape[0]) * row_bytes)
        });
        let Some(bytes) = bytes else { return Err(format_error(store, dims, role, &tensor)) };
        tensor.bytes = bytes;
    }
    tensor.shape = shape;
    Ok(tensor)
}

fn format_error(
    store: &dyn TensorStore,
    dims: &Dims,
    role: Role,
    tensor: &StoredTensor<'_>,
) -> WeightsError {
    WeightsError::Format {
        place: store.place(),
        name: store.locate(role, dims).name,
        shape: tensor.shape.clone(),
        dtype: tensor.dtype.name().to_owned(),
    }
}

fn rows<'a>(
    store: &'a dyn TensorStore,
    config: &ModelConfig,
    role: Role,
) -> Result<StoredRows<'a>, WeightsError> {
    let dims = config.dims();
    let located = store.locate(role, &dims);
    if let Role::Linear(_, linear) = role
        && let Some(weight) = store.four_bit(&located.name, linear.shape(&dims))?
    {
        let codes = store.tensor(&located.name).ok_or_else(|| missing(store, located.name))?;
        return Ok(StoredRows::of_four_bit(weight, codes.bytes));
    }
    let scales = match role.shape(&dims).len() {
        2 => store.float8(&located.name, &located.shape)?,
        _ => None,
    };
    let tensor = tensor(store, &dims, role)?;
    let is_rotated = matches!(
        role,
        Role::Linear(_, Linear::Q | Linear::K) | Role::Bias(_, Linear::Q | Linear::K)
    );
    let interleaved = match store.rotary_order() {
        RotaryOrder::Interleaved if is_rotated => Some(dims.d),
        RotaryOrder::Interleaved | RotaryOrder::HalfSplit => None,
    };
    let (n_rows, n_cols) = match tensor.shape.as_slice() {
        [n_rows, n_cols] => (*n_rows, *n_cols),
        // A bias that is reordered is a column.
        [n_rows] if interleaved.is_some() => (*n_rows, 1),
        other => (1, other.iter().product()),
    };
    let rows = StoredRows::new(&tensor, n_rows, n_cols, interleaved)
        .ok_or_else(|| format_error(store, &dims, role, &tensor))?;
    Ok(match scales {
        Some(scales) => rows.scaled(scales),
        None => rows,
    })
}

/// Refuses rows in which a value that is no number was met.
///
/// # Errors
/// Naming the first.
pub(crate) fn check_finite(
    store: &dyn TensorStore,
    config: &ModelConfig,
    role: Role,
    rows: &StoredRows<'_>,
) -> Result<(), WeightsError> {
    match rows.first_bad() {
        None => Ok(()),
        Some(NotFinite { row, column, value }) => Err(WeightsError::NotFinite {
            place: store.place(),
            name: store.locate(role, &config.dims()).name,
            value: value.to_string(),
            row,
            column,
        }),
    }
}

/// Refuses a store that lacks a tensor of the model, has one that it does not know, or a second head
/// that is not the embedding.
///
/// # Errors
/// Naming the tensor.
pub(crate) fn check_tensors(
    store: &dyn TensorStore,
    config: &ModelConfig,
) -> Result<(), WeightsError> {
    let has_head = check_names(store, config)?;
    if has_head && config.tie_word_embeddings {
        check_head_is_embedding(store, config)?;
    }
    Ok(())
}

/// Compares the names with the roles; whether there is a head of its own.
fn check_names(store: &dyn TensorStore, config: &ModelConfig) -> Result<bool, WeightsError> {
    let mut names: BTreeSet<String> = store.names().into_iter().collect();
    let head = store.name_of(Role::Head);
    let has_head = names.remove(&head);
    if !has_head && !config.tie_word_embeddings {
        return Err(missing(store, head));
    }
    let mut used = BTreeSet::new();
    for role in Role::always(config) {
        let name = store.locate(role, &config.dims()).name;
        if !names.contains(&name) {
            return Err(missing(store, name));
        }
        used.insert(name);
    }
    // Old folders store the rotary frequencies, which follow from the configuration; GGUF stores
    // divisors, which the configuration has already taken up.
    names.retain(|name| {
        let is_divisors = [gguf::ROPE_DIVISORS, gguf::ROPE_LONG, gguf::ROPE_SHORT];
        !used.contains(name)
            && !name.ends_with(".self_attn.rotary_emb.inv_freq")
            && !is_divisors.contains(&name.as_str())
    });
    match names.first() {
        None => Ok(has_head),
        Some(first) => Err(WeightsError::Unexpected {
            place: store.place(),
            first: first.clone(),
            count: names.len(),
        }),
    }
}

/// A tied model may carry its head a second time; it must then be the same.
fn check_head_is_embedding(
    store: &dyn TensorStore,
    config: &ModelConfig,
) -> Result<(), WeightsError> {
    let dims = config.dims();
    let (head, embedding) =
        (rows(store, config, Role::Head)?, rows(store, config, Role::Embedding)?);
    let (mut head_row, mut embedding_row) = (vec![0.0; dims.c], vec![0.0; dims.c]);
    for row in 0..dims.v {
        head.read_rows(row, &mut head_row);
        embedding.read_rows(row, &mut embedding_row);
        let same = head_row.iter().zip(&embedding_row).all(|(a, b)| a.to_bits() == b.to_bits());
        if !same {
            return Err(WeightsError::HeadNotTied {
                place: store.place(),
                head: store.name_of(Role::Head),
                embedding: store.name_of(Role::Embedding),
                row,
            });
        }
    }
    Ok(())
}

struct Reader<'a> {
    store: &'a dyn TensorStore,
    config: &'a ModelConfig,
    dims: Dims,
    ops: &'a dyn Ops,
    options: LoadOptions,
    formats: RefCell<BTreeMap<String, usize>>,
}

impl<'a> Reader<'a> {
    /// As stored: see [`norm_offset`].
    fn rows(&self, role: Role) -> Result<StoredRows<'a>, WeightsError> {
        rows(self.store, self.config, role)
    }

    fn matrix(&self, role: Role) -> Result<Box<dyn FrozenMatrix>, WeightsError> {
        let rows = self.rows(role)?;
        let (rows, packed) = match role {
            // A router decides by small differences, and is small.
            Role::Linear(_, linear) if !linear.is_router() => {
                let rows = rows.with_blocks();
                let packed = self.linear(linear, &rows);
                (rows, packed)
            }
            _ => {
                let packed = self.ops.freeze(&rows, self.options.compute);
                (rows, packed)
            }
        };
        check_finite(self.store, self.config, role, &rows)?;
        // Packed once, the file's own bytes are not needed in memory any more.
        if let Some(tensor) = self.store.tensor(&self.store.locate(role, &self.dims).name) {
            self.store.release(&tensor);
        }
        Ok(packed)
    }

    /// A linear layer, kept as the options say.
    fn linear(&self, linear: Linear, rows: &StoredRows<'_>) -> Box<dyn FrozenMatrix> {
        let is_dense = match self.options.linear {
            LinearStorage::Dense => true,
            LinearStorage::Int8Experts => !matches!(linear, Linear::Expert(..)),
            LinearStorage::Blocks | LinearStorage::FourBit(_) | LinearStorage::Int8Rows => false,
        };
        let (packed, format) = match rows.blocks() {
            Some(_) if !is_dense => {
                keep(self.ops, self.options.compute, rows, rows.format_name().to_owned())
            }
            _ => freeze_linear(self.ops, self.options, linear, rows),
        };
        *self.formats.borrow_mut().entry(format).or_default() += 1;
        packed
    }

    fn vector(&self, role: Role) -> Result<Buffer, WeightsError> {
        let offset = norm_offset(self.store, self.config, role);
        let values = values(self.store, self.config, role, &self.rows(role)?.plus(offset))?;
        Ok(self.ops.place(values).unwrap_or_else(|refused| refused.end("a vector of weights")))
    }

    /// A matrix; nothing where others hold the rest of it, and this process's part is kept.
    fn part(
        &self,
        role: Role,
        parts: Option<&mut Parts>,
    ) -> Result<Option<Box<dyn FrozenMatrix>>, WeightsError> {
        let matrix = self.matrix(role)?;
        let (Some(parts), Some((unit, index))) = (parts, place_of(role)) else {
            return Ok(Some(matrix));
        };
        parts.keep(unit, index, matrix.as_ref());
        Ok(None)
    }

    fn layer(&self, n: usize, mut parts: Option<&mut Parts>) -> Result<LayerWeights, WeightsError> {
        let n_places = Linear::n_places(&self.dims);
        let mut layer = LayerWeights {
            norm: Norm::ALL.map(|_| Buffer::default()).into(),
            linear: (0..n_places).map(|_| None).collect(),
            bias: (0..n_places).map(|_| None).collect(),
        };
        for norm in self.config.norms() {
            layer.norm[norm.index()] = self.vector(Role::Norm(n, norm))?;
        }
        for linear in self.config.linears(n) {
            let role = Role::Linear(n, linear);
            layer.linear[linear.index()] = self.part(role, parts.as_deref_mut())?;
            if self.config.has_bias(linear) {
                layer.bias[linear.index()] = Some(self.vector(Role::Bias(n, linear))?);
            }
        }
        Ok(layer)
    }
}
