//! What the host's services have in common: a plugin's arguments, checked, and failures as statuses.

use crate::border::size;
use crate::float_mode::KeepFloatMode;
use forgelm_abi::{forgelm_plugin_error, forgelm_status, status};
use forgelm_sdk::{Cause, Failed};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a service does not do what it was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: forgelm_status,
    pub(crate) message: String,
}

impl Refusal {
    /// An argument of the plugin's cannot be used.
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self { status: status::INVALID_ARGUMENT, message: message.into() }
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

/// Runs a service, in the default floating-point mode; what it refuses, or panics with, becomes a
/// status and a message.
pub(crate) fn serve(
    err: *mut forgelm_plugin_error,
    body: impl FnOnce() -> Result<(), Refusal>,
) -> forgelm_status {
    let _mode = KeepFloatMode::default_meanwhile();
    let refusal = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return status::OK,
        Ok(Err(refusal)) => refusal,
        Err(_) => {
            let message = "a bug in ForgeLM's service".to_owned();
            Refusal { status: status::INTERNAL, message }
        }
    };
    // SAFETY: null, or the plugin's record, of this version or a later one.
    let Some(err) = (unsafe { err.as_mut() }) else { return refusal.status };
    if err.struct_size >= size::<forgelm_plugin_error>() {
        let text = refusal.message.as_bytes();
        let len = text.len().min(err.message.len());
        for (to, byte) in err.message.iter_mut().zip(&text[..len]) {
            *to = byte.cast_signed();
        }
        err.message_len = u32::try_from(len).unwrap_or(0);
        err.code = refusal.status;
    }
    refusal.status
}

/// Numbers of a plugin that may be read or written: there, aligned, and no more than memory can have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array<T> {
    start: *mut T,
    len: usize,
    name: &'static str,
}

impl<T> Array<T> {
    /// An array that is read.
    pub(crate) fn new(start: *const T, len: usize, name: &'static str) -> Result<Self, Refusal> {
        Self::new_mut(start.cast_mut(), len, name)
    }

    /// An array that is written.
    pub(crate) fn new_mut(start: *mut T, len: usize, name: &'static str) -> Result<Self, Refusal> {
        let wrong = |what: String| Err(Refusal::argument(format!("`{name}` {what}")));
        let array = Self { start, len, name };
        if len == 0 {
            return Ok(array);
        }
        if start.is_null() {
            return wrong("is NULL".to_owned());
        }
        if !start.is_aligned() {
            return wrong("is not aligned to its numbers".to_owned());
        }
        let n_bytes = len.checked_mul(size_of::<T>()).filter(|&n| isize::try_from(n).is_ok());
        if n_bytes.and_then(|n_bytes| start.addr().checked_add(n_bytes)).is_none() {
            return wrong(format!("cannot have {len} numbers"));
        }
        Ok(array)
    }

    fn addresses(&self) -> Range<usize> {
        self.start.addr()..self.start.addr() + self.len * size_of::<T>()
    }

    /// That it shares no byte with another array.
    pub(crate) fn apart_from<U>(&self, other: &Array<U>) -> Result<(), Refusal> {
        let (own, others) = (self.addresses(), other.addresses());
        if own.start < others.end && others.start < own.end {
            let (name, other) = (self.name, other.name);
            return Err(Refusal::argument(format!("`{name}` and `{other}` overlap")));
        }
        Ok(())
    }

    /// To read.
    ///
    /// # Safety
    /// The numbers are there, and nobody changes them, during `'a`.
    pub(crate) unsafe fn read<'a>(self) -> &'a [T] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: not null, aligned, of a size that memory can have; the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// To write.
    ///
    /// # Safety
    /// The numbers are there, and nobody else uses them, during `'a`.
    pub(crate) unsafe fn write<'a>(self) -> &'a mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `read`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Numbers of an array of two axes.
pub(crate) fn area(n_rows: usize, n_cols: usize) -> Result<usize, Refusal> {
    let too_many = || Refusal::argument(format!("no array has {n_rows} times {n_cols} numbers"));
    n_rows.checked_mul(n_cols).ok_or_else(too_many)
}

/// Writes one number of a result.
///
/// # Safety
/// The place is null or can be written.
pub(crate) unsafe fn put<T>(place: *mut T, name: &str, value: T) -> Result<(), Refusal> {
    if place.is_null() || !place.is_aligned() {
        return Err(Refusal::argument(format!("`{name}` is NULL or not aligned")));
    }
    // SAFETY: not null, aligned; the caller's promise.
    unsafe { place.write(value) };
    Ok(())
}
