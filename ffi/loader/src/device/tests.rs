//! On the emulated device: through the safe surface of `ffi/sdk` where arguments are good, and through
//! the table where they are not.
#![expect(clippy::float_cmp, reason = "values that are exact")]

#[path = "../../../../kernels/cuda/tests/support/opened.rs"]
mod opened;

use super::DeviceKernels;
use crate::border::Shape;
use ::forgelm_tensor::rows::{self, RowFormat};
use forgelm_abi::{
    DEVICE_CUDA, dtype_code, forgelm_device_kernels, forgelm_device_models, forgelm_dtype,
    forgelm_managed_tensor, forgelm_plugin_error, forgelm_status, forgelm_str, forgelm_tensor,
    status,
};
use forgelm_kernels_api::{DevicePart, Format, Ops};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_cuda::Cuda;
use forgelm_kernels_emulator as emulator;
use forgelm_sdk::device;
use std::ptr::{null, null_mut};
use std::sync::{Arc, MutexGuard};

/// An emulated device with the table of a library; `None`, aloud, where there is no emulator.
struct Bench {
    cuda: Arc<Cuda>,
    table: &'static forgelm_device_kernels,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Option<Self> {
        let (alone, [device]) = opened::emulated_devices()?;
        let cuda = Arc::new(Cuda::new(device, 1));
        let made = DeviceKernels::new(Arc::clone(&cuda) as Arc<dyn Ops>, Arc::default());
        let table = &Box::leak(Box::new(made.unwrap())).table;
        Some(Self { cuda, table, _alone: alone })
    }

    fn sdk(&self) -> device::DeviceKernels {
        // SAFETY: a table of this crate.
        unsafe { device::DeviceKernels::new(self.table) }
    }

    /// Numbers on the device.
    fn put(&self, values: &[f32]) -> device::DeviceBuffer {
        let buffer = self.sdk().allocate(Format::F32, values.len()).unwrap();
        self.sdk().upload(buffer.part(), values).unwrap();
        buffer
    }

    fn in_use(&self) -> usize {
        self.cuda.device().pool().used().in_use
    }
}

/// What a call said that was refused.
fn refused(call: impl FnOnce(*mut forgelm_plugin_error) -> forgelm_status) -> (i32, String) {
    let mut err = forgelm_plugin_error::new();
    let ended = call(&raw mut err);
    assert_eq!(ended, err.code);
    (ended, err.text())
}

const FLOAT: forgelm_dtype = forgelm_dtype { code: dtype_code::FLOAT, bits: 32, lanes: 1 };

#[test]
fn on_the_processor_there_are_none() {
    assert!(DeviceKernels::new(Arc::new(Cpu::new(1)), Arc::default()).is_none());
}

/// A tensor of two axes, as a consumer of DLPack sees it.
#[test]
fn a_tensor_is_lent_as_dlpack_has_it_and_given_back_by_its_deleter() {
    let Some(bench) = Bench::new() else { return };
    let before = bench.in_use();
    assert!(!bench.table.stream.is_null());
    let mut owned: *mut forgelm_managed_tensor = null_mut();
    let allocate = bench.table.allocate.unwrap();
    let shape = [3_i64, 5];
    // SAFETY: the table's own function; places of this test.
    let ended =
        unsafe { allocate(bench.table, FLOAT, 2, shape.as_ptr(), &raw mut owned, null_mut()) };
    assert_eq!(ended, status::OK);
    // SAFETY: a tensor that was just made.
    let tensor = unsafe { (*owned).tensor };
    assert_eq!((tensor.device.device_type, tensor.device.device_id), (DEVICE_CUDA, 0));
    assert_eq!((tensor.ndim, tensor.dtype, tensor.byte_offset), (2, FLOAT, 0));
    // SAFETY: two axes.
    let axes = |of: *const i64| unsafe { std::slice::from_raw_parts(of, 2) }.to_vec();
    assert_eq!((axes(tensor.shape), axes(tensor.strides)), (vec![3, 5], vec![5, 1]));
    assert!(bench.in_use() > before);

    let numbers: Vec<f32> = (0..15_u8).map(f32::from).collect();
    let mut back = vec![-1.0_f32; 15];
    let (upload, download) = (bench.table.upload.unwrap(), bench.table.download.unwrap());
    // SAFETY: the table's own functions; 60 bytes each.
    unsafe {
        let to = back.as_mut_ptr().cast();
        assert_eq!(download(bench.table, to, &raw const tensor, 60, null_mut()), status::OK);
        assert_eq!(back, [0.0; 15], "memory of others was handed out");
        let from = numbers.as_ptr().cast();
        assert_eq!(upload(bench.table, &raw const tensor, from, 60, null_mut()), status::OK);
        assert_eq!(download(bench.table, to, &raw const tensor, 60, null_mut()), status::OK);
    }
    assert_eq!(back, numbers);
    // SAFETY: once, by who has it.
    unsafe { (*owned).deleter.unwrap()(owned) };
    assert_eq!(bench.in_use(), before);

    let (ended, said) = refused(|err| {
        // its shape went with it
        let tensor = forgelm_tensor { shape: shape.as_ptr(), strides: null(), ..tensor };
        // SAFETY: as above.
        unsafe { download(bench.table, back.as_mut_ptr().cast(), &raw const tensor, 60, err) }
    });
    assert_eq!(ended, status::INVALID_ARGUMENT);
    assert!(said.contains("`from` (15 numbers at 0x"), "{said}");
    assert!(said.contains("is no memory in use on cuda:0; was it freed"), "{said}");
}

