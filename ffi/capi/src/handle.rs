//! Handles that a host holds. Every living one is on a list with its kind: NULL, one of another kind, one
//! that was freed and a pointer to anything else are refused before anything is read.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Failure;

/// Address and kind of every living handle.
static LIVING: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

fn living() -> MutexGuard<'static, BTreeMap<usize, u64>> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A kind of handle.
pub trait Kind {
    /// What it is known by.
    const TAG: u64;
    /// Its name in the header.
    const NAME: &'static str;
}

/// A handle: how many calls work with it, and what it holds.
pub struct Handle<T> {
    n_users: AtomicUsize,
    value: T,
}

impl<T: Kind> Handle<T> {
    /// Hands a value out.
    pub fn give(value: T) -> *mut Self {
        let handle = Box::into_raw(Box::new(Self { n_users: AtomicUsize::new(0), value }));
        living().insert(handle.addr(), T::TAG);
        handle
    }

    /// Borrows the handle that a host passes: it is not freed until what this gives is gone.
    ///
    /// # Errors
    /// NULL, another kind, freed, or no handle at all.
    #[expect(clippy::not_unsafe_ptr_arg_deref, reason = "only what is on the list is looked at")]
    pub fn borrow<'h>(handle: *const Self, name: &str) -> Result<Borrowed<'h, T>, Failure> {
        let living = living();
        if living.get(&handle.addr()) != Some(&T::TAG) {
            let text = format!("is no {}, or one that was freed", T::NAME);
            return Err(Failure::argument(name, &text));
        }
        // SAFETY: it is on the list, so `give` made it as this kind and `free`, which takes the list
        // too, did not take it.
        let handle = unsafe { &*handle };
        handle.n_users.fetch_add(1, Ordering::AcqRel);
        drop(living);
        Ok(Borrowed(handle))
    }

    /// What a living handle holds, without a look at the list.
    ///
    /// # Safety
    /// The handle is NULL, or living for as long as the reference.
    pub unsafe fn peek<'h>(handle: *const Self) -> Option<&'h T> {
        // SAFETY: by this function's contract.
        unsafe { handle.as_ref() }.map(|handle| &handle.value)
    }

    /// Frees a handle. NULL, another kind, one that is freed and one that a call works with are left
    /// alone.
    #[expect(clippy::not_unsafe_ptr_arg_deref, reason = "only what is on the list is looked at")]
    pub fn free(handle: *mut Self) {
        let mut living = living();
        if living.get(&handle.addr()) != Some(&T::TAG) {
            return;
        }
        // SAFETY: it is on the list, so `give` made it as this kind and nobody freed it.
        if unsafe { &*handle }.n_users.load(Ordering::Acquire) > 0 {
            return;
        }
        living.remove(&handle.addr());
        drop(living);
        // SAFETY: as above, and it is off the list now.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// A handle that a call works with.
pub struct Borrowed<'h, T>(&'h Handle<T>);

impl<T> Deref for Borrowed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Drop for Borrowed<'_, T> {
    fn drop(&mut self) {
        self.0.n_users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The pointer that a host gets back in its callbacks.
#[derive(Clone, Copy)]
pub struct User(pub *mut c_void);
