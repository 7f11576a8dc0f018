//! The host's end of `forgelm.device_kernels/1`: tensors that plugins name are read here, and checked
//! by the library of the device.

mod tensor;
#[cfg(test)]
mod tests;

use crate::border::{lossy, size};
use crate::service::{Array, Refusal, put, serve};
use crate::watch::{Life, Serving};
use ::forgelm_tensor::FourBit;
use forgelm_abi::{
    DEVICE_CUDA, dtype_code, election, forgelm_device, forgelm_device_kernels,
    forgelm_device_models, forgelm_drop_mask, forgelm_dtype, forgelm_managed_tensor,
    forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_tensor, status,
};
use forgelm_kernels_api::{
    DeviceModels, DevicePart, DeviceRefusal, DropMask, Election, Format, Host, HostMut,
    MagnitudeBits, OnDevice, Ops,
};
use std::ffi::c_void;
use std::fmt;
use std::ptr::{from_ref, null_mut};
use std::sync::Arc;
use tensor::{Lent, part, parts};

/// The table with the library behind it: the table first, so that a pointer to one is one to the
/// other.
#[repr(C)]
pub(crate) struct DeviceKernels {
    table: forgelm_device_kernels,
    ops: Arc<dyn Ops>,
    /// Of the library that has this table.
    life: Arc<Life>,
}

// SAFETY: the table's only pointers are null and the driver's handle of a stream, which any thread may
// use; so may any thread use a kernel library.
unsafe impl Send for DeviceKernels {}
// SAFETY: as above.
unsafe impl Sync for DeviceKernels {}

impl fmt::Debug for DeviceKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceKernels").field("ops", &self.ops.name()).finish_non_exhaustive()
    }
}

impl DeviceKernels {
    /// `None` for a library of the processor.
    pub(crate) fn new(ops: Arc<dyn Ops>, life: Arc<Life>) -> Option<Self> {
        let on_device = ops.on_device()?;
        let table = forgelm_device_kernels {
            struct_size: size::<forgelm_device_kernels>(),
            reserved: 0,
            service_data: null_mut(),
            device: forgelm_device { device_type: DEVICE_CUDA, device_id: on_device.ordinal() },
            stream: on_device.stream() as *mut c_void,
            allocate: Some(allocate),
            upload: Some(upload),
            download: Some(download),
            synchronize: Some(synchronize),
            merge_linear: Some(merge_linear),
            merge_slerp: Some(merge_slerp),
            ties_count: Some(ties_count),
            merge_ties: Some(merge_ties),
            merge_dare: Some(merge_dare),
            quantize: Some(quantize),
            dequantize: Some(dequantize),
        };
        Some(Self { table, ops, life })
    }

    /// The table, as plugins get it.
    pub(crate) fn table(&self) -> *const forgelm_device_kernels {
        from_ref(self).cast()
    }
}

impl From<DeviceRefusal> for Refusal {
    fn from(refusal: DeviceRefusal) -> Self {
        let (status, message) = match refusal {
            DeviceRefusal::Argument(message) => (status::INVALID_ARGUMENT, message),
            DeviceRefusal::OutOfMemory(message) => (status::OUT_OF_MEMORY, message),
            DeviceRefusal::Failed(message) => (status::INTERNAL, message),
        };
        Self { status, message }
    }
}

/// What stands behind a table, for work that is all ours: while the guard is there, the plugin waits
/// for us and does not hang.
struct Device<'a> {
    ops: &'a Arc<dyn Ops>,
    on: &'a dyn OnDevice,
    _working: Serving<'a>,
}

/// # Safety
/// `table` is null or that of a [`DeviceKernels`], which is there during `'a`.
unsafe fn at_work<'a>(table: *const forgelm_device_kernels) -> Result<Device<'a>, Refusal> {
    // SAFETY: the table is the first field.
    let kernels = unsafe { table.cast::<DeviceKernels>().as_ref() };
    let kernels = kernels.ok_or_else(|| Refusal::argument("`kernels` is NULL"))?;
    let on = kernels.ops.on_device();
    let on = on.ok_or_else(|| Refusal::argument("`kernels` are those of no device"))?;
    Ok(Device { ops: &kernels.ops, on, _working: kernels.life.serving() })
}

