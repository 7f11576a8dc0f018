//! The CPU version of every op: vectors chosen at run time, threads over a fixed grid.
//!
//! It refuses to know what a model is, and how many threads there are changes nothing in a result:
//! an op's work is cut by sizes alone (`pool`). One file an op; products of every kind end in
//! `tile`. Start reading at [`Cpu`], then `linear`.
//!
//! `unsafe` stands in the files that touch vectors, shared output slices, scratch memory, the pages
//! of weights and the pool; each block says why it is sound, and what they offer to the rest is checked.
#![expect(
    unsafe_code,
    reason = "vector instructions, and slices that several tasks write parts of"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "sizes become factors, bits of numbers are taken apart"
)]
#![cfg_attr(
    target_arch = "x86_64",
    expect(clippy::cast_possible_wrap, reason = "vectors of bits are of signed numbers there")
)]

mod adafactor;
mod adamw;
mod adamw_8bit;
mod add;
mod attention;
mod blocks;
mod columns;
mod dropout;
mod embedding;
mod float8;
mod frozen;
mod gemm;
mod glu;
mod linear;
mod low_rank;
mod math;
mod pages;
mod pool;
mod rms_norm;
mod rope;
mod routing;
mod rows;
mod scratch;
mod shared;
mod simd;
mod skinny;
mod sum_of_squares;
mod tile;
mod token_logprobs;
mod workspace;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Choice, Columns,
    Compute, Dropout, Float8Layout, FrozenMatrix, GemmDims, GemmLayout, LowRank, Ops, Rotation,
    Routing, RoutingMut, RowSource, Segment, Slice, SliceMut, Workload, Write,
};

use frozen::CpuMatrix;
use pool::Pool;
use simd::Isa;

pub use simd::InstructionSet;

/// The CPU kernel library.
///
/// Numerics: the same inputs give the same bits on any number of threads, on one instruction set.
/// Instruction sets differ in the order of additions. `vdpbf16ps` (the `avx512bf16` set) rounds
/// products and sums of a pair to nearest even and takes denormal numbers for zero, in factors and
/// in sums; so does rounding to bfloat16 there. Other sets keep denormals.
pub struct Cpu {
    name: String,
    set: InstructionSet,
    isa: Isa,
    pool: Pool,
}

impl Cpu {
    /// On the best instruction set of this processor; 0 threads mean 1.
    ///
    /// # Panics
    /// If the system refuses a thread.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        InstructionSet::available()
            .into_iter()
            .find_map(|set| Self::with_instruction_set(n_threads, set))
            .expect("plain code runs on every processor")
    }

    /// On a given instruction set; `None` if this processor does not have it.
    ///
    /// # Panics
    /// If the system refuses a thread.
    #[must_use]
    pub fn with_instruction_set(n_threads: usize, set: InstructionSet) -> Option<Self> {
        let isa = Isa::new(set)?;
        Some(Self { name: format!("cpu/{}", set.name()), set, isa, pool: Pool::new(n_threads) })
    }

    /// The instruction set in use.
    #[must_use]
    pub fn instruction_set(&self) -> InstructionSet {
        self.set
    }
}

