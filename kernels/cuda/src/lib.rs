//! The ops on NVIDIA's devices.
//!
//! It refuses to know what a model is, and reads no environment: the caller says where libraries
//! may lie. Nothing is linked; without a driver everything here says so and does no harm. Start
//! reading at [`Cuda`], then `call`, then any op: its kernels are in `<op>.cu`, what launches them
//! in `<op>.rs`.
//!
//! `unsafe` stands in the files that call the driver and its libraries; each block says why it is
//! sound. That a kernel stays within its arguments is what its tests on the emulated driver show.

// long because: most of it is one `impl Ops`, a few lines an op that hand on to the op's own file.

#![expect(unsafe_code, reason = "the driver and its libraries are C")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "sizes become arguments of kernels, constants of a step become f32"
)]

mod adafactor;
mod adamw;
mod adamw_8bit;
mod add;
mod arrays;
mod attention;
mod blocks;
mod call;
mod cast;
mod chunk;
mod columns;
mod cublaslt;
mod cudnn;
mod device;
mod dropout;
mod embedding;
#[cfg(test)]
mod emulated;
mod error;
mod float8;
#[cfg(test)]
mod formats;
mod frozen;
mod gemm;
mod glu;
mod graph;
mod images;
mod libraries;
mod linear;
mod memory;
mod merge;
mod nccl;
mod nvrtc;
mod on_device;
mod pool;
mod properties;
mod quantize;
mod rms_norm;
mod room;
mod rope;
mod routing;
mod rows;
mod sampling;
mod self_test;
mod staging;
mod sum_of_squares;
mod timer;
mod token_logprobs;
#[cfg(test)]
mod trial;
mod workspace;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Buffer, Choice,
    Columns, Compute, DeviceLinks, Draw, DrawRule, Drawn, Dropout, Float8Layout, Format,
    FrozenMatrix, GemmDims, GemmLayout, LowRank, MemoryRefused, OnDevice, Ops, Precision, Rotation,
    Routing, RoutingMut, RowSource, Segment, Slice, SliceMut, Workload, Write,
};

use call::{Before, Call};
use error::must;
use frozen::{CudaMatrix, format_of};
use memory::CudaMemory;

pub use call::{Argument, Grid};
pub use cudnn::{AttentionUnfit, CuDnnUnused};
pub use device::{Device, DeviceFacts, DeviceOptions};
pub use error::{CudaError, DriverFault, Launched};
pub use graph::Graph;
pub use images::{CodeSource, ImageSource};
pub use libraries::{Availability, Folders, Found, Libraries};
pub use nccl::NcclUnused;
pub use pool::{Allocation, Pool, PoolUse};
pub use self_test::{Former, SelfTest, Trial, TrialOutcome, self_test};

/// The kernel library of NVIDIA's devices.
///
/// Numerics: the same inputs give the same bits on one kind of device, with the same libraries.
/// Sums are f32 unless an op says otherwise, in an order that sizes alone fix.
///
/// If the device fails, or has no memory for what a call needs for its own time, the op ends with a
/// [`Failure`](forgelm_kernels_api::Failure), which says what was being done and what the driver
/// answered.
#[derive(Debug)]
pub struct Cuda {
    name: String,
    device: Arc<Device>,
    n_threads: usize,
    /// Held by the one caller whose tasks run on several threads.
    threads: Mutex<()>,
}

