//! What formats and places of numbers do to the ops of one file each: formats round what is stored
//! and nothing else, places do nothing.
//!
//! That the ops are right on f32 is what kernels/check shows. Here each runs on numbers that all
//! formats have, in every format and at places where 16 bytes can and cannot be loaded at once, and
//! must give the bits of the same on f32, rounded to the format.

use forgelm_kernels_api::{Activation, Adafactor, AdamW, Columns, Dropout, Format, Write};
use half::bf16;

use crate::call::{Call, Numbers};
use crate::device::Device;
use crate::trial::{get, numbers, on_device_in_all_orders, put};
use crate::{adafactor, adamw, add, cast, columns, dropout, embedding, glu, rms_norm, rows};

/// An array of an op.
#[derive(Clone, Copy)]
enum Array {
    /// Of any format.
    Any(usize),
    /// Of f32 always.
    Exact(usize),
}

use Array::{Any, Exact};

/// Runs ops in every format, under all orders in which threads can take turns.
fn in_every_format(ops: impl Fn(&mut Trial<'_>)) {
    on_device_in_all_orders(|device| {
        let mut trial = Trial { device, results: Vec::new() };
        ops(&mut trial);
        trial.results
    });
}

struct Trial<'a> {
    device: &'a Device,
    /// Bits of all that was found.
    results: Vec<u32>,
}

impl Trial<'_> {
    /// Runs an op on arrays with every choice of formats and places.
    fn check(&mut self, name: &str, arrays: &[Array], op: impl Fn(&Call<'_>, &[Numbers])) {
        let plain = run(self.device, arrays, 0, false, &op);
        for choice in 0..1_u32 << arrays.len() {
            let is_possible = arrays.iter().enumerate().all(|(i, array)| match array {
                Any(_) => true,
                Exact(_) => choice >> i & 1 == 0,
            });
            if !is_possible {
                continue;
            }
            for is_shifted in [false, true] {
                let found = run(self.device, arrays, choice, is_shifted, &op);
                for (i, (found, plain)) in found.iter().zip(&plain).enumerate() {
                    let expected = plain.iter().map(|&x| match format(choice, i) {
                        Format::Bf16 => bf16::from_f32(x).to_f32(),
                        Format::F32 | Format::U8 | Format::U32 => x,
                    });
                    let expected: Vec<u32> = expected.map(f32::to_bits).collect();
                    let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                    assert!(found == expected, "{name}: array {i} of {choice:b} {is_shifted}");
                    self.results.extend(found);
                }
            }
        }
    }
}

/// The format of an array under a choice.
fn format(choice: u32, array: usize) -> Format {
    if choice >> array & 1 == 1 { Format::Bf16 } else { Format::F32 }
}

