//! `forgelm-bench ops`: every op of a training step of SmolLM2-135M at T = 1024, and how much of a
//! step each takes.

use std::time::Duration;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Compute, Dropout,
    FrozenMatrix, GemmDims, GemmLayout, LowRank, Ops, Rotation, Segment, Write,
};
use forgelm_kernels_cpu::Cpu;

use crate::Options;
use crate::clock::{Times, round};
use crate::shapes::{HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, MLP, Rows, VOCABULARY, numbers};

const T: usize = 1024;
const RANK: usize = 8;

/// Name, calls in a step (LoRA on the query and value projections), bytes that a call moves at
/// least, floating-point operations, and the call.
struct Entry<'a> {
    name: String,
    n_calls: usize,
    bytes: usize,
    operations: f64,
    call: Box<dyn FnMut() + 'a>,
}

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    let threads = options.threads.map_or(vec![1, 2], |n| vec![n]);
    for n_threads in threads {
        let cpu = Cpu::new(n_threads);
        for compute in [Compute::F32, Compute::Bf16] {
            println!("{} on {n_threads} thread(s), {compute:?}, T = {T}", cpu.name());
            report(&cpu, compute, &options);
        }
    }
    Ok(())
}

fn report(cpu: &Cpu, compute: Compute, options: &Options) {
    println!("op                                  ms   GB/s  GFLOP/s  calls  ms a step");
    let rounds = if options.quick { 2 } else { 5 };
    let length = Duration::from_millis(20);
    let mut step = 0.0;
    let weights = Weights::new(cpu, compute);
    for mut entry in linear(cpu, &weights).into_iter().chain(others(cpu, &weights)) {
        let best = (0..rounds)
            .map(|_| round(length, &mut entry.call))
            .fold(Times::MAX, Times::min)
            .seconds(cpu.n_threads());
        let in_step = best * 1e3 * entry.n_calls as f64;
        step += in_step;
        println!(
            "{:30}{:8.3}{:7.1}{:9.1}{:7}{in_step:11.1}",
            entry.name,
            best * 1e3,
            entry.bytes as f64 / best / 1e9,
            entry.operations / best / 1e9,
            entry.n_calls,
        );
    }
    println!("the calls of a step: {step:.0} ms, {:.0} tokens/s", T as f64 / step * 1e3);
}

struct Weights {
    compute: Compute,
    layer: Vec<(&'static str, Box<dyn FrozenMatrix>)>,
    head: Box<dyn FrozenMatrix>,
}

impl Weights {
    fn new(cpu: &Cpu, compute: Compute) -> Self {
        let kv = KV_HEADS * HEAD_DIM;
        let layer = [
            ("q, o", HIDDEN, HIDDEN),
            ("k, v", kv, HIDDEN),
            ("gate, up", MLP, HIDDEN),
            ("down", HIDDEN, MLP),
        ]
        .map(|(name, n, k)| (name, cpu.freeze(&Rows { n, k }, compute)))
        .into();
        Self { compute, layer, head: cpu.freeze(&Rows { n: VOCABULARY, k: HIDDEN }, compute) }
    }
}

fn entry<'a>(
    name: impl Into<String>,
    n_calls: usize,
    bytes: usize,
    operations: f64,
    call: impl FnMut() + 'a,
) -> Entry<'a> {
    Entry { name: name.into(), n_calls, bytes, operations, call: Box::new(call) }
}

fn linear<'a>(cpu: &'a Cpu, weights: &'a Weights) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for (name, w) in &weights.layer {
        let (n, k) = (w.n_rows(), w.n_cols());
        // Of each pair of attention's weights, one has an adapter.
        let adapted = ["q, o", "k, v"].contains(name);
        let calls = if adapted || *name == "down" { LAYERS } else { 2 * LAYERS };
        let bytes = 4 * T * (n + k) + w.n_bytes();
        if adapted {
            entries.extend(with_adapter(cpu, name, &**w));
        }
        let operations = 2.0 * (T * n * k) as f64;
        let (x, mut y) = (numbers(T * k), vec![0.0; T * n]);
        entries.push(entry(
            format!("linear_forward {name}"),
            calls,
            bytes,
            operations,
            move || {
                cpu.linear_forward((&mut y).into(), (&x).into(), &**w, Write::Replace);
            },
        ));
        let (dy, mut dx) = (numbers(T * n), vec![0.0; T * k]);
        entries.push(entry(
            format!("linear_backward {name}"),
            calls,
            bytes,
            operations,
            move || {
                cpu.linear_backward((&mut dx).into(), (&dy).into(), &**w, Write::Replace);
            },
        ));
    }
    entries
}

