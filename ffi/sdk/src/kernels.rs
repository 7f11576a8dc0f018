//! The host's kernel library and its threads, for plugins that want to be fast without threads and
//! vector instructions of their own: `forgelm.kernels/1`.
//!
//! Every function gives the same bits on any number of threads. Several threads of a plugin may call
//! at once; one of them gets the host's threads, and the others work alone meanwhile. A plugin that
//! cannot do without it says `needs: &["forgelm.kernels/1"]` in [`export_plugin!`](crate::export_plugin)
//! and is refused by a program that has none; others ask [`Kernels::of_host`] and have a way of their own.
//!
//! Letters in shapes: R rows, C columns, V vocabulary; row-major. Start reading at [`Kernels`].
#![expect(unsafe_code, reason = "calls functions of the host's table")]

use crate::Failed;
use crate::host;
use forgelm_abi::{
    KERNELS, Reduction, forgelm_gemm, forgelm_kernels, forgelm_plugin_error, forgelm_status,
    forgelm_str, forgelm_work, gemm_layout, status, write,
};
use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

pub use forgelm_kernels_api::{GemmDims, GemmLayout, Write};

/// The host's kernels. It is small: make it where it is used.
#[derive(Clone, Copy, Debug)]
pub struct Kernels(&'static forgelm_kernels);

// SAFETY: the header lets any thread call the host's table, several at once.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// The smallest of the k largest magnitudes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The magnitude. Of those equal to it, `k - n_above` are among the k largest.
    pub threshold: f32,
    /// Magnitudes above it: fewer than k.
    pub n_above: usize,
}

impl Kernels {
    /// Those of the program that loaded this library; `None` where it offers none, and in a library
    /// that nobody loaded.
    #[must_use]
    pub fn of_host() -> Option<Self> {
        // SAFETY: the table of this id; the host keeps it for as long as the process.
        unsafe { host::extension::<forgelm_kernels>(host::host()?, KERNELS) }.map(Self)
    }

    /// Those behind a table: for hosts that are in Rust, and for tests.
    ///
    /// # Safety
    /// The table is one of `forgelm.kernels/1`.
    #[must_use]
    pub const unsafe fn new(table: &'static forgelm_kernels) -> Self {
        Self(table)
    }

