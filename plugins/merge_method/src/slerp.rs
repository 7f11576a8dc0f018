//! Spherical interpolation between two models: along the arc, not the chord, so that the norm does
//! not shrink in the middle.
//!
//! Paper: Shoemake 1985, "Animating rotation with quaternion curves", sec. 3.3. Each tensor is one
//! vector. With `t = w_2 / (w_1 + w_2)`, `d` the cosine between the two and `o = arccos d`:
//! `out = (sin((1 - t) o) / sin o) v_1 + (sin(t o) / sin o) v_2`.
//!
//! Ours: closer than 1e-6 to parallel or opposite it is the straight line, `(1 - t) v_1 + t v_2`.
//! mergekit takes the straight line above a cosine of 0.9995 already; there the two differ by at
//! most 1.2e-4 of a value. Nothing is added to the norms that divide the dot product: small changes
//! would look as if they stood at right angles.
//!
//! Options: `over`: `weights` interpolates the weights themselves, as mergekit does; whole weights
//! of two tunings of one base are nearly parallel, so that this is nearly the straight line.
//! `deltas` interpolates what the two changed of the base.
//!
//! Numerics: dot products and coefficients in f64; each value is rounded to f32 once.

use forgelm_sdk::device::{DeviceKernels, DevicePart};
use forgelm_sdk::merge_method::{
    Descriptor, DevicePiece, Failed, MergeMethod, MergeOnDevice, Needs, Pass, Piece, Scope, Tensor,
};
use forgelm_sdk::options::Reader;
use forgelm_sdk::{OptionValue, OptionsError};

use crate::shares::shares;

/// The entry in the kind's list.
pub const SLERP: Descriptor = Descriptor {
    name: "slerp",
    summary: "spherical interpolation of two models",
    source: "Shoemake 1985, sec. 3.3",
    needs: Needs { scope: Scope::Elements, n_inputs_min: 2, n_inputs_max: 2 },
    build,
};

fn build(
    options: &[(&str, OptionValue)],
    weights: &[f64],
) -> Result<Box<dyn MergeMethod>, OptionsError> {
    let mut options = Reader::new(SLERP.name, options);
    let is_over_deltas = options.word("over", &["weights", "deltas"])? == 1;
    options.finish()?;
    // A negative sum says nothing about the way between the two.
    let sum: f64 = weights.iter().sum();
    let t = if sum < 0.0 { 0.5 } else { shares(weights)?[1] };
    Ok(Box::new(Slerp { t, is_over_deltas }))
}

struct Slerp {
    t: f64,
    is_over_deltas: bool,
}

/// The dot product and the two squared norms; the two coefficients.
const PASSES: [Pass; 1] = [Pass { n_sums: 3, n_facts: 2 }];

/// Angle below which the arc is its chord.
const PARALLEL: f64 = 1e-6;

impl Slerp {
    /// Coefficients of the two models.
    fn coefficients(&self, cosine: f64) -> [f64; 2] {
        let t = self.t;
        let angle = cosine.clamp(-1.0, 1.0).acos();
        if angle < PARALLEL || (angle - std::f64::consts::PI).abs() < PARALLEL {
            return [1.0 - t, t];
        }
        [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
    }

    /// What is interpolated lies this far from zero: the base, or nothing.
    fn origin<'a>(&self, piece: &Piece<'a>) -> Option<&'a [f32]> {
        self.is_over_deltas.then(|| piece.base.expect("the host reads the base"))
    }
}

/// Sums that run side by side, so that they need not wait for each other.
const LANES: usize = 8;

impl MergeMethod for Slerp {
    fn reads_base(&self) -> bool {
        self.is_over_deltas
    }

    fn passes(&self) -> &[Pass] {
        &PASSES
    }

