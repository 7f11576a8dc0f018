//! `forgelm.kernels/1`: the host's kernel library, on the host's threads.

use crate::{forgelm_plugin_error, forgelm_status, forgelm_str};
use std::ffi::{CStr, c_void};

/// Id of the host's [`forgelm_kernels`].
pub const KERNELS: &CStr = c"forgelm.kernels/1";

/// Which factors of a product are read transposed. The result is always [M, N].
pub mod gemm_layout {
    /// `a` [M, K], `b` [K, N].
    pub const NN: u32 = 0;
    /// `a` [M, K], `b` [N, K].
    pub const NT: u32 = 1;
    /// `a` [K, M], `b` [K, N].
    pub const TN: u32 = 2;
}

/// Whether a result replaces what was there or is added to it.
pub mod write {
    /// It replaces it.
    pub const REPLACE: u32 = 0;
    /// It is added.
    pub const ADD: u32 = 1;
}

/// Work on a range of items.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_work {
    /// First argument of `run`.
    pub ctx: *mut c_void,
    /// Works on items `first..end`.
    pub run:
        Option<unsafe extern "C" fn(ctx: *mut c_void, first: usize, end: usize) -> forgelm_status>,
}

/// A product: `c [M, N] = alpha * op(a) op(b)`, or `c +=` that.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct forgelm_gemm {
    /// Bytes of this struct, as the caller knows it.
    pub struct_size: u32,
    /// One of [`gemm_layout`].
    pub layout: u32,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Factor on the product.
    pub alpha: f32,
    /// One of [`write`].
    pub write: u32,
    /// [M, K] or [K, M].
    pub a: *const f32,
    /// [K, N] or [N, K].
    pub b: *const f32,
    /// [M, N].
    pub c: *mut f32,
}

/// A function of one array, to one number.
pub type Reduction<T> = unsafe extern "C" fn(
    kernels: *const forgelm_kernels,
    n: usize,
    x: *const f32,
    out: *mut T,
    err: *mut forgelm_plugin_error,
) -> forgelm_status;

/// Host service `forgelm.kernels/1`.
#[repr(C)]
#[derive(Debug)]
pub struct forgelm_kernels {
    /// Bytes of this struct, as the host knows it.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The host's own.
    pub service_data: *mut c_void,
    /// Runs work on all items, `n_together` at a time.
    pub parallel_for: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            n_items: usize,
            n_together: usize,
            work: *const forgelm_work,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// A product of matrices.
    pub gemm: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            product: *const forgelm_gemm,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// `y += a x`.
    pub axpy: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            n: usize,
            a: f32,
            x: *const f32,
            y: *mut f32,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Sum of products.
    pub dot: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            n: usize,
            x: *const f32,
            y: *const f32,
            out: *mut f64,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Sum.
    pub sum: Option<Reduction<f64>>,
    /// Sum of squares.
    pub sum_of_squares: Option<Reduction<f64>>,
    /// Largest magnitude.
    pub max_abs: Option<Reduction<f32>>,
    /// Smallest of the k largest magnitudes, and how many are above it.
    pub top_k_threshold: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            n: usize,
            x: *const f32,
            k: usize,
            threshold: *mut f32,
            n_above: *mut usize,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// RMSNorm of rows.
    pub rms_norm: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            n_rows: usize,
            n_cols: usize,
            x: *const f32,
            weight: *const f32,
            eps: f32,
            y: *mut f32,
            inv_rms: *mut f32,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Log-probabilities of labels.
    pub log_softmax_gather: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            n_rows: usize,
            n_vocab: usize,
            logits: *const f32,
            labels: *const u32,
            logp: *mut f32,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Bytes of a row in a format.
    pub bytes_per_row: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            format: forgelm_str,
            n_cols: usize,
            out: *mut usize,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Rows to bytes.
    pub quantize: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            format: forgelm_str,
            n_rows: usize,
            n_cols: usize,
            rows: *const f32,
            bytes: *mut u8,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
    /// Bytes to rows.
    pub dequantize: Option<
        unsafe extern "C" fn(
            kernels: *const forgelm_kernels,
            format: forgelm_str,
            n_rows: usize,
            n_cols: usize,
            bytes: *const u8,
            rows: *mut f32,
            err: *mut forgelm_plugin_error,
        ) -> forgelm_status,
    >,
}
