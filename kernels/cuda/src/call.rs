//! One call of an op: where its numbers lie on the device, memory for its time, its launches.
//!
//! A call is opened by an op, resolves its slices, launches kernels and is closed. What lies on the
//! host is copied to the device when it is resolved, and back when the call is closed; then the call
//! waits for the device. What lies on the device already needs neither.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use forgelm_kernels_api::{Format, Number, Slice, SliceMut};

use crate::arrays;
use crate::device::Device;
use crate::error::must;
use crate::memory;
use crate::pool::Allocation;

/// Numbers in the memory of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// Where they begin.
    pub(crate) address: u64,
    /// How many.
    pub(crate) len: usize,
    pub(crate) format: Format,
}

impl Numbers {
    /// Some of them.
    pub(crate) fn part(self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len, "no such part of {} numbers", self.len);
        let address = self.address + (first * self.format.n_bytes()) as u64;
        Self { address, len, ..self }
    }

    /// Whether they begin where a kernel may load 16 bytes at once.
    pub(crate) fn is_aligned(self) -> bool {
        self.address.is_multiple_of(16)
    }
}

/// How a launch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y and z.
    pub blocks: [usize; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its bytes, from the lowest on.
    bits: u64,
    n_bytes: usize,
}

impl Argument {
    /// Where the driver reads it. It reads as many bytes as the kernel's parameter has.
    pub(crate) fn place(&mut self) -> *mut c_void {
        (&raw mut self.bits).cast()
    }

    /// Length of the parameter that it is for.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

impl std::fmt::Display for Argument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // addresses are large, sizes are small
        if self.bits >> 32 == 0 {
            write!(f, "{}", self.bits)
        } else {
            write!(f, "{:#x}", self.bits)
        }
    }
}

macro_rules! argument {
    ($($type:ty),*) => {$(
        impl From<$type> for Argument {
            fn from(value: $type) -> Self {
                let mut bytes = [0; 8];
                let value = value.to_le_bytes();
                bytes[..value.len()].copy_from_slice(&value);
                Self { bits: u64::from_le_bytes(bytes), n_bytes: value.len() }
            }
        }
    )*};
}

argument!(u64, i64, u32, i32, f64, f32);

// Arguments lie in the lowest bytes of a number, which are its first ones only here.
const _: () = assert!(cfg!(target_endian = "little"), "CUDA runs on little-endian hosts");

/// The arguments of a launch, in the kernel's order.
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        [$($crate::call::Argument::from($value)),*]
    };
}
pub(crate) use args;

/// Numbers of the host that a call writes, and where they lie on the device meanwhile.
struct Returned<'a> {
    host: HostNumbers<'a>,
    from: u64,
}

enum HostNumbers<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
    U32(&'a mut [u32]),
}

/// What a call does with numbers of the host that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Their old values are read too.
    Needed,
    /// All of them are written.
    Unused,
}

/// One call of an op.
pub(crate) struct Call<'a> {
    device: &'a Device,
    op: &'static str,
    /// Memory for the time of the call.
    held: RefCell<Vec<Allocation>>,
    /// Arrays that are kept for later calls too.
    arrays: RefCell<Vec<Arc<Allocation>>>,
    returned: RefCell<Vec<Returned<'a>>>,
}

