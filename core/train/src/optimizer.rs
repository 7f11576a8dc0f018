//! The optimizers over one flat buffer of parameters, and their state.
//!
//! An [`Optimizer`] is a list of units: parts of the buffer, each with moments of its own. Plain
//! AdamW takes neighbors together; the others go matrix by matrix, because 8-bit blocks, factored
//! moments and projections belong to one matrix. It refuses to know what the parameters are: it
//! sees names, shapes and ranges. Start reading at [`Optimizer::step`].
//!
//! **Invariant:** the state and the number of the step decide every bit of a step
//! (`tests/optimizers.rs`, `tests/sim`).

mod file;
mod galore;
mod moments;
mod names;
mod pieces;
mod share;

pub use file::StateError;
pub use galore::{GaloreSettings, ProjectionType};
pub use names::is_decayed;
pub use share::Rounding;

use forgelm_kernels_api::{Buffer, MemoryRefused, Ops, Slice, SliceMut};
use forgelm_model::NamedSlice;
use galore::Projection;
use moments::{Moments, Rule};
use std::ops::Range;
use std::sync::Mutex;

/// Which rule turns gradients into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AdamW, moments in f32.
    AdamW,
    /// AdamW, moments in 8 bits; those of parameters with fewer than 4096 elements in f32.
    AdamW8bit,
    /// Adafactor without a first moment; matrices have factored second moments.
    Adafactor,
}

/// What does not change from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// The rule.
    pub kind: Kind,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub eps: f32,
    /// Decoupled weight decay; biases and norms are exempt ([`is_decayed`]).
    pub weight_decay: f32,
    /// Projection of matrices to a low rank.
    pub galore: Option<GaloreSettings>,
}

impl OptimizerSettings {
    /// A rule with the usual constants.
    #[must_use]
    pub fn new(kind: Kind, weight_decay: f32) -> Self {
        Self { kind, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, galore: None }
    }

    /// Plain AdamW with the usual constants.
    #[must_use]
    pub fn adamw(weight_decay: f32) -> Self {
        Self::new(Kind::AdamW, weight_decay)
    }

    /// The name in checkpoints and in configs, `_layerwise` aside: the order of updates is no part
    /// of the state.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match (self.kind, self.galore.is_some()) {
            (Kind::AdamW, false) => "adamw",
            (Kind::AdamW8bit, false) => "adamw_8bit",
            (Kind::Adafactor, false) => "adafactor",
            (Kind::AdamW, true) => "galore_adamw",
            (Kind::AdamW8bit, true) => "galore_adamw_8bit",
            (Kind::Adafactor, true) => "galore_adafactor",
        }
    }

    /// The bound on the norm of the gradient: none when matrices are updated one by one, before
    /// the norm of the whole gradient is known.
    #[must_use]
    pub fn max_grad_norm(&self, configured: f64) -> f64 {
        if self.is_layerwise() { f64::INFINITY } else { configured }
    }

    /// Whether matrices are updated one by one during the backward pass.
    #[must_use]
    pub fn is_layerwise(&self) -> bool {
        self.galore.as_ref().is_some_and(|galore| galore.layerwise)
    }

    fn rule(&self, decays: bool) -> Rule {
        let weight_decay = if decays { self.weight_decay } else { 0.0 };
        Rule { beta1: self.beta1, beta2: self.beta2, eps: self.eps, weight_decay }
    }
}

/// Why an optimizer cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptimizerError {
    /// A pattern cannot be read.
    #[error("`training.galore_target_modules`: `{pattern}` is not a pattern: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No trained matrix is projected.
    #[error(
        "`training.galore_target_modules`: {patterns:?} match no trained matrix (the first is \
         `{first}`)\n  hint: a pattern must match the whole path of a module"
    )]
    NoTarget {
        /// The patterns.
        patterns: Vec<String>,
        /// Path of the first trained module.
        first: String,
    },
}

/// A rule with its state.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    settings: OptimizerSettings,
    units: Vec<Unit>,
}

/// A part of the buffer with its moments.
#[derive(Clone, Debug, PartialEq)]
struct Unit {
    /// Of the parameter; of the first where neighbors are taken together.
    name: String,
    shape: [usize; 2],
    range: Range<usize>,
    decays: bool,
    projection: Option<Projection>,
    moments: Moments,
}

/// What an optimizer takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptimizerMemory {
    /// Moments and projections.
    pub state_bytes: usize,
    /// What a step takes besides, at most.
    pub scratch_bytes: usize,
    /// Whether matrices are updated one by one during the backward pass.
    pub is_layerwise: bool,
    /// Whether a gradient exists for one part of the model at a time only.
    pub gradient_is_by_part: bool,
    /// Processes each of which has only a part of what trains; 0 where it is whole.
    pub n_owners: usize,
}

