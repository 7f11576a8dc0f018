//! Whether fresh rows are scored as the held-out ones were: Welch's interval of the difference of
//! two means.
//!
//! Source: Welch 1947, "The generalization of Student's problem when several different population
//! variances are involved", Biometrika 34.

use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// Fewer rows than these on either side say nothing.
pub const ROWS_MIN: u64 = 10;

/// Mean and variance of the losses of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Rows.
    pub n_rows: u64,
    /// Mean of their losses, in nats a token.
    pub mean: f64,
    /// Variance of their losses, over n - 1; 0 for fewer than two rows.
    pub variance: f64,
}

impl Sample {
    /// Of these losses.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn of(losses: &[f64]) -> Self {
        let n = losses.len() as f64;
        let mean = if losses.is_empty() { 0.0 } else { losses.iter().sum::<f64>() / n };
        let squares: f64 = losses.iter().map(|loss| (loss - mean).powi(2)).sum();
        let variance = if losses.len() < 2 { 0.0 } else { squares / (n - 1.0) };
        Self { n_rows: losses.len() as u64, mean, variance }
    }

    /// As documents have it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"n_rows": self.n_rows, "mean": self.mean, "variance": self.variance})
    }
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval does not hold 0.
    Drift,
    /// It does.
    NoDrift,
    /// One side has less than [`ROWS_MIN`] rows.
    TooFewRows,
}

impl Verdict {
    /// The word in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drift => "drift",
            Self::NoDrift => "no_drift",
            Self::TooFewRows => "too_few_rows",
        }
    }
}

/// Fresh rows beside those of the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The held-out rows.
    pub baseline: Sample,
    /// The fresh ones.
    pub fresh: Sample,
    /// Share of such intervals that hold the true difference.
    pub confidence: f64,
    /// Fresh mean less baseline mean, with the bounds of its interval; none for too few rows.
    pub interval: Option<Interval>,
}

/// A difference and its bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
    /// Degrees of freedom.
    pub degrees_of_freedom: f64,
}

impl Comparison {
    /// Compares two samples.
    #[must_use]
    pub fn new(baseline: Sample, fresh: Sample, confidence: f64) -> Self {
        let enough = baseline.n_rows >= ROWS_MIN && fresh.n_rows >= ROWS_MIN;
        let interval = enough.then(|| interval(&baseline, &fresh, confidence));
        Self { baseline, fresh, confidence, interval }
    }

    /// Fresh mean less baseline mean.
    #[must_use]
    pub fn difference(&self) -> f64 {
        self.fresh.mean - self.baseline.mean
    }

    /// What it says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.interval {
            None => Verdict::TooFewRows,
            Some(Interval { low, high, .. }) if low > 0.0 || high < 0.0 => Verdict::Drift,
            Some(_) => Verdict::NoDrift,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn interval(baseline: &Sample, fresh: &Sample, confidence: f64) -> Interval {
    let part = |sample: &Sample| sample.variance / sample.n_rows as f64;
    let share = |sample: &Sample| part(sample).powi(2) / (sample.n_rows - 1) as f64;
    let squared_error = part(baseline) + part(fresh);
    let difference = fresh.mean - baseline.mean;
    let shares = share(baseline) + share(fresh);
    let most = (baseline.n_rows + fresh.n_rows - 2) as f64;
    // Without any variance, or one so small that its square is none, the difference is what it is.
    let degrees_of_freedom = if shares > 0.0 { squared_error.powi(2) / shares } else { most };
    let half = half_width(confidence, degrees_of_freedom) * squared_error.sqrt();
    Interval { low: difference - half, high: difference + half, degrees_of_freedom }
}

/// The quantile of Student's distribution that leaves half of `1 - confidence` above it.
fn half_width(confidence: f64, degrees_of_freedom: f64) -> f64 {
    let student = StudentsT::new(0.0, 1.0, degrees_of_freedom);
    // Degrees of freedom are positive here, so that there is such a distribution.
    student.map_or(f64::INFINITY, |student| student.inverse_cdf(0.5 + confidence / 2.0))
}

#[cfg(test)]
mod tests {
    use super::{Comparison, Sample, Verdict, half_width};

