//! Log-probabilities of labels under the softmax of `x head^T`, in chunks of logits.
//!
//! The grid: chunks of rows, and for each of them chunks of the vocabulary. The logits of a chunk
//! are a product that goes to scratch; a kernel (`token_logprobs.cu`) then adds them to what is
//! known of each row, or turns them into the factors of a gradient where they lie, which the next
//! product reads. Nothing [R, V] is stored: scratch for logits is bounded by [`LOGITS`].
//!
//! [`with_gradient`] forms the gradient as attention forms its output: factors `e^(logit - max)`
//! meet the chunk's rows of the head, and the sum so far is rescaled when the maximum grows. So
//! logits are formed once.
//!
//! Numerics: logits and sums in f32; chunks are cut by sizes alone and added in order. Factors of
//! `dx` are rounded as the head's format asks, those of the head's gradient stay f32.

use std::ops::Range;

use forgelm_kernels_api::{Format, FrozenMatrix, GemmDims, GemmLayout, Workload, Write};

use crate::call::{Call, Grid, Numbers, args};
use crate::cast;
use crate::chunk::{int, long};
use crate::frozen::{CudaMatrix, Rows};
use crate::gemm::{self, Matrix, Product};
use crate::room::Room;

/// Rows of a chunk, at most.
const ROWS: usize = 4096;
/// Logits of a chunk, at most: 256 MiB.
const LOGITS: usize = 1 << 26;
/// Columns of a chunk are multiples of this, where there are as many.
const COLUMNS: usize = 64;
/// Threads of a block; `token_logprobs.cu` has the same number.
const THREADS: u32 = 256;

/// How the work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunks {
    rows: usize,
    columns: usize,
}

impl Chunks {
    fn new(n_rows: usize, n_columns: usize) -> Self {
        let rows = n_rows.min(ROWS);
        let columns = (LOGITS / rows.max(1) / COLUMNS * COLUMNS).min(n_columns);
        Self { rows, columns }
    }
}

/// Bytes that a pass over a dense head takes: logits of a chunk, its rows of `x` in the head's format,
/// sums in f32, and a few numbers a row.
pub(crate) fn workspace_bytes(work: &Workload, format: Format) -> usize {
    let Workload { n_scored, hidden, vocabulary, .. } = *work;
    let Chunks { rows, columns } = Chunks::new(n_scored, vocabulary);
    let logits = rows * columns.next_multiple_of(8) * size_of::<f32>();
    let of_rows = rows * (hidden * (format.n_bytes() + size_of::<f32>()) + 4 * size_of::<f32>());
    // Results that the host asked for.
    logits + of_rows + 3 * n_scored * size_of::<f32>()
}

/// What both directions read. Shapes: `x` [R, C], `labels` [R].
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) x: Numbers,
    pub(crate) labels: &'a [u32],
    pub(crate) soft_cap: Option<f32>,
}

/// What backward reads besides. Shapes: [R].
#[derive(Clone, Copy)]
pub(crate) struct Upstream {
    pub(crate) dlogp: Numbers,
    pub(crate) lse: Numbers,
}

/// Shapes: `logp`, `lse` [R] written; `head` [V, C] read.
pub(crate) fn forward(
    call: &Call<'_>,
    logp: Numbers,
    lse: Numbers,
    given: Given<'_>,
    head: &dyn FrozenMatrix,
) {
    let head = CudaMatrix::of(head);
    let chunks = Chunks::new(given.labels.len(), head.n_rows());
    forward_in(call, logp, lse, given, head, chunks);
}

fn forward_in(
    call: &Call<'_>,
    logp: Numbers,
    lse: Numbers,
    given: Given<'_>,
    head: &CudaMatrix,
    chunks: Chunks,
) {
    let mut wide = Wide::new(call, given, head, chunks);
    let known = Known::new(call, chunks.rows);
    for rows in wide.row_chunks() {
        wide.take_rows(rows.clone());
        for columns in wide.column_chunks() {
            wide.form_logits(columns.clone());
            call.launch(
                "token_logprobs_absorb",
                row_grid(rows.len()),
                &mut args![
                    known.max.address,
                    known.sum.address,
                    known.label.address,
                    wide.logits.address,
                    wide.labels_at(rows.start),
                    long(wide.stride),
                    int(columns.len()),
                    columns.start as u32,
                    wide.soft_cap,
                    i32::from(columns.start == 0)
                ],
            );
        }
        finish(call, logp, lse, &known, rows);
    }
}

