//! What the kernels read of trained numbers in another form, and the start at values of the base.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use forgelm_kernels_api::{
    Buffer, Compute, FrozenMatrix, GemmDims, GemmLayout, Ops, Slice, SliceMut, Write,
};

use super::{AdaptedModule, BaseTensor, Trainable};
use crate::adapter::LoraInit;
use crate::decoder::Decoder;
use crate::names::Role;
use crate::parts::Passage;
use crate::store::TensorStore;
use crate::weights::{WeightsError, read_values};

/// Elements of a weight that are looked at together.
const BLOCK: usize = 1 << 18;

/// State of the derived forms, and the factors of DoRA.
#[derive(Clone, Debug)]
pub(super) struct Derived {
    /// Whether there are any.
    exist: bool,
    is_current: bool,
    /// By module: see [`DoraFactors`]; empty where magnitudes do not train.
    dora: Vec<DoraFactors>,
}

/// What DoRA multiplies outputs with, and what its gradient needs.
///
/// Paper: Liu et al. 2024, arXiv:2402.09353, eq. 5; norms constant in backward: eq. 11.
#[derive(Clone, Debug, Default)]
pub(crate) struct DoraFactors {
    /// Magnitude over norm, for each output [n_out].
    pub(crate) factors: Buffer,
    /// `factors - 1`, formed in f64 [n_out].
    pub(crate) factors_less_one: Buffer,
    /// -1 for each output [n_out]: a difference is formed by the op that scales columns.
    pub(crate) minus_ones: Buffer,
    /// One over the norm of each row of `W + s B A` [n_out].
    pub(crate) inv_norms: Buffer,
}

impl Derived {
    pub(super) fn new(modules: &[AdaptedModule], base: &BTreeMap<Role, BaseTensor>) -> Self {
        let has_dora = modules.iter().any(|m| m.magnitude.is_some());
        let is_derived = |tensor: &BaseTensor| tensor.shape.len() > 1 || tensor.whole.is_some();
        let exist = has_dora || base.values().any(is_derived);
        Self { exist, is_current: false, dora: Vec::new() }
    }

    pub(super) fn outdate(&mut self) {
        self.is_current = false;
    }

    pub(super) fn update(&mut self) {
        self.is_current = true;
    }
}

/// What becomes of the decoder's own copy of a matrix that trains.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frozen {
    Keep,
    GiveBack,
}

impl Trainable {
    /// Memory of what is derived from the numbers, in bytes: packed weights, factors of DoRA.
    #[must_use]
    pub fn derived_bytes(&self) -> usize {
        let of_base = self.base.values().map(|tensor| {
            let packed = tensor.packed.as_ref().map_or(0, |packed| packed.n_bytes());
            packed + tensor.whole.as_ref().map_or(0, |whole| whole.n_bytes())
        });
        let of_dora = self.derived.dora.iter().map(|d| 4 * d.factors.n_bytes());
        of_base.chain(of_dora).sum()
    }

    /// Memory of the matrices of the base that train, as packed for products in a format.
    #[must_use]
    pub fn packed_bytes(&self, compute: Compute) -> usize {
        let n_bytes = match compute {
            Compute::F32 => 4,
            Compute::Bf16 => 2,
        };
        let matrices = self.base.values().filter(|tensor| tensor.shape.len() == 2);
        matrices.map(|tensor| tensor.range.len() * n_bytes).sum()
    }

    /// Whether the derived forms are those of the numbers.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.derived.is_current || !(self.derived.exist || self.is_in_parts())
    }

    /// The factors of a module whose magnitudes train.
    pub(crate) fn dora(&self, module: &AdaptedModule) -> Option<&DoraFactors> {
        module.magnitude.as_ref()?;
        let index = self.module_at[module.layer][module.linear.index()]?;
        self.derived.dora.get(index)
    }
}

