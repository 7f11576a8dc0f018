//! Causal attention within segments: what of its kernels is launched, and on which rows.
//!
//! `attention.cu` has the kernels on tensor cores, `attention_plain.cu` those in f32 throughout,
//! `attention_cached.cu` those for a few queries over many keys. Which of them, and how work is
//! cut, depends on sizes, formats and alignment alone. Forward is asked of `cudnn` first.
//!
//! Numerics: f32 sums in a fixed order everywhere. On tensor cores q, k, v, dout, probabilities and
//! gradients of scores are bfloat16; `lse` and `delta` are f32 always.

use std::cmp::Reverse;

use forgelm_kernels_api::{AttentionShape, Compute, Format, Segment};

use crate::call::{Argument, Call, Grid, Numbers, args};
use crate::cast;
use crate::cudnn::Forward;

/// A kernel on tensor cores in its width: D is at most the width.
#[derive(Debug)]
struct Variant {
    /// Columns of a tile in shared memory.
    width: usize,
    /// Queries of a block of forward.
    forward_rows: usize,
    /// Keys of a block that forms dk and dv, and queries that pass by at a time.
    dkdv: (usize, usize),
    /// Queries of a block that forms dq, and keys that pass by at a time.
    dq: (usize, usize),
}

/// As `attention.cu` makes them.
const VARIANTS: [Variant; 5] = [
    Variant { width: 64, forward_rows: 128, dkdv: (128, 32), dq: (128, 32) },
    Variant { width: 96, forward_rows: 128, dkdv: (64, 32), dq: (128, 32) },
    Variant { width: 128, forward_rows: 128, dkdv: (64, 32), dq: (64, 32) },
    Variant { width: 192, forward_rows: 64, dkdv: (64, 16), dq: (64, 16) },
    Variant { width: 256, forward_rows: 64, dkdv: (64, 16), dq: (64, 16) },
];

/// Threads of a block on tensor cores.
const TENSOR_THREADS: u32 = 128;
/// Keys that pass by forward at a time.
const FORWARD_KEYS: usize = 64;
/// Of the plain kernels: threads, rows and columns of a block.
const PLAIN_THREADS: u32 = 256;
const PLAIN_ROWS: usize = 64;
const PLAIN_COLUMNS: usize = 128;

/// Up to so many queries read the cache by splits of its keys; more are a batch like any other.
const CACHED_QUERIES_MAX: usize = 32;
/// Threads of a block of the cached kernel, rows that it serves, and the least keys that it gets.
const CACHED_THREADS: usize = 256;
const CACHED_ROWS: usize = 8;
const SPLIT_LEN_MIN: usize = 128;
/// A launch has so many splits at most.
const SPLITS_MAX: usize = 64;

/// What stands for no window; twice as much is still an `i32`.
const WINDOW_MAX: usize = 1 << 30;

impl Variant {
    /// The narrowest that holds a head, if tensor cores can read it.
    fn of(head_dim: usize) -> Option<&'static Self> {
        let whole = head_dim.is_multiple_of(8);
        VARIANTS.iter().find(|variant| whole && head_dim <= variant.width)
    }

    /// Bytes of so many rows of tiles in shared memory: eight more columns spread them over banks.
    fn tile_bytes(&self, rows: usize) -> usize {
        rows * (self.width + 8) * Format::Bf16.n_bytes()
    }
}

/// Rows of one sequence: queries `first..first + len`, of which the first stands at the key of row
/// `first + diagonal`, over keys from `first_key` on.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    first: usize,
    len: usize,
    first_key: usize,
    diagonal: usize,
}

/// Four numbers for each block, as `attention.cuh` reads them.
type Tiles = Vec<u32>;

/// Tiles of queries; those with the most keys first, so that the last to start are soon done.
fn query_tiles(sequences: &[Sequence], rows: usize, window: usize) -> Tiles {
    let mut tiles = Vec::new();
    for &Sequence { first, len, first_key, diagonal } in sequences {
        for begin in (first..first + len).step_by(rows) {
            let end = (begin + rows).min(first + len);
            let seen = first_key.max((begin + diagonal + 1).saturating_sub(window));
            tiles.push((end + diagonal - seen, [begin, end, first_key, diagonal]));
        }
    }
    heaviest_first(tiles)
}

