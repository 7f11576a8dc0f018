//! How numbers are spread over threads by kernels that include `chunk.cuh`: 8 neighboring ones a
//! thread, 256 threads a block.

use crate::call::{Grid, Numbers};

/// Threads of a block.
pub(crate) const THREADS: usize = 256;
/// Numbers of a thread.
const CHUNK: usize = 8;

/// So many blocks of 256 threads.
pub(crate) fn blocks(n_blocks: usize) -> Grid {
    Grid { blocks: [n_blocks, 1, 1], threads: THREADS as u32, shared_bytes: 0 }
}

/// A warp for each row.
pub(crate) fn warps(n_rows: usize) -> Grid {
    blocks(n_rows.div_ceil(THREADS / 32))
}

/// A thread for each chunk of each row.
pub(crate) fn chunks(n_rows: usize, width: usize) -> Grid {
    blocks((n_rows * width.div_ceil(CHUNK)).div_ceil(THREADS))
}

/// Whether 16 bytes may be loaded at once: each chunk of each row is whole, and lies as it must.
pub(crate) fn is_wide(width: usize, arrays: &[Numbers]) -> bool {
    width.is_multiple_of(CHUNK) && arrays.iter().all(|numbers| numbers.is_aligned())
}

/// A size that kernels count in 64 bits.
pub(crate) fn long(n: usize) -> i64 {
    n as i64
}

/// A size that kernels count in 32 bits.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).expect("widths of matrices are below 2^31")
}

/// C of a matrix of `n_rows`; any of none.
pub(crate) fn width(numbers: Numbers, n_rows: usize) -> usize {
    let c = numbers.len / n_rows.max(1);
    assert_eq!(numbers.len, n_rows * c, "not [R, C]");
    c
}