impl<'a> Call<'a> {
    pub(crate) fn open(device: &'a Device, op: &'static str) -> Self {
        must(device.bind());
        device.refuse_other_threads(op);
        let (held, arrays, returned) = Default::default();
        Self { device, op, held, arrays, returned }
    }

    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    /// The op, for messages.
    pub(crate) fn op(&self) -> &'static str {
        self.op
    }

    /// Numbers that are read.
    pub(crate) fn read(&self, slice: Slice<'_>) -> Numbers {
        match slice {
            Slice::Host(values) => self.upload(values),
            Slice::Device(place) => memory::resolve(self.device, self.op, place),
        }
    }

    /// Bytes that are read.
    pub(crate) fn read_bytes(&self, slice: Slice<'_, u8>) -> Numbers {
        match slice {
            Slice::Host(values) => {
                let numbers = self.scratch(Format::U8, values.len());
                must(memory::write(self.device, self.op, numbers, u8::host(values)));
                numbers
            }
            Slice::Device(place) => memory::resolve(self.device, self.op, place),
        }
    }

    /// Numbers that are written, or changed.
    pub(crate) fn write(&self, slice: SliceMut<'a>, before: Before) -> Numbers {
        match slice {
            SliceMut::Host(values) => {
                let numbers = match before {
                    Before::Needed => self.upload(values),
                    Before::Unused => self.scratch(Format::F32, values.len()),
                };
                let host = HostNumbers::F32(values);
                self.returned.borrow_mut().push(Returned { host, from: numbers.address });
                numbers
            }
            SliceMut::Device(place) => memory::resolve(self.device, self.op, place.place()),
        }
    }

    /// Bytes that are changed.
    pub(crate) fn write_bytes(&self, slice: SliceMut<'a, u8>) -> Numbers {
        match slice {
            SliceMut::Host(values) => {
                let numbers = self.scratch(Format::U8, values.len());
                must(memory::write(self.device, self.op, numbers, u8::host(values)));
                let host = HostNumbers::U8(values);
                self.returned.borrow_mut().push(Returned { host, from: numbers.address });
                numbers
            }
            SliceMut::Device(place) => memory::resolve(self.device, self.op, place.place()),
        }
    }

    /// Indices that are read. Those of the host are kept for later calls: see [`arrays`].
    pub(crate) fn read_indices(&self, slice: Slice<'_, u32>) -> Numbers {
        match slice {
            Slice::Host(values) => {
                let (address, len) = (self.indices(values), values.len());
                Numbers { address, len, format: Format::U32 }
            }
            Slice::Device(place) => memory::resolve(self.device, self.op, place),
        }
    }

    /// Indices that are written.
    pub(crate) fn write_indices(&self, slice: SliceMut<'a, u32>) -> Numbers {
        match slice {
            SliceMut::Host(values) => {
                let numbers = self.scratch(Format::U32, values.len());
                let host = HostNumbers::U32(values);
                self.returned.borrow_mut().push(Returned { host, from: numbers.address });
                numbers
            }
            SliceMut::Device(place) => memory::resolve(self.device, self.op, place.place()),
        }
    }

    fn upload(&self, values: &[f32]) -> Numbers {
        let numbers = self.scratch(Format::F32, values.len());
        must(memory::write(self.device, self.op, numbers, f32::host(values)));
        numbers
    }

    /// Memory until the call is closed, with anything in it.
    pub(crate) fn scratch(&self, format: Format, len: usize) -> Numbers {
        let memory = must(self.device.allocate(len * format.n_bytes()));
        let address = memory.address();
        self.held.borrow_mut().push(memory);
        Numbers { address, len, format }
    }

    /// An array of the host, on the device until the call is closed at least: see [`arrays`].
    /// Its address; 0 of an empty one.
    pub(crate) fn array<T: bytemuck::NoUninit>(&self, values: &[T]) -> u64 {
        if values.is_empty() {
            return 0;
        }
        let memory = must(arrays::array(self.device, self.op, bytemuck::cast_slice(values)));
        self.device.keep_for_capture(&memory);
        let address = memory.address();
        self.arrays.borrow_mut().push(memory);
        address
    }

    /// [`Call::array`] of indices.
    pub(crate) fn indices(&self, values: &[u32]) -> u64 {
        self.array(values)
    }

    /// `gemm_f32_bf16_vec` of `gemm`, the formats, and whether 16 bytes are loaded at once.
    #[expect(clippy::unused_self, reason = "reads well beside `launch`")]
    pub(crate) fn variant(&self, kernel: &str, formats: &[Format], vector: bool) -> String {
        let mut name = kernel.to_owned();
        for format in formats {
            name.push_str(match format {
                Format::F32 => "_f32",
                Format::Bf16 => "_bf16",
                Format::U8 => "_u8",
                Format::U32 => "_u32",
            });
        }
        if vector {
            name.push_str("_vec");
        }
        name
    }

    /// Starts a kernel. One without blocks has nothing to do.
    pub(crate) fn launch(&self, kernel: &str, grid: Grid, arguments: &mut [Argument]) {
        if grid.blocks.contains(&0) {
            return;
        }
        must(self.device.launch(self.op, kernel, grid, arguments));
    }

    /// Fills numbers with zeros.
    pub(crate) fn clear(&self, numbers: Numbers) {
        must(memory::clear(self.device, self.op, numbers));
    }

    /// Copies numbers of one format, as they are.
    pub(crate) fn copy(&self, to: Numbers, from: Numbers) {
        must(memory::copy(self.device, self.op, to, from));
    }

    /// Numbers of the device on the host, after all that was asked for before: waits.
    pub(crate) fn fetch<T: bytemuck::Pod>(&self, from: Numbers) -> Vec<T> {
        must(memory::fetch(self.device, self.op, from))
    }

    /// Copies what belongs to the host back, waiting for it. Memory of the call is given back.
    pub(crate) fn close(self) {
        for Returned { host, from } in self.returned.into_inner() {
            let numbers = |len, format| Numbers { address: from, len, format };
            let (numbers, to) = match host {
                HostNumbers::F32(to) => (numbers(to.len(), Format::F32), f32::host_mut(to)),
                HostNumbers::U8(to) => (numbers(to.len(), Format::U8), u8::host_mut(to)),
                HostNumbers::U32(to) => (numbers(to.len(), Format::U32), u32::host_mut(to)),
            };
            must(memory::read(self.device, self.op, numbers, to));
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers are exact")]
mod tests {
    use forgelm_kernels_api::{Buffer, DeviceMemory as _};
    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::device::DeviceOptions;
    use crate::emulated;
    use crate::memory::CudaMemory;

    /// `y += x`, by the op's own kernel.
    fn add(call: &Call<'_>, y: Numbers, x: Numbers) {
        let name = call.variant("add", &[y.format, x.format], false);
        let grid = Grid { blocks: [y.len.div_ceil(2048), 1, 1], threads: 256, shared_bytes: 0 };
        let n = i64::try_from(y.len).unwrap();
        call.launch(&name, grid, &mut args![y.address, x.address, n]);
    }

    fn counted(first: u16, n: u16) -> Vec<f32> {
        (first..first + n).map(f32::from).collect()
    }

    fn both() -> [DeviceOptions; 2] {
        [emulated::options(), DeviceOptions { strict: true, ..emulated::options() }]
    }

    #[test]
    fn numbers_of_the_host_go_there_and_back() {
        let Some(_alone) = emulated::alone() else { return };
        for options in both() {
            let device = emulated::device(options);
            emulator::reset_counters();
            let (mut y, x) = (counted(0, 5000), counted(7, 5000));
            let call = Call::open(&device, "add");
            let (to, from) = (call.write((&mut y).into(), Before::Needed), call.read((&x).into()));
            add(&call, to, from);
            call.close();
            let expected: Vec<f32> = (0_u16..5000).map(|i| 2.0 * f32::from(i) + 7.0).collect();
            assert_eq!(y, expected);
            let counters = emulator::counters();
            assert_eq!((counters.bytes_to_device, counters.bytes_to_host), (40_000, 20_000));
            assert_eq!(counters.launches["add_f32_f32"], 1);
        }
    }

    #[test]
    fn what_is_only_written_is_not_uploaded() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let (mut y, x) = (vec![f32::NAN; 1000], counted(0, 1000));
        let call = Call::open(&device, "copy");
        let (to, from) = (call.write((&mut y).into(), Before::Unused), call.read((&x).into()));
        call.copy(to, from);
        call.close();
        assert_eq!(y, x);
        assert_eq!(emulator::counters().bytes_to_device, 4000);
    }

    #[test]
    fn buffers_of_the_device_are_used_where_they_lie() {
        let Some(_alone) = emulated::alone() else { return };
        for options in both() {
            let device = emulated::device(options);
            let buffer = |format| {
                let memory = CudaMemory::zeros(&device, format, 3000).unwrap();
                Buffer::<f32>::Device(Box::new(memory))
            };
            let (mut y, mut x) = (buffer(Format::F32), buffer(Format::Bf16));
            y.all_mut().copy_from_host(&counted(0, 3000));
            // what bfloat16 rounds: 257 to 256, the even one of its two neighbors
            x.part_mut(1000..1003).copy_from_host(&[1.0, 257.0, -3.5]);
            emulator::reset_counters();
            let call = Call::open(&device, "add");
            let to = call.write(y.part_mut(10..2000), Before::Needed);
            let from = call.read(x.part(999..2989));
            add(&call, to, from);
            call.close();
            let counters = emulator::counters();
            assert_eq!((counters.bytes_to_device, counters.bytes_to_host), (0, 0));
            let mut expected = counted(0, 3000);
            for (i, x) in [(11, 1.0), (12, 256.0), (13, -3.5)] {
                expected[i] += x;
            }
            assert_eq!(*y.all().to_host(), expected);
            assert_eq!(*x.part(1000..1004).to_host(), [1.0, 256.0, -3.5, 0.0]);
        }
    }

    /// More than both staging buffers, in several calls, with work that is done as late as it may.
    #[test]
    fn long_copies_wait_for_each_other() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let n = (80 << 20) / 4 + 3;
        let long = CudaMemory::zeros(&device, Format::F32, n).unwrap();
        let short = CudaMemory::zeros(&device, Format::Bf16, 1000).unwrap();
        let values: Vec<f32> = (0..n).map(|i| (i % 9973) as f32).collect();
        let few = counted(0, 1000);
        short.write(0, f32::host(&few[..500]));
        long.write(0, f32::host(&values));
        short.write(500, f32::host(&few[..500]));
        let (mut back, mut back_few) = (vec![0.0; n], vec![0.0; 1000]);
        long.read(0, f32::host_mut(&mut back));
        short.read(0, f32::host_mut(&mut back_few));
        assert!(back == values);
        let rounded: Vec<f32> =
            few[..500].iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
        assert_eq!((&back_few[..500], &back_few[500..]), (&rounded[..], &rounded[..]));
    }

    #[test]
    fn small_uploads_do_not_wait() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let memory = CudaMemory::zeros(&device, Format::U8, 1000).unwrap();
        memory.write(0, u8::host(&[0; 1000]));
        emulator::reset_counters();
        for i in 0..200 {
            memory.write(i, u8::host(&[7; 800]));
        }
        assert_eq!(emulator::counters().synchronizations, 0);
        let mut back = vec![0; 1000];
        memory.read(0, u8::host_mut(&mut back));
        assert_eq!(back, [vec![7; 999], vec![0]].concat());
    }

    #[test]
    fn an_array_is_uploaded_once_for_its_content() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let array = |values: &[u32]| {
            let call = Call::open(&device, "test");
            let address = call.indices(values);
            let numbers = Numbers { address, len: 4 * values.len(), format: Format::U8 };
            assert_eq!(call.fetch::<u32>(numbers), values);
            call.close();
            address
        };
        let first = array(&[1, 2, 3]);
        let bytes = emulator::counters().bytes_to_device;
        assert_eq!((array(&[1, 2, 3]), emulator::counters().bytes_to_device), (first, bytes));
        assert_ne!(array(&[1, 2, 4]), first);
        // so many others that the first ones are forgotten, and the last one is not
        for i in 0..300 {
            array(&[i, 9]);
        }
        let bytes = emulator::counters().bytes_to_device;
        array(&[299, 9]);
        assert_eq!(emulator::counters().bytes_to_device, bytes);
        array(&[1, 2, 3]);
        assert_eq!(emulator::counters().bytes_to_device, bytes + 12);
        assert_eq!(Call::open(&device, "test").indices(&[]), 0);
    }

    #[test]
    fn memory_of_a_call_is_used_again() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let mut addresses = Vec::new();
        for _ in 0..3 {
            let call = Call::open(&device, "test");
            addresses.push(call.scratch(Format::F32, 1000).address);
            call.clear(call.scratch(Format::Bf16, 1));
            call.close();
        }
        assert_eq!(addresses, [addresses[0]; 3]);
        let used = device.pool().used();
        assert_eq!((used.in_use, used.peak), (0, 4096 + 512));
        assert_eq!(emulator::counters().allocations, 1);
    }

    #[test]
    fn shared_memory_is_asked_for_when_it_is_needed() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let n = device.facts().shared_bytes_max / 4;
        let x = vec![1.0; n];
        let mut y = [0.0];
        for n in [100, n, 100] {
            let call = Call::open(&device, "probe");
            let (x, y) = (call.read((&x).into()), call.write((&mut y).into(), Before::Unused));
            let grid = Grid { blocks: [1, 1, 1], threads: 256, shared_bytes: 4 * n };
            let count = i32::try_from(n).unwrap();
            call.launch("probe_sum_f32", grid, &mut args![y.address, x.address, count]);
            call.close();
        }
        assert_eq!(y, [100.0]);
    }

    #[test]
    fn a_launch_without_blocks_is_none() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let call = Call::open(&device, "add");
        add(&call, call.scratch(Format::F32, 0), call.scratch(Format::F32, 0));
        call.close();
        assert_eq!(emulator::counters().n_launches(), 0);
    }

    #[test]
    fn arguments_are_the_lowest_bytes_of_a_number() {
        let bytes = |mut argument: Argument, n: usize| {
            // SAFETY: an argument has 8 bytes.
            unsafe { std::slice::from_raw_parts(argument.place().cast::<u8>(), n) }.to_vec()
        };
        assert_eq!(bytes(Argument::from(-2_i32), 4), (-2_i32).to_le_bytes());
        assert_eq!(bytes(Argument::from(-2_i64), 8), (-2_i64).to_le_bytes());
        assert_eq!(bytes(Argument::from(0.1_f32), 4), 0.1_f32.to_le_bytes());
        assert_eq!(bytes(Argument::from(0.1_f64), 8), 0.1_f64.to_le_bytes());
        assert_eq!(args![1_u32, 2.0_f64].map(|argument| argument.n_bytes()), [4, 8]);
    }
}
