//! Models of every family on an emulated NVIDIA device, beside the processor.
#![expect(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test, which says what it skips"
)]

mod comparison;
#[path = "../../../kernels/cuda/tests/support/opened.rs"]
mod opened;
mod stored;
mod support;

use std::sync::{Arc, MutexGuard};

use comparison::{Kind, Model, family};
use forgelm_kernels_api::{Compute, Ops, Precision};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_cuda::{Cuda, Device};
use forgelm_kernels_emulator as emulator;
use forgelm_model::{Decoder, ModelConfig, ModelFiles, OpenModel, Pass, Scored};
use stored::Folder;
use support::{Batch, noise};

/// Alone with the emulated driver, and what was opened.
type Opened = (MutexGuard<'static, ()>, Arc<dyn Ops>, Arc<Device>);

/// An emulated device, alone; `None`, aloud, where there is none.
fn device() -> Option<Opened> {
    let (alone, [device]) = opened::emulated_devices()?;
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

/// Bytes that the second step of a model copies to the device, and those that come back.
fn copied_by_a_step(model: &mut Model, cuda: &Arc<dyn Ops>) -> (u64, u64) {
    let mut grads =
        cuda.allocate(model.trainable.n_params(), Precision::Exact).expect("there is memory");
    let mut step = || {
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
    step();
    emulator::reset_counters();
    step();
    let counters = emulator::counters();
    (counters.bytes_to_device, counters.bytes_to_host)
}

/// A step copies what the host gives it (tokens, positions as angles, labels, the gradient of the
/// log-probabilities) and what it asks for, and nothing of what lives on the device.
#[test]
fn a_step_leaves_on_the_device_what_lives_there() {
    let Some((_alone, cuda, _)) = device() else { return };
    let config = family("llama-bias");
    let mut model = Model::new(&config, Arc::clone(&cuda), Compute::Bf16, Kind::Lora);
    let (to_device, to_host) = copied_by_a_step(&mut model, &cuda);
    let (t, head_dim) = (32, config.head_dim as u64);
    // Cosines and sines, a few numbers of four bytes a row, and arrays of sizes.
    let given = t * head_dim * 4 + 64 * t;
    assert!(to_device <= given, "{to_device} of {given} bytes");
    assert!(to_host <= 8 * t, "{to_host} bytes");
}

/// Of a choice of experts comes back how many rows each has, and how probable it was: nothing that
/// grows with the rows.
#[test]
fn experts_are_chosen_on_the_device() {
    let Some((_alone, cuda, _)) = device() else { return };
    for name in ["mixtral", "qwen2_moe", "qwen3_moe"] {
        let config = family(name);
        let (t, head_dim) = (256, config.head_dim as u64);
        let mut model =
            Model::of_batch(&config, Arc::clone(&cuda), Compute::F32, Kind::Lora, &[200, 56]);
        let (to_device, to_host) = copied_by_a_step(&mut model, &cuda);
        let given = t * head_dim * 4 + 64 * t;
        assert!(to_device <= given, "{name}: {to_device} of {given} bytes");
        let experts = config.experts.as_ref().expect("it has experts");
        let n_layers = experts.layers.iter().filter(|has_experts| **has_experts).count() as u64;
        // Chosen on the way up with sums of probabilities, and once more on the way down.
        let choices = n_layers * 8 * (3 * experts.num_experts as u64 + 2);
        let (_, labels) = model.batch.scored();
        assert_eq!(to_host, choices + 4 * labels.len() as u64, "{name}");
    }
}

#[test]
fn capped_logits_stay_on_the_device() {
    let Some((_alone, cuda, _)) = device() else { return };
    let cap = 0.5;
    let config = ModelConfig { final_soft_cap: Some(cap), ..family("gemma2") };
    let rows = [3, 19, 31];
    let n = rows.len() * config.vocab_size;
    let model_on = |ops| {
        let mut model = Model::new(&config, ops, Compute::F32, Kind::Lora);
        let adapter = Some(&model.trainable);
        let pass = Pass { adapter, batch: model.batch.input(), dropout: None };
        model.decoder.forward(&pass, &mut model.acts);
        model
    };
    let mut model = model_on(Arc::clone(&cuda));
    let mut logits = cuda.allocate(n, Precision::Exact).expect("there is memory");
    emulator::reset_counters();
    let adapter = Some(&model.trainable);
    model.decoder.logits(adapter, &mut model.acts, &rows, logits.all_mut());
    assert_eq!(emulator::counters().bytes_to_host, 0);
    let found = logits.all().to_host();

    let mut model = model_on(Arc::new(Cpu::new(1)));
    let mut expected = vec![0.0; n];
    let adapter = Some(&model.trainable);
    model.decoder.logits(adapter, &mut model.acts, &rows, &mut expected);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-5 * cap, "{found} instead of {expected}");
    }
}

fn logits(decoder: &Decoder) -> Vec<u32> {
    let batch = Batch::random(8, &[7, 5], decoder.dims().v);
    support::logits(decoder, &batch).into_iter().map(f32::to_bits).collect()
}

/// Codes are sent as they are, a byte each, and the device makes the same weights of them as it is
/// given where a folder has their values.
#[test]
fn weights_in_eight_bits_become_numbers_on_the_device() {
    let Some((_alone, cuda, _)) = device() else { return };
    let folder = Folder::golden("fp8-block");
    let (dir, dense) = (folder.written(), folder.dense().written());
    let load = |dir: &tempfile::TempDir, compute| {
        let open = OpenModel::open(&ModelFiles::Folder(dir.path().to_owned()));
        emulator::reset_counters();
        let decoder = open.and_then(|open| open.load(Arc::clone(&cuda), compute));
        (decoder.expect("good weights"), emulator::counters())
    };
    for (compute, kernel) in
        [(Compute::F32, "float8_e4m3_f32_vec"), (Compute::Bf16, "float8_e4m3_bf16_vec")]
    {
        let (eight, counters) = load(&dir, compute);
        assert_eq!(counters.launches[kernel], 7, "{compute:?}");
        let (want, of_values) = load(&dense, compute);
        // 64,512 weights of linear layers less 7 times a few scales.
        assert!(counters.bytes_to_device + 60_000 < of_values.bytes_to_device, "{compute:?}");
        assert!(logits(&eight) == logits(&want), "{compute:?}");
    }
    let mut damaged = Folder::golden("fp8-block");
    let name = "model.layers.0.mlp.up_proj.weight";
    damaged.tensors.get_mut(name).expect("a weight").bytes[96 * 7 + 2] = 0xff;
    let dir = damaged.written();
    let open = OpenModel::open(&ModelFiles::Folder(dir.path().to_owned())).expect("a good folder");
    let Err(error) = open.load(cuda, Compute::F32) else { panic!("it must be refused") };
    let error = error.to_string();
    assert!(error.ends_with("has the value NaN at row 7, column 2"), "{error}");
}
