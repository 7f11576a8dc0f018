//! From stored tensors to packed weights, strictly: every tensor has a role and every role a
//! tensor, shapes agree with the configuration, and every value is a number.

use std::collections::BTreeSet;

use forgelm_kernels_api::{Compute, FrozenMatrix, Ops, RowSource};
use forgelm_tensor::Dtype;
use thiserror::Error;

use crate::config::{Dims, ModelConfig};
use crate::names::{Linear, Norm, Role, gguf};
use crate::store::{Located, NotFinite, RotaryOrder, StoredRows, StoredTensor, TensorStore};

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

/// The weights of one decoder layer.
pub(crate) struct LayerWeights {
    /// By [`Norm::index`]; empty where the layer has none.
    norm: Vec<Vec<f32>>,
    /// By [`Linear::index`]. Query, key and value stay three matrices unless the file has one: a
    /// fused product would leave them interleaved by row, and taking them apart costs more traffic
    /// than reading the input three times.
    linear: Vec<Option<Box<dyn FrozenMatrix>>>,
    /// By [`Linear::index`].
    bias: Vec<Option<Vec<f32>>>,
}

impl LayerWeights {
    pub(crate) fn norm(&self, norm: Norm) -> &[f32] {
        &self.norm[norm.index()]
    }

    pub(crate) fn linear(&self, linear: Linear) -> &dyn FrozenMatrix {
        self.linear[linear.index()].as_deref().expect("the layer has this linear layer")
    }

    pub(crate) fn bias(&self, linear: Linear) -> Option<&[f32]> {
        self.bias[linear.index()].as_deref()
    }

    fn n_bytes(&self) -> usize {
        let vectors = self.norm.iter().chain(self.bias.iter().flatten());
        let vectors: usize = vectors.map(Vec::len).sum();
        4 * vectors + self.linear.iter().flatten().map(|w| w.n_bytes()).sum::<usize>()
    }

    pub(crate) fn set_linear(&mut self, linear: Linear, weight: Box<dyn FrozenMatrix>) {
        self.linear[linear.index()] = Some(weight);
    }
}

/// All weights, frozen.
pub(crate) struct Weights {
    pub(crate) embedding: Box<dyn FrozenMatrix>,
    /// `None` when the embedding is the head.
    head: Option<Box<dyn FrozenMatrix>>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) layers: Vec<LayerWeights>,
}

impl Weights {
    /// The output head [V, C].
    pub(crate) fn head(&self) -> &dyn FrozenMatrix {
        self.head.as_deref().unwrap_or(self.embedding.as_ref())
    }

    /// Memory held, in bytes.
    pub(crate) fn n_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(LayerWeights::n_bytes).sum();
        let head = self.head.as_ref().map_or(0, |w| w.n_bytes());
        layers + self.embedding.n_bytes() + head + 4 * self.final_norm.len()
    }

    /// Reads and packs every tensor.
    pub(crate) fn load(
        store: &dyn TensorStore,
        config: &ModelConfig,
        ops: &dyn Ops,
        compute: Compute,
    ) -> Result<Self, WeightsError> {
        let offset = config.norms.stored_as_offsets && !store.has_whole_norms();
        let norm_offset = if offset { 1.0 } else { 0.0 };
        let reader = Reader { store, dims: config.dims(), ops, compute, norm_offset };
        let has_head = reader.check_names(config)?;
        let layers = (0..config.num_hidden_layers)
            .map(|n| reader.layer(config, n))
            .collect::<Result<_, _>>()?;
        let head = match (config.tie_word_embeddings, has_head) {
            (false, _) => Some(reader.matrix(Role::Head)?),
            (true, true) => {
                reader.check_head_is_embedding()?;
                None
            }
            (true, false) => None,
        };
        Ok(Self {
            embedding: reader.matrix(Role::Embedding)?,
            head,
            final_norm: reader.vector(Role::FinalNorm)?,
            layers,
        })
    }
}

