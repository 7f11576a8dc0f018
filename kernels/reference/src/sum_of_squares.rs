//! Sum of squares.

/// In f64, in order.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    crate::dot(x, x)
}
