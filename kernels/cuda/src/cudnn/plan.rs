//! The graph of causal attention over packed sequences, and the plan by which cuDNN computes it.
//!
//! `cargo xtask cudnn` compiles the same file, for devices that are described and not there. The
//! graph is one node: scores, a mask `row >= column` on them, softmax, sum of values.
//!
//! Paper: none; NVIDIA's header says what each attribute means, from cuDNN 9.21 on.

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Mode,
    cudnnDataType_t as DataType, cudnnPointwiseMode_t as Pointwise,
};

use super::backend::{Backend, Descriptor, Pointer, Refusal};

/// The first cuDNN whose attention takes a mask as a graph on its scores.
pub(crate) const VERSION_MIN: usize = 92_100;
/// The most memory that a plan may take for its own time; one that wants more is not made. None of
/// those in `plans.tsv` wants more than 17 KiB.
pub(crate) const WORKSPACE_MAX: usize = 1 << 20;
/// Engines that are asked for, the best first.
const ENGINES_MAX: usize = 8;
/// What addresses are multiples of.
const ALIGNMENT: i64 = 16;

/// What a plan is made for. Sequences are as many and as long as here at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sizes {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) n_sequences: usize,
    pub(crate) longest: usize,
}

impl Sizes {
    /// The least plan of its kind that these sizes fit in: making one takes seconds, and batches
    /// differ in what they pack. Sequences beyond those that are there have no rows.
    pub(crate) fn rounded_up(self) -> Self {
        Self {
            n_sequences: self.n_sequences.next_power_of_two(),
            longest: self.longest.next_power_of_two().max(64),
            ..self
        }
    }
}

/// The device that a plan is for.
#[derive(Debug)]
pub(crate) enum Target {
    /// That of a handle of cuDNN.
    Here(Pointer),
    /// One that is described.
    Described(Descriptor),
}

impl Target {
    /// From the form that cuDNN writes device properties in.
    pub(crate) fn described(backend: Backend, json: &str) -> Result<Self, Refusal> {
        let properties = Descriptor::new(backend, Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?
            .text(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, json)?
            .finished("the description of a device")?;
        Ok(Self::Described(properties))
    }
}

/// What a plan reads and writes, by the numbers that its graph has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Tensor {
    Q = 1,
    K,
    V,
    Out,
    /// `ln(sum(exp(score)))` of each row.
    Stats,
    /// On the host: f32.
    Scale,
    QueryLens,
    KeyLens,
    /// Where sequences begin, counted in numbers.
    QueryOffsets,
    KeyOffsets,
    StatsOffsets,
    /// On the host: what a score behind the mask becomes, f32.
    Masked,
    /// On the host: columns right of the diagonal that are seen, i32.
    SeenAhead,
    /// Of the graph on scores: before and after the mask; no memory.
    Scores,
    MaskedScores,
}

/// Where the numbers of a tensor are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Device,
    Host,
    Nowhere,
}

/// A graph that was built, with all that it is made of.
struct Graph {
    whole: Descriptor,
    parts: Vec<Descriptor>,
}

/// How one kind of attention is computed.
#[derive(Debug)]
pub(crate) struct Plan {
    plan: Descriptor,
    workspace_bytes: usize,
    /// Everything that it was made from: nothing says that cuDNN keeps copies.
    _parts: Vec<Descriptor>,
}