/// The parts of the buffer that are updated alone, without their moments.
fn units(settings: &OptimizerSettings, slices: &[NamedSlice]) -> Result<Vec<Unit>, OptimizerError> {
    let targets = match &settings.galore {
        None => vec![false; slices.len()],
        Some(galore) => galore.targets(slices)?,
    };
    let mut units: Vec<Unit> = Vec::new();
    for (slice, is_target) in slices.iter().zip(targets) {
        let decays = is_decayed(&slice.name);
        let merges = settings.kind == Kind::AdamW && settings.galore.is_none();
        match units.last_mut() {
            Some(last)
                if merges && last.decays == decays && last.range.end == slice.range.start =>
            {
                last.range.end = slice.range.end;
                last.shape = [1, last.range.len()];
            }
            _ => units.push(Unit {
                name: slice.name.clone(),
                shape: slice.matrix_shape(),
                range: slice.range.clone(),
                decays,
                projection: settings
                    .galore
                    .as_ref()
                    .filter(|_| is_target)
                    .map(|galore| Projection::new(galore, slice.matrix_shape())),
                moments: Moments::Whole(Buffer::default()),
            }),
        }
    }
    Ok(units)
}

/// Memory that a step takes besides, at most, on `n_threads` threads: gradients in low rank and
/// what singular vectors are computed in.
fn scratch_bytes(units: &[Unit], n_threads: usize) -> usize {
    let projections = || units.iter().filter_map(|unit| unit.projection.as_ref());
    let low = projections().map(Projection::low_bytes).max().unwrap_or(0);
    let svd = projections().map(Projection::refresh_bytes).max().unwrap_or(0);
    low.max(svd * n_threads)
}

impl Optimizer {
    /// The state before the first step.
    ///
    /// # Errors
    /// With GaLore: if a pattern cannot be read, or no matrix is projected.
    pub fn new(settings: OptimizerSettings, slices: &[NamedSlice]) -> Result<Self, OptimizerError> {
        let mut units = units(&settings, slices)?;
        for unit in &mut units {
            unit.moments = Moments::zero(settings.kind, unit.moments_shape());
        }
        Ok(Self { settings, units })
    }

    /// What the state would take, without making it.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn planned_memory(
        settings: &OptimizerSettings,
        slices: &[NamedSlice],
        n_threads: usize,
    ) -> Result<OptimizerMemory, OptimizerError> {
        let units = units(settings, slices)?;
        let state = |unit: &Unit| {
            let moments = Moments::planned_bytes(settings.kind, unit.moments_shape());
            moments + unit.projection.as_ref().map_or(0, Projection::n_bytes)
        };
        Ok(OptimizerMemory {
            state_bytes: units.iter().map(state).sum(),
            scratch_bytes: scratch_bytes(&units, n_threads),
            is_layerwise: settings.is_layerwise(),
            gradient_is_by_part: settings.is_layerwise(),
            n_owners: 0,
        })
    }

    /// What it was made with.
    #[must_use]
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// Memory of the state, in bytes: moments and projections.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.units.iter().map(Unit::n_bytes).sum()
    }

    /// Moves the state to where a kernel library works.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn place(&mut self, ops: &dyn Ops) -> Result<(), MemoryRefused> {
        for unit in &mut self.units {
            unit.moments.place(ops)?;
            if let Some(projection) = &mut unit.projection {
                projection.place(ops)?;
            }
        }
        Ok(())
    }

    /// One step over everything.
    ///
    /// Shapes: `params`, `grad` [P] as the slices cover it.
    ///
    /// Numerics: the same bits on any number of threads; projections are computed one matrix a
    /// thread, each in one order.
    pub fn step<'p, 'g>(
        &mut self,
        ops: &dyn Ops,
        params: impl Into<SliceMut<'p>>,
        grad: impl Into<Slice<'g>>,
        at: At,
    ) {
        let grad = grad.into();
        self.step_by(ops, (params.into(), &Range::clone), |range| grad.part(range), at);
    }

    /// [`Optimizer::step`] where only some parameters are, or the gradient does not lie as they do.
    ///
    /// Shapes: `params` [parameters that are here], with the place of a range of all; `grad` gives the
    /// gradient of such a range.
    pub fn step_by<'g>(
        &mut self,
        ops: &dyn Ops,
        params: Placed<'_>,
        grad: impl Fn(Range<usize>) -> Slice<'g> + Sync,
        at: At,
    ) {
        step(self.units.iter_mut().collect(), ops, &self.settings, params, grad, at);
    }

    /// One step over the parameters whose slices these are, as soon as their gradients are final:
    /// for layer-wise training, where the gradient of the whole never exists. Every slice in its
    /// turn is the same step as all at once, to the bit.
    ///
    /// Shapes: `params` [P]; `grad` gives the gradient of a slice.
    ///
    /// # Panics
    /// If a slice is no parameter that is updated alone.
    pub fn step_slices<'g>(
        &mut self,
        ops: &dyn Ops,
        slices: &[Range<usize>],
        params: SliceMut<'_>,
        grad: impl Fn(Range<usize>) -> Slice<'g> + Sync,
        at: At,
    ) {
        let is_among = |unit: &&mut Unit| slices.contains(&unit.range);
        let units: Vec<&mut Unit> = self.units.iter_mut().filter(is_among).collect();
        assert_eq!(units.len(), slices.len(), "a slice is no parameter that is updated alone");
        step(units, ops, &self.settings, (params, &Range::clone), grad, at);
    }
}

