//! AdamW.
//!
//! Paper: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.

use forgelm_kernels_api::AdamW;

/// Shapes: equal lengths; `param`, `m`, `v` changed, `grad` read.
pub(crate) fn step(
    param: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    constants: &AdamW,
) {
    for (name, len) in [("m", m.len()), ("v", v.len()), ("grad", grad.len())] {
        assert_eq!(len, param.len(), "{name} and param differ in length");
    }
    let (beta1, beta2) = (constants.beta1, constants.beta2);
    let lr = f64::from(constants.lr);
    let step = constants.step as f64;
    let correction1 = 1.0 - beta1.powf(step);
    let correction2 = 1.0 - beta2.powf(step);
    for i in 0..param.len() {
        let g = f64::from(grad[i]) * f64::from(constants.grad_scale);
        let m_i = beta1 * f64::from(m[i]) + (1.0 - beta1) * g;
        let v_i = beta2 * f64::from(v[i]) + (1.0 - beta2) * g * g;
        let root = (v_i / correction2).sqrt() + f64::from(constants.eps);
        let decayed = f64::from(param[i]) * (1.0 - lr * f64::from(constants.weight_decay));
        param[i] = (decayed - lr * (m_i / correction1) / root) as f32;
        m[i] = m_i as f32;
        v[i] = v_i as f32;
    }
}
