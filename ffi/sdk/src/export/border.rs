//! What every kind does at the border: statuses, poison, texts, views of tensors.

use crate::merge_method::Tensor;
use crate::options::{self, OptionValue, OptionsError};
use crate::{Cause, Failed};
use forgelm_abi::{
    DEVICE_CPU, dtype_code, forgelm_dtype, forgelm_merge_tensor, forgelm_plugin_error,
    forgelm_status, forgelm_str, forgelm_tensor, status,
};
use std::any::Any;
use std::ffi::{CString, c_char};
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a call is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: forgelm_status,
    message: String,
}

impl Refusal {
    /// An argument of the host's cannot be used: a bug on its side.
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self { status: status::INVALID_ARGUMENT, message: message.into() }
    }
}

impl From<OptionsError> for Refusal {
    fn from(error: OptionsError) -> Self {
        Self::argument(error.to_string())
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        let status = match failed.cause {
            Cause::Work => status::INTERNAL,
            Cause::Argument => status::INVALID_ARGUMENT,
            Cause::Cancelled => status::CANCELLED,
            Cause::Deadline => status::DEADLINE,
        };
        Self { status, message: failed.message }
    }
}

/// Bytes of a table, as its first field says them.
#[expect(clippy::cast_possible_truncation, reason = "a table has some hundreds of bytes")]
pub(crate) const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// Runs a body; what it refuses and what it panics with becomes a status and a message.
pub(crate) fn guard(
    err: *mut forgelm_plugin_error,
    body: impl FnOnce() -> Result<(), Refusal>,
) -> forgelm_status {
    let refusal = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return status::OK,
        Ok(Err(refusal)) => refusal,
        Err(payload) => Refusal { status: status::PANIC, message: panic_text(&*payload) },
    };
    // SAFETY: the header promises NULL or a record with `struct_size` filled in.
    unsafe { fill(err, &refusal) };
    refusal.status
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Writes a message into the caller's record, as much of it as fits.
///
/// # Safety
/// `err` is null, or a record of `struct_size` bytes.
unsafe fn fill(err: *mut forgelm_plugin_error, refusal: &Refusal) {
    if err.is_null() {
        return;
    }
    let start = offset_of!(forgelm_plugin_error, message);
    // SAFETY: not null; a record has this field in every version.
    let n_bytes = unsafe { (*err).struct_size } as usize;
    let room = n_bytes.min(size_of::<forgelm_plugin_error>()).saturating_sub(start);
    let mut len = refusal.message.len().min(room);
    while !refusal.message.is_char_boundary(len) {
        len -= 1;
    }
    // SAFETY: the record has the fields before the message, and `room` bytes of message.
    unsafe {
        (*err).code = refusal.status;
        (*err).message_len = u32::try_from(len).unwrap_or(0);
        let to = (&raw mut (*err).message).cast::<u8>();
        to.copy_from_nonoverlapping(refusal.message.as_ptr(), len);
    }
}

/// An instance as it is handed out: the table first, so that a pointer to one is one to the other.
#[repr(C)]
struct Instance<Table, Object: ?Sized> {
    table: Table,
    object: Box<Object>,
    is_poisoned: AtomicBool,
}

/// Gives an instance to the host.
///
/// # Safety
/// `out` is null or can be written.
pub(crate) unsafe fn hand_out<Table, Object: ?Sized>(
    out: *mut *const Table,
    table: Table,
    object: Box<Object>,
) -> Result<(), Refusal> {
    if out.is_null() {
        return Err(Refusal::argument("`out` is NULL"));
    }
    let instance = Instance { table, object, is_poisoned: AtomicBool::new(false) };
    let instance = Box::into_raw(Box::new(instance)).cast_const().cast();
    // SAFETY: not null, and the caller promises that it can be written.
    unsafe { out.write(instance) };
    Ok(())
}