impl Cuda {
    /// Works on a device; what runs on the host beside it takes so many threads (0 mean 1).
    #[must_use]
    pub fn new(device: Arc<Device>, n_threads: usize) -> Self {
        let facts = device.facts();
        let (major, minor) = facts.capability;
        let products = match device.blas() {
            Some(blas) => format!("cuBLASLt {}", blas.version()),
            None => "own products".to_owned(),
        };
        let attention = device.cudnn_version();
        let attention = attention.map_or(String::new(), |version| format!(", cuDNN {version}"));
        let (label, of) = (device.label(), &facts.name);
        let name = format!("{label}/sm_{major}{minor} ({of}, {products}{attention})");
        Self { name, device, n_threads: n_threads.max(1), threads: Mutex::new(()) }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    fn open(&self, op: &'static str) -> Call<'_> {
        Call::open(&self.device, op)
    }

    /// Zeros on the device.
    fn zeros(&self, format: Format, n: usize) -> Result<CudaMemory, MemoryRefused> {
        let refused = MemoryRefused { bytes: n.saturating_mul(format.n_bytes()) };
        match CudaMemory::zeros(&self.device, format, n) {
            Ok(memory) => Ok(memory),
            Err(CudaError::OutOfMemory { .. }) => Err(refused),
            Err(error) => error::fail(&error),
        }
    }
}

/// Whether the old values of a result matter.
fn before(write: Write) -> Before {
    match write {
        Write::Replace => Before::Unused,
        Write::Add => Before::Needed,
    }
}

/// How numbers of a precision are stored.
fn format_for(precision: Precision) -> Format {
    match precision {
        Precision::Exact => Format::F32,
        Precision::Like(compute) => format_of(compute),
    }
}

impl Ops for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn n_threads(&self) -> usize {
        self.n_threads
    }

    fn parallel_for(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut i = next.fetch_add(1, Ordering::Relaxed);
            while i < n_tasks {
                task(i);
                i = next.fetch_add(1, Ordering::Relaxed);
            }
        };
        let n_threads = self.n_threads.min(n_tasks);
        match self.threads.try_lock() {
            Ok(_threads) if n_threads > 1 => std::thread::scope(|scope| {
                for _ in 1..n_threads {
                    scope.spawn(work);
                }
                work();
            }),
            _ => work(),
        }
    }

    fn prefers(&self, compute: Compute) -> bool {
        compute == Compute::Bf16
    }

    fn freeze(&self, source: &dyn RowSource, compute: Compute) -> Box<dyn FrozenMatrix> {
        Box::new(must(CudaMatrix::freeze(&self.device, source, compute)))
    }

    fn freeze_packed(
        &self,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Box<dyn FrozenMatrix>> {
        let packed = must(CudaMatrix::freeze_packed(&self.device, source, compute))?;
        Some(Box::new(packed))
    }

    fn pack(&self, w: Slice<'_>, n_cols: usize, compute: Compute) -> Box<dyn FrozenMatrix> {
        let call = self.open("pack");
        let w = call.read(w);
        let packed = must(CudaMatrix::pack(&self.device, &call, w, n_cols, compute));
        call.close();
        Box::new(packed)
    }

    fn allocate(&self, n: usize, precision: Precision) -> Result<Buffer, MemoryRefused> {
        Ok(Buffer::Device(Box::new(self.zeros(format_for(precision), n)?)))
    }

    fn allocate_indices(&self, n: usize) -> Result<Buffer<u32>, MemoryRefused> {
        Ok(Buffer::Device(Box::new(self.zeros(Format::U32, n)?)))
    }

    fn place(&self, values: Vec<f32>) -> Result<Buffer, MemoryRefused> {
        let mut buffer = Buffer::Device(Box::new(self.zeros(Format::F32, values.len())?));
        buffer.all_mut().copy_from_host(&values);
        Ok(buffer)
    }

    fn place_bytes(&self, values: Vec<u8>) -> Result<Buffer<u8>, MemoryRefused> {
        let mut buffer = Buffer::Device(Box::new(self.zeros(Format::U8, values.len())?));
        buffer.all_mut().copy_from_host(&values);
        Ok(buffer)
    }

    fn on_device(&self) -> Option<&dyn OnDevice> {
        Some(self)
    }

    fn links(&self) -> Option<Result<&dyn DeviceLinks, String>> {
        Some(match self.device.nccl() {
            Ok(_) => Ok(self),
            Err(why) => Err(format!("NCCL {why}")),
        })
    }

    fn free_memory(&self) -> Option<u64> {
        self.device.pool().free_bytes().ok().map(|bytes| bytes as u64)
    }

    fn draws_tokens(&self) -> bool {
        true
    }

    fn draw_tokens(&self, logits: SliceMut<'_>, draws: &[Draw<'_>], rule: DrawRule) -> Vec<Drawn> {
        let call = self.open("draw_tokens");
        let logits = call.write(logits, Before::Needed);
        let drawn = sampling::draw(&call, logits, draws, rule);
        call.close();
        drawn
    }

