//! Memory of the device, kept between uses.
//!
//! The driver's own allocation waits for the device and takes a millisecond; here memory is taken
//! from large blocks that stay. All work of this library goes through one stream, in order: what is
//! given back may be handed out again at once, since whatever uses it next comes after whatever
//! used it before. No event and no wait is needed for that.
//!
//! [`Arena`] is the bookkeeping, without a device; [`Pool`] gets its blocks from the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, result};

use crate::error::{CudaError, DriverFault};

/// Every allocation begins at a multiple of this: enough for any load of a kernel, and few enough
/// different sizes that memory that was given back fits again.
const GRANULE: usize = 512;
/// Bytes of a block, unless one allocation needs more.
const BLOCK: usize = 32 << 20;
/// Blocks of one large allocation are multiples of this, the driver's own page.
const PAGE: usize = 2 << 20;

/// Free and used ranges of some blocks.
#[derive(Debug, Default)]
struct Arena {
    /// Start of each block to its length.
    blocks: BTreeMap<u64, usize>,
    /// Start of each free range to its length. Neighbors in one block are always joined.
    free: BTreeMap<u64, usize>,
    /// The same, by length and then by start.
    by_length: BTreeSet<(usize, u64)>,
}

impl Arena {
    fn add_block(&mut self, start: u64, bytes: usize) {
        self.blocks.insert(start, bytes);
        self.insert_free(start, bytes);
    }

    fn insert_free(&mut self, start: u64, bytes: usize) {
        self.free.insert(start, bytes);
        self.by_length.insert((bytes, start));
    }

    fn remove_free(&mut self, start: u64, bytes: usize) {
        self.free.remove(&start);
        self.by_length.remove(&(bytes, start));
    }

    /// The shortest free range that fits, of equal ones the first: the choice is a function of what
    /// was asked before, so that a run that is repeated gets the same addresses.
    fn take(&mut self, bytes: usize) -> Option<u64> {
        let &(length, start) = self.by_length.range((bytes, 0)..).next()?;
        self.remove_free(start, length);
        if length > bytes {
            self.insert_free(start + bytes as u64, length - bytes);
        }
        Some(start)
    }

    fn give_back(&mut self, mut start: u64, mut bytes: usize) {
        let block = self.blocks.range(..=start).next_back().map_or(0, |(&block, _)| block);
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length as u64 == start
            && before >= block
        {
            self.remove_free(before, length);
            (start, bytes) = (before, bytes + length);
        }
        let end = start + bytes as u64;
        // a block that begins where this one ends is another allocation of the driver
        if let Some(&length) = self.free.get(&end)
            && !self.blocks.contains_key(&end)
        {
            self.remove_free(end, length);
            bytes += length;
        }
        self.insert_free(start, bytes);
    }

    /// Takes out the blocks of which nothing is used.
    fn take_unused_blocks(&mut self) -> Vec<(u64, usize)> {
        let whole = |&(start, bytes): &(u64, usize)| self.free.get(&start) == Some(&bytes);
        let unused: Vec<_> = self.blocks.iter().map(|(&s, &b)| (s, b)).filter(whole).collect();
        for &(start, bytes) in &unused {
            self.blocks.remove(&start);
            self.remove_free(start, bytes);
        }
        unused
    }

    fn free_bytes(&self) -> usize {
        self.free.values().sum()
    }
}

/// How much memory is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Bytes handed out.
    pub in_use: usize,
    /// The most that was handed out at once since the last [`Pool::forget_peak`].
    pub peak: usize,
    /// Bytes taken from the driver.
    pub reserved: usize,
}

#[derive(Debug, Default)]
struct State {
    arena: Arena,
    used: PoolUse,
    /// Start of what is handed out to its length.
    live: BTreeMap<u64, usize>,
    /// While a graph is captured: what was given back since. Replays use the same addresses, so that
    /// only calls of the same graph may be handed it.
    held: Option<Arena>,
}

/// Memory of one device.
#[derive(Debug)]
pub struct Pool {
    device: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// See [`crate::DeviceOptions::strict`].
    strict: bool,
    state: Mutex<State>,
}

impl State {
    fn hand_out(&mut self, start: u64, bytes: usize) {
        self.live.insert(start, bytes);
        self.used.in_use += bytes;
        self.used.peak = self.used.peak.max(self.used.in_use);
    }
}

impl Pool {
    pub(crate) fn new(device: String, stream: Arc<CudaStream>, strict: bool) -> Arc<Self> {
        let context = stream.context().clone();
        Arc::new(Self { device, context, stream, strict, state: Mutex::default() })
    }

