//! Packed weights, wherever they are: on this process, or in parts on several.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use forgelm_collective::CollectiveError;
use forgelm_kernels_api::{Buffer, FrozenMatrix, MatrixForm, Slice};

use crate::decoder::Part;
use crate::names::{Linear, Norm, Role};
use crate::parts::{Matrices, Parts, Passage, Unit};

/// The weights of one decoder layer.
pub(crate) struct LayerWeights {
    /// By [`Norm::index`]; empty where the layer has none.
    pub(super) norm: Vec<Buffer>,
    /// By [`Linear::index`], unless processes have parts of them. Query, key and value stay three
    /// matrices unless the file has one: a fused product would leave them interleaved by row, and
    /// taking them apart costs more traffic than reading the input three times.
    pub(super) linear: Matrices,
    /// By [`Linear::index`].
    pub(super) bias: Vec<Option<Buffer>>,
}

impl LayerWeights {
    fn n_bytes(&self) -> usize {
        let vectors = self.norm.iter().chain(self.bias.iter().flatten());
        let vectors: usize = vectors.map(Buffer::n_bytes).sum();
        vectors + self.linear.iter().flatten().map(|w| w.n_bytes()).sum::<usize>()
    }
}

/// The weights of one decoder layer, wherever its matrices are; while this exists they stay.
pub(crate) struct LayerRef<'a> {
    layer: &'a LayerWeights,
    gathered: Option<Arc<Matrices>>,
}

impl LayerRef<'_> {
    pub(crate) fn norm(&self, norm: Norm) -> Slice<'_> {
        self.layer.norm[norm.index()].all()
    }

    pub(crate) fn linear(&self, linear: Linear) -> &dyn FrozenMatrix {
        let matrices = self.gathered.as_deref().unwrap_or(&self.layer.linear);
        let matrix = matrices.get(linear.index()).and_then(Option::as_deref);
        matrix.expect("the layer has this linear layer")
    }

    pub(crate) fn bias(&self, linear: Linear) -> Option<Slice<'_>> {
        self.layer.bias[linear.index()].as_ref().map(Buffer::all)
    }
}

/// A matrix of the model, wherever it is; while this exists it stays.
pub(crate) enum MatrixRef<'a> {
    Here(&'a dyn FrozenMatrix),
    /// One of a unit.
    Gathered(Arc<Matrices>, usize),
}

impl<'a> Deref for MatrixRef<'a> {
    type Target = dyn FrozenMatrix + 'a;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Here(matrix) => *matrix,
            Self::Gathered(unit, index) => {
                unit.get(*index).and_then(Option::as_deref).expect("the frozen matrix is in use")
            }
        }
    }
}

/// In the place of a weight whose memory was given back: a trained one stands for it.
struct Released {
    n_rows: usize,
    n_cols: usize,
}

impl FrozenMatrix for Released {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn n_bytes(&self) -> usize {
        0
    }

    fn read_rows(&self, _: usize, _: &mut [f32]) {
        panic!("the frozen copy of this weight was given back when it began to train");
    }

    fn take_apart(&self) -> (Box<dyn MatrixForm>, Vec<u8>) {
        panic!("a weight that was given back has no bytes");
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// All weights, frozen.
pub(crate) struct Weights {
    /// As those of layers, absent where processes have parts of them.
    pub(super) embedding: Option<Box<dyn FrozenMatrix>>,
    /// Absent also when the embedding is the head.
    pub(super) head: Option<Box<dyn FrozenMatrix>>,
    pub(crate) final_norm: Buffer,
    pub(super) layers: Vec<LayerWeights>,
    /// How the linear layers are kept, and how many of them.
    pub(crate) formats: BTreeMap<String, usize>,
    /// What this process has of the matrices, where each has a part.
    pub(super) parts: Option<Parts>,
}

impl Weights {
    /// A pass over some of the matrices begins.
    pub(crate) fn begin(&self, passage: Passage) {
        if let Some(parts) = &self.parts {
            parts.begin(passage);
        }
    }

    /// See [`Parts::accompany`].
    pub(crate) fn accompany(
        &self,
        left: &mut dyn FnMut(Part) -> Result<(), CollectiveError>,
    ) -> Result<(), CollectiveError> {
        self.parts.as_ref().map_or(Ok(()), |parts| parts.accompany(left))
    }

    /// A layer in a pass over the layers.
    pub(crate) fn layer(&self, n: usize) -> LayerRef<'_> {
        let gathered = self.parts.as_ref().map(|parts| parts.take(Unit::Layer(n)));
        LayerRef { layer: &self.layers[n], gathered }
    }

    /// Whether this process has only a part of them.
    pub(crate) fn is_in_parts(&self) -> bool {
        self.parts.is_some()
    }

    /// See [`Parts::let_go`].
    pub(crate) fn let_go(&self) -> Result<(), CollectiveError> {
        self.parts.as_ref().map_or(Ok(()), Parts::let_go)
    }

    /// One linear layer, which is a pass of its own.
    pub(crate) fn linear(&self, layer: usize, linear: Linear) -> MatrixRef<'_> {
        match &self.parts {
            None => {
                let matrix = self.layers[layer].linear[linear.index()].as_deref();
                MatrixRef::Here(matrix.expect("the layer has this linear layer"))
            }
            Some(parts) => {
                parts.begin(Passage::Layer(layer));
                MatrixRef::Gathered(parts.take(Unit::Layer(layer)), linear.index())
            }
        }
    }