/// The factor of a row of `head` is `onehot - softmax` (times the cap's slope); `dlogp` multiplies
/// the finished sum. Shapes: `dx` [R, C] written.
pub(crate) fn backward(
    call: &Call<'_>,
    dx: Numbers,
    upstream: Upstream,
    given: Given<'_>,
    head: &dyn FrozenMatrix,
) {
    let head = CudaMatrix::of(head);
    let chunks = Chunks::new(given.labels.len(), head.n_rows());
    backward_in(call, dx, upstream, given, head, chunks);
}

fn backward_in(
    call: &Call<'_>,
    dx: Numbers,
    upstream: Upstream,
    given: Given<'_>,
    head: &CudaMatrix,
    chunks: Chunks,
) {
    let mut wide = Wide::new(call, given, head, chunks);
    let sums = Sums::new(call, dx, given, wide.c, chunks);
    for rows in wide.row_chunks() {
        wide.take_rows(rows.clone());
        let sums_here = sums.of(&rows);
        for columns in wide.column_chunks() {
            wide.form_logits(columns.clone());
            let format = head.format();
            wide.form_factors(upstream.lse, None, &rows, &columns, format);
            wide.add_to_sums(sums_here, &columns, format);
        }
        let dx = dx.part(rows.start * wide.c, rows.len() * wide.c);
        call.launch(
            &call.variant("token_logprobs_scale", &[dx.format], false),
            row_grid(rows.len()),
            &mut args![
                dx.address,
                sums_here.address,
                upstream.dlogp.part(rows.start, rows.len()).address,
                int(wide.c)
            ],
        );
    }
}

/// Sums over rows are of f32 factors, whatever the head's format. Shapes: `dhead` [V, C] added to.
pub(crate) fn head_backward(
    call: &Call<'_>,
    dhead: Numbers,
    upstream: Upstream,
    given: Given<'_>,
    head: &dyn FrozenMatrix,
) {
    let head = CudaMatrix::of(head);
    let chunks = Chunks::new(given.labels.len(), head.n_rows());
    head_backward_in(call, dhead, upstream, given, head, chunks);
}

fn head_backward_in(
    call: &Call<'_>,
    dhead: Numbers,
    upstream: Upstream,
    given: Given<'_>,
    head: &CudaMatrix,
    chunks: Chunks,
) {
    let mut wide = Wide::new(call, given, head, chunks);
    let c = wide.c;
    assert_eq!(dhead.len, head.n_rows() * c, "dhead is not [V, C]");
    let mut exact_room = Room::default();
    for rows in wide.row_chunks() {
        wide.take_rows(rows.clone());
        let x = given.x.part(rows.start * c, rows.len() * c);
        let x = in_format(call, &mut exact_room, x, Format::F32);
        for columns in wide.column_chunks() {
            wide.form_logits(columns.clone());
            wide.form_factors(upstream.lse, Some(upstream.dlogp), &rows, &columns, Format::F32);
            let product = Product {
                c: Matrix::new(dhead.part(columns.start * c, columns.len() * c), c),
                a: Matrix { numbers: wide.logits, stride: wide.stride },
                b: Matrix::new(x, c),
                layout: GemmLayout::Tn,
                dims: GemmDims { m: columns.len(), n: c, k: rows.len() },
                alpha: 1.0,
                write: Write::Add,
            };
            gemm::multiply(call, &product);
        }
    }
}

/// Shapes: `logp`, `lse` [R] written, `dx` [R, C] written: the gradient of each `logp` by its row.
pub(crate) fn with_gradient(
    call: &Call<'_>,
    (logp, lse): (Numbers, Numbers),
    dx: Numbers,
    given: Given<'_>,
    head: &dyn FrozenMatrix,
) {
    let head = CudaMatrix::of(head);
    let chunks = Chunks::new(given.labels.len(), head.n_rows());
    with_gradient_in(call, (logp, lse), dx, given, head, chunks);
}

