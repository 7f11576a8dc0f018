//! A kernel library that passes everything on, and notes each op by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Compute, Dropout,
    FrozenMatrix, GemmDims, GemmLayout, LowRank, Ops, Rotation, RowSource, Segment, Write,
};

/// Calls and time of one op.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How often it was called.
    pub calls: usize,
    /// How long all calls took together.
    pub time: Duration,
}

/// Passes on to `inner`; `clock` is read before and after each op.
pub struct Counting {
    inner: Arc<dyn Ops>,
    clock: fn() -> Duration,
    tallies: Mutex<BTreeMap<&'static str, Tally>>,
}

impl Counting {
    /// Counts calls, and reads no clock.
    #[must_use]
    pub fn new(inner: Arc<dyn Ops>) -> Self {
        Self::with_clock(inner, || Duration::ZERO)
    }

    /// Counts calls and their time.
    #[must_use]
    pub fn with_clock(inner: Arc<dyn Ops>, clock: fn() -> Duration) -> Self {
        Self { inner, clock, tallies: Mutex::default() }
    }

    /// What was noted since the last call.
    pub fn take(&self) -> BTreeMap<&'static str, Tally> {
        std::mem::take(&mut *self.tallies.lock().expect("no op panicked"))
    }

    fn timed<T>(&self, op: &'static str, run: impl FnOnce() -> T) -> T {
        let start = (self.clock)();
        let result = run();
        let time = (self.clock)() - start;
        let mut tallies = self.tallies.lock().expect("no op panicked");
        let tally = tallies.entry(op).or_default();
        tally.calls += 1;
        tally.time += time;
        result
    }
}

