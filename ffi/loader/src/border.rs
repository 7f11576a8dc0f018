//! What every kind does on the host's side: texts and tables of a plugin, views of tensors, calls.

use crate::error::Problem;
use crate::float_mode::KeepFloatMode;
use crate::host::Host;
use crate::trainer::kept_name;
use crate::watch::{Callers, Calls, Inside};
use forgelm_abi::{
    DEVICE_CPU, DEVICE_CUDA, dtype_code, forgelm_device, forgelm_dtype, forgelm_plugin_error,
    forgelm_status, forgelm_str, forgelm_tensor, status,
};
use forgelm_kernels_api::{DevicePart, Format};
use forgelm_plugin::{Kind, Origin};
use forgelm_sdk::{Cause, Failed, OptionsError};
use std::borrow::Cow;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Bytes of a table, as its first field says them.
#[expect(clippy::cast_possible_truncation, reason = "a table has some hundreds of bytes")]
pub(crate) const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// A text of a call, mended where it is not UTF-8.
///
/// # Safety
/// The text is readable for its length during the call.
pub(crate) unsafe fn lossy<'a>(text: forgelm_str) -> Cow<'a, str> {
    if text.ptr.is_null() || text.len == 0 {
        return Cow::Borrowed("");
    }
    // SAFETY: not null; the caller's promise.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text.ptr.cast(), text.len) })
}

/// A table of a plugin, whose first field is its size.
///
/// # Safety
/// The pointer is null or to a table that begins with its size and lives as long as `'a`.
pub(crate) unsafe fn table<'a, T>(
    pointer: *const T,
    name: &'static str,
    what: impl FnOnce() -> String,
) -> Result<&'a T, Problem> {
    if pointer.is_null() {
        return Err(Problem::Null { what: what() });
    }
    // SAFETY: not null; every table begins with its size.
    let found = unsafe { pointer.cast::<u32>().read() };
    let expected = size::<T>();
    if found < expected {
        return Err(Problem::Size { table: name, found, expected });
    }
    // SAFETY: as large as it should be.
    Ok(unsafe { &*pointer })
}

/// A text of a descriptor, kept: descriptors are read once.
///
/// # Safety
/// The pointer is null or to a text that ends with NUL.
pub(crate) unsafe fn kept_text(
    pointer: *const c_char,
    what: impl Fn() -> String,
) -> Result<&'static str, Problem> {
    if pointer.is_null() {
        return Err(Problem::Null { what: what() });
    }
    // SAFETY: not null; the caller's promise.
    match unsafe { CStr::from_ptr(pointer) }.to_str() {
        Ok(text) if !text.is_empty() => Ok(kept_name(text)),
        Ok(_) | Err(_) => Err(Problem::Text { what: what() }),
    }
}

/// The words of a descriptor's `features`; those `needs:ID` must be offered by the host.
///
/// # Safety
/// The pointer is null or to pointers that end with null, each to a text that ends with NUL.
pub(crate) unsafe fn check_features(
    features: *const *const c_char,
    host: &Host,
    what: impl Fn() -> String,
) -> Result<(), Problem> {
    if features.is_null() {
        return Ok(());
    }
    let mut at = features;
    // SAFETY: not past the null at the end.
    while let word = unsafe { at.read() }
        && !word.is_null()
    {
        // SAFETY: not null, a text that ends with NUL.
        let word = unsafe { CStr::from_ptr(word) }.to_string_lossy();
        if let Some(needs) = word.strip_prefix("needs:")
            && !host.offers(needs)
        {
            return Err(Problem::Needs { what: what(), needs: needs.to_owned() });
        }
        at = at.wrapping_add(1);
    }
    Ok(())
}

/// Who is called, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    kind: &'static str,
    name: &'static str,
    origin: Arc<Origin>,
    calls: Arc<Calls>,
    callers: Callers,
}

impl Caller {
    pub(crate) fn new<K: Kind>(name: &'static str, origin: &Arc<Origin>) -> Self {
        let (calls, callers) = (Arc::default(), Callers::Several);
        Self { kind: K::NAME, name, origin: Arc::clone(origin), calls, callers }
    }

    /// The same, whose calls the host watches.
    pub(crate) fn watched(self, host: &Host) -> Self {
        let calls = host.watch(self.to_string());
        Self { calls, ..self }
    }

    /// The same, whose calls nobody watches: they have deadlines of their own.
    pub(crate) fn unwatched(&self) -> Self {
        Self { calls: Arc::default(), callers: Callers::One, ..self.clone() }
    }

