//! A CUDA device on the CPU, for tests: stand-ins for the driver (`libcuda.so.1`), which runs the
//! kernels of kernels/cuda as fibers, for cuBLASLt (`libcublasLt.so.12`) and, in folders of
//! their own, for what kernels/cuda asks of cuDNN (`libcudnn.so.9`) and of NCCL (`libnccl.so.2`).
//!
//! A kernel runs from the same source as on a device. `include/fibers.hpp` says how its threads
//! run, `include/warp.hpp` what tensor cores and asynchronous copies do, `src/driver/` what of the
//! driver there is. Here is what a test sets ([`set_schedule`]) and asks ([`counters`]).
//!
//! A program that looks for CUDA in [`library_folder`] works as on a machine with a device. What a
//! kernel does that no device can do ends the process with a report: a barrier that some threads
//! never reach, lanes that miss a collective, a copy to an address that is not aligned. Memory
//! that nobody wrote is NaN.
//!
//! It runs on x86-64 Linux, where a C++ compiler was found; elsewhere [`unavailable`] says why not,
//! and tests skip aloud. It knows nothing of ops, and no crate of `ForgeLM`.
#![expect(unsafe_code, reason = "it calls functions of the libraries that its build made")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Which of the threads that could run does run. A correct kernel gives the same bits under all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Schedule {
    /// In the order of their indices.
    Forward = 0,
    /// In reverse.
    Reverse = 1,
    /// In an order drawn anew for each pass over the threads.
    Random = 2,
    /// One warp as far as it gets, then the next: shows barriers that are missing between warps.
    GreedyForward = 4,
    /// The same from the last warp.
    GreedyReverse = 5,
    /// The same with the next warp drawn.
    GreedyRandom = 6,
}

impl Schedule {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Forward,
        Self::Reverse,
        Self::Random,
        Self::GreedyForward,
        Self::GreedyReverse,
        Self::GreedyRandom,
    ];
}

/// When the bytes of a kernel's asynchronous copy arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum AsyncCopies {
    /// At its wait: where that is missing, NaN is read.
    AtWait = 0,
    /// At once: a buffer that is still read is overwritten.
    AtIssue = 1,
}

impl AsyncCopies {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AtWait, Self::AtIssue];
}

/// When the work of a stream is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Streams {
    /// When it is given.
    Eager = 0,
    /// Not before something waits for it: shows host memory that is reused too early and streams
    /// that do not wait for each other.
    Deferred = 1,
}

/// What the driver has done since it was loaded or [`reset_counters`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Launches by the name of the kernel. A launch that is captured counts once.
    pub launches: BTreeMap<String, u64>,
    /// Bytes copied from the host to the device.
    pub bytes_to_device: u64,
    /// Bytes copied from the device to the host.
    pub bytes_to_host: u64,
    /// Bytes copied on the device.
    pub bytes_on_device: u64,
    /// Copies from the host to the device.
    pub copies_to_device: u64,
    /// Copies from the device to the host.
    pub copies_to_host: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Waits of the host for a stream, an event or the context.
    pub synchronizations: u64,
    /// Launches of graphs.
    pub graph_launches: u64,
    /// Products of cuBLASLt.
    pub cublaslt_products: u64,
    /// Heuristics of cuBLASLt that were asked for.
    pub cublaslt_heuristics: u64,
    /// Forwards of attention by cuDNN.
    pub cudnn_attentions: u64,
    /// Plans that cuDNN made.
    pub cudnn_plans: u64,
    /// Messages that NCCL sent.
    pub nccl_messages: u64,
    /// Bytes in them.
    pub nccl_bytes: u64,
}

impl Counters {
    /// Launches of all kernels.
    #[must_use]
    pub fn n_launches(&self) -> u64 {
        self.launches.values().sum()
    }
}

/// The device that the driver finds.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// How many there are; with 0 `cuInit` fails as on a machine without a device.
    pub n_devices: i32,
    /// Its name.
    pub name: &'a str,
    /// Its compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// Its memory.
    pub memory_bytes: u64,
}

impl Default for Device<'_> {
    fn default() -> Self {
        Self {
            n_devices: 1,
            name: "forgelm emulated device",
            compute_capability: (9, 0),
            memory_bytes: 4 << 30,
        }
    }
}