/// The values of one tensor in f32, as a Hugging Face folder stores them.
///
/// # Errors
/// If the tensor is missing, of the wrong shape or format, or holds a value that is not a number.
pub(crate) fn read_values(
    store: &dyn TensorStore,
    config: &ModelConfig,
    role: Role,
) -> Result<Vec<f32>, WeightsError> {
    let rows = stored_rows(store, config, role)?.1;
    let mut values = vec![0.0; rows.n_rows() * rows.n_cols()];
    rows.read_rows(0, &mut values);
    check_finite((store, &config.dims()), role, &rows)?;
    Ok(values)
}

/// The rows of one tensor as a Hugging Face folder stores them, and the number format they have.
///
/// # Errors
/// If the tensor is missing, or of the wrong shape or format.
pub(crate) fn stored_rows<'a>(
    store: &'a dyn TensorStore,
    config: &ModelConfig,
    role: Role,
) -> Result<(Dtype, StoredRows<'a>), WeightsError> {
    let dims = config.dims();
    let dtype = tensor((store, &dims), role)?.dtype;
    let is_whole = config.norms.stored_as_offsets && store.has_whole_norms();
    Ok((dtype, rows((store, &dims), role, if is_whole { -1.0 } else { 0.0 })?))
}

fn missing(store: &dyn TensorStore, name: String) -> WeightsError {
    WeightsError::Missing { place: store.place(), name }
}

/// The tensor of a role, its shape checked, cut down to the rows of the role.
fn tensor<'a>(
    (store, dims): (&'a dyn TensorStore, &Dims),
    role: Role,
) -> Result<StoredTensor<'a>, WeightsError> {
    let Located { name, shape: expected, first_row } = store.locate(role, dims);
    let Some(mut tensor) = store.tensor(&name) else { return Err(missing(store, name)) };
    // A matrix of one row may be stored as a vector.
    let is_row = expected.len() == 2 && expected[0] == 1 && tensor.shape == expected[1..];
    if tensor.shape != expected && !is_row {
        return Err(WeightsError::Shape {
            place: store.place(),
            name,
            found: tensor.shape,
            expected,
        });
    }
    let shape = role.shape(dims);
    if shape != expected {
        let n_cols = expected.last().copied().unwrap_or(0);
        let Some(row_bytes) = tensor.dtype.row_bytes(n_cols) else {
            return Err(format((store, dims), role, &tensor));
        };
        let rows = first_row..first_row + shape[0];
        let bytes = rows.start * row_bytes..rows.end * row_bytes;
        let Some(bytes) = tensor.bytes.get(bytes) else {
            return Err(format((store, dims), role, &tensor));
        };
        tensor.bytes = bytes;
    }
    tensor.shape = shape;
    Ok(tensor)
}

fn format(
    (store, dims): (&dyn TensorStore, &Dims),
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

/// The rows of a role; `norm_offset` is added to the weights of norms.
fn rows<'a>(
    (store, dims): (&'a dyn TensorStore, &Dims),
    role: Role,
    norm_offset: f32,
) -> Result<StoredRows<'a>, WeightsError> {
    let tensor = tensor((store, dims), role)?;
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
    let offset = match role {
        Role::Norm(..) | Role::FinalNorm => norm_offset,
        Role::Embedding | Role::Head | Role::Linear(..) | Role::Bias(..) | Role::RopeDivisors => {
            0.0
        }
    };
    let rows = StoredRows::new(&tensor, n_rows, n_cols, interleaved);
    rows.map(|rows| rows.plus(offset)).ok_or_else(|| format((store, dims), role, &tensor))
}

/// Refuses rows in which a value that is no number was met.
///
/// # Errors
/// Naming the first.
pub(crate) fn check_finite(
    (store, dims): (&dyn TensorStore, &Dims),
    role: Role,
    rows: &StoredRows<'_>,
) -> Result<(), WeightsError> {
    match rows.first_bad() {
        None => Ok(()),
        Some(NotFinite { row, column, value }) => Err(WeightsError::NotFinite {
            place: store.place(),
            name: store.locate(role, dims).name,
            value: value.to_string(),
            row,
            column,
        }),
    }
}

