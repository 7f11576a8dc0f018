//! Memory that the program and a worker share: a file without a name, as large as the largest call.
//!
//! Arrays of one call lie end to end, each at the start of a cache line. The first line has the
//! program's word to the worker that work should stop, and the worker's to the program how many
//! services of its own work for the plugin.

use memmap2::{MmapMut, MmapOptions};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers that mean the same in both processes, whatever their bits.
///
/// # Safety
/// Any bits are a value, and there is no padding.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}

/// Where an array lies: first byte, and number of elements.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Span(pub usize, pub usize);

/// What the words of the first line say.
#[derive(Clone, Copy)]
enum Word {
    /// Whether work should stop.
    Stop,
    /// How many services of the worker are at work.
    Serving,
}

/// The shared file, mapped.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    map: MmapMut,
    /// Where the next array goes.
    end: usize,
}

impl Memory {
    /// A new file.
    #[cfg(target_os = "linux")]
    pub(crate) fn create() -> io::Result<Self> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("forgelm-plugin-worker", flags)?);
        file.set_len(1 << 16)?;
        // What is mapped must not go away.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
        Self::of(file)
    }

    /// Elsewhere there are no files without a name.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn create() -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "plugin workers need Linux"))
    }

    /// The file of the other side.
    pub(crate) fn of(file: File) -> io::Result<Self> {
        let map = map(&file)?;
        Ok(Self { file, map, end: LINE })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// A word of the first line.
    fn word(&self, word: Word) -> &AtomicU32 {
        let line = self.map.as_ptr().cast_mut().cast::<u32>();
        // SAFETY: the map is at least a page.
        let word = unsafe { line.add(word as usize) };
        // SAFETY: the map begins at a page, and is no shorter as long as `self` lives; both sides use
        // this line as atomics alone.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// Whether work should stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.word(Word::Stop).load(Ordering::Relaxed) != 0
    }

    /// Says whether work should stop.
    pub(crate) fn set_stop(&self, is_raised: bool) {
        self.word(Word::Stop).store(u32::from(is_raised), Ordering::Relaxed);
    }

    /// Whether a service of the worker works for its plugin.
    pub(crate) fn is_served(&self) -> bool {
        self.word(Word::Serving).load(Ordering::Relaxed) != 0
    }

    /// Says that one more does, or one fewer.
    pub(crate) fn serving(&self, begins: bool) {
        let n_serving = self.word(Word::Serving);
        match begins {
            true => n_serving.fetch_add(1, Ordering::Relaxed),
            false => n_serving.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// Begins a call whose arrays have these bytes together.
    pub(crate) fn begin(&mut self, arrays: &[usize]) -> io::Result<()> {
        let needed: usize =
            LINE + arrays.iter().map(|bytes| bytes.next_multiple_of(LINE)).sum::<usize>();
        if needed > self.map.len() {
            self.file.set_len(needed.next_power_of_two() as u64)?;
            self.map = map(&self.file)?;
        }
        self.end = LINE;
        Ok(())
    }

    /// Follows the other side when it made the file larger.
    pub(crate) fn follow(&mut self, span: &Span, element: usize) -> io::Result<()> {
        let end = span.1.checked_mul(element).and_then(|bytes| bytes.checked_add(span.0));
        let outside = || io::Error::new(io::ErrorKind::InvalidData, "an array outside the memory");
        let end = end.ok_or_else(outside)?;
        if end > self.map.len() {
            self.map = map(&self.file)?;
        }
        if end > self.map.len() || span.0 < LINE || !span.0.is_multiple_of(LINE) {
            return Err(outside());
        }
        Ok(())
    }

    /// Writes an array that the other side reads.
    pub(crate) fn put<T: Plain>(&mut self, values: &[T]) -> Span {
        let span = self.next::<T>(values.len());
        self.slice_mut(span).copy_from_slice(values);
        span
    }

    /// Room for an array that the other side writes, zero where it does not.
    pub(crate) fn room<T: Plain + Default>(&mut self, len: usize) -> Span {
        let span = self.next::<T>(len);
        self.slice_mut(span).fill(T::default());
        span
    }

    fn next<T>(&mut self, len: usize) -> Span {
        let span = Span(self.end, len);
        self.end += (len * size_of::<T>()).next_multiple_of(LINE);
        span
    }

    /// An array.
    ///
    /// # Panics
    /// If it lies outside.
    pub(crate) fn slice<T: Plain>(&self, span: Span) -> &[T] {
        self.check::<T>(span);
        // SAFETY: inside the map, aligned to a line, of a type for which any bits are a value. The
        // other side writes only between a question and its answer, when this side reads nothing.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(span.0).cast(), span.1) }
    }

    /// An array to write.
    ///
    /// # Panics
    /// If it lies outside.
    pub(crate) fn slice_mut<T: Plain>(&mut self, span: Span) -> &mut [T] {
        self.check::<T>(span);
        // SAFETY: as for `slice`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(span.0).cast(), span.1) }
    }

    /// Arrays to read, and one to write that shares no byte with them.
    ///
    /// # Panics
    /// If one lies outside, or the last before the end of another.
    pub(crate) fn split<T: Plain>(&mut self, out: Span) -> (Reader<'_>, &mut [T]) {
        self.check::<T>(out);
        let (before, rest) = self.map.split_at_mut(out.0);
        let (bytes, _) = rest.split_at_mut(out.1 * size_of::<T>());
        // SAFETY: as for `slice_mut`.
        let out = unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), out.1) };
        (Reader(before), out)
    }

    fn check<T>(&self, span: Span) {
        let end = span.0 + span.1 * size_of::<T>();
        assert!(
            span.0.is_multiple_of(LINE) && end <= self.map.len(),
            "an array outside the memory"
        );
    }
}

