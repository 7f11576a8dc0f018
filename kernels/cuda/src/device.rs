//! One device: its context, its stream, its memory, and the kernels that were loaded for it.
//!
//! There is one stream, and everything goes through it in the order in which it was asked for. That
//! order is all the synchronization there is; events of cudarc are off. Start reading at
//! [`Device::open`], then `call`.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use cudarc::driver::sys::{
    CUdevice_attribute as Attribute, CUfunction, CUfunction_attribute, CUmodule,
};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use crate::arrays::Arrays;
use crate::call::{Argument, Grid};
use crate::cublaslt::CublasLt;
use crate::cudnn::{CuDnn, CuDnnUnused};
use crate::error::{CudaError, Launched, fail};
use crate::images::{CodeSource, ImageSource, Images};
use crate::libraries::{Availability, Libraries};
use crate::nccl::{Nccl, NcclUnused};
use crate::pool::{Allocation, Pool};
use crate::staging::Staging;

/// Dynamic shared memory that every kernel may use; more must be asked for.
const SHARED_BYTES_DEFAULT: usize = 48 << 10;
/// Launches that are remembered for the message of a failure.
const LAUNCHES_REMEMBERED: usize = 8;

/// How a device is used.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Which kernels run.
    pub images: ImageSource,
    /// Folder for kernels that are compiled here; it exists. Without one they are compiled anew in
    /// each process.
    pub compiled: Option<PathBuf>,
    /// Wait after each launch, so that a failure is reported where it happened.
    pub wait_for_each: bool,
    /// Make each allocation one of the driver's own, full of bits that are no number: with a tool
    /// that watches allocations this finds kernels that read what nobody wrote or go past an end.
    /// Slow; graphs cannot be captured.
    pub strict: bool,
    /// Compute all of attention with our own kernels, also where cuDNN is there.
    pub own_attention: bool,
    /// Leave NCCL alone, also where it is there.
    pub no_nccl: bool,
    /// Tells whoever runs this what he should know, once: a library that is not used because it
    /// computes something else. Without one nobody is told.
    pub alarm: Option<fn(&str)>,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its number among the devices, from 0.
    pub ordinal: usize,
    /// As `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Major and minor.
    pub capability: (u32, u32),
    /// All of its memory.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub n_multiprocessors: usize,
    /// The most shared memory that a block may ask for.
    pub shared_bytes_max: usize,
    /// The newest CUDA that the driver knows, as 12080.
    pub driver_version: u32,
    /// What tells it from all other devices.
    pub uuid: [u8; 16],
}

/// A loaded module of kernels.
#[derive(Debug)]
struct Module(CUmodule);

/// A kernel that was looked up.
#[derive(Clone, Debug)]
struct Kernel {
    name: Arc<str>,
    function: CUfunction,
    /// Dynamic shared memory that was asked for already.
    shared_bytes: usize,
    /// Lengths of its parameters; unknown to drivers before CUDA 12.4.
    parameters: Option<Arc<[usize]>>,
    code: CodeSource,
}

// SAFETY: handles of the driver may be used from every thread that the context is current on.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Send for Kernel {}

#[derive(Debug, Default)]
struct Loaded {
    /// By the image's own name.
    modules: BTreeMap<String, Module>,
    kernels: BTreeMap<String, Kernel>,
}

/// A graph in the making.
#[derive(Debug)]
pub(crate) struct Capture {
    /// The one thread that may use the device meanwhile.
    pub(crate) thread: ThreadId,
    /// What its calls use, which must stay where it is as long as the graph is replayed.
    pub(crate) used: Vec<Arc<dyn Any + Send + Sync>>,
}

