//! Memory of frozen weights, in large pages where the system has them.
//!
//! Generation reads every weight once a token. With pages of 4 KiB the processor's prefetcher stops
//! at each of their borders and addresses miss in its tables: one core read 20 GB/s, and 33 GB/s
//! with pages of 2 MiB (Zen 4). Most weights are smaller than such a page, so that they share
//! chunks of memory.
//!
//! A chunk goes back to the system with the last weight in it; a place that becomes free is given
//! to the next weight of the same size (weights that are trained are packed anew each step).

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;

/// Bytes of a chunk, unless a weight is larger. The first chunks are smaller: each doubles what
/// there is, so that a small model does not reserve what it will not use.
const CHUNK: usize = 32 << 20;
/// Bytes of a large page.
const PAGE: usize = 2 << 20;
/// Numbers in a cache line, where every weight begins.
const LINE: usize = 16;

/// All chunks that hold a weight.
static CHUNKS: Mutex<Vec<Weak<Chunk>>> = Mutex::new(Vec::new());

/// Numbers at the beginning of a cache line.
pub(crate) struct Pages {
    chunk: Arc<Chunk>,
    /// In numbers from the start of the chunk.
    place: Range<usize>,
    len: usize,
}

struct Chunk {
    /// Keeps the memory; it is read and written through `start`.
    _map: MmapMut,
    /// First number, at the beginning of a large page.
    start: *mut u32,
    /// Numbers.
    len: usize,
    state: Mutex<State>,
}

/// What of a chunk is taken.
#[derive(Default)]
struct State {
    /// Numbers that were given out at some time, from the start.
    used: usize,
    /// Places among them that came back.
    free: Vec<Range<usize>>,
}

// SAFETY: `start` points into `_map`, which moves with the chunk; parts are handed out under the
// lock of `state`, each to one `Pages` at a time.
unsafe impl Send for Chunk {}
// SAFETY: as above; through a shared chunk nothing is reached but `state`.
unsafe impl Sync for Chunk {}

impl Pages {
    /// `len` zeros.
    ///
    /// # Panics
    /// If the system refuses the memory.
    pub(crate) fn zeroed(len: usize) -> Self {
        let (mut pages, is_fresh) = Self::taken(len);
        if !is_fresh {
            pages.fill(0);
        }
        pages
    }

    /// `len` numbers, whatever they are, for one who writes all of them.
    ///
    /// # Panics
    /// As [`Pages::zeroed`].
    pub(crate) fn to_be_filled(len: usize) -> Self {
        Self::taken(len).0
    }

    /// Memory for `len` numbers; whether they are zeros.
    fn taken(len: usize) -> (Self, bool) {
        let size = len.next_multiple_of(LINE);
        let mut chunks = CHUNKS.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.retain(|chunk| chunk.strong_count() > 0);
        let found = chunks.iter().filter_map(Weak::upgrade).find_map(|chunk| {
            let taken = chunk.take(size)?;
            Some((chunk, taken))
        });
        let (chunk, (place, is_fresh)) = found.unwrap_or_else(|| {
            let held: usize = chunks.iter().filter_map(Weak::upgrade).map(|chunk| chunk.len).sum();
            let at_least = (held * size_of::<u32>()).clamp(PAGE, CHUNK);
            let chunk = Arc::new(Chunk::new(size, at_least));
            chunks.push(Arc::downgrade(&chunk));
            let taken = chunk.take(size).expect("a new chunk has room");
            (chunk, taken)
        });
        (Self { chunk, place, len }, is_fresh)
    }
}

impl Chunk {
    fn new(size: usize, at_least: usize) -> Self {
        let bytes = (size * size_of::<u32>()).max(at_least).next_multiple_of(PAGE);
        // One page more, to begin where a large page does.
        let mut map =
            MmapMut::map_anon(bytes + PAGE).expect("the system refused the memory of the weights");
        #[cfg(target_os = "linux")]
        // A wish: without large pages everything works, only slower.
        let _ = map.advise(memmap2::Advice::HugePage);
        let skip = map.as_ptr().align_offset(PAGE).min(PAGE);
        let start = map[skip..].as_mut_ptr().cast();
        Self { _map: map, start, len: bytes / size_of::<u32>(), state: Mutex::default() }
    }

    /// A place of this size, if there is one, and whether it is all zeros.
    fn take(&self, size: usize) -> Option<(Range<usize>, bool)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = state.free.iter().position(|place| place.len() == size) {
            return Some((state.free.swap_remove(i), false));
        }
        let place = state.used..state.used + size;
        (place.end <= self.len).then(|| {
            state.used = place.end;
            // Memory that was never given out is as the system gave it: zeros.
            (place, true)
        })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut state = self.chunk.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free.push(self.place.clone());
    }
}

impl Deref for Pages {
    type Target = [u32];

    #[inline(always)]
    fn deref(&self) -> &[u32] {
        // SAFETY: the place lies inside the chunk, is this value's alone until it is dropped, and
        // was all zeros or written since; every pattern of bits is a u32.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.place.start), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.place.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Pages};

    #[test]
    fn places_are_apart_aligned_and_zero_also_when_they_were_used_before() {
        let mut all: Vec<Pages> = [1, 17, 1000, 0, CHUNK / 4 + 5, 1000, CHUNK / 8]
            .into_iter()
            .map(Pages::zeroed)
            .collect();
        for round in 1..4 {
            for (i, pages) in all.iter_mut().enumerate() {
                assert_eq!(pages.as_ptr().align_offset(64), 0);
                assert!(pages.iter().all(|&x| x == 0), "pages {i} in round {round}");
                pages.fill(i as u32 + round);
            }
            for (i, pages) in all.iter().enumerate() {
                assert!(pages.iter().all(|&x| x == i as u32 + round), "pages {i} overlap");
            }
            for i in [1, 2, 4, 5] {
                let len = all[i].len();
                all[i] = Pages::zeroed(1);
                all[i] = Pages::zeroed(len);
            }
            for i in [0, 6] {
                all[i].fill(0);
            }
        }
    }

    #[test]
    fn a_place_that_came_back_is_given_out_again() {
        // A size that no other test has.
        let first = Pages::zeroed(54_321);
        let neighbor = Pages::zeroed(54_322);
        let place = first.as_ptr() as usize;
        drop(first);
        assert_eq!(Pages::zeroed(54_321).as_ptr() as usize, place);
        drop(neighbor);
    }
}
