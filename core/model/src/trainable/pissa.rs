//! The start at principal components, and the way back to the original weights.
//!
//! Paper: Meng et al. 2024, arXiv:2404.02948, eq. 2 to 4. With `W = U S V^T` and scale s:
//!
//! ```text
//! A = diag(sqrt(S_r / s)) V_r^T     B = U_r diag(sqrt(S_r / s))     W_res = W - s B A
//! ```
//!
//! so that the model starts unchanged. `W_res` stands in the base's place while it trains. What is
//! saved for others works on the original weights ([`Trainable::on_original_weights`]):
//! `s (B A - B_0 A_0)` is a low-rank change of twice the rank.
//!
//! **Ours:** the components are those of the stored weight in full precision; where the base is
//! held in a narrower format, it is the residual that is rounded to it (the paper's section 4).

use forgelm_kernels_api::Dense;
use forgelm_tensor::linalg::svd_top;

use super::{AdaptedModule, Selection, Trainable};
use crate::adapter::{AdapterError, LoraConfig, LoraInit};
use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::names::Role;
use crate::store::TensorStore;
use crate::weights::{WeightsError, read_values};

impl Decoder {
    /// Moves the principal components of each adapted weight from the base to the adapter. The
    /// same weights give the same bits on every machine and number of threads.
    pub(super) fn take_principal_components(
        &mut self,
        trainable: &mut Trainable,
        store: &dyn TensorStore,
    ) -> Result<(), WeightsError> {
        for module in trainable.modules.clone() {
            let role = Role::Linear(module.layer, module.linear);
            let mut weight = read_values(store, self.config(), role)?;
            principal_components(trainable, &module, &weight);
            subtract_product(trainable, &module, &mut weight);
            self.replace_linear(
                (module.layer, module.linear),
                &Dense { n_cols: module.n_in, values: &weight },
            );
        }
        trainable.initial = trainable.params().into_owned();
        Ok(())
    }
}

/// A and B of a module. Shapes: `weight` [n_out, n_in] read.
fn principal_components(trainable: &mut Trainable, module: &AdaptedModule, weight: &[f32]) {
    let &AdaptedModule { r, n_out, n_in, scale, .. } = module;
    let svd = svd_top(n_out, n_in, weight, r);
    // A rank above the weight's own leaves rows of A and columns of B at zero.
    let k = svd.s.len();
    let root = |j: usize| (f64::from(svd.s[j]) / f64::from(scale)).sqrt();
    let a = &mut trainable.params_mut()[module.a.clone()];
    a.fill(0.0);
    for (j, (a, vt)) in a.chunks_exact_mut(n_in).zip(svd.vt.chunks_exact(n_in)).enumerate() {
        for (a, &v) in a.iter_mut().zip(vt) {
            *a = (root(j) * f64::from(v)) as f32;
        }
    }
    let b = &mut trainable.params_mut()[module.b.clone()];
    b.fill(0.0);
    for (b, u) in b.chunks_exact_mut(r).zip(svd.u.chunks_exact(k)) {
        for (j, (b, &u)) in b.iter_mut().zip(u).enumerate() {
            *b = (root(j) * f64::from(u)) as f32;
        }
    }
}

/// `weight -= s B A`, with A and B as they are in f32; sums in f64.
///
/// Shapes: `weight` [n_out, n_in] changed.
fn subtract_product(trainable: &Trainable, module: &AdaptedModule, weight: &mut [f32]) {
    let (a, b) = (trainable.a(module).to_host(), trainable.b(module).to_host());
    let scale = f64::from(module.scale);
    let mut sums = vec![0.0_f64; module.n_in];
    for (row, b) in weight.chunks_exact_mut(module.n_in).zip(b.chunks_exact(module.r)) {
        sums.fill(0.0);
        for (&b, a) in b.iter().zip(a.chunks_exact(module.n_in)) {
            for (sum, &a) in sums.iter_mut().zip(a) {
                *sum += f64::from(b) * f64::from(a);
            }
        }
        for (w, sum) in row.iter_mut().zip(&sums) {
            *w = (f64::from(*w) - scale * sum) as f32;
        }
    }
}

impl Trainable {
    /// The adapter as it works on the original weights. Of one that began at principal components
    /// that is a plain one of twice the rank; any other is returned as it is.
    ///
    /// # Errors
    /// If twice the rank is out of range.
    pub fn on_original_weights(&self, model: &ModelConfig) -> Result<Self, AdapterError> {
        let Selection::Adapter(config) = &self.selection else { return Ok(self.clone()) };
        if self.initial.is_empty() {
            return Ok(self.clone());
        }
        let mut converted = Self::zeroed(Selection::Adapter(doubled(config)), model)?;
        let modules = converted.modules.clone();
        let of_base = self.base.values().zip(converted.base.values());
        let ranges: Vec<_> = of_base.map(|(a, b)| (a.range.clone(), b.range.clone())).collect();
        let (params, numbers) = (self.params(), converted.params_mut());
        for (from, to) in self.modules.iter().zip(&modules) {
            let a = [&params[from.a.clone()], &self.initial[from.a.clone()]].concat();
            numbers[to.a.clone()].copy_from_slice(&a);
            let now = params[from.b.clone()].chunks_exact(from.r);
            let before = self.initial[from.b.clone()].chunks_exact(from.r);
            let rows = numbers[to.b.clone()].chunks_exact_mut(to.r);
            for ((row, now), before) in rows.zip(now).zip(before) {
                let (left, right) = row.split_at_mut(from.r);
                left.copy_from_slice(now);
                right.iter_mut().zip(before).for_each(|(b, &before)| *b = -before);
            }
            if let (Some(from), Some(to)) = (from.magnitude.clone(), to.magnitude.clone()) {
                numbers[to].copy_from_slice(&params[from]);
            }
        }
        for (from, to) in ranges {
            numbers[to].copy_from_slice(&params[from]);
        }
        Ok(converted)
    }
}

/// Twice every rank, with the same scales: alpha grows as the divisor does.
fn doubled(config: &LoraConfig) -> LoraConfig {
    let growth = if config.rslora { std::f64::consts::SQRT_2 } else { 2.0 };
    LoraConfig {
        r: 2 * config.r,
        alpha: growth * config.alpha,
        init: LoraInit::Noise,
        rank_pattern: config.rank_pattern.iter().map(|(k, r)| (k.clone(), 2 * r)).collect(),
        alpha_pattern: config.alpha_pattern.iter().map(|(k, a)| (k.clone(), growth * a)).collect(),
        ..config.clone()
    }
}