/// What goes wrong in cuDNN's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum CudnnFault {
    /// Nothing.
    None = 0,
    /// One number of the result is another.
    WrongNumber = 1,
    /// Logarithms are to the base of two.
    LogarithmOfTwo = 2,
    /// A number behind the last row is written.
    WritesBehind = 3,
    /// The row behind the last one is weighted with zero, which matters where it is no number.
    ReadsBehind = 4,
    /// The last bit of a number is another every second time.
    OtherBits = 5,
    /// No plan is made.
    NoPlan = 6,
    /// A plan does not run.
    DoesNotRun = 7,
    /// There is no memory for a plan.
    NoMemory = 8,
    /// One number of the result is another, in plans for two sequences alone.
    WrongForTwo = 9,
    /// No plan is made for two sequences.
    NoPlanForTwo = 10,
}

/// The cuDNN that is found.
#[derive(Clone, Copy, Debug)]
pub struct Cudnn {
    /// As 92800 of 9.28.0.
    pub version: u64,
    /// The CUDA that it is for, as 12090 of 12.9.
    pub cuda_version: u64,
    /// What goes wrong in it.
    pub fault: CudnnFault,
}

impl Default for Cudnn {
    fn default() -> Self {
        Self { version: 92_800, cuda_version: 12_090, fault: CudnnFault::None }
    }
}

/// What goes wrong in NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum NcclFault {
    /// Nothing.
    None = 0,
    /// No id is made.
    NoId = 1,
    /// No communicator is made.
    NoCommunicator = 2,
    /// A group of sends and receives fails.
    OperationFails = 3,
    /// A bit of each message is another.
    WrongByte = 4,
    /// Nothing that is sent arrives.
    NoBytes = 5,
}

/// The NCCL that is found.
#[derive(Clone, Copy, Debug)]
pub struct Nccl {
    /// As 23203 of 2.32.3.
    pub version: i32,
    /// What goes wrong in it.
    pub fault: NcclFault,
}

impl Default for Nccl {
    fn default() -> Self {
        Self { version: 23_203, fault: NcclFault::None }
    }
}

/// An image that `cuModuleLoadData` takes for every kernel and every device: the header of an ELF
/// file that is not for CUDA. For tests of what has no images yet.
pub const IMAGE: [u8; 64] = {
    let mut image = [0; 64];
    image[0] = 0x7f;
    image[1] = b'E';
    image[2] = b'L';
    image[3] = b'F';
    image
};

/// Why there is no emulator on this machine; `None` where there is one.
#[must_use]
pub fn unavailable() -> Option<&'static str> {
    let reason = env!("EMULATOR_UNAVAILABLE");
    (!reason.is_empty()).then_some(reason)
}

/// The folder with `libcuda.so.1` and `libcublasLt.so.12` (and links without the numbers).
///
/// # Panics
/// If there is no emulator on this machine: ask [`unavailable`] first.
#[must_use]
pub fn library_folder() -> &'static Path {
    if let Some(reason) = unavailable() {
        panic!("{reason}");
    }
    Path::new(env!("EMULATOR_LIBRARIES"))
}

/// The folder with `libcudnn.so.9`.
///
/// # Panics
/// As [`library_folder`].
#[must_use]
pub fn cudnn_folder() -> PathBuf {
    library_folder().join("cudnn")
}

/// What cuDNN is from now on. It stays loaded, so that from then on whoever looks finds it.
///
/// # Panics
/// As [`library_folder`].
pub fn set_cudnn(cudnn: &Cudnn) {
    static SET: OnceLock<unsafe extern "C" fn(u64, u64, c_int)> = OnceLock::new();
    let set = SET.get_or_init(|| function(open("cudnn/libcudnn.so.9"), "emulator_cudnn_set"));
    // SAFETY: the signature is that of `emulator_cudnn_set` in src/cudnn.cpp.
    unsafe { set(cudnn.version, cudnn.cuda_version, cudnn.fault as c_int) }
}

/// The folder with `libnccl.so.2`.
///
/// # Panics
/// As [`library_folder`].
#[must_use]
pub fn nccl_folder() -> PathBuf {
    library_folder().join("nccl")
}

