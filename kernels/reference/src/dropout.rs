//! Dropout whose mask is a function of numbers.
//!
//! Paper: Srivastava et al. 2014. The mask is defined at [`Dropout`].

use forgelm_kernels_api::philox::philox4x32;
use forgelm_kernels_api::{Dropout, Write};

use crate::put;

/// Shapes: `y` [T, C] written or added to, `x` [T, C], `row_keys` [T] read.
pub(crate) fn dropout(y: &mut [f32], x: &[f32], row_keys: &[u64], dropout: &Dropout, write: Write) {
    assert_eq!(y.len(), x.len(), "y and x differ in length");
    assert!((0.0..1.0).contains(&dropout.p), "dropout's chance is not in [0, 1)");
    if row_keys.is_empty() {
        assert!(x.is_empty(), "x is not [T, C]");
        return;
    }
    assert!(x.len().is_multiple_of(row_keys.len()), "x is not [T, C]");
    let c = x.len() / row_keys.len();
    let threshold = f64::from(dropout.p) * 2.0_f64.powi(32);
    let kept = 1.0 - f64::from(dropout.p);
    for (t, &row_key) in row_keys.iter().enumerate() {
        for i in 0..c {
            let counter = [row_key as u32, (row_key >> 32) as u32, (i / 4) as u32, 0];
            let bits = philox4x32(counter, dropout.key)[i % 4];
            let keep = f64::from(bits) >= threshold;
            let result = if keep { f64::from(x[t * c + i]) / kept } else { 0.0 };
            put(&mut y[t * c + i], result, write);
        }
    }
}
