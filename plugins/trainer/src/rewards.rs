//! What is measured of a pair, under the names that TRL gives them.

use forgelm_sdk::trainer::Loss;

/// Rewards `beta * preference` of the chosen and the rejected answer, whether the chosen one has
/// the larger, the distance, and the log-probabilities of both.
pub fn measure_pair(
    loss: &mut Loss,
    beta: f64,
    [chosen, rejected]: [f64; 2],
    [logp_chosen, logp_rejected]: [f64; 2],
) {
    loss.measure("rewards/chosen", beta * chosen);
    loss.measure("rewards/rejected", beta * rejected);
    loss.measure("rewards/accuracies", f64::from(u8::from(chosen > rejected)));
    loss.measure("rewards/margins", beta * (chosen - rejected));
    loss.measure("logps/chosen", logp_chosen);
    loss.measure("logps/rejected", logp_rejected);
}
