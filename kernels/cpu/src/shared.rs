//! A slice that several tasks write to, each in places of its own.

use std::marker::PhantomData;
use std::ops::Range;

/// A `&mut [T]` in the hands of many tasks.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: it is a `&mut [T]`, which may be sent when T may; parts are handed out by an unsafe
// method whose callers promise that no two threads hold the same element.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other part that is alive may overlap this one.
    #[inline(always)]
    pub(crate) unsafe fn slice(self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside of the slice");
        // SAFETY: the range lies inside the slice this was made from, which is borrowed mutably
        // for 'a, and the caller promises that nobody else holds these elements.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