fn with_gradient_in(
    call: &Call<'_>,
    (logp, lse): (Numbers, Numbers),
    dx: Numbers,
    given: Given<'_>,
    head: &CudaMatrix,
    chunks: Chunks,
) {
    let mut wide = Wide::new(call, given, head, chunks);
    let known = Known::new(call, chunks.rows);
    let rescale = call.scratch(Format::F32, chunks.rows);
    let sums = Sums::new(call, dx, given, wide.c, chunks);
    let is_bf16 = i32::from(head.format() == Format::Bf16);
    for rows in wide.row_chunks() {
        wide.take_rows(rows.clone());
        let sums_here = sums.of(&rows);
        for columns in wide.column_chunks() {
            wide.form_logits(columns.clone());
            call.launch(
                "token_logprobs_weigh",
                row_grid(rows.len()),
                &mut args![
                    known.max.address,
                    known.sum.address,
                    known.label.address,
                    rescale.address,
                    wide.logits.address,
                    wide.labels_at(rows.start),
                    long(wide.stride),
                    int(columns.len()),
                    columns.start as u32,
                    wide.soft_cap,
                    i32::from(columns.start == 0),
                    is_bf16
                ],
            );
            if columns.start > 0 {
                call.launch(
                    "token_logprobs_rescale",
                    row_grid(rows.len()),
                    &mut args![sums_here.address, rescale.address, int(wide.c)],
                );
            }
            wide.add_to_sums(sums_here, &columns, head.format());
        }
        finish(call, logp, lse, &known, rows.clone());
        wide.join(dx, sums_here, &known, lse, rows);
    }
}

/// What is known of the rows of a chunk. Shapes: [rows].
struct Known {
    max: Numbers,
    sum: Numbers,
    label: Numbers,
}

impl Known {
    fn new(call: &Call<'_>, n_rows: usize) -> Self {
        let new = || call.scratch(Format::F32, n_rows);
        Self { max: new(), sum: new(), label: new() }
    }
}

/// From what is known of some rows to their results.
fn finish(call: &Call<'_>, logp: Numbers, lse: Numbers, known: &Known, rows: Range<usize>) {
    let [logp, lse] = [logp, lse].map(|all| all.part(rows.start, rows.len()));
    assert!([logp, lse].iter().all(|all| all.format == Format::F32), "logp and lse are f32");
    let blocks = [rows.len().div_ceil(THREADS as usize), 1, 1];
    call.launch(
        "token_logprobs_finish",
        Grid { blocks, threads: THREADS, shared_bytes: 0 },
        &mut args![
            logp.address,
            lse.address,
            known.max.address,
            known.sum.address,
            known.label.address,
            int(rows.len())
        ],
    );
}

/// A block a row.
fn row_grid(n_rows: usize) -> Grid {
    Grid { blocks: [n_rows, 1, 1], threads: THREADS, shared_bytes: 0 }
}

/// Where sums of factors times rows of the head are formed: in `dx`, if that is f32.
struct Sums {
    numbers: Numbers,
    c: usize,
    is_dx: bool,
}

impl Sums {
    fn new(call: &Call<'_>, dx: Numbers, given: Given<'_>, c: usize, chunks: Chunks) -> Self {
        assert_eq!(dx.len, given.labels.len() * c, "dx is not [R, C]");
        let is_dx = dx.format == Format::F32;
        let numbers = if is_dx { dx } else { call.scratch(Format::F32, chunks.rows * c) };
        Self { numbers, c, is_dx }
    }

    /// Shapes: [rows, C].
    fn of(&self, rows: &Range<usize>) -> Numbers {
        let first = if self.is_dx { rows.start * self.c } else { 0 };
        self.numbers.part(first, rows.len() * self.c)
    }
}

/// One pass over the chunks.
struct Wide<'a, 'b> {
    call: &'a Call<'b>,
    given: Given<'a>,
    head: &'a CudaMatrix,
    head_rows: Rows<'a>,
    chunks: Chunks,
    c: usize,
    soft_cap: f32,
    /// Address of all labels.
    labels: u64,
    /// [rows, stride].
    logits: Numbers,
    stride: usize,
    /// The rows of x of the chunk, in the head's format.
    x: Numbers,
    x_room: Room,
    own_room: Room,
    n_rows: usize,
    /// The rows of the head of the chunk.
    weights: Option<Numbers>,
}

