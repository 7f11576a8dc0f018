//! From stored tensors to packed weights, strictly: every tensor has a role and every role a
//! tensor, shapes agree with the configuration, and every value is a number.

use std::collections::BTreeSet;

use forgelm_kernels_api::{Compute, FrozenMatrix, Ops, RowSource};
use thiserror::Error;

use crate::config::{Dims, ModelConfig};
use crate::names::{Linear, Role};
use crate::store::{NotFinite, RotaryOrder, StoredRows, StoredTensor, TensorStore};

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
    /// Norm before attention [C].
    pub(crate) input_norm: Vec<f32>,
    /// Norm before the MLP [C].
    pub(crate) post_attention_norm: Vec<f32>,
    /// In the order of [`Linear::ALL`].
    ///
    /// Query, key and value stay three matrices: a fused product would leave them interleaved by
    /// row, and taking them apart costs more traffic than reading the input three times.
    linear: Vec<Box<dyn FrozenMatrix>>,
}

impl LayerWeights {
    pub(crate) fn linear(&self, linear: Linear) -> &dyn FrozenMatrix {
        self.linear[linear.index()].as_ref()
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
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| {
                let norms = layer.input_norm.len() + layer.post_attention_norm.len();
                4 * norms + layer.linear.iter().map(|w| w.n_bytes()).sum::<usize>()
            })
            .sum();
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
        let reader = Reader { store, dims: config.dims(), ops, compute };
        let has_head = reader.check_names(config)?;
        let layers =
            (0..config.num_hidden_layers).map(|n| reader.layer(n)).collect::<Result<_, _>>()?;
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

struct Reader<'a> {
    store: &'a dyn TensorStore,
    dims: Dims,
    ops: &'a dyn Ops,
    compute: Compute,
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
        for role in Role::always(config.num_hidden_layers) {
            let name = self.store.name_of(role);
            if !names.remove(&name) {
                return Err(self.missing(name));
            }
        }
        // Old folders store the rotary frequencies, which follow from the configuration; GGUF
        // stores divisors, which the configuration has already taken up.
        names.retain(|name| {
            !name.ends_with(".self_attn.rotary_emb.inv_freq") && name != "rope_freqs.weight"
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
        WeightsError::Missing { place: self.store.place(), name }
    }

    /// The tensor of a role, its shape checked.
    fn tensor(&self, role: Role) -> Result<StoredTensor<'a>, WeightsError> {
        let name = self.store.name_of(role);
        let Some(tensor) = self.store.tensor(&name) else { return Err(self.missing(name)) };
        let expected = role.shape(&self.dims);
        if tensor.shape == expected {
            return Ok(tensor);
        }
        Err(WeightsError::Shape { place: self.store.place(), name, found: tensor.shape, expected })
    }

    fn rows(&self, role: Role) -> Result<StoredRows<'a>, WeightsError> {
        let tensor = self.tensor(role)?;
        let (n_rows, n_cols) = match tensor.shape.as_slice() {
            [n_rows, n_cols] => (*n_rows, *n_cols),
            other => (1, other.iter().product()),
        };
        let rotary = matches!(role, Role::Linear(_, Linear::Q | Linear::K));
        let interleaved = match self.store.rotary_order() {
            RotaryOrder::Interleaved if rotary => Some(self.dims.d),
            RotaryOrder::Interleaved | RotaryOrder::HalfSplit => None,
        };
        StoredRows::new(&tensor, n_rows, n_cols, interleaved).ok_or_else(|| WeightsError::Format {
            place: self.store.place(),
            name: self.store.name_of(role),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype.name().to_owned(),
        })
    }

    fn check_finite(&self, role: Role, rows: &StoredRows<'_>) -> Result<(), WeightsError> {
        match rows.first_bad() {
            None => Ok(()),
            Some(NotFinite { row, column, value }) => Err(WeightsError::NotFinite {
                place: self.store.place(),
                name: self.store.name_of(role),
                value: value.to_string(),
                row,
                column,
            }),
        }
    }

    fn matrix(&self, role: Role) -> Result<Box<dyn FrozenMatrix>, WeightsError> {
        let rows = self.rows(role)?;
        let packed = self.ops.freeze(&rows, self.compute);
        self.check_finite(role, &rows)?;
        // Packed once, the file's own bytes are not needed in memory any more.
        self.store.release(&self.tensor(role)?);
        Ok(packed)
    }

    fn vector(&self, role: Role) -> Result<Vec<f32>, WeightsError> {
        let rows = self.rows(role)?;
        let mut values = vec![0.0; rows.n_cols()];
        rows.read_rows(0, &mut values);
        self.check_finite(role, &rows)?;
        Ok(values)
    }

    fn layer(&self, n: usize) -> Result<LayerWeights, WeightsError> {
        Ok(LayerWeights {
            input_norm: self.vector(Role::InputNorm(n))?,
            post_attention_norm: self.vector(Role::PostAttentionNorm(n))?,
            linear: Linear::ALL
                .into_iter()
                .map(|linear| self.matrix(Role::Linear(n, linear)))
                .collect::<Result<_, _>>()?,
        })
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
