//! AdamW.
//!
//! Numerics: corrections in f64, elements in f32.

use forgelm_kernels_api::{AdamW, Format};

use crate::call::{Argument, Call, Numbers, args};
use crate::chunk::{blocks, long};

/// Elements of a block of threads.
const BLOCK_ELEMENTS: usize = 8192;

/// A parameter with its moments and its gradient, of equal lengths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    pub(crate) param: Numbers,
    pub(crate) m: Numbers,
    pub(crate) v: Numbers,
    pub(crate) grad: Numbers,
}

impl Tensor {
    fn check(&self) {
        for (name, numbers) in [("m", self.m), ("v", self.v), ("grad", self.grad)] {
            assert_eq!(numbers.len, self.param.len, "{name} and param differ in length");
        }
        for numbers in [self.param, self.m, self.v, self.grad] {
            assert_eq!(numbers.format, Format::F32, "what trains is f32");
        }
    }
}

/// One parameter. `param`, `m`, `v` are changed, `grad` is read.
pub(crate) fn step(call: &Call<'_>, tensor: &Tensor, constants: &AdamW) {
    tensor.check();
    let Tensor { param, m, v, grad } = tensor;
    let n = param.len;
    let mut arguments = args![param.address, m.address, v.address, grad.address, long(n)].to_vec();
    arguments.extend(factors(constants));
    call.launch("adamw_step", blocks(n.div_ceil(BLOCK_ELEMENTS)), &mut arguments);
}

/// What multiplies what: the last arguments of the kernels of AdamW.
pub(crate) fn factors(constants: &AdamW) -> [Argument; 9] {
    let (beta1, beta2) = (constants.beta1, constants.beta2);
    let lr = f64::from(constants.lr);
    let step = constants.step as f64;
    args![
        beta1 as f32,
        (1.0 - beta1) as f32,
        beta2 as f32,
        (1.0 - beta2) as f32,
        constants.grad_scale,
        (1.0 - lr * f64::from(constants.weight_decay)) as f32,
        (-lr / (1.0 - beta1.powf(step))) as f32,
        (1.0 / (1.0 - beta2.powf(step))) as f32,
        constants.eps
    ]
}
