//! For tests of any crate: emulated devices of this process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_kernels_cuda::{Device, DeviceOptions, Folders, ImageSource, Libraries};
use forgelm_kernels_emulator as emulator;

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// So many emulated devices, alone; `None`, aloud, where there are none. Work of their streams is done
/// as late as its rules allow.
pub fn emulated_devices<const N: usize>() -> Option<(MutexGuard<'static, ()>, [Arc<Device>; N])> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let n_devices = i32::try_from(N).expect("a few");
    emulator::set_device(&emulator::Device { n_devices, ..Default::default() });
    emulator::set_streams(emulator::Streams::Deferred);
    emulator::set_threads(2);
    emulator::set_memory_limit(u64::MAX);
    let mut first = vec![emulator::library_folder().to_owned()];
    // What links devices is there where there are several.
    first.extend((N > 1).then(|| emulator::nccl_folder().to_owned()));
    let libraries = Libraries::find(&Folders { first, last: Vec::new() });
    let open = |ordinal| {
        // Kernels come from the emulated driver itself; an image only has to look like one.
        let images = ImageSource::Given(Arc::from(&emulator::IMAGE[..]));
        let options = DeviceOptions { images, ..DeviceOptions::default() };
        Device::open(ordinal, &libraries, options).expect("the emulated device opens")
    };
    Some((alone, std::array::from_fn(open)))
}