/// What NCCL is from now on; see [`set_cudnn`].
///
/// # Panics
/// As [`library_folder`].
pub fn set_nccl(nccl: &Nccl) {
    static SET: OnceLock<unsafe extern "C" fn(c_int, c_int)> = OnceLock::new();
    let set = SET.get_or_init(|| function(open("nccl/libnccl.so.2"), "emulator_nccl_set"));
    // SAFETY: the signature is that of `emulator_nccl_set` in src/nccl.cpp.
    unsafe { set(nccl.version, nccl.fault as c_int) }
}

/// Loads the driver and cuBLASLt, so that whoever looks for them by name (`libcuda.so`,
/// `libcublasLt.so`) finds these. A program that is given [`library_folder`] need not call it.
///
/// # Panics
/// As [`library_folder`].
pub fn load() {
    let _driver = controls();
    open("libcublasLt.so.12");
}

/// How the threads of a kernel take turns from now on.
///
/// # Panics
/// As [`library_folder`], as do all functions below.
pub fn set_schedule(schedule: Schedule) {
    // SAFETY: the signature is that of `emulator_set_schedule` in src/driver/control.cpp.
    unsafe { (controls().set_schedule)(schedule as c_int) }
}

/// When asynchronous copies of kernels arrive from now on.
pub fn set_async_copies(mode: AsyncCopies) {
    // SAFETY: as above.
    unsafe { (controls().set_async_copies)(mode as c_int) }
}

/// What random schedules are drawn from.
pub fn set_seed(seed: u64) {
    // SAFETY: as above.
    unsafe { (controls().set_seed)(seed) }
}

/// How many threads of this machine share the blocks of a kernel; at the start 1. Results do not
/// depend on it.
pub fn set_threads(n: u32) {
    // SAFETY: as above.
    unsafe { (controls().set_threads)(n) }
}

/// When the work of streams is done from now on.
pub fn set_streams(mode: Streams) {
    // SAFETY: as above.
    unsafe { (controls().set_stream_mode)(mode as c_int) }
}

/// Device memory that can be allocated in all, beside the size of the device itself.
pub fn set_memory_limit(bytes: u64) {
    // SAFETY: as above.
    unsafe { (controls().set_memory_limit)(bytes) }
}

/// The device to be found; to be called before the driver is initialized.
///
/// # Panics
/// If the name has a zero byte.
pub fn set_device(device: &Device<'_>) {
    let name = c_string(device.name);
    let (major, minor) = device.compute_capability;
    // SAFETY: as above; the text lives until the call returns, which copies it.
    unsafe {
        (controls().set_device)(device.n_devices, name.as_ptr(), major, minor, device.memory_bytes);
    }
}

/// Lets a call of a function of the driver fail: the one after `n_calls_before` more. `function` is
/// its name without a version (`cuMemAlloc`), `code` the number of a `CUresult`.
///
/// # Panics
/// If the name has a zero byte.
pub fn fail_next(function: &str, code: i32, n_calls_before: u32) {
    let function = c_string(function);
    // SAFETY: as in `set_device`.
    unsafe { (controls().fail_next)(function.as_ptr(), code, n_calls_before) }
}

/// Lets every call that needs the context fail, as after a fault of a kernel; 0 ends it.
pub fn fail_always(code: i32) {
    // SAFETY: as above.
    unsafe { (controls().fail_always)(code) }
}

/// Device memory that is allocated now.
#[must_use]
pub fn used_bytes() -> u64 {
    // SAFETY: as above.
    unsafe { (controls().used_bytes)() }
}

/// The names of all kernels that were compiled in, sorted.
#[must_use]
pub fn kernels() -> Vec<String> {
    read_text(controls().kernels).lines().map(str::to_owned).collect()
}