/// Parameters, and where those of a range of all of them lie among these.
pub type Placed<'a> = (SliceMut<'a>, &'a dyn Fn(&Range<usize>) -> Range<usize>);

/// One step over some units.
fn step<'g>(
    mut units: Vec<&mut Unit>,
    ops: &dyn Ops,
    settings: &OptimizerSettings,
    (mut params, place): Placed<'_>,
    grad: impl Fn(Range<usize>) -> Slice<'g> + Sync,
    at: At,
) {
    refresh_projections(&mut units, ops, &grad, at.step);
    for unit in units {
        let range = unit.range.clone();
        unit.step(ops, settings, params.reborrow().part(place(&range)), grad(range), at);
    }
}

fn refresh_projections<'g>(
    units: &mut [&mut Unit],
    ops: &dyn Ops,
    grad: &(impl Fn(Range<usize>) -> Slice<'g> + Sync),
    step: u64,
) {
    let due: Vec<&mut Unit> =
        units.iter_mut().map(|unit| &mut **unit).filter(|unit| unit.is_due(step)).collect();
    if due.is_empty() {
        return;
    }
    let n_threads = ops.n_threads().min(due.len());
    let due = Mutex::new(due.into_iter());
    let next = || due.lock().expect("no thread panics while it takes one").next();
    let work = || {
        while let Some(unit) = next() {
            unit.refresh(ops, grad(unit.range.clone()));
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            // What ended it is for who called this.
            thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        }
    });
}

impl Unit {
    fn moments_shape(&self) -> [usize; 2] {
        self.projection.as_ref().map_or(self.shape, Projection::low_shape)
    }

    fn n_bytes(&self) -> usize {
        self.moments.n_bytes() + self.projection.as_ref().map_or(0, Projection::n_bytes)
    }

    fn is_due(&self, step: u64) -> bool {
        self.projection.as_ref().is_some_and(|projection| projection.is_due(step))
    }

    fn refresh(&mut self, ops: &dyn Ops, grad: Slice<'_>) {
        if let Some(projection) = &mut self.projection {
            projection.refresh(ops, &grad.to_host());
        }
    }

    fn step(
        &mut self,
        ops: &dyn Ops,
        settings: &OptimizerSettings,
        mut param: SliceMut<'_>,
        grad: Slice<'_>,
        at: At,
    ) {
        let Some(projection) = &self.projection else {
            return self.moments.step(ops, settings.rule(self.decays), param, grad, at);
        };
        let low = projection.project(ops, grad, at.grad_scale);
        let mut delta = galore::zeros(ops, low.len());
        let rule = Rule { weight_decay: 0.0, eps: galore::EPS, ..settings.rule(false) };
        self.moments.step(ops, rule, delta.all_mut(), low.all(), At { grad_scale: 1.0, ..at });
        let decay = at.learning_rate * f64::from(settings.rule(self.decays).weight_decay);
        // Adafactor decays what was there, AdamW what the step left, as galore-torch does.
        let decays_first = settings.kind == Kind::Adafactor;
        if decays_first {
            shrink(ops, param.reborrow(), decay);
        }
        projection.add_back(ops, param.reborrow(), delta.all());
        if !decays_first {
            shrink(ops, param, decay);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
fn shrink(ops: &dyn Ops, param: SliceMut<'_>, decay: f64) {
    if decay > 0.0 {
        ops.scale(param, (1.0 - decay) as f32);
    }
}

/// The gradient of a step, ready to be used: its norm, and the factor that brings the sum over
/// the step's terms to a clipped mean.
///
/// Paper: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
/// **Ours:** as `torch.nn.utils.clip_grad_norm_`, which divides by `norm + 1e-6`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledGradient {
    /// Norm of the mean gradient, before clipping.
    pub norm: f64,
    /// Factor on the summed gradient.
    pub scale: f64,
}

impl ScaledGradient {
    /// From a gradient summed over `n_terms` terms; `max_norm` bounds the norm of its mean.
    ///
    /// Shapes: `grad` [P] read.
    #[must_use]
    pub fn new(ops: &dyn Ops, grad: Slice<'_>, n_terms: u64, max_norm: f64) -> Self {
        Self::from_squares(ops.sum_of_squares(grad), n_terms, max_norm)
    }

    /// As [`ScaledGradient::new`], from the sum of the squares of the gradient.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "term counts stay far below 2^53")]
    pub fn from_squares(sum_of_squares: f64, n_terms: u64, max_norm: f64) -> Self {
        let mean = 1.0 / n_terms.max(1) as f64;
        let norm = sum_of_squares.sqrt() * mean;
        let clip = (max_norm / (norm + 1e-6)).min(1.0);
        Self { norm, scale: mean * clip }
    }
}

/// Which step it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// 1-based number of the step.
    pub step: u64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Factor on the summed gradient.
    pub grad_scale: f64,
}