unsafe extern "C" fn allocate(
    table: *const forgelm_device_kernels,
    dtype: forgelm_dtype,
    ndim: i32,
    shape: *const i64,
    out: *mut *mut forgelm_managed_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: plugins hand back the table that they were given; so below.
        let device = unsafe { at_work(table) }?;
        let n_axes = usize::try_from(ndim).unwrap_or(usize::MAX);
        if n_axes > tensor::AXES_MAX {
            return Err(Refusal::argument(format!("`ndim` is {ndim}; expected 0 to 8")));
        }
        // SAFETY: borrowed for the call.
        let shape = unsafe { Array::new(shape, n_axes, "shape")?.read() };
        if out.is_null() {
            return Err(Refusal::argument("`out` is NULL"));
        }
        let lent = Lent::hand_out(device.ops, device.on, dtype, shape)?;
        // SAFETY: the plugin's place.
        unsafe { put(out, "out", lent) }
    })
}

/// Numbers of the host for a tensor of as many bytes.
fn host_numbers(part: DevicePart, n_bytes: usize) -> Result<usize, Refusal> {
    match part.n_bytes() {
        Some(expected) if expected == n_bytes => Ok(part.len),
        expected => Err(Refusal::argument(format!(
            "`n_bytes` is {n_bytes}; expected {}, the tensor's",
            expected.unwrap_or(usize::MAX)
        ))),
    }
}

unsafe extern "C" fn upload(
    table: *const forgelm_device_kernels,
    to: *const forgelm_tensor,
    from: *const c_void,
    n_bytes: usize,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: borrowed for the call.
        let to = unsafe { part(to, "to") }?.whole();
        let len = host_numbers(to, n_bytes)?;
        let from = match to.format {
            // SAFETY: borrowed for the call; so below.
            Format::F32 => Host::F32(unsafe { Array::new(from.cast(), len, "from")?.read() }),
            // SAFETY: as above.
            _ => Host::U8(unsafe { Array::new(from.cast(), len, "from")?.read() }),
        };
        Ok(device.on.upload(to, from)?)
    })
}

unsafe extern "C" fn download(
    table: *const forgelm_device_kernels,
    to: *mut c_void,
    from: *const forgelm_tensor,
    n_bytes: usize,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: borrowed for the call.
        let from = unsafe { part(from, "from") }?.whole();
        let len = host_numbers(from, n_bytes)?;
        let to = match from.format {
            // SAFETY: borrowed for the call, and written by it alone; so below.
            Format::F32 => HostMut::F32(unsafe { Array::new_mut(to.cast(), len, "to")?.write() }),
            // SAFETY: as above.
            _ => HostMut::U8(unsafe { Array::new_mut(to.cast(), len, "to")?.write() }),
        };
        Ok(device.on.download(from, to)?)
    })
}

unsafe extern "C" fn synchronize(
    table: *const forgelm_device_kernels,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    // SAFETY: as for `allocate`.
    serve(err, || Ok(unsafe { at_work(table) }?.on.synchronize()?))
}

/// The models of a call.
struct Models {
    inputs: Vec<DevicePart>,
    base: Option<DevicePart>,
}

impl Models {
    /// # Safety
    /// Null, or borrowed for the call with all that it points to.
    unsafe fn read(models: *const forgelm_device_models) -> Result<Self, Refusal> {
        // SAFETY: the caller's promise; so below.
        let models = unsafe { models.as_ref() };
        let models = models.ok_or_else(|| Refusal::argument("`models` is NULL"))?;
        // SAFETY: as above.
        let inputs = unsafe { parts(models.inputs, models.n_inputs, "inputs") }?;
        if inputs.is_empty() {
            return Err(Refusal::argument("`models` are none"));
        }
        // SAFETY: as above.
        let base = || unsafe { part(models.base, "base") }.map(|base| base.whole());
        let base = if models.base.is_null() { None } else { Some(base()?) };
        Ok(Self { inputs, base })
    }

