//! Tensors of a device as plugins get them, and the tables of what works on them.

use super::border::{
    Refusal, call, given, is_dense, lengths, object_of, read_tensor, shape_of, size, values,
    values_mut,
};
use crate::device::{DevicePart, Format};
use crate::merge_method::{DevicePiece, MergeMethod, Tensor};
use crate::quantizer::Quantizer;
use crate::{Failed, merge_method, quantizer};
use forgelm_abi::{
    DEVICE_CPU, MERGE_METHOD_ON_DEVICE, QUANTIZER_ON_DEVICE, dtype_code, forgelm_dtype,
    forgelm_merge_method, forgelm_merge_method_on_device, forgelm_merge_piece,
    forgelm_plugin_error, forgelm_quantizer, forgelm_quantizer_on_device, forgelm_status,
    forgelm_tensor,
};
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{from_ref, null};

/// Where a tensor of a device lies, when everything about it is as expected.
///
/// # Safety
/// The view is readable during the call.
unsafe fn part(
    tensor: *const forgelm_tensor,
    name: &str,
    format: Format,
    shape: &[usize],
) -> Result<DevicePart, Refusal> {
    let wrong = |what: &str| Err(Refusal::argument(format!("`{name}` {what}")));
    // SAFETY: the caller's promise.
    let (tensor, found) = unsafe { lengths(tensor, name) }?;
    let is_same = |(&found, &n): (&i64, &usize)| usize::try_from(found) == Ok(n);
    if found.len() != shape.len() || !found.iter().zip(shape).all(is_same) {
        return wrong(&format!("has the shape {found:?}; expected {shape:?}"));
    }
    if tensor.device.device_type == DEVICE_CPU {
        return wrong("is in the processor's memory; expected a tensor of the device");
    }
    let (code, bits) = match format {
        Format::F32 => (dtype_code::FLOAT, 32),
        Format::Bf16 => (dtype_code::BFLOAT, 16),
        Format::U8 => (dtype_code::UINT, 8),
        Format::U32 => (dtype_code::UINT, 32),
    };
    if tensor.dtype != (forgelm_dtype { code, bits, lanes: 1 }) {
        return wrong(&format!("is not {format:?}"));
    }
    if !tensor.strides.is_null() {
        // SAFETY: a view with strides has one for each axis.
        let strides = unsafe { values(tensor.strides, shape.len(), name) }?;
        if !is_dense(strides, shape) {
            return wrong("has gaps");
        }
    }
    let address = (tensor.data as u64).wrapping_add(tensor.byte_offset);
    let len = shape.iter().product();
    Ok(DevicePart { device: tensor.device.device_id, address, len, format })
}

/// Whether an id that the host asks for is this one.
///
/// # Safety
/// The id is null or a text that ends with NUL.
unsafe fn is(id: *const c_char, known: &CStr) -> bool {
    // SAFETY: not null; the caller's promise.
    !id.is_null() && unsafe { CStr::from_ptr(id) } == known
}

static MERGES: forgelm_merge_method_on_device = forgelm_merge_method_on_device {
    struct_size: size::<forgelm_merge_method_on_device>(),
    reserved: 0,
    measure: None,
    merge: Some(merge),
};

static MERGES_AND_MEASURES: forgelm_merge_method_on_device = forgelm_merge_method_on_device {
    struct_size: size::<forgelm_merge_method_on_device>(),
    reserved: 0,
    measure: Some(measure),
    merge: Some(merge),
};

static QUANTIZES: forgelm_quantizer_on_device = forgelm_quantizer_on_device {
    struct_size: size::<forgelm_quantizer_on_device>(),
    reserved: 0,
    quantize: Some(quantize),
    dequantize: Some(dequantize),
};

/// `get_extension` of merge methods.
///
/// # Safety
/// As the header says.
pub(super) unsafe extern "C" fn extension_of_merge_method(
    table: *const forgelm_merge_method,
    id: *const c_char,
) -> *const c_void {
    // SAFETY: the host's text.
    if !unsafe { is(id, MERGE_METHOD_ON_DEVICE) } {
        return null();
    }
    // SAFETY: the host hands back the table that it was given.
    let method = unsafe { object_of::<forgelm_merge_method, dyn MergeMethod>(table) };
    // Nothing may unwind into the host.
    let found = catch_unwind(AssertUnwindSafe(|| method?.on_device().map(|on| on.measures())));
    let table = match found {
        Ok(Some(true)) => &MERGES_AND_MEASURES,
        Ok(Some(false)) => &MERGES,
        Ok(None) | Err(_) => return null(),
    };
    from_ref(table).cast()
}

/// `get_extension` of quantizers.
///
/// # Safety
/// As the header says.
pub(super) unsafe extern "C" fn extension_of_quantizer(
    table: *const forgelm_quantizer,
    id: *const c_char,
) -> *const c_void {
    // SAFETY: the host's text.
    if !unsafe { is(id, QUANTIZER_ON_DEVICE) } {
        return null();
    }
    // SAFETY: the host hands back the table that it was given.
    let quantizer = unsafe { object_of::<forgelm_quantizer, dyn Quantizer>(table) };
    // Nothing may unwind into the host.
    let found =
        catch_unwind(AssertUnwindSafe(|| quantizer.is_some_and(|q| q.on_device().is_some())));
    if found.unwrap_or(false) { from_ref(&QUANTIZES).cast() } else { null() }
}

fn absent() -> Failed {
    Failed::argument("this instance does not work on a device")
}

