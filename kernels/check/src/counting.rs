//! A kernel library that passes everything on, and notes each op by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Buffer, Choice,
    Columns, Compute, DeviceLinks, Dropout, Float8Layout, FrozenMatrix, GemmDims, GemmLayout,
    LowRank, MemoryRefused, OnDevice, Ops, Precision, Rotation, Routing, RoutingMut, RowSource,
    Segment, Slice, SliceMut, Write,
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

    fn linear_forward(&self, y: SliceMut<'_>, x: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        self.timed("linear_forward", || self.inner.linear_forward(y, x, w, write))
    }

    fn linear_backward(&self, dx: SliceMut<'_>, dy: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        self.timed("linear_backward", || self.inner.linear_backward(dx, dy, w, write))
    }

    fn linear_forward_low_rank(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
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
        dx: SliceMut<'_>,
        dy: Slice<'_>,
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
        c: SliceMut<'_>,
        a: Slice<'_>,
        b: Slice<'_>,
        layout: GemmLayout,
        dims: GemmDims,
        alpha: f32,
        write: Write,
    ) {
        self.timed("gemm", || self.inner.gemm(c, a, b, layout, dims, alpha, write))
    }

    fn embedding_forward(&self, y: SliceMut<'_>, tokens: &[u32], table: &dyn FrozenMatrix) {
        self.timed("embedding_forward", || self.inner.embedding_forward(y, tokens, table))
    }

    fn embedding_backward(&self, dtable: SliceMut<'_>, dy: Slice<'_>, tokens: &[u32]) {
        self.timed("embedding_backward", || self.inner.embedding_backward(dtable, dy, tokens))
    }

    fn rms_norm_forward(
        &self,
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
    ) {
        self.timed("rms_norm_forward", || self.inner.rms_norm_forward(y, inv_rms, x, weight, eps))
    }

    fn rms_norm_backward(
        &self,
        dx: SliceMut<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
        inv_rms: Slice<'_>,
        weight: Slice<'_>,
        write: Write,
    ) {
        self.timed("rms_norm_backward", || {
            self.inner.rms_norm_backward(dx, dy, x, inv_rms, weight, write)
        })
    }

    fn rms_norm_weight_backward(
        &self,
        dweight: SliceMut<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
        inv_rms: Slice<'_>,
    ) {
        self.timed("rms_norm_weight_backward", || {
            self.inner.rms_norm_weight_backward(dweight, dy, x, inv_rms)
        })
    }

    fn add_bias(&self, y: SliceMut<'_>, bias: Slice<'_>) {
        self.timed("add_bias", || self.inner.add_bias(y, bias))
    }

    fn column_sums(&self, sums: SliceMut<'_>, x: Slice<'_>) {
        self.timed("column_sums", || self.inner.column_sums(sums, x))
    }

    fn scale_columns(&self, y: SliceMut<'_>, x: Slice<'_>, factors: Slice<'_>, write: Write) {
        self.timed("scale_columns", || self.inner.scale_columns(y, x, factors, write))
    }

    fn column_dots(&self, sums: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        self.timed("column_dots", || self.inner.column_dots(sums, a, b))
    }

    fn rms_norm_rope(
        &self,
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
        cos: Slice<'_>,
        sin: Slice<'_>,
        n_heads: usize,
    ) {
        self.timed("rms_norm_rope", || {
            self.inner.rms_norm_rope(y, inv_rms, x, weight, eps, cos, sin, n_heads)
        })
    }

    fn rope(
        &self,
        x: SliceMut<'_>,
        cos: Slice<'_>,
        sin: Slice<'_>,
        n_heads: usize,
        head_dim: usize,
        direction: Rotation,
    ) {
        self.timed("rope", || self.inner.rope(x, cos, sin, n_heads, head_dim, direction))
    }

    fn attention_forward(
        &self,
        out: SliceMut<'_>,
        lse: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        self.timed("attention_forward", || {
            self.inner.attention_forward(out, lse, q, k, v, shape, segments)
        })
    }

    fn attention_backward(
        &self,
        dq: SliceMut<'_>,
        dk: SliceMut<'_>,
        dv: SliceMut<'_>,
        dout: Slice<'_>,
        out: Slice<'_>,
        lse: Slice<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
        segments: &[Segment],
    ) {
        self.timed("attention_backward", || {
            self.inner.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, shape, segments)
        })
    }

    fn attention_cached(
        &self,
        out: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
    ) {
        self.timed("attention_cached", || self.inner.attention_cached(out, q, k, v, shape))
    }

    fn glu_forward(&self, y: SliceMut<'_>, gate: Slice<'_>, up: Slice<'_>, act: Activation) {
        self.timed("glu_forward", || self.inner.glu_forward(y, gate, up, act))
    }

    fn glu_backward(&self, gate: SliceMut<'_>, up: SliceMut<'_>, dy: Slice<'_>, act: Activation) {
        self.timed("glu_backward", || self.inner.glu_backward(gate, up, dy, act))
    }

    fn token_logprobs_forward(
        &self,
        logp: SliceMut<'_>,
        lse: SliceMut<'_>,
        x: Slice<'_>,
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
        dx: SliceMut<'_>,
        dlogp: Slice<'_>,
        lse: Slice<'_>,
        x: Slice<'_>,
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
        dhead: SliceMut<'_>,
        dlogp: Slice<'_>,
        lse: Slice<'_>,
        x: Slice<'_>,
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    ) {
        self.timed("token_logprobs_head_backward", || {
            self.inner.token_logprobs_head_backward(dhead, dlogp, lse, x, head, labels, soft_cap)
        })
    }

    fn dropout(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        row_keys: &[u64],
        dropout: &Dropout,
        write: Write,
    ) {
        self.timed("dropout", || self.inner.dropout(y, x, row_keys, dropout, write))
    }

    fn pack(&self, w: Slice<'_>, n_cols: usize, compute: Compute) -> Box<dyn FrozenMatrix> {
        self.inner.pack(w, n_cols, compute)
    }

    fn allocate(&self, n: usize, precision: Precision) -> Result<Buffer, MemoryRefused> {
        self.inner.allocate(n, precision)
    }

    fn allocate_indices(&self, n: usize) -> Result<Buffer<u32>, MemoryRefused> {
        self.inner.allocate_indices(n)
    }

    fn place_bytes(&self, values: Vec<u8>) -> Result<Buffer<u8>, MemoryRefused> {
        self.inner.place_bytes(values)
    }

    fn place(&self, values: Vec<f32>) -> Result<Buffer, MemoryRefused> {
        self.inner.place(values)
    }

    fn on_device(&self) -> Option<&dyn OnDevice> {
        self.inner.on_device()
    }

    fn links(&self) -> Option<Result<&dyn DeviceLinks, String>> {
        self.inner.links()
    }

    fn free_memory(&self) -> Option<u64> {
        self.inner.free_memory()
    }

    fn bytes_per_number(&self, precision: Precision) -> usize {
        self.inner.bytes_per_number(precision)
    }

    fn copy(&self, y: SliceMut<'_>, x: Slice<'_>) {
        self.timed("copy", || self.inner.copy(y, x))
    }

    fn fill(&self, y: SliceMut<'_>, value: f32) {
        self.timed("fill", || self.inner.fill(y, value))
    }

    fn scale(&self, y: SliceMut<'_>, factor: f32) {
        self.timed("scale", || self.inner.scale(y, factor))
    }

    fn soft_cap(&self, y: SliceMut<'_>, cap: f32) {
        self.timed("soft_cap", || self.inner.soft_cap(y, cap))
    }

    fn cast_float8(
        &self,
        y: SliceMut<'_>,
        codes: Slice<'_, u8>,
        scales: Slice<'_>,
        layout: Float8Layout,
    ) {
        self.timed("cast_float8", || self.inner.cast_float8(y, codes, scales, layout))
    }

    fn copy_columns(&self, y: SliceMut<'_>, to: Columns, x: Slice<'_>, from: Columns, n: usize) {
        self.timed("copy_columns", || self.inner.copy_columns(y, to, x, from, n))
    }

    fn gather_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        self.timed("gather_rows", || self.inner.gather_rows(y, x, rows))
    }

    fn scatter_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        self.timed("scatter_rows", || self.inner.scatter_rows(y, x, rows))
    }

    fn scale_rows(&self, x: SliceMut<'_>, factors: Slice<'_>) {
        self.timed("scale_rows", || self.inner.scale_rows(x, factors))
    }

    fn row_dots(&self, dots: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        self.timed("row_dots", || self.inner.row_dots(dots, a, b))
    }

    fn softmax_rows(&self, x: SliceMut<'_>, n_cols: usize) {
        self.timed("softmax_rows", || self.inner.softmax_rows(x, n_cols))
    }

    fn route(
        &self,
        to: RoutingMut<'_>,
        probs: Slice<'_>,
        choice: Choice,
        sums: Option<&mut [f64]>,
    ) -> Vec<usize> {
        self.timed("route", || self.inner.route(to, probs, choice, sums))
    }

    fn route_backward(
        &self,
        dscores: SliceMut<'_>,
        routing: Routing<'_>,
        probs: Slice<'_>,
        dweights: Slice<'_>,
        balance: Option<Slice<'_>>,
        choice: Choice,
    ) {
        self.timed("route_backward", || {
            self.inner.route_backward(dscores, routing, probs, dweights, balance, choice)
        })
    }

    fn sigmoid_gate_forward(&self, h: SliceMut<'_>, scores: Slice<'_>) {
        self.timed("sigmoid_gate_forward", || self.inner.sigmoid_gate_forward(h, scores))
    }

    fn sigmoid_gate_backward(&self, dh: SliceMut<'_>, scores: SliceMut<'_>, h: Slice<'_>) {
        self.timed("sigmoid_gate_backward", || self.inner.sigmoid_gate_backward(dh, scores, h))
    }

    fn add(&self, y: SliceMut<'_>, x: Slice<'_>) {
        self.timed("add", || self.inner.add(y, x))
    }

    fn sum_of_squares(&self, x: Slice<'_>) -> f64 {
        self.timed("sum_of_squares", || self.inner.sum_of_squares(x))
    }

    fn adamw_step(
        &self,
        param: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        self.timed("adamw_step", || self.inner.adamw_step(param, m, v, grad, constants))
    }

    fn adamw_8bit_step(
        &self,
        param: SliceMut<'_>,
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        self.timed("adamw_8bit_step", || self.inner.adamw_8bit_step(param, m, v, grad, constants))
    }

    fn adafactor_step(
        &self,
        param: SliceMut<'_>,
        moments: AdafactorMoments<'_>,
        grad: Slice<'_>,
        constants: &Adafactor,
    ) {
        self.timed("adafactor_step", || self.inner.adafactor_step(param, moments, grad, constants))
    }
}