/// What the driver has done.
#[must_use]
pub fn counters() -> Counters {
    let mut counters = Counters::default();
    for line in read_text(controls().counters).lines() {
        let Some((name, value)) = line.split_once('\t') else { continue };
        let value = value.parse().unwrap_or_default();
        match name {
            "bytes to device" => counters.bytes_to_device = value,
            "bytes to host" => counters.bytes_to_host = value,
            "bytes on device" => counters.bytes_on_device = value,
            "copies to device" => counters.copies_to_device = value,
            "copies to host" => counters.copies_to_host = value,
            "allocations" => counters.allocations = value,
            "synchronizations" => counters.synchronizations = value,
            "graph launches" => counters.graph_launches = value,
            "products of cublasLt" => counters.cublaslt_products = value,
            "heuristics of cublasLt" => counters.cublaslt_heuristics = value,
            "attentions of cuDNN" => counters.cudnn_attentions = value,
            "plans of cuDNN" => counters.cudnn_plans = value,
            "messages of NCCL" => counters.nccl_messages = value,
            "bytes of NCCL" => counters.nccl_bytes = value,
            _ => {
                if let Some(kernel) = name.strip_prefix("launch ") {
                    counters.launches.insert(kernel.to_owned(), value);
                }
            }
        }
    }
    counters
}

/// Sets all counters to 0.
pub fn reset_counters() {
    // SAFETY: as above.
    unsafe { (controls().reset_counters)() }
}

/// Writes text of at most so many bytes to an address and returns how many there are in full.
type ReadText = unsafe extern "C" fn(*mut c_char, u64) -> u64;

/// Exported functions of the stand-in driver that no real one has.
struct Controls {
    set_schedule: unsafe extern "C" fn(c_int),
    set_async_copies: unsafe extern "C" fn(c_int),
    set_seed: unsafe extern "C" fn(u64),
    set_threads: unsafe extern "C" fn(c_uint),
    set_stream_mode: unsafe extern "C" fn(c_int),
    set_memory_limit: unsafe extern "C" fn(u64),
    set_device: unsafe extern "C" fn(c_int, *const c_char, c_int, c_int, u64),
    fail_next: unsafe extern "C" fn(*const c_char, c_int, c_uint),
    fail_always: unsafe extern "C" fn(c_int),
    counters: ReadText,
    reset_counters: unsafe extern "C" fn(),
    used_bytes: unsafe extern "C" fn() -> u64,
    kernels: ReadText,
}

fn controls() -> &'static Controls {
    static CONTROLS: OnceLock<Controls> = OnceLock::new();
    CONTROLS.get_or_init(find_controls)
}

/// A library that stays loaded for good: whoever opens it later gets the same one.
fn open(file: &str) -> &'static Library {
    let path = library_folder().join(file);
    // SAFETY: initializers of these libraries only fill the table of kernels.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Box::leak(Box::new(library))
}

fn find_controls() -> Controls {
    let library = open("libcuda.so.1");
    Controls {
        set_schedule: function(library, "emulator_set_schedule"),
        set_async_copies: function(library, "emulator_set_async_copies"),
        set_seed: function(library, "emulator_set_seed"),
        set_threads: function(library, "emulator_set_threads"),
        set_stream_mode: function(library, "emulator_set_stream_mode"),
        set_memory_limit: function(library, "emulator_set_memory_limit"),
        set_device: function(library, "emulator_set_device"),
        fail_next: function(library, "emulator_fail_next"),
        fail_always: function(library, "emulator_fail_always"),
        counters: function(library, "emulator_counters"),
        reset_counters: function(library, "emulator_reset_counters"),
        used_bytes: function(library, "emulator_used_bytes"),
        kernels: function(library, "emulator_kernels"),
    }
}

fn function<F: Copy>(library: &'static Library, name: &str) -> F {
    // SAFETY: the types of the fields of `Controls` are those in src/driver/control.cpp, and the
    // library stays loaded.
    let symbol = unsafe { library.get::<F>(name.as_bytes()) };
    *symbol.unwrap_or_else(|error| panic!("the stand-in driver lacks `{name}`: {error}"))
}

fn read_text(read: ReadText) -> String {
    // SAFETY: with 0 bytes nothing is written.
    let n_bytes = unsafe { read(std::ptr::null_mut(), 0) };
    // room for what other threads add in between
    let mut bytes = vec![0_u8; usize::try_from(n_bytes).unwrap_or(0) + 4096];
    // SAFETY: it writes at most as many bytes as there are.
    let n_bytes = unsafe { read(bytes.as_mut_ptr().cast(), bytes.len() as u64) };
    bytes.truncate(usize::try_from(n_bytes).unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("a name has no zero byte")
}
