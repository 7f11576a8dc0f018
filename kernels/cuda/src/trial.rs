//! For tests: calls on the emulated device, under all orders in which its threads can take turns.

use forgelm_kernels_api::philox::philox4x32;
use forgelm_kernels_api::{Format, Slice};
use forgelm_kernels_emulator::{AsyncCopies, Schedule, set_async_copies, set_schedule};

use crate::call::{Call, Numbers};
use crate::cast::{copy, read_as};
use crate::device::Device;
use crate::emulated;

/// What `run` returns, which must be the same under all orders; `None` without an emulator.
pub(crate) fn in_all_orders<T, F>(run: F) -> Option<T>
where
    T: PartialEq,
    F: Fn(&Call<'_>) -> T,
{
    on_device_in_all_orders(|device| {
        let call = Call::open(device, "trial");
        let result = run(&call);
        call.close();
        result
    })
}

/// As [`in_all_orders`], for many calls.
pub(crate) fn on_device_in_all_orders<T, F>(run: F) -> Option<T>
where
    T: PartialEq,
    F: Fn(&Device) -> T,
{
    let _alone = emulated::alone()?;
    let device = emulated::device(emulated::options());
    let mut first = None;
    for schedule in Schedule::ALL {
        for copies in AsyncCopies::ALL {
            set_schedule(schedule);
            set_async_copies(copies);
            let result = run(&device);
            match &first {
                None => first = Some(result),
                Some(first) => assert!(*first == result, "other results under {schedule:?}"),
            }
        }
    }
    set_schedule(Schedule::Forward);
    set_async_copies(AsyncCopies::AtWait);
    first
}

/// Numbers of the host on the device. Where they are `shifted`, no 16 bytes of them are aligned.
pub(crate) fn put(call: &Call<'_>, values: &[f32], format: Format, is_shifted: bool) -> Numbers {
    let memory = call.scratch(format, values.len() + 1);
    let place = memory.part(usize::from(is_shifted), values.len());
    let exact = call.read(Slice::Host(values));
    copy(call, place, exact);
    place
}

/// Numbers of the device as f32.
pub(crate) fn get(call: &Call<'_>, numbers: Numbers) -> Vec<f32> {
    call.fetch(read_as(call, Format::F32, numbers))
}

/// Numbers in [-1, 1), the same for the same seed, with at most 8 bits: every format has them.
pub(crate) fn numbers(seed: u32, n: usize) -> Vec<f32> {
    let byte = |i: usize| philox4x32([i as u32, seed, 0, 0], [0, 0])[0] >> 24;
    (0..n).map(|i| (byte(i) as f32 - 128.0) / 128.0).collect()
}