impl Ops for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn n_threads(&self) -> usize {
        self.inner.n_threads()
    }

    fn parallel_for(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.timed("parallel_for", || self.inner.parallel_for(n_tasks, task))
    }

    fn prefers(&self, compute: Compute) -> bool {
        self.inner.prefers(compute)
    }

    fn freeze(&self, source: &dyn RowSource, compute: Compute) -> Box<dyn FrozenMatrix> {
        self.inner.freeze(source, compute)
    }

    fn freeze_packed(
        &self,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Box<dyn FrozenMatrix>> {
        self.inner.freeze_packed(source, compute)
    }

    fn linear_forward(&self, y: &mut [f32], x: &[f32], w: &dyn FrozenMatrix, write: Write) {
        self.timed("linear_forward", || self.inner.linear_forward(y, x, w, write))
    }

    fn linear_backward(&self, dx: &mut [f32], dy: &[f32], w: &dyn FrozenMatrix, write: Write) {
        self.timed("linear_backward", || self.inner.linear_backward(dx, dy, w, write))
    }

    fn linear_forward_low_rank(
        &self,
        y: &mut [f32],
        x: &[f32],
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        self.timed("linear_forward", || {
            self.inner.linear_forward_low_rank(y, x, w, low_rank, write)
        })
    }

    fn linear_backward_low_rank(
        &self,
        dx: &mut [f32],
        dy: &[f32],
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        self.timed("linear_backward", || {
            self.inner.linear_backward_low_rank(dx, dy, w, low_rank, write)
        })
    }

    fn gemm(
        &self,
        c: &mut [f32],
        a: &[f32],
        b: &[f32],
        layout: GemmLayout,
        dims: GemmDims,
        alpha: f32,
        write: Write,
    ) {
        self.timed("gemm", || self.inner.gemm(c, a, b, layout, dims, alpha, write))
    }

    fn embedding_forward(&self, y: &mut [f32], tokens: &[u32], table: &dyn FrozenMatrix) {
        self.timed("embedding_forward", || self.inner.embedding_forward(y, tokens, table))
    }

    fn embedding_backward(&self, dtable: &mut [f32], dy: &[f32], tokens: &[u32]) {
        self.timed("embedding_backward", || self.inner.embedding_backward(dtable, dy, tokens))
    }

    fn rms_norm_forward(
        &self,
        y: &mut [f32],
        inv_rms: &mut [f32],
        x: &[f32],
        weight: &[f32],
        eps: f32,
    ) {
        self.timed("rms_norm_forward", || self.inner.rms_norm_forward(y, inv_rms, x, weight, eps))
    }

    fn rms_norm_backward(
        &self,
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        inv_rms: &[f32],
        weight: &[f32],
        write: Write,
    ) {
        self.timed("rms_norm_backward", || {
            self.inner.rms_norm_backward(dx, dy, x, inv_rms, weight, write)
        })
    }

    fn rms_norm_weight_backward(
        &self,
        dweight: &mut [f32],
        dy: &[f32],
        x: &[f32],
        inv_rms: &[f32],
    ) {
        self.timed("rms_norm_weight_backward", || {
            self.inner.rms_norm_weight_backward(dweight, dy, x, inv_rms)
        })
    }

    fn add_bias(&self, y: &mut [f32], bias: &[f32]) {
        self.timed("add_bias", || self.inner.add_bias(y, bias))
    }

    fn column_sums(&self, sums: &mut [f32], x: &[f32]) {
        self.timed("column_sums", || self.inner.column_sums(sums, x))
    }

    fn scale_columns(&self, y: &mut [f32], x: &[f32], factors: &[f32], write: Write) {
        self.timed("scale_columns", || self.inner.scale_columns(y, x, factors, write))
    }

    fn column_dots(&self, sums: &mut [f32], a: &[f32], b: &[f32]) {
        self.timed("column_dots", || self.inner.column_dots(sums, a, b))
    }

    fn rope(
        &self,
        x: &mut [f32],
        cos: &[f32],
        sin: &[f32],
        n_heads: usize,
        head_dim: usize,
        direction: Rotation,
    ) {
        self.timed("rope", || self.inner.rope(x, cos, sin, n_heads, head_dim, direction))
    }

    fn attention_forward(
        &self,
        out: &mut [f32],
        lse: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        self.timed("attention_forward", || {
            self.inner.attention_forward(out, lse, q, k, v, shape, segments)
        })
    }

    fn attention_backward(
        &self,
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
        dout: &[f32],
        out: &[f32],
        lse: &[f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        self.timed("attention_backward", || {
            self.inner.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, shape, segments)
        })
    }

    fn attention_cached(
        &self,
        out: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: &AttentionShape,
    ) {
        self.timed("attention_cached", || self.inner.attention_cached(out, q, k, v, shape))
    }

    fn glu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
        self.timed("glu_forward", || self.inner.glu_forward(y, gate, up, act))
    }

    fn glu_backward(&self, gate: &mut [f32], up: &mut [f32], dy: &[f32], act: Activation) {
        self.timed("glu_backward", || self.inner.glu_backward(gate, up, dy, act))
    }

    fn token_logprobs_forward(
        &self,
        logp: &mut [f32],
        lse: &mut [f32],
        x: &[f32],
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    ) {
        self.timed("token_logprobs_forward", || {
            self.inner.token_logprobs_forward(logp, lse, x, head, labels, soft_cap)
        })
    }

    fn token_logprobs_backward(
        &self,
        dx: &mut [f32],
        dlogp: &[f32],
        lse: &[f32],
        x: &[f32],
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    ) {
        self.timed("token_logprobs_backward", || {
            self.inner.token_logprobs_backward(dx, dlogp, lse, x, head, labels, soft_cap)
        })
    }

    fn token_logprobs_head_backward(
        &self,
        dhead: &mut [f32],
        dlogp: &[f32],
        lse: &[f32],
        x: &[f32],
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    ) {
        self.timed("token_logprobs_head_backward", || {
            self.inner.token_logprobs_head_backward(dhead, dlogp, lse, x, head, labels, soft_cap)
        })
    }

    fn dropout(&self, y: &mut [f32], x: &[f32], row_keys: &[u64], dropout: &Dropout, write: Write) {
        self.timed("dropout", || self.inner.dropout(y, x, row_keys, dropout, write))
    }

    fn add(&self, y: &mut [f32], x: &[f32]) {
        self.timed("add", || self.inner.add(y, x))
    }

    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        self.timed("sum_of_squares", || self.inner.sum_of_squares(x))
    }

    fn adamw_step(
        &self,
        param: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        grad: &[f32],
        constants: &AdamW,
    ) {
        self.timed("adamw_step", || self.inner.adamw_step(param, m, v, grad, constants))
    }

    fn adamw_8bit_step(
        &self,
        param: &mut [f32],
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: &[f32],
        constants: &AdamW,
    ) {
        self.timed("adamw_8bit_step", || self.inner.adamw_8bit_step(param, m, v, grad, constants))
    }

    fn adafactor_step(
        &self,
        param: &mut [f32],
        moments: AdafactorMoments<'_>,
        grad: &[f32],
        constants: &Adafactor,
    ) {
        self.timed("adafactor_step", || self.inner.adafactor_step(param, moments, grad, constants))
    }
}