impl Ops for Cpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    fn parallel_for(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(n_tasks, task);
    }

    fn prefers(&self, compute: Compute) -> bool {
        match compute {
            Compute::F32 => true,
            Compute::Bf16 => self.set == InstructionSet::Avx512Bf16,
        }
    }

    fn freeze(&self, source: &dyn RowSource, compute: Compute) -> Box<dyn FrozenMatrix> {
        Box::new(CpuMatrix::pack(&self.pool, self.isa, source, compute))
    }

    fn freeze_packed(
        &self,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Box<dyn FrozenMatrix>> {
        let packed = CpuMatrix::pack_blocks(&self.pool, self.isa, source, compute)?;
        Some(Box::new(packed))
    }

    fn workspace_bytes(&self, work: &Workload) -> usize {
        workspace::bytes(work, self.pool.n_threads())
    }

    fn linear_forward(&self, y: SliceMut<'_>, x: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        linear::forward(&self.pool, self.isa, y.on_host(), x.on_host(), w, None, write);
    }

    fn linear_forward_low_rank(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::forward(&self.pool, self.isa, y.on_host(), x.on_host(), w, Some(low_rank), write);
    }

    fn linear_backward(&self, dx: SliceMut<'_>, dy: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        linear::backward(&self.pool, self.isa, dx.on_host(), dy.on_host(), w, None, write);
    }

    fn linear_backward_low_rank(
        &self,
        dx: SliceMut<'_>,
        dy: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::backward(
            &self.pool,
            self.isa,
            dx.on_host(),
            dy.on_host(),
            w,
            Some(low_rank),
            write,
        );
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
        let factors = gemm::Factors { a: a.on_host(), b: b.on_host() };
        gemm::gemm(&self.pool, self.isa, c.on_host(), &factors, layout, dims, alpha, write);
    }

    fn embedding_forward(&self, y: SliceMut<'_>, tokens: &[u32], table: &dyn FrozenMatrix) {
        embedding::forward(&self.pool, y.on_host(), tokens, table);
    }

    fn embedding_backward(&self, dtable: SliceMut<'_>, dy: Slice<'_>, tokens: &[u32]) {
        embedding::backward(&self.pool, self.isa, dtable.on_host(), dy.on_host(), tokens);
    }

    fn rms_norm_forward(
        &self,
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
    ) {
        rms_norm::forward(
            &self.pool,
            self.isa,
            y.on_host(),
            inv_rms.on_host(),
            x.on_host(),
            weight.on_host(),
            eps,
        );
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
        rms_norm::backward(
            &self.pool,
            self.isa,
            dx.on_host(),
            dy.on_host(),
            x.on_host(),
            inv_rms.on_host(),
            weight.on_host(),
            write,
        );
    }

    fn rms_norm_weight_backward(
        &self,
        dweight: SliceMut<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
        inv_rms: Slice<'_>,
    ) {
        rms_norm::weight_backward(
            &self.pool,
            self.isa,
            dweight.on_host(),
            dy.on_host(),
            x.on_host(),
            inv_rms.on_host(),
        );
    }

    fn add_bias(&self, y: SliceMut<'_>, bias: Slice<'_>) {
        columns::add_bias(&self.pool, self.isa, y.on_host(), bias.on_host());
    }

    fn column_sums(&self, sums: SliceMut<'_>, x: Slice<'_>) {
        columns::sums(&self.pool, self.isa, sums.on_host(), x.on_host());
    }

    fn scale_columns(&self, y: SliceMut<'_>, x: Slice<'_>, factors: Slice<'_>, write: Write) {
        columns::scale(&self.pool, self.isa, y.on_host(), x.on_host(), factors.on_host(), write);
    }

    fn column_dots(&self, sums: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        columns::dots(&self.pool, self.isa, sums.on_host(), a.on_host(), b.on_host());
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
        let angles = rope::Angles { cos: cos.on_host(), sin: sin.on_host() };
        rope::rope(&self.pool, self.isa, x.on_host(), angles, n_heads, head_dim, direction);
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
        attention::forward(
            &self.pool,
            self.isa,
            out.on_host(),
            lse.on_host(),
            q.on_host(),
            k.on_host(),
            v.on_host(),
            shape,
            segments,
        );
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
        let given = attention::Given {
            dout: dout.on_host(),
            out: out.on_host(),
            lse: lse.on_host(),
            q: q.on_host(),
            k: k.on_host(),
            v: v.on_host(),
        };
        attention::backward(
            &self.pool,
            self.isa,
            dq.on_host(),
            dk.on_host(),
            dv.on_host(),
            given,
            shape,
            segments,
        );
    }

    fn attention_cached(
        &self,
        out: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
    ) {
        attention::cached(
            &self.pool,
            self.isa,
            out.on_host(),
            q.on_host(),
            k.on_host(),
            v.on_host(),
            shape,
        );
    }

    fn glu_forward(&self, y: SliceMut<'_>, gate: Slice<'_>, up: Slice<'_>, act: Activation) {
        glu::forward(&self.pool, self.isa, y.on_host(), gate.on_host(), up.on_host(), act);
    }

    fn glu_backward(&self, gate: SliceMut<'_>, up: SliceMut<'_>, dy: Slice<'_>, act: Activation) {
        glu::backward(&self.pool, self.isa, gate.on_host(), up.on_host(), dy.on_host(), act);
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
        let rows = token_logprobs::Rows { x: x.on_host(), labels, soft_cap };
        token_logprobs::forward(&self.pool, self.isa, logp.on_host(), lse.on_host(), rows, head);
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
        let rows = token_logprobs::Rows { x: x.on_host(), labels, soft_cap };
        let upstream = token_logprobs::Upstream { dlogp: dlogp.on_host(), lse: lse.on_host() };
        token_logprobs::backward(&self.pool, self.isa, dx.on_host(), upstream, rows, head);
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
        let rows = token_logprobs::Rows { x: x.on_host(), labels, soft_cap };
        let upstream = token_logprobs::Upstream { dlogp: dlogp.on_host(), lse: lse.on_host() };
        token_logprobs::head_backward(&self.pool, self.isa, dhead.on_host(), upstream, rows, head);
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
        let rows = token_logprobs::Rows { x: x.on_host(), labels, soft_cap };
        token_logprobs::with_gradient(
            &self.pool,
            self.isa,
            (logp.on_host(), lse.on_host()),
            dx.on_host(),
            rows,
            head,
        );
    }

    fn dropout(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        row_keys: &[u64],
        dropout: &Dropout,
        write: Write,
    ) {
        dropout::dropout(&self.pool, self.isa, y.on_host(), x.on_host(), row_keys, dropout, write);
    }

    fn copy(&self, y: SliceMut<'_>, x: Slice<'_>) {
        rows::copy(&self.pool, y.on_host(), x.on_host());
    }

    fn fill(&self, y: SliceMut<'_>, value: f32) {
        rows::fill(&self.pool, y.on_host(), value);
    }

    fn scale(&self, y: SliceMut<'_>, factor: f32) {
        rows::scale(&self.pool, y.on_host(), factor);
    }

    fn soft_cap(&self, y: SliceMut<'_>, cap: f32) {
        rows::soft_cap(&self.pool, y.on_host(), cap);
    }

    fn cast_float8(
        &self,
        y: SliceMut<'_>,
        codes: Slice<'_, u8>,
        scales: Slice<'_>,
        layout: Float8Layout,
    ) {
        float8::cast(&self.pool, y.on_host(), codes.on_host(), scales.on_host(), layout);
    }

    fn copy_columns(&self, y: SliceMut<'_>, to: Columns, x: Slice<'_>, from: Columns, n: usize) {
        rows::copy_columns(&self.pool, (y.on_host(), to), (x.on_host(), from), n);
    }

    fn gather_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        rows::gather(&self.pool, y.on_host(), x.on_host(), rows.on_host());
    }

    fn scatter_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        rows::scatter(y.on_host(), x.on_host(), rows.on_host());
    }

    fn scale_rows(&self, x: SliceMut<'_>, factors: Slice<'_>) {
        rows::scale_each(&self.pool, x.on_host(), factors.on_host());
    }

    fn row_dots(&self, dots: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        rows::dots(&self.pool, dots.on_host(), a.on_host(), b.on_host());
    }

    fn softmax_rows(&self, x: SliceMut<'_>, n_cols: usize) {
        rows::softmax(&self.pool, x.on_host(), n_cols);
    }

    fn route(
        &self,
        to: RoutingMut<'_>,
        probs: Slice<'_>,
        choice: Choice,
        sums: Option<&mut [f64]>,
    ) -> Vec<usize> {
        routing::route(to, probs.on_host(), choice, sums)
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
        let (given, balance) = ((probs.on_host(), dweights.on_host()), balance.map(Slice::on_host));
        routing::backward(dscores.on_host(), routing, given, balance, choice);
    }

    fn sigmoid_gate_forward(&self, h: SliceMut<'_>, scores: Slice<'_>) {
        rows::sigmoid_gate_forward(&self.pool, h.on_host(), scores.on_host());
    }

    fn sigmoid_gate_backward(&self, dh: SliceMut<'_>, scores: SliceMut<'_>, h: Slice<'_>) {
        rows::sigmoid_gate_backward(&self.pool, dh.on_host(), scores.on_host(), h.on_host());
    }

    fn add(&self, y: SliceMut<'_>, x: Slice<'_>) {
        add::add(&self.pool, self.isa, y.on_host(), x.on_host());
    }

    fn sum_of_squares(&self, x: Slice<'_>) -> f64 {
        sum_of_squares::sum_of_squares(&self.pool, self.isa, x.on_host())
    }

    fn adamw_step(
        &self,
        param: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        adamw::step(
            &self.pool,
            self.isa,
            param.on_host(),
            m.on_host(),
            v.on_host(),
            grad.on_host(),
            constants,
        );
    }

    fn adamw_8bit_step(
        &self,
        param: SliceMut<'_>,
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        adamw_8bit::step(&self.pool, self.isa, param.on_host(), m, v, grad.on_host(), constants);
    }

    fn adafactor_step(
        &self,
        param: SliceMut<'_>,
        moments: AdafactorMoments<'_>,
        grad: Slice<'_>,
        constants: &Adafactor,
    ) {
        adafactor::step(&self.pool, self.isa, param.on_host(), moments, grad.on_host(), constants);
    }
}
