//! Exponential, logistic function and hyperbolic tangent of whole vectors.

use crate::simd::Simd;

/// Below this, [`exp`] returns 0; the true value is under 2.5e-38.
const EXP_MIN: f32 = -86.6;
/// Above this, [`exp`] returns infinity, as the true value does not fit.
const EXP_MAX: f32 = 88.722_84;

/// `e^x`.
///
/// Method: `x = n ln 2 + r` with |r| <= ln 2 / 2, a polynomial of degree 7 in r (coefficients of
/// Moshier's Cephes `expf`), scaled by `2^n` in two steps.
///
/// Numerics: at most 2 units in the last place, measured over all of the range by the tests; 0
/// below -86.6 (absolute error under 2.5e-38), infinity above 88.7228. NaN gives infinity or 0.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_2e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5];
    let inside = s.min(s.max(x, s.splat(EXP_MIN)), s.splat(EXP_MAX));
    let n = s.round(s.mul(inside, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that n times the first is exact.
    let r = s.mul_add(n, s.splat(-0.693_359_4), inside);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.mul_add(p, r, s.splat(*c));
    }
    let tail = s.mul_add(p, s.mul(r, r), r);
    let mantissa = s.add(tail, s.splat(1.0));
    // 2^(n - 1) * 2: 2^n itself need not fit.
    let scaled = s.mul(mantissa, s.pow2(s.sub(n, s.splat(1.0))));
    let value = s.add(scaled, scaled);
    let value = s.if_less(x, s.splat(EXP_MIN), s.splat(0.0), value);
    s.if_less(s.splat(EXP_MAX), x, s.splat(f32::INFINITY), value)
}

/// `1 / (1 + e^-x)`. Numerics: relative error of a few units in the last place.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// `tanh(x)`.
///
/// Numerics: relative error of a few units in the last place: an odd polynomial (Cephes `tanhf`)
/// below 0.625, `1 - 2 / (e^2|x| + 1)` above.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    const COEFFICIENTS: [f32; 5] =
        [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1];
    let zero = s.splat(0.0);
    let one = s.splat(1.0);
    let size = s.max(x, s.sub(zero, x));
    let square = s.mul(x, x);
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.mul_add(p, square, s.splat(*c));
    }
    let small = s.mul_add(s.mul(p, square), x, x);
    let e = exp(s, s.add(size, size));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let large = s.if_less(x, zero, s.sub(zero, large), large);
    s.if_less(size, s.splat(0.625), small, large)
}

/// `for_vectors!(s, len, |i| body)`: the body with the ranges of whole vectors in `0..len`, then
/// with what is left.
///
/// A macro, so that no call can forget the attribute: a body that is not inlined is compiled
/// without the instruction set of its caller, and every operation in it becomes a call (measured:
/// 40 times slower for a gated product).
macro_rules! for_vectors {
    ($s:expr, $len:expr, |$i:ident| $body:expr $(,)?) => {
        $crate::math::each_vector(
            $s,
            $len,
            #[inline(always)]
            |$i| $body,
        )
    };
}
pub(crate) use for_vectors;

/// What [`for_vectors`] expands to.
#[inline(always)]
pub(crate) fn each_vector<S: Simd>(_: S, len: usize, mut f: impl FnMut(std::ops::Range<usize>)) {
    let whole = len / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        f(i..i + S::LANES);
    }
    if whole < len {
        f(whole..len);
    }
}

/// A whole vector or a part of one.
#[inline(always)]
pub(crate) fn load<S: Simd>(s: S, x: &[f32]) -> S::V {
    if x.len() == S::LANES { s.load(x) } else { s.load_part(x) }
}

/// A whole vector or a part of one.
#[inline(always)]
pub(crate) fn store<S: Simd>(s: S, to: &mut [f32], v: S::V) {
    if to.len() == S::LANES {
        s.store(to, v);
    } else {
        s.store_part(to, v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::on_isa;
    use crate::simd::{InstructionSet, Isa};

    /// Largest distance from f64, in units in the last place of the result.
    fn worst(f: impl Fn(&mut [f32]), exact: impl Fn(f64) -> f64, xs: &[f32]) -> f64 {
        let mut ys = xs.to_vec();
        f(&mut ys);
        xs.iter()
            .zip(&ys)
            .map(|(&x, &y)| {
                let want = exact(f64::from(x));
                let ulp = 2.0_f64.powi(want.abs().log2().floor() as i32 - 23);
                (f64::from(y) - want).abs() / ulp
            })
            .fold(0.0, f64::max)
    }

    fn grid(from: f32, to: f32, n: usize) -> Vec<f32> {
        (0..n).map(|i| from + (to - from) * i as f32 / (n - 1) as f32).collect()
    }

    #[inline(always)]
    fn each<S: Simd>(s: S, xs: &mut [f32], f: impl Fn(S, S::V) -> S::V) {
        for_vectors!(s, xs.len(), |i| {
            let v = f(s, load(s, &xs[i.clone()]));
            store(s, &mut xs[i], v);
        },);
    }

    #[test]
    fn errors_are_within_what_is_documented() {
        for set in InstructionSet::available() {
            let isa = Isa::new(set).expect("available");
            let exp_at = |xs: &mut [f32]| on_isa!(isa, s => each(s, xs, exp));
            let error = worst(exp_at, f64::exp, &grid(-86.5, 88.7, 1_000_003));
            assert!(error <= 2.0, "exp on {}: {error} ulp", set.name());
            let error = worst(exp_at, f64::exp, &grid(-1.0, 1.0, 1_000_003));
            assert!(error <= 2.0, "exp near 0 on {}: {error} ulp", set.name());
            let sigmoid_at = |xs: &mut [f32]| on_isa!(isa, s => each(s, xs, sigmoid));
            let error =
                worst(sigmoid_at, |x| 1.0 / (1.0 + (-x).exp()), &grid(-80.0, 80.0, 300_007));
            assert!(error <= 4.0, "sigmoid on {}: {error} ulp", set.name());
            let tanh_at = |xs: &mut [f32]| on_isa!(isa, s => each(s, xs, tanh));
            let error = worst(tanh_at, f64::tanh, &grid(-12.0, 12.0, 300_008));
            assert!(error <= 4.0, "tanh on {}: {error} ulp", set.name());
        }
    }

    #[test]
    fn exp_at_its_ends() {
        for set in InstructionSet::available() {
            let isa = Isa::new(set).expect("available");
            let mut xs = [f32::NEG_INFINITY, -1e30, -100.0, 0.0, 89.0, f32::INFINITY].to_vec();
            on_isa!(isa, s => each(s, &mut xs, exp));
            assert_eq!(xs, [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY], "{}", set.name());
        }
    }
}