    fn all(&self) -> DeviceModels<'_> {
        DeviceModels { inputs: &self.inputs, base: self.base }
    }

    /// An array with a number for each model.
    ///
    /// # Safety
    /// Null, or borrowed for the call.
    unsafe fn each<'a, T>(&self, array: *const T, name: &'static str) -> Result<&'a [T], Refusal> {
        // SAFETY: the caller's promise.
        Ok(unsafe { Array::new(array, self.inputs.len(), name)?.read() })
    }
}

unsafe extern "C" fn merge_linear(
    table: *const forgelm_device_kernels,
    out: *const forgelm_tensor,
    models: *const forgelm_device_models,
    shares: *const f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: everything is borrowed for the call; so below.
        let (out, models) = unsafe { (part(out, "out")?.whole(), Models::read(models)?) };
        // SAFETY: as above.
        let shares = unsafe { models.each(shares, "shares") }?;
        Ok(device.on.merge_linear(out, &models.inputs, shares)?)
    })
}

unsafe extern "C" fn merge_slerp(
    table: *const forgelm_device_kernels,
    out: *const forgelm_tensor,
    models: *const forgelm_device_models,
    coefficients: *const f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: everything is borrowed for the call; so below.
        let (out, models) = unsafe { (part(out, "out")?.whole(), Models::read(models)?) };
        // SAFETY: as above.
        let both: &[f64] = unsafe { Array::new(coefficients, 2, "coefficients")?.read() };
        Ok(device.on.merge_slerp(out, models.all(), [both[0], both[1]])?)
    })
}

unsafe extern "C" fn ties_count(
    table: *const forgelm_device_kernels,
    models: *const forgelm_device_models,
    prefixes: *const u32,
    shift: u32,
    bits: u32,
    counts: *mut u64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: everything is borrowed for the call; so below.
        let models = unsafe { Models::read(models) }?;
        let has_prefixes = !prefixes.is_null();
        // SAFETY: as above.
        let prefixes = has_prefixes.then(|| unsafe { models.each(prefixes, "prefixes") });
        let bits_of = MagnitudeBits { shift: shift.min(31), bits: bits.min(31) };
        let found = device.on.ties_count(models.all(), prefixes.transpose()?, bits_of)?;
        // SAFETY: as above, and written by this call alone.
        unsafe { Array::new_mut(counts, found.len(), "counts")?.write() }.copy_from_slice(&found);
        Ok(())
    })
}

unsafe extern "C" fn merge_ties(
    table: *const forgelm_device_kernels,
    out: *const forgelm_tensor,
    models: *const forgelm_device_models,
    thresholds: *const u32,
    shares: *const f64,
    election: u32,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        let election = match election {
            election::VOTES => Election::Votes,
            election::SUM => Election::Sum,
            other => {
                let what = format!("`election` is {other}, which means nothing");
                return Err(Refusal::argument(what));
            }
        };
        // SAFETY: everything is borrowed for the call; so below.
        let (out, models) = unsafe { (part(out, "out")?.whole(), Models::read(models)?) };
        // SAFETY: as above.
        let thresholds = unsafe { models.each(thresholds, "thresholds") }?;
        // SAFETY: as above.
        let shares = unsafe { models.each(shares, "shares") }?;
        Ok(device.on.merge_ties(out, models.all(), (thresholds, shares), election)?)
    })
}

