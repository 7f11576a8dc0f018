//! The host's end of `forgelm.kernels/1`: arguments are checked here, and numbers are worked on in
//! `compute` or by the kernel library itself.

mod compute;
mod rows;
#[cfg(test)]
mod tests;

use crate::border::{lossy, size};
use crate::float_mode::KeepFloatMode;
use crate::service::{Array, Refusal, area, put, serve};
use crate::watch::{Life, Serving};
use forgelm_abi::{
    forgelm_gemm, forgelm_kernels, forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_work,
    gemm_layout, status, write,
};
use forgelm_kernels_api::{GemmDims, GemmLayout, Ops, Write};
use forgelm_tensor::rows::{self as codecs, RowFormat};
use std::fmt;
use std::ptr::{from_ref, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The table with the library behind it: the table first, so that a pointer to one is one to the
/// other.
#[repr(C)]
pub(crate) struct Kernels {
    table: forgelm_kernels,
    ops: Arc<dyn Ops>,
    /// Of the library that has this table.
    life: Arc<Life>,
}

// SAFETY: the table's only pointer to data is null, and a kernel library may be used by any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("ops", &self.ops.name()).finish_non_exhaustive()
    }
}

impl Kernels {
    pub(crate) fn new(ops: Arc<dyn Ops>, life: Arc<Life>) -> Self {
        let table = forgelm_kernels {
            struct_size: size::<forgelm_kernels>(),
            reserved: 0,
            service_data: null_mut(),
            parallel_for: Some(parallel_for),
            gemm: Some(gemm),
            axpy: Some(axpy),
            dot: Some(dot),
            sum: Some(sum),
            sum_of_squares: Some(sum_of_squares),
            max_abs: Some(max_abs),
            top_k_threshold: Some(top_k_threshold),
            rms_norm: Some(rms_norm),
            log_softmax_gather: Some(log_softmax_gather),
            bytes_per_row: Some(bytes_per_row),
            quantize: Some(quantize),
            dequantize: Some(dequantize),
        };
        Self { table, ops, life }
    }

    /// The table, as plugins get it.
    pub(crate) fn table(&self) -> *const forgelm_kernels {
        from_ref(self).cast()
    }
}

/// What stands behind a table.
///
/// # Safety
/// `table` is null or that of a [`Kernels`], which is there during `'a`.
unsafe fn behind<'a>(table: *const forgelm_kernels) -> Result<&'a Kernels, Refusal> {
    // SAFETY: the table is the first field.
    let kernels = unsafe { table.cast::<Kernels>().as_ref() };
    kernels.ok_or_else(|| Refusal::argument("`kernels` is NULL"))
}

/// The library behind a table, for work that is all ours: while the guard is there, the plugin waits
/// for us and does not hang.
///
/// # Safety
/// As for [`behind`].
unsafe fn at_work<'a>(
    table: *const forgelm_kernels,
) -> Result<(&'a dyn Ops, Serving<'a>), Refusal> {
    // SAFETY: the caller's promise.
    let kernels = unsafe { behind(table) }?;
    Ok((&*kernels.ops, kernels.life.serving()))
}

/// Work of a plugin, for any thread.
struct Work {
    run: unsafe extern "C" fn(*mut std::ffi::c_void, usize, usize) -> forgelm_status,
    ctx: *mut std::ffi::c_void,
}

// SAFETY: the header says that any thread may run it, several at once.
unsafe impl Sync for Work {}

impl Work {
    /// One range. What it does to the floating-point mode of a thread of ours ends with it.
    fn run(&self, first: usize, end: usize) -> forgelm_status {
        let _mode = KeepFloatMode::default_meanwhile();
        // SAFETY: the plugin's own function and context.
        unsafe { (self.run)(self.ctx, first, end) }
    }
}

