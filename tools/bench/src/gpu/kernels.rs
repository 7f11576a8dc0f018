//! Each of our own kernels against its floor: the bytes that it must read and write, at the rate of
//! a copy; attention and products against the rate of cuBLASLt's products.

mod adapters;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Buffer, Choice,
    Compute, Dropout, LowRank, Ops as _, Precision, Rotation, Rounding, Routing, RoutingMut,
    Segment, Write,
};
use forgelm_kernels_cuda::Cuda;
use forgelm_tensor::{FourBit, FourBitMatrix, ScaleStorage};
use serde_json::{Map, Value, json};

use super::Context;
use super::device::{Opened, Products, open};
use super::finding::{Finding, Table};
use super::shapes::{QWEN3_8B, RANK, Shape, TINY};
use crate::shapes::Rows;

/// Numbers within a layer.
const INNER: Precision = Precision::Like(Compute::Bf16);
const EXACT: Precision = Precision::Exact;

/// What else is measured: attention comes before, as predictions need it.
type Measure = fn(&mut Bench<'_>) -> Result<(), String>;
const GROUPS: [(&str, Measure); 7] = [
    ("norms and angles", |bench| bench.norms_and_angles()),
    ("elementwise ops", |bench| bench.elementwise()),
    ("the head", |bench| bench.head()),
    ("rows", |bench| bench.rows()),
    ("optimizers", |bench| bench.optimizers()),
    ("weights in blocks", |bench| bench.packed()),
    ("adapters", |bench| bench.adapters()),
];

/// What is measured, and what was found so far.
struct Bench<'a> {
    opened: &'a Opened,
    shape: Shape,
    /// Rows.
    t: usize,
    /// Bytes a second of a copy.
    copy: f64,
    /// Operations a second of cuBLASLt.
    products: f64,
    /// f32 numbers without a pattern, for every buffer to begin with.
    noise: Buffer,
    by_bytes: Table,
    by_operations: Table,
    by_ways: Table,
    seconds: Map<String, Value>,
}

pub(crate) fn run(context: &Context<'_>) -> Result<Finding, String> {
    let ceilings = Finding::read(&context.arguments.parts, "ceilings")
        .ok_or("the part `ceilings` did not run, and there is nothing to compare with")?;
    let opened = context.open()?;
    let (shape, t, lengths) = match context.is_tiny() {
        true => (TINY, 32, &[16, 32][..]),
        false => (QWEN3_8B, 8192, &[2048, 8192, 32_768][..]),
    };
    let mut bench = Bench::new(&opened, shape, t, &ceilings)?;
    let mut notes = Vec::new();
    let mut rates = Map::new();
    for &len in lengths {
        if context.has_time_for(&format!("attention over {len}"), &mut notes) {
            rates.insert(len.to_string(), json!(bench.attention(len)?));
        }
    }
    for (what, measure) in GROUPS {
        if context.has_time_for(what, &mut notes) {
            measure(&mut bench)?;
        }
    }
    if context.has_time_for("own products", &mut notes) {
        bench.own_products(context)?;
    }
    notes.extend([
        format!(
            "Sizes are those of {} with T = {t}. A floor is the bytes that must be read and written, \
             each once, at {:.0} GB/s; operations are held against {:.1} TFLOP/s.",
            shape.name,
            bench.copy / 1e9,
            bench.products / 1e12
        ),
        "Times are by the device's events, the best mean of a few rounds. What fits into the second \
         level's cache can be faster than its floor."
            .to_owned(),
        "An adapter is a second product; one product over a longer sum, with the copy that it would \
         need, is measured beside it and not built (docs/performance/cuda.md)."
            .to_owned(),
    ]);
    Ok(Finding {
        tables: vec![bench.by_bytes, bench.by_operations, bench.by_ways],
        notes,
        numbers: json!({
            "seconds": Value::Object(bench.seconds),
            "attention_flops_per_second": Value::Object(rates),
        }),
        ..Finding::default()
    })
}

