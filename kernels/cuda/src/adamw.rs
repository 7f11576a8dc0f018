//! AdamW.
//!
//! Numerics: corrections in f64, elements in f32.

use forgelm_kernels_api::{AdamW, Format};

use crate::call::{Argument, Call, Numbers, args};
use crate::chunk::{blocks, int, long};

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

/// Many parameters in one launch, each as [`step`] would change it, to the last bit.
#[cfg_attr(not(test), expect(dead_code, reason = "the interface has one parameter a call so far"))]
pub(crate) fn step_many(call: &Call<'_>, tensors: &[Tensor], constants: &AdamW) {
    let mut n_blocks = 0;
    // The fields of the kernel's table, all of 64 bits.
    let mut table: Vec<u64> = Vec::with_capacity(tensors.len() * 6);
    for tensor in tensors.iter().filter(|tensor| tensor.param.len > 0) {
        tensor.check();
        let Tensor { param, m, v, grad } = tensor;
        table.extend([param.address, m.address, v.address, grad.address]);
        table.extend([param.len as u64, n_blocks as u64]);
        n_blocks += param.len.div_ceil(BLOCK_ELEMENTS);
    }
    let mut arguments = args![call.array(&table), int(table.len() / 6)].to_vec();
    arguments.extend(factors(constants));
    call.launch("adamw_step_many", blocks(n_blocks), &mut arguments);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{get, in_all_orders, numbers, put};

    #[test]
    fn many_parameters_in_one_launch_get_the_bits_of_one_at_a_time() {
        let constants = AdamW {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 0.25,
            step: 2,
        };
        in_all_orders(|call| {
            let [many, each] = [true, false].map(|is_many| {
                let of_length = |(i, n): (usize, usize)| {
                    let array = |seed: usize| {
                        let values = numbers((4 * i + seed) as u32, n);
                        let values: Vec<f32> = values.iter().map(|x| x.abs()).collect();
                        // Some of them lie where 16 bytes cannot be loaded at once.
                        put(call, &values, Format::F32, i % 2 == 1)
                    };
                    Tensor { param: array(0), m: array(1), v: array(2), grad: array(3) }
                };
                let lengths = [1, 8192, 0, 8193, 20_000, 7].into_iter().enumerate();
                let tensors: Vec<Tensor> = lengths.map(of_length).collect();
                if is_many {
                    step_many(call, &tensors, &constants);
                } else {
                    tensors.iter().for_each(|tensor| step(call, tensor, &constants));
                }
                let changed = |t: &Tensor| [t.param, t.m, t.v].map(|numbers| get(call, numbers));
                tensors.iter().map(changed).collect::<Vec<_>>()
            });
            assert!(many == each, "a parameter differs");
            many
        });
    }
}
