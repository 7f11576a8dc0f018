//! Models of every family on a real NVIDIA device, with the kernels that are shipped, beside the
//! processor. Without a device it says so. `tools/bench/gpu` runs it on the machines that have one.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "sizes of tests are small"
)]

mod comparison;
mod support;

use std::sync::Arc;

use forgelm_kernels_api::Ops;
use forgelm_kernels_cuda::{Cuda, Device, DeviceOptions, Folders, Libraries};

#[test]
#[expect(clippy::disallowed_methods, reason = "where a machine has libraries its user says")]
fn every_family_gives_what_the_processor_gives() {
    let named = std::env::var_os("FORGELM_CUDA_PATH").unwrap_or_default();
    let first = std::env::split_paths(&named).filter(|p| !p.as_os_str().is_empty()).collect();
    let libraries = Libraries::find(&Folders { first, last: Vec::new() });
    match Device::open(0, &libraries, DeviceOptions::default()) {
        Ok(device) => {
            let cuda: Arc<dyn Ops> = Arc::new(Cuda::new(device, 2));
            comparison::assert_as_on_the_processor(&cuda);
        }
        Err(error) => println!("skipped: {error}"),
    }
}
