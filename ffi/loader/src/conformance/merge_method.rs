//! A merge of equals is what they are, and does not depend on how a tensor is cut.

use super::{Finding, Numbers, Tried};
use forgelm_plugin::{MergeMethods, Plugin};
use forgelm_sdk::merge_method::{MergeMethod, Needs, Pass, Piece, Scope, Tensor};

pub(super) const LEN: usize = 96;
const NAME: &str = "model.layers.0.mlp.up_proj.weight";

/// A tensor of a base and of some models.
pub(super) struct Models {
    base: Vec<f32>,
    inputs: Vec<Vec<f32>>,
}

impl Models {
    /// A base and `n` models that differ.
    pub(super) fn of(numbers: &mut Numbers, n: usize) -> Self {
        let base = numbers.take(LEN);
        Self { inputs: (0..n).map(|_| numbers.take(LEN)).collect(), base }
    }

    /// The merged tensor, cut into pieces of `piece` elements.
    pub(super) fn merged(
        &self,
        method: &dyn MergeMethod,
        piece: usize,
    ) -> Result<Vec<f32>, String> {
        let mut facts: Vec<f64> = Vec::new();
        let mut result = vec![0.0; LEN];
        for (pass, Pass { n_sums, n_facts }) in method.passes().iter().copied().enumerate() {
            let mut sums = vec![0.0; n_sums];
            for start in (0..LEN).step_by(piece) {
                let mut own = vec![0.0; n_sums];
                self.with_piece(method, &facts, start, piece, |of| {
                    method.measure(pass, of, &mut own)
                })?;
                sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            }
            let mut found = vec![0.0; n_facts];
            let tensor = Tensor { name: NAME, len: LEN, facts: &facts };
            let concluded = method.conclude(pass, &tensor, &sums, &mut found);
            concluded.map_err(|failed| failed.message)?;
            facts.extend(found);
        }
        for start in (0..LEN).step_by(piece) {
            let mut out = vec![f32::NAN; piece.min(LEN - start)];
            self.with_piece(method, &facts, start, piece, |of| method.merge(of, &mut out))?;
            result[start..start + out.len()].copy_from_slice(&out);
        }
        Ok(result)
    }

    fn with_piece(
        &self,
        method: &dyn MergeMethod,
        facts: &[f64],
        start: usize,
        len: usize,
        body: impl FnOnce(&Piece<'_>) -> Result<(), forgelm_sdk::Failed>,
    ) -> Result<(), String> {
        let range = start..(start + len).min(LEN);
        let inputs: Vec<&[f32]> = self.inputs.iter().map(|input| &input[range.clone()]).collect();
        let tensor = Tensor { name: NAME, len: LEN, facts };
        let base = method.reads_base().then_some(&self.base[range]);
        body(&Piece { tensor, start, base, inputs: &inputs }).map_err(|failed| failed.message)
    }
}

/// How many models a method is tried with.
pub(super) fn n_inputs(needs: &Needs) -> usize {
    needs.n_inputs_min.max(2).min(needs.n_inputs_max)
}

pub(super) fn check(plugin: &Plugin<MergeMethods>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    let n = n_inputs(&plugin.needs);
    let weights = vec![0.5; n];
    let Some(method) = tried.built((plugin.build)(&[], &weights)) else { return };
    let mut numbers = Numbers(2);
    let base = numbers.take(LEN);
    let equals = Models { inputs: vec![base.clone(); n], base: base.clone() };
    let result = equals.merged(&*method, LEN).and_then(|merged| close(&merged, &base));
    tried.property("makes of a model and itself that model", result);
    let models = Models { inputs: (0..n).map(|_| numbers.take(LEN)).collect(), base };
    let whole = match models.merged(&*method, LEN) {
        Ok(whole) => whole,
        Err(failed) => return tried.property("merges models that differ", Err(failed)),
    };
    let odd = whole.iter().position(|x| !x.is_finite());
    let result = odd.map_or(Ok(()), |i| Err(format!("element {i} is {}", whole[i])));
    tried.property("merges models that differ", result);
    let again = models.merged(&*method, LEN).and_then(|merged| equal(&merged, &whole));
    tried.property("gives the same bits again", again);
    if plugin.needs.scope == Scope::Elements {
        // Sums are added in the order of the pieces: the last bits of a fact may differ.
        let result = models.merged(&*method, 7).and_then(|merged| close(&merged, &whole));
        tried.property("gives the same numbers in pieces", result);
    }
}

pub(super) fn equal(found: &[f32], expected: &[f32]) -> Result<(), String> {
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} is {}; expected {}", found[i], expected[i])),
    }
}

/// To a few units in the last place.
fn close(found: &[f32], expected: &[f32]) -> Result<(), String> {
    let differs = |(a, b): (&f32, &f32)| {
        let distance = (a - b).abs();
        distance.is_nan() || distance > 1e-6 * b.abs().max(1e-2)
    };
    match found.iter().zip(expected).position(differs) {
        None => Ok(()),
        Some(i) => Err(format!("element {i} is {}; expected {}", found[i], expected[i])),
    }
}