/// Ends an instance; a panic of its destructor stays here.
///
/// # Safety
/// The table is one of [`hand_out`], of the same types, and is not used again.
pub(crate) unsafe extern "C" fn destroy<Table, Object: ?Sized>(table: *const Table) {
    if table.is_null() {
        return;
    }
    let instance = table.cast_mut().cast::<Instance<Table, Object>>();
    // SAFETY: made by `hand_out` from a box of this type.
    let instance = unsafe { Box::from_raw(instance) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(instance)));
}

/// What stands behind an instance's table.
///
/// # Safety
/// The table is null or one of [`hand_out`], of the same types, which is there during `'a`.
pub(crate) unsafe fn object_of<'a, Table: 'a, Object: ?Sized + 'a>(
    table: *const Table,
) -> Option<&'a Object> {
    let instance = table.cast::<Instance<Table, Object>>();
    // SAFETY: the caller's promise.
    unsafe { instance.as_ref() }.map(|instance| &*instance.object)
}

/// Calls an instance, which refuses all calls after one that panicked.
///
/// # Safety
/// The table is null or one of [`hand_out`], of the same types.
pub(crate) unsafe fn call<Table, Object: ?Sized>(
    table: *const Table,
    err: *mut forgelm_plugin_error,
    body: impl FnOnce(&Object) -> Result<(), Refusal>,
) -> forgelm_status {
    let instance = table.cast::<Instance<Table, Object>>();
    // SAFETY: the caller's promise.
    let Some(instance) = (unsafe { instance.as_ref() }) else {
        return guard(err, || Err(Refusal::argument("the instance is NULL")));
    };
    if instance.is_poisoned.load(Ordering::Acquire) {
        let message = "the instance panicked before and may only be destroyed".to_owned();
        return guard(err, || Err(Refusal { status: status::PANIC, message }));
    }
    let ended = guard(err, || body(&*instance.object));
    if ended == status::PANIC {
        instance.is_poisoned.store(true, Ordering::Release);
    }
    ended
}

/// Borrows what a pointer of the host's points to.
///
/// # Safety
/// The pointer is null or good for the call.
pub(crate) unsafe fn given<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Refusal> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| Refusal::argument(format!("`{name}` is NULL")))
}

/// `n` values of the host's.
///
/// # Safety
/// The pointer is null or has that many values, for the call.
pub(crate) unsafe fn values<'a, T>(
    pointer: *const T,
    n: usize,
    name: &str,
) -> Result<&'a [T], Refusal> {
    match (n, pointer.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(Refusal::argument(format!("`{name}` is NULL"))),
        // SAFETY: not null; the caller's promise.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts(pointer, n) }),
    }
}

/// `n` values of the host's that are written.
///
/// # Safety
/// The pointer is null or has that many values, which nothing else uses during the call.
pub(crate) unsafe fn values_mut<'a, T>(
    pointer: *mut T,
    n: usize,
    name: &str,
) -> Result<&'a mut [T], Refusal> {
    match (n, pointer.is_null()) {
        (0, _) => Ok(&mut []),
        (_, true) => Err(Refusal::argument(format!("`{name}` is NULL"))),
        // SAFETY: not null; the caller's promise.
        (_, false) => Ok(unsafe { std::slice::from_raw_parts_mut(pointer, n) }),
    }
}

/// A text of the host's.
///
/// # Safety
/// The text is readable for its length during the call.
pub(crate) unsafe fn text<'a>(given: forgelm_str, name: &str) -> Result<&'a str, Refusal> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { values(given.ptr.cast::<u8>(), given.len, name) }?;
    std::str::from_utf8(bytes).map_err(|_| Refusal::argument(format!("`{name}` is not UTF-8")))
}

/// The tensor that is being merged.
///
/// # Safety
/// Everything that it points to is borrowed for the call.
pub(crate) unsafe fn read_tensor<'a>(
    tensor: *const forgelm_merge_tensor,
) -> Result<Tensor<'a>, Refusal> {
    // SAFETY: the caller's promise.
    let tensor = unsafe { given(tensor, "tensor") }?;
    Ok(Tensor {
        // SAFETY: the caller's promise.
        name: unsafe { text(tensor.name, "name") }?,
        len: tensor.len,
        // SAFETY: the caller's promise.
        facts: unsafe { values(tensor.facts, tensor.n_facts, "facts") }?,
    })
}