    /// Calls `body` for the items `0..n_items`, `n_together` at a time, on the host's threads, in
    /// any order. A call from inside a body works on the thread that makes it.
    ///
    /// # Errors
    /// What the first range (in the order of items) that fails says; those after it may not have
    /// run. If `n_together` is 0.
    ///
    /// # Panics
    /// If a body does: with what the first one said.
    pub fn parallel_for(
        self,
        n_items: usize,
        n_together: usize,
        body: impl Fn(Range<usize>) -> Result<(), Failed> + Sync,
    ) -> Result<(), Failed> {
        let body = Body { run: &body, ended: Mutex::new(None) };
        let work =
            forgelm_work { ctx: std::ptr::from_ref(&body).cast_mut().cast(), run: Some(run) };
        let called = self.call(self.0.parallel_for, |parallel_for, err| {
            // SAFETY: the host's own function with its own table; the body outlives the call, and may
            // be run by several threads.
            unsafe { parallel_for(self.0, n_items, n_together, &raw const work, err) }
        });
        match body.ended.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => called,
            Some((_, Ended::Failed(failed))) => Err(failed),
            Some((_, Ended::Panicked(panic))) => resume_unwind(panic),
        }
    }

    /// Gives `body` each chunk of `len` numbers of `out` (the last one shorter) with its number, on
    /// the host's threads.
    ///
    /// # Errors
    /// As [`Kernels::parallel_for`].
    pub fn for_chunks<T: Send>(
        self,
        out: &mut [T],
        len: usize,
        body: impl Fn(usize, &mut [T]) -> Result<(), Failed> + Sync,
    ) -> Result<(), Failed> {
        if len == 0 {
            return Err(Failed::new("chunks of no numbers"));
        }
        let chunks: Vec<_> = out.chunks_mut(len).map(Mutex::new).collect();
        // Each lock is taken once: it hands a chunk to the thread that has its number.
        self.parallel_for(chunks.len(), 1, |range| {
            let i = range.start;
            body(i, &mut chunks[i].lock().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// `c = alpha op(a) op(b)`, or `c +=` that.
    ///
    /// Shapes: see [`GemmLayout`]; `c` [M, N] written or added to.
    ///
    /// # Errors
    /// If a length does not fit.
    #[expect(clippy::too_many_arguments, reason = "the standard arguments of a GEMM")]
    pub fn gemm(
        self,
        c: &mut [f32],
        a: &[f32],
        b: &[f32],
        layout: GemmLayout,
        GemmDims { m, n, k }: GemmDims,
        alpha: f32,
        write: Write,
    ) -> Result<(), Failed> {
        fits("c", c.len(), [m, n])?;
        fits("a", a.len(), [m, k])?;
        fits("b", b.len(), [k, n])?;
        let product = forgelm_gemm {
            #[expect(clippy::cast_possible_truncation, reason = "64 bytes")]
            struct_size: size_of::<forgelm_gemm>() as u32,
            layout: match layout {
                GemmLayout::Nn => gemm_layout::NN,
                GemmLayout::Nt => gemm_layout::NT,
                GemmLayout::Tn => gemm_layout::TN,
            },
            m,
            n,
            k,
            alpha,
            write: match write {
                Write::Replace => write::REPLACE,
                Write::Add => write::ADD,
            },
            a: a.as_ptr(),
            b: b.as_ptr(),
            c: c.as_mut_ptr(),
        };
        self.call(self.0.gemm, |gemm, err| {
            // SAFETY: the host's own function with its own table; arrays of these sizes.
            unsafe { gemm(self.0, &raw const product, err) }
        })
    }

    /// `y += a x`. Shapes: equal lengths.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn axpy(self, y: &mut [f32], a: f32, x: &[f32]) -> Result<(), Failed> {
        fits("y", y.len(), [x.len(), 1])?;
        self.call(self.0.axpy, |axpy, err| {
            // SAFETY: the host's own function with its own table; equal lengths.
            unsafe { axpy(self.0, x.len(), a, x.as_ptr(), y.as_mut_ptr(), err) }
        })
    }

    /// Sum of `x * y`, in f64. Shapes: equal lengths.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn dot(self, x: &[f32], y: &[f32]) -> Result<f64, Failed> {
        fits("y", y.len(), [x.len(), 1])?;
        let mut out = 0.0;
        self.call(self.0.dot, |dot, err| {
            // SAFETY: the host's own function with its own table; equal lengths.
            unsafe { dot(self.0, x.len(), x.as_ptr(), y.as_ptr(), &raw mut out, err) }
        })?;
        Ok(out)
    }

    /// Sum of x, in f64.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn sum(self, x: &[f32]) -> Result<f64, Failed> {
        self.reduce(self.0.sum, x)
    }

    /// Sum of the squares of x, in f64.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn sum_of_squares(self, x: &[f32]) -> Result<f64, Failed> {
        self.reduce(self.0.sum_of_squares, x)
    }

    /// Largest magnitude of x: 0 of no numbers, NaN if one of them is.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn max_abs(self, x: &[f32]) -> Result<f32, Failed> {
        self.reduce(self.0.max_abs, x)
    }

    /// The smallest of the k largest magnitudes of x; NaN is above every number.
    ///
    /// # Errors
    /// If k is not 1 to the length of x.
    pub fn top_k_threshold(self, x: &[f32], k: usize) -> Result<Threshold, Failed> {
        let mut found = Threshold { threshold: 0.0, n_above: 0 };
        let Threshold { threshold, n_above } = &mut found;
        self.call(self.0.top_k_threshold, |top_k, err| {
            // SAFETY: the host's own function with its own table, and places of ours.
            unsafe { top_k(self.0, x.len(), x.as_ptr(), k, threshold, n_above, err) }
        })?;
        Ok(found)
    }

    /// `y = x * inv_rms * weight` with `inv_rms = 1 / sqrt(mean(x^2) + eps)` of each row.
    ///
    /// Shapes: `y` [R, C] written, `x` [R, C], `weight` [C] read.
    ///
    /// # Errors
    /// If a length does not fit.
    pub fn rms_norm(
        self,
        y: &mut [f32],
        x: &[f32],
        weight: &[f32],
        eps: f32,
    ) -> Result<(), Failed> {
        let n_rows = x.len().checked_div(weight.len()).unwrap_or(0);
        fits("x", x.len(), [n_rows, weight.len()])?;
        fits("y", y.len(), [n_rows, weight.len()])?;
        self.call(self.0.rms_norm, |rms_norm, err| {
            let (x, w, y) = (x.as_ptr(), weight.as_ptr(), y.as_mut_ptr());
            // SAFETY: the host's own function with its own table; arrays of these sizes.
            unsafe { rms_norm(self.0, n_rows, weight.len(), x, w, eps, y, null_mut(), err) }
        })
    }

    /// The log-probability of each label under the softmax of its row of logits; sums in f64.
    ///
    /// Shapes: `logp` [R] written, `logits` [R, V], `labels` [R] read, each below V.
    ///
    /// # Errors
    /// If a length does not fit, or a label is not below V.
    pub fn log_softmax_gather(
        self,
        logp: &mut [f32],
        logits: &[f32],
        labels: &[u32],
    ) -> Result<(), Failed> {
        let n_rows = labels.len();
        let n_vocab = logits.len().checked_div(n_rows).unwrap_or(0);
        fits("logits", logits.len(), [n_rows, n_vocab])?;
        fits("logp", logp.len(), [n_rows, 1])?;
        self.call(self.0.log_softmax_gather, |gather, err| {
            let (logits, labels, logp) = (logits.as_ptr(), labels.as_ptr(), logp.as_mut_ptr());
            // SAFETY: the host's own function with its own table; arrays of these sizes.
            unsafe { gather(self.0, n_rows, n_vocab, logits, labels, logp, err) }
        })
    }

    /// Bytes of a row of `n_cols` numbers in a format: `nf4`, `fp4`, `int8`, `q8_0`, `q4_0`, `q4_1`,
    /// `q4_k` or `q6_k`.
    ///
    /// # Errors
    /// If the format is not known, or has no rows of that width.
    pub fn bytes_per_row(self, format: &str, n_cols: usize) -> Result<usize, Failed> {
        let mut out = 0;
        self.call(self.0.bytes_per_row, |bytes_per_row, err| {
            // SAFETY: the host's own function with its own table, and a place of ours.
            unsafe { bytes_per_row(self.0, forgelm_str::new(format), n_cols, &raw mut out, err) }
        })?;
        Ok(out)
    }

    /// Numbers to bytes, each row by itself.
    ///
    /// Shapes: `rows` [R, C] read, `bytes` [R, [`Kernels::bytes_per_row`]] written.
    ///
    /// # Errors
    /// As [`Kernels::bytes_per_row`]; if a length does not fit; for a number that is not finite or too
    /// large for the format: `bytes` are then not to be used.
    pub fn quantize(
        self,
        format: &str,
        rows: &[f32],
        n_cols: usize,
        bytes: &mut [u8],
    ) -> Result<(), Failed> {
        let n_rows = self.rows_of(format, (rows.len(), n_cols), bytes.len())?;
        self.call(self.0.quantize, |quantize, err| {
            let (format, rows, bytes) =
                (forgelm_str::new(format), rows.as_ptr(), bytes.as_mut_ptr());
            // SAFETY: the host's own function with its own table; arrays of these sizes.
            unsafe { quantize(self.0, format, n_rows, n_cols, rows, bytes, err) }
        })
    }

    /// Bytes to numbers, each row by itself.
    ///
    /// Shapes: `bytes` [R, [`Kernels::bytes_per_row`]] read, `rows` [R, C] written.
    ///
    /// # Errors
    /// As [`Kernels::bytes_per_row`]; if a length does not fit.
    pub fn dequantize(
        self,
        format: &str,
        bytes: &[u8],
        n_cols: usize,
        rows: &mut [f32],
    ) -> Result<(), Failed> {
        let n_rows = self.rows_of(format, (rows.len(), n_cols), bytes.len())?;
        self.call(self.0.dequantize, |dequantize, err| {
            let (format, bytes, rows) =
                (forgelm_str::new(format), bytes.as_ptr(), rows.as_mut_ptr());
            // SAFETY: the host's own function with its own table; arrays of these sizes.
            unsafe { dequantize(self.0, format, n_rows, n_cols, bytes, rows, err) }
        })
    }

    /// The rows of numbers and bytes that are the same rows.
    fn rows_of(
        self,
        format: &str,
        (n_numbers, n_cols): (usize, usize),
        n_bytes: usize,
    ) -> Result<usize, Failed> {
        let of_row = self.bytes_per_row(format, n_cols)?;
        let n_rows = n_numbers.checked_div(n_cols).unwrap_or(0);
        fits("rows", n_numbers, [n_rows, n_cols])?;
        fits("bytes", n_bytes, [n_rows, of_row])?;
        Ok(n_rows)
    }

    fn reduce<T: Default>(self, function: Option<Reduction<T>>, x: &[f32]) -> Result<T, Failed> {
        let mut out = T::default();
        self.call(function, |reduction, err| {
            // SAFETY: the host's own function with its own table, and a place of ours.
            unsafe { reduction(self.0, x.len(), x.as_ptr(), &raw mut out, err) }
        })?;
        Ok(out)
    }

    /// Calls a function of the table; what it refuses is a failure.
    fn call<F>(
        self,
        function: Option<F>,
        call: impl FnOnce(F, *mut forgelm_plugin_error) -> forgelm_status,
    ) -> Result<(), Failed> {
        host::call(function, call)
    }
}