/// One device, open.
#[derive(Debug)]
pub struct Device {
    label: String,
    facts: DeviceFacts,
    options: DeviceOptions,
    images: Images,
    loaded: Mutex<Loaded>,
    launches: Mutex<VecDeque<Launched>>,
    pub(crate) arrays: Mutex<Arrays>,
    pub(crate) staging: Mutex<Staging>,
    pub(crate) capture: Mutex<Option<Capture>>,
    blas: Option<CublasLt>,
    attention: Result<CuDnn, CuDnnUnused>,
    nccl: Result<Nccl, NcclUnused>,
    pool: Arc<Pool>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// If there is no such device, the driver cannot be started, or the device is too old.
    pub fn open(
        ordinal: usize,
        libraries: &Libraries,
        options: DeviceOptions,
    ) -> Result<Arc<Self>, CudaError> {
        let n_devices = match libraries.availability() {
            Availability::Usable { n_devices, .. } => n_devices,
            nothing => return Err(CudaError::NotUsable(nothing)),
        };
        if ordinal >= n_devices {
            return Err(CudaError::NoSuchDevice { ordinal, n_devices });
        }
        let label = format!("cuda:{ordinal}");
        let failed = |doing| {
            let device = label.clone();
            move |error: DriverError| CudaError::Driver { device, doing, fault: error.into() }
        };
        let context = CudaContext::new(ordinal).map_err(failed("opening the device"))?;
        // SAFETY: no slice of cudarc is ever made here, and there is one stream.
        unsafe { context.disable_event_tracking() };
        let facts = facts(&context).map_err(failed("asking what the device is"))?;
        if facts.capability < (8, 0) {
            let device = format!("{label} ({})", facts.name);
            return Err(CudaError::TooOld { device, capability: facts.capability });
        }
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let images = Images::new(
            options.images.clone(),
            facts.capability,
            options.compiled.clone(),
            libraries.nvrtc.is_there(),
        );
        let attention = match options.own_attention {
            true => Err(CuDnnUnused::SwitchedOff),
            false => CuDnn::open(libraries, &facts, stream.cu_stream().cast()),
        };
        let nccl = match options.no_nccl {
            true => Err(NcclUnused::SwitchedOff),
            false => Nccl::open(&libraries.nccl),
        };
        Ok(Arc::new(Self {
            nccl,
            blas: CublasLt::open(&libraries.cublaslt),
            attention,
            pool: Pool::new(label.clone(), Arc::clone(&stream), options.strict),
            label,
            facts,
            options,
            images,
            loaded: Mutex::default(),
            launches: Mutex::default(),
            arrays: Mutex::default(),
            staging: Mutex::default(),
            capture: Mutex::default(),
            stream,
            context,
        }))
    }

    /// What the device is.
    #[must_use]
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// As `cuda:0`.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Products by cuBLASLt, where it was found.
    pub(crate) fn blas(&self) -> Option<&CublasLt> {
        self.blas.as_ref()
    }

    /// Attention by cuDNN, or why not.
    pub(crate) fn attention(&self) -> &Result<CuDnn, CuDnnUnused> {
        &self.attention
    }

    /// Attention by cuDNN, where it is used.
    pub(crate) fn cudnn(&self) -> Option<&CuDnn> {
        self.attention.as_ref().ok()
    }

    /// What links it with the devices of other processes, or why nothing does.
    pub(crate) fn nccl(&self) -> &Result<Nccl, NcclUnused> {
        &self.nccl
    }

    /// Version of NCCL as `2.32.3`, or why it is not used.
    ///
    /// # Errors
    /// Why not.
    pub fn nccl_version(&self) -> Result<String, NcclUnused> {
        self.nccl.as_ref().map(Nccl::version).map_err(Clone::clone)
    }

    /// Tells whoever runs this something.
    pub(crate) fn warn(&self, text: &str) {
        if let Some(alarm) = self.options.alarm {
            alarm(text);
        }
    }

    /// Whether NVRTC compiles for this device: one source is tried. `None` without NVRTC.
    #[must_use]
    pub fn try_compiler(&self) -> Option<Result<(), String>> {
        self.images.try_compiler()
    }

    /// Where the code of a kernel came from; `None` if it was not loaded yet.
    pub(crate) fn code_of(&self, kernel: &str) -> Option<CodeSource> {
        lock(&self.loaded).kernels.get(kernel).map(|kernel| kernel.code.clone())
    }