    /// For an instance that one thread calls at a time.
    pub(crate) fn of_one_caller(&self, host: &Host) -> Self {
        Self { callers: Callers::One, ..self.clone().watched(host) }
    }

    /// A call, until the guard goes out of scope.
    pub(crate) fn enter(&self) -> Inside<'_> {
        self.calls.enter(self.callers)
    }

    /// A failure of this plugin.
    pub(crate) fn failed(&self, what: &str) -> Failed {
        Failed::new(format!("{self}: {what}"))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}` of {}", self.kind, self.name, self.origin)
    }
}

/// Whether an instance may be called: once it panicked, with these words, it may not.
#[derive(Debug, Default)]
pub(crate) struct Poison(OnceLock<String>);

thread_local! {
    /// Where a plugin writes what went wrong: half a kilobyte that is not cleared for each call. A call
    /// inside a call may use it too: the outer one writes its own text after that.
    static RECORD: UnsafeCell<forgelm_plugin_error> =
        const { UnsafeCell::new(forgelm_plugin_error::new()) };
}

/// Calls a plugin: the floating-point mode is put back, a failure gets its name, and after a panic
/// or an exception nothing of the instance is called again.
pub(crate) fn call(
    caller: &Caller,
    poison: &Poison,
    body: impl FnOnce(*mut forgelm_plugin_error) -> forgelm_status,
) -> Result<(), Failed> {
    if let Some(said) = poison.0.get() {
        // Of threads that call at once, the one that is heard need not be the one that panicked.
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        return Err(caller.failed(&format!("it panicked before and is not called again{said}")));
    }
    let err = RECORD.with(UnsafeCell::get);
    // SAFETY: this thread's own record, which nobody else reads or writes now.
    unsafe { (*err).begin() };
    let ended = {
        let _inside = caller.enter();
        let _mode = KeepFloatMode::new();
        body(err)
    };
    if ended == status::OK {
        return Ok(());
    }
    if ended == status::PANIC {
        // SAFETY: as above; the call is over. The first of several panics stays.
        let _ = poison.0.set(unsafe { (*err).text() });
    }
    let cause = match ended {
        status::INVALID_ARGUMENT => Cause::Argument,
        status::CANCELLED => Cause::Cancelled,
        status::DEADLINE => Cause::Deadline,
        _ => Cause::Work,
    };
    // SAFETY: as above; the call is over.
    Err(Failed { cause, ..caller.failed(&told(ended, unsafe { &*err })) })
}

/// How the message of a failure ends that has no words: it comes out of a worker as a text alone.
pub(crate) const WORDLESS: &str = ", and says no more";

/// What a failed call said.
pub(crate) fn told(ended: forgelm_status, err: &forgelm_plugin_error) -> String {
    let what = match ended {
        status::CANCELLED => "stopped as asked",
        status::INVALID_ARGUMENT => "invalid argument",
        status::DEADLINE => "the deadline passed",
        status::OUT_OF_MEMORY => "out of memory",
        status::UNIMPLEMENTED => "not implemented",
        status::PANIC => "panicked",
        _ => "failed",
    };
    match (err.text(), ended) {
        (text, _) if text.is_empty() => format!("{what} (status {ended}){WORDLESS}"),
        (text, status::PANIC) => format!("panicked: {text}"),
        (text, _) => text,
    }
}

/// The instance that a `create` handed out; `missing` names a function that must be there and is
/// not.
///
/// # Safety
/// The pointer is null or to an instance of the plugin's, which is ours until it is destroyed.
pub(crate) unsafe fn created<T>(
    caller: &Caller,
    (ended, err): (forgelm_status, &forgelm_plugin_error),
    instance: *const T,
    name: &'static str,
    missing: impl Fn(&T) -> Option<&'static str>,
) -> Result<*const T, OptionsError> {
    let refused = |message: String| OptionsError::Refused { message };
    match ended {
        status::OK => {}
        // Its own words about an option, as those of a plugin of ours.
        status::INVALID_ARGUMENT => return Err(refused(told(ended, err))),
        _ => return Err(refused(caller.failed(&told(ended, err)).message)),
    }
    // SAFETY: the caller's promise.
    let found = unsafe { table(instance, name, || "the instance".to_owned()) };
    let problem = match found.map(missing) {
        Ok(None) => return Ok(instance),
        Ok(Some(field)) => Problem::Null { what: format!("{name}.{field}") },
        Err(problem) => problem,
    };
    Err(refused(caller.failed(&problem.to_string()).message))
}

/// What an instance offers under an id, beside its own table; `None` if it offers nothing, or less than
/// it should.
///
/// # Safety
/// `get_extension` is of the plugin's, for this instance, and `T` the table of this id, which lives as
/// long as the instance.
pub(crate) unsafe fn extension<I, T>(
    get_extension: Option<unsafe extern "C" fn(*const I, *const c_char) -> *const c_void>,
    instance: *const I,
    id: &CStr,
) -> Result<Option<*const T>, Problem> {
    let Some(get_extension) = get_extension else { return Ok(None) };
    let found = {
        let _mode = KeepFloatMode::new();
        // SAFETY: the caller's promise.
        unsafe { get_extension(instance, id.as_ptr()) }
    };
    let found: *const T = found.cast();
    if found.is_null() {
        return Ok(None);
    }
    // SAFETY: a table that begins with its size, as the header says.
    unsafe { table(found, "an extension", || "an extension".to_owned()) }?;
    Ok(Some(found))
}

/// The first of these names whose field is missing.
pub(crate) fn first_missing(fields: &[(bool, &'static str)]) -> Option<&'static str> {
    fields.iter().find(|(is_missing, _)| *is_missing).map(|(_, name)| *name)
}

/// A type of numbers in tensors.
pub(crate) trait Element {
    const CODE: u8;
}

impl Element for f32 {
    const CODE: u8 = dtype_code::FLOAT;
}

impl Element for u32 {
    const CODE: u8 = dtype_code::UINT;
}

impl Element for u8 {
    const CODE: u8 = dtype_code::UINT;
}

/// Lengths of the axes of a tensor, and their steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape<const N: usize> {
    lengths: [i64; N],
    strides: [i64; N],
}

impl<const N: usize> Shape<N> {
    /// Row-major, without gaps.
    #[expect(clippy::cast_possible_wrap, reason = "lengths of slices fit into an i64")]
    pub(crate) fn new(lengths: [usize; N]) -> Self {
        let mut strides = [1; N];
        for axis in (1..N).rev() {
            strides[axis - 1] = strides[axis] * lengths[axis] as i64;
        }
        Self { lengths: lengths.map(|length| length as i64), strides }
    }

    /// Numbers of a tensor of this shape.
    pub(crate) fn n_elements(&self) -> usize {
        self.lengths.iter().map(|&length| usize::try_from(length).unwrap_or(0)).product()
    }

    /// A view of numbers that a plugin only reads.
    pub(crate) fn of<T: Element>(&self, numbers: &[T]) -> forgelm_tensor {
        self.view::<T>(numbers.as_ptr().cast_mut())
    }

    /// A view of numbers that a plugin writes.
    pub(crate) fn of_mut<T: Element>(&self, numbers: &mut [T]) -> forgelm_tensor {
        self.view::<T>(numbers.as_mut_ptr())
    }

    /// A view of numbers of a device, which are as many.
    pub(crate) fn of_device(&self, part: DevicePart) -> forgelm_tensor {
        let device = forgelm_device { device_type: DEVICE_CUDA, device_id: part.device };
        let (code, bits) = match part.format {
            Format::F32 => (dtype_code::FLOAT, 32),
            Format::Bf16 => (dtype_code::BFLOAT, 16),
            Format::U8 => (dtype_code::UINT, 8),
            Format::U32 => (dtype_code::UINT, 32),
        };
        self.at(part.address as *mut c_void, device, forgelm_dtype { code, bits, lanes: 1 })
    }

    #[expect(clippy::cast_possible_truncation, reason = "small")]
    fn view<T: Element>(&self, first: *mut T) -> forgelm_tensor {
        let device = forgelm_device { device_type: DEVICE_CPU, device_id: 0 };
        let dtype = forgelm_dtype { code: T::CODE, bits: 8 * size_of::<T>() as u8, lanes: 1 };
        self.at(first.cast(), device, dtype)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "small")]
    fn at(
        &self,
        data: *mut c_void,
        device: forgelm_device,
        dtype: forgelm_dtype,
    ) -> forgelm_tensor {
        forgelm_tensor {
            data,
            device,
            ndim: N as i32,
            dtype,
            shape: self.lengths.as_ptr(),
            strides: self.strides.as_ptr(),
            byte_offset: 0,
        }
    }
}
