//! Time by the device's own clock, between two marks in its stream.

use cudarc::driver::sys::CUevent_flags;

use crate::device::Device;
use crate::error::CudaError;

impl Device {
    /// Seconds from the first to the last of what `calls` asks of the device; waits until all of it
    /// is done. Where the host asks more slowly than the device works, that waiting is in it.
    ///
    /// # Errors
    /// If something that was asked for failed.
    pub fn seconds(&self, calls: impl FnOnce()) -> Result<f64, CudaError> {
        self.bind()?;
        let failed = |error| self.driver_error("timing", error);
        let mark = || {
            let event = self.stream().context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            event.record(self.stream())?;
            Ok(event)
        };
        let first = mark().map_err(failed)?;
        calls();
        let last = mark().map_err(failed)?;
        self.synchronize()?;
        Ok(f64::from(first.elapsed_ms(&last).map_err(failed)?) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use forgelm_kernels_api::{Format, Number as _};
    use forgelm_kernels_emulator as emulator;

    use crate::call::Call;
    use crate::emulated;
    use crate::error::CudaError;

    /// Filling a hundred times as much takes longer, and no call is left for later.
    #[test]
    fn what_is_done_between_two_marks_is_timed() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        let seconds = |n: usize| {
            let call = Call::open(&device, "test");
            let numbers = call.scratch(Format::F32, n);
            let seconds = device.seconds(|| call.clear(numbers)).unwrap();
            call.close();
            seconds
        };
        assert!(seconds(1) >= 0.0);
        let best = |n| (0..5).map(|_| seconds(n)).fold(f64::INFINITY, f64::min);
        assert!(best(1 << 24) > best(1 << 10));
    }

    #[test]
    fn a_failure_in_between_is_told() {
        let Some(_alone) = emulated::alone() else { return };
        let device = emulated::device(emulated::options());
        emulator::fail_next("cuStreamSynchronize", 700, 0);
        let error = device.seconds(|| ()).unwrap_err();
        let CudaError::Earlier { fault, .. } = &error else { panic!("{error}") };
        assert!(fault.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{fault}");
        let memory = crate::memory::CudaMemory::zeros(&device, Format::U8, 1).unwrap();
        let mut byte = [7];
        forgelm_kernels_api::DeviceMemory::read(&memory, 0, u8::host_mut(&mut byte));
        assert_eq!(byte, [0]);
    }
}
