//! What a plugin may ask of the program that loaded it, besides its arguments.
//!
//! Every library has a standard output, a panic hook and statics of its own: what it prints goes
//! past the program. These functions go to the program. In a library that nobody loaded, a test
//! say, they do nothing.
#![expect(unsafe_code, reason = "calls functions of the host's table")]

use crate::Failed;
use forgelm_abi::{
    forgelm_host, forgelm_plugin_error, forgelm_status, forgelm_str, log_level, status,
};
use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The table that this library was initialized with; null before.
static HOST: AtomicPtr<forgelm_host> = AtomicPtr::new(null_mut());

/// Importance of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// For who looks for a fault.
    Debug = log_level::DEBUG,
    /// A fact worth a line.
    Info = log_level::INFO,
    /// Something that the user may want to change.
    Warning = log_level::WARNING,
    /// Something failed.
    Error = log_level::ERROR,
}

/// Keeps the host for the functions below. The host keeps its table for as long as the process.
pub(crate) fn remember(host: *const forgelm_host) {
    HOST.store(host.cast_mut(), Ordering::Release);
}

/// Says something; it appears among the run's own lines. `target` names the origin.
pub fn log(level: Level, target: &str, message: &str) {
    let Some(host) = host() else { return };
    if let Some(log) = host.log {
        // SAFETY: the host's own function with its own table; texts are borrowed for the call.
        unsafe { log(host, level as u32, forgelm_str::new(target), forgelm_str::new(message)) };
    }
}

/// Whether the work should stop. Ask at least every 100 ms.
#[must_use]
pub fn is_cancelled() -> bool {
    let Some(host) = host() else { return false };
    // SAFETY: the host's own function with its own table.
    host.is_cancelled.is_some_and(|is_cancelled| unsafe { is_cancelled(host) } != 0)
}

/// Tells how far the work is, as a JSON object; true when it should stop.
pub fn progress(event_json: &str) -> bool {
    let Some(host) = host() else { return false };
    let text = forgelm_str::new(event_json);
    // SAFETY: the host's own function with its own table; the text is borrowed for the call.
    host.progress.is_some_and(|progress| unsafe { progress(host, text) } != 0)
}

pub(crate) fn host() -> Option<&'static forgelm_host> {
    let host = HOST.load(Ordering::Acquire);
    // SAFETY: null, or the table that `init` was given, which lives as long as the process.
    unsafe { host.as_ref() }
}

/// The table of an id, if the host has it and it is as large as this version's.
///
/// # Safety
/// The host's table and its extensions are good for `'a`, and `T` is the table of this id.
pub(crate) unsafe fn extension<'a, T>(host: &'a forgelm_host, id: &CStr) -> Option<&'a T> {
    let get_extension = host.get_extension?;
    // SAFETY: the host's own function with its own table.
    let table = unsafe { get_extension(host, id.as_ptr()) };
    // SAFETY: null or the table of this id, whose first field is its size.
    let n_bytes = unsafe { table.cast::<u32>().as_ref() }?;
    // SAFETY: large enough to be one.
    if (*n_bytes as usize) < size_of::<T>() { None } else { unsafe { table.cast::<T>().as_ref() } }
}

/// Calls a function of a service's table; what it refuses is a failure.
pub(crate) fn call<F>(
    function: Option<F>,
    call: impl FnOnce(F, *mut forgelm_plugin_error) -> forgelm_status,
) -> Result<(), Failed> {
    let function = function.ok_or_else(|| Failed::new("the host's function is NULL"))?;
    let mut err = forgelm_plugin_error::new();
    match call(function, &raw mut err) {
        status::OK => Ok(()),
        ended => match err.text() {
            text if text.is_empty() => Err(Failed::new(format!("the host's status {ended}"))),
            text => Err(Failed::new(text)),
        },
    }
}