unsafe extern "C" fn parallel_for(
    table: *const forgelm_kernels,
    n_items: usize,
    n_together: usize,
    work: *const forgelm_work,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: plugins hand back the table that they were given; so below.
        let ops = &unsafe { behind(table) }?.ops;
        // SAFETY: null, or the plugin's, borrowed for the call.
        let work = unsafe { work.as_ref() };
        let work = work.and_then(|work| Some(Work { run: work.run?, ctx: work.ctx }));
        let work = work.ok_or_else(|| Refusal::argument("`work` is NULL"))?;
        if n_together == 0 {
            return Err(Refusal::argument("`n_together` is 0"));
        }
        // Ranges before the first that failed run always, so that which one is the first does not
        // depend on threads.
        let (first_failed, how) = (AtomicUsize::new(usize::MAX), Mutex::new(status::OK));
        ops.parallel_for(n_items.div_ceil(n_together), &|range| {
            if range > first_failed.load(Ordering::Acquire) {
                return;
            }
            let first = range * n_together;
            let ended = work.run(first, first.saturating_add(n_together).min(n_items));
            if ended != status::OK {
                let mut how = how.lock().unwrap_or_else(PoisonError::into_inner);
                if first_failed.fetch_min(range, Ordering::AcqRel) > range {
                    *how = ended;
                }
            }
        });
        let status = how.into_inner().unwrap_or_else(PoisonError::into_inner);
        match first_failed.into_inner() {
            usize::MAX => Ok(()),
            range => {
                let first = range * n_together;
                let message = format!("the work failed from item {first} on: status {status}");
                Err(Refusal { status, message })
            }
        }
    })
}

unsafe extern "C" fn gemm(
    table: *const forgelm_kernels,
    product: *const forgelm_gemm,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        // SAFETY: null, or the plugin's, which begins with its size.
        let n_bytes = unsafe { product.cast::<u32>().as_ref() };
        let n_bytes = *n_bytes.ok_or_else(|| Refusal::argument("`product` is NULL"))?;
        let expected = size::<forgelm_gemm>();
        if n_bytes < expected {
            let what = format!("`product` has {n_bytes} bytes; expected at least {expected}");
            return Err(Refusal::argument(what));
        }
        // SAFETY: as large as it should be.
        let &forgelm_gemm { layout, m, n, k, alpha, write, a, b, c, .. } = unsafe { &*product };
        let unknown = |what: &str, number: u32| {
            Refusal::argument(format!("`{what}` is {number}, which means nothing"))
        };
        let layout = match layout {
            gemm_layout::NN => GemmLayout::Nn,
            gemm_layout::NT => GemmLayout::Nt,
            gemm_layout::TN => GemmLayout::Tn,
            other => return Err(unknown("layout", other)),
        };
        let write = match write {
            write::REPLACE => Write::Replace,
            write::ADD => Write::Add,
            other => return Err(unknown("write", other)),
        };
        let a = Array::new(a, area(m, k)?, "a")?;
        let b = Array::new(b, area(k, n)?, "b")?;
        let c = Array::new_mut(c, area(m, n)?, "c")?;
        c.apart_from(&a)?;
        c.apart_from(&b)?;
        // SAFETY: borrowed for the call; `c` is written by it alone.
        let (a, b, c) = unsafe { (a.read(), b.read(), c.write()) };
        ops.gemm(c.into(), a.into(), b.into(), layout, GemmDims { m, n, k }, alpha, write);
        Ok(())
    })
}

unsafe extern "C" fn axpy(
    table: *const forgelm_kernels,
    n: usize,
    a: f32,
    x: *const f32,
    y: *mut f32,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        let (x, y) = (Array::new(x, n, "x")?, Array::new_mut(y, n, "y")?);
        y.apart_from(&x)?;
        // SAFETY: borrowed for the call; `y` is written by it alone.
        let (x, y) = unsafe { (x.read(), y.write()) };
        compute::axpy(ops, y, a, x);
        Ok(())
    })
}

unsafe extern "C" fn dot(
    table: *const forgelm_kernels,
    n: usize,
    x: *const f32,
    y: *const f32,
    out: *mut f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        let (x, y) = (Array::new(x, n, "x")?, Array::new(y, n, "y")?);
        // SAFETY: borrowed for the call.
        let (x, y) = unsafe { (x.read(), y.read()) };
        // SAFETY: the plugin's place.
        unsafe { put(out, "out", compute::dot(ops, x, y)) }
    })
}

