//! Raw pointers to borrowed values and back, and the net under panics.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Failure, Status, forgelm_error};
use forgelm_run::kernels;

/// Runs a call with the net: a failure, of a device too, or a panic becomes a status, and the error object if the
/// caller wants it. What the body gives is the status of a call that came to an end of its own.
///
/// # Safety
/// `out_error` is NULL or points to a writable pointer.
pub unsafe fn call(
    out_error: *mut *mut forgelm_error,
    body: impl FnOnce() -> Result<Status, Failure>,
) -> i32 {
    let on_device = || kernels::caught(|| Ok(body())).unwrap_or_else(|failed| Err(failed.into()));
    // AssertUnwindSafe: after a panic nothing that the body touched is used again.
    let result = catch_unwind(AssertUnwindSafe(on_device)).unwrap_or_else(|payload| {
        // the payload's own drop may panic, so it is leaked
        std::mem::forget(payload);
        Err(Failure::new(Status::Panic, "a bug in ForgeLM: please report it"))
    });
    let failure = match result {
        Ok(status) => return status as i32,
        Err(failure) => failure,
    };
    let status = failure.status as i32;
    if !out_error.is_null() {
        let handed_out = Box::into_raw(Box::new(forgelm_error::from(failure)));
        // SAFETY: not NULL by the test above, writable by this function's contract.
        unsafe { out_error.write(handed_out) };
    }
    status
}

/// Borrows `len` bytes. NULL is an empty slice if the length is 0.
///
/// # Safety
/// `data` is NULL or points to `len` readable bytes that nobody writes during `'a`.
///
/// # Errors
/// NULL with a length, or a length that no object can have.
pub unsafe fn bytes<'a>(data: *const c_char, len: usize, name: &str) -> Result<&'a [u8], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failure::argument(name, &format!("is NULL with a length of {len}")));
    }
    if isize::try_from(len).is_err() {
        return Err(Failure::argument(name, &format!("cannot have {len} bytes")));
    }
    // SAFETY: not NULL, and `len` readable bytes by this function's contract; bytes have no
    // alignment, and the length fits isize by the test above.
    Ok(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) })
}

/// Borrows a text that ends with NUL.
///
/// # Safety
/// `text` is NULL or points to bytes that end with NUL and that nobody writes during `'a`.
///
/// # Errors
/// NULL, or not UTF-8.
pub unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(name, "is NULL"));
    }
    // SAFETY: not NULL by the test above, ended by NUL by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::argument(name, "is not UTF-8"))
}

/// As [`text`], where NULL is none.
///
/// # Safety
/// As [`text`].
///
/// # Errors
/// Not UTF-8.
pub unsafe fn optional_text<'a>(
    text_or_null: *const c_char,
    name: &str,
) -> Result<Option<&'a str>, Failure> {
    if text_or_null.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    unsafe { text(text_or_null, name) }.map(Some)
}

/// Hands a text out, to be freed with `forgelm_string_free`. A NUL inside ends it early.
#[must_use]
pub fn owned(text: &str) -> *mut c_char {
    let until_nul = text.split('\0').next().unwrap_or_default();
    CString::new(until_nul).unwrap_or_default().into_raw()
}

/// Writes through an out-pointer unless it is NULL.
///
/// # Safety
/// `out` is NULL or points to a writable, aligned `T`.
pub unsafe fn put<T>(out: *mut T, value: impl FnOnce() -> T) {
    if !out.is_null() {
        let value = value();
        // SAFETY: not NULL by the test above, writable by this function's contract.
        unsafe { out.write(value) };
    }
}

/// Frees a text that the library handed out; NULL is fine.
///
/// # Safety
/// `text` is NULL or came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: every text handed out comes from `owned`, which made it by `into_raw`.
        drop(unsafe { CString::from_raw(text) });
    }
}
