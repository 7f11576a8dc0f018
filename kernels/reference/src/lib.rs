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
mod float8;
mod frozen;
mod gemm;
mod glu;
mod linear;
mod rms_norm;
mod rope;
mod routing;
mod rows;
mod sum_of_squares;
mod token_logprobs;

use forgelm_kernels_api::{
    Activation, Adafactor, AdafactorMoments, AdamW, AttentionShape, Blocks8bit, Choice, Columns,
    Compute, Dropout, Float8Layout, FrozenMatrix, GemmDims, GemmLayout, LowRank, Ops, Rotation,
    Routing, RoutingMut, RowSource, Segment, Slice, SliceMut, Write,
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

    fn linear_forward(&self, y: SliceMut<'_>, x: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        linear::forward(y.on_host(), x.on_host(), w, None, write);
    }

    fn linear_forward_low_rank(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::forward(y.on_host(), x.on_host(), w, Some(low_rank), write);
    }

    fn linear_backward(&self, dx: SliceMut<'_>, dy: Slice<'_>, w: &dyn FrozenMatrix, write: Write) {
        linear::backward(dx.on_host(), dy.on_host(), w, None, write);
    }

    fn linear_backward_low_rank(
        &self,
        dx: SliceMut<'_>,
        dy: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        linear::backward(dx.on_host(), dy.on_host(), w, Some(low_rank), write);
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
        gemm::gemm(c.on_host(), a.on_host(), b.on_host(), layout, dims, alpha, write);
    }

    fn embedding_forward(&self, y: SliceMut<'_>, tokens: &[u32], table: &dyn FrozenMatrix) {
        embedding::forward(y.on_host(), tokens, table);
    }

    fn embedding_backward(&self, dtable: SliceMut<'_>, dy: Slice<'_>, tokens: &[u32]) {
        embedding::backward(dtable.on_host(), dy.on_host(), tokens);
    }

    fn rms_norm_forward(
        &self,
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
    ) {
        rms_norm::forward(y.on_host(), inv_rms.on_host(), x.on_host(), weight.on_host(), eps);
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
        rms_norm::weight_backward(dweight.on_host(), dy.on_host(), x.on_host(), inv_rms.on_host());
    }

    fn add_bias(&self, y: SliceMut<'_>, bias: Slice<'_>) {
        columns::add_bias(y.on_host(), bias.on_host());
    }

    fn column_sums(&self, sums: SliceMut<'_>, x: Slice<'_>) {
        columns::sums(sums.on_host(), x.on_host());
    }

    fn scale_columns(&self, y: SliceMut<'_>, x: Slice<'_>, factors: Slice<'_>, write: Write) {
        columns::scale(y.on_host(), x.on_host(), factors.on_host(), write);
    }

    fn column_dots(&self, sums: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        columns::dots(sums.on_host(), a.on_host(), b.on_host());
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
        rope::rope(x.on_host(), cos.on_host(), sin.on_host(), n_heads, head_dim, direction);
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
        attention::backward(dq.on_host(), dk.on_host(), dv.on_host(), &given, shape, segments);
    }

    fn attention_cached(
        &self,
        out: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
    ) {
        attention::cached(out.on_host(), q.on_host(), k.on_host(), v.on_host(), shape);
    }

    fn glu_forward(&self, y: SliceMut<'_>, gate: Slice<'_>, up: Slice<'_>, act: Activation) {
        glu::forward(y.on_host(), gate.on_host(), up.on_host(), act);
    }

    fn glu_backward(&self, gate: SliceMut<'_>, up: SliceMut<'_>, dy: Slice<'_>, act: Activation) {
        glu::backward(gate.on_host(), up.on_host(), dy.on_host(), act);
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
        token_logprobs::forward(logp.on_host(), lse.on_host(), x.on_host(), head, labels, soft_cap);
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
        let given = token_logprobs::Given {
            dlogp: dlogp.on_host(),
            lse: lse.on_host(),
            x: x.on_host(),
            labels,
        };
        token_logprobs::backward(dx.on_host(), &given, head, soft_cap);
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
        let given = token_logprobs::Given {
            dlogp: dlogp.on_host(),
            lse: lse.on_host(),
            x: x.on_host(),
            labels,
        };
        token_logprobs::head_backward(dhead.on_host(), &given, head, soft_cap);
    }

    fn dropout(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        row_keys: &[u64],
        dropout: &Dropout,
        write: Write,
    ) {
        dropout::dropout(y.on_host(), x.on_host(), row_keys, dropout, write);
    }

    fn copy(&self, y: SliceMut<'_>, x: Slice<'_>) {
        rows::copy(y.on_host(), x.on_host());
    }

    fn fill(&self, y: SliceMut<'_>, value: f32) {
        y.on_host().fill(value);
    }

    fn scale(&self, y: SliceMut<'_>, factor: f32) {
        rows::scale(y.on_host(), factor);
    }

    fn soft_cap(&self, y: SliceMut<'_>, cap: f32) {
        rows::soft_cap(y.on_host(), cap);
    }

    fn cast_float8(
        &self,
        y: SliceMut<'_>,
        codes: Slice<'_, u8>,
        scales: Slice<'_>,
        layout: Float8Layout,
    ) {
        float8::cast(y.on_host(), codes.on_host(), scales.on_host(), layout);
    }

    fn copy_columns(&self, y: SliceMut<'_>, to: Columns, x: Slice<'_>, from: Columns, n: usize) {
        rows::copy_columns((y.on_host(), to), (x.on_host(), from), n);
    }

    fn gather_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        rows::gather(y.on_host(), x.on_host(), rows.on_host());
    }

    fn scatter_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>) {
        rows::scatter(y.on_host(), x.on_host(), rows.on_host());
    }

    fn scale_rows(&self, x: SliceMut<'_>, factors: Slice<'_>) {
        rows::scale_each(x.on_host(), factors.on_host());
    }

    fn row_dots(&self, dots: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) {
        rows::dots(dots.on_host(), a.on_host(), b.on_host());
    }

    fn softmax_rows(&self, x: SliceMut<'_>, n_cols: usize) {
        rows::softmax(x.on_host(), n_cols);
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
        rows::sigmoid_gate_forward(h.on_host(), scores.on_host());
    }

    fn sigmoid_gate_backward(&self, dh: SliceMut<'_>, scores: SliceMut<'_>, h: Slice<'_>) {
        rows::sigmoid_gate_backward(dh.on_host(), scores.on_host(), h.on_host());
    }

    fn add(&self, y: SliceMut<'_>, x: Slice<'_>) {
        add::add(y.on_host(), x.on_host());
    }

    fn sum_of_squares(&self, x: Slice<'_>) -> f64 {
        sum_of_squares::sum_of_squares(x.on_host())
    }

    fn adamw_step(
        &self,
        param: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        adamw::step(param.on_host(), m.on_host(), v.on_host(), grad.on_host(), constants);
    }

    fn adamw_8bit_step(
        &self,
        param: SliceMut<'_>,
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    ) {
        adamw_8bit::step(param.on_host(), m, v, grad.on_host(), constants);
    }

    fn adafactor_step(
        &self,
        param: SliceMut<'_>,
        moments: AdafactorMoments<'_>,
        grad: Slice<'_>,
        constants: &Adafactor,
    ) {
        adafactor::step(param.on_host(), moments, grad.on_host(), constants);
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
