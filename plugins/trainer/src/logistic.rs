//! The logistic function, exact to rounding at both ends: what the preference losses share.

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// `ln sigmoid(x)`.
pub fn log_sigmoid(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

/// `ln(1 - e^a)` for a below 0 (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
pub fn log_one_minus_exp(a: f64) -> f64 {
    if a > -std::f64::consts::LN_2 { (-a.exp_m1()).ln() } else { (-a.exp()).ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the plain formulas where these are exact enough, and by limits at the ends.
    #[test]
    fn the_ends_neither_overflow_nor_vanish() {
        for x in [-30.0f64, -3.0, -0.5, 0.0, 0.5, 3.0, 30.0] {
            let plain = 1.0 / (1.0 + (-x).exp());
            assert!((sigmoid(x) - plain).abs() <= 1e-15 * plain, "{x}");
            assert!((log_sigmoid(x).exp() - plain).abs() <= 1e-14 * plain, "{x}");
        }
        assert!((log_sigmoid(-800.0) + 800.0).abs() < 1e-9);
        assert!(log_sigmoid(800.0) <= 0.0 && log_sigmoid(800.0) > -1e-300);
        for a in [-1e-12f64, -0.1, -0.7, -5.0] {
            let back = -(log_one_minus_exp(a).exp() - 1.0);
            assert!((back - a.exp()).abs() < 1e-12, "{a}");
        }
    }
}