unsafe extern "C" fn merge_dare(
    table: *const forgelm_device_kernels,
    out: *const forgelm_tensor,
    models: *const forgelm_device_models,
    factors: *const f64,
    mask: *const forgelm_drop_mask,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: null, or the plugin's, borrowed for the call.
        let mask = unsafe { mask.as_ref() };
        let mask = mask.ok_or_else(|| Refusal::argument("`mask` is NULL"))?;
        let mask = DropMask {
            key: [mask.key_low, mask.key_high],
            kept_below: mask.kept_below,
            start: usize::try_from(mask.start).unwrap_or(usize::MAX),
        };
        // SAFETY: everything is borrowed for the call; so below.
        let (out, models) = unsafe { (part(out, "out")?.whole(), Models::read(models)?) };
        // SAFETY: as above.
        let factors = unsafe { models.each(factors, "factors") }?;
        Ok(device.on.merge_dare(out, models.all(), factors, mask)?)
    })
}

/// A format of rows that the device has.
enum RowFormat {
    FourBit(&'static [f32; 16]),
    Int8,
}

/// # Safety
/// The text is readable for its length during the call.
unsafe fn format_of(name: forgelm_str) -> Result<RowFormat, Refusal> {
    // SAFETY: the caller's promise.
    match &*unsafe { lossy(name) } {
        "nf4" => Ok(RowFormat::FourBit(FourBit::Nf4.values())),
        "fp4" => Ok(RowFormat::FourBit(FourBit::Fp4.values())),
        "int8" => Ok(RowFormat::Int8),
        other => Err(Refusal {
            status: status::UNIMPLEMENTED,
            message: format!("`format` is `{other}`; the device has nf4, fp4 and int8"),
        }),
    }
}

/// Rows and bytes of as many rows, and the width of rows.
///
/// # Safety
/// Both are borrowed for the call.
unsafe fn rows_and_bytes(
    rows: *const forgelm_tensor,
    bytes: *const forgelm_tensor,
) -> Result<(DevicePart, usize, DevicePart), Refusal> {
    // SAFETY: the caller's promise.
    let (rows, bytes) = unsafe { (part(rows, "rows")?, part(bytes, "bytes")?) };
    match (&rows.shape[..], &bytes.shape[..]) {
        (&[n, n_cols], &[also_n, _]) if n == also_n => Ok((rows.whole(), n_cols, bytes.whole())),
        (rows, bytes) => Err(Refusal::argument(format!(
            "`rows` has the shape {rows:?} and `bytes` {bytes:?}; expected as many rows"
        ))),
    }
}

unsafe extern "C" fn quantize(
    table: *const forgelm_device_kernels,
    format: forgelm_str,
    rows: *const forgelm_tensor,
    bytes: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: everything is borrowed for the call; so below.
        let format = unsafe { format_of(format) }?;
        // SAFETY: as above.
        let (rows, n_cols, bytes) = unsafe { rows_and_bytes(rows, bytes) }?;
        match format {
            RowFormat::FourBit(values) => {
                device.on.quantize_four_bit(bytes, rows, n_cols, values)?;
            }
            RowFormat::Int8 => device.on.quantize_int8(bytes, rows, n_cols)?,
        }
        Ok(())
    })
}

unsafe extern "C" fn dequantize(
    table: *const forgelm_device_kernels,
    format: forgelm_str,
    bytes: *const forgelm_tensor,
    rows: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    serve(err, || {
        // SAFETY: as for `allocate`.
        let device = unsafe { at_work(table) }?;
        // SAFETY: everything is borrowed for the call; so below.
        let format = unsafe { format_of(format) }?;
        // SAFETY: as above.
        let (rows, n_cols, bytes) = unsafe { rows_and_bytes(rows, bytes) }?;
        match format {
            RowFormat::FourBit(values) => {
                device.on.dequantize_four_bit(rows, bytes, n_cols, values)?;
            }
            RowFormat::Int8 => device.on.dequantize_int8(rows, bytes, n_cols)?,
        }
        Ok(())
    })
}

/// How a format is called in DLPack; `None` for one that plugins are not given.
fn format_of_dtype(dtype: forgelm_dtype) -> Option<Format> {
    match dtype {
        forgelm_dtype { code: dtype_code::FLOAT, bits: 32, lanes: 1 } => Some(Format::F32),
        forgelm_dtype { code: dtype_code::UINT, bits: 8, lanes: 1 } => Some(Format::U8),
        _ => None,
    }
}