/// Tiles of keys; those that the most queries see first.
fn key_tiles(sequences: &[Sequence], rows: usize, window: usize) -> Tiles {
    let mut tiles = Vec::new();
    for &Sequence { first, len, .. } in sequences {
        let sequence_end = first + len;
        for begin in (first..sequence_end).step_by(rows) {
            let end = (begin + rows).min(sequence_end);
            let seen_until = sequence_end.min(end - 1 + window);
            tiles.push((seen_until - begin, [begin, end, sequence_end, 0]));
        }
    }
    heaviest_first(tiles)
}

fn heaviest_first(mut tiles: Vec<(usize, [usize; 4])>) -> Tiles {
    tiles.sort_by_key(|&(work, _)| Reverse(work));
    tiles.into_iter().flat_map(|(_, tile)| tile.map(number)).collect()
}

fn number(n: usize) -> u32 {
    u32::try_from(n).expect("more rows than attention can count")
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("more than attention can count")
}

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    shape: AttentionShape,
    window: usize,
    /// Rows of queries and of keys.
    n_queries: usize,
    n_keys: usize,
}

impl Sizes {
    fn new(shape: &AttentionShape, q: Numbers, k: Numbers, v: Numbers) -> Self {
        let (h, h_kv, d) = (shape.n_heads, shape.n_kv_heads, shape.head_dim);
        assert!(h.is_multiple_of(h_kv), "query heads are no multiple of key/value heads");
        assert!(shape.window != Some(0), "a window of 0 sees nothing");
        assert!(q.len.is_multiple_of(h * d), "q is not [T, H * D]");
        assert!(k.len.is_multiple_of(h_kv * d), "k is not [T, H_kv * D]");
        assert_eq!(v.len, k.len, "v is not [T, H_kv * D]");
        let window = shape.window.unwrap_or(WINDOW_MAX).min(WINDOW_MAX);
        let (n_queries, n_keys) = (q.len / (h * d), k.len / (h_kv * d));
        assert!(n_keys < WINDOW_MAX, "more rows than attention can count");
        Self { shape: *shape, window, n_queries, n_keys }
    }

    /// Of a packed batch, whose segments must lie end to end.
    fn sequences(&self, segments: &[Segment]) -> Vec<Sequence> {
        let mut end = 0;
        let sequences = segments.iter().map(|&Segment { start, len }| {
            assert_eq!(start, end, "segments do not lie end to end");
            end += len;
            Sequence { first: start, len, first_key: start, diagonal: 0 }
        });
        let sequences = sequences.collect();
        assert_eq!(self.n_queries, end, "q is not [T, H * D]");
        assert_eq!(self.n_keys, end, "k is not [T, H_kv * D]");
        sequences
    }

    /// That results and segments fit q, k and v.
    fn check_forward(&self, given: &Forward<'_>) {
        self.sequences(given.segments);
        assert_eq!(given.out.len, given.q.len, "out is not [T, H * D]");
        assert_eq!(given.lse.len, self.n_queries * self.shape.n_heads, "lse is not [T, H]");
        assert_eq!(given.lse.format, Format::F32, "lse is f32");
    }

    /// The arguments that all kernels end with.
    fn arguments(&self) -> [Argument; 6] {
        let AttentionShape { n_heads, n_kv_heads, head_dim, scale, soft_cap, .. } = self.shape;
        args![
            int(n_heads),
            int(n_kv_heads),
            int(head_dim),
            scale,
            int(self.window),
            soft_cap.unwrap_or(0.0),
        ]
    }

    /// Blocks of a plain kernel for each tile and head.
    fn plain_pieces(&self) -> usize {
        self.shape.head_dim.div_ceil(PLAIN_COLUMNS)
    }
}

/// Which kernels do a call.
#[derive(Clone, Copy, Debug)]
enum Path {
    Tensor(&'static Variant),
    /// In f32 on numbers of this format.
    Plain(Format),
}

impl Path {
    /// Numbers that are bfloat16 stay so. Where products may be of bfloat16, tensor cores form
    /// them, from rounded copies if need be; else what is mixed becomes f32.
    fn of(shape: &AttentionShape, operands: &[Numbers]) -> Self {
        let all_are_bf16 = operands.iter().all(|x| x.format == Format::Bf16);
        let are_aligned = operands.iter().all(|x| x.format != Format::Bf16 || x.is_aligned());
        let may_round = all_are_bf16 || shape.compute == Compute::Bf16;
        match Variant::of(shape.head_dim) {
            Some(variant) if may_round && are_aligned => Self::Tensor(variant),
            _ if all_are_bf16 => Self::Plain(Format::Bf16),
            _ => Self::Plain(Format::F32),
        }
    }