impl<'a> Bench<'a> {
    fn new(opened: &'a Opened, shape: Shape, t: usize, ceilings: &Finding) -> Result<Self, String> {
        let rate = |path: &str| ceilings.number(path).ok_or_else(|| format!("no {path}"));
        let copy = rate("/copy_bytes_per_second")?;
        let products = rate(&format!("/products_flops_per_second/{t}"))?;
        let n = t * shape.mlp.max(4 * shape.hidden);
        let noise = opened.cuda.place(crate::shapes::numbers(n)).map_err(|r| r.to_string())?;
        let by_bytes = Table::new(&["op", ">bytes", ">ms", ">floor ms", ">% of it"]);
        let by_operations = Table::new(&["op", ">TFLOP", ">ms", ">TFLOP/s", ">% of cuBLASLt"]);
        let (by_ways, seconds) = (adapters::table(), Map::new());
        Ok(Self {
            opened,
            shape,
            t,
            copy,
            products,
            noise,
            by_bytes,
            by_operations,
            by_ways,
            seconds,
        })
    }

    fn ops(&self) -> &'a Cuda {
        &self.opened.cuda
    }

    fn buffer(&self, n: usize, precision: Precision) -> Result<Buffer, String> {
        let ops = self.ops();
        let mut buffer = ops.allocate(n, precision).map_err(|refused| refused.to_string())?;
        let mut done = 0;
        while done < n {
            let len = (n - done).min(self.noise.len());
            ops.copy(buffer.part_mut(done..done + len), self.noise.part(0..len));
            done += len;
        }
        Ok(buffer)
    }

    /// Times what moves bytes.
    fn moves(&mut self, op: &str, bytes: usize, mut call: impl FnMut()) -> Result<(), String> {
        let seconds = self.opened.time(&mut call)?;
        let floor = bytes as f64 / self.copy;
        self.seconds.insert(op.to_owned(), json!({ "seconds": seconds, "bytes": bytes }));
        self.by_bytes.row(&[
            op.to_owned(),
            format!("{:.1} MB", bytes as f64 / 1e6),
            format!("{:.4}", seconds * 1e3),
            format!("{:.4}", floor * 1e3),
            format!("{:.0}", 100.0 * floor / seconds),
        ]);
        Ok(())
    }

    /// Times what computes.
    fn computes(&mut self, op: &str, flops: f64, mut call: impl FnMut()) -> Result<f64, String> {
        let seconds = self.opened.time(&mut call)?;
        self.seconds.insert(op.to_owned(), json!({ "seconds": seconds, "flops": flops }));
        self.by_operations.row(&[
            op.to_owned(),
            format!("{:.4}", flops / 1e12),
            format!("{:.4}", seconds * 1e3),
            format!("{:.1}", flops / seconds / 1e12),
            format!("{:.0}", 100.0 * flops / seconds / self.products),
        ]);
        Ok(seconds)
    }

    fn norms_and_angles(&mut self) -> Result<(), String> {
        let (t, c, d) = (self.t, self.shape.hidden, self.shape.head_dim);
        let ops = self.ops();
        let weight = self.buffer(c, EXACT)?;
        let (mut x, mut y) = (self.buffer(t * c, EXACT)?, self.buffer(t * c, INNER)?);
        let mut inv = self.buffer(t, EXACT)?;
        self.moves("rms_norm_forward", 6 * t * c, || {
            ops.rms_norm_forward(y.all_mut(), inv.all_mut(), x.all(), weight.all(), 1e-6);
        })?;
        let mut dx = self.buffer(t * c, EXACT)?;
        self.moves("rms_norm_backward, added", 14 * t * c, || {
            let (dy, x, inv) = (y.all(), x.all(), inv.all());
            ops.rms_norm_backward(dx.all_mut(), dy, x, inv, weight.all(), Write::Add);
        })?;
        let mut dweight = self.buffer(c, EXACT)?;
        self.moves("rms_norm_weight_backward", 6 * t * c, || {
            ops.rms_norm_weight_backward(dweight.all_mut(), y.all(), x.all(), inv.all());
        })?;
        let heads = self.shape.heads;
        let n = t * heads * d;
        let (mut q, raw) = (self.buffer(n, INNER)?, self.buffer(n, INNER)?);
        let (mut head_inv, head_weight) = (self.buffer(t * heads, EXACT)?, self.buffer(d, EXACT)?);
        self.moves("rms_norm_forward of heads", 4 * n, || {
            let (y, inv) = (q.all_mut(), head_inv.all_mut());
            ops.rms_norm_forward(y, inv, raw.all(), head_weight.all(), 1e-6);
        })?;
        let (cos, sin) = (self.buffer(t * d / 2, EXACT)?, self.buffer(t * d / 2, EXACT)?);
        self.moves("rope", 4 * n + 4 * t * d, || {
            ops.rope(q.all_mut(), cos.all(), sin.all(), heads, d, Rotation::Forward);
        })?;
        self.moves("add", 10 * t * c, || ops.add(x.all_mut(), y.all()))
    }

    fn elementwise(&mut self) -> Result<(), String> {
        let (t, c, f) = (self.t, self.shape.hidden, self.shape.mlp);
        let ops = self.ops();
        let n = t * f;
        let (mut gate, mut up) = (self.buffer(n, INNER)?, self.buffer(n, INNER)?);
        let mut h = self.buffer(n, INNER)?;
        self.moves("glu_forward", 6 * n, || {
            ops.glu_forward(h.all_mut(), gate.all(), up.all(), Activation::Silu);
        })?;
        self.moves("glu_backward", 10 * n, || {
            ops.glu_backward(gate.all_mut(), up.all_mut(), h.all(), Activation::Silu);
        })?;
        let keys: Vec<u64> = (0..t as u64).collect();
        let dropout = Dropout { p: 0.05, key: [1, 2] };
        self.moves("dropout", 4 * n, || {
            ops.dropout(up.all_mut(), gate.all(), &keys, &dropout, Write::Replace);
        })?;
        let (mut exact, factors) = (self.buffer(t * c, EXACT)?, self.buffer(c, EXACT)?);
        let inner = self.buffer(t * c, INNER)?;
        self.moves("copy to another format", 6 * t * c, || {
            ops.copy(exact.all_mut(), inner.all());
        })?;
        self.moves("fill", 4 * t * c, || ops.fill(exact.all_mut(), 0.5))?;
        self.moves("scale", 8 * t * c, || ops.scale(exact.all_mut(), 0.999))?;
        self.moves("scale_columns", 6 * t * c, || {
            ops.scale_columns(exact.all_mut(), inner.all(), factors.all(), Write::Replace);
        })?;
        let mut sums = self.buffer(c, EXACT)?;
        self.moves("column_sums", 2 * t * c, || ops.column_sums(sums.all_mut(), inner.all()))?;
        self.moves("add_bias", 8 * t * c, || ops.add_bias(exact.all_mut(), factors.all()))?;
        self.moves("sum_of_squares", 4 * t * c, || {
            std::hint::black_box(ops.sum_of_squares(exact.all()));
        })
    }

    fn rows(&mut self) -> Result<(), String> {
        let (t, c) = (self.t, self.shape.hidden);
        let ops = self.ops();
        let (mut y, x) = (self.buffer(t * c, INNER)?, self.buffer(t * c, INNER)?);
        // every row once, far from the one before
        let order: Vec<u32> = (0..t).map(|i| (i * 4093 % t) as u32).collect();
        self.moves("gather_rows", 4 * t * c, || {
            ops.gather_rows(y.all_mut(), x.all(), (&order).into());
        })?;
        self.moves("scatter_rows", 6 * t * c, || {
            ops.scatter_rows(y.all_mut(), x.all(), (&order).into());
        })?;
        let mut dots = self.buffer(t, EXACT)?;
        self.moves("row_dots", 4 * t * c, || ops.row_dots(dots.all_mut(), y.all(), x.all()))?;
        self.moves("scale_rows", 4 * t * c, || ops.scale_rows(y.all_mut(), dots.all()))?;
        let n_experts = 128.min(c);
        let mut scores = self.buffer(t * n_experts, EXACT)?;
        self.moves("softmax_rows", 8 * t * n_experts, || {
            ops.softmax_rows(scores.all_mut(), n_experts);
        })?;
        self.moves("soft_cap", 8 * t * n_experts, || ops.soft_cap(scores.all_mut(), 30.0))?;
        ops.softmax_rows(scores.all_mut(), n_experts);
        self.routing(&scores, n_experts)?;
        let table = ops.freeze(&Rows { n: t, k: c }, Compute::Bf16);
        let mut embedded = self.buffer(t * c, EXACT)?;
        self.moves("embedding_forward", 6 * t * c, || {
            ops.embedding_forward(embedded.all_mut(), &order, &*table);
        })?;
        let dy = self.buffer(t * c, EXACT)?;
        self.moves("embedding_backward", 12 * t * c, || {
            ops.embedding_backward(embedded.all_mut(), dy.all(), &order);
        })
    }

    /// Eight experts a row, as Qwen3-MoE.
    fn routing(&mut self, probs: &Buffer, n_experts: usize) -> Result<(), String> {
        let choice = Choice { n_experts, n_chosen: 8.min(n_experts), is_normalized: true };
        let (t, n) = (self.t, self.t * choice.n_chosen);
        let ops = self.ops();
        let indices = || ops.allocate_indices(n).map_err(|refused| refused.to_string());
        let (mut chosen, mut places, mut rows) = (indices()?, indices()?, indices()?);
        let (mut weights, dweights) = (self.buffer(n, EXACT)?, self.buffer(n, EXACT)?);
        // Probabilities read; four arrays written.
        self.moves("route", 4 * t * n_experts + 16 * n, || {
            let to = RoutingMut {
                chosen: chosen.all_mut(),
                places: places.all_mut(),
                rows: rows.all_mut(),
                weights: weights.all_mut(),
            };
            std::hint::black_box(ops.route(to, probs.all(), choice, None));
        })?;
        let routing = Routing {
            chosen: chosen.all(),
            places: places.all(),
            rows: rows.all(),
            weights: weights.all(),
        };
        let mut dscores = self.buffer(t * n_experts, EXACT)?;
        self.moves("route_backward", 8 * t * n_experts + 16 * n, || {
            let dscores = dscores.all_mut();
            ops.route_backward(dscores, routing, probs.all(), dweights.all(), None, choice);
        })
    }

    fn optimizers(&mut self) -> Result<(), String> {
        let (n_rows, n_cols) = (self.t.min(4096), self.shape.hidden);
        let n = n_rows * n_cols;
        let ops = self.ops();
        let adamw = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_scale: 1.0,
            step: 10,
        };
        let (mut p, mut m) = (self.buffer(n, EXACT)?, self.buffer(n, EXACT)?);
        let (mut v, grad) = (self.buffer(n, EXACT)?, self.buffer(n, EXACT)?);
        ops.fill(v.all_mut(), 1e-3);
        self.moves("adamw_step", 28 * n, || {
            ops.adamw_step(p.all_mut(), m.all_mut(), v.all_mut(), grad.all(), &adamw);
        })?;
        let bytes = || ops.place_bytes(vec![0; n]).map_err(|refused| refused.to_string());
        let (mut m8, mut v8) = (bytes()?, bytes()?);
        let n_blocks = n.div_ceil(Blocks8bit::BLOCK);
        let (mut m_max, mut v_max) = (self.buffer(n_blocks, EXACT)?, self.buffer(n_blocks, EXACT)?);
        self.moves("adamw_8bit_step", 16 * n, || {
            let m = Blocks8bit { codes: m8.all_mut(), absmax: m_max.all_mut() };
            let v = Blocks8bit { codes: v8.all_mut(), absmax: v_max.all_mut() };
            ops.adamw_8bit_step(p.all_mut(), m, v, grad.all(), &adamw);
        })?;
        let adafactor = Adafactor {
            lr: 1e-4,
            eps: 1e-30,
            clip_threshold: 1.0,
            weight_decay: 0.01,
            grad_scale: 1.0,
            step: 10,
        };
        let (mut rows, mut columns) = (self.buffer(n_rows, EXACT)?, self.buffer(n_cols, EXACT)?);
        ops.fill(rows.all_mut(), 1e-3);
        ops.fill(columns.all_mut(), 1e-3);
        self.moves("adafactor_step, factored", 20 * n, || {
            let (rows, columns) = (rows.all_mut(), columns.all_mut());
            let moments = AdafactorMoments::Factored { rows, columns };
            ops.adafactor_step(p.all_mut(), moments, grad.all(), &adafactor);
        })
    }

    /// Causal attention over sequences of this length that fill T rows, or one sequence where it is
    /// longer. Returns the rate of forward and backward together.
    fn attention(&mut self, len: usize) -> Result<f64, String> {
        let (heads, kv_heads, d) = (self.shape.heads, self.shape.kv_heads, self.shape.head_dim);
        let shape = AttentionShape {
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim: d,
            scale: 1.0 / (d as f32).sqrt(),
            window: None,
            soft_cap: None,
            compute: Compute::Bf16,
        };
        let t = self.t.max(len);
        let segments: Vec<Segment> =
            (0..t / len).map(|i| Segment { start: i * len, len }).collect();
        let ops = self.ops();
        let inner = |n_heads: usize| self.buffer(t * n_heads * d, INNER);
        let (q, k, v) = (inner(heads)?, inner(kv_heads)?, inner(kv_heads)?);
        let (mut out, dout) = (inner(heads)?, inner(heads)?);
        let (mut dq, mut dk, mut dv) = (inner(heads)?, inner(kv_heads)?, inner(kv_heads)?);
        let mut lse = self.buffer(t * heads, EXACT)?;
        // two products of s x D and s, half of them below the diagonal
        let flops = 2.0 * (t * len) as f64 * (heads * d) as f64;
        let forward = self.computes(&format!("attention_forward, {len}"), flops, || {
            let (out, lse) = (out.all_mut(), lse.all_mut());
            ops.attention_forward(out, lse, q.all(), k.all(), v.all(), &shape, &segments);
        })?;
        let backward = self.computes(&format!("attention_backward, {len}"), 2.5 * flops, || {
            ops.attention_backward(
                dq.all_mut(),
                dk.all_mut(),
                dv.all_mut(),
                dout.all(),
                out.all(),
                lse.all(),
                q.all(),
                k.all(),
                v.all(),
                &shape,
                &segments,
            );
        })?;
        Ok(3.5 * flops / (forward + backward))
    }

    /// The wide end: two products forward and backward, and what is as wide as the vocabulary.
    fn head(&mut self) -> Result<(), String> {
        let (c, v) = (self.shape.hidden, self.shape.vocabulary);
        let t = self.t.min(4096);
        let ops = self.ops();
        let head = ops.freeze(&Rows { n: v, k: c }, Compute::Bf16);
        let labels: Vec<u32> = (0..t).map(|i| (i * 31 % v) as u32).collect();
        let x = self.buffer(t * c, EXACT)?;
        let (mut logp, mut lse) = (self.buffer(t, EXACT)?, self.buffer(t, EXACT)?);
        let mut dx = self.buffer(t * c, EXACT)?;
        let flops = 4.0 * (t * c) as f64 * v as f64;
        self.computes("token_logprobs_with_gradient", flops, || {
            let (logp, lse, dx) = (logp.all_mut(), lse.all_mut(), dx.all_mut());
            ops.token_logprobs_with_gradient(logp, lse, dx, x.all(), &*head, &labels, None);
        })?;
        self.computes("token_logprobs_forward", flops / 2.0, || {
            let (logp, lse) = (logp.all_mut(), lse.all_mut());
            ops.token_logprobs_forward(logp, lse, x.all(), &*head, &labels, None);
        })?;
        Ok(())
    }

    /// Products with weights in four bits: those of dense weights, and unpacking.
    fn packed(&mut self) -> Result<(), String> {
        let (t, n, k) = (self.t, self.shape.hidden, self.shape.hidden);
        let ops = self.ops();
        let rows = Rows { n, k };
        let four =
            FourBitMatrix::quantize(&rows, FourBit::Nf4, ScaleStorage::Double, Rounding::Exact, 1);
        let packed =
            ops.freeze_packed(&four, Compute::Bf16).ok_or("four bits are not kept packed")?;
        let dense = ops.freeze(&rows, Compute::Bf16);
        let (mut y, x) = (self.buffer(t * n, INNER)?, self.buffer(t * k, INNER)?);
        let flops = 2.0 * (t * n) as f64 * k as f64;
        for (name, w) in [("dense", &dense), ("NF4, double quantization", &packed)] {
            self.computes(&format!("linear_forward, {name}"), flops, || {
                ops.linear_forward(y.all_mut(), x.all(), &**w, Write::Replace);
            })?;
        }
        let (u, v) = (self.buffer(t * RANK, INNER)?, self.buffer(n * RANK, EXACT)?);
        let with_adapter = flops + 2.0 * (t * n * RANK) as f64;
        self.computes("linear_forward_low_rank, dense", with_adapter, || {
            let low_rank = LowRank { u: u.all(), v: v.all(), scale: 2.0 };
            ops.linear_forward_low_rank(y.all_mut(), x.all(), &*dense, low_rank, Write::Replace);
        })?;
        Ok(())
    }

    /// What stands in for cuBLASLt where that is missing.
    fn own_products(&mut self, context: &Context<'_>) -> Result<(), String> {
        let own = open(context.arguments, Products::Own)?;
        let (t, n, k) = (self.t, self.shape.hidden, self.shape.hidden);
        let ops = &own.cuda;
        let w = ops.freeze(&Rows { n, k }, Compute::Bf16);
        let place = |width: usize| {
            let buffer = ops.allocate(t * width, INNER);
            let mut buffer = buffer.map_err(|refused| refused.to_string())?;
            buffer.all_mut().copy_from_host(&crate::shapes::numbers(t * width));
            Ok::<_, String>(buffer)
        };
        let (mut y, mut x) = (place(n)?, place(k)?);
        let flops = 2.0 * (t * n) as f64 * k as f64;
        let forward = own.time(&mut || {
            ops.linear_forward(y.all_mut(), x.all(), &*w, Write::Replace);
        })?;
        let backward = own.time(&mut || {
            ops.linear_backward(x.all_mut(), y.all(), &*w, Write::Replace);
        })?;
        for (name, seconds) in [("linear_forward", forward), ("linear_backward", backward)] {
            let op = format!("{name}, own product");
            self.seconds.insert(op.clone(), json!({ "seconds": seconds, "flops": flops }));
            self.by_operations.row(&[
                op,
                format!("{:.4}", flops / 1e12),
                format!("{:.4}", seconds * 1e3),
                format!("{:.1}", flops / seconds / 1e12),
                format!("{:.0}", 100.0 * flops / seconds / self.products),
            ]);
        }
        Ok(())
    }
}