    fn workspace_bytes(&self, work: &Workload) -> usize {
        workspace::bytes(work, self.device.cudnn().is_some())
    }

    fn bytes_per_number(&self, precision: Precision) -> usize {
        format_for(precision).n_bytes()
    }

    fn linear_forward(&self, y: SliceMut<'_>, x: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        let call = self.open("linear_forward");
        let (y, x) = (call.write(y, before(write)), call.read(x));
        linear::forward(&call, y, x, w, None, write);
        call.close();
    }

    fn linear_backward(&self, dx: SliceMut<'_>, dy: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        let call = self.open("linear_backward");
        let (dx, dy) = (call.write(dx, before(write)), call.read(dy));
        linear::backward(&call, dx, dy, w, None, write);
        call.close();
    }

    fn linear_forward_low_rank(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        let call = self.open("linear_forward_low_rank");
        let (y, x) = (call.write(y, before(write)), call.read(x));
        let LowRank { u, v, scale } = low_rank;
        let low_rank = linear::LowRank { u: call.read(u), v: call.read(v), scale };
        linear::forward(&call, y, x, w, Some(low_rank), write);
        call.close();
    }

    fn linear_backward_low_rank(
        &self,
        dx: SliceMut<'_>,
        dy: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        let call = self.open("linear_backward_low_rank");
        let (dx, dy) = (call.write(dx, before(write)), call.read(dy));
        let LowRank { u, v, scale } = low_rank;
        let low_rank = linear::LowRank { u: call.read(u), v: call.read(v), scale };
        linear::backward(&call, dx, dy, w, Some(low_rank), write);
        call.close();
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
        let call = self.open("gemm");
        let (c, a, b) = (call.write(c, before(write)), call.read(a), call.read(b));
        gemm::gemm(&call, c, a, b, layout, dims, alpha, write);
        call.close();
    }

    fn embedding_forward(&self, y: SliceMut<'_>, tokens: &[u32], table: &dyn FrozenMatrix) {
        let call = self.open("embedding_forward");
        CudaMatrix::of(table).gather(&call, call.write(y, Before::Unused), tokens);
        call.close();
    }

    fn embedding_backward(&self, dtable: SliceMut<'_>, dy: Slice<'_>, tokens: &[u32]) {
        let call = self.open("embedding_backward");
        let (dtable, dy) = (call.write(dtable, Before::Needed), call.read(dy));
        embedding::backward(&call, dtable, dy, tokens);
        call.close();
    }

    fn rms_norm_forward(
        &self,
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
    ) {
        let call = self.open("rms_norm_forward");
        let (y, inv_rms) = (call.write(y, Before::Unused), call.write(inv_rms, Before::Unused));
        let (x, weight) = (call.read(x), call.read(weight));
        rms_norm::forward(&call, y, inv_rms, x, weight, eps);
        call.close();
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
        let call = self.open("rms_norm_backward");
        let (dx, dy, x) = (call.write(dx, before(write)), call.read(dy), call.read(x));
        let (inv_rms, weight) = (call.read(inv_rms), call.read(weight));
        rms_norm::backward(&call, dx, dy, x, inv_rms, weight, write);
        call.close();
    }

    fn rms_norm_weight_backward(
        &self,
        dweight: SliceMut<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
        inv_rms: Slice<'_>,
    ) {
        let call = self.open("rms_norm_weight_backward");
        let dweight = call.write(dweight, Before::Needed);
        let (dy, x, inv_rms) = (call.read(dy), call.read(x), call.read(inv_rms));
        rms_norm::weight_backward(&call, dweight, dy, x, inv_rms);
        call.close();
    }

