//! AdamW with moments in 8 bits.

use forgelm_kernels_api::dynamic_map::{SIGNED, UNSIGNED};
use forgelm_kernels_api::{AdamW, Blocks8bit, Format};

use crate::adamw::factors;
use crate::call::{Call, Numbers, args};
use crate::chunk::{blocks, int, long};

/// Blocks of elements of a block of threads: the maps are loaded once for them.
const BLOCKS_EACH: usize = 8;

/// Numbers in 8 bits, as [`Blocks8bit`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub(crate) codes: Numbers,
    pub(crate) absmax: Numbers,
}

/// Shapes: `param` [P], `m`, `v` of P elements changed, `grad` [P] read.
pub(crate) fn step(
    call: &Call<'_>,
    param: Numbers,
    m: Blocks,
    v: Blocks,
    grad: Numbers,
    constants: &AdamW,
) {
    let n = param.len;
    let n_blocks = n.div_ceil(Blocks8bit::BLOCK);
    assert_eq!(grad.len, n, "grad and param differ in length");
    assert_eq!((param.format, grad.format), (Format::F32, Format::F32), "what trains is f32");
    for (name, moment) in [("m", m), ("v", v)] {
        assert_eq!(moment.codes.len, n, "{name} and param differ in length");
        assert_eq!(moment.absmax.len, n_blocks, "{name} has another block count");
    }
    let mut arguments = args![
        param.address,
        m.codes.address,
        m.absmax.address,
        v.codes.address,
        v.absmax.address,
        grad.address,
        call.array(&SIGNED),
        call.array(&UNSIGNED),
        long(n),
        int(BLOCKS_EACH)
    ]
    .to_vec();
    arguments.extend(factors(constants));
    call.launch("adamw_8bit_step", blocks(n_blocks.div_ceil(BLOCKS_EACH)), &mut arguments);
}
