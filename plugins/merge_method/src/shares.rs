//! Weights as shares of their sum.

use forgelm_sdk::OptionsError;

/// Each weight over the sum of all.
///
/// # Errors
/// If the sum is 0, or so small or large that a share is not a number.
pub fn shares(weights: &[f64]) -> Result<Vec<f64>, OptionsError> {
    let sum: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
    if shares.iter().all(|share| share.is_finite()) {
        return Ok(shares);
    }
    let problem = format!("sum to {sum}; expected another sum");
    Err(OptionsError::Weights { weights: weights.to_vec(), problem })
}