    fn add_bias(&self, y: SliceMut<'_>, bias: Slice<'_>) {
        let call = self.open("add_bias");
        let (y, bias) = (call.write(y, Before::Needed), call.read(bias));
        columns::add_bias(&call, y, bias);
        call.close();
    }

    fn column_sums(&self, sums: SliceMut<'_>, x: Slice<'_>) {
        let call = self.open("column_sums");
        let (sums, x) = (call.write(sums, Before::Needed), call.read(x));
        columns::sums(&call, sums, x);
        call.close();
    }

    fn scale_columns(&self, y: SliceMut<'_>, x: Slice<'_>, factors: Slice<'_>, write: Write) {
        let call = self.open("scale_columns");
        let (y, x, factors) = (call.write(y, before(write)), call.read(x), call.read(factors));
        columns::scale(&call, y, x, factors, write);
        call.close();
    }

    fn column_dots(&self, sums: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        let call = self.open("column_dots");
        let (sums, a, b) = (call.write(sums, Before::Needed), call.read(a), call.read(b));
        columns::dots(&call, sums, a, b);
        call.close();
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
        let call = self.open("rms_norm_rope");
        let (y, inv_rms) = (call.write(y, Before::Unused), call.write(inv_rms, Before::Unused));
        let (x, weight) = (call.read(x), call.read(weight));
        let (cos, sin) = (call.read(cos), call.read(sin));
        rope::norm_and_rotate(&call, (y, inv_rms), x, weight, (cos, sin), n_heads, eps);
        call.close();
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
        let call = self.open("rope");
        let (x, cos, sin) = (call.write(x, Before::Needed), call.read(cos), call.read(sin));
        rope::rope(&call, x, cos, sin, n_heads, head_dim, direction);
        call.close();
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
        let call = self.open("attention_forward");
        let (out, lse) = (call.write(out, Before::Unused), call.write(lse, Before::Unused));
        let (q, k, v) = (call.read(q), call.read(k), call.read(v));
        attention::forward(&call, out, lse, q, k, v, shape, segments);
        call.close();
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
        let call = self.open("attention_backward");
        let [dq, dk, dv] = [dq, dk, dv].map(|gradient| call.write(gradient, Before::Unused));
        let (dout, out, lse) = (call.read(dout), call.read(out), call.read(lse));
        let (q, k, v) = (call.read(q), call.read(k), call.read(v));
        attention::backward(&call, dq, dk, dv, dout, out, lse, q, k, v, shape, segments);
        call.close();
    }

    fn attention_cached(
        &self,
        out: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
    ) {
        let call = self.open("attention_cached");
        let out = call.write(out, Before::Unused);
        let (q, k, v) = (call.read(q), call.read(k), call.read(v));
        attention::cached(&call, out, q, k, v, shape);
        call.close();
    }

    fn glu_forward(&self, y: SliceMut<'_>, gate: Slice<'_>, up: Slice<'_>, act: Activation) {
        let call = self.open("glu_forward");
        let (y, gate, up) = (call.write(y, Before::Unused), call.read(gate), call.read(up));
        glu::forward(&call, y, gate, up, act);
        call.close();
    }

    fn glu_backward(&self, gate: SliceMut<'_>, up: SliceMut<'_>, dy: Slice<'_>, act: Activation) {
        let call = self.open("glu_backward");
        let (gate, up) = (call.write(gate, Before::Needed), call.write(up, Before::Needed));
        glu::backward(&call, gate, up, call.read(dy), act);
        call.close();
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
        let call = self.open("token_logprobs_forward");
        let (logp, lse) = (call.write(logp, Before::Unused), call.write(lse, Before::Unused));
        let given = token_logprobs::Given { x: call.read(x), labels, soft_cap };
        token_logprobs::forward(&call, logp, lse, given, head);
        call.close();
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
        let call = self.open("token_logprobs_backward");
        let dx = call.write(dx, Before::Unused);
        let upstream = token_logprobs::Upstream { dlogp: call.read(dlogp), lse: call.read(lse) };
        let given = token_logprobs::Given { x: call.read(x), labels, soft_cap };
        token_logprobs::backward(&call, dx, upstream, given, head);
        call.close();
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
        let call = self.open("token_logprobs_head_backward");
        let dhead = call.write(dhead, Before::Needed);
        let upstream = token_logprobs::Upstream { dlogp: call.read(dlogp), lse: call.read(lse) };
        let given = token_logprobs::Given { x: call.read(x), labels, soft_cap };
        token_logprobs::head_backward(&call, dhead, upstream, given, head);
        call.close();
    }

