//! A sequence of calls, recorded once and replayed as a whole: one launch instead of thousands.
//!
//! Decoding one token is many short kernels, and the host takes longer to launch them than the
//! device to run them. A replay repeats the launches with the same addresses and sizes; what lies at
//! those addresses may have changed.

use std::any::Any;
use std::sync::Arc;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use crate::device::{Capture, Device, lock};
use crate::error::CudaError;
use crate::pool::Allocation;

/// Calls that were recorded.
///
/// **Invariant:** all memory that the calls use stays as long as the graph, whoever else drops it.
pub struct Graph {
    graph: CudaGraph,
    /// Buffers, arrays and plans of libraries that the calls use.
    _used: Used,
    /// Memory that calls took and gave back.
    _scratch: Vec<Allocation>,
    /// The last to go.
    device: Arc<Device>,
}

/// What must stay where it is.
type Used = Vec<Arc<dyn Any + Send + Sync>>;

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("device", &self.device.label()).finish_non_exhaustive()
    }
}

impl Graph {
    /// Records what `calls` asks of the device. Nothing of it is done yet.
    ///
    /// The same calls must have run once before: kernels are loaded, memory is taken from the driver
    /// and arrays are uploaded then, none of which can be recorded.
    ///
    /// # Errors
    /// If the calls do something that cannot be recorded, or the driver refuses.
    ///
    /// # Panics
    /// If `calls` does, or if another thread uses the device meanwhile.
    pub fn capture(device: &Arc<Device>, calls: impl FnOnce()) -> Result<Self, CudaError> {
        if !device.pool().is_capturable() {
            let device = device.label().to_owned();
            return Err(CudaError::NotCapturable { device, op: "capture", doing: "allocation" });
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let mut open = Recording::begin(device);
        let failed = |error| device.earlier("recording a graph", "capture", error);
        device.stream().begin_capture(mode).map_err(failed)?;
        open.in_stream = true;
        calls();
        open.in_stream = false;
        let flags = CUgraphInstantiate_flags(0);
        let graph = device.stream().end_capture(flags).map_err(failed)?;
        let (used, scratch) = open.end();
        let Some(graph) = graph else {
            let device = device.label().to_owned();
            return Err(CudaError::NotCapturable { device, op: "capture", doing: "nothing" });
        };
        Ok(Self { graph, device: Arc::clone(device), _used: used, _scratch: scratch })
    }

    /// Repeats the calls.
    ///
    /// # Errors
    /// If the driver refuses, or work before has failed.
    pub fn replay(&self) -> Result<(), CudaError> {
        self.device.refuse_other_threads("replay");
        self.graph.launch().map_err(|e| self.device.earlier("replaying a graph", "replay", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // A replay may still run on memory that is given back now; what uses it next comes later in
        // the stream. But the graph itself must not go while it runs.
        let _ = self.device.stream().synchronize();
    }
}

/// The state of a device while a graph is recorded; dropping it ends that also after a panic.
struct Recording<'d> {
    device: &'d Arc<Device>,
    in_stream: bool,
}

impl<'d> Recording<'d> {
    fn begin(device: &'d Arc<Device>) -> Self {
        let thread = std::thread::current().id();
        let before = lock(&device.capture).replace(Capture { thread, used: Vec::new() });
        assert!(before.is_none(), "{}: a graph within a graph", device.label());
        lock(&device.staging).closed = true;
        device.pool().hold();
        Self { device, in_stream: false }
    }

    fn end(self) -> (Used, Vec<Allocation>) {
        let used = lock(&self.device.capture).take().map(|capture| capture.used);
        (used.unwrap_or_default(), self.device.pool().release())
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.in_stream {
            // What was recorded is thrown away.
            let _ = self.device.stream().end_capture(CUgraphInstantiate_flags(0));
        }
        lock(&self.device.staging).closed = false;
        drop(lock(&self.device.capture).take());
        drop(self.device.pool().release());
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers and halves are exact")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use forgelm_kernels_api::{DeviceMemory as _, Format, Number as _, caught};
    use forgelm_kernels_emulator as emulator;

    use super::*;
    use crate::call::{Call, Grid, args};
    use crate::device::DeviceOptions;
    use crate::emulated;
    use crate::memory::CudaMemory;

    const N: usize = 1000;

    fn buffer(device: &Arc<Device>, value: f32) -> CudaMemory {
        let buffer = CudaMemory::zeros(device, Format::F32, N).unwrap();
        buffer.write(0, f32::host(&[value; N]));
        buffer
    }

    fn first(buffer: &CudaMemory) -> f32 {
        let mut value = [0.0];
        buffer.read(0, f32::host_mut(&mut value));
        value[0]
    }

    /// `y = 2 y + x`, through two pieces of scratch memory that follow each other.
    fn twice_and_add(device: &Device, y: &CudaMemory, x: &CudaMemory) {
        let grid = Grid { blocks: [1, 1, 1], threads: 256, shared_bytes: 0 };
        for _ in 0..2 {
            let call = Call::open(device, "test");
            let (y, held) = (y.numbers(), call.scratch(Format::F32, N));
            call.copy(held, y);
            call.launch("add_f32_f32", grid, &mut args![y.address, held.address, N as i64]);
            call.close();
            let call = Call::open(device, "test");
            let half = call.array(&[0.5_f32; N]);
            call.launch("add_f32_f32", grid, &mut args![y.address, x.numbers().address, N as i64]);
            call.launch("add_f32_f32", grid, &mut args![y.address, half, N as i64]);
            call.close();
        }
    }

    #[test]
    fn a_replay_repeats_the_calls_on_what_lies_there_then() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let (y, x) = (buffer(&device, 1.0), buffer(&device, 3.0));
        twice_and_add(&device, &y, &x);
        let step = |y: f32, x: f32| 2.0 * (2.0 * y + x + 0.5) + x + 0.5;
        assert_eq!(first(&y), step(1.0, 3.0));
        y.write(0, f32::host(&[1.0; N]));
        let allocations = emulator::counters().allocations;
        let graph = Graph::capture(&device, || twice_and_add(&device, &y, &x)).unwrap();
        assert_eq!(first(&y), 1.0, "nothing is done while it is recorded");
        graph.replay().unwrap();
        x.write(0, f32::host(&[-2.0; N]));
        graph.replay().unwrap();
        assert_eq!(first(&y), step(step(1.0, 3.0), -2.0));
        assert_eq!(emulator::counters().allocations, allocations);
        assert_eq!(emulator::counters().graph_launches, 2);
    }

    #[test]
    fn memory_of_a_graph_stays_until_it_is_gone() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let (y, x) = (buffer(&device, 1.0), buffer(&device, 3.0));
        twice_and_add(&device, &y, &x);
        let used = device.pool().used().in_use;
        let graph = Graph::capture(&device, || twice_and_add(&device, &y, &x)).unwrap();
        let with_graph = device.pool().used().in_use;
        assert!(with_graph >= used + 4 * N, "{with_graph} bytes, {used} before");
        let address = x.numbers().address;
        drop(x);
        // what is allocated now must not lie where the graph reads
        let others: Vec<_> = (0..20).map(|_| buffer(&device, 7.0)).collect();
        assert!(others.iter().all(|other| other.numbers().address != address));
        y.write(0, f32::host(&[1.0; N]));
        graph.replay().unwrap();
        assert_eq!(first(&y), 2.0 * (2.0 + 3.5) + 3.5);
        assert!(others.iter().all(|other| first(other) == 7.0));
        drop((graph, others));
        let x = buffer(&device, 0.0);
        assert_eq!(x.numbers().address, address);
        assert_eq!(device.pool().used().in_use, used);
    }

    #[test]
    fn what_cannot_be_repeated_is_refused_and_leaves_the_device_as_it_was() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let (y, x) = (buffer(&device, 1.0), buffer(&device, 3.0));
        let refused = |calls: &dyn Fn()| {
            caught(|| Graph::capture(&device, calls)).map(|_| ()).unwrap_err().to_string()
        };
        let upload = refused(&|| x.write(0, f32::host(&[1.0; N])));
        let expected = "an upload in `write` cannot be captured: run the same calls once before";
        assert_eq!(upload, format!("cuda:0: {expected}"));
        let grow = refused(&|| {
            Call::open(&device, "test").scratch(Format::F32, 64 << 20);
        });
        assert!(grow.contains("a new block in `allocate` cannot be captured"), "{grow}");
        let on_another_thread = || {
            let opened = std::thread::scope(|scope| {
                scope.spawn(|| drop(Call::open(&device, "other"))).join().unwrap_err()
            });
            std::panic::resume_unwind(opened);
        };
        let captured =
            catch_unwind(AssertUnwindSafe(|| Graph::capture(&device, on_another_thread)));
        let other = captured.map(|_| ()).unwrap_err().downcast::<String>().unwrap();
        assert_eq!(*other, "cuda:0: `other` while another thread captures a graph");
        // all of it works afterwards
        twice_and_add(&device, &y, &x);
        assert_eq!(first(&y), 2.0 * (2.0 + 3.5) + 3.5);
        Graph::capture(&device, || twice_and_add(&device, &y, &x)).unwrap();

        let strict = emulated::device(DeviceOptions { strict: true, ..emulated::options() });
        let error = Graph::capture(&strict, || ()).unwrap_err();
        assert!(matches!(error, CudaError::NotCapturable { doing: "allocation", .. }), "{error}");
    }
}