    fn format(self) -> Format {
        match self {
            Self::Tensor(_) => Format::Bf16,
            Self::Plain(format) => format,
        }
    }

    /// How results of these formats are written. Tensor cores round only what is stored rounded.
    fn result_format(self, results: &[Numbers]) -> Format {
        match self {
            Self::Tensor(_) if results.iter().any(|x| x.format == Format::F32) => Format::F32,
            _ => self.format(),
        }
    }

    /// The argument that tells kernels on tensor cores the format of their results.
    fn result_argument(self, format: Format) -> Vec<Argument> {
        match self {
            Self::Tensor(_) => args![i32::from(format == Format::F32)].to_vec(),
            Self::Plain(_) => Vec::new(),
        }
    }

    /// Name of a kernel of this path.
    fn kernel(self, call: &Call<'_>, op: &str) -> String {
        match self {
            Self::Tensor(variant) => format!("attention_{op}_bf16_{}", variant.width),
            Self::Plain(format) => call.variant(&format!("attention_plain_{op}"), &[format], false),
        }
    }
}

/// Where a path writes: the place itself, or memory that [`cast::copy`] later takes to it.
fn written_as(call: &Call<'_>, to: Numbers, format: Format) -> Numbers {
    if to.format == format { to } else { call.scratch(format, to.len) }
}

/// Shapes: `out` [T, H * D], `lse` [T, H] written; `q` [T, H * D], `k`, `v` [T, H_kv * D] read.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
pub(crate) fn forward(
    call: &Call<'_>,
    out: Numbers,
    lse: Numbers,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let given = Forward { out, lse, q, k, v, shape, segments };
    Sizes::new(shape, q, k, v).check_forward(&given);
    if call.device().cudnn().is_some_and(|cudnn| cudnn.forward(call, &given)) {
        return;
    }
    forward_here(call, out, lse, [q, k, v], shape, segments);
}

/// [`forward`] by the kernels of this library.
pub(crate) fn forward_here(
    call: &Call<'_>,
    out: Numbers,
    lse: Numbers,
    [q, k, v]: [Numbers; 3],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let sizes = Sizes::new(shape, q, k, v);
    let sequences = sizes.sequences(segments);
    forward_of(call, out, lse.address, [q, k, v], &sizes, &sequences);
}

/// Forward of any sequences; without `lse` if its address is 0.
fn forward_of(
    call: &Call<'_>,
    out: Numbers,
    lse: u64,
    [q, k, v]: [Numbers; 3],
    sizes: &Sizes,
    sequences: &[Sequence],
) {
    assert_eq!(out.len, q.len, "out is not [T, H * D]");
    let path = Path::of(&sizes.shape, &[out, q, k, v]);
    let [q, k, v] = [q, k, v].map(|x| cast::read_as(call, path.format(), x));
    let result_format = path.result_format(&[out]);
    let result = written_as(call, out, result_format);
    let (rows, pieces, threads, shared_bytes) = match path {
        Path::Tensor(variant) => {
            let rows = variant.forward_rows;
            (rows, 1, TENSOR_THREADS, variant.tile_bytes(rows + 2 * FORWARD_KEYS))
        }
        Path::Plain(_) => (PLAIN_ROWS, sizes.plain_pieces(), PLAIN_THREADS, 0),
    };
    let tiles = query_tiles(sequences, rows, sizes.window);
    let blocks = [tiles.len() / 4 * sizes.shape.n_heads * pieces, 1, 1];
    let tiles = call.indices(&tiles);
    let to = [&args![result.address][..], &path.result_argument(result_format)].concat();
    let given = args![lse, q.address, k.address, v.address, tiles];
    let name = path.kernel(call, "forward");
    let grid = Grid { blocks, threads, shared_bytes };
    call.launch(&name, grid, &mut [&to[..], &given, &sizes.arguments()].concat());
    if result != out {
        cast::copy(call, out, result);
    }
}

/// Shapes: `dq` [T, H * D], `dk` and `dv` [T, H_kv * D] written; the rest read, as forward.
#[expect(clippy::too_many_arguments, reason = "inputs and outputs of one op")]
pub(crate) fn backward(
    call: &Call<'_>,
    dq: Numbers,
    dk: Numbers,
    dv: Numbers,
    dout: Numbers,
    out: Numbers,
    lse: Numbers,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let sizes = Sizes::new(shape, q, k, v);
    let sequences = sizes.sequences(segments);
    assert_eq!(lse.len, sizes.n_queries * shape.n_heads, "lse is not [T, H]");
    assert_eq!(lse.format, Format::F32, "lse is f32");
    for (name, x) in [("dq", dq), ("dout", dout), ("out", out)] {
        assert_eq!(x.len, q.len, "{name} is not [T, H * D]");
    }
    for (name, x) in [("dk", dk), ("dv", dv)] {
        assert_eq!(x.len, k.len, "{name} is not [T, H_kv * D]");
    }
    let path = Path::of(shape, &[dq, dk, dv, dout, q, k, v]);
    let delta = delta(call, dout, out, &sizes);
    let [dout, q, k, v] = [dout, q, k, v].map(|x| cast::read_as(call, path.format(), x));
    let result_format = path.result_format(&[dq, dk, dv]);
    let results = [dq, dk, dv].map(|to| written_as(call, to, result_format));
    let given = args![dout.address, q.address, k.address, v.address, lse.address, delta.address];
    let [dq_result, dk_result, dv_result] = results.map(|x| x.address);
    let format = path.result_argument(result_format);
    let keys = [&args![dk_result, dv_result][..], &format].concat();
    let queries = [&args![dq_result][..], &format].concat();
    let launch = Backward { call, path, sizes: &sizes, sequences: &sequences };
    match path {
        Path::Tensor(variant) => {
            let (rows, passing) = variant.dkdv;
            let bytes = variant.tile_bytes(2 * rows + 4 * passing);
            if variant.width < 256 {
                launch.of_keys("backward_dkdv", rows, bytes, &keys, &given);
            } else {
                launch.of_keys("backward_dk", rows, bytes, &keys, &given);
                let bytes = variant.tile_bytes(rows + 4 * passing);
                launch.of_keys("backward_dv", rows, bytes, &keys, &given);
            }
            let (rows, passing) = variant.dq;
            let bytes = variant.tile_bytes(2 * rows + 4 * passing);
            launch.of_queries("backward_dq", rows, bytes, &queries, &given);
        }
        Path::Plain(_) => {
            launch.of_keys("backward_dkdv", PLAIN_ROWS, 0, &keys, &given);
            launch.of_queries("backward_dq", PLAIN_ROWS, 0, &queries, &given);
        }
    }
    for (to, result) in [dq, dk, dv].into_iter().zip(results) {
        if result != to {
            cast::copy(call, to, result);
        }
    }
}

/// `dout . out` of each row of a head: [T, H].
fn delta(call: &Call<'_>, dout: Numbers, out: Numbers, sizes: &Sizes) -> Numbers {
    // Unrounded where both are f32, whatever products are formed of.
    let format = if dout.format == out.format { dout.format } else { Format::F32 };
    let [dout, out] = [dout, out].map(|x| cast::read_as(call, format, x));
    let n_rows = sizes.n_queries * sizes.shape.n_heads;
    let delta = call.scratch(Format::F32, n_rows);
    let name = call.variant("attention_plain_delta", &[format], false);
    let grid = Grid { blocks: [n_rows.div_ceil(8), 1, 1], threads: 256, shared_bytes: 0 };
    let n_rows = i64::try_from(n_rows).expect("a length of memory");
    let d = int(sizes.shape.head_dim);
    call.launch(&name, grid, &mut args![delta.address, dout.address, out.address, n_rows, d]);
    delta
}

/// Launches the kernels of one backward.
struct Backward<'a, 'c> {
    call: &'a Call<'c>,
    path: Path,
    sizes: &'a Sizes,
    sequences: &'a [Sequence],
}

impl Backward<'_, '_> {
    fn of_keys(&self, op: &str, rows: usize, bytes: usize, to: &[Argument], given: &[Argument]) {
        let tiles = key_tiles(self.sequences, rows, self.sizes.window);
        self.launch(op, &tiles, self.sizes.shape.n_kv_heads, bytes, [to, given]);
    }