/// The products with a weight and the low-rank one beside it.
fn with_adapter<'a>(cpu: &'a Cpu, name: &str, w: &'a dyn FrozenMatrix) -> [Entry<'a>; 2] {
    let (n, k) = (w.n_rows(), w.n_cols());
    let bytes = |n| 4 * (T * (n + k) + RANK * (T + n)) + w.n_bytes();
    let operations = |width| 2.0 * (T * n * k) as f64 + 2.0 * (T * RANK * width) as f64;
    let (x, u, v, mut y) = (numbers(T * k), numbers(T * RANK), numbers(n * RANK), vec![0.0; T * n]);
    let forward = move || {
        let low_rank = LowRank { u: (&u).into(), v: (&v).into(), scale: 2.0 };
        cpu.linear_forward_low_rank((&mut y).into(), (&x).into(), w, low_rank, Write::Replace);
    };
    let (dy, u, v, mut dx) =
        (numbers(T * n), numbers(T * RANK), numbers(RANK * k), vec![0.0; T * k]);
    let backward = move || {
        let low_rank = LowRank { u: (&u).into(), v: (&v).into(), scale: 1.0 };
        cpu.linear_backward_low_rank((&mut dx).into(), (&dy).into(), w, low_rank, Write::Replace);
    };
    [
        entry(format!("... with y += h b^T {name}"), LAYERS, bytes(n), operations(n), forward),
        entry(format!("... with dx += dh a {name}"), LAYERS, bytes(k), operations(k), backward),
    ]
}

fn others<'a>(cpu: &'a Cpu, weights: &'a Weights) -> Vec<Entry<'a>> {
    let mut entries = logprobs(cpu, weights);
    entries.extend(attention(cpu, "4 x 256", 4, weights.compute));
    entries.extend(attention(cpu, "1 x 1024", 1, weights.compute));
    entries.extend(lora(cpu));
    entries.extend(elementwise(cpu, weights));
    entries
}

fn logprobs<'a>(cpu: &'a Cpu, weights: &'a Weights) -> Vec<Entry<'a>> {
    let head = &*weights.head;
    let labels: Vec<u32> = (0..T as u32).map(|i| i * 31 % VOCABULARY as u32).collect();
    let x = numbers(T * HIDDEN);
    let (mut logp, mut lse) = (vec![0.0; T], vec![0.0; T]);
    cpu.token_logprobs_forward(
        (&mut logp).into(),
        (&mut lse).into(),
        (&x).into(),
        head,
        &labels,
        None,
    );
    let product = 2.0 * (T * HIDDEN) as f64 * VOCABULARY as f64;
    let (x2, labels2, lse2) = (x.clone(), labels.clone(), lse.clone());
    let (mut dx, dlogp) = (vec![0.0; T * HIDDEN], numbers(T));
    let forward = move || {
        cpu.token_logprobs_forward(
            (&mut logp).into(),
            (&mut lse).into(),
            (&x).into(),
            head,
            &labels,
            None,
        );
    };
    let backward = move || {
        cpu.token_logprobs_backward(
            (&mut dx).into(),
            (&dlogp).into(),
            (&lse2).into(),
            (&x2).into(),
            head,
            &labels2,
            None,
        );
    };
    vec![
        entry("token_logprobs_forward", 1, head.n_bytes(), product, forward),
        entry("token_logprobs_backward", 1, head.n_bytes(), 2.0 * product, backward),
    ]
}

