//! The stand-in driver through cudarc, which knows nothing of it: what it does, and what it
//! refuses as the real one does.
#![expect(unsafe_code, reason = "the interface of the driver is a C interface")]
#![expect(clippy::print_stderr, reason = "tests that cannot run here say so")]
#![expect(clippy::float_cmp, reason = "sums of small integers are exact")]
#![expect(clippy::unwrap_used, reason = "what fails here is a failure of the test")]

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use forgelm_kernels_emulator as emulator;

/// The driver has one state in a process: tests follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Fixture {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    axpy: CudaFunction,
    sum: CudaFunction,
    _alone: MutexGuard<'static, ()>,
}

fn fixture() -> Option<Fixture> {
    if let Some(reason) = emulator::unavailable() {
        eprintln!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::load();
    emulator::set_streams(emulator::Streams::Eager);
    emulator::set_memory_limit(u64::MAX);
    emulator::fail_always(0);
    let context = CudaContext::new(0).unwrap();
    // SAFETY: there is one stream at a time, or the test orders them itself.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_binary(emulator::IMAGE.to_vec())).unwrap();
    let axpy = module.load_function("probe_axpy_f32").unwrap();
    let sum = module.load_function("probe_sum_f32").unwrap();
    emulator::reset_counters();
    Some(Fixture { context, stream, axpy, sum, _alone: alone })
}

impl Fixture {
    /// `y[i] += a * x[i]`.
    fn axpy(&self, y: &mut CudaSlice<f32>, x: &CudaSlice<f32>, a: f32, blocks: u32) {
        let n = i32::try_from(y.len()).unwrap();
        let shape =
            LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&self.axpy);
        launch.arg(y).arg(x).arg(&a).arg(&n);
        // SAFETY: the parameters are those of the kernel.
        unsafe { launch.launch(shape) }.unwrap();
    }

    /// The sum of `x` by a block of 256 threads with so much shared memory.
    fn sum(&self, x: &CudaSlice<f32>, shared_mem_bytes: u32) -> Result<f32, DriverError> {
        let n = i32::try_from(x.len()).unwrap();
        let mut y = self.stream.alloc_zeros::<f32>(1)?;
        let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes };
        let mut launch = self.stream.launch_builder(&self.sum);
        launch.arg(&mut y).arg(x).arg(&n);
        // SAFETY: as above; the test gives too little shared memory only where it is refused.
        unsafe { launch.launch(shape) }?;
        Ok(self.stream.clone_dtoh(&y)?[0])
    }
}

fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().expect("the driver refuses it").0
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn counting(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

#[test]
fn the_device_is_the_one_that_is_described() {
    let Some(f) = fixture() else { return };
    assert_eq!(f.context.name().unwrap(), "forgelm emulated device");
    assert_eq!(f.context.compute_capability().unwrap(), (9, 0));
    assert_eq!(f.context.total_mem().unwrap(), 4 << 30);
    let shared = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(f.context.attribute(shared).unwrap(), 227 * 1024);
    assert!(emulator::kernels().contains(&"probe_sum_f32".to_owned()));
}

#[test]
fn a_kernel_runs_and_is_counted_with_the_bytes_that_went_to_and_fro() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&counting(1000)).unwrap();
    let mut y = f.stream.clone_htod(&[1.0_f32; 1000]).unwrap();
    f.axpy(&mut y, &x, 2.0, 4);
    let expected: Vec<f32> = counting(1000).iter().map(|x| 1.0 + 2.0 * x).collect();
    assert_eq!(f.stream.clone_dtoh(&y).unwrap(), expected);
    assert_eq!(f.sum(&x, 4000).unwrap(), 499_500.0);
    let counters = emulator::counters();
    assert_eq!(counters.launches["probe_axpy_f32"], 1);
    assert_eq!(counters.n_launches(), 2);
    assert_eq!((counters.bytes_to_device, counters.copies_to_device), (8000, 2));
    assert_eq!((counters.bytes_to_host, counters.copies_to_host), (4004, 2));
    assert_eq!(counters.allocations, 3);
}

