//! Whether a device counts right: one small product, formed in each way in which runs form theirs.
//!
//! Its factors are small whole numbers, which both formats hold exactly, and so does f32 every sum
//! of them. So in whatever order the sums are added, the result is exact, and is compared exactly.

use std::sync::Arc;

use forgelm_kernels_api::{Format, GemmDims, GemmLayout, Write, caught};

use crate::call::{Before, Call};
use crate::cast;
use crate::device::Device;
use crate::gemm::{self, Matrix, Product};
use crate::images::CodeSource;

/// Sizes of the product: no multiple of a tile, and a sum of many terms.
const DIMS: GemmDims = GemmDims { m: 48, n: 40, k: 256 };

/// Who forms a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// The kernels of this library.
    Kernels,
    /// cuBLASLt.
    CublasLt,
}

/// What came of one product.
#[derive(Clone, Debug, PartialEq)]
pub enum TrialOutcome {
    /// Every number is right.
    Right,
    /// Some are not.
    Wrong {
        /// How many of them.
        n_wrong: usize,
        /// How many there are.
        n: usize,
        /// Row and column of the first wrong one.
        first: (usize, usize),
        /// What it is.
        found: f32,
        /// What it should be.
        expected: f32,
    },
    /// cuBLASLt has no algorithm for it, and runs would not use it.
    NotOffered,
    /// The device failed: what it said.
    Failed(String),
}

/// One product that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Who formed it.
    pub former: Former,
    /// Whether its factors are bfloat16, which tensor cores multiply; else f32.
    pub is_bf16: bool,
    /// What came of it.
    pub outcome: TrialOutcome,
}

/// What the self test found.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfTest {
    /// Every product that was tried. After one that failed no other is.
    pub trials: Vec<Trial>,
    /// Where the code of our own kernels came from, if they could be loaded.
    pub code: Option<CodeSource>,
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = if self.is_bf16 { "bfloat16" } else { "float32" };
        let by = match self.former {
            Former::Kernels => "our own kernels",
            Former::CublasLt => "cuBLASLt",
        };
        write!(f, "a product in {format} by {by} ")?;
        match &self.outcome {
            TrialOutcome::Right => f.write_str("is right"),
            TrialOutcome::Wrong { n_wrong, n, first: (row, column), found, expected } => write!(
                f,
                "is wrong in {n_wrong} of {n} numbers: row {row}, column {column} is {found}, \
                 expected {expected}"
            ),
            TrialOutcome::NotOffered => f.write_str("is not offered"),
            TrialOutcome::Failed(text) => write!(f, "failed: {text}"),
        }
    }
}

/// Forms the product on a device, with our own kernels and, where it is there, with cuBLASLt.
#[must_use]
pub fn self_test(device: &Arc<Device>) -> SelfTest {
    let formers = [Some(Former::Kernels), device.blas().map(|_| Former::CublasLt)];
    let mut trials = Vec::new();
    for former in formers.into_iter().flatten() {
        for format in [Format::F32, Format::Bf16] {
            let outcome = tried(device, former, format);
            let has_failed = matches!(outcome, TrialOutcome::Failed(_));
            trials.push(Trial { former, is_bf16: format == Format::Bf16, outcome });
            if has_failed {
                // A device that failed answers nothing else.
                return SelfTest { trials, code: code(device) };
            }
        }
    }
    SelfTest { trials, code: code(device) }
}

/// Where our kernels for products came from.
fn code(device: &Device) -> Option<CodeSource> {
    ["gemm_bf16_nt_64", "gemm_f32_nt"].iter().find_map(|kernel| device.code_of(kernel))
}

fn tried(device: &Device, former: Former, format: Format) -> TrialOutcome {
    match caught(|| product(device, former, format)) {
        Ok(Some(found)) => compared(&found, &expected()),
        Ok(None) => TrialOutcome::NotOffered,
        Err(failure) => TrialOutcome::Failed(failure.to_string()),
    }
}

/// The whole number at a place of a factor: from -8 to 8, without a pattern that a wrong order of
/// rows or columns would leave as it is.
fn left(row: usize, term: usize) -> i32 {
    ((7 * row + 3 * term + row * term) % 17) as i32 - 8
}

fn right(column: usize, term: usize) -> i32 {
    ((5 * column + 11 * term + column * term) % 13) as i32 - 6
}

fn factor(n_rows: usize, number: impl Fn(usize, usize) -> i32) -> Vec<f32> {
    let places = (0..n_rows).flat_map(|row| (0..DIMS.k).map(move |term| (row, term)));
    places.map(|(row, term)| number(row, term) as f32).collect()
}

