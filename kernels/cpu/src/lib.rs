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
mod scratch;
mod shared;
mod simd;
mod skinny;
mod sum_of_squares;
mod tile;
mod token_logprobs;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Compute, Dropout,
    FrozenMatrix, GemmDims, GemmLayout, LowRank, Ops, Rotation, RowSource, Segment, Write,
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

    fn linear_forward(&self, y: &mut [f32], x: &[f32], w: &dyn FrozenMatrix, write: Write) {
        linear::forward(&self.pool, self.isa, y, x, w, None, write);
    }

    fn linear_forward_low_rank(
        &self,
        y: &mut [f32],
        x: &[f32],
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::forward(&self.pool, self.isa, y, x, w, Some(low_rank), write);
    }

    fn linear_backward(&self, dx: &mut [f32], dy: &[f32], w: &dyn FrozenMatrix, write: Write) {
        linear::backward(&self.pool, self.isa, dx, dy, w, None, write);
    }

    fn linear_backward_low_rank(
        &self,
        dx: &mut [f32],
        dy: &[f32],
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::backward(&self.pool, self.isa, dx, dy, w, Some(low_rank), write);
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
        let factors = gemm::Factors { a, b };
        gemm::gemm(&self.pool, self.isa, c, &factors, layout, dims, alpha, write);
    }

    fn embedding_forward(&self, y: &mut [f32], tokens: &[u32], table: &dyn FrozenMatrix) {
        embedding::forward(&self.pool, y, tokens, table);
    }

    fn embedding_backward(&self, dtable: &mut [f32], dy: &[f32], tokens: &[u32]) {
        embedding::backward(&self.pool, self.isa, dtable, dy, tokens);
    }

    fn rms_norm_forward(
        &self,
        y: &mut [f32],
        inv_rms: &mut [f32],
        x: &[f32],
        weight: &[f32],
        eps: f32,
    ) {
        rms_norm::forward(&self.pool, self.isa, y, inv_rms, x, weight, eps);
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
        rms_norm::backward(&self.pool, self.isa, dx, dy, x, inv_rms, weight, write);
    }

    fn rms_norm_weight_backward(
        &self,
        dweight: &mut [f32],
        dy: &[f32],
        x: &[f32],
        inv_rms: &[f32],
    ) {
        rms_norm::weight_backward(&self.pool, self.isa, dweight, dy, x, inv_rms);
    }

    fn add_bias(&self, y: &mut [f32], bias: &[f32]) {
        columns::add_bias(&self.pool, self.isa, y, bias);
    }

    fn column_sums(&self, sums: &mut [f32], x: &[f32]) {
        columns::sums(&self.pool, self.isa, sums, x);
    }

    fn scale_columns(&self, y: &mut [f32], x: &[f32], factors: &[f32], write: Write) {
        columns::scale(&self.pool, self.isa, y, x, factors, write);
    }

    fn column_dots(&self, sums: &mut [f32], a: &[f32], b: &[f32]) {
        columns::dots(&self.pool, self.isa, sums, a, b);
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
        let angles = rope::Angles { cos, sin };
        rope::rope(&self.pool, self.isa, x, angles, n_heads, head_dim, direction);
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
        attention::forward(&self.pool, self.isa, out, lse, q, k, v, shape, segments);
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
        let given = attention::Given { dout, out, lse, q, k, v };
        attention::backward(&self.pool, self.isa, dq, dk, dv, given, shape, segments);
    }

    fn attention_cached(
        &self,
        out: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: &AttentionShape,
    ) {
        attention::cached(&self.pool, self.isa, out, q, k, v, shape);
    }

    fn glu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
        glu::forward(&self.pool, self.isa, y, gate, up, act);
    }

    fn glu_backward(&self, gate: &mut [f32], up: &mut [f32], dy: &[f32], act: Activation) {
        glu::backward(&self.pool, self.isa, gate, up, dy, act);
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
        let rows = token_logprobs::Rows { x, labels, soft_cap };
        token_logprobs::forward(&self.pool, self.isa, logp, lse, rows, head);
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
        let rows = token_logprobs::Rows { x, labels, soft_cap };
        let upstream = token_logprobs::Upstream { dlogp, lse };
        token_logprobs::backward(&self.pool, self.isa, dx, upstream, rows, head);
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
        let rows = token_logprobs::Rows { x, labels, soft_cap };
        let upstream = token_logprobs::Upstream { dlogp, lse };
        token_logprobs::head_backward(&self.pool, self.isa, dhead, upstream, rows, head);
    }

    fn token_logprobs_with_gradient(
        &self,
        logp: &mut [f32],
        lse: &mut [f32],
        dx: &mut [f32],
        x: &[f32],
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    ) {
        let rows = token_logprobs::Rows { x, labels, soft_cap };
        token_logprobs::with_gradient(&self.pool, self.isa, (logp, lse), dx, rows, head);
    }

    fn dropout(&self, y: &mut [f32], x: &[f32], row_keys: &[u64], dropout: &Dropout, write: Write) {
        dropout::dropout(&self.pool, self.isa, y, x, row_keys, dropout, write);
    }

    fn add(&self, y: &mut [f32], x: &[f32]) {
        add::add(&self.pool, self.isa, y, x);
    }

    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        sum_of_squares::sum_of_squares(&self.pool, self.isa, x)
    }

    fn adamw_step(
        &self,
        param: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        grad: &[f32],
        constants: &AdamW,
    ) {
        adamw::step(&self.pool, self.isa, param, m, v, grad, constants);
    }

    fn adamw_8bit_step(
        &self,
        param: &mut [f32],
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: &[f32],
        constants: &AdamW,
    ) {
        adamw_8bit::step(&self.pool, self.isa, param, m, v, grad, constants);
    }

    fn adafactor_step(
        &self,
        param: &mut [f32],
        moments: AdafactorMoments<'_>,
        grad: &[f32],
        constants: &Adafactor,
    ) {
        adafactor::step(&self.pool, self.isa, param, moments, grad, constants);
    }
}
