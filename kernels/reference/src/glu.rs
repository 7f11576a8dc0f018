//! Gated linear unit: `y = act(gate) * up`.
//!
//! Paper: Shazeer 2020, arXiv:2002.05202, eq. 6.

use forgelm_kernels_api::Activation;

/// Shapes: all [T, F]; `y` written.
pub(crate) fn forward(y: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
    assert_eq!(y.len(), gate.len(), "y and gate differ in length");
    assert_eq!(up.len(), gate.len(), "up and gate differ in length");
    for (y, (&gate, &up)) in y.iter_mut().zip(gate.iter().zip(up)) {
        let (value, _) = value_and_slope(f64::from(gate), act);
        *y = (value * f64::from(up)) as f32;
    }
}

/// Shapes: all [T, F]; `gate` becomes `dgate`, `up` becomes `dup`.
pub(crate) fn backward(gate: &mut [f32], up: &mut [f32], dy: &[f32], act: Activation) {
    assert_eq!(up.len(), gate.len(), "up and gate differ in length");
    assert_eq!(dy.len(), gate.len(), "dy and gate differ in length");
    for ((gate, up), &dy) in gate.iter_mut().zip(up.iter_mut()).zip(dy) {
        let (value, slope) = value_and_slope(f64::from(*gate), act);
        let dy = f64::from(dy);
        *gate = (dy * f64::from(*up) * slope) as f32;
        *up = (dy * value) as f32;
    }
}

/// The activation and its derivative.
fn value_and_slope(x: f64, act: Activation) -> (f64, f64) {
    match act {
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let inner_slope = root * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner_slope)
        }
    }
}