    /// Its memory.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The stream of everything. The device is current on the calling thread afterwards.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Makes the device current on the calling thread.
    ///
    /// # Errors
    /// If the device has failed.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(|e| self.driver_error("choosing the device", e))
    }

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// If some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|e| self.earlier("waiting", "synchronize", e))
    }

    /// The error of a call of the driver that says nothing of earlier work.
    pub(crate) fn driver_error(&self, doing: &'static str, error: DriverError) -> CudaError {
        CudaError::Driver { device: self.label.clone(), doing, fault: error.into() }
    }

    /// The error of a call that reports what work before it did.
    pub(crate) fn earlier(
        &self,
        doing: &'static str,
        op: &'static str,
        error: DriverError,
    ) -> CudaError {
        CudaError::Earlier {
            device: self.label.clone(),
            op,
            doing,
            launches: lock(&self.launches).iter().rev().cloned().collect(),
            fault: Box::new(error.into()),
        }
    }

    /// Starts a kernel. Its grid is not empty.
    pub(crate) fn launch(
        &self,
        op: &'static str,
        name: &str,
        grid: Grid,
        arguments: &mut [Argument],
    ) -> Result<(), CudaError> {
        let kernel = self.kernel(op, name, grid)?;
        if let Some(parameters) = &kernel.parameters {
            let given = arguments.iter().map(Argument::n_bytes);
            assert!(
                given.eq(parameters.iter().copied()),
                "`{name}` of `{op}` takes parameters of {parameters:?} bytes, not {:?}",
                arguments.iter().map(Argument::n_bytes).collect::<Vec<_>>()
            );
        }
        let launched =
            Launched { op, kernel: Arc::clone(&kernel.name), grid, arguments: arguments.to_vec() };
        let mut places: Vec<_> = arguments.iter_mut().map(Argument::place).collect();
        let [x, y, z] = grid.blocks.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        // SAFETY: the function belongs to a module that stays loaded. The arguments are as many and
        // as long as its parameters, which drivers that know them were asked. What they point to is
        // alive until the stream has come past this launch (see `pool`).
        let answer = unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (grid.threads, 1, 1),
                u32::try_from(grid.shared_bytes).unwrap_or(u32::MAX),
                self.stream.cu_stream(),
                &mut places,
            )
        };
        if let Err(error) = answer {
            return Err(self.refused(launched, error));
        }
        self.remember(launched);
        if self.options.wait_for_each {
            self.stream.synchronize().map_err(|e| self.earlier("the launch", op, e))?;
        }
        Ok(())
    }

    fn remember(&self, launched: Launched) {
        let mut launches = lock(&self.launches);
        if launches.len() == LAUNCHES_REMEMBERED {
            launches.pop_front();
        }
        launches.push_back(launched);
    }

    /// A launch also reports what work before it did; the driver's number tells the two apart.
    fn refused(&self, launched: Launched, error: DriverError) -> CudaError {
        use cudarc::driver::sys::CUresult as R;
        let by_itself = matches!(
            error.0,
            R::CUDA_ERROR_INVALID_VALUE
                | R::CUDA_ERROR_INVALID_HANDLE
                | R::CUDA_ERROR_INVALID_IMAGE
                | R::CUDA_ERROR_INVALID_CONTEXT
                | R::CUDA_ERROR_NOT_FOUND
                | R::CUDA_ERROR_OUT_OF_MEMORY
                | R::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
                | R::CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING
        );
        if by_itself {
            CudaError::Launch {
                device: self.label.clone(),
                launched: Box::new(launched),
                fault: error.into(),
            }
        } else {
            self.earlier("a launch", launched.op, error)
        }
    }

    /// Looks a kernel up, loading its module when it is the first of it, and asks for its shared
    /// memory when it needs more than before.
    fn kernel(&self, op: &'static str, name: &str, grid: Grid) -> Result<Kernel, CudaError> {
        let mut loaded = lock(&self.loaded);
        if !loaded.kernels.contains_key(name) {
            let (function, code) = self.find_function(&mut loaded, name)?;
            let kernel = Kernel {
                name: name.into(),
                function,
                shared_bytes: SHARED_BYTES_DEFAULT,
                parameters: parameters_of(function),
                code,
            };
            loaded.kernels.insert(name.to_owned(), kernel);
        }
        let kernel = loaded.kernels.get_mut(name).expect("it was just put there");
        if grid.shared_bytes > kernel.shared_bytes {
            let bytes = i32::try_from(grid.shared_bytes).unwrap_or(i32::MAX);
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that stays loaded.
            unsafe { result::function::set_function_attribute(kernel.function, attribute, bytes) }
                .map_err(|error| {
                    let kernel = Arc::clone(&kernel.name);
                    self.refused(Launched { op, kernel, grid, arguments: Vec::new() }, error)
                })?;
            kernel.shared_bytes = grid.shared_bytes;
        }
        Ok(kernel.clone())
    }

    /// Tries each form of the kernel that may run here, the best first.
    fn find_function(
        &self,
        loaded: &mut Loaded,
        name: &str,
    ) -> Result<(CUfunction, CodeSource), CudaError> {
        let kernel = CString::new(name).expect("names of kernels have no zero in them");
        let mut reasons = Vec::new();
        for form in self.images.forms(name) {
            let answer = self.module(loaded, &form).and_then(|module| {
                // SAFETY: the module is loaded, and stays so.
                unsafe { result::module::get_function(module, kernel.clone()) }
                    .map_err(|error| crate::error::DriverFault::from(error).to_string())
            });
            match answer {
                Ok(function) => return Ok((function, form.source())),
                Err(reason) => reasons.push(format!("{form}: {reason}")),
            }
        }
        Err(CudaError::NoImage {
            device: self.label.clone(),
            kernel: name.to_owned(),
            architecture: self.images.architecture(),
            reasons,
        })
    }

    fn module(&self, loaded: &mut Loaded, form: &crate::images::Form) -> Result<CUmodule, String> {
        let key = form.to_string();
        if let Some(module) = loaded.modules.get(&key) {
            return Ok(module.0);
        }
        let image = self.images.image(form)?;
        // SAFETY: the image is a whole file of the compiler: it was made at build time, or just
        // now, or its hash was compared. Text ends with a zero.
        let answer = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = answer.map_err(|error| crate::error::DriverFault::from(error).to_string())?;
        loaded.modules.insert(key, Module(module));
        Ok(module)
    }

    /// Keeps what a call uses as long as the graph that is being captured, if one is.
    pub(crate) fn keep_for_capture<T: Send + Sync + 'static>(&self, used: &Arc<T>) {
        if let Some(capture) = &mut *lock(&self.capture) {
            let used: Arc<T> = Arc::clone(used);
            capture.used.push(used);
        }
    }

    /// Ends an op that does what a graph cannot repeat, if one is being captured.
    pub(crate) fn refuse_in_capture(&self, op: &'static str, doing: &'static str) {
        if lock(&self.capture).is_some() {
            fail(&CudaError::NotCapturable { device: self.label.clone(), op, doing });
        }
    }

    /// # Panics
    /// If another thread captures a graph: what this one does would become a part of it.
    pub(crate) fn refuse_other_threads(&self, op: &str) {
        let capture = lock(&self.capture);
        let mine = capture.as_ref().is_none_or(|c| c.thread == std::thread::current().id());
        drop(capture);
        assert!(mine, "{}: `{op}` while another thread captures a graph", self.label);
    }

    /// Memory for a call.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Allocation, CudaError> {
        self.pool.allocate(bytes)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Modules go after all work with them. What fails here cannot be reported; the driver takes
        // everything back with the context.
        let _ = self.stream.synchronize();
        for module in lock(&self.loaded).modules.values() {
            // SAFETY: nothing runs any more, and nobody can look into the module after this.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

/// Lengths of a kernel's parameters, where the driver knows.
fn parameters_of(function: CUfunction) -> Option<Arc<[usize]>> {
    use cudarc::driver::sys::{CUresult, cuFuncGetParamInfo, culib};
    // SAFETY: the driver is there, and the symbol is only looked for: a function that is missing
    // would make cudarc panic.
    let known = unsafe { culib().get::<*const ()>(b"cuFuncGetParamInfo\0") }.is_ok();
    if !known {
        return None;
    }
    let mut lengths = Vec::new();
    loop {
        let (mut offset, mut length) = (0, 0);
        // SAFETY: the function belongs to a loaded module; the driver writes two numbers, or
        // refuses an index past the last parameter.
        let answer = unsafe {
            cuFuncGetParamInfo(function, lengths.len(), &raw mut offset, &raw mut length)
        };
        if answer != CUresult::CUDA_SUCCESS {
            return Some(lengths.into());
        }
        lengths.push(length);
    }
}

fn facts(context: &Arc<CudaContext>) -> Result<DeviceFacts, DriverError> {
    let number = |attribute| context.attribute(attribute).map(i32::unsigned_abs);
    Ok(DeviceFacts {
        ordinal: context.ordinal(),
        name: context.name()?,
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory_bytes: context.total_mem()?,
        n_multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        shared_bytes_max: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as usize,
        driver_version: crate::libraries::driver_version(),
        uuid: context.uuid()?.bytes.map(|letter| letter.to_ne_bytes()[0]),
    })
}

/// What a mutex guards, also after a panic elsewhere: each change of it is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "sums of small whole numbers are exact")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use forgelm_kernels_api::{Format, caught};
    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::call::{Before, Call, args};
    use crate::emulated;

    const ILLEGAL_ADDRESS: i32 = 700;

    #[test]
    fn a_device_says_what_it_is() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let facts = device.facts();
        assert_eq!((device.label(), &*facts.name), ("cuda:0", "forgelm emulated device"));
        assert_eq!((facts.ordinal, facts.capability), (0, (9, 0)));
        assert_eq!((facts.memory_bytes, facts.shared_bytes_max), (4 << 30, 227 << 10));
        assert_eq!(facts.driver_version / 1000, 12);
    }

    #[test]
    fn a_device_that_is_not_there_is_refused() {
        let Some(_alone) = emulated::alone() else { return };
        let error = Device::open(3, &emulated::libraries(), emulated::options()).unwrap_err();
        let expected = "there is no CUDA device 3: this machine has 1, counted from 0";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_device_that_does_not_open_is_an_error_with_its_reason() {
        let Some(_alone) = emulated::alone() else { return };
        let open = || Device::open(0, &emulated::libraries(), emulated::options());
        for (function, code, expected) in [
            ("cuDevicePrimaryCtxRetain", 2, "cuda:0: opening the device failed"),
            ("cuDeviceGetName", 999, "cuda:0: asking what the device is failed"),
            ("cuStreamCreate", 999, "cuda:0: making a stream failed"),
            ("cuDeviceGetCount", 100, "the NVIDIA driver finds no device that it may use"),
            ("cuInit", 803, "the NVIDIA driver cannot be started: "),
        ] {
            emulator::fail_next(function, code, 0);
            let text = open().unwrap_err().to_string();
            assert!(text.starts_with(expected), "{function}: {text}");
        }
        open().unwrap();
    }

    /// What a call of an op failed with, as text.
    fn failure_of(calls: impl FnOnce()) -> String {
        caught(calls).unwrap_err().to_string()
    }

    fn sum(device: &Device, y: &mut [f32], x: &[f32], threads: u32) {
        let call = Call::open(device, "sum");
        let (from, to) = (call.read(x.into()), call.write(y.into(), Before::Unused));
        let grid = Grid { blocks: [1, 1, 1], threads, shared_bytes: 4 * x.len() };
        let n = i32::try_from(x.len()).unwrap();
        call.launch("probe_sum_f32", grid, &mut args![to.address, from.address, n]);
        call.close();
    }

    #[test]
    fn a_launch_that_is_refused_is_told_with_all_that_it_was() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let text = failure_of(|| sum(&device, &mut [0.0], &[1.0; 8], 512));
        assert!(
            text.starts_with("cuda:0: `probe_sum_f32` of `sum` (1 x 1 x 1 blocks of 512"),
            "{text}"
        );
        assert!(text.contains("32 bytes of shared memory, arguments 0x"), "{text}");
        assert!(text.contains(" 8) was refused: CUDA_ERROR_"), "{text}");
        // more shared memory than a block may have
        let text = failure_of(|| sum(&device, &mut [0.0], &[1.0; 60_000], 256));
        assert!(text.contains("240000 bytes of shared memory"), "{text}");
        assert!(text.contains("was refused: CUDA_ERROR_INVALID_VALUE (1)"), "{text}");
        // the device is as good as before
        let mut y = [0.0];
        sum(&device, &mut y, &[1.0; 8], 256);
        assert_eq!(y, [8.0]);
    }

    #[test]
    fn a_failure_of_earlier_work_is_told_with_the_last_launches() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        sum(&device, &mut [0.0], &[1.0; 8], 256);
        for (function, doing) in [
            ("cuEventSynchronize", "a download"),
            ("cuMemcpyDtoHAsync", "a download"),
            ("cuMemcpyHtoDAsync", "an upload"),
            ("cuLaunchKernel", "a launch"),
        ] {
            emulator::fail_next(function, ILLEGAL_ADDRESS, 0);
            let text = failure_of(|| sum(&device, &mut [0.0], &[1.0; 8], 256));
            let expected = format!("cuda:0: work before {doing} of `sum` failed; the last launch");
            assert!(text.starts_with(&expected), "{function}: {text}");
            assert!(text.contains("`probe_sum_f32` of `sum`"), "{function}: {text}");
            assert!(text.contains(": CUDA_ERROR_ILLEGAL_ADDRESS (700): "), "{function}: {text}");
        }
        // a device that has failed for good says so in every call, and can be closed
        emulator::fail_always(ILLEGAL_ADDRESS);
        for _ in 0..2 {
            let text = failure_of(|| sum(&device, &mut [0.0], &[1.0; 8], 256));
            assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{text}");
        }
        assert!(device.synchronize().is_err());
        drop(device);
    }

    #[test]
    fn with_a_wait_for_each_launch_the_one_that_failed_is_told() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(DeviceOptions { wait_for_each: true, ..emulated::options() });
        emulator::fail_next("cuStreamSynchronize", ILLEGAL_ADDRESS, 0);
        let text = failure_of(|| sum(&device, &mut [0.0], &[1.0; 8], 256));
        let expected = "cuda:0: work before the launch of `sum` failed; the last launch was";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn arguments_that_a_kernel_does_not_have_are_a_bug() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let grid = Grid { blocks: [1, 1, 1], threads: 32, shared_bytes: 0 };
        let parameters = device.kernel("sum", "probe_sum_f32", grid).unwrap().parameters;
        assert_eq!(parameters.as_deref(), Some(&[8, 8, 4][..]));
        let launch = |arguments: &mut [Argument]| {
            let launch = || Call::open(&device, "sum").launch("probe_sum_f32", grid, arguments);
            // No failure of the device: the program is wrong.
            *catch_unwind(AssertUnwindSafe(launch)).unwrap_err().downcast::<String>().unwrap()
        };
        let expected =
            "`probe_sum_f32` of `sum` takes parameters of [8, 8, 4] bytes, not [8, 8, 8]";
        assert_eq!(launch(&mut args![1_u64, 1_u64, 1_i64]), expected);
        assert!(launch(&mut args![1_u64, 1_u64]).ends_with("not [8, 8]"));
    }

    #[test]
    fn a_kernel_that_is_nowhere_is_told_with_all_that_was_tried() {
        let Some(_alone) = emulated::alone() else { return };
        let grid = Grid { blocks: [1, 1, 1], threads: 32, shared_bytes: 0 };
        let device = emulated::device(emulated::options());
        let text = failure_of(|| Call::open(&device, "sum").launch("sum_f99", grid, &mut args![]));
        let expected =
            "cuda:0: no kernel `sum_f99` for sm_90: the given image: CUDA_ERROR_NOT_FOUND";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn scratch_that_does_not_fit_ends_the_op_with_the_numbers() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        emulator::set_memory_limit(emulator::used_bytes() + (8 << 20));
        let text = failure_of(|| {
            Call::open(&device, "linear").scratch(Format::F32, 16 << 20);
        });
        assert!(text.starts_with("cuda:0: 67108864 bytes do not fit: 0 bytes of its"), "{text}");
    }
}