    /// Memory for some bytes. What was there before is left in it.
    ///
    /// # Errors
    /// If the device has no more, even after blocks that nobody uses are given back.
    ///
    /// # Panics
    /// Never: a block that was just taken has room.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Allocation, CudaError> {
        if self.strict {
            return self.allocate_apart(bytes.max(1));
        }
        let bytes = bytes.max(1).next_multiple_of(GRANULE);
        let mut state = self.lock();
        let held = state.held.as_mut().and_then(|held| held.take(bytes));
        let mut found = held.or_else(|| state.arena.take(bytes));
        if found.is_none() {
            self.grow(&mut state, bytes)?;
            found = state.arena.take(bytes);
        }
        let start = found.expect("the new block is large enough");
        state.hand_out(start, bytes);
        Ok(Allocation { pool: Arc::clone(self), start, bytes })
    }

    /// Memory that is an allocation of the driver by itself, full of bits that are no number.
    fn allocate_apart(self: &Arc<Self>, bytes: usize) -> Result<Allocation, CudaError> {
        let mut state = self.lock();
        let start = self.ask_driver(&state, bytes)?;
        state.hand_out(start, bytes);
        state.used.reserved += bytes;
        drop(state);
        let allocation = Allocation { pool: Arc::clone(self), start, bytes };
        // SAFETY: the range is new, and nobody else has it.
        unsafe { result::memset_d8_async(start, 0xFF, bytes, self.stream.cu_stream()) }
            .map_err(|error| self.driver_error("filling new memory", error))?;
        Ok(allocation)
    }

    /// Takes a block from the driver. Where that is refused: a block of the exact size, and the same
    /// once more after unused blocks were given back.
    fn grow(&self, state: &mut State, bytes: usize) -> Result<(), CudaError> {
        if state.held.is_some() {
            let device = self.device.clone();
            return Err(CudaError::NotCapturable { device, op: "allocate", doing: "a new block" });
        }
        let exact = bytes.next_multiple_of(PAGE);
        let mut taken =
            self.ask_driver(state, exact.max(BLOCK)).map(|start| (start, exact.max(BLOCK)));
        if let Err(CudaError::OutOfMemory { .. }) = taken {
            taken = self.ask_driver(state, exact).map(|start| (start, exact));
        }
        if let Err(CudaError::OutOfMemory { .. }) = taken {
            self.trim_locked(state)?;
            taken = self.ask_driver(state, exact).map(|start| (start, exact));
        }
        let (start, length) = taken?;
        state.arena.add_block(start, length);
        state.used.reserved += length;
        Ok(())
    }

    fn ask_driver(&self, state: &State, bytes: usize) -> Result<u64, CudaError> {
        self.bind()?;
        // SAFETY: a call without a precondition; the context is current.
        let error = match unsafe { result::malloc_sync(bytes) } {
            Ok(start) => return Ok(start),
            Err(error) => error,
        };
        if !DriverFault::from(error).is_out_of_memory() {
            return Err(self.driver_error("an allocation", error));
        }
        let (driver, total) = result::mem_get_info().unwrap_or((0, 0));
        Err(CudaError::OutOfMemory {
            device: self.device.clone(),
            bytes,
            in_use: state.used.in_use,
            free: driver + state.arena.free_bytes(),
            total,
        })
    }

    /// Gives blocks that nobody uses back to the driver, after all work that was started has ended.
    ///
    /// # Errors
    /// If that work failed.
    pub fn trim(&self) -> Result<(), CudaError> {
        self.trim_locked(&mut self.lock())
    }

    fn trim_locked(&self, state: &mut State) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|e| self.driver_error("waiting for the device", e))?;
        for (start, bytes) in state.arena.take_unused_blocks() {
            state.used.reserved -= bytes;
            // SAFETY: the block came from `malloc_sync`, nothing of it is handed out, and the
            // stream that used it has ended its work.
            unsafe { result::free_sync(start) }
                .map_err(|error| self.driver_error("giving memory back", error))?;
        }
        Ok(())
    }

    /// Bytes that can still be handed out: what the driver has, and what lies unused here.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        let here = self.lock().arena.free_bytes();
        let asked = self.context.mem_get_info();
        let (driver, _) = asked.map_err(|e| self.driver_error("asking for free memory", e))?;
        Ok(here + driver)
    }

    /// Whether these bytes lie in one allocation that is in use.
    pub(crate) fn holds(&self, address: u64, bytes: usize) -> bool {
        let state = self.lock();
        let found = state.live.range(..=address).next_back();
        let Some((start, length)) = found else { return false };
        let Some(end) = address.checked_add(bytes as u64) else { return false };
        end <= start + *length as u64
    }

    /// How much is in use.
    #[must_use]
    pub fn used(&self) -> PoolUse {
        self.lock().used
    }

    /// Begins to count the peak anew, from what is in use now.
    pub fn forget_peak(&self) {
        let mut state = self.lock();
        state.used.peak = state.used.in_use;
    }

    /// Whether memory can be taken without a call of the driver.
    pub(crate) fn is_capturable(&self) -> bool {
        !self.strict
    }

    /// From now on what is given back is handed only to calls before [`Pool::release`].
    pub(crate) fn hold(&self) {
        let mut state = self.lock();
        let blocks = state.arena.blocks.clone();
        state.held.get_or_insert(Arena { blocks, ..Arena::default() });
    }

    /// Ends [`Pool::hold`]: what was given back meanwhile, to be dropped when it may be handed out
    /// again.
    pub(crate) fn release(self: &Arc<Self>) -> Vec<Allocation> {
        let mut state = self.lock();
        let held = state.held.take().unwrap_or_default();
        state.used.in_use += held.free_bytes();
        state.live.extend(&held.free);
        let whole = |(start, bytes)| Allocation { pool: Arc::clone(self), start, bytes };
        held.free.into_iter().map(whole).collect()
    }

    fn give_back(&self, start: u64, bytes: usize) {
        let mut state = self.lock();
        state.used.in_use -= bytes;
        state.live.remove(&start);
        if self.strict {
            state.used.reserved -= bytes;
            // Failures cannot be reported from here, and show in the next call.
            let _ = self.stream.synchronize();
            // SAFETY: the driver gave it as it is, and the stream has come past all uses of it.
            let _ = unsafe { result::free_sync(start) };
            return;
        }
        match &mut state.held {
            Some(held) => held.give_back(start, bytes),
            None => state.arena.give_back(start, bytes),
        }
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(|e| self.driver_error("choosing the device", e))
    }

    fn driver_error(&self, doing: &'static str, error: result::DriverError) -> CudaError {
        CudaError::Driver { device: self.device.clone(), doing, fault: error.into() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything in it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Every allocation holds the pool, so that none is left. After a failure of the device
        // nothing can be given back; the driver takes it when the context goes.
        let _ = self.trim();
    }
}