#[test]
fn two_threads_that_share_the_blocks_give_the_same_numbers() {
    let Some(f) = fixture() else { return };
    let numbers = counting(100_000);
    let x = f.stream.clone_htod(&numbers).unwrap();
    for n_threads in [1, 2, 3] {
        emulator::set_threads(n_threads);
        for schedule in emulator::Schedule::ALL {
            emulator::set_schedule(schedule);
            let mut y = f.stream.alloc_zeros::<f32>(numbers.len()).unwrap();
            f.axpy(&mut y, &x, 1.0, 391);
            assert!(f.stream.clone_dtoh(&y).unwrap() == numbers, "{n_threads} {schedule:?}");
        }
    }
    emulator::set_threads(1);
    emulator::set_schedule(emulator::Schedule::Forward);
}

/// Kernels find memory that nobody wrote; what the driver keeps for a thread is none of that.
#[test]
fn a_thread_keeps_its_context_and_its_captures_over_a_launch() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&[1.0_f32; 8]).unwrap();
    f.context.bind_to_thread().unwrap();
    let context = cudarc::driver::result::ctx::get_current().unwrap();
    assert!(context.is_some());
    assert_eq!(f.sum(&x, 32).unwrap(), 8.0);
    assert_eq!(cudarc::driver::result::ctx::get_current().unwrap(), context);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    f.stream.begin_capture(mode).unwrap();
    let mut address = 0;
    // SAFETY: the address is of a number that lives here.
    let refused = unsafe { sys::cuMemAlloc_v2(&raw mut address, 8) };
    assert_eq!(refused, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    f.stream.end_capture(flags).unwrap();
}

#[test]
fn memory_is_not_given_back_before_the_work_that_uses_it() {
    let Some(f) = fixture() else { return };
    emulator::set_streams(emulator::Streams::Deferred);
    let used = emulator::used_bytes();
    let x = f.stream.clone_htod(&[3.0_f32; 8]).unwrap();
    let mut y = f.stream.alloc_zeros::<f32>(8).unwrap();
    f.axpy(&mut y, &x, 1.0, 1);
    drop(x); // in the order of the stream, behind the kernel
    assert_eq!(emulator::used_bytes(), used + 64);
    assert_eq!(f.stream.clone_dtoh(&y).unwrap(), [3.0; 8]);
    assert_eq!(emulator::used_bytes(), used + 32);
}

#[test]
fn memory_that_nobody_wrote_is_nan() {
    let Some(f) = fixture() else { return };
    // SAFETY: any bits are a number.
    let x = unsafe { f.stream.alloc::<f32>(64) }.unwrap();
    assert!(f.stream.clone_dtoh(&x).unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn launches_beyond_the_limits_of_the_device_are_refused() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&counting(16_000)).unwrap();
    assert_eq!(code(f.sum(&x, 64_000)), CUresult::CUDA_ERROR_INVALID_VALUE);
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert_eq!(code(f.sum.set_attribute(most, 228 * 1024)), CUresult::CUDA_ERROR_INVALID_VALUE);
    f.sum.set_attribute(most, 64_000).unwrap();
    assert_eq!(f.sum(&x, 64_000).unwrap(), 127_992_000.0);
    for (grid_dim, block_dim) in [
        ((0, 1, 1), (32, 1, 1)),
        ((1, 65_536, 1), (32, 1, 1)),
        ((1, 1, 65_536), (32, 1, 1)),
        ((1, 1, 1), (257, 1, 1)), // the kernel is bound to 256 threads
        ((1, 1, 1), (1, 1, 65)),
    ] {
        let mut launch = f.stream.launch_builder(&f.sum);
        launch.arg(&x);
        // SAFETY: the launch is refused before its parameters are read.
        let result =
            unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) };
        assert_eq!(code(result), CUresult::CUDA_ERROR_INVALID_VALUE, "{grid_dim:?} {block_dim:?}");
    }
}

