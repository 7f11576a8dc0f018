//! The main ops at shapes of SmolLM2-135M: for a change to one kernel, before and after.
//!
//! `cargo bench -p forgelm_kernels_cpu -- linear` runs those whose name has the word in it. Shares
//! of what the machine could do are printed by `forgelm-bench`, not here.
#![expect(missing_docs, reason = "the macro makes an item of its own")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forgelm_kernels_api::{Activation, AttentionShape, Compute, Ops, RowSource, Segment, Write};
use forgelm_kernels_cpu::Cpu;

const HIDDEN: usize = 576;
const MLP: usize = 1536;
const HEADS: (usize, usize, usize) = (9, 3, 64);

/// Numbers without a pattern that matters.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from((state >> 16) as u16) / 32_768.0 - 1.0
        })
        .collect()
}

struct Rows(Vec<f32>, usize);

impl RowSource for Rows {
    fn n_rows(&self) -> usize {
        self.0.len() / self.1
    }

    fn n_cols(&self) -> usize {
        self.1
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        let from = first_row * self.1;
        out.copy_from_slice(&self.0[from..from + out.len()]);
    }
}

fn linear(c: &mut Criterion) {
    let cpu = Cpu::new(1);
    let source = Rows(numbers(MLP * HIDDEN), HIDDEN);
    for compute in [Compute::F32, Compute::Bf16] {
        let w = cpu.freeze(&source, compute);
        let mut group = c.benchmark_group(format!("linear {MLP} x {HIDDEN} {compute:?}"));
        for rows in [1, 8, 256] {
            group.throughput(Throughput::Elements((2 * rows * MLP * HIDDEN) as u64));
            let (x, dy) = (numbers(rows * HIDDEN), numbers(rows * MLP));
            let (mut y, mut dx) = (vec![0.0; rows * MLP], vec![0.0; rows * HIDDEN]);
            group.bench_function(format!("forward, {rows} rows"), |b| {
                b.iter(|| {
                    cpu.linear_forward((black_box(&mut y)).into(), (&x).into(), &*w, Write::Replace)
                });
            });
            group.bench_function(format!("backward, {rows} rows"), |b| {
                b.iter(|| {
                    cpu.linear_backward(
                        (black_box(&mut dx)).into(),
                        (&dy).into(),
                        &*w,
                        Write::Replace,
                    )
                });
            });
        }
    }
}

fn attention(c: &mut Criterion) {
    let cpu = Cpu::new(1);
    let (h, h_kv, d) = HEADS;
    let shape = AttentionShape {
        n_heads: h,
        n_kv_heads: h_kv,
        head_dim: d,
        scale: 0.125,
        window: None,
        soft_cap: None,
        compute: Compute::Bf16,
    };
    let t = 256;
    let (q, k, v) = (numbers(t * h * d), numbers(t * h_kv * d), numbers(t * h_kv * d));
    let (mut out, mut lse) = (vec![0.0; t * h * d], vec![0.0; t * h]);
    c.bench_function("attention forward, 256", |b| {
        let segments = [Segment { start: 0, len: t }];
        b.iter(|| {
            cpu.attention_forward(
                (black_box(&mut out)).into(),
                (&mut lse).into(),
                (&q).into(),
                (&k).into(),
                (&v).into(),
                &shape,
                &segments,
            )
        });
    });
    c.bench_function("attention cached, 1 of 256", |b| {
        let out = &mut out[..h * d];
        b.iter(|| {
            cpu.attention_cached(
                (black_box(&mut *out)).into(),
                (&q[..h * d]).into(),
                (&k).into(),
                (&v).into(),
                &shape,
            )
        });
    });
}

fn rows(c: &mut Criterion) {
    let cpu = Cpu::new(1);
    let t = 256;
    let (x, weight) = (numbers(t * HIDDEN), numbers(HIDDEN));
    let (mut y, mut inv_rms) = (vec![0.0; t * HIDDEN], vec![0.0; t]);
    c.bench_function("rms_norm forward, 256 x 576", |b| {
        b.iter(|| {
            cpu.rms_norm_forward(
                (black_box(&mut y)).into(),
                (&mut inv_rms).into(),
                (&x).into(),
                (&weight).into(),
                1e-5,
            )
        });
    });
    let (gate, up) = (numbers(t * MLP), numbers(t * MLP));
    let mut product = vec![0.0; t * MLP];
    c.bench_function("glu forward, 256 x 1536", |b| {
        b.iter(|| {
            cpu.glu_forward(
                (black_box(&mut product)).into(),
                (&gate).into(),
                (&up).into(),
                Activation::Silu,
            )
        });
    });
}

fn head(c: &mut Criterion) {
    let cpu = Cpu::new(1);
    let (t, vocabulary) = (64, 8192);
    let w = cpu.freeze(&Rows(numbers(vocabulary * HIDDEN), HIDDEN), Compute::Bf16);
    let (x, labels) = (numbers(t * HIDDEN), vec![7; t]);
    let (mut logp, mut lse) = (vec![0.0; t], vec![0.0; t]);
    c.bench_function("token_logprobs forward, 64 x 8192 Bf16", |b| {
        b.iter(|| {
            cpu.token_logprobs_forward(
                (black_box(&mut logp)).into(),
                (&mut lse).into(),
                (&x).into(),
                &*w,
                &labels,
                None,
            )
        });
    });
}

criterion_group!(benches, linear, attention, rows, head);
criterion_main!(benches);