struct Reader<'a> {
    store: &'a dyn TensorStore,
    dims: Dims,
    ops: &'a dyn Ops,
    compute: Compute,
    /// Added to the weights of norms.
    norm_offset: f32,
}

impl<'a> Reader<'a> {
    /// Compares the names with the roles; whether there is a head of its own.
    fn check_names(&self, config: &ModelConfig) -> Result<bool, WeightsError> {
        let mut names: BTreeSet<String> = self.store.names().into_iter().collect();
        let head = self.store.name_of(Role::Head);
        let has_head = names.remove(&head);
        if !has_head && !config.tie_word_embeddings {
            return Err(self.missing(head));
        }
        let mut used = BTreeSet::new();
        for role in Role::always(config) {
            let name = self.store.locate(role, &self.dims).name;
            if !names.contains(&name) {
                return Err(self.missing(name));
            }
            used.insert(name);
        }
        // Old folders store the rotary frequencies, which follow from the configuration; GGUF
        // stores divisors, which the configuration has already taken up.
        names.retain(|name| {
            let is_divisors = [gguf::ROPE_DIVISORS, gguf::ROPE_LONG, gguf::ROPE_SHORT];
            !used.contains(name)
                && !name.ends_with(".self_attn.rotary_emb.inv_freq")
                && !is_divisors.contains(&name.as_str())
        });
        match names.first() {
            None => Ok(has_head),
            Some(first) => Err(WeightsError::Unexpected {
                place: self.store.place(),
                first: first.clone(),
                count: names.len(),
            }),
        }
    }

    fn missing(&self, name: String) -> WeightsError {
        missing(self.store, name)
    }

    fn rows(&self, role: Role) -> Result<StoredRows<'a>, WeightsError> {
        rows((self.store, &self.dims), role, self.norm_offset)
    }

    fn matrix(&self, role: Role) -> Result<Box<dyn FrozenMatrix>, WeightsError> {
        let rows = self.rows(role)?;
        let packed = self.ops.freeze(&rows, self.compute);
        check_finite((self.store, &self.dims), role, &rows)?;
        Ok(packed)
    }

    fn vector(&self, role: Role) -> Result<Vec<f32>, WeightsError> {
        let rows = self.rows(role)?;
        let mut values = vec![0.0; rows.n_rows() * rows.n_cols()];
        rows.read_rows(0, &mut values);
        check_finite((self.store, &self.dims), role, &rows)?;
        Ok(values)
    }

    fn layer(&self, config: &ModelConfig, n: usize) -> Result<LayerWeights, WeightsError> {
        let n_places = Linear::n_places(&self.dims);
        let mut layer = LayerWeights {
            norm: vec![Vec::new(); Norm::ALL.len()],
            linear: (0..n_places).map(|_| None).collect(),
            bias: vec![None; n_places],
        };
        for norm in config.norms() {
            layer.norm[norm.index()] = self.vector(Role::Norm(n, norm))?;
        }
        for linear in config.linears(n) {
            layer.linear[linear.index()] = Some(self.matrix(Role::Linear(n, linear))?);
            if config.has_bias(linear) {
                layer.bias[linear.index()] = Some(self.vector(Role::Bias(n, linear))?);
            }
        }
        Ok(layer)
    }

    /// A tied model may carry its head a second time; it must then be the same.
    fn check_head_is_embedding(&self) -> Result<(), WeightsError> {
        let (head, embedding) = (self.rows(Role::Head)?, self.rows(Role::Embedding)?);
        let mut rows = (vec![0.0; self.dims.c], vec![0.0; self.dims.c]);
        for row in 0..self.dims.v {
            head.read_rows(row, &mut rows.0);
            embedding.read_rows(row, &mut rows.1);
            let same = rows.0.iter().zip(&rows.1).all(|(a, b)| a.to_bits() == b.to_bits());
            if !same {
                return Err(WeightsError::HeadNotTied {
                    place: self.store.place(),
                    head: self.store.name_of(Role::Head),
                    embedding: self.store.name_of(Role::Embedding),
                    row,
                });
            }
        }
        Ok(())
    }
}
