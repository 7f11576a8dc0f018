//! Between which bounds a measured value truly lies.

use statrs::distribution::{ContinuousCDF as _, Normal, StudentsT};

/// Bounds of a share: Wilson's score interval. A share of few samples has wide bounds, and one of 0
/// or 1 has bounds too.
///
/// Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference",
/// Journal of the American Statistical Association 22.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn share(n_hits: u64, n_samples: u64, confidence: f64) -> Option<[f64; 2]> {
    if n_samples == 0 {
        return None;
    }
    let z = Normal::new(0.0, 1.0).ok()?.inverse_cdf(0.5 + confidence / 2.0);
    let (n, z2) = (n_samples as f64, z * z);
    let p = n_hits as f64 / n;
    let centre = p + z2 / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    Some([((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0)])
}

/// Bounds of a mean, from the standard error of it: Student's interval. None for fewer than two
/// samples.
///
/// Source: Student 1908, "The probable error of a mean", Biometrika 6.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn mean(mean: f64, std_error: f64, n_samples: u64, confidence: f64) -> Option<[f64; 2]> {
    if n_samples < 2 || !std_error.is_finite() {
        return None;
    }
    let student = StudentsT::new(0.0, 1.0, (n_samples - 1) as f64).ok()?;
    let half = student.inverse_cdf(0.5 + confidence / 2.0) * std_error;
    Some([mean - half, mean + half])
}

/// Mean and its standard error (over n - 1); the error is none for fewer than two values.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn mean_of(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::{mean, mean_of, share};

    fn is_near(found: [f64; 2], expected: [f64; 2]) {
        for (found, expected) in found.into_iter().zip(expected) {
            assert!((found - expected).abs() < 5e-5, "{found} beside {expected}");
        }
    }

    /// Values of `scipy.stats.binomtest(k, n).proportion_ci(method="wilson")` 1.17.
    #[test]
    fn a_share_has_wilsons_bounds() {
        is_near(share(8, 10, 0.95).unwrap(), [0.490_162, 0.943_318]);
        is_near(share(0, 10, 0.95).unwrap(), [0.0, 0.277_533]);
        is_near(share(50, 50, 0.9).unwrap(), [0.948_667, 1.0]);
        assert_eq!(share(0, 0, 0.95), None);
    }

    /// `scipy.stats.t.interval(0.95, 4, loc=3, scale=0.7071068)`.
    #[test]
    fn a_mean_has_students_bounds() {
        let (centre, error) = mean_of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        is_near([centre, error.unwrap()], [3.0, 0.5_f64.sqrt()]);
        is_near(mean(centre, error.unwrap(), 5, 0.95).unwrap(), [1.036_757, 4.963_243]);
        assert_eq!(mean(1.0, 0.1, 1, 0.95), None);
        assert_eq!(mean_of(&[2.0]), (2.0, None));
    }
}
