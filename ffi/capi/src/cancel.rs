//! Stopping a call from elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::border::{call, put};
use crate::error::{Failure, Status, forgelm_error};
use crate::handle::{Handle, Kind};

/// A flag that calls look at.
#[derive(Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The flag.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Kind for Cancel {
    const TAG: u64 = 0x6c65_636e_6163_5f31;
    const NAME: &'static str = "forgelm_cancel";
}

/// The handle of the header.
#[expect(non_camel_case_types, reason = "its name in C")]
pub type forgelm_cancel = Handle<Cancel>;

/// Makes a flag that is down; `forgelm.h` has the contract.
///
/// # Safety
/// Each out-pointer is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_cancel_new(
    out_cancel: *mut *mut forgelm_cancel,
    out_error: *mut *mut forgelm_error,
) -> i32 {
    let body = || {
        if out_cancel.is_null() {
            return Err(Failure::argument("out_cancel", "is NULL"));
        }
        // SAFETY: writable by this function's contract.
        unsafe { put(out_cancel, || Handle::give(Cancel::default())) };
        Ok(Status::Ok)
    };
    // SAFETY: NULL or writable by this function's contract.
    unsafe { call(out_error, body) }
}

/// Raises the flag; NULL is fine. Safe in a signal handler: it stores one word.
///
/// # Safety
/// `cancel` is NULL or a flag that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_cancel_trigger(cancel: *const forgelm_cancel) {
    // No list is asked: a signal handler may not wait for a lock.
    // SAFETY: NULL or a living flag by this function's contract.
    if let Some(cancel) = unsafe { Handle::peek(cancel) } {
        cancel.0.store(true, Ordering::Relaxed);
    }
}

/// Frees a flag; NULL is fine. Calls that look at it go on.
///
/// # Safety
/// `cancel` is NULL or a flag that no other thread triggers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forgelm_cancel_free(cancel: *mut forgelm_cancel) {
    Handle::free(cancel);
}