/// The product, in whole numbers.
fn expected() -> Vec<f32> {
    let places = (0..DIMS.m).flat_map(|row| (0..DIMS.n).map(move |column| (row, column)));
    let sum = |(row, column)| (0..DIMS.k).map(|k| left(row, k) * right(column, k)).sum::<i32>();
    places.map(|place| sum(place) as f32).collect()
}

/// The product as the device forms it; `None` if this former does not.
fn product(device: &Device, former: Former, format: Format) -> Option<Vec<f32>> {
    let (a, b) = (factor(DIMS.m, left), factor(DIMS.n, right));
    // Not the numbers of the product before, which the same memory may still have.
    let mut c = vec![f32::NAN; DIMS.m * DIMS.n];
    let call = Call::open(device, "self_test");
    let [from_a, from_b] = [&a, &b].map(|factor| {
        let exact = call.read(factor.into());
        cast::read_as(&call, format, exact)
    });
    let to = call.write((&mut c).into(), Before::Needed);
    let product = Product {
        c: Matrix::new(to, DIMS.n),
        a: Matrix::new(from_a, DIMS.k),
        b: Matrix::new(from_b, DIMS.k),
        layout: GemmLayout::Nt,
        dims: DIMS,
        alpha: 1.0,
        write: Write::Replace,
    };
    product.check();
    match former {
        Former::Kernels => gemm::multiply_here(&call, &product),
        Former::CublasLt => {
            if !device.blas()?.multiply(&call, &product) {
                return None;
            }
        }
    }
    call.close();
    Some(c)
}

fn compared(found: &[f32], expected: &[f32]) -> TrialOutcome {
    // What is no number is wrong too.
    let is_right = |found: f32, expected: f32| (found - expected).abs() <= 0.0;
    let pairs = found.iter().zip(expected).enumerate();
    let wrong: Vec<_> =
        pairs.filter(|(_, (found, expected))| !is_right(**found, **expected)).collect();
    match wrong.first() {
        None => TrialOutcome::Right,
        Some(&(at, (&found, &expected_here))) => TrialOutcome::Wrong {
            n_wrong: wrong.len(),
            n: expected.len(),
            first: (at / DIMS.n, at % DIMS.n),
            found,
            expected: expected_here,
        },
    }
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::emulated;

    #[test]
    fn the_emulated_device_counts_right_in_every_way() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        emulator::reset_counters();
        let test = self_test(&device);
        let right = |former, is_bf16| Trial { former, is_bf16, outcome: TrialOutcome::Right };
        let of = |former| [right(former, false), right(former, true)];
        assert_eq!(test.trials, [of(Former::Kernels), of(Former::CublasLt)].concat());
        assert_eq!(test.code, Some(CodeSource::Given));
        let counters = emulator::counters();
        assert_eq!(counters.launches["gemm_f32_nt"], 1);
        assert_eq!(counters.launches["gemm_bf16_nt_64"], 1);
        assert_eq!(counters.cublaslt_products, 2);
    }

    #[test]
    fn a_device_that_fails_is_told_and_not_asked_again() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        emulator::fail_next("cuMemcpyDtoHAsync", 700, 0);
        let test = self_test(&device);
        let [Trial { former: Former::Kernels, is_bf16: false, outcome }] = &test.trials[..] else {
            panic!("{:?}", test.trials)
        };
        let TrialOutcome::Failed(text) = outcome else { panic!("{outcome:?}") };
        assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{text}");
        assert!(test.trials[0].to_string().starts_with("a product in float32 by our own kernels "));
    }

    #[test]
    fn one_wrong_number_is_named() {
        let mut found = expected();
        assert_eq!(compared(&found, &expected()), TrialOutcome::Right);
        // By hand: the first row and column of both factors are -8 + (3 k % 17) and -6 + (11 k % 13).
        let first: i32 = (0..256).map(|k| (3 * k % 17 - 8) * (11 * k % 13 - 6)).sum();
        assert_eq!(found[..1], [first as f32]);
        found[41] = f32::NAN;
        found[45] += 1.0;
        let TrialOutcome::Wrong { n_wrong: 2, n: 1920, first: (1, 1), .. } =
            compared(&found, &expected())
        else {
            panic!("{:?}", compared(&found, &expected()))
        };
    }

    /// A product that is never formed leaves NaN.
    #[test]
    fn numbers_that_nobody_wrote_are_wrong() {
        let outcome = compared(&[f32::NAN; 1920], &expected());
        assert!(matches!(outcome, TrialOutcome::Wrong { n_wrong: 1920, .. }), "{outcome:?}");
    }
}