impl Plan {
    /// The first engine of cuDNN's choice that takes it.
    pub(crate) fn new(backend: Backend, sizes: &Sizes, target: &Target) -> Result<Self, Refusal> {
        let Graph { whole, mut parts } = Graph::new(backend, sizes, target)?;
        let heuristic = Descriptor::new(backend, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
            .linked(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[&whole])?
            .choice(
                Name::CUDNN_ATTR_ENGINEHEUR_MODE,
                Type::CUDNN_TYPE_HEUR_MODE,
                Mode::CUDNN_HEUR_MODE_A,
            )?;
        let heuristic = match target {
            Target::Here(_) => heuristic,
            Target::Described(device) => {
                heuristic.linked(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, &[device])?
            }
        };
        let heuristic = heuristic.finished("the choice of an engine")?;
        let engine = || Descriptor::new(backend, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
        let engines: Vec<_> = (0..ENGINES_MAX).map(|_| engine()).collect::<Result<_, _>>()?;
        let n = heuristic.results(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, &engines)?;

        let mut refusal = Refusal {
            doing: "the choice of an engine".to_owned(),
            status: 3000,
            text: "no engine takes it".to_owned(),
        };
        for engine in &engines[..n] {
            match Self::of_engine(backend, engine, target) {
                Ok((plan, workspace_bytes)) if workspace_bytes <= WORKSPACE_MAX => {
                    parts.extend([whole, heuristic]);
                    parts.extend(engines);
                    return Ok(Self { plan, workspace_bytes, _parts: parts });
                }
                Ok((_, bytes)) => refusal.text = format!("an engine wants {bytes} bytes"),
                Err(error) if error.is_for_good() => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    fn of_engine(
        backend: Backend,
        engine: &Descriptor,
        target: &Target,
    ) -> Result<(Descriptor, usize), Refusal> {
        let plan = Descriptor::new(backend, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?
            .linked(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[engine])?;
        let plan = match target {
            Target::Here(handle) => plan.handle(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, *handle)?,
            Target::Described(device) => {
                plan.linked(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, &[device])?
            }
        };
        let plan = plan.finished("a plan")?;
        let bytes = plan.integer(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        Ok((plan, usize::try_from(bytes).unwrap_or(usize::MAX)))
    }

    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    pub(crate) fn pointer(&self) -> Pointer {
        self.plan.pointer()
    }

    /// What a plan is run with: addresses of the tensors that have one, and of its workspace.
    pub(crate) fn arguments(
        backend: Backend,
        tensors: &[(Tensor, Pointer)],
        workspace: Pointer,
    ) -> Result<Descriptor, Refusal> {
        let uids: Vec<_> = tensors.iter().map(|&(tensor, _)| tensor as i64).collect();
        let addresses: Vec<_> = tensors.iter().map(|&(_, address)| address).collect();
        Descriptor::new(backend, Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
            .integers(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &uids)?
            .addresses(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?
            .addresses(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[workspace])?
            .finished("the arguments of a plan")
    }
}

impl Graph {
    fn new(backend: Backend, sizes: &Sizes, target: &Target) -> Result<Self, Refusal> {
        let tensors = Tensors { backend };
        let [n, s, d] = [sizes.n_sequences, sizes.longest, sizes.head_dim].map(integer);
        let [h, h_kv] = [sizes.n_heads, sizes.n_kv_heads].map(integer);
        let offsets = |tensor| tensors.list(tensor, n + 1);
        let query_offsets = offsets(Tensor::QueryOffsets)?;
        let key_offsets = offsets(Tensor::KeyOffsets)?;
        let stats_offsets = offsets(Tensor::StatsOffsets)?;
        // [T, H, D] lies there, and is asked for as [sequence, H, row, D].
        let heads = |tensor, h, offsets| {
            let strides = [h * s * d, d, h * d, 1];
            tensors.packed(tensor, DataType::CUDNN_DATA_BFLOAT16, [n, h, s, d], strides, offsets)
        };
        let q = heads(Tensor::Q, h, &query_offsets)?;
        let [k, v] = [heads(Tensor::K, h_kv, &key_offsets)?, heads(Tensor::V, h_kv, &key_offsets)?];
        let out = heads(Tensor::Out, h, &query_offsets)?;
        let stats = tensors.packed(
            Tensor::Stats,
            DataType::CUDNN_DATA_FLOAT,
            [n, h, s, 1],
            [h * s, 1, h, 1],
            &stats_offsets,
        )?;
        let query_lens = tensors.list(Tensor::QueryLens, n)?;
        let key_lens = tensors.list(Tensor::KeyLens, n)?;
        let scale = tensors.scalar(Tensor::Scale, DataType::CUDNN_DATA_FLOAT)?;
        let mask = Self::mask(tensors, [n, h, s, s], target)?;

        let attention =
            Descriptor::new(backend, Kind::CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR)?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, &[&q])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, &[&k])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, &[&v])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, &[&out])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, &[&stats])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, &[&scale])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_QDESC, &[&query_lens])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_KVDESC, &[&key_lens])?
                .linked(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SUBGRAPH, &[&mask.whole])?
                .integers(
                    Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SUBGRAPH_INPUT_UID,
                    &[Tensor::Scores as i64],
                )?
                .integers(
                    Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SUBGRAPH_OUTPUT_UID,
                    &[Tensor::MaskedScores as i64],
                )?
                .finished("the operation of attention")?;
        let whole = Self::of(backend, &attention, target)?;
        let mut parts = mask.parts;
        parts.extend([mask.whole, attention, q, k, v, out, stats, scale, query_lens, key_lens]);
        parts.extend([query_offsets, key_offsets, stats_offsets]);
        Ok(Self { whole, parts })
    }

    /// A graph on scores: those of later keys than the query are replaced.
    fn mask(tensors: Tensors, shape: [i64; 4], target: &Target) -> Result<Self, Refusal> {
        let scores = tensors.scores(Tensor::Scores, shape)?;
        let masked_scores = tensors.scores(Tensor::MaskedScores, shape)?;
        let masked = tensors.scalar(Tensor::Masked, DataType::CUDNN_DATA_FLOAT)?;
        let seen_ahead = tensors.scalar(Tensor::SeenAhead, DataType::CUDNN_DATA_INT32)?;
        let backend = tensors.backend;
        let kind = Kind::CUDNN_BACKEND_OPERATION_DIAGONAL_BAND_MASK_DESCRIPTOR;
        let mask = Descriptor::new(backend, kind)?
            .linked(Name::CUDNN_ATTR_OPERATION_DIAGONAL_BAND_MASK_XDESC, &[&scores])?
            .linked(Name::CUDNN_ATTR_OPERATION_DIAGONAL_BAND_MASK_BDESC, &[&masked])?
            .linked(
                Name::CUDNN_ATTR_OPERATION_DIAGONAL_BAND_MASK_SHIFT_RIGHT_BOUND_DESC,
                &[&seen_ahead],
            )?
            .linked(Name::CUDNN_ATTR_OPERATION_DIAGONAL_BAND_MASK_YDESC, &[&masked_scores])?
            .choice(
                Name::CUDNN_ATTR_OPERATION_DIAGONAL_BAND_MASK_COMPARISON_MODE,
                Type::CUDNN_TYPE_POINTWISE_MODE,
                Pointwise::CUDNN_POINTWISE_CMP_GE,
            )?
            .finished("the mask")?;
        let whole = Self::of(backend, &mask, target)?;
        Ok(Self { whole, parts: vec![mask, scores, masked_scores, masked, seen_ahead] })
    }

    fn of(
        backend: Backend,
        operation: &Descriptor,
        target: &Target,
    ) -> Result<Descriptor, Refusal> {
        let graph = Descriptor::new(backend, Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .linked(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &[operation])?;
        let graph = match target {
            Target::Here(handle) => {
                graph.handle(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, *handle)?
            }
            Target::Described(_) => graph,
        };
        graph.finished("a graph")
    }
}

/// Makes descriptors of tensors.
#[derive(Clone, Copy)]
struct Tensors {
    backend: Backend,
}

impl Tensors {
    fn begin(
        self,
        tensor: Tensor,
        data: DataType,
        dims: [i64; 4],
        strides: [i64; 4],
        place: Place,
    ) -> Result<Descriptor, Refusal> {
        Descriptor::new(self.backend, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
            .integers(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[tensor as i64])?
            .choice(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Type::CUDNN_TYPE_DATA_TYPE, data)?
            .integers(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &dims)?
            .integers(Name::CUDNN_ATTR_TENSOR_STRIDES, &strides)?
            .integers(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT])?
            .flag(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, place == Place::Host)?
            .flag(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, place == Place::Nowhere)
    }

    /// Sequences that lie end to end, and begin at these offsets.
    fn packed(
        self,
        tensor: Tensor,
        data: DataType,
        dims: [i64; 4],
        strides: [i64; 4],
        offsets: &Descriptor,
    ) -> Result<Descriptor, Refusal> {
        self.begin(tensor, data, dims, strides, Place::Device)?
            .linked(Name::CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, &[offsets])?
            .finished("a packed tensor")
    }

    /// Integers, one for each sequence or more.
    fn list(self, tensor: Tensor, n: i64) -> Result<Descriptor, Refusal> {
        let data = DataType::CUDNN_DATA_INT32;
        self.begin(tensor, data, [n, 1, 1, 1], [1; 4], Place::Device)?.finished("a list")
    }

    fn scalar(self, tensor: Tensor, data: DataType) -> Result<Descriptor, Refusal> {
        self.begin(tensor, data, [1; 4], [1; 4], Place::Host)?.finished("a scalar")
    }

    fn scores(self, tensor: Tensor, dims: [i64; 4]) -> Result<Descriptor, Refusal> {
        let [_, h, rows, columns] = dims;
        let strides = [h * rows * columns, rows * columns, columns, 1];
        let data = DataType::CUDNN_DATA_FLOAT;
        self.begin(tensor, data, dims, strides, Place::Nowhere)?.finished("scores")
    }
}

fn integer(n: usize) -> i64 {
    i64::try_from(n).expect("a size of attention")
}
