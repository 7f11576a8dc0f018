//! For tests: a device that runs kernels on the CPU, behind NVIDIA's own interface.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_kernels_emulator as emulator;

use crate::device::{Device, DeviceOptions};
use crate::images::ImageSource;
use crate::libraries::{Folders, Libraries};

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The emulated driver as it is at the start, for one test; `None`, aloud, where there is none.
///
/// Work of its streams is done as late as their rules allow.
#[cfg(test)] // said again for the house rules, which read one file at a time
pub(crate) fn alone() -> Option<MutexGuard<'static, ()>> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::set_streams(emulator::Streams::Deferred);
    emulator::set_memory_limit(u64::MAX);
    emulator::fail_always(0);
    emulator::reset_counters();
    Some(alone)
}

pub(crate) fn libraries() -> Libraries {
    let first = vec![emulator::library_folder().to_owned()];
    Libraries::find(&Folders { first, last: Vec::new() })
}

/// Kernels come from the emulated driver itself; an image only has to look like one.
pub(crate) fn options() -> DeviceOptions {
    let images = ImageSource::Given(Arc::from(&emulator::IMAGE[..]));
    DeviceOptions { images, ..DeviceOptions::default() }
}

pub(crate) fn device(options: DeviceOptions) -> Arc<Device> {
    Device::open(0, &libraries(), options).expect("the emulated device opens")
}