#[test]
fn what_is_no_tensor_of_the_device_is_refused_and_nothing_is_written() {
    let Some(bench) = Bench::new() else { return };
    let (out, input) = (bench.put(&[7.0; 8]), bench.put(&[1.0; 8]));
    let shape = Shape::new([8]);
    let host = [1.0_f32; 8];
    let (good, result) = (shape.of_device(input.part()), shape.of_device(out.part()));
    let linear = |out: forgelm_tensor, input: forgelm_tensor| {
        let models = forgelm_device_models { inputs: &raw const input, n_inputs: 1, base: null() };
        let merge = bench.table.merge_linear.unwrap();
        let share = 1.0;
        refused(|err| {
            // SAFETY: the table's own function; everything outlives the call.
            unsafe { merge(bench.table, &raw const out, &raw const models, &raw const share, err) }
        })
    };
    let elsewhere = DevicePart { device: 1, ..input.part() };
    let past = DevicePart { address: input.part().address + (1 << 40), ..input.part() };
    let bytes = forgelm_dtype { code: dtype_code::UINT, bits: 8, lanes: 1 };
    let half = forgelm_dtype { code: dtype_code::FLOAT, bits: 16, lanes: 1 };
    let gaps = [2_i64];
    let other = forgelm_abi::forgelm_device { device_type: 10, device_id: 0 };
    let shorter = Shape::new([7]);
    for (input, expected) in [
        (shape.of(&host), "`inputs` lies on the host; expected a tensor of the device"),
        (
            forgelm_tensor { device: other, ..good },
            "`inputs` lies on a device of type 10; expected",
        ),
        (shape.of_device(elsewhere), "`inputs` lies on cuda:1; expected cuda:0"),
        (shape.of_device(past), "is no memory in use on cuda:0"),
        (forgelm_tensor { dtype: bytes, ..good }, "`inputs` is U8; expected F32"),
        (forgelm_tensor { dtype: half, ..good }, "`inputs` is neither float nor uint8"),
        (forgelm_tensor { strides: gaps.as_ptr(), ..good }, "`inputs` has gaps"),
        (forgelm_tensor { byte_offset: 2, ..good }, "`inputs` is not aligned"),
        (forgelm_tensor { byte_offset: 4096, ..good }, "is no memory in use on cuda:0"),
        (forgelm_tensor { ndim: 9, ..good }, "`inputs` has 9 axes"),
        (
            shorter.of_device(DevicePart { len: 7, ..input.part() }),
            "`inputs` has 7 numbers; expected 8",
        ),
        (result, "`out` and `inputs` overlap"),
    ] {
        let (ended, said) = linear(result, input);
        assert_eq!(ended, status::INVALID_ARGUMENT, "{expected}");
        assert!(said.contains(expected), "{said}; expected {expected}");
    }
    let (ended, said) = linear(shape.of(&host), good);
    assert_eq!((ended, host), (status::INVALID_ARGUMENT, [1.0; 8]));
    assert!(said.starts_with("`out` lies on the host"), "{said}");
    let mut back = [0.0; 8];
    bench.sdk().download(out.part(), &mut back).unwrap();
    assert_eq!(back, [7.0; 8]);
}

#[test]
fn memory_that_the_device_does_not_have_is_a_status_of_its_own() {
    let Some(bench) = Bench::new() else { return };
    emulator::set_memory_limit(emulator::used_bytes() + (8 << 20));
    let allocate = bench.table.allocate.unwrap();
    let mut out: *mut forgelm_managed_tensor = null_mut();
    let mut of = |n: i64| {
        // SAFETY: the table's own function; places of this test.
        refused(|err| unsafe { allocate(bench.table, FLOAT, 1, &raw const n, &raw mut out, err) })
    };
    let (ended, said) = of(16 << 20);
    assert_eq!(ended, status::OUT_OF_MEMORY);
    assert!(said.starts_with("cuda:0: 67108864 bytes do not fit: "), "{said}");
    assert_eq!(of(i64::MAX).0, status::INVALID_ARGUMENT);
    assert_eq!(of(-1).1, "`shape` has the shape [-1]");
    assert!(out.is_null());
}