/// A function of one array.
///
/// # Safety
/// As the header says.
unsafe fn reduce<T>(
    (table, n, x): (*const forgelm_kernels, usize, *const f32),
    out: *mut T,
    err: *mut forgelm_plugin_error,
    of: impl FnOnce(&dyn Ops, &[f32]) -> T,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        // SAFETY: borrowed for the call.
        let x = unsafe { Array::new(x, n, "x")?.read() };
        // SAFETY: the plugin's place.
        unsafe { put(out, "out", of(ops, x)) }
    })
}

unsafe extern "C" fn sum(
    table: *const forgelm_kernels,
    n: usize,
    x: *const f32,
    out: *mut f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    // SAFETY: the arguments as they came.
    unsafe { reduce((table, n, x), out, err, compute::sum) }
}

unsafe extern "C" fn sum_of_squares(
    table: *const forgelm_kernels,
    n: usize,
    x: *const f32,
    out: *mut f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    // SAFETY: the arguments as they came.
    unsafe { reduce((table, n, x), out, err, |ops, x| compute::dot(ops, x, x)) }
}

unsafe extern "C" fn max_abs(
    table: *const forgelm_kernels,
    n: usize,
    x: *const f32,
    out: *mut f32,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    // SAFETY: the arguments as they came.
    unsafe { reduce((table, n, x), out, err, compute::max_abs) }
}

unsafe extern "C" fn top_k_threshold(
    table: *const forgelm_kernels,
    n: usize,
    x: *const f32,
    k: usize,
    threshold: *mut f32,
    n_above: *mut usize,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        let x = Array::new(x, n, "x")?;
        if k == 0 || k > n {
            return Err(Refusal::argument(format!("`k` is {k}; expected 1 to {n}")));
        }
        if n_above.is_null() {
            return Err(Refusal::argument("`n_above` is NULL"));
        }
        // SAFETY: borrowed for the call.
        let found = compute::top_k_threshold(ops, unsafe { x.read() }, k);
        // SAFETY: the plugin's place; so below.
        unsafe { put(threshold, "threshold", found.threshold) }?;
        // SAFETY: as above.
        unsafe { put(n_above, "n_above", found.n_above) }
    })
}

unsafe extern "C" fn rms_norm(
    table: *const forgelm_kernels,
    n_rows: usize,
    n_cols: usize,
    x: *const f32,
    weight: *const f32,
    eps: f32,
    y: *mut f32,
    inv_rms: *mut f32,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        if n_rows > 0 && n_cols == 0 {
            return Err(Refusal::argument("`n_cols` is 0"));
        }
        let n = area(n_rows, n_cols)?;
        let (x, weight) = (Array::new(x, n, "x")?, Array::new(weight, n_cols, "weight")?);
        let y = Array::new_mut(y, n, "y")?;
        y.apart_from(&x)?;
        y.apart_from(&weight)?;
        let mut own;
        let inv_rms = if inv_rms.is_null() {
            own = vec![0.0; n_rows];
            &mut own[..]
        } else {
            let inv_rms = Array::new_mut(inv_rms, n_rows, "inv_rms")?;
            inv_rms.apart_from(&x)?;
            inv_rms.apart_from(&weight)?;
            inv_rms.apart_from(&y)?;
            // SAFETY: borrowed for the call, and written by it alone.
            unsafe { inv_rms.write() }
        };
        if n_rows > 0 {
            // SAFETY: as above.
            let (x, weight, y) = unsafe { (x.read(), weight.read(), y.write()) };
            ops.rms_norm_forward(y.into(), inv_rms.into(), x.into(), weight.into(), eps);
        }
        Ok(())
    })
}

