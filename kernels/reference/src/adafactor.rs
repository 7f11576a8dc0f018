//! Adafactor.
//!
//! Paper: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.

use forgelm_kernels_api::{Adafactor, AdafactorMoments};

/// Shapes: `param` [N, K] or [P] and `moments` changed, `grad` as `param` read.
pub(crate) fn step(
    param: &mut [f32],
    moments: AdafactorMoments<'_>,
    grad: &[f32],
    constants: &Adafactor,
) {
    assert_eq!(grad.len(), param.len(), "grad and param differ in length");
    let g: Vec<f64> =
        grad.iter().map(|&g| f64::from(g) * f64::from(constants.grad_scale)).collect();
    let squares: Vec<f64> = g.iter().map(|g| g * g + f64::from(constants.eps)).collect();
    let beta2 = constants.beta2();
    let follow = |old: f32, new: f64| (beta2 * f64::from(old) + (1.0 - beta2) * new) as f32;
    let update: Vec<f64> = match moments {
        AdafactorMoments::Whole(v) => {
            let v = v.on_host();
            assert_eq!(v.len(), param.len(), "v and param differ in length");
            for (v, s) in v.iter_mut().zip(&squares) {
                *v = follow(*v, *s);
            }
            g.iter().zip(&*v).map(|(g, v)| g / f64::from(*v).sqrt()).collect()
        }
        AdafactorMoments::Factored { rows, columns } => {
            let (rows, columns) = (rows.on_host(), columns.on_host());
            let (n, k) = (rows.len(), columns.len());
            assert_eq!(param.len(), n * k, "param is not [rows, columns]");
            for (r, row) in rows.iter_mut().enumerate() {
                let sum: f64 = squares[r * k..(r + 1) * k].iter().sum();
                *row = follow(*row, sum / k as f64);
            }
            for (c, column) in columns.iter_mut().enumerate() {
                let sum: f64 = (0..n).map(|r| squares[r * k + c]).sum();
                *column = follow(*column, sum / n as f64);
            }
            let mean: f64 = rows.iter().map(|&row| f64::from(row)).sum::<f64>() / n as f64;
            let root = |i: usize| {
                (f64::from(rows[i / k]) / mean).sqrt() * f64::from(columns[i % k]).sqrt()
            };
            g.iter().enumerate().map(|(i, g)| g / root(i)).collect()
        }
    };
    let rms = (update.iter().map(|u| u * u).sum::<f64>() / update.len().max(1) as f64).sqrt();
    let clip = (rms / f64::from(constants.clip_threshold)).max(1.0);
    let lr = f64::from(constants.lr);
    let keep = 1.0 - lr * f64::from(constants.weight_decay);
    for (p, u) in param.iter_mut().zip(&update) {
        *p = (f64::from(*p) * keep - lr * u / clip) as f32;
    }
}