impl Decoder {
    /// Starts `trainable` at the values of the base: weights, biases, magnitudes, and principal
    /// components, which the base lacks from then on.
    ///
    /// `store` is what the decoder was loaded from: weights come from it in full precision, not as
    /// rounded for products.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn begin(
        &mut self,
        trainable: &mut Trainable,
        store: &dyn TensorStore,
    ) -> Result<(), WeightsError> {
        self.start(trainable, store, Frozen::Keep)
    }

    /// As [`Decoder::begin`], and gives back the decoder's own copy of each matrix that trains. The
    /// decoder can then only run with `trainable`.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn begin_alone(
        &mut self,
        trainable: &mut Trainable,
        store: &dyn TensorStore,
    ) -> Result<(), WeightsError> {
        self.start(trainable, store, Frozen::GiveBack)
    }

    fn start(
        &mut self,
        trainable: &mut Trainable,
        store: &dyn TensorStore,
        frozen: Frozen,
    ) -> Result<(), WeightsError> {
        if trainable.lora().is_some_and(|c| c.init == LoraInit::PrincipalComponents) {
            self.take_principal_components(trainable, store)?;
        }
        let of_base: Vec<_> = trainable.base_tensors().collect();
        for (role, range) in of_base {
            let values = read_values(store, self.config(), role)?;
            trainable.put(&range, &values);
            if trainable.is_in_parts() {
                self.begin_in_parts(trainable, role, &values);
            } else if frozen == Frozen::GiveBack {
                self.release(role);
            }
        }
        if trainable.is_in_parts() {
            self.renewed(trainable);
            return Ok(());
        }
        let norms = self.norms(trainable);
        for (module, norms) in trainable.modules.clone().iter().zip(norms) {
            let Some(range) = module.magnitude.clone() else { continue };
            for (m, norm) in trainable.params_mut()[range].iter_mut().zip(norms) {
                *m = norm as f32;
            }
        }
        trainable.derived.outdate();
        self.refresh(trainable);
        Ok(())
    }

    /// Forms again what is derived from the trained numbers: packed weights and the factors of
    /// DoRA. To be called after every change of [`Trainable::params_mut`]; does nothing when
    /// nothing is derived or nothing changed. Numbers that lie elsewhere are moved to where the
    /// kernel library works. Of what lies in parts nothing more is done: that is
    /// [`Decoder::renew`]'s.
    ///
    /// Ends with a [`Failure`](forgelm_kernels_api::Failure) if there is no memory for them.
    pub fn refresh(&self, trainable: &mut Trainable) {
        if let Buffer::Host(values) = &mut trainable.params {
            let placed = self.ops().place(std::mem::take(values));
            trainable.params = placed.unwrap_or_else(|refused| refused.end("trained numbers"));
        }
        if trainable.is_current() || trainable.is_in_parts() {
            return;
        }
        for tensor in trainable.base.values_mut() {
            self.form(tensor, &trainable.params);
        }
        if trainable.modules.iter().any(|m| m.magnitude.is_some()) {
            let norms = self.norms(trainable);
            let modules = trainable.modules.iter().zip(norms);
            let factors = modules.map(|(m, norms)| self.dora_factors(trainable, m, &norms));
            trainable.derived.dora = factors.collect();
        }
        trainable.derived.is_current = true;
    }

    /// Changes some of the trained weights and forms again what is derived from these alone; the
    /// others stay as current as they were.
    ///
    /// Shapes: `change` gets every trainable number and may change those of `slices`.
    ///
    /// # Panics
    /// If a slice is not a weight of the base.
    pub fn change(
        &self,
        trainable: &mut Trainable,
        slices: &[Range<usize>],
        change: impl FnOnce(SliceMut<'_>),
    ) {
        change(trainable.params.all_mut());
        let mut n_formed = 0;
        for tensor in trainable.base.values_mut().filter(|t| slices.contains(&t.range)) {
            self.form(tensor, &trainable.params);
            n_formed += 1;
        }
        assert_eq!(n_formed, slices.len(), "only weights of the base change one by one");
    }

    /// Forms what is derived from one weight.
    fn form(&self, tensor: &mut BaseTensor, params: &Buffer) {
        let (ops, values) = (self.ops(), params.part(tensor.range.clone()));
        if let Some(whole) = &mut tensor.whole {
            *whole = Arc::new(self.whole_vector(values, tensor.is_offset));
        }
        if let [_, n_cols] = *tensor.shape {
            // The old one first: two packed copies of a weight need not fit.
            tensor.packed = None;
            tensor.packed = Some(Arc::from(ops.pack(values, n_cols, self.compute())));
        }
    }

    /// A vector as the kernels read it.
    pub(super) fn whole_vector(&self, values: Slice<'_>, is_offset: bool) -> Buffer {
        let ops = self.ops();
        let formed = ops.place(vec![f32::from(u8::from(is_offset)); values.len()]);
        let mut formed = formed.unwrap_or_else(|refused| refused.end("a trained vector"));
        match is_offset {
            true => ops.add(formed.all_mut(), values),
            false => ops.copy(formed.all_mut(), values),
        }
        formed
    }

    /// Norms for each module whose magnitudes train, nothing for others: layer by layer, since that is
    /// how weights come together of which processes have parts.
    fn norms(&self, trainable: &Trainable) -> Vec<Vec<f64>> {
        let mut norms = Vec::new();
        if trainable.modules.iter().all(|m| m.magnitude.is_none()) {
            return vec![Vec::new(); trainable.modules.len()];
        }
        self.weights().begin(Passage::Layers);
        for layer in 0..trainable.n_layers() {
            let weights = self.weights().layer(layer);
            norms.extend(trainable.modules.iter().filter(|m| m.layer == layer).map(|module| {
                match module.magnitude {
                    Some(_) => self.row_norms(trainable, module, weights.linear(module.linear)),
                    None => Vec::new(),
                }
            }));
        }
        norms
    }

    fn dora_factors(
        &self,
        trainable: &Trainable,
        module: &AdaptedModule,
        norms: &[f64],
    ) -> DoraFactors {
        let Some(range) = module.magnitude.clone() else { return DoraFactors::default() };
        let magnitudes = trainable.params.part(range).to_host();
        let ratio = || magnitudes.iter().zip(norms).map(|(&m, norm)| f64::from(m) / norm);
        let place = |values| {
            self.ops().place(values).unwrap_or_else(|refused| refused.end("factors of DoRA"))
        };
        DoraFactors {
            factors: place(ratio().map(|f| f as f32).collect()),
            factors_less_one: place(ratio().map(|f| (f - 1.0) as f32).collect()),
            minus_ones: place(vec![-1.0; module.n_out]),
            inv_norms: place(norms.iter().map(|norm| (1.0 / norm) as f32).collect()),
        }
    }

    /// Norm of each row of `W + s B A`, with W as the kernels read it. Rows are formed in f32, a
    /// block at a time, and their squares added in f64: nothing cancels, as it would in the sum
    /// over the squares of the parts.
    ///
    /// Shapes: result [n_out].
    fn row_norms(
        &self,
        trainable: &Trainable,
        module: &AdaptedModule,
        weight: &dyn FrozenMatrix,
    ) -> Vec<f64> {
        let rows_max = (BLOCK / module.n_in).clamp(1, module.n_out);
        let mut block = vec![0.0; rows_max * module.n_in];
        let mut norms = Vec::with_capacity(module.n_out);
        for first in (0..module.n_out).step_by(rows_max) {
            let n = rows_max.min(module.n_out - first);
            let rows = &mut block[..n * module.n_in];
            self.adapted_rows(trainable, module, weight, (first, rows));
            norms.extend(
                rows.chunks_exact(module.n_in).map(|row| {
                    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
                }),
            );
        }
        norms
    }

    /// Rows `first..` of `W + s B A`. Shapes: `rows` [n, n_in] written.
    fn adapted_rows(
        &self,
        trainable: &Trainable,
        module: &AdaptedModule,
        weight: &dyn FrozenMatrix,
        (first, rows): (usize, &mut [f32]),
    ) {
        weight.read_rows(first, rows);
        let n = rows.len() / module.n_in;
        let b = trainable.b(module).part(first * module.r..(first + n) * module.r);
        let dims = GemmDims { m: n, n: module.n_in, k: module.r };
        let (ops, a): (&dyn Ops, _) = (self.ops().as_ref(), trainable.a(module));
        ops.gemm(rows.into(), b, a, GemmLayout::Nn, dims, module.scale, Write::Add);
    }
}