unsafe extern "C" fn log_softmax_gather(
    table: *const forgelm_kernels,
    n_rows: usize,
    n_vocab: usize,
    logits: *const f32,
    labels: *const u32,
    logp: *mut f32,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        let logits = Array::new(logits, area(n_rows, n_vocab)?, "logits")?;
        let labels = Array::new(labels, n_rows, "labels")?;
        let logp = Array::new_mut(logp, n_rows, "logp")?;
        logp.apart_from(&logits)?;
        logp.apart_from(&labels)?;
        // SAFETY: borrowed for the call; `logp` is written by it alone.
        let (logits, labels, logp) = unsafe { (logits.read(), labels.read(), logp.write()) };
        if let Some(row) = labels.iter().position(|&label| label as usize >= n_vocab) {
            let label = labels[row];
            let what = format!("`labels`, row {row}: {label} is not below {n_vocab}");
            return Err(Refusal::argument(what));
        }
        compute::log_softmax_gather(ops, logp, logits, labels);
        Ok(())
    })
}

/// A format by its name, and the bytes of its rows of this width.
///
/// # Safety
/// The text is readable for its length during the call.
unsafe fn format_of(name: forgelm_str, n_cols: usize) -> Result<(RowFormat, usize), Refusal> {
    // SAFETY: the caller's promise.
    let name = unsafe { lossy(name) };
    let unknown = || {
        let known: Vec<_> = RowFormat::ALL.iter().map(|format| format.name()).collect();
        Refusal::argument(format!("`format` is `{name}`; expected one of {}", known.join(", ")))
    };
    let format = RowFormat::from_name(&name).ok_or_else(unknown)?;
    let n_bytes = codecs::bytes_per_row(format, n_cols);
    Ok((format, n_bytes.map_err(|error| Refusal::argument(error.to_string()))?))
}

unsafe extern "C" fn bytes_per_row(
    table: *const forgelm_kernels,
    format: forgelm_str,
    n_cols: usize,
    out: *mut usize,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        unsafe { behind(table) }?;
        // SAFETY: borrowed for the call.
        let (_, n_bytes) = unsafe { format_of(format, n_cols) }?;
        // SAFETY: the plugin's place.
        unsafe { put(out, "out", n_bytes) }
    })
}

unsafe extern "C" fn quantize(
    table: *const forgelm_kernels,
    format: forgelm_str,
    n_rows: usize,
    n_cols: usize,
    rows: *const f32,
    bytes: *mut u8,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        // SAFETY: borrowed for the call.
        let (format, n_bytes) = unsafe { format_of(format, n_cols) }?;
        let rows = Array::new(rows, area(n_rows, n_cols)?, "rows")?;
        let bytes = Array::new_mut(bytes, area(n_rows, n_bytes)?, "bytes")?;
        bytes.apart_from(&rows)?;
        // SAFETY: borrowed for the call; `bytes` is written by it alone.
        let (rows, bytes) = unsafe { (rows.read(), bytes.write()) };
        let done = self::rows::quantize(ops, format, (rows, n_cols), (bytes, n_bytes));
        done.map_err(|error| Refusal::argument(error.to_string()))
    })
}

unsafe extern "C" fn dequantize(
    table: *const forgelm_kernels,
    format: forgelm_str,
    n_rows: usize,
    n_cols: usize,
    bytes: *const u8,
    rows: *mut f32,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `parallel_for`.
        let (ops, _working) = unsafe { at_work(table) }?;
        // SAFETY: borrowed for the call.
        let (format, n_bytes) = unsafe { format_of(format, n_cols) }?;
        let bytes = Array::new(bytes, area(n_rows, n_bytes)?, "bytes")?;
        let rows = Array::new_mut(rows, area(n_rows, n_cols)?, "rows")?;
        rows.apart_from(&bytes)?;
        // SAFETY: borrowed for the call; `rows` is written by it alone.
        let (bytes, rows) = unsafe { (bytes.read(), rows.write()) };
        let done = self::rows::dequantize(ops, format, (bytes, n_bytes), (rows, n_cols));
        done.map_err(|error| Refusal::argument(error.to_string()))
    })
}
