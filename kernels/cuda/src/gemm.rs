//! Dense products on the device: the op, and what every other product of this library goes through.
//!
//! A product is formed by cuBLASLt where that is installed ([`crate::cublaslt`]), and else by the
//! kernels of `gemm.cu`. Both add in f32, in an order that the sizes (and, for cuBLASLt, the device
//! and its version) fix.

use forgelm_kernels_api::{Format, GemmDims, GemmLayout, Write};

use crate::call::{Call, Grid, Numbers, args};
use crate::cast;
use crate::chunk::{int, long};

/// A matrix in the memory of the device, row by row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) numbers: Numbers,
    /// Numbers from row to row.
    pub(crate) stride: usize,
}

impl Matrix {
    /// Rows end to end.
    pub(crate) fn new(numbers: Numbers, n_cols: usize) -> Self {
        Self { numbers, stride: n_cols }
    }

    fn assert_holds(&self, name: &str, n_rows: usize, n_cols: usize) {
        assert!(n_cols <= self.stride || n_rows <= 1, "rows of {name} overlap");
        let n_needed = if n_rows * n_cols == 0 { 0 } else { (n_rows - 1) * self.stride + n_cols };
        assert!(self.numbers.len >= n_needed, "{name} is not [{n_rows}, {n_cols}]");
    }
}

/// `c = alpha op(a) op(b)`, or `c += ..`. Factors have one format, f32 or bfloat16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) c: Matrix,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) layout: GemmLayout,
    pub(crate) dims: GemmDims,
    pub(crate) alpha: f32,
    pub(crate) write: Write,
}

impl Product {
    /// Rows and columns of the two factors as they lie in memory.
    pub(crate) fn shapes(&self) -> [(usize, usize); 2] {
        let GemmDims { m, n, k } = self.dims;
        match self.layout {
            GemmLayout::Nn => [(m, k), (k, n)],
            GemmLayout::Nt => [(m, k), (n, k)],
            GemmLayout::Tn => [(k, m), (k, n)],
        }
    }

    pub(crate) fn check(&self) {
        let [(a_rows, a_cols), (b_rows, b_cols)] = self.shapes();
        self.a.assert_holds("a", a_rows, a_cols);
        self.b.assert_holds("b", b_rows, b_cols);
        self.c.assert_holds("c", self.dims.m, self.dims.n);
        let formats = [self.a, self.b].map(|factor| factor.numbers.format);
        assert_eq!(formats[0], formats[1], "factors of one format");
        assert!(formats[0] != Format::U8, "a product of bytes");
    }
}

/// Forms a product.
pub(crate) fn multiply(call: &Call<'_>, product: &Product) {
    product.check();
    if product.dims.m == 0 || product.dims.n == 0 {
        return;
    }
    // An empty sum is left to the kernels, which write zeros.
    let blas = call.device().blas().filter(|_| product.dims.k > 0);
    if !blas.is_some_and(|blas| blas.multiply(call, product)) {
        multiply_here(call, product);
    }
}

/// The op. Where one factor is stored in bfloat16 and the other is not, the other is rounded.
///
/// Shapes: see [`GemmLayout`]; `c` [M, N] written or added to.
#[expect(clippy::too_many_arguments, reason = "the standard arguments of a GEMM")]
pub(crate) fn gemm(
    call: &Call<'_>,
    c: Numbers,
    a: Numbers,
    b: Numbers,
    layout: GemmLayout,
    dims: GemmDims,
    alpha: f32,
    write: Write,
) {
    let GemmDims { m, n, k } = dims;
    assert_eq!(c.len, m * n, "c is not [M, N]");
    assert_eq!(a.len, m * k, "a does not have M * K elements");
    assert_eq!(b.len, n * k, "b does not have N * K elements");
    let is_exact = a.format == Format::F32 && b.format == Format::F32;
    let format = if is_exact { Format::F32 } else { Format::Bf16 };
    let [a, b] = [a, b].map(|factor| cast::read_as(call, format, factor));
    let (a_cols, b_cols) = match layout {
        GemmLayout::Nn => (k, n),
        GemmLayout::Nt => (k, k),
        GemmLayout::Tn => (m, n),
    };
    let (c, a, b) = (Matrix::new(c, n), Matrix::new(a, a_cols), Matrix::new(b, b_cols));
    multiply(call, &Product { c, a, b, layout, dims, alpha, write });
}

/// How the work of a kernel is cut: by sizes and formats alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Side of a tile of c.
    tile: usize,
    n_tiles: usize,
    /// Terms of a part of the sum.
    k_part: usize,
    n_parts: usize,
}

/// Tiles that there should be at least for the large ones to be worth it.
const LARGE_TILES: usize = 64;
/// With fewer tiles than this, sums are cut into parts, ..
const TILES: usize = 128;
/// .. which have this many terms at least.
const TERMS_MIN: usize = 512;
/// Most parts of a sum.
const PARTS_MAX: usize = 16;
/// Terms that a kernel goes through at once; parts are multiples of it.
const STEP: usize = 32;
/// Most bytes of the parts of a product: two of a large tile, or as many of small ones.
pub(crate) const PARTIALS_BYTES_MAX: usize = TILES * 128 * 128 * size_of::<f32>();