/// Rows of every kind of width, and of more blocks than a block of threads has: equal codes, scales
/// and values.
#[test]
fn rows_have_the_bytes_of_the_processor_and_come_back_with_its_bits() {
    let Some(bench) = Bench::new() else { return };
    let sdk = bench.sdk();
    for format in [RowFormat::Nf4, RowFormat::Fp4, RowFormat::Int8] {
        for (n_rows, n_cols) in [(1, 1), (3, 63), (2, 64), (5, 65), (7, 301), (4, 1024)] {
            let mut state = 7_u32;
            let mut number = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from(u16::try_from(state >> 16).unwrap()) / 32_768.0 - 1.0
            };
            let mut values: Vec<f32> =
                (0..n_rows * n_cols).map(|_| number() * 10.0_f32.powf(number() * 3.0)).collect();
            // a row of zeros, of both signs
            values[..n_cols].iter_mut().enumerate().for_each(|(i, v)| {
                *v = if i % 2 == 0 { 0.0 } else { -0.0 };
            });
            let of_row = rows::bytes_per_row(format, n_cols).unwrap();
            let mut expected = vec![0; n_rows * of_row];
            rows::quantize(format, &values, n_cols, &mut expected).unwrap();
            let mut expected_back = vec![0.0; values.len()];
            rows::dequantize(format, &expected, n_cols, &mut expected_back).unwrap();

            let from = bench.put(&values);
            let (bytes, back) = (
                sdk.allocate(Format::U8, expected.len()).unwrap(),
                sdk.allocate(Format::F32, values.len()).unwrap(),
            );
            sdk.quantize(format.name(), from.part(), n_cols, bytes.part()).unwrap();
            sdk.dequantize(format.name(), bytes.part(), n_cols, back.part()).unwrap();
            let mut found = vec![0; expected.len()];
            let shape = Shape::new([found.len()]);
            let tensor = shape.of_device(bytes.part());
            let (download, n) = (bench.table.download.unwrap(), found.len());
            // SAFETY: the table's own function; as many bytes.
            let ended = unsafe {
                download(bench.table, found.as_mut_ptr().cast(), &raw const tensor, n, null_mut())
            };
            assert_eq!(ended, status::OK);
            assert_eq!(found, expected, "{format:?} of {n_cols}");
            let mut found = vec![1.0; values.len()];
            sdk.download(back.part(), &mut found).unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected_back), "{format:?} of {n_cols}");
        }
    }
}

#[test]
fn formats_and_numbers_that_the_device_has_nothing_for_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let sdk = bench.sdk();
    let rows = bench.put(&[1.0, f32::NAN, f32::INFINITY, 2.0]);
    let bytes = sdk.allocate(Format::U8, 12).unwrap();
    let refused_by =
        |format| sdk.quantize(format, rows.part(), 2, bytes.part()).unwrap_err().message;
    assert_eq!(refused_by("int8"), "2 of the numbers are not finite; expected none");
    assert_eq!(refused_by("q4_k"), "`format` is `q4_k`; the device has nf4, fp4 and int8");
    let expected = "4 numbers and 12 bytes are not the same rows of 2 numbers";
    assert_eq!(refused_by("nf4"), expected);
    let quantize = bench.table.quantize.unwrap();
    let shape = Shape::new([2, 2]);
    let tensor = shape.of_device(rows.part());
    let format = forgelm_str::new("q6_k");
    // SAFETY: the table's own function; everything outlives the call.
    let (ended, _) = refused(|err| unsafe {
        quantize(bench.table, format, &raw const tensor, &raw const tensor, err)
    });
    assert_eq!(ended, status::UNIMPLEMENTED);
}

/// A failure of the device is told in words, and nothing unwinds.
#[test]
fn a_device_that_fails_is_told() {
    let Some(bench) = Bench::new() else { return };
    let (out, input) = (bench.put(&[0.0; 4]), bench.put(&[1.0; 4]));
    emulator::fail_next("cuLaunchKernel", 700, 0);
    let merged = bench.sdk().merge_linear(out.part(), &[input.part()], &[1.0]);
    let said = merged.unwrap_err().message;
    assert!(said.contains("cuda:0: "), "{said}");
    assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{said}");
    bench.sdk().merge_linear(out.part(), &[input.part()], &[2.0]).unwrap();
    let mut back = [0.0; 4];
    bench.sdk().download(out.part(), &mut back).unwrap();
    assert_eq!(back, [2.0; 4]);
}
