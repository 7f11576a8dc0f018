//! Whether the numbers of a rotary embedding can be right.

use super::{ConfigError, ModelConfig};
use crate::rope::{Rope, RopeScaling};

impl ModelConfig {
    pub(super) fn validate_rope(&self) -> Result<(), ConfigError> {
        let half = self.rotary_dim() / 2;
        let local = self.attention.local_rope.as_ref();
        [Some(&self.rope), local].into_iter().flatten().try_for_each(|rope| {
            check(rope, half).map_err(|(key, found, expected)| ConfigError::Wrong {
                place: self.place.clone(),
                key: key.to_owned(),
                found,
                expected,
            })
        })
    }
}

/// Key, value found, and what would be right.
type Problem = (&'static str, String, String);

fn check(rope: &Rope, half: usize) -> Result<(), Problem> {
    if !(rope.theta > 1.0 && rope.theta.is_finite()) {
        return Err(("rope_theta", rope.theta.to_string(), "a number above 1".to_owned()));
    }
    match &rope.scaling {
        RopeScaling::Default => Ok(()),
        RopeScaling::Linear { factor } | RopeScaling::Yarn { factor, .. } => check_factor(*factor),
        RopeScaling::Dynamic { factor, .. } => {
            if half < 2 {
                let expected = "more, for the rotary scaling `dynamic`".to_owned();
                return Err(("head_dim", (2 * half).to_string(), expected));
            }
            check_factor(*factor)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
            check_factor(*factor)?;
            if high_freq_factor > low_freq_factor && *low_freq_factor > 0.0 {
                return Ok(());
            }
            let expected = format!("above `low_freq_factor`, {low_freq_factor}");
            Err(("rope_scaling.high_freq_factor", high_freq_factor.to_string(), expected))
        }
        RopeScaling::Longrope { short_factor, long_factor, .. } => {
            check_divisors("rope_scaling.short_factor", short_factor, half)?;
            check_divisors("rope_scaling.long_factor", long_factor, half)
        }
        RopeScaling::Divisors(divisors) => check_divisors("rope_freqs.weight", divisors, half),
    }
}

fn check_factor(factor: f64) -> Result<(), Problem> {
    if factor >= 1.0 && factor.is_finite() {
        return Ok(());
    }
    Err(("rope_scaling.factor", factor.to_string(), "at least 1".to_owned()))
}

fn check_divisors(key: &'static str, divisors: &[f32], half: usize) -> Result<(), Problem> {
    if divisors.len() != half {
        let expected = format!("{half}, half of what is rotated of a head");
        return Err((key, format!("{} numbers", divisors.len()), expected));
    }
    match divisors.iter().find(|d| !(**d > 0.0 && d.is_finite())) {
        None => Ok(()),
        Some(bad) => Err((key, bad.to_string(), "positive numbers".to_owned())),
    }
}