/// That an array has as many numbers as its shape.
fn fits(name: &str, len: usize, shape: [usize; 2]) -> Result<(), Failed> {
    if shape[0].checked_mul(shape[1]) == Some(len) {
        return Ok(());
    }
    Err(Failed::new(format!(
        "`{name}` has {len} numbers; expected {} times {}",
        shape[0], shape[1]
    )))
}

/// How a range ended that did not end well.
enum Ended {
    Failed(Failed),
    Panicked(Box<dyn Any + Send>),
}

/// A body with what came of it: the first item of the first range that did not end well.
struct Body<'a> {
    run: &'a (dyn Fn(Range<usize>) -> Result<(), Failed> + Sync),
    ended: Mutex<Option<(usize, Ended)>>,
}

unsafe extern "C" fn run(ctx: *mut c_void, first: usize, end: usize) -> forgelm_status {
    // SAFETY: the body of the call in progress, which several threads may read.
    let Some(body) = (unsafe { ctx.cast::<Body<'_>>().as_ref() }) else { return status::INTERNAL };
    let (status, ended) = match catch_unwind(AssertUnwindSafe(|| (body.run)(first..end))) {
        Ok(Ok(())) => return status::OK,
        Ok(Err(failed)) => (status::INTERNAL, Ended::Failed(failed)),
        Err(panic) => (status::PANIC, Ended::Panicked(panic)),
    };
    let mut kept = body.ended.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.as_ref().is_none_or(|(at, _)| first < *at) {
        *kept = Some((first, ended));
    }
    status
}
