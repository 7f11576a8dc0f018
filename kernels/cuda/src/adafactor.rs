//! Adafactor.
//!
//! Numerics: elements in f32, sums over the whole parameter in f64 over fixed blocks, sums over
//! columns as in `columns`. The host waits for nothing.

use forgelm_kernels_api::{Adafactor, Format, Write};

use crate::call::{Call, Numbers, args};
use crate::chunk::{THREADS, blocks, int, long};
use crate::columns::{Terms, add_rows};
use crate::sum_of_squares::doubles;

/// Elements of a block of a whole parameter.
const BLOCK_ELEMENTS: usize = 16_384;

/// Second moments.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moments {
    /// [N] and [K] of a parameter [N, K].
    Factored { rows: Numbers, columns: Numbers },
    /// As long as the parameter.
    Whole(Numbers),
}

/// Shapes: `param` [N, K] or [P] and `moments` changed, `grad` as `param` read.
pub(crate) fn step(
    call: &Call<'_>,
    param: Numbers,
    moments: Moments,
    grad: Numbers,
    constants: &Adafactor,
) {
    assert_eq!(grad.len, param.len, "grad and param differ in length");
    assert_eq!((param.format, grad.format), (Format::F32, Format::F32), "what trains is f32");
    if param.len == 0 {
        return;
    }
    match moments {
        Moments::Whole(v) => whole(call, param, v, grad, constants),
        Moments::Factored { rows, columns } => {
            assert_eq!(param.len, rows.len * columns.len, "param is not [rows, columns]");
            factored(call, param, (rows, columns), grad, constants);
        }
    }
}

/// The decay of a moment and what is left for the new value.
fn decays(constants: &Adafactor) -> (f32, f32) {
    let beta2 = constants.beta2();
    (beta2 as f32, (1.0 - beta2) as f32)
}

fn whole(call: &Call<'_>, param: Numbers, v: Numbers, grad: Numbers, constants: &Adafactor) {
    let n = param.len;
    assert_eq!(v.len, n, "v and param differ in length");
    let (beta2, rest2) = decays(constants);
    let Adafactor { grad_scale, eps, .. } = *constants;
    let n_blocks = n.div_ceil(BLOCK_ELEMENTS);
    let partials = doubles(call, n_blocks);
    let mut arguments =
        args![v.address, partials.address, grad.address, long(n), grad_scale, eps, beta2, rest2];
    call.launch("adafactor_whole_moments", blocks(n_blocks), &mut arguments);
    let factors = clip(call, partials, n_blocks, n, constants);
    let mut arguments =
        args![param.address, v.address, grad.address, factors.address, long(n), grad_scale];
    call.launch("adafactor_whole_update", blocks(n.div_ceil(THREADS)), &mut arguments);
}

fn factored(
    call: &Call<'_>,
    param: Numbers,
    (rows, columns): (Numbers, Numbers),
    grad: Numbers,
    constants: &Adafactor,
) {
    let (n, k) = (rows.len, columns.len);
    let (beta2, rest2) = decays(constants);
    let Adafactor { grad_scale, eps, .. } = *constants;

    let mut arguments = args![rows.address, grad.address, int(k), grad_scale, eps, beta2, rest2];
    call.launch("adafactor_rows", blocks(n), &mut arguments);
    let squares = call.scratch(Format::F32, k);
    let terms = Terms { a: grad, b: Some(grad), row_factors: None };
    add_rows(call, squares, terms, Write::Replace);
    let mut arguments =
        args![columns.address, squares.address, int(k), int(n), grad_scale, eps, beta2, rest2];
    call.launch("adafactor_columns", blocks(k.div_ceil(THREADS)), &mut arguments);

    let (mean, partials) = (doubles(call, 1), doubles(call, n));
    call.launch("adafactor_mean", blocks(1), &mut args![mean.address, rows.address, int(n)]);
    let mut arguments = args![
        partials.address,
        grad.address,
        rows.address,
        columns.address,
        mean.address,
        int(k),
        grad_scale
    ];
    call.launch("adafactor_squares", blocks(n), &mut arguments);

    let factors = clip(call, partials, n, n * k, constants);
    let mut arguments = args![
        param.address,
        grad.address,
        rows.address,
        columns.address,
        mean.address,
        factors.address,
        int(k),
        grad_scale
    ];
    call.launch("adafactor_factored_update", blocks(n), &mut arguments);
}

/// What is kept of a parameter of `n` elements, and the factor on its update, from the partial sums
/// of squares of the update [2].
fn clip(
    call: &Call<'_>,
    partials: Numbers,
    n_partials: usize,
    n: usize,
    constants: &Adafactor,
) -> Numbers {
    let factors = call.scratch(Format::F32, 2);
    let mut arguments = args![
        factors.address,
        partials.address,
        long(n_partials),
        long(n),
        f64::from(constants.clip_threshold),
        f64::from(constants.lr),
        f64::from(constants.weight_decay)
    ];
    call.launch("adafactor_clip", blocks(1), &mut arguments);
    factors
}