    fn measure(&self, _pass: usize, piece: &Piece<'_>, sums: &mut [f64]) -> Result<(), Failed> {
        let (first, second) = (piece.inputs[0], piece.inputs[1]);
        let mut lanes = [[0.0_f64; LANES]; 3];
        let mut add = |lane: usize, x: f64, y: f64| {
            lanes[0][lane] += x * y;
            lanes[1][lane] += x * x;
            lanes[2][lane] += y * y;
        };
        match self.origin(piece) {
            None => {
                for (x, y) in first.chunks(LANES).zip(second.chunks(LANES)) {
                    let pairs = x.iter().zip(y).enumerate();
                    pairs.for_each(|(lane, (&x, &y))| add(lane, f64::from(x), f64::from(y)));
                }
            }
            Some(base) => {
                for (i, (&x, &y)) in first.iter().zip(second).enumerate() {
                    let base = f64::from(base[i]);
                    add(i % LANES, f64::from(x) - base, f64::from(y) - base);
                }
            }
        }
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            *sum += lanes.iter().sum::<f64>();
        }
        Ok(())
    }

    fn conclude(
        &self,
        _pass: usize,
        _tensor: &Tensor<'_>,
        sums: &[f64],
        facts: &mut [f64],
    ) -> Result<(), Failed> {
        let norms = sums[1].sqrt() * sums[2].sqrt();
        let cosine = if norms > 0.0 { sums[0] / norms } else { 0.0 };
        facts.copy_from_slice(&self.coefficients(cosine));
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "the result is f32")]
    fn merge(&self, piece: &Piece<'_>, out: &mut [f32]) -> Result<(), Failed> {
        let (first, second) = (piece.inputs[0], piece.inputs[1]);
        let [a, b] = [piece.tensor.facts[0], piece.tensor.facts[1]];
        let pairs = first.iter().zip(second).map(|(&x, &y)| (f64::from(x), f64::from(y)));
        match self.origin(piece) {
            None => {
                for (out, (x, y)) in out.iter_mut().zip(pairs) {
                    *out = (a * x + b * y) as f32;
                }
            }
            Some(base) => {
                for ((out, (x, y)), &base) in out.iter_mut().zip(pairs).zip(base) {
                    let base = f64::from(base);
                    *out = (base + a * (x - base) + b * (y - base)) as f32;
                }
            }
        }
        Ok(())
    }

    fn on_device(&self) -> Option<&dyn MergeOnDevice> {
        Some(self)
    }
}

/// The norms are summed on the processor: on a device it would be in another order.
impl MergeOnDevice for Slerp {
    fn merge(&self, piece: &DevicePiece<'_>, out: DevicePart) -> Result<(), Failed> {
        let coefficients = [piece.tensor.facts[0], piece.tensor.facts[1]];
        DeviceKernels::needed()?.merge_slerp(out, piece.models(), coefficients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Models, assert_close};

    const MODELS: [&[f32]; 2] = [&[1.0, 0.0, 2.0], &[0.0, 1.0, 1.0]];

    /// The specification's numbers: d = 0.632456, angle 0.886077.
    #[test]
    fn a_quarter_of_the_arc_by_hand() {
        let merged = Models::new(&[0.0; 3], &MODELS).merge(&SLERP, &[], &[3.0, 1.0]);
        assert_close(&merged, &[0.796_171, 0.283_647, 1.875_988], 1e-6);
    }

    /// The same arc around another origin.
    #[test]
    fn over_deltas_the_base_is_the_center() {
        let shifted = MODELS.map(|m| m.iter().map(|x| x + 5.0).collect::<Vec<_>>());
        let models = Models::new(&[5.0; 3], &[&shifted[0], &shifted[1]]);
        let over = ("over", OptionValue::Text("deltas".to_owned()));
        let merged = models.merge(&SLERP, &[over], &[3.0, 1.0]);
        assert_close(&merged, &[5.796_171, 5.283_647, 6.875_988], 2e-6);
    }

    #[test]
    fn opposite_and_missing_directions_take_the_straight_line() {
        let opposite = Models::new(&[0.0; 2], &[&[1.0, 2.0], &[-1.0, -2.0]]);
        assert_close(&opposite.merge(&SLERP, &[], &[1.0, 3.0]), &[-0.5, -1.0], 1e-7);
        let zeros = Models::new(&[0.0; 2], &[&[0.0, 0.0], &[0.0, 0.0]]);
        assert_eq!(zeros.merge(&SLERP, &[], &[1.0, 1.0]), [0.0, 0.0]);
    }
}