fn attention<'a>(cpu: &'a Cpu, name: &str, n_segments: usize, compute: Compute) -> Vec<Entry<'a>> {
    let shape = AttentionShape {
        n_heads: HEADS,
        n_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: 0.125,
        window: None,
        soft_cap: None,
        compute,
    };
    let len = T / n_segments;
    let segments: Vec<_> = (0..n_segments).map(|i| Segment { start: i * len, len }).collect();
    let (c, c_kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let (q, k, v) = (numbers(T * c), numbers(T * c_kv), numbers(T * c_kv));
    let (mut out, mut lse) = (vec![0.0; T * c], vec![0.0; T * HEADS]);
    cpu.attention_forward(
        (&mut out).into(),
        (&mut lse).into(),
        (&q).into(),
        (&k).into(),
        (&v).into(),
        &shape,
        &segments,
    );
    let product = (T * (len + 1) / 2 * c) as f64 * 2.0;
    let bytes = 4 * T * (2 * c + 2 * c_kv);
    // Only one of the two cases is part of a step.
    let calls = if n_segments == 4 { LAYERS } else { 0 };
    let (q2, k2, v2, out2, lse2) = (q.clone(), k.clone(), v.clone(), out.clone(), lse.clone());
    let segments2 = segments.clone();
    let forward = move || {
        cpu.attention_forward(
            (&mut out).into(),
            (&mut lse).into(),
            (&q).into(),
            (&k).into(),
            (&v).into(),
            &shape,
            &segments,
        );
    };
    let dout = numbers(T * c);
    let (mut dq, mut dk, mut dv) = (vec![0.0; T * c], vec![0.0; T * c_kv], vec![0.0; T * c_kv]);
    let backward = move || {
        cpu.attention_backward(
            (&mut dq).into(),
            (&mut dk).into(),
            (&mut dv).into(),
            (&dout).into(),
            (&out2).into(),
            (&lse2).into(),
            (&q2).into(),
            (&k2).into(),
            (&v2).into(),
            &shape,
            &segments2,
        );
    };
    vec![
        entry(format!("attention_forward {name}"), calls, bytes, 2.0 * product, forward),
        entry(format!("attention_backward {name}"), calls, 2 * bytes, 5.0 * product, backward),
    ]
}

/// The products of one adapter that stand alone, each layer's query (wide) and value (narrow)
/// projection.
fn lora(cpu: &Cpu) -> Vec<Entry<'_>> {
    let kv = KV_HEADS * HEAD_DIM;
    let mut entries = Vec::new();
    for (name, n) in [("q", HIDDEN), ("v", kv)] {
        let products = [
            ("h = x a^T", GemmLayout::Nt, T, RANK, HIDDEN, Write::Replace),
            ("dh = dy b", GemmLayout::Nn, T, RANK, n, Write::Replace),
            ("db = dy^T h", GemmLayout::Tn, n, RANK, T, Write::Add),
            ("da = dh^T x", GemmLayout::Tn, RANK, HIDDEN, T, Write::Add),
        ];
        for (product, layout, m, n, k, write) in products {
            let (a, b, mut c) = (numbers(m * k), numbers(k * n), vec![0.0; m * n]);
            let bytes = 4 * (m * k + k * n + m * n);
            let dims = GemmDims { m, n, k };
            let operations = 2.0 * (m * n * k) as f64;
            entries.push(entry(
                format!("gemm {name}: {product}"),
                LAYERS,
                bytes,
                operations,
                move || {
                    cpu.gemm((&mut c).into(), (&a).into(), (&b).into(), layout, dims, 1e-3, write)
                },
            ));
        }
    }
    entries
}

fn elementwise<'a>(cpu: &'a Cpu, weights: &'a Weights) -> Vec<Entry<'a>> {
    let c = T * HIDDEN;
    let f = T * MLP;
    let x = numbers(c);
    let weight = numbers(HIDDEN);
    let mut entries = Vec::new();
    {
        let (x, weight) = (x.clone(), weight.clone());
        let (mut y, mut inv) = (vec![0.0; c], vec![0.0; T]);
        entries.push(entry("rms_norm_forward", 2 * LAYERS + 1, 8 * c, 0.0, move || {
            cpu.rms_norm_forward(
                (&mut y).into(),
                (&mut inv).into(),
                (&x).into(),
                (&weight).into(),
                1e-5,
            );
        }));
    }
    {
        let (x, dy, mut dx, inv) = (x.clone(), x.clone(), vec![0.0; c], vec![1.0; T]);
        entries.push(entry("rms_norm_backward", 2 * LAYERS + 1, 16 * c, 0.0, move || {
            cpu.rms_norm_backward(
                (&mut dx).into(),
                (&dy).into(),
                (&x).into(),
                (&inv).into(),
                (&weight).into(),
                Write::Replace,
            );
        }));
    }
    {
        let mut x = x.clone();
        let (cos, sin) = (vec![0.8; T * HEAD_DIM / 2], vec![0.6; T * HEAD_DIM / 2]);
        entries.push(entry("rope", 2 * LAYERS, 8 * c, 0.0, move || {
            cpu.rope(
                (&mut x).into(),
                (&cos).into(),
                (&sin).into(),
                HEADS,
                HEAD_DIM,
                Rotation::Forward,
            );
        }));
    }
    {
        let (gate, up, mut y) = (numbers(f), numbers(f), vec![0.0; f]);
        entries.push(entry("glu_forward", LAYERS, 12 * f, 0.0, move || {
            cpu.glu_forward((&mut y).into(), (&gate).into(), (&up).into(), Activation::Silu);
        }));
    }
    {
        let (mut gate, mut up, dy) = (numbers(f), numbers(f), numbers(f));
        entries.push(entry("glu_backward", LAYERS, 20 * f, 0.0, move || {
            cpu.glu_backward((&mut gate).into(), (&mut up).into(), (&dy).into(), Activation::Silu);
        }));
    }
    {
        let (x, mut y, keys) = (x.clone(), vec![0.0; c], (0..T as u64).collect::<Vec<_>>());
        let dropout = Dropout { p: 0.05, key: [1, 2] };
        entries.push(entry("dropout", 4 * LAYERS, 8 * c, 0.0, move || {
            cpu.dropout((&mut y).into(), (&x).into(), &keys, &dropout, Write::Replace);
        }));
    }
    {
        let (x, mut y) = (x.clone(), vec![0.0; c]);
        entries.push(entry("add", 2 * LAYERS, 12 * c, 0.0, move || {
            cpu.add((&mut y).into(), (&x).into())
        }));
    }
    {
        let tokens: Vec<u32> = (0..T as u32).map(|i| i * 47 % VOCABULARY as u32).collect();
        let (table, mut y) = (&*weights.head, vec![0.0; c]);
        entries.push(entry("embedding_forward", 1, 8 * c, 0.0, move || {
            cpu.embedding_forward((&mut y).into(), &tokens, table);
        }));
    }
    entries.extend(optimizer(cpu));
    entries.extend(whole_matrix(cpu));
    entries
}