/// A piece on a device with its list of inputs.
struct ReadPiece<'a> {
    tensor: Tensor<'a>,
    start: usize,
    len: usize,
    base: Option<DevicePart>,
    inputs: Vec<DevicePart>,
}

impl ReadPiece<'_> {
    /// # Safety
    /// Everything that it points to is borrowed for the call.
    unsafe fn new(piece: *const forgelm_merge_piece) -> Result<Self, Refusal> {
        // SAFETY: the caller's promise; so below.
        let piece = unsafe { given(piece, "piece") }?;
        // SAFETY: as above.
        let tensor = unsafe { read_tensor(piece.tensor) }?;
        // SAFETY: as above.
        let inputs = unsafe { values(piece.inputs, piece.n_inputs, "inputs") }?;
        let first = inputs.first().map_or_else(null, from_ref);
        // SAFETY: as above.
        let len = unsafe { shape_of(first, "inputs") }?.iter().product();
        // SAFETY: as above.
        let of = |tensor: *const _, name| unsafe { part(tensor, name, Format::F32, &[len]) };
        Ok(Self {
            tensor,
            start: piece.start,
            len,
            base: if piece.base.is_null() { None } else { Some(of(piece.base, "base")?) },
            inputs: inputs.iter().map(|input| of(input, "inputs")).collect::<Result<_, _>>()?,
        })
    }

    fn piece(&self) -> DevicePiece<'_> {
        let Self { tensor, start, base, inputs, .. } = self;
        DevicePiece { tensor: *tensor, start: *start, base: *base, inputs }
    }
}

unsafe extern "C" fn measure(
    table: *const forgelm_merge_method,
    pass: usize,
    piece: *const forgelm_merge_piece,
    sums: *mut f64,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |method: &(dyn MergeMethod + 'static)| {
        let on: &dyn merge_method::MergeOnDevice = method.on_device().ok_or_else(absent)?;
        let of_pass = method.passes().get(pass);
        let n_sums = of_pass.ok_or_else(|| Refusal::argument("no pass of that number"))?.n_sums;
        // SAFETY: everything is borrowed for the call.
        let read = unsafe { ReadPiece::new(piece) }?;
        // SAFETY: written by this call alone.
        let sums = unsafe { values_mut(sums, n_sums, "sums") }?;
        Ok(on.measure(pass, &read.piece(), sums)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_merge_method, dyn MergeMethod>(table, err, body) }
}

unsafe extern "C" fn merge(
    table: *const forgelm_merge_method,
    piece: *const forgelm_merge_piece,
    out: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |method: &(dyn MergeMethod + 'static)| {
        let on = method.on_device().ok_or_else(absent)?;
        // SAFETY: everything is borrowed for the call.
        let read = unsafe { ReadPiece::new(piece) }?;
        // SAFETY: as above.
        let out = unsafe { part(out, "out", Format::F32, &[read.len]) }?;
        Ok(on.merge(&read.piece(), out)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_merge_method, dyn MergeMethod>(table, err, body) }
}

/// Rows and their bytes, and how wide rows are.
///
/// # Safety
/// The views are readable during the call.
unsafe fn rows_and_bytes(
    quantizer: &dyn Quantizer,
    rows: *const forgelm_tensor,
    bytes: *const forgelm_tensor,
) -> Result<(DevicePart, usize, DevicePart), Refusal> {
    // SAFETY: the caller's promise; so below.
    let shape = unsafe { shape_of(rows, "rows") }?;
    let wrong = |found: Vec<usize>| Refusal::argument(format!("`rows` has the shape {found:?}"));
    let [n_rows, n_cols] = <[usize; 2]>::try_from(shape).map_err(wrong)?;
    let n_bytes = quantizer.bytes_per_row(n_cols)?;
    // SAFETY: as above.
    let rows = unsafe { part(rows, "rows", Format::F32, &[n_rows, n_cols]) }?;
    // SAFETY: as above.
    let bytes = unsafe { part(bytes, "bytes", Format::U8, &[n_rows, n_bytes]) }?;
    Ok((rows, n_cols, bytes))
}

unsafe extern "C" fn quantize(
    table: *const forgelm_quantizer,
    rows: *const forgelm_tensor,
    bytes: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |quantizer: &(dyn Quantizer + 'static)| {
        let on: &dyn quantizer::QuantizeOnDevice = quantizer.on_device().ok_or_else(absent)?;
        // SAFETY: views that are borrowed for the call.
        let (rows, n_cols, bytes) = unsafe { rows_and_bytes(quantizer, rows, bytes) }?;
        Ok(on.quantize(rows, n_cols, bytes)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_quantizer, dyn Quantizer>(table, err, body) }
}

unsafe extern "C" fn dequantize(
    table: *const forgelm_quantizer,
    bytes: *const forgelm_tensor,
    rows: *const forgelm_tensor,
    err: *mut forgelm_plugin_error,
) -> forgelm_status {
    let body = |quantizer: &(dyn Quantizer + 'static)| {
        let on = quantizer.on_device().ok_or_else(absent)?;
        // SAFETY: views that are borrowed for the call.
        let (rows, n_cols, bytes) = unsafe { rows_and_bytes(quantizer, rows, bytes) }?;
        Ok(on.dequantize(bytes, n_cols, rows)?)
    };
    // SAFETY: the host hands back the table that it was given.
    unsafe { call::<forgelm_quantizer, dyn Quantizer>(table, err, body) }
}
