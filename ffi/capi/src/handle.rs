//! Handles that a host holds: objects that know their own kind, so that a wrong or a freed one is
//! refused where that costs one comparison.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Failure, Status};

/// What stands in a handle that was freed.
const FREED: u64 = 0x6465_6572_665f_6d6c;

/// A kind of handle.
pub trait Kind {
    /// What its first word is while it lives.
    const TAG: u64;
    /// Its name in the header.
    const NAME: &'static str;
}

/// A handle: its tag, whether something works on it, and what it holds.
#[repr(C)]
pub struct Handle<T> {
    tag: AtomicU64,
    is_busy: AtomicBool,
    value: T,
}

impl<T: Kind> Handle<T> {
    /// Hands a value out.
    pub fn give(value: T) -> *mut Self {
        let tag = AtomicU64::new(T::TAG);
        Box::into_raw(Box::new(Self { tag, is_busy: AtomicBool::new(false), value }))
    }

    /// Borrows the handle that a host passes.
    ///
    /// # Safety
    /// `handle` is NULL or came from [`Handle::give`]; one that was freed may be found out, or not.
    ///
    /// # Errors
    /// NULL, another kind, or freed.
    pub unsafe fn borrow<'h>(handle: *const Self, name: &str) -> Result<&'h Self, Failure> {
        if handle.is_null() || !handle.is_aligned() {
            return Err(Failure::argument(name, &format!("is no {}", T::NAME)));
        }
        // SAFETY: not NULL and aligned by the test above, of this library by the contract.
        let handle = unsafe { &*handle };
        match handle.tag.load(Ordering::Acquire) {
            tag if tag == T::TAG => Ok(handle),
            FREED => Err(Failure::argument(name, &format!("is a {} that was freed", T::NAME))),
            _ => Err(Failure::argument(name, &format!("is no {}", T::NAME))),
        }
    }

    /// What it holds.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Takes the handle for one call that nothing else may work beside.
    ///
    /// # Errors
    /// If another call, or one further up on this thread, works on it.
    pub fn busy(&self, name: &str) -> Result<Busy<'_>, Failure> {
        match self.is_busy.swap(true, Ordering::AcqRel) {
            false => Ok(Busy(&self.is_busy)),
            true => {
                let text = format!("`{name}` is at work: a callback or another thread called");
                Err(Failure::new(Status::Busy, &text))
            }
        }
    }

    /// Frees a handle. NULL, another kind, one that is freed and one at work are left alone.
    ///
    /// # Safety
    /// As [`Handle::borrow`]; no other thread works with it.
    pub unsafe fn free(handle: *mut Self) {
        // SAFETY: by this function's contract.
        let Ok(living) = (unsafe { Self::borrow(handle, "handle") }) else { return };
        if living.is_busy.load(Ordering::Acquire) {
            return;
        }
        living.tag.store(FREED, Ordering::Release);
        // SAFETY: a living handle was made by `Box::into_raw` in `give`, and its tag says that nobody
        // freed it before.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// A handle that is taken until this goes.
pub struct Busy<'h>(&'h AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The pointer that a host gets back in its callbacks.
#[derive(Clone, Copy)]
pub struct User(pub *mut c_void);