    fn of_queries(&self, op: &str, rows: usize, bytes: usize, to: &[Argument], given: &[Argument]) {
        let tiles = query_tiles(self.sequences, rows, self.sizes.window);
        self.launch(op, &tiles, self.sizes.shape.n_heads, bytes, [to, given]);
    }

    fn launch(
        &self,
        op: &str,
        tiles: &[u32],
        n_heads: usize,
        shared_bytes: usize,
        [to, given]: [&[Argument]; 2],
    ) {
        let (pieces, threads) = match self.path {
            Path::Tensor(_) => (1, TENSOR_THREADS),
            Path::Plain(_) => (self.sizes.plain_pieces(), PLAIN_THREADS),
        };
        let grid =
            Grid { blocks: [tiles.len() / 4 * n_heads * pieces, 1, 1], threads, shared_bytes };
        let list = args![self.call.indices(tiles)];
        let mut arguments = [to, given, &list, &self.sizes.arguments()].concat();
        self.call.launch(&self.path.kernel(self.call, op), grid, &mut arguments);
    }
}

/// Shapes: `out` [n, H * D] written; `q` [n, H * D], `k` and `v` [P, H_kv * D] read.
pub(crate) fn cached(
    call: &Call<'_>,
    out: Numbers,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    shape: &AttentionShape,
) {
    let sizes = Sizes::new(shape, q, k, v);
    let (n, p) = (sizes.n_queries, sizes.n_keys);
    assert_eq!(out.len, q.len, "out is not [n, H * D]");
    assert!(p >= n, "fewer cached positions than queries");
    if n > CACHED_QUERIES_MAX {
        let sequence = Sequence { first: 0, len: n, first_key: 0, diagonal: p - n };
        forward_of(call, out, 0, [q, k, v], &sizes, &[sequence]);
    } else if n > 0 {
        cached_by_splits(call, out, [q, k, v], &sizes);
    }
}

/// First key that any query sees, number of splits from there on, and their length.
fn splits(sizes: &Sizes) -> (usize, usize, usize) {
    let first = (sizes.n_keys - sizes.n_queries + 1).saturating_sub(sizes.window);
    let n_keys = sizes.n_keys - first;
    let len = n_keys.div_ceil(SPLITS_MAX).next_multiple_of(SPLIT_LEN_MIN);
    (first, n_keys.div_ceil(len), len)
}

/// Most bytes of the parts of results over a cache of keys and values.
pub(crate) fn split_bytes(longest: usize, n_heads: usize, head_dim: usize) -> usize {
    let n_splits = longest.div_ceil(SPLIT_LEN_MIN).min(SPLITS_MAX);
    n_splits * CACHED_QUERIES_MAX * n_heads * (head_dim + 2) * size_of::<f32>()
}

fn cached_by_splits(call: &Call<'_>, out: Numbers, [q, k, v]: [Numbers; 3], sizes: &Sizes) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = sizes.shape;
    let is_bf16 = [out, q, k, v].iter().all(|x| x.format == Format::Bf16);
    let format = if is_bf16 { Format::Bf16 } else { Format::F32 };
    let [q, k, v] = [q, k, v].map(|x| cast::read_as(call, format, x));
    let result = written_as(call, out, format);
    let per_vector = 16 / format.n_bytes();
    let vector = head_dim.is_multiple_of(per_vector) && [k, v].iter().all(|x| x.is_aligned());
    let pieces = (head_dim / if vector { per_vector } else { 1 }).div_ceil(CACHED_THREADS);

    let (first, n_splits, split_len) = splits(sizes);
    let n_rows = sizes.n_queries * n_heads;
    let partial_out = call.scratch(Format::F32, n_splits * n_rows * head_dim);
    let [largest, sum] = [(); 2].map(|()| call.scratch(Format::F32, n_splits * n_rows));
    let groups = (n_rows / n_kv_heads).div_ceil(CACHED_ROWS) * n_kv_heads;
    let blocks = [groups * n_splits * pieces, 1, 1];
    let shared_bytes = CACHED_ROWS * head_dim * Format::F32.n_bytes();
    let arguments = args![
        partial_out.address,
        largest.address,
        sum.address,
        q.address,
        k.address,
        v.address,
        int(sizes.n_queries),
        int(sizes.n_keys),
        int(first),
        int(n_splits),
        int(split_len),
    ];
    let name = call.variant("attention_cached", &[format], vector);
    let grid = Grid { blocks, threads: 256, shared_bytes };
    call.launch(&name, grid, &mut [&arguments[..], &sizes.arguments()].concat());

    let name = call.variant("attention_cached_combine", &[format], false);
    let shared_bytes = n_splits * Format::F32.n_bytes();
    let grid = Grid { blocks: [n_rows, 1, 1], threads: 128, shared_bytes };
    let partials = args![result.address, partial_out.address, largest.address, sum.address];
    let sizes = args![int(n_splits), int(head_dim)];
    call.launch(&name, grid, &mut [&partials[..], &sizes].concat());
    if result != out {
        cast::copy(call, out, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(lens: &[usize]) -> Vec<Sequence> {
        let mut first = 0;
        let sequence = |&len: &usize| {
            first += len;
            Sequence { first: first - len, len, first_key: first - len, diagonal: 0 }
        };
        lens.iter().map(sequence).collect()
    }

    /// Each row of each segment is in one tile, and no tile crosses a segment.
    fn assert_covers(tiles: &[u32], lens: &[usize]) {
        let n: usize = lens.iter().sum();
        let mut times = vec![0; n];
        for tile in tiles.chunks_exact(4) {
            let (first, end) = (tile[0] as usize, tile[1] as usize);
            times[first..end].iter_mut().for_each(|t| *t += 1);
            let of = |row: usize| packed(lens).iter().position(|s| row < s.first + s.len);
            assert_eq!(of(first), of(end - 1), "a tile crosses segments");
        }
        assert_eq!(times, vec![1; n]);
    }

    #[test]
    fn every_row_is_in_one_tile_and_short_segments_get_one_each() {
        let lens = [7, 64, 1, 0, 129];
        let (queries, keys) = (
            query_tiles(&packed(&lens), 64, WINDOW_MAX),
            key_tiles(&packed(&lens), 64, WINDOW_MAX),
        );
        assert_eq!(queries.len(), 4 * 6);
        for tiles in [queries, keys] {
            assert_covers(&tiles, &lens);
        }
    }

    #[test]
    fn the_tiles_with_the_most_work_come_first() {
        let queries = query_tiles(&packed(&[130, 70]), 64, WINDOW_MAX);
        let begins = |tiles: &[u32]| tiles.chunks(4).map(|tile| tile[0]).collect::<Vec<_>>();
        // 130, 128, 70, 64 and 64 keys; of equal ones the first.
        assert_eq!(begins(&queries), [128, 64, 194, 0, 130]);
        // With a window of 10, a tile of 64 sees nine keys before its first row.
        let queries = query_tiles(&packed(&[130, 70]), 64, 10);
        assert_eq!(begins(&queries), [64, 0, 130, 194, 128]);
        // Keys 0 to 63 are seen by 130 queries, the last two by two.
        let keys = key_tiles(&packed(&[130, 70]), 64, WINDOW_MAX);
        assert_eq!(begins(&keys), [0, 130, 64, 194, 128]);
    }

    #[test]
    fn queries_of_a_cache_stand_at_its_end() {
        let sequence = Sequence { first: 0, len: 70, first_key: 0, diagonal: 630 };
        assert_eq!(query_tiles(&[sequence], 64, 100), [0, 64, 0, 630, 64, 70, 0, 630]);
    }

    #[test]
    fn splits_cover_all_keys_that_are_seen() {
        for (n_queries, n_keys, window) in [
            (1, 1, WINDOW_MAX),
            (3, 129, WINDOW_MAX),
            (1, 1_000_000, WINDOW_MAX),
            (8, 10_000, 300),
            (5, 5, 1),
        ] {
            let shape = AttentionShape {
                n_heads: 2,
                n_kv_heads: 1,
                head_dim: 64,
                scale: 1.0,
                window: Some(window),
                soft_cap: None,
                compute: Compute::F32,
            };
            let sizes = Sizes { shape, window, n_queries, n_keys };
            let (first, n_splits, len) = splits(&sizes);
            // The first query sees the keys from here on.
            assert_eq!(first, (n_keys - n_queries + 1).saturating_sub(window));
            assert!(n_splits <= SPLITS_MAX);
            let covered = first + n_splits * len;
            assert!(covered >= n_keys && covered - len < n_keys, "{n_splits} splits of {len}");
        }
    }

    #[test]
    fn tiles_fit_the_shared_memory_of_every_device() {
        for variant in &VARIANTS {
            let (rows, passing) = variant.dkdv;
            let (dq_rows, dq_passing) = variant.dq;
            for rows in [
                variant.forward_rows + 2 * FORWARD_KEYS,
                2 * rows + 4 * passing,
                2 * dq_rows + 4 * dq_passing,
            ] {
                assert!(variant.tile_bytes(rows) <= 99 << 10, "{variant:?}");
            }
        }
    }

    #[test]
    fn tensor_cores_take_heads_of_whole_vectors_up_to_256() {
        let width = |d| Variant::of(d).map(|variant| variant.width);
        assert_eq!([8, 64, 72, 80, 128].map(width), [64, 64, 96, 96, 128].map(Some));
        assert_eq!([136, 192, 200, 256].map(width), [192, 192, 256, 256].map(Some));
        assert_eq!([20, 100, 264].map(width), [None; 3]);
    }
}
