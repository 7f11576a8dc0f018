//! The operations. One method an op; its file has the same name in `kernels/reference`,
//! `kernels/cpu`, `kernels/check` and `kernels/cuda`.
//!
//! **Numerics**, for every op: the order of additions is a function of the sizes alone, never of
//! the number of threads, so that the same inputs give the same bits on any number of threads.
//!
//! **Panics**, for every op: if a length does not fit the shapes. That is a bug in the caller,
//! never bad input.

use crate::float8::Float8Layout;
use crate::frozen::{Compute, Dense, FrozenMatrix, RowSource};
use crate::link::DeviceLinks;
use crate::memory::{Buffer, MemoryRefused, Precision, Slice, SliceMut, Workload};
use crate::on_device::OnDevice;
use crate::optimizer::{Adafactor, AdafactorMoments, AdamW, Blocks8bit};
use crate::routing::{Choice, Routing, RoutingMut};

/// How a token is drawn from a row of logits, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawRule {
    /// Logits of tokens that were seen are divided by it when positive, else multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Logits are divided by it; 0 takes the first of the largest, whatever follows.
    pub temperature: f32,
    /// Keep the tokens whose logit is at least the k-th largest; 0 keeps all.
    pub top_k: usize,
    /// Drop a token when the mass of those before it exceeds this; 1 keeps all.
    pub top_p: f32,
}

/// A token that is to be drawn from a row of logits.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// In [0, 1): falls on one of the tokens that are left, which lie in the order of their ids,
    /// each as wide as its probability.
    pub uniform: f32,
    /// Tokens that were seen, each once.
    pub seen: &'a [u32],
}

/// The token of a row, or the first whose logit is not a number.
pub type Drawn = Result<u32, u32>;

/// Whether a result replaces what was there or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = result`.
    Replace,
    /// `y += result`.
    Add,
}

/// Which factors of a dense product are read transposed. C is always [M, N].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmLayout {
    /// `A` [M, K], `B` [K, N].
    Nn,
    /// `A` [M, K], `B` [N, K].
    Nt,
    /// `A` [K, M], `B` [K, N].
    Tn,
}

/// Sizes of a dense product; K is the length that is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmDims {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
}

/// A product of low rank that is added to one with a frozen weight: `scale * u v`, all of it f32.
///
/// Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// [T, r].
    pub u: Slice<'a>,
    /// Forward [N, r], read transposed; backward [r, K].
    pub v: Slice<'a>,
    /// Factor on the product.
    pub scale: f32,
}

/// Where some columns of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of the matrix.
    pub width: usize,
    /// The first of them.
    pub first: usize,
}

/// One sequence of a packed batch: rows `start..start + len`. Segments lie end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// What attention is told besides its inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// H. A multiple of `n_kv_heads`; query head h reads key/value head `h / (H / H_kv)`.
    pub n_heads: usize,
    /// H_kv.
    pub n_kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f32,
    /// Position p attends to `(p - window, p]`; `None` to `[0, p]`.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` before the softmax (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Format of the factors of products, forward and backward. [`Compute::Bf16`] allows a library
    /// to round `scale * q`, k, v, dout, probabilities and gradients of scores; sums, the softmax
    /// and what is stored stay f32.
    pub compute: Compute,
}

/// Direction of the rotary embedding: its transpose is its inverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// As the model applies it.
    Forward,
    /// As its gradient passes back through it.
    Backward,
}

/// The gate's non-linearity in a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// A dropout mask as a function of numbers: nothing is stored, backward asks again.
///
/// Element (row, column) is kept when the 32 bits of
/// `philox4x32(counter = [row_key low, row_key high, column / 4, 0], key = key)[column % 4]`
/// are at least `p * 2^32`; what is kept is divided by `1 - p`.
/// Paper: Srivastava et al. 2014; Philox: Salmon et al. 2011.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Chance that an element becomes zero, in [0, 1).
    pub p: f32,
    /// Names the mask: derived from (seed, purpose, step, module).
    pub key: [u32; 2],
}