    /// The token vectors [V, C], in a pass up.
    pub(crate) fn embedding(&self) -> MatrixRef<'_> {
        match (&self.embedding, &self.parts) {
            (Some(embedding), _) => MatrixRef::Here(embedding.as_ref()),
            (None, parts) => MatrixRef::Gathered(
                parts.as_ref().map(|parts| parts.take(Unit::Embedding)).unwrap_or_default(),
                0,
            ),
        }
    }

    /// The output head [V, C], which is a pass of its own.
    pub(crate) fn head(&self) -> MatrixRef<'_> {
        match (self.head.as_ref().or(self.embedding.as_ref()), &self.parts) {
            (Some(head), _) => MatrixRef::Here(head.as_ref()),
            (None, parts) => {
                MatrixRef::Gathered(parts.as_ref().map(Parts::take_head).unwrap_or_default(), 0)
            }
        }
    }

    /// Memory held, in bytes, besides what is gathered.
    pub(crate) fn n_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(LayerWeights::n_bytes).sum();
        let wide = self.embedding.iter().chain(&self.head).map(|w| w.n_bytes()).sum::<usize>();
        let parts = self.parts.as_ref().map_or(0, Parts::n_bytes);
        layers + wide + parts + self.final_norm.n_bytes()
    }

    /// Gives back the memory of a matrix that nothing reads any more. Vectors stay: they are small.
    pub(crate) fn release(&mut self, role: Role) {
        let Some((unit, index)) = place_of(role) else { return };
        if let Some(parts) = &mut self.parts {
            parts.give_back(unit, index);
        }
        if let Some(matrix) = self.matrix_at((unit, index)) {
            *matrix = Box::new(Released { n_rows: matrix.n_rows(), n_cols: matrix.n_cols() });
        }
    }

    /// Puts a matrix in the place of another.
    pub(crate) fn replace(&mut self, role: Role, matrix: Box<dyn FrozenMatrix>) {
        let Some((unit, index)) = place_of(role) else { return };
        if let Some(parts) = &mut self.parts {
            parts.keep(unit, index, matrix.as_ref());
        } else if let Some(place) = self.matrix_at((unit, index)) {
            *place = matrix;
        }
    }

    /// See [`Parts::renew`].
    pub(crate) fn renew(&self, role: Role, matrix: &dyn FrozenMatrix) {
        if let (Some(parts), Some((unit, index))) = (&self.parts, place_of(role)) {
            parts.renew(unit, index, matrix);
        }
    }

    fn matrix_at(&mut self, (unit, index): (Unit, usize)) -> Option<&mut Box<dyn FrozenMatrix>> {
        match unit {
            Unit::Embedding => self.embedding.as_mut(),
            Unit::Head => self.head.as_mut(),
            Unit::Layer(layer) => self.layers[layer].linear[index].as_mut(),
        }
    }
}

/// The unit of a matrix, and which one it is there; none for vectors.
pub(super) fn place_of(role: Role) -> Option<(Unit, usize)> {
    match role {
        Role::Embedding => Some((Unit::Embedding, 0)),
        Role::Head => Some((Unit::Head, 0)),
        Role::Linear(layer, linear) => Some((Unit::Layer(layer), linear.index())),
        Role::Norm(..) | Role::Bias(..) | Role::FinalNorm | Role::RopeDivisors => None,
    }
}