#[test]
fn copies_outside_an_allocation_are_refused() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&counting(100)).unwrap();
    let stream = f.stream.cu_stream();
    let mut host = vec![0_u8; 404];
    let bytes = host.len();
    let address = {
        use cudarc::driver::DevicePtr as _;
        x.device_ptr(&f.stream).0
    };
    let host = host.as_mut_ptr().cast::<c_void>();
    // SAFETY: the host's memory is as long as is said; the device's is not, and is refused.
    let down = unsafe { sys::cuMemcpyDtoHAsync_v2(host, address, bytes, stream) };
    assert_eq!(down, CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: as above.
    let up = unsafe { sys::cuMemcpyHtoDAsync_v2(address + 4, host, 400, stream) };
    assert_eq!(up, CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: as above.
    let fill = unsafe { sys::cuMemsetD32Async(address, 0, 101, stream) };
    assert_eq!(fill, CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: the whole range is in the allocation.
    let fill = unsafe { sys::cuMemsetD32Async(address, 7, 100, stream) };
    assert_eq!(fill, CUresult::CUDA_SUCCESS);
    assert_eq!(f.stream.clone_dtoh(&x).unwrap()[99].to_bits(), 7);
}

#[test]
fn rows_of_a_matrix_are_copied_with_their_pitches() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&[0.0_f32; 12]).unwrap();
    let from = counting(10);
    let address = {
        use cudarc::driver::DevicePtr as _;
        x.device_ptr(&f.stream).0
    };
    // two rows of 3 numbers, from rows of 5 to columns 1 to 3 of rows of 4 below the first
    let copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: from.as_ptr().cast(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 20,
        dstXInBytes: 4,
        dstY: 1,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: address,
        dstArray: std::ptr::null_mut(),
        dstPitch: 16,
        WidthInBytes: 12,
        Height: 2,
    };
    // SAFETY: both matrices are as they are described.
    let result = unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, f.stream.cu_stream()) };
    assert_eq!(result, CUresult::CUDA_SUCCESS);
    let expected = [0., 0., 0., 0., 0., 0., 1., 2., 0., 5., 6., 7.];
    assert_eq!(f.stream.clone_dtoh(&x).unwrap(), expected);
}