/// A kernel library.
pub trait Ops: Send + Sync {
    /// Name for logs and evidence, with the instruction set in use: `cpu/avx512bf16`.
    fn name(&self) -> &str;

    /// Threads that work on one op.
    fn n_threads(&self) -> usize;

    /// Calls `task(0)` to `task(n_tasks - 1)`, each once and in any order, on the threads of this
    /// library, and returns when all have ended. Several threads may ask at once: one of them gets
    /// the library's threads, and the others, like a task that asks in its turn, run all of their
    /// tasks on their own.
    ///
    /// A panic of a task is passed on when all have ended.
    fn parallel_for(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n_tasks).for_each(task);
    }

    /// Whether frozen products can be formed in this format at full speed.
    fn prefers(&self, compute: Compute) -> bool;

    /// Packs a weight once, for many products.
    fn freeze(&self, source: &dyn RowSource, compute: Compute) -> Box<dyn FrozenMatrix>;

    /// As [`Ops::freeze`], but keeps the blocks of a quantized weight
    /// ([`RowSource::blocks`]): products unpack a few rows at a time. `None` if the source has no
    /// blocks or this library cannot keep them; then freeze it densely.
    ///
    /// Results of products are equal to those with the same weight frozen densely, to the last bit.
    /// As the head of [`Ops::token_logprobs_forward`] such a weight is unpacked whole for the time
    /// of the call.
    fn freeze_packed(
        &self,
        source: &dyn RowSource,
        compute: Compute,
    ) -> Option<Box<dyn FrozenMatrix>> {
        let _ = (source, compute);
        None
    }

    /// As [`Ops::freeze`], of numbers that this library has: a weight that trains.
    ///
    /// Shapes: `w` [N, K] read, with K = `n_cols`.
    fn pack(&self, w: Slice<'_>, n_cols: usize, compute: Compute) -> Box<dyn FrozenMatrix> {
        self.freeze(&Dense { n_cols, values: &w.to_host() }, compute)
    }

    /// Memory that this library works in, for `n` numbers.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate(&self, n: usize, precision: Precision) -> Result<Buffer, MemoryRefused> {
        let _ = precision;
        Buffer::zeros_on_host(n)
    }

    /// Memory that this library works in, for `n` indices.
    ///
    /// # Errors
    /// If there is not enough.
    fn allocate_indices(&self, n: usize) -> Result<Buffer<u32>, MemoryRefused> {
        Buffer::zeros_on_host(n)
    }

    /// Moves numbers to the memory that this library works in, exactly.
    ///
    /// # Errors
    /// If there is not enough.
    fn place(&self, values: Vec<f32>) -> Result<Buffer, MemoryRefused> {
        Ok(Buffer::Host(values))
    }

    /// As [`Ops::place`], for bytes.
    ///
    /// # Errors
    /// If there is not enough.
    fn place_bytes(&self, values: Vec<u8>) -> Result<Buffer<u8>, MemoryRefused> {
        Ok(Buffer::Host(values))
    }

    /// The device, where the library is of one: for plugins, which work on it themselves.
    fn on_device(&self) -> Option<&dyn OnDevice> {
        None
    }

    /// What links the device with those of other processes; `None` where the library is of none.
    ///
    /// # Errors
    /// Why it cannot be linked: the end of a sentence that begins with the name of a library.
    fn links(&self) -> Option<Result<&dyn DeviceLinks, String>> {
        None
    }

    /// Bytes that its memory still has, where that is not the host's.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Bytes that calls of these sizes take at most for their own time, beside what they are given.
    fn workspace_bytes(&self, work: &Workload) -> usize {
        let _ = work;
        0
    }

    /// Bytes that [`Ops::allocate`] takes for a number.
    fn bytes_per_number(&self, precision: Precision) -> usize {
        let _ = precision;
        size_of::<f32>()
    }

    /// Whether [`Ops::draw_tokens`] can be asked: where logits lie far from the host.
    fn draws_tokens(&self) -> bool {
        false
    }

    /// Draws a token for each row of logits, so that they need not be copied to the host.
    ///
    /// Shapes: `logits` [R, V], changed by the penalty; `draws` [R], tokens below V.
    ///
    /// # Panics
    /// Unless [`Ops::draws_tokens`].
    fn draw_tokens(&self, logits: SliceMut<'_>, draws: &[Draw<'_>], rule: DrawRule) -> Vec<Drawn> {
        let _ = (logits, draws, rule);
        panic!("{} draws no tokens", self.name())
    }

    /// `y = x w^T`.
    ///
    /// Shapes: `y` [T, N] written or added to, `x` [T, K] read, `w` [N, K] read.
    fn linear_forward(&self, y: SliceMut<'_>, x: Slice<'_>, w: &dyn FrozenMatrix, write: Write);

    /// `dx = dy w`.
    ///
    /// Shapes: `dx` [T, K] written or added to, `dy` [T, N] read, `w` [N, K] read.
    fn linear_backward(&self, dx: SliceMut<'_>, dy: Slice<'_>, w: &dyn FrozenMatrix, write: Write);

    /// `y = x w^T + scale * u v^T`: a layer with an adapter, in one pass over the result.
    ///
    /// Shapes: `y` [T, N] written or added to, `x` [T, K], `w` [N, K], `u` [T, r] and `v` [N, r]
    /// read.
    fn linear_forward_low_rank(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        let mut y = y;
        self.linear_forward(y.reborrow(), x, w, write);
        let LowRank { u, v, scale } = low_rank;
        let (n, t) = (w.n_rows(), x.len() / w.n_cols());
        self.gemm(y, u, v, GemmLayout::Nt, GemmDims { m: t, n, k: v.len() / n }, scale, Write::Add);
    }

    /// `dx = dy w + scale * u v`.
    ///
    /// Shapes: `dx` [T, K] written or added to, `dy` [T, N], `w` [N, K], `u` [T, r] and `v` [r, K]
    /// read.
    fn linear_backward_low_rank(
        &self,
        dx: SliceMut<'_>,
        dy: Slice<'_>,
        w: &dyn FrozenMatrix,
        low_rank: LowRank<'_>,
        write: Write,
    ) {
        let mut dx = dx;
        self.linear_backward(dx.reborrow(), dy, w, write);
        let LowRank { u, v, scale } = low_rank;
        let (k, t) = (w.n_cols(), dy.len() / w.n_rows());
        let dims = GemmDims { m: t, n: k, k: v.len() / k };
        self.gemm(dx, u, v, GemmLayout::Nn, dims, scale, Write::Add);
    }

    /// `c = alpha op(a) op(b)` of dense, changing matrices (adapters and their gradients: one of
    /// the sizes is often a small rank).
    ///
    /// Shapes: see [`GemmLayout`]; `c` [M, N] written or added to.
    #[expect(clippy::too_many_arguments, reason = "the standard arguments of a GEMM")]
    fn gemm(
        &self,
        c: SliceMut<'_>,
        a: Slice<'_>,
        b: Slice<'_>,
        layout: GemmLayout,
        dims: GemmDims,
        alpha: f32,
        write: Write,
    );

    /// `y[t] = table[tokens[t]]`.
    ///
    /// Shapes: `y` [T, C] written, `tokens` [T] read, each below V, `table` [V, C] read.
    fn embedding_forward(&self, y: SliceMut<'_>, tokens: &[u32], table: &dyn FrozenMatrix);

    /// Gradient of [`Ops::embedding_forward`] with respect to the table:
    /// `dtable[tokens[t]] += dy[t]`.
    ///
    /// Shapes: `dtable` [V, C] added to, `dy` [T, C] read, `tokens` [T] read, each below V.
    ///
    /// Numerics: rows of the same token are added in the order of the tokens.
    fn embedding_backward(&self, dtable: SliceMut<'_>, dy: Slice<'_>, tokens: &[u32]);

    /// RMSNorm over the last axis: `y[r, c] = x[r, c] * inv_rms[r] * weight[c]`,
    /// `inv_rms = 1 / sqrt(mean(x^2) + eps)`.
    ///
    /// Paper: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    ///
    /// Shapes: `y` [T, C] written, `inv_rms` [T] written, `x` [T, C] read, `weight` [C] read.
    fn rms_norm_forward(
        &self,
        y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
    );

    /// Gradient of [`Ops::rms_norm_forward`] with respect to its input.
    ///
    /// Shapes: `dx` [T, C] written or added to; `dy` [T, C], `x` [T, C], `inv_rms` [T],
    /// `weight` [C] read.
    fn rms_norm_backward(
        &self,
        dx: SliceMut<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
        inv_rms: Slice<'_>,
        weight: Slice<'_>,
        write: Write,
    );

    /// Gradient of [`Ops::rms_norm_forward`] with respect to its weight:
    /// `dweight[c] += sum_t dy[t, c] * x[t, c] * inv_rms[t]`.
    ///
    /// Shapes: `dweight` [C] added to; `dy` [T, C], `x` [T, C], `inv_rms` [T] read.
    fn rms_norm_weight_backward(
        &self,
        dweight: SliceMut<'_>,
        dy: Slice<'_>,
        x: Slice<'_>,
        inv_rms: Slice<'_>,
    );

    /// `y[t] += bias`.
    ///
    /// Shapes: `y` [T, N] added to, `bias` [N] read.
    fn add_bias(&self, y: SliceMut<'_>, bias: Slice<'_>);

    /// Gradient of [`Ops::add_bias`] with respect to the bias: `sums[n] += sum_t x[t, n]`.
    ///
    /// Shapes: `sums` [N] added to, `x` [T, N] read.
    fn column_sums(&self, sums: SliceMut<'_>, x: Slice<'_>);

    /// `y[t, n] = x[t, n] * factors[n]`: a magnitude for each output of a layer.
    ///
    /// Shapes: `y` [T, N] written or added to, `x` [T, N] read, `factors` [N] read.
    fn scale_columns(&self, y: SliceMut<'_>, x: Slice<'_>, factors: Slice<'_>, write: Write);

    /// Gradient of [`Ops::scale_columns`] with respect to the factors:
    /// `sums[n] += sum_t a[t, n] * b[t, n]`.
    ///
    /// Shapes: `sums` [N] added to, `a` and `b` [T, N] read.
    fn column_dots(&self, sums: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>);

    /// Rotary embedding in place, half-split (NeoX) layout: element j of a head pairs with
    /// element j + R/2. R is the rotated part of a head, at most D; what follows stays as it is.
    ///
    /// Paper: Su et al. 2021, arXiv:2104.09864, eq. 34; a part of the head: Black et al. 2022,
    /// arXiv:2204.06745, sec. 2.1.1.
    ///
    /// Shapes: `x` [T, n_heads * D] changed, `cos` and `sin` [T, R/2] read; `head_dim` is D.
    fn rope(
        &self,
        x: SliceMut<'_>,
        cos: Slice<'_>,
        sin: Slice<'_>,
        n_heads: usize,
        head_dim: usize,
        direction: Rotation,
    );

    /// [`Ops::rms_norm_forward`] of each head, then [`Ops::rope`] forward.
    ///
    /// Shapes: `y` [T, n_heads * D] and `inv_rms` [T, n_heads] written; `x` [T, n_heads * D],
    /// `weight` [D], `cos` and `sin` [T, R/2] read.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of two ops")]
    fn rms_norm_rope(
        &self,
        mut y: SliceMut<'_>,
        inv_rms: SliceMut<'_>,
        x: Slice<'_>,
        weight: Slice<'_>,
        eps: f32,
        cos: Slice<'_>,
        sin: Slice<'_>,
        n_heads: usize,
    ) {
        let head_dim = weight.len();
        self.rms_norm_forward(y.reborrow(), inv_rms, x, weight, eps);
        self.rope(y, cos, sin, n_heads, head_dim, Rotation::Forward);
    }

    /// Causal attention within each segment.
    ///
    /// Papers: Vaswani et al. 2017; in blocks with a running maximum: Dao 2023, arXiv:2307.08691;
    /// grouped heads: Ainslie et al. 2023.
    ///
    /// Shapes: `out` [T, H * D] written, `lse` [T, H] written (log of the softmax denominator,
    /// with the maximum added back), `q` [T, H * D], `k` and `v` [T, H_kv * D] read.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
    fn attention_forward(
        &self,
        out: SliceMut<'_>,
        lse: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
        segments: &[Segment],
    );

    /// Gradient of [`Ops::attention_forward`]; scores are computed again from `lse`.
    ///
    /// Shapes: `dq` [T, H * D], `dk` and `dv` [T, H_kv * D] written; the rest read, as forward.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
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
    );

    /// Attention of the last `n` positions of one sequence over all that are cached.
    ///
    /// Shapes: `out` and `q` [n, H * D]; `k` and `v` [P, H_kv * D] with P >= n: query i stands at
    /// position `P - n + i`.
    fn attention_cached(
        &self,
        out: SliceMut<'_>,
        q: Slice<'_>,
        k: Slice<'_>,
        v: Slice<'_>,
        shape: &AttentionShape,
    );

    /// `y = act(gate) * up`.
    ///
    /// Paper: Shazeer 2020, arXiv:2002.05202, eq. 6. Shapes: all [T, F]; `y` written.
    fn glu_forward(&self, y: SliceMut<'_>, gate: Slice<'_>, up: Slice<'_>, act: Activation);

    /// Gradient of [`Ops::glu_forward`], in place: on return `gate` holds `dgate` and `up` `dup`.
    ///
    /// Shapes: all [T, F]; `gate` and `up` read and written, `dy` read.
    fn glu_backward(&self, gate: SliceMut<'_>, up: SliceMut<'_>, dy: Slice<'_>, act: Activation);

    /// The wide end, fused and in chunks: log-probability of each label under the softmax of
    /// `x head^T`. Nothing [R, V] is ever stored.
    ///
    /// Shapes: `logp` [R] written, `lse` [R] written, `x` [R, C] read, `head` [V, C] read,
    /// `labels` [R] read, each below V.
    ///
    /// Numerics: sums over V in f32 within a block of columns, blocks added in order.
    fn token_logprobs_forward(
        &self,
        logp: SliceMut<'_>,
        lse: SliceMut<'_>,
        x: Slice<'_>,
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    );

    /// Gradient of [`Ops::token_logprobs_forward`] with respect to `x`; logits are computed again.
    ///
    /// `dx[r] = dlogp[r] * (head[label] - sum_v softmax[r, v] head[v])` (times the soft cap's
    /// slope). Shapes: `dx` [R, C] written; `dlogp`, `lse` [R], `x` [R, C], `labels` [R] read.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
    fn token_logprobs_backward(
        &self,
        dx: SliceMut<'_>,
        dlogp: Slice<'_>,
        lse: Slice<'_>,
        x: Slice<'_>,
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    );

    /// Gradient of [`Ops::token_logprobs_forward`] with respect to the head; logits are computed
    /// again, in blocks: nothing [R, V] is stored.
    ///
    /// `dhead[v] += sum_r dlogp[r] * (onehot - softmax)[r, v] * x[r]` (times the soft cap's slope).
    /// Shapes: `dhead` [V, C] added to; `dlogp`, `lse` [R], `x` [R, C], `labels` [R] read.
    ///
    /// Numerics: the logits are those of the head's format, the sums over R are of f32 factors in
    /// every format, because a gradient of weights is added up over a whole step.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
    fn token_logprobs_head_backward(
        &self,
        dhead: SliceMut<'_>,
        dlogp: Slice<'_>,
        lse: Slice<'_>,
        x: Slice<'_>,
        head: &dyn FrozenMatrix,
        labels: &[u32],
        soft_cap: Option<f32>,
    );

    /// [`Ops::token_logprobs_forward`] and the gradient of each log-probability by its own row, for
    /// a caller that knows that it will need it: logits need not be computed twice.
    ///
    /// `dx[r]` is what [`Ops::token_logprobs_backward`] gives for `dlogp = 1`. Shapes: `logp`, `lse`
    /// [R] and `dx` [R, C] written; the rest as there.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
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
        let mut lse = lse;
        self.token_logprobs_forward(logp, lse.reborrow(), x, head, labels, soft_cap);
        let ones = vec![1.0; labels.len()];
        let (ones, lse) = (Slice::from(&ones), lse.as_slice());
        self.token_logprobs_backward(dx, ones, lse, x, head, labels, soft_cap);
    }

    /// `y = dropout(x)` (forward), or the gradient through it: the same product.
    ///
    /// Shapes: `y` [T, C] written or added to, `x` [T, C] read, `row_keys` [T] read: a number
    /// that names the token wherever it lies in a batch.
    fn dropout(
        &self,
        y: SliceMut<'_>,
        x: Slice<'_>,
        row_keys: &[u64],
        dropout: &Dropout,
        write: Write,
    );

    /// `y = x`. Shapes: equal lengths.
    fn copy(&self, y: SliceMut<'_>, x: Slice<'_>);

    /// Puts one value everywhere.
    fn fill(&self, y: SliceMut<'_>, value: f32);

    /// `y *= factor`.
    fn scale(&self, y: SliceMut<'_>, factor: f32);

    /// `y = cap tanh(y / cap)`: logits that stay below a cap (Gemma 2).
    ///
    /// Paper: Gemma Team 2024, arXiv:2408.00118, sec. 2.
    fn soft_cap(&self, y: SliceMut<'_>, cap: f32);

    /// Floats of eight bits, each times the scale of its block: `y[n, k] = value(codes[n, k]) * scale`.
    ///
    /// Shapes: `y` [N, K] written, `codes` [N, K] and `scales`
    /// [ceil(N / `block_rows`), ceil(K / `block_cols`)] read.
    ///
    /// Numerics: the product is rounded to f32 once, and then to the format that `y` is stored in.
    fn cast_float8(
        &self,
        y: SliceMut<'_>,
        codes: Slice<'_, u8>,
        scales: Slice<'_>,
        layout: Float8Layout,
    );

    /// Copies some columns of one matrix to some of another.
    ///
    /// Shapes: `y` [T, `to.width`] written from column `to.first` on, `x` [T, `from.width`] read from
    /// column `from.first` on; `n` columns.
    fn copy_columns(&self, y: SliceMut<'_>, to: Columns, x: Slice<'_>, from: Columns, n: usize);

    /// `y[r] = x[rows[r]]`.
    ///
    /// Shapes: `y` [R, C] written, `x` [T, C] and `rows` [R] read. That rows are below T is checked
    /// where they lie on the host; on a device they are what [`Ops::route`] wrote for T rows.
    fn gather_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>);

    /// `y[rows[r]] += x[r]`, of rows that differ: the transpose of [`Ops::gather_rows`].
    ///
    /// Shapes: `y` [T, C] added to, `x` [R, C] and `rows` [R] read; of rows as there.
    fn scatter_rows(&self, y: SliceMut<'_>, x: Slice<'_>, rows: Slice<'_, u32>);

    /// `x[r] *= factors[r]`.
    ///
    /// Shapes: `x` [R, C] changed, `factors` [R] read.
    fn scale_rows(&self, x: SliceMut<'_>, factors: Slice<'_>);

    /// `dots[r] = sum_c a[r, c] b[r, c]`: the gradient of [`Ops::scale_rows`] with respect to the
    /// factors.
    ///
    /// Shapes: `dots` [R] written, `a` and `b` [R, C] read.
    fn row_dots(&self, dots: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>);

    /// The softmax of each row, in place.
    ///
    /// Shapes: `x` [R, C] changed, with C = `n_cols`.
    fn softmax_rows(&self, x: SliceMut<'_>, n_cols: usize);

    /// Chooses the k most probable experts of each row, of equal ones the first, and orders the rows
    /// by expert. Returns where the rows of each expert begin [E + 1]: products of an expert are as
    /// large as it has rows, so the host must know.
    ///
    /// A probability that is not a number counts as less than any other: a row has k different
    /// experts whatever it holds.
    ///
    /// Paper: Shazeer et al. 2017, arXiv:1701.06538, sec. 2.1.
    ///
    /// Shapes: `to` written, `probs` [T, E] read, `sums` [E] added to: the probabilities of each
    /// expert over all rows.
    ///
    /// Numerics: weights are sums over the k choices in their order, and quotients, in f32; `sums`
    /// are f64.
    fn route(
        &self,
        to: RoutingMut<'_>,
        probs: Slice<'_>,
        choice: Choice,
        sums: Option<&mut [f64]>,
    ) -> Vec<usize>;

    /// From the gradient of the weights of [`Ops::route`] to that of the scores whose softmax `probs`
    /// is: through the choice, the sum to 1 where there is one, and the softmax. `balance` is added to
    /// the gradient of each probability before.
    ///
    /// Shapes: `dscores` [T, E] written; `routing`, `probs` [T, E], `dweights` [T k] by expert and
    /// `balance` [E] read.
    fn route_backward(
        &self,
        dscores: SliceMut<'_>,
        routing: Routing<'_>,
        probs: Slice<'_>,
        dweights: Slice<'_>,
        balance: Option<Slice<'_>>,
        choice: Choice,
    );

    /// `h[r] *= sigmoid(scores[r])`: an expert that every row goes through.
    ///
    /// Shapes: `h` [R, C] changed, `scores` [R] read.
    fn sigmoid_gate_forward(&self, h: SliceMut<'_>, scores: Slice<'_>);

    /// Gradient of [`Ops::sigmoid_gate_forward`], in place: on return `dh` holds the gradient of what
    /// went in and `scores` that of the scores.
    ///
    /// Shapes: `dh` [R, C] and `scores` [R] changed, `h` [R, C] read: what went in.
    fn sigmoid_gate_backward(&self, dh: SliceMut<'_>, scores: SliceMut<'_>, h: Slice<'_>);

    /// `y += x`. Shapes: equal lengths.
    fn add(&self, y: SliceMut<'_>, x: Slice<'_>);

    /// Sum of squares, added in f64 over fixed blocks.
    fn sum_of_squares(&self, x: Slice<'_>) -> f64;

    /// One AdamW step over one parameter.
    ///
    /// Shapes: equal lengths; `param`, `m`, `v` changed, `grad` read.
    fn adamw_step(
        &self,
        param: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    );

    /// One AdamW step over one parameter whose moments are stored in 8 bits.
    ///
    /// Moments are read, brought forward in f32, used, and stored again: scaled by the largest of
    /// their block, each the nearest number of its map ([`crate::dynamic_map`]: `m` signed, `v`
    /// unsigned; the lower of two equally near). As bitsandbytes' `AdamW8bit` on a CPU.
    ///
    /// Paper: Dettmers et al. 2021, arXiv:2110.02861, section 2.
    ///
    /// Shapes: `param` [P], `m`, `v` of P elements changed, `grad` [P] read.
    fn adamw_8bit_step(
        &self,
        param: SliceMut<'_>,
        m: Blocks8bit<'_>,
        v: Blocks8bit<'_>,
        grad: Slice<'_>,
        constants: &AdamW,
    );

    /// One Adafactor step over one parameter.
    ///
    /// With g the scaled gradient, `s = g^2 + eps` and `b = 1 - step^-0.8`: factored, `rows` and
    /// `columns` follow the means of s (`r = b r + (1 - b) mean`), and the update is
    /// `u = g / sqrt(r / mean(r) * c)`; whole, `v = b v + (1 - b) s`, `u = g / sqrt(v)`. Then
    /// `param -= lr * (weight_decay * param + u / max(1, rms(u) / clip_threshold))`.
    ///
    /// Shapes: `param` [N, K] (or [P]) and `moments` changed, `grad` as `param` read.
    fn adafactor_step(
        &self,
        param: SliceMut<'_>,
        moments: AdafactorMoments<'_>,
        grad: Slice<'_>,
        constants: &Adafactor,
    );
}