impl Cut {
    fn new(dims: GemmDims, may_be_large: bool) -> Self {
        let GemmDims { m, n, k } = dims;
        let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side);
        let tile = if may_be_large && tiles(128) >= LARGE_TILES { 128 } else { 64 };
        let n_tiles = tiles(tile);
        let wanted = (k / TERMS_MIN).min(TILES / n_tiles.max(1)).clamp(1, PARTS_MAX);
        let k_part = k.div_ceil(wanted).next_multiple_of(STEP).max(STEP);
        Self { tile, n_tiles, k_part, n_parts: k.div_ceil(k_part).max(1) }
    }
}

/// With the kernels of this library.
pub(crate) fn multiply_here(call: &Call<'_>, product: &Product) {
    let &Product { c, a, b, layout, dims, alpha, write } = product;
    let layout = match layout {
        GemmLayout::Nn => "nn",
        GemmLayout::Nt => "nt",
        GemmLayout::Tn => "tn",
    };
    let is_bf16 = a.numbers.format == Format::Bf16;
    let groups_are_whole = [a, b].iter().zip(product.shapes()).all(|(matrix, (_, n_cols))| {
        matrix.numbers.is_aligned() && n_cols.is_multiple_of(8) && matrix.stride.is_multiple_of(8)
    });
    let cut = Cut::new(dims, is_bf16 && groups_are_whole);
    let (kernel, threads, shared_bytes) = match (is_bf16, groups_are_whole, cut.tile) {
        (false, ..) => (format!("gemm_f32_{layout}"), 256, 0),
        (true, false, _) => (format!("gemm_bf16_{layout}_any"), 128, 2 * STAGE_64),
        (true, true, 128) => (format!("gemm_bf16_{layout}_128"), 256, 3 * STAGE_128),
        (true, true, _) => (format!("gemm_bf16_{layout}_64"), 128, 4 * STAGE_64),
    };
    let partials = match cut.n_parts {
        1 => 0,
        n_parts => call.scratch(Format::F32, n_parts * dims.m * dims.n).address,
    };
    let [m, n, k, k_part] = [dims.m, dims.n, dims.k, cut.k_part].map(int);
    let c_is_bf16 = i32::from(c.numbers.format == Format::Bf16);
    let adds = i32::from(write == Write::Add);
    let [to, left, right] = [c, a, b].map(|matrix| matrix.numbers.address);
    let [ldc, lda, ldb] = [c, a, b].map(|matrix| long(matrix.stride));
    let grid = Grid { blocks: [cut.n_tiles, 1, cut.n_parts], threads, shared_bytes };
    call.launch(
        &kernel,
        grid,
        &mut args![
            to, left, right, partials, ldc, lda, ldb, m, n, k, k_part, c_is_bf16, alpha, adds
        ],
    );
    if cut.n_parts > 1 {
        let blocks = [(dims.m * dims.n).div_ceil(256), 1, 1];
        call.launch(
            "gemm_combine",
            Grid { blocks, threads: 256, shared_bytes: 0 },
            &mut args![to, partials, ldc, m, n, int(cut.n_parts), c_is_bf16, alpha, adds],
        );
    }
}

/// Bytes of a step of both factors.
const STAGE_64: usize = 2 * 64 * STEP * 2;
const STAGE_128: usize = 2 * 128 * STEP * 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tile of c, and every term of the sums once.
    #[test]
    fn a_cut_covers_the_product() {
        for m in [1, 64, 65, 1000, 8192] {
            for n in [1, 16, 128, 4096] {
                for k in [0, 1, 31, 1023, 1024, 8200, 100_000] {
                    for may_be_large in [false, true] {
                        let cut = Cut::new(GemmDims { m, n, k }, may_be_large);
                        let Cut { tile, n_tiles, k_part, n_parts } = cut;
                        assert_eq!(n_tiles, m.div_ceil(tile) * n.div_ceil(tile), "{cut:?}");
                        assert!(k_part.is_multiple_of(STEP) && n_parts >= 1, "{cut:?}");
                        assert!(n_parts * k_part >= k, "{cut:?} leaves terms of {k} out");
                        assert!((n_parts - 1) * k_part < k.max(1), "{cut:?} has an empty part");
                        assert!(n_parts == 1 || n_tiles * n_parts <= TILES, "{cut:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_products_with_long_sums_are_cut_in_parts() {
        let cut = Cut::new(GemmDims { m: 16, n: 4096, k: 8192 }, true);
        assert_eq!(cut, Cut { tile: 64, n_tiles: 64, k_part: 4096, n_parts: 2 });
        let cut = Cut::new(GemmDims { m: 4096, n: 4096, k: 8192 }, true);
        assert_eq!(cut, Cut { tile: 128, n_tiles: 1024, k_part: 8192, n_parts: 1 });
    }
}