    fn token_logprobs_with_gradient(
        &self,
        logp: SliceMut<'_>,
        lse: SliceMut<'_>,
        dx: SliceMut<'_>,
        x: Slice<'_>,
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    ) {
        let call = self.open("token_logprobs_with_gradient");
        let [logp, lse, dx] = [logp, lse, dx].map(|result| call.write(result, Before::Unused));
        let given = token_logprobs::Given { x: call.read(x), labels, soft_cap };
        token_logprobs::with_gradient(&call, (logp, lse), dx, given, head);
        call.close();
    }

    fn dropout(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        row_keys: &[u64],
        dropout: &Dropout,
        write: Write,
    ) {
        let call = self.open("dropout");
        let (y, x) = (call.write(y, before(write)), call.read(x));
        dropout::dropout(&call, y, x, row_keys, dropout, write);
        call.close();
    }

    fn copy(&self, y: SliceMut<'_>, x: Slice<'_>) {
        let call = self.open("copy");
        let (y, x) = (call.write(y, Before::Unused), call.read(x));
        cast::copy(&call, y, x);
        call.close();
    }

    fn fill(&self, y: SliceMut<'_>, value: f32) {
        let call = self.open("fill");
        cast::fill(&call, call.write(y, Before::Unused), value);
        call.close();
    }

    fn scale(&self, y: SliceMut<'_>, factor: f32) {
        let call = self.open("scale");
        cast::scale(&call, call.write(y, Before::Needed), factor);
        call.close();
    }

    fn soft_cap(&self, y: SliceMut<'_>, cap: f32) {
        let call = self.open("soft_cap");
        cast::soft_cap(&call, call.write(y, Before::Needed), cap);
        call.close();
    }

    fn cast_float8(
        &self,
        y: SliceMut<'_>,
        codes: Slice<'_, u8>,
        scales: Slice<'_>,
        layout: Float8Layout,
    ) {
        let call = self.open("cast_float8");
        let y = call.write(y, Before::Unused);
        let (codes, scales) = (call.read_bytes(codes), call.read(scales));
        assert_eq!(scales.len, layout.n_scales(layout.n_rows(codes.len)), "scales");
        float8::cast(&call, y, (codes, 0), scales, layout);
        call.close();
    }

    fn copy_columns(&self, y: SliceMut<'_>, to: Columns, x: Slice<'_>, from: Columns, n: usize) {
        let call = self.open("copy_columns");
        let (y, x) = (call.write(y, Before::Needed), call.read(x));
        rows::copy_columns(&call, (y, to), (x, from), n);
        call.close();
    }

