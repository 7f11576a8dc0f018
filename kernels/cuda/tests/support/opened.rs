//! For tests of any crate: an emulated device of this process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_kernels_cuda::{Device, DeviceOptions, Folders, ImageSource, Libraries};
use forgelm_kernels_emulator as emulator;

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// An emulated device, alone; `None`, aloud, where there is none. Work of its streams is done as late
/// as their rules allow.
pub fn emulated_device() -> Option<(MutexGuard<'static, ()>, Arc<Device>)> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::set_streams(emulator::Streams::Deferred);
    emulator::set_threads(2);
    emulator::set_memory_limit(u64::MAX);
    let first = vec![emulator::library_folder().to_owned()];
    let libraries = Libraries::find(&Folders { first, last: Vec::new() });
    // Kernels come from the emulated driver itself; an image only has to look like one.
    let images = ImageSource::Given(Arc::from(&emulator::IMAGE[..]));
    let options = DeviceOptions { images, ..DeviceOptions::default() };
    let device = Device::open(0, &libraries, options).expect("the emulated device opens");
    Some((alone, device))
}