/// The options of a call.
///
/// # Safety
/// The text is readable for its length during the call.
pub(crate) unsafe fn read_options(
    json: forgelm_str,
) -> Result<Vec<(String, OptionValue)>, Refusal> {
    // SAFETY: the caller's promise.
    let json = unsafe { text(json, "options_json") }?;
    Ok(options::from_json(json)?)
}

/// Options as descriptors take them.
pub(crate) fn borrowed(options: &[(String, OptionValue)]) -> Vec<(&str, OptionValue)> {
    options.iter().map(|(key, value)| (key.as_str(), value.clone())).collect()
}

/// A type of numbers in tensors.
pub(crate) trait Element: Sized {
    const CODE: u8;
    const NAME: &'static str;
    #[expect(clippy::cast_possible_truncation, reason = "at most 32 bits")]
    const DTYPE: forgelm_dtype =
        forgelm_dtype { code: Self::CODE, bits: 8 * size_of::<Self>() as u8, lanes: 1 };
}

impl Element for f32 {
    const CODE: u8 = dtype_code::FLOAT;
    const NAME: &'static str = "float32";
}

impl Element for u32 {
    const CODE: u8 = dtype_code::UINT;
    const NAME: &'static str = "uint32";
}

impl Element for u8 {
    const CODE: u8 = dtype_code::UINT;
    const NAME: &'static str = "uint8";
}

/// The numbers of a tensor of this shape.
///
/// # Safety
/// The view and its numbers are readable during the call.
#[inline]
pub(crate) unsafe fn view<'a, T: Element>(
    tensor: *const forgelm_tensor,
    name: &str,
    shape: &[usize],
) -> Result<&'a [T], Refusal> {
    if let &[n] = shape {
        // SAFETY: the caller's promise.
        if let Some(start) = unsafe { line::<T>(tensor, n) } {
            // SAFETY: n numbers, as checked, readable during the call.
            return Ok(unsafe { std::slice::from_raw_parts(start, n) });
        }
    }
    // SAFETY: the caller's promise.
    let (start, n) = unsafe { first::<T>(tensor, name, shape) }?;
    // SAFETY: as many numbers as the shape says, as checked, readable during the call.
    unsafe { values(start, n, name) }
}

/// The numbers of a tensor of this shape, to be written.
///
/// # Safety
/// The view and its numbers can be used during the call, and nothing else uses them.
#[inline]
pub(crate) unsafe fn view_mut<'a, T: Element>(
    tensor: *const forgelm_tensor,
    name: &str,
    shape: &[usize],
) -> Result<&'a mut [T], Refusal> {
    if let &[n] = shape {
        // SAFETY: the caller's promise.
        if let Some(start) = unsafe { line::<T>(tensor, n) } {
            // SAFETY: n numbers, as checked, ours during the call.
            return Ok(unsafe { std::slice::from_raw_parts_mut(start, n) });
        }
    }
    // SAFETY: the caller's promise.
    let (start, n) = unsafe { first::<T>(tensor, name, shape) }?;
    // SAFETY: as many numbers as the shape says, as checked, ours during the call.
    unsafe { values_mut(start, n, name) }
}

/// The first of n numbers in a row, if everything about the tensor is as expected; what is not is
/// found out the long way. In every step several tensors go this way.
///
/// # Safety
/// The view is readable during the call.
#[inline]
unsafe fn line<T: Element>(tensor: *const forgelm_tensor, n: usize) -> Option<*mut T> {
    // SAFETY: the caller's promise.
    let tensor = unsafe { tensor.as_ref() }?;
    if tensor.ndim != 1 || tensor.dtype != T::DTYPE || tensor.device.device_type != DEVICE_CPU {
        return None;
    }
    // SAFETY: null, or the length of the one axis; and its step.
    let (length, step) = unsafe { (tensor.shape.as_ref()?, tensor.strides.as_ref()?) };
    let start = tensor.data.cast::<T>();
    let is_good = usize::try_from(*length) == Ok(n)
        && *step == 1
        && tensor.byte_offset == 0
        && !start.is_null()
        && start.is_aligned();
    is_good.then_some(start)
}