    fn gather_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        let call = self.open("gather_rows");
        let (y, x) = (call.write(y, Before::Unused), call.read(x));
        rows::gather(&call, y, x, rows);
        call.close();
    }

    fn scatter_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        let call = self.open("scatter_rows");
        let (y, x) = (call.write(y, Before::Needed), call.read(x));
        rows::scatter(&call, y, x, rows);
        call.close();
    }

    fn scale_rows(&self, x: SliceMut<'_>, factors: Slice<'_>) {
        let call = self.open("scale_rows");
        let (x, factors) = (call.write(x, Before::Needed), call.read(factors));
        rows::scale_each(&call, x, factors);
        call.close();
    }

    fn row_dots(&self, dots: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        let call = self.open("row_dots");
        let (dots, a, b) = (call.write(dots, Before::Unused), call.read(a), call.read(b));
        rows::dots(&call, dots, a, b);
        call.close();
    }

    fn softmax_rows(&self, x: SliceMut<'_>, n_cols: usize) {
        let call = self.open("softmax_rows");
        rows::softmax(&call, call.write(x, Before::Needed), n_cols);
        call.close();
    }

    fn route(
        &self,
        to: RoutingMut<'_>,
        probs: Slice<'_>,
        choice: Choice,
        sums: Option<&mut [f64]>,
    ) -> Vec<usize> {
        let call = self.open("route");
        let to = routing::Arrays {
            chosen: call.write_indices(to.chosen),
            places: call.write_indices(to.places),
            rows: call.write_indices(to.rows),
            weights: call.write(to.weights, Before::Unused),
        };
        let starts = routing::route(&call, &to, call.read(probs), choice, sums);
        call.close();
        starts
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
        let call = self.open("route_backward");
        let arrays = routing::Arrays {
            chosen: call.read_indices(routing.chosen),
            places: call.read_indices(routing.places),
            rows: call.read_indices(routing.rows),
            weights: call.read(routing.weights),
        };
        let dscores = call.write(dscores, Before::Unused);
        let given = (call.read(probs), call.read(dweights));
        let balance = balance.map(|balance| call.read(balance));
        routing::backward(&call, dscores, &arrays, given, balance, choice);
        call.close();
    }

    fn sigmoid_gate_forward(&self, h: SliceMut<'_>, scores: Slice<'_>) {
        let call = self.open("sigmoid_gate_forward");
        let (h, scores) = (call.write(h, Before::Needed), call.read(scores));
        rows::sigmoid_gate_forward(&call, h, scores);
        call.close();
    }

    fn sigmoid_gate_backward(&self, dh: SliceMut<'_>, scores: SliceMut<'_>, h: Slice<'_>) {
        let call = self.open("sigmoid_gate_backward");
        let (dh, scores) = (call.write(dh, Before::Needed), call.write(scores, Before::Needed));
        rows::sigmoid_gate_backward(&call, dh, scores, call.read(h));
        call.close();
    }

    fn add(&self, y: SliceMut<'_>, x: Slice<'_>) {
        let call = self.open("add");
        let (y, x) = (call.write(y, Before::Needed), call.read(x));
        add::add(&call, y, x);
        call.close();
    }

    fn sum_of_squares(&self, x: Slice<'_>) -> f64 {
        let call = self.open("sum_of_squares");
        let sum = sum_of_squares::sum_of_squares(&call, call.read(x));
        call.close();
        sum
    }

    fn adamw_step(
        &self,
        param: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        let call = self.open("adamw_step");
        let [param, m, v] = [param, m, v].map(|changed| call.write(changed, Before::Needed));
        let tensor = adamw::Tensor { param, m, v, grad: call.read(grad) };
        adamw::step(&call, &tensor, constants);
        call.close();
    }

    fn adamw_8bit_step(
        &self,
        param: SliceMut<'_>,
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        let call = self.open("adamw_8bit_step");
        m.check("m", param.len());
        v.check("v", param.len());
        let [m, v] = [m, v].map(|moments| adamw_8bit::Blocks {
            codes: call.write_bytes(moments.codes),
            absmax: call.write(moments.absmax, Before::Needed),
        });
        let (param, grad) = (call.write(param, Before::Needed), call.read(grad));
        adamw_8bit::step(&call, param, m, v, grad, constants);
        call.close();
    }

    fn adafactor_step(
        &self,
        param: SliceMut<'_>,
        moments: AdafactorMoments<'_>,
        grad: Slice<'_>,
        constants: &Adafactor,
    ) {
        let call = self.open("adafactor_step");
        let changed = |slice| call.write(slice, Before::Needed);
        let param = changed(param);
        let moments = match moments {
            AdafactorMoments::Factored { rows, columns } => {
                adafactor::Moments::Factored { rows: changed(rows), columns: changed(columns) }
            }
            AdafactorMoments::Whole(whole) => adafactor::Moments::Whole(changed(whole)),
        };
        adafactor::step(&call, param, moments, call.read(grad), constants);
        call.close();
    }
}