fn optimizer(cpu: &Cpu) -> Vec<Entry<'_>> {
    // All adapters of rank 8 on the query and value projections.
    let n = LAYERS * RANK * (2 * HIDDEN + HIDDEN + KV_HEADS * HEAD_DIM);
    let grad = numbers(n);
    let (mut p, mut m, mut v) = (numbers(n), vec![0.0; n], vec![0.0; n]);
    let constants = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        grad_scale: 1.0,
        step: 10,
    };
    let grad2 = grad.clone();
    vec![
        entry("sum_of_squares", 1, 4 * n, 0.0, move || {
            std::hint::black_box(cpu.sum_of_squares((&grad2).into()));
        }),
        entry("adamw_step", 1, 28 * n, 0.0, move || {
            cpu.adamw_step(
                (&mut p).into(),
                (&mut m).into(),
                (&mut v).into(),
                (&grad).into(),
                &constants,
            );
        }),
    ]
}

/// One matrix of the MLP, trained whole, by each optimizer.
fn whole_matrix(cpu: &Cpu) -> Vec<Entry<'_>> {
    const N: usize = MLP * HIDDEN;
    let grad: &[f32] = numbers(N).leak();
    let adamw = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        grad_scale: 1.0,
        step: 10,
    };
    let adafactor = Adafactor {
        lr: 1e-4,
        eps: 1e-30,
        clip_threshold: 1.0,
        weight_decay: 0.01,
        grad_scale: 1.0,
        step: 10,
    };
    let (mut p, mut m, mut v) = (numbers(N), vec![0.0; N], vec![0.0; N]);
    let (mut p8, mut codes) = (numbers(N), [vec![0; N], vec![0; N]]);
    let mut absmax = [vec![0.0; N / Blocks8bit::BLOCK], vec![0.0; N / Blocks8bit::BLOCK]];
    let (mut pf, mut rows, mut columns) = (numbers(N), vec![0.0; MLP], vec![0.0; HIDDEN]);
    vec![
        entry("adamw_step, a matrix", 0, 28 * N, 0.0, move || {
            cpu.adamw_step((&mut p).into(), (&mut m).into(), (&mut v).into(), grad.into(), &adamw);
        }),
        entry("adamw_8bit_step, a matrix", 0, 16 * N, 0.0, move || {
            let ([m, v], [m_max, v_max]) = (&mut codes, &mut absmax);
            let m = Blocks8bit { codes: m.into(), absmax: m_max.into() };
            let v = Blocks8bit { codes: v.into(), absmax: v_max.into() };
            cpu.adamw_8bit_step((&mut p8).into(), m, v, grad.into(), &adamw);
        }),
        entry("adafactor_step, a matrix", 0, 20 * N, 0.0, move || {
            let (rows, columns) = ((&mut rows).into(), (&mut columns).into());
            let moments = AdafactorMoments::Factored { rows, columns };
            cpu.adafactor_step((&mut pf).into(), moments, grad.into(), &adafactor);
        }),
    ]
}
