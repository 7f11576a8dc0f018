//! Dropout whose mask is a function of numbers: defined at [`Dropout`].

use forgelm_kernels_api::{Dropout, Write};

use crate::call::{Call, Numbers, args};
use crate::chunk::{chunks, int, is_wide, long, width};

/// Shapes: `y` [T, C] written or added to, `x` [T, C], `row_keys` [T] read.
pub(crate) fn dropout(
    call: &Call<'_>,
    y: Numbers,
    x: Numbers,
    row_keys: &[u64],
    dropout: &Dropout,
    write: Write,
) {
    assert_eq!(y.len, x.len, "y and x differ in length");
    assert!((0.0..1.0).contains(&dropout.p), "dropout's chance is not in [0, 1)");
    let (t, c) = (row_keys.len(), width(x, row_keys.len()));
    // p < 1, so the threshold fits 32 bits.
    let threshold = (f64::from(dropout.p) * 2.0_f64.powi(32)).ceil() as u32;
    let factor = (1.0 / (1.0 - f64::from(dropout.p))) as f32;
    let name = call.variant("dropout", &[x.format, y.format], is_wide(c, &[y, x]));
    let mut arguments = args![
        y.address,
        x.address,
        call.array(row_keys),
        long(t),
        int(c),
        dropout.key[0],
        dropout.key[1],
        threshold,
        factor,
        i32::from(write == Write::Add)
    ];
    call.launch(&name, chunks(t, c), &mut arguments);
}