#[test]
fn memory_has_the_limit_that_a_test_sets() {
    let Some(f) = fixture() else { return };
    let used = emulator::used_bytes();
    emulator::set_memory_limit(used + 1000);
    assert_eq!(f.context.mem_get_info().unwrap().0, 1000);
    let x = f.stream.alloc_zeros::<u8>(600).unwrap();
    assert_eq!(code(f.stream.alloc_zeros::<u8>(401)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(emulator::used_bytes(), used + 600);
    drop(x);
    let whole = f.stream.alloc_zeros::<u8>(1000).unwrap();
    drop(whole);
    assert_eq!(emulator::used_bytes(), used);
}

#[test]
fn failures_come_when_a_test_wants_them() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&counting(10)).unwrap();
    emulator::fail_next("cuMemcpyDtoHAsync", 700, 1);
    assert_eq!(f.stream.clone_dtoh(&x).unwrap(), counting(10));
    let error = f.stream.clone_dtoh(&x).unwrap_err();
    assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let text = error.error_string().unwrap().to_str().unwrap();
    assert_eq!(text, "an illegal memory access was encountered");
    assert_eq!(f.stream.clone_dtoh(&x).unwrap(), counting(10));
    emulator::fail_always(719);
    assert_eq!(code(f.stream.synchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(code(f.sum(&x, 40)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    emulator::fail_always(0);
    assert_eq!(f.sum(&x, 40).unwrap(), 45.0);
}

#[test]
fn modules_are_refused_as_the_real_driver_does() {
    let Some(f) = fixture() else { return };
    let load = |image: Vec<u8>| f.context.load_module(Ptx::from_binary(image));
    assert_eq!(code(load(vec![1; 64])), CUresult::CUDA_ERROR_INVALID_IMAGE);
    // a cubin for CUDA (machine 190) of another architecture: sm_80 in the flags
    let mut image = emulator::IMAGE;
    image[18] = 190;
    image[48] = 80;
    assert_eq!(code(load(image.to_vec())), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    // of this one, but without kernels
    image[48] = 90;
    let module = load(image.to_vec()).unwrap();
    assert_eq!(code(module.load_function("probe_sum_f32")), CUresult::CUDA_ERROR_NOT_FOUND);
    let text = ".version 7.0\n.target sm_80\n.visible .entry probe_sum_f32(\n)\n{\n}\n\0";
    let module = load(text.as_bytes().to_vec()).unwrap();
    module.load_function("probe_sum_f32").unwrap();
    assert_eq!(code(module.load_function("probe_axpy_f32")), CUresult::CUDA_ERROR_NOT_FOUND);
    // the name of a kernel that was not compiled in
    let module = load(emulator::IMAGE.to_vec()).unwrap();
    assert_eq!(code(module.load_function("probe_sum")), CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn deferred_work_sees_pinned_memory_as_it_is_when_it_runs() {
    let Some(f) = fixture() else { return };
    emulator::set_streams(emulator::Streams::Deferred);
    // SAFETY: it is written before it is read.
    let mut pinned = unsafe { f.context.alloc_pinned::<f32>(4) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[1.0; 4]);
    let mut pageable = vec![1.0_f32; 4];
    let from_pinned = f.stream.clone_htod(&pinned).unwrap();
    let from_pageable = f.stream.clone_htod(&pageable).unwrap();
    // SAFETY: this is the mistake that the mode shows; nothing else uses the memory.
    let memory = unsafe { pinned.as_ptr().unwrap().cast_mut().as_mut() }.unwrap();
    *memory = 2.0;
    pageable[0] = 2.0;
    assert_eq!(f.stream.clone_dtoh(&from_pinned).unwrap(), [2.0, 1.0, 1.0, 1.0]);
    assert_eq!(f.stream.clone_dtoh(&from_pageable).unwrap(), [1.0; 4]);
}

#[test]
fn streams_that_do_not_wait_for_each_other_are_found() {
    let Some(f) = fixture() else { return };
    emulator::set_streams(emulator::Streams::Deferred);
    let other = f.context.new_stream().unwrap();
    let x = f.stream.clone_htod(&[3.0_f32; 8]).unwrap();
    let mut y = f.stream.alloc_zeros::<f32>(8).unwrap();
    f.stream.synchronize().unwrap();
    f.axpy(&mut y, &x, 1.0, 1);
    assert_eq!(other.clone_dtoh(&y).unwrap(), [0.0; 8], "read before the kernel ran");
    let event = f.stream.record_event(None).unwrap();
    other.wait(&event).unwrap();
    assert_eq!(other.clone_dtoh(&y).unwrap(), [3.0; 8]);
}

#[test]
fn a_captured_graph_runs_again_with_what_memory_holds_then() {
    let Some(f) = fixture() else { return };
    let x = f.stream.clone_htod(&[1.0_f32; 8]).unwrap();
    let mut y = f.stream.alloc_zeros::<f32>(8).unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    f.stream.begin_capture(mode).unwrap();
    f.axpy(&mut y, &x, 1.0, 1);
    f.axpy(&mut y, &x, 2.0, 1);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = f.stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(f.stream.clone_dtoh(&y).unwrap(), [0.0; 8], "a capture runs nothing");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(f.stream.clone_dtoh(&y).unwrap(), [6.0; 8]);
    assert_eq!(emulator::counters().graph_launches, 2);
}

#[test]
fn a_capture_in_which_the_host_waits_is_invalid() {
    let Some(f) = fixture() else { return };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    f.stream.begin_capture(mode).unwrap();
    let refused = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    assert_eq!(code(f.stream.synchronize()), refused);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let invalid = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    assert_eq!(code(f.stream.end_capture(flags)), invalid);
    f.stream.synchronize().unwrap();
}

#[test]
fn memory_pools_answer() {
    let Some(f) = fixture() else { return };
    let _x = f.stream.alloc_zeros::<u8>(1 << 20).unwrap();
    // SAFETY: there is a device 0.
    let pool = unsafe { cudarc::driver::result::device::get_default_mem_pool(0) }.unwrap();
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the value has the type of the attribute.
    let result =
        unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) };
    assert_eq!(result, CUresult::CUDA_SUCCESS);
    let mut used = 0_u64;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    // SAFETY: as above.
    let result = unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut used).cast()) };
    assert_eq!(result, CUresult::CUDA_SUCCESS);
    assert_eq!(used, emulator::used_bytes());
    assert!(used >= 1 << 20);
}