/// The lengths of the axes of a tensor.
///
/// # Safety
/// The view is readable during the call.
pub(crate) unsafe fn lengths<'a>(
    tensor: *const forgelm_tensor,
    name: &str,
) -> Result<(&'a forgelm_tensor, &'a [i64]), Refusal> {
    // SAFETY: the caller's promise.
    let tensor = unsafe { given(tensor, name) }?;
    let n_axes = usize::try_from(tensor.ndim).unwrap_or(0);
    // SAFETY: a view has as many lengths as axes.
    Ok((tensor, unsafe { values(tensor.shape, n_axes, name) }?))
}

/// The shape of a tensor.
///
/// # Safety
/// The view is readable during the call.
pub(crate) unsafe fn shape_of(
    tensor: *const forgelm_tensor,
    name: &str,
) -> Result<Vec<usize>, Refusal> {
    let length = |&n: &i64| {
        usize::try_from(n).map_err(|_| Refusal::argument(format!("`{name}` has a length of {n}")))
    };
    // SAFETY: the caller's promise.
    unsafe { lengths(tensor, name) }?.1.iter().map(length).collect()
}

/// The first number of a tensor and how many there are, when everything about it is as expected.
///
/// # Safety
/// The view is readable during the call.
#[cold]
unsafe fn first<T: Element>(
    tensor: *const forgelm_tensor,
    name: &str,
    shape: &[usize],
) -> Result<(*mut T, usize), Refusal> {
    // SAFETY: the caller's promise.
    let (tensor, found) = unsafe { lengths(tensor, name) }?;
    let wrong = |what: &str| Err(Refusal::argument(format!("`{name}` {what}")));
    let is_same = |(&found, &n): (&i64, &usize)| usize::try_from(found) == Ok(n);
    if found.len() != shape.len() || !found.iter().zip(shape).all(is_same) {
        return wrong(&format!("has the shape {found:?}; expected {shape:?}"));
    }
    if tensor.dtype != T::DTYPE {
        return wrong(&format!("is not {}", T::NAME));
    }
    if tensor.device.device_type != DEVICE_CPU {
        return wrong("is not in the processor's memory");
    }
    if !tensor.strides.is_null() {
        // SAFETY: a view with strides has one for each axis.
        let strides = unsafe { values(tensor.strides, shape.len(), name) }?;
        if !is_dense(strides, shape) {
            return wrong("has gaps");
        }
    }
    let offset = usize::try_from(tensor.byte_offset).unwrap_or(usize::MAX);
    let start = tensor.data.cast::<u8>().wrapping_add(offset).cast::<T>();
    if !start.is_aligned() {
        return wrong("is not aligned");
    }
    Ok((start, shape.iter().product()))
}

/// Whether strides are those of a row-major tensor without gaps.
pub(crate) fn is_dense(strides: &[i64], shape: &[usize]) -> bool {
    let mut expected = 1_usize;
    strides.iter().zip(shape).rev().all(|(&stride, &n)| {
        let is_right = n <= 1 || usize::try_from(stride) == Ok(expected);
        expected = expected.saturating_mul(n);
        is_right
    })
}

/// A text for a table that lives as long as the library.
pub(crate) fn leak_text(text: &str) -> *const c_char {
    // A NUL inside would end the text early; nothing else could.
    CString::new(text.replace('\0', " ")).unwrap_or_default().into_raw()
}

/// The words of a descriptor's `features`: what the library needs of the host. Null for nothing.
pub(crate) fn leak_features(needs: &[&str]) -> *const *const c_char {
    if needs.is_empty() {
        return null();
    }
    let words = needs.iter().map(|id| leak_text(&format!("needs:{id}")));
    Box::leak(words.chain([null()]).collect::<Box<[_]>>()).as_ptr()
}
