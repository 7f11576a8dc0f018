//! The plain version of every op: one thread, sums in f64, no cleverness.
//!
//! It stays as it is when others get faster: `kernels/check` compares every library with it.
//! It refuses to know about instruction sets and threads. One file an op; start at
//! [`Reference`].
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "results computed in f64 are stored as f32; sizes become f64 factors"
)]

mod adafactor;
mod adamw;
mod adamw_8bit;
mod add;
mod attention;
mod columns;
mod dropout;
mod embedding;
mod frozen;
mod gemm;
mod glu;
mod linear;
mod rms_norm;
mod rope;
mod sum_of_squares;
mod token_logprobs;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Compute, Dropout,
    FrozenMatrix, GemmDims, GemmLayout, LowRank, Ops, Rotation, RowSource, Segment, Write,
};

/// The plain kernel library.
///
/// Numerics: every sum in f64, rounded to f32 once. Products with a matrix frozen in
/// [`Compute::Bf16`] round both factors to bfloat16 (round to nearest even) first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Ops for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn n_threads(&self) -> usize {
        1
    }

    fn prefers(&self, compute: Compute) -> bool {
        match compute {
            Compute::F32 => true,
            Compute::Bf16 => false,
        }
    }

    fn freeze(&self, source: &dyn RowSource, compute: Compute) -> Box<dyn FrozenMatrix> {
        Box::new(frozen::PlainMatrix::read(source, compute))
    }

    fn freeze_packed(
        &self,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Box<dyn FrozenMatrix>> {
        Some(Box::new(frozen::PlainMatrix::unpack(source, compute)?))
    }

    fn linear_forward(&self, y: &mut [f32], x: &[f32], w: &dyn FrozenMatrix, write: Write) {
        linear::forward(y, x, w, None, write);
    }

    fn linear_forward_low_rank(
        &self,
        y: &mut [f32],
        x: &[f32],
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::forward(y, x, w, Some(low_rank), write);
    }

    fn linear_backward(&self, dx: &mut [f32], dy: &[f32], w: &dyn FrozenMatrix, write: Write) {
        linear::backward(dx, dy, w, None, write);
    }

    fn linear_backward_low_rank(
        &self,
        dx: &mut [f32],
        dy: &[f32],
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::backward(dx, dy, w, Some(low_rank), write);
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
        gemm::gemm(c, a, b, layout, dims, alpha, write);
    }

    fn embedding_forward(&self, y: &mut [f32], tokens: &[u32], table: &dyn FrozenMatrix) {
        embedding::forward(y, tokens, table);
    }

    fn embedding_backward(&self, dtable: &mut [f32], dy: &[f32], tokens: &[u32]) {
        embedding::backward(dtable, dy, tokens);
    }

    fn rms_norm_forward(
        &self,
        y: &mut [f32],
        inv_rms: &mut [f32],
        x: &[f32],
        weight: &[f32],
        eps: f32,
    ) {
        rms_norm::forward(y, inv_rms, x, weight, eps);
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
        rms_norm::backward(dx, dy, x, inv_rms, weight, write);
    }

    fn rms_norm_weight_backward(
        &self,
        dweight: &mut [f32],
        dy: &[f32],
        x: &[f32],
        inv_rms: &[f32],
    ) {
        rms_norm::weight_backward(dweight, dy, x, inv_rms);
    }

    fn add_bias(&self, y: &mut [f32], bias: &[f32]) {
        columns::add_bias(y, bias);
    }

    fn column_sums(&self, sums: &mut [f32], x: &[f32]) {
        columns::sums(sums, x);
    }

    fn scale_columns(&self, y: &mut [f32], x: &[f32], factors: &[f32], write: Write) {
        columns::scale(y, x, factors, write);
    }

    fn column_dots(&self, sums: &mut [f32], a: &[f32], b: &[f32]) {
        columns::dots(sums, a, b);
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
        rope::rope(x, cos, sin, n_heads, head_dim, direction);
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
        attention::forward(out, lse, q, k, v, shape, segments);
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
        attention::backward(dq, dk, dv, &given, shape, segments);
    }

    fn attention_cached(
        &self,
        out: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        shape: &AttentionShape,
    ) {
        attention::cached(out, q, k, v, shape);
    }

    fn glu_forward(&self, y: &mut [f32], gate: &[f32], up: &[f32], act: Activation) {
        glu::forward(y, gate, up, act);
    }

    fn glu_backward(&self, gate: &mut [f32], up: &mut [f32], dy: &[f32], act: Activation) {
        glu::backward(gate, up, dy, act);
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
        token_logprobs::forward(logp, lse, x, head, labels, soft_cap);
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
        let given = token_logprobs::Given { dlogp, lse, x, labels };
        token_logprobs::backward(dx, &given, head, soft_cap);
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
        let given = token_logprobs::Given { dlogp, lse, x, labels };
        token_logprobs::head_backward(dhead, &given, head, soft_cap);
    }

    fn dropout(&self, y: &mut [f32], x: &[f32], row_keys: &[u64], dropout: &Dropout, write: Write) {
        dropout::dropout(y, x, row_keys, dropout, write);
    }

    fn add(&self, y: &mut [f32], x: &[f32]) {
        add::add(y, x);
    }

    fn sum_of_squares(&self, x: &[f32]) -> f64 {
        sum_of_squares::sum_of_squares(x)
    }

    fn adamw_step(
        &self,
        param: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        grad: &[f32],
        constants: &AdamW,
    ) {
        adamw::step(param, m, v, grad, constants);
    }

    fn adamw_8bit_step(
        &self,
        param: &mut [f32],
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: &[f32],
        constants: &AdamW,
    ) {
        adamw_8bit::step(param, m, v, grad, constants);
    }

    fn adafactor_step(
        &self,
        param: &mut [f32],
        moments: AdafactorMoments<'_>,
        grad: &[f32],
        constants: &Adafactor,
    ) {
        adafactor::step(param, moments, grad, constants);
    }
}

/// Stores or adds one result that was computed in f64.
fn put(target: &mut f32, result: f64, write: Write) {
    match write {
        Write::Replace => *target = result as f32,
        Write::Add => *target = (f64::from(*target) + result) as f32,
    }
}

/// Sum of products in f64, in order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