/// Arrays that lie before the one that is written.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// An array.
    ///
    /// # Panics
    /// If it lies outside.
    pub(crate) fn slice<T: Plain>(self, span: Span) -> &'a [T] {
        let bytes = &self.0[span.0..span.0 + span.1 * size_of::<T>()];
        assert!(span.0.is_multiple_of(LINE), "an array across lines");
        // SAFETY: these bytes, aligned to a line, of a type for which any bits are a value.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), span.1) }
    }
}

fn map(file: &File) -> io::Result<MmapMut> {
    // SAFETY: a file without a name that only the two sides have; sealed so that it never becomes shorter. What the
    // other side writes at a wrong time changes numbers, which are plain, and nothing else.
    unsafe { MmapOptions::new().map_mut(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_numbers_and_the_file_grows() {
        let mut host = Memory::create().unwrap();
        let mut worker = Memory::of(host.file().try_clone().unwrap()).unwrap();
        let values: Vec<f32> = (0..60_000_u16).map(f32::from).collect();
        host.begin(&[4 * values.len(), 3, 4 * values.len()]).unwrap();
        let (large, small) = (host.put(&values), host.put(&[1_u8, 2, 3]));
        let out = host.room::<f32>(values.len());
        worker.follow(&out, 4).unwrap();
        let (read, written) = worker.split::<f32>(out);
        assert_eq!(read.slice::<u8>(small), [1, 2, 3]);
        for (to, from) in written.iter_mut().zip(read.slice::<f32>(large)) {
            *to = -from;
        }
        let negative =
            host.slice::<f32>(out).iter().zip(&values).all(|(a, b)| a.to_bits() == (-b).to_bits());
        assert!(negative, "what the worker wrote is what the host reads");
        assert!(!worker.is_stopped());
        host.set_stop(true);
        assert!(worker.is_stopped() && !host.is_served());
        for begins in [true, true, false] {
            worker.serving(begins);
        }
        assert!(host.is_served());
        worker.serving(false);
        assert!(!host.is_served() && worker.is_stopped());
    }

    #[test]
    fn an_array_outside_is_refused() {
        let mut memory = Memory::create().unwrap();
        for wrong in [Span(0, 1), Span(72, 1), Span(64, 1 << 40), Span(usize::MAX - 63, 2)] {
            assert!(memory.follow(&wrong, 8).is_err(), "{wrong:?}");
        }
        memory.follow(&Span(64, 8), 8).unwrap();
    }
}
