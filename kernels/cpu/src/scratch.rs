//! Working memory that each thread keeps between tasks, aligned to cache lines.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

const ALIGNMENT: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Vec<u32>>> = const { RefCell::new(Vec::new()) };
}

/// A slice of working memory. Its contents are whatever was there before.
///
/// Numbers are kept as bits: [`Scratch`] of `f32` and of `u32` share one list of free buffers.
pub(crate) struct Scratch<T: Bits> {
    memory: Vec<u32>,
    first: usize,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

/// Types of four bytes in which every pattern of bits is a value.
pub(crate) trait Bits: Copy {
    fn view(memory: &[u32]) -> &[Self];
    fn view_mut(memory: &mut [u32]) -> &mut [Self];
    fn bits(values: &[Self]) -> &[u32];
    fn bits_mut(values: &mut [Self]) -> &mut [u32];
}

impl Bits for u32 {
    #[inline(always)]
    fn view(memory: &[u32]) -> &[u32] {
        memory
    }

    #[inline(always)]
    fn view_mut(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    #[inline(always)]
    fn bits(values: &[u32]) -> &[u32] {
        values
    }

    #[inline(always)]
    fn bits_mut(values: &mut [u32]) -> &mut [u32] {
        values
    }
}

impl Bits for f32 {
    #[inline(always)]
    fn view(memory: &[u32]) -> &[f32] {
        // SAFETY: f32 and u32 have the same size and alignment, and every pattern of bits is a
        // valid f32; the lifetime is that of the argument.
        unsafe { std::slice::from_raw_parts(memory.as_ptr().cast(), memory.len()) }
    }

    #[inline(always)]
    fn view_mut(memory: &mut [u32]) -> &mut [f32] {
        // SAFETY: as in `view`, and every f32 is a valid u32; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), memory.len()) }
    }

    #[inline(always)]
    fn bits(values: &[f32]) -> &[u32] {
        // SAFETY: as in `view`, the other way.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
    }

    #[inline(always)]
    fn bits_mut(values: &mut [f32]) -> &mut [u32] {
        // SAFETY: as in `view_mut`, the other way.
        unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
    }
}

impl<T: Bits> Scratch<T> {
    /// Takes a buffer of this thread's, or makes one.
    pub(crate) fn take(len: usize) -> Self {
        let mut memory = FREE.with_borrow_mut(|free| {
            // The largest one first, so that buffers do not all grow to the largest size.
            let fitting = free.iter().position(|m| m.len() >= len + ALIGNMENT / 4);
            fitting.map(|i| free.swap_remove(i)).or_else(|| free.pop()).unwrap_or_default()
        });
        if memory.len() < len + ALIGNMENT / 4 {
            memory.clear();
            memory.resize(len + ALIGNMENT / 4, 0);
        }
        let first = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / 4);
        Self { memory, first, len, kind: std::marker::PhantomData }
    }

    /// As [`Scratch::take`], filled with zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut scratch = Self::take(len);
        let (first, len) = (scratch.first, scratch.len);
        scratch.memory[first..first + len].fill(0);
        scratch
    }
}

impl<T: Bits> Drop for Scratch<T> {
    fn drop(&mut self) {
        FREE.with_borrow_mut(|free| free.push(std::mem::take(&mut self.memory)));
    }
}

impl<T: Bits> Deref for Scratch<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        T::view(&self.memory[self.first..self.first + self.len])
    }
}

impl<T: Bits> DerefMut for Scratch<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        T::view_mut(&mut self.memory[self.first..self.first + self.len])
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let first = {
            let mut a = Scratch::<f32>::zeroed(100);
            a[99] = 1.0;
            assert_eq!(a.as_ptr().align_offset(64), 0);
            assert_eq!(a.len(), 100);
            a.as_ptr() as usize
        };
        let b = Scratch::<u32>::take(50);
        assert_eq!(b.as_ptr() as usize, first);
    }
}