/// Some memory of the device. Dropping it gives it back, in the order of the stream.
#[derive(Debug)]
pub struct Allocation {
    pool: Arc<Pool>,
    start: u64,
    bytes: usize,
}

impl Allocation {
    /// Where it begins, for kernels: a multiple of 512.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start
    }

    /// Its length: what was asked for or a little more.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.pool.give_back(self.start, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::device::DeviceOptions;
    use crate::emulated;

    #[test]
    fn the_shortest_range_that_fits_is_taken() {
        let mut arena = Arena::default();
        arena.add_block(0, 4096);
        assert_eq!(
            (arena.take(1024), arena.take(512), arena.take(512)),
            (Some(0), Some(1024), Some(1536))
        );
        arena.give_back(0, 1024);
        arena.give_back(1024, 512);
        // [0, 1536) and [2048, 4096) are free
        assert_eq!(arena.take(1536), Some(0));
        arena.give_back(0, 1536);
        assert_eq!(arena.take(2048), Some(2048));
        assert_eq!(arena.take(2048), None);
        assert_eq!(arena.free_bytes(), 1536);
    }

    #[test]
    fn neighbors_are_joined_in_every_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut arena = Arena::default();
            arena.add_block(8192, 1536);
            for _ in 0..3 {
                arena.take(512).expect("three fit");
            }
            assert_eq!(arena.take(512), None);
            for part in order {
                arena.give_back(8192 + 512 * part, 512);
            }
            assert_eq!(arena.free, BTreeMap::from([(8192, 1536)]));
            assert_eq!(arena.by_length, BTreeSet::from([(1536, 8192)]));
        }
    }

    #[test]
    fn blocks_that_touch_stay_apart() {
        let mut arena = Arena::default();
        arena.add_block(0, 512);
        arena.add_block(512, 512);
        assert_eq!(arena.take(1024), None);
        assert_eq!((arena.take(512), arena.take(512)), (Some(0), Some(512)));
        arena.give_back(512, 512);
        arena.give_back(0, 512);
        assert_eq!(arena.take(1024), None);
        assert_eq!(arena.take_unused_blocks(), [(0, 512), (512, 512)]);
        assert_eq!((arena.take(512), arena.free_bytes()), (None, 0));
    }

    #[test]
    fn a_block_in_use_is_no_unused_block() {
        let mut arena = Arena::default();
        arena.add_block(0, 1024);
        arena.add_block(4096, 1024);
        let taken = arena.take(512).expect("there is room");
        assert_eq!((taken, arena.take_unused_blocks()), (0, vec![(4096, 1024)]));
        assert_eq!(arena.free_bytes(), 512);
    }

    #[test]
    fn blocks_are_kept_and_given_back_when_asked() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let pool = device.pool();
        let before = emulator::used_bytes();
        let (a, b) = (pool.allocate(1).unwrap(), pool.allocate(40 << 20).unwrap());
        assert_eq!((a.n_bytes(), b.n_bytes()), (512, 40 << 20));
        assert!(a.address().is_multiple_of(512) && b.address().is_multiple_of(512));
        let used = PoolUse { in_use: (40 << 20) + 512, peak: (40 << 20) + 512, reserved: 72 << 20 };
        assert_eq!(pool.used(), used);
        assert_eq!(emulator::used_bytes() - before, 72 << 20);
        let free = pool.free_bytes().unwrap();
        drop(b);
        assert_eq!(pool.free_bytes().unwrap(), free + (40 << 20));
        assert_eq!(pool.used(), PoolUse { in_use: 512, ..used });
        pool.trim().unwrap();
        assert_eq!(emulator::used_bytes() - before, 32 << 20);
        pool.forget_peak();
        assert_eq!(pool.used(), PoolUse { in_use: 512, peak: 512, reserved: 32 << 20 });
        drop(a);
        drop(device);
        assert_eq!(emulator::used_bytes(), before, "a device that is closed leaves nothing");
    }

    #[test]
    fn memory_that_nobody_uses_goes_back_before_any_is_refused() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let pool = device.pool();
        emulator::set_memory_limit(emulator::used_bytes() + (70 << 20));
        // not enough left for a block of the usual size, but for one of the exact size
        let (a, b) = (pool.allocate(33 << 20).unwrap(), pool.allocate(20 << 20).unwrap());
        assert_eq!(pool.used().reserved, (34 << 20) + (32 << 20));
        drop(b);
        let c = pool.allocate(36 << 20).unwrap();
        assert_eq!(pool.used().reserved, (34 << 20) + (36 << 20));
        match pool.allocate(1 << 20).map(|allocation| allocation.n_bytes()) {
            Ok(n) => assert_eq!(n, 1 << 20, "the rest of the first block"),
            Err(error) => panic!("{error}"),
        }
        let error = pool.allocate(2 << 20).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("cuda:0: 2097152 bytes do not fit: 72351744 bytes of its"),
            "{text}"
        );
        assert!(matches!(error, CudaError::OutOfMemory { bytes: 2_097_152, .. }), "{text}");
        drop((a, c));
        pool.allocate(60 << 20).unwrap();
    }

    #[test]
    fn only_what_is_handed_out_is_held() {
        let Some(_alone) = emulated::alone() else { return };
        for strict in [false, true] {
            let device = emulated::device(DeviceOptions { strict, ..emulated::options() });
            let pool = device.pool();
            let (first, second) = (pool.allocate(512).unwrap(), pool.allocate(512).unwrap());
            let at = first.address();
            assert!(pool.holds(at, 512) && pool.holds(at + 500, 12) && pool.holds(at, 0));
            assert!(!pool.holds(at, 513), "past its end, where the next one lies");
            assert!(!pool.holds(at - 1, 1) && !pool.holds(at, usize::MAX) && !pool.holds(0, 1));
            drop(first);
            assert!(!pool.holds(at, 1) && pool.holds(second.address(), 512));
        }
    }

    #[test]
    fn strict_allocations_are_full_of_no_number() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(DeviceOptions { strict: true, ..emulated::options() });
        let before = emulator::used_bytes();
        let first = device.pool().allocate(100).unwrap();
        let second = device.pool().allocate(7).unwrap();
        assert_eq!(emulator::used_bytes() - before, 107);
        let used = PoolUse { in_use: 107, peak: 107, reserved: 107 };
        assert_eq!(device.pool().used(), used);
        drop((first, second));
        assert_eq!(emulator::used_bytes(), before);
        assert_eq!(device.pool().used(), PoolUse { in_use: 0, peak: 107, reserved: 0 });
    }
}