    const HELD_OUT: [f64; 12] = [2.1, 2.4, 1.9, 2.2, 2.0, 2.3, 2.6, 1.8, 2.2, 2.1, 2.5, 2.0];
    const FRESH: [f64; 10] = [2.6, 3.1, 2.2, 2.9, 2.4, 3.3, 2.7, 2.5, 3.0, 2.8];

    #[track_caller]
    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-8 * expected.abs().max(1.0), "{found} {expected}");
    }

    /// Expected numbers are those of `scipy.stats.t.ppf`, 1.16.
    #[test]
    fn quantiles_are_those_of_student() {
        near(half_width(0.99, 10.0), 3.169_272_672_616_95);
        near(half_width(0.95, 1.0), 12.706_204_736_174_694);
        near(half_width(0.99, 1000.0), 2.580_754_698_065_951);
        near(half_width(0.5, 2.0), 0.816_496_580_927_726);
    }

    /// Expected numbers are those of `scipy.stats.ttest_ind(fresh, held_out, equal_var=False)`.
    #[test]
    fn the_interval_is_that_of_welch() {
        let (baseline, fresh) = (Sample::of(&HELD_OUT), Sample::of(&FRESH));
        near(baseline.mean, 2.175);
        near(baseline.variance, 0.058_409_090_909_090_904);
        near(fresh.variance, 0.113_888_888_888_888_86);
        for (confidence, low, high) in [
            (0.9, 0.352_358_942_948_640_34, 0.797_641_057_051_359_8),
            (0.99, 0.202_453_765_923_578_33, 0.947_546_234_076_422),
        ] {
            let found = Comparison::new(baseline, fresh, confidence);
            let interval = found.interval.unwrap();
            near(interval.low, low);
            near(interval.high, high);
            near(interval.degrees_of_freedom, 15.952_735_995_890_016);
            near(found.difference(), 0.575);
            assert_eq!(found.verdict(), Verdict::Drift);
        }
        // Lower than before is drift too.
        let other = Comparison::new(fresh, baseline, 0.99);
        assert_eq!(other.verdict(), Verdict::Drift);
    }

    #[test]
    fn the_same_rows_are_no_drift_and_few_rows_say_nothing() {
        let baseline = Sample::of(&HELD_OUT);
        assert_eq!(Comparison::new(baseline, baseline, 0.99).verdict(), Verdict::NoDrift);
        let few = Sample::of(&FRESH[..9]);
        let found = Comparison::new(baseline, few, 0.99);
        assert_eq!((found.verdict(), found.interval), (Verdict::TooFewRows, None));
        assert_eq!(Comparison::new(few, baseline, 0.99).verdict(), Verdict::TooFewRows);
        assert_eq!(Sample::of(&[]).n_rows, 0);
    }

    #[test]
    fn rows_without_variance_are_compared_as_they_are() {
        let (a, b) = (Sample::of(&[2.0; 10]), Sample::of(&[2.5; 12]));
        assert_eq!(Comparison::new(a, a, 0.99).verdict(), Verdict::NoDrift);
        let found = Comparison::new(a, b, 0.99);
        assert_eq!(found.verdict(), Verdict::Drift);
        let interval = found.interval.unwrap();
        near(interval.low, 0.5);
        near(interval.high, 0.5);
        near(interval.degrees_of_freedom, 20.0);
    }

    #[test]
    fn the_share_of_false_alarms_is_what_was_stated() {
        // Two samples of the same uniform numbers, from a fixed sequence: 1 - 0.9 of them differ.
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f64::from(u32::try_from(state >> 32).unwrap()) / f64::from(u32::MAX)
        };
        let n_drifts = (0..2000)
            .filter(|_| {
                let a: Vec<f64> = (0..20).map(|_| uniform()).collect();
                let b: Vec<f64> = (0..40).map(|_| uniform()).collect();
                let found = Comparison::new(Sample::of(&a), Sample::of(&b), 0.9);
                found.verdict() == Verdict::Drift
            })
            .count();
        // 200 expected, with a standard deviation of 13.
        assert!((150..=250).contains(&n_drifts), "{n_drifts} of 2000");
    }
}
