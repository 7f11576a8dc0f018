//! AdamW over one flat buffer of parameters.

use forgelm_kernels_api::{AdamW, Ops};

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl AdamWSettings {
    /// The usual constants with this weight decay.
    #[must_use]
    pub fn with_weight_decay(weight_decay: f32) -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay }
    }
}

/// The moments. Shapes: both as the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub m: Vec<f32>,
    /// Running mean of its square.
    pub v: Vec<f32>,
}

impl Moments {
    /// Moments of `n_params` parameters before the first step.
    #[must_use]
    pub fn zero(n_params: usize) -> Self {
        Self { m: vec![0.0; n_params], v: vec![0.0; n_params] }
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        (self.m.len() + self.v.len()) * size_of::<f32>()
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
    #[expect(clippy::cast_precision_loss, reason = "term counts stay far below 2^53")]
    pub fn new(ops: &dyn Ops, grad: &[f32], n_terms: u64, max_norm: f64) -> Self {
        let mean = 1.0 / n_terms.max(1) as f64;
        let norm = ops.sum_of_squares(grad).sqrt() * mean;
        let clip = (max_norm / (norm + 1e-6)).min(1.0);
        Self { norm, scale: mean * clip }
    }
}

/// One step. Shapes: `params`, `grad` [P] and the moments.
#[expect(clippy::cast_possible_truncation, reason = "kernels work in f32")]
pub fn step(
    ops: &dyn Ops,
    settings: &AdamWSettings,
    params: &mut [f32],
    moments: &mut Moments,
    grad: &[f32],
    at: At,
) {
    let constants = AdamW {
        lr: at.learning_rate as f32,
        beta1: settings.beta1,
        beta2: settings.beta2,
        eps: settings.eps,
        weight_decay: settings.weight_decay,
        grad_scale: at.grad_scale as f32,
        step: at.step,
    };
    ops.adamw_step(params, &mut moments.m, &mut moments.v, grad, &constants);
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