impl<'a, 'b> Wide<'a, 'b> {
    fn new(call: &'a Call<'b>, given: Given<'a>, head: &'a CudaMatrix, chunks: Chunks) -> Self {
        let (v, c) = (head.n_rows(), head.n_cols());
        let Given { x, labels, soft_cap } = given;
        assert_eq!(x.len, labels.len() * c, "x is not [R, C]");
        assert!(labels.iter().all(|&l| (l as usize) < v), "a label outside of the vocabulary");
        assert!(soft_cap.is_none_or(|cap| cap > 0.0), "a soft cap is positive");
        // Rows begin where 16 bytes may be loaded at once.
        let stride = chunks.columns.next_multiple_of(8);
        Self {
            call,
            given,
            head,
            head_rows: head.rows(call),
            chunks,
            c,
            soft_cap: soft_cap.unwrap_or(0.0),
            labels: call.indices(labels),
            logits: call.scratch(Format::F32, chunks.rows * stride),
            stride,
            x,
            x_room: Room::default(),
            own_room: Room::default(),
            n_rows: 0,
            weights: None,
        }
    }

    fn row_chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(self.given.labels.len(), self.chunks.rows)
    }

    fn column_chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(self.head.n_rows(), self.chunks.columns)
    }

    fn labels_at(&self, row: usize) -> u64 {
        self.labels + (row * size_of::<u32>()) as u64
    }

    fn take_rows(&mut self, rows: Range<usize>) {
        let x = self.given.x.part(rows.start * self.c, rows.len() * self.c);
        self.x = in_format(self.call, &mut self.x_room, x, self.head.format());
        self.n_rows = rows.len();
    }

    /// Logits of the rows taken, not capped yet.
    fn form_logits(&mut self, columns: Range<usize>) {
        let weights = self.head_rows.read(self.call, columns.start, columns.len());
        self.weights = Some(weights);
        let product = Product {
            c: Matrix { numbers: self.logits, stride: self.stride },
            a: Matrix::new(self.x, self.c),
            b: Matrix::new(weights, self.c),
            layout: GemmLayout::Nt,
            dims: GemmDims { m: self.n_rows, n: columns.len(), k: self.c },
            alpha: 1.0,
            write: Write::Replace,
        };
        gemm::multiply(self.call, &product);
    }

    /// Replaces logits by `(onehot - softmax) * slope`, times `dlogp` if it is given.
    fn form_factors(
        &self,
        lse: Numbers,
        dlogp: Option<Numbers>,
        rows: &Range<usize>,
        columns: &Range<usize>,
        format: Format,
    ) {
        let address = |all: Numbers| {
            assert_eq!(all.format, Format::F32, "lse and dlogp are f32");
            all.part(rows.start, rows.len()).address
        };
        self.call.launch(
            "token_logprobs_gradient",
            row_grid(rows.len()),
            &mut args![
                self.logits.address,
                address(lse),
                dlogp.map_or(0, address),
                self.labels_at(rows.start),
                long(self.stride),
                int(columns.len()),
                columns.start as u32,
                self.soft_cap,
                i32::from(format == Format::Bf16)
            ],
        );
    }

    /// Adds factors times rows of the head; the first chunk replaces what was there.
    fn add_to_sums(&self, sums: Numbers, columns: &Range<usize>, format: Format) {
        let weights = self.weights.expect("the logits of this chunk were formed");
        let factors = match format {
            Format::Bf16 => {
                // Each row lies where its logits were, in the first half.
                let numbers = Numbers { format, len: self.logits.len * 2, ..self.logits };
                Matrix { numbers, stride: self.stride * 2 }
            }
            _ => Matrix { numbers: self.logits, stride: self.stride },
        };
        let product = Product {
            c: Matrix::new(sums, self.c),
            a: factors,
            b: Matrix::new(weights, self.c),
            layout: GemmLayout::Nn,
            dims: GemmDims { m: self.n_rows, n: self.c, k: columns.len() },
            alpha: 1.0,
            write: if columns.start == 0 { Write::Replace } else { Write::Add },
        };
        gemm::multiply(self.call, &product);
    }

    /// The finished gradient of some rows of [`with_gradient`].
    fn join(
        &mut self,
        dx: Numbers,
        sums: Numbers,
        known: &Known,
        lse: Numbers,
        rows: Range<usize>,
    ) {
        let (call, c) = (self.call, self.c);
        let dx = dx.part(rows.start * c, rows.len() * c);
        // The rows of the head of the labels: a copy where they must be unpacked anyway.
        let own = self.own_room.take(call, self.head.format(), rows.len() * c);
        self.head.gather(call, own, &self.given.labels[rows.clone()]);
        let by_row = 0_u64;
        call.launch(
            &call.variant("token_logprobs_join", &[dx.format, own.format], false),
            row_grid(rows.len()),
            &mut args![
                dx.address,
                sums.address,
                own.address,
                by_row,
                known.max.address,
                known.label.address,
                lse.part(rows.start, rows.len()).address,
                int(c),
                self.soft_cap
            ],
        );
    }
}

