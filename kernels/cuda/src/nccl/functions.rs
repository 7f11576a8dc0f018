//! NCCL's functions, as NVIDIA's `nccl.h` declares them.
//!
//! Looked up here and not called through cudarc, which panics where the library is missing, does not
//! know the name `libnccl.so.2`, and has no place in its type of an answer for a number that a later
//! NCCL may answer with. Compared with the header of 2.32.3.

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::Library;

/// `ncclComm_t`, or a stream.
pub(super) type Pointer = *mut c_void;

/// Of `ncclResult_t`.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// Of `ncclDataType_t`: `ncclUint8`.
const BYTES: c_int = 1;
/// `NCCL_API_MAGIC`.
const MAGIC: u32 = 0xcafe_beef;
/// Bytes of an id.
const ID_BYTES: usize = 128;

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId {
    internal: [u8; ID_BYTES],
}

/// `ncclConfig_t` as 2.14 had it. A later library takes the fields that this version has, and its
/// own defaults for all others.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

/// The functions that are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Pointer, c_int, UniqueId, c_int, *mut Config) -> c_int,
    async_error: unsafe extern "C" fn(Pointer, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn(Pointer) -> c_int,
    destroy: unsafe extern "C" fn(Pointer) -> c_int,
    abort: unsafe extern "C" fn(Pointer) -> c_int,
    words: unsafe extern "C" fn(c_int) -> *const c_char,
    last_words: unsafe extern "C" fn(Pointer) -> *const c_char,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Pointer, Pointer) -> c_int,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Pointer, Pointer) -> c_int,
}

/// The version of a library, as 23203 of 2.32.3; `None` if it is none of NCCL.
pub(super) fn version_of(library: &'static Library) -> Option<i32> {
    let version = function(library, "ncclGetVersion").ok()?;
    let version: unsafe extern "C" fn(*mut c_int) -> c_int = version;
    let mut found = 0;
    // SAFETY: it writes one number.
    (unsafe { version(&raw mut found) } == SUCCESS).then_some(found)
}

impl Functions {
    /// All of them, or the name of one that the library lacks.
    pub(super) fn of(library: &'static Library) -> Result<Self, &'static str> {
        Ok(Self {
            unique_id: function(library, "ncclGetUniqueId")?,
            init: function(library, "ncclCommInitRankConfig")?,
            async_error: function(library, "ncclCommGetAsyncError")?,
            finalize: function(library, "ncclCommFinalize")?,
            destroy: function(library, "ncclCommDestroy")?,
            abort: function(library, "ncclCommAbort")?,
            words: function(library, "ncclGetErrorString")?,
            last_words: function(library, "ncclGetLastError")?,
            group_start: function(library, "ncclGroupStart")?,
            group_end: function(library, "ncclGroupEnd")?,
            send: function(library, "ncclSend")?,
            recv: function(library, "ncclRecv")?,
        })
    }

    pub(super) fn new_id(&self) -> Result<Vec<u8>, c_int> {
        let mut id = UniqueId { internal: [0; ID_BYTES] };
        // SAFETY: it writes one id.
        let answer = unsafe { (self.unique_id)(&raw mut id) };
        if answer == SUCCESS { Ok(id.internal.to_vec()) } else { Err(answer) }
    }

    /// Begins a communicator that never blocks, with the device current on this thread. One that was
    /// made must be ended also where the answer is a failure.
    ///
    /// # Panics
    /// If the bytes are no id: a bug of the caller.
    pub(super) fn begin(&self, id: &[u8], rank: usize, n_ranks: usize) -> (Pointer, c_int) {
        let internal = id.try_into().expect("an id has 128 bytes");
        let mut config =
            Config { size: size_of::<Config>(), magic: MAGIC, version: 21_400, blocking: 0 };
        let (rank, n_ranks) = (number(rank), number(n_ranks));
        let mut made = std::ptr::null_mut();
        let id = UniqueId { internal };
        // SAFETY: it reads as much of the config as its size says, and writes one address.
        let answer = unsafe { (self.init)(&raw mut made, n_ranks, id, rank, &raw mut config) };
        (made, answer)
    }

    /// How it goes: done, in progress, or the failure.
    pub(super) fn state(&self, communicator: Pointer) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: the communicator was begun and not ended; it writes one number.
        let answer = unsafe { (self.async_error)(communicator, &raw mut state) };
        if answer == SUCCESS { state } else { answer }
    }

    /// Begins to end it: what it still does is done first.
    pub(super) fn finalize(&self, communicator: Pointer) -> c_int {
        // SAFETY: as in `state`.
        unsafe { (self.finalize)(communicator) }
    }

    /// Ends it, after what was begun is done.
    pub(super) fn destroy(&self, communicator: Pointer) {
        // SAFETY: as in `state`; nobody has it after this. What it answers changes nothing any more.
        let _ = unsafe { (self.destroy)(communicator) };
    }

    /// Ends it, whatever it does.
    pub(super) fn abort(&self, communicator: Pointer) {
        // SAFETY: as in `destroy`.
        let _ = unsafe { (self.abort)(communicator) };
    }

    /// Calls sends and receives as one operation.
    pub(super) fn grouped(&self, calls: impl FnOnce() -> c_int) -> c_int {
        // SAFETY: the call has no precondition.
        let started = unsafe { (self.group_start)() };
        if started != SUCCESS {
            return started;
        }
        let called = calls();
        // SAFETY: a group was started. It is ended also after a call that failed.
        let ended = unsafe { (self.group_end)() };
        if matches!(called, SUCCESS | IN_PROGRESS) { ended } else { called }
    }

    /// Within a group: sends bytes at an address of the device.
    ///
    /// # Safety
    /// They are there, and nothing writes them, until the operation is done.
    pub(super) unsafe fn send(
        &self,
        (address, n_bytes): (u64, usize),
        peer: usize,
        (communicator, stream): (Pointer, Pointer),
    ) -> c_int {
        let from = address as *const c_void;
        // SAFETY: the communicator and the stream are alive; the rest is the caller's promise.
        unsafe { (self.send)(from, n_bytes, BYTES, number(peer), communicator, stream) }
    }

    /// Within a group: receives bytes to an address of the device.
    ///
    /// # Safety
    /// There is room for them, which nothing else uses, until the operation is done.
    pub(super) unsafe fn receive(
        &self,
        (address, n_bytes): (u64, usize),
        peer: usize,
        (communicator, stream): (Pointer, Pointer),
    ) -> c_int {
        let to = address as *mut c_void;
        // SAFETY: as in `send`.
        unsafe { (self.recv)(to, n_bytes, BYTES, number(peer), communicator, stream) }
    }

    /// What an answer means, in NCCL's own words; the last ones of a communicator, if there is one.
    pub(super) fn words(&self, answer: c_int, communicator: Pointer) -> String {
        // SAFETY: it gives text that stays, for any number.
        let of_answer = text(unsafe { (self.words)(answer) });
        // SAFETY: a communicator that is none may be asked of too; text that stays until the next
        // failure of this thread, as it is copied here.
        let last = text(unsafe { (self.last_words)(communicator) });
        let last = last.lines().next().map(str::trim).filter(|line| !line.is_empty());
        let last = last.map(|line| format!("; {line}")).unwrap_or_default();
        format!("{of_answer} ({answer}){last}")
    }
}

fn number(n: usize) -> c_int {
    c_int::try_from(n).expect("processes are few")
}

fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's texts end with a zero.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// A function of a library that stays loaded, or its name.
fn function<F: Copy>(library: &'static Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: the caller's type is that of NVIDIA's header.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|_| name)
}
