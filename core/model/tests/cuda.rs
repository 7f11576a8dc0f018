//! Models of every family on an emulated NVIDIA device, beside the processor.
#![expect(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test, which says what it skips"
)]

mod comparison;
mod support;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use comparison::{Kind, Model, family};
use forgelm_kernels_api::{Compute, Ops, Precision};
use forgelm_kernels_cuda::{Cuda, Device, DeviceOptions, Folders, ImageSource, Libraries};
use forgelm_kernels_emulator as emulator;
use forgelm_model::{Pass, Scored};
use support::noise;

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Alone with the emulated driver, and what was opened.
type Opened = (MutexGuard<'static, ()>, Arc<dyn Ops>, Arc<Device>);

/// An emulated device, alone; `None`, aloud, where there is none.
fn device() -> Option<Opened> {
    if let Some(reason) = emulator::unavailable() {
        println!("skipped: {reason}");
        return None;
    }
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::set_threads(2);
    let first = vec![emulator::library_folder().to_owned()];
    let libraries = Libraries::find(&Folders { first, last: Vec::new() });
    let images = ImageSource::Given(Arc::from(&emulator::IMAGE[..]));
    let options = DeviceOptions { images, ..DeviceOptions::default() };
    let device = Device::open(0, &libraries, options).expect("the emulated device opens");
    Some((alone, Arc::new(Cuda::new(Arc::clone(&device), 2)), device))
}

#[test]
fn every_family_gives_what_the_processor_gives() {
    let Some((_alone, cuda, _)) = device() else { return };
    comparison::assert_as_on_the_processor(&cuda);
}

/// Rows enough for what grows with them to be more than what allocations are rounded up by.
#[test]
fn calls_take_no_more_memory_than_was_planned() {
    const ROUNDING: usize = 16 << 10;
    let Some((_alone, cuda, device)) = device() else { return };
    for name in ["llama-bias", "qwen3_moe"] {
        for kind in [Kind::Dora, Kind::Everything] {
            for compute in [Compute::F32, Compute::Bf16] {
                let (config, ops) = (family(name), Arc::clone(&cuda));
                let mut model = Model::of_batch(&config, ops, compute, kind, &[200, 56]);
                let n = model.trainable.n_params();
                let mut grads = cuda.allocate(n, Precision::Exact).expect("there is memory");
                // What products share is made in the first step, and kept.
                model.step(grads.all_mut());
                let before = device.pool().used().in_use;
                device.pool().forget_peak();
                model.step(grads.all_mut());
                let (taken, planned) =
                    (device.pool().used().peak - before, model.planned_workspace());
                let case = format!("{name}, {kind:?}, {compute:?}: {taken} of {planned} bytes");
                assert!(taken > 4 * ROUNDING, "{case}: too little to compare");
                assert!(taken <= planned + ROUNDING, "{case}");
                assert!(planned <= 4 * taken, "{case}");
            }
        }
    }
}

/// A step copies what the host gives it (tokens, positions as angles, labels, the gradient of the
/// log-probabilities) and what it asks for, and nothing of what lives on the device.
#[test]
fn a_step_leaves_on_the_device_what_lives_there() {
    let Some((_alone, cuda, _)) = device() else { return };
    let config = family("llama-bias");
    let mut model = Model::new(&config, Arc::clone(&cuda), Compute::Bf16, Kind::Lora);
    let mut grads =
        cuda.allocate(model.trainable.n_params(), Precision::Exact).expect("there is memory");
    let step = |model: &mut Model, grads: &mut forgelm_kernels_api::Buffer| {
        let pass =
            Pass { adapter: Some(&model.trainable), batch: model.batch.input(), dropout: None };
        let (rows, labels) = model.batch.scored();
        let scored = Scored { rows: &rows, labels: &labels };
        let mut logp = vec![0.0; rows.len()];
        model.decoder.forward(&pass, &mut model.acts);
        model.decoder.logprobs_with_gradient(&pass, &mut model.acts, scored, &mut logp);
        let dlogp = noise(6, rows.len(), 1.0);
        model.decoder.backward(&pass, &mut model.acts, scored, &dlogp, grads.all_mut());
    };
    step(&mut model, &mut grads);
    emulator::reset_counters();
    step(&mut model, &mut grads);
    let counters = emulator::counters();
    let (t, head_dim) = (32, config.head_dim as u64);
    // Cosines and sines, a few numbers of four bytes a row, and arrays of sizes.
    let given = t * head_dim * 4 + 64 * t;
    assert!(counters.bytes_to_device <= given, "{} of {given} bytes", counters.bytes_to_device);
    assert!(counters.bytes_to_host <= 8 * t, "{} bytes", counters.bytes_to_host);
}