/// All arrays after the op.
fn run(
    device: &Device,
    arrays: &[Array],
    choice: u32,
    is_shifted: bool,
    op: impl Fn(&Call<'_>, &[Numbers]),
) -> Vec<Vec<f32>> {
    let call = Call::open(device, "trial");
    let put = |(i, array): (usize, &Array)| {
        let (Any(n) | Exact(n)) = *array;
        put(&call, &numbers(i as u32, n), format(choice, i), is_shifted)
    };
    let places: Vec<Numbers> = arrays.iter().enumerate().map(put).collect();
    op(&call, &places);
    let results = places.iter().map(|&numbers| get(&call, numbers)).collect();
    call.close();
    results
}

/// (T, C): narrow and wide rows, whole chunks and others.
const SIZES: [(usize, usize); 4] = [(9, 24), (2, 17), (2, 1032), (1, 1041)];

#[test]
fn norms() {
    in_every_format(|trial| {
        for (t, c) in SIZES {
            trial.check("forward", &[Any(t * c), Exact(t), Any(t * c), Exact(c)], |call, a| {
                rms_norm::forward(call, a[0], a[1], a[2], a[3], 1e-5);
            });
            let arrays = [Any(t * c), Any(t * c), Any(t * c), Exact(t), Exact(c)];
            for write in [Write::Replace, Write::Add] {
                trial.check("backward", &arrays, |call, a| {
                    rms_norm::backward(call, a[0], a[1], a[2], a[3], a[4], write);
                });
            }
            trial.check(
                "weight_backward",
                &[Exact(c), Any(t * c), Any(t * c), Exact(t)],
                |call, a| {
                    rms_norm::weight_backward(call, a[0], a[1], a[2], a[3]);
                },
            );
        }
    });
}

#[test]
fn elements() {
    in_every_format(|trial| {
        for n in [1, 40, 2051] {
            for act in [Activation::Silu, Activation::GeluTanh] {
                trial.check("glu forward", &[Any(n); 3], |call, a| {
                    glu::forward(call, a[0], a[1], a[2], act);
                });
                trial.check("glu backward", &[Any(n); 3], |call, a| {
                    glu::backward(call, a[0], a[1], a[2], act);
                });
            }
            trial.check("add", &[Any(n); 2], |call, a| add::add(call, a[0], a[1]));
            trial.check("copy", &[Any(n); 2], |call, a| cast::copy(call, a[0], a[1]));
            trial.check("fill", &[Any(n)], |call, a| cast::fill(call, a[0], 0.3));
            trial.check("scale", &[Any(n)], |call, a| cast::scale(call, a[0], 0.3));
            trial.check("soft_cap", &[Any(n)], |call, a| cast::soft_cap(call, a[0], 0.7));
        }
    });
}

#[test]
fn dropped_elements() {
    in_every_format(|trial| {
        let dropout = Dropout { p: 0.3, key: [5, 6] };
        for (t, c) in SIZES {
            let keys: Vec<u64> = (0..t as u64).map(|row| row << 33 | 7).collect();
            for write in [Write::Replace, Write::Add] {
                trial.check("dropout", &[Any(t * c); 2], |call, a| {
                    dropout::dropout(call, a[0], a[1], &keys, &dropout, write);
                });
            }
        }
    });
}

#[test]
fn rows_of_tables() {
    in_every_format(|trial| {
        for (t, c) in SIZES {
            let tokens: Vec<u32> = (0..t as u32).map(|row| row * 5 % 3).collect();
            trial.check("forward", &[Any(t * c), Any(3 * c)], |call, a| {
                embedding::forward(call, a[0], &tokens, a[1]);
            });
            trial.check("backward", &[Exact(3 * c), Any(t * c)], |call, a| {
                embedding::backward(call, a[0], a[1], &tokens);
            });
        }
    });
}

#[test]
fn columns_of_matrices() {
    in_every_format(|trial| {
        for (t, n) in [(9, 24), (2, 17), (70, 8), (4100, 3), (2, 264)] {
            trial.check("add_bias", &[Any(t * n), Any(n)], |call, a| {
                columns::add_bias(call, a[0], a[1])
            });
            trial.check("sums", &[Exact(n), Any(t * n)], |call, a| columns::sums(call, a[0], a[1]));
            trial.check("dots", &[Exact(n), Any(t * n), Any(t * n)], |call, a| {
                columns::dots(call, a[0], a[1], a[2]);
            });
            for write in [Write::Replace, Write::Add] {
                trial.check("scale", &[Any(t * n), Any(t * n), Any(n)], |call, a| {
                    columns::scale(call, a[0], a[1], a[2], write);
                });
            }
        }
    });
}

#[test]
fn rows_of_matrices() {
    in_every_format(|trial| {
        for (t, c) in SIZES {
            let chosen: Vec<u32> = (0..t as u32).rev().step_by(2).collect();
            let r = chosen.len();
            trial.check("gather", &[Any(r * c), Any(t * c)], |call, a| {
                rows::gather(call, a[0], a[1], (&chosen).into());
            });
            trial.check("scatter", &[Any(t * c), Any(r * c)], |call, a| {
                rows::scatter(call, a[0], a[1], (&chosen).into());
            });
            trial.check("scale_each", &[Any(t * c), Any(t)], |call, a| {
                rows::scale_each(call, a[0], a[1]);
            });
            trial.check("dots", &[Any(t), Any(t * c), Any(t * c)], |call, a| {
                rows::dots(call, a[0], a[1], a[2]);
            });
            trial.check("softmax", &[Any(t * c)], |call, a| rows::softmax(call, a[0], c));
            trial.check("sigmoid_gate_forward", &[Any(t * c), Any(t)], |call, a| {
                rows::sigmoid_gate_forward(call, a[0], a[1]);
            });
            trial.check("sigmoid_gate_backward", &[Any(t * c), Any(t), Any(t * c)], |call, a| {
                rows::sigmoid_gate_backward(call, a[0], a[1], a[2]);
            });
            for (first, wider) in [(8, 16), (3, 5)] {
                let to = Columns { width: c + wider, first };
                let from = Columns { width: c + first, first };
                let arrays = [Any(t * to.width), Any(t * from.width)];
                trial.check("copy_columns", &arrays, |call, a| {
                    rows::copy_columns(call, (a[0], to), (a[1], from), c);
                });
            }
        }
    });
}

#[test]
fn steps_of_optimizers() {
    in_every_format(|trial| {
        let constants = AdamW {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 0.25,
            step: 3,
        };
        for n in [1, 300, 8195] {
            trial.check("adamw", &[Exact(n); 4], |call, a| {
                // Second moments are squares.
                cast::fill(call, a[2], 0.0);
                columns::dots(call, a[2], a[3], a[3]);
                let [param, m, v, grad] = [a[0], a[1], a[2], a[3]];
                adamw::step(call, &adamw::Tensor { param, m, v, grad }, &constants);
            });
        }
        let constants = Adafactor {
            lr: 0.01,
            eps: 1e-30,
            clip_threshold: 1.0,
            weight_decay: 0.1,
            grad_scale: 0.25,
            step: 1,
        };
        for (n, k) in [(3, 17), (70, 8)] {
            trial.check(
                "adafactor",
                &[Exact(n * k), Exact(n), Exact(k), Exact(n * k)],
                |call, a| {
                    let moments = adafactor::Moments::Factored { rows: a[1], columns: a[2] };
                    adafactor::step(call, a[0], moments, a[3], &constants);
                },
            );
            trial.check("adafactor", &[Exact(n * k); 3], |call, a| {
                adafactor::step(call, a[0], adafactor::Moments::Whole(a[1]), a[2], &constants);
            });
        }
    });
}