/// Numbers as they are, if they have the format, else a copy.
fn in_format(call: &Call<'_>, room: &mut Room, from: Numbers, format: Format) -> Numbers {
    if from.format == format {
        return from;
    }
    let to = room.take(call, format, from.len);
    cast::copy(call, to, from);
    to
}

/// `0..n` in pieces of a length.
fn pieces(n: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(len.max(1)).map(move |first| first..n.min(first + len))
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_api::{Compute, Dense};

    use super::*;
    use crate::call::Before;
    use crate::emulated;

    /// Numbers in [-1, 1), of no pattern that a chunk could hide.
    fn numbers(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step + i / 7 * 13) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// All results, one after the other: logp, lse, the same of `with_gradient`, its dx, dx, dhead.
    fn results(chunks: Chunks, soft_cap: Option<f32>, compute: Compute) -> Vec<Vec<f32>> {
        let device = emulated::device(emulated::options());
        let (r, v, c) = (7, 150, 24);
        let (x, weights) = (numbers(r * c, 577), numbers(v * c, 331));
        let dlogp = numbers(r, 97);
        let labels = [0, 149, 64, 63, 100, 7, 128];
        let source = Dense { n_cols: c, values: &weights };
        let head = CudaMatrix::freeze(&device, &source, compute).expect("there is memory");
        let mut outputs = [r, r, r, r, r * c, r * c, v * c].map(|n| vec![0.0; n]);
        let [logp, lse, same_logp, same_lse, unit, dx, dhead] = &mut outputs;
        let call = Call::open(&device, "token_logprobs");
        let given = Given { x: call.read((&x).into()), labels: &labels, soft_cap };
        let dlogp = call.read((&dlogp).into());
        let [logp, lse, same_logp, same_lse, unit, dx, dhead] =
            [logp, lse, same_logp, same_lse, unit, dx, dhead]
                .map(|out| call.write(out.into(), Before::Needed));
        forward_in(&call, logp, lse, given, &head, chunks);
        with_gradient_in(&call, (same_logp, same_lse), unit, given, &head, chunks);
        let upstream = Upstream { dlogp, lse };
        backward_in(&call, dx, upstream, given, &head, chunks);
        head_backward_in(&call, dhead, upstream, given, &head, chunks);
        call.close();
        outputs.into()
    }

    /// What one chunk gives is compared with the reference by kernels/check. With factors of at most
    /// 1, weights of at most 1 and 150 terms, another order of sums changes less than 1e-4; in
    /// bfloat16 factors that differ a little may be rounded to neighbors, 2^-8 apart, and their
    /// sizes add up to at most 2.
    #[test]
    fn chunks_give_what_the_whole_gives() {
        let Some(_alone) = emulated::alone() else { return };
        let whole = Chunks::new(7, 150);
        assert_eq!(whole, Chunks { rows: 7, columns: 150 });
        for (soft_cap, compute) in
            [(None, Compute::F32), (Some(2.0), Compute::F32), (Some(2.0), Compute::Bf16)]
        {
            let bound = if compute == Compute::F32 { 1e-4 } else { 1.0 / 64.0 };
            let want = results(whole, soft_cap, compute);
            for (rows, columns) in [(7, 64), (3, 150), (2, 37), (1, 1)] {
                let got = results(Chunks { rows, columns }, soft_cap, compute);
                assert_eq!((&got[0], &got[1]), (&got[2], &got[3]), "with and without gradient");
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    for (got, want) in got.iter().zip(want) {
                        let what = format!("{i} in chunks of {rows} x {columns}, {compute:?}");
                        assert!((got - want).abs() <= bound, "{what}: {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_are_cut_by_sizes_and_bounded() {
        assert_eq!(Chunks::new(1, 150_000), Chunks { rows: 1, columns: 150_000 });
        assert_eq!(Chunks::new(3000, 150_000), Chunks { rows: 3000, columns: 22_336 });
        assert_eq!(Chunks::new(9000, 150_000), Chunks { rows: 4096, columns: 16_384 });
        assert_eq!(Chunks::new(0, 10), Chunks { rows: 0, columns: 10 });
    }
}
