//! What the optimizer ops are told: constants of a step, and moments that are not plain f32.

use crate::memory::SliceMut;

/// The constants of one AdamW step.
///
/// Paper: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2 (decoupled decay, as
/// `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Factor on the gradient before it is used: `clip / n_terms`.
    pub grad_scale: f32,
    /// 1-based number of this step, for the bias correction.
    pub step: u64,
}

/// Numbers in 8 bits: element i is `map[codes[i]] * absmax[i / 256]`, where `map` is one of
/// [`crate::dynamic_map`]. Before the first step everything is zero.
///
/// Paper: Dettmers et al. 2021, arXiv:2110.02861, section 2.
///
/// Shapes: `codes` [P], `absmax` [ceil(P / 256)].
#[derive(Debug)]
pub struct Blocks8bit<'a> {
    /// Places in the map.
    pub codes: SliceMut<'a, u8>,
    /// Largest size in each block.
    pub absmax: SliceMut<'a>,
}

impl<'a> Blocks8bit<'a> {
    /// Elements that share an `absmax`.
    pub const BLOCK: usize = 256;

    /// Codes and factors, for a library of the host.
    ///
    /// # Panics
    /// If they lie on a device.
    #[must_use]
    pub fn on_host(self) -> (&'a mut [u8], &'a mut [f32]) {
        (self.codes.on_host(), self.absmax.on_host())
    }

    /// # Panics
    /// If the shapes are not those of `n` elements.
    pub fn check(&self, name: &str, n: usize) {
        assert_eq!(self.codes.len(), n, "{name} and param differ in length");
        assert_eq!(self.absmax.len(), n.div_ceil(Self::BLOCK), "{name} has another block count");
    }
}

/// The constants of one Adafactor step, without a first moment and with a learning rate from
/// outside (`scale_parameter` and `relative_step` off).
///
/// Paper: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5. `eps` is added to the
/// squared gradient, the decay is `1 - step^-0.8`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Learning rate of this step.
    pub lr: f32,
    /// Added to each squared gradient.
    pub eps: f32,
    /// The root mean square of an update is brought down to this.
    pub clip_threshold: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Factor on the gradient before it is used: `clip / n_terms`.
    pub grad_scale: f32,
    /// 1-based number of this step.
    pub step: u64,
}

impl Adafactor {
    /// Decay of the second moment in this step.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "steps stay far below 2^53")]
    pub fn beta2(&self) -> f64 {
        1.0 - (self.step as f64).powf(-0.8)
    }
}

/// Second moments of Adafactor.
#[derive(Debug)]
pub enum AdafactorMoments<'a> {
    /// Of a matrix: means of the squared gradient over each row and each column.
    /// Shapes: `rows` [N], `columns` [K] of a parameter [N, K].
    Factored {
        /// One a row.
        rows: SliceMut<'a>,
        /// One a column.
        columns: SliceMut<'a>,
    },
    /// Of a vector, as long as it.
    Whole(SliceMut<'a>),
}
