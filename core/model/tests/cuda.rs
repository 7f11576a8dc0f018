//! Models of every family on an emulated NVIDIA device, beside the processor.
#![expect(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test, which says what it skips"
)]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forgelm_kernels_api::{Compute, Ops, Precision, SliceMut};
use forgelm_kernels_cpu::Cpu;
use forgelm_kernels_cuda::{Cuda, Device, DeviceOptions, Folders, ImageSource, Libraries};
use forgelm_kernels_emulator as emulator;
use forgelm_model::{
    Activations, CachedSequence, Decoder, DropoutStep, Keep, KvCache, LoraConfig, ModelConfig,
    Pass, Scored, Selection, StepSize, Trainable,
};
use forgelm_tensor::random::{Purpose, Stream};
use support::{Batch, noise, tiny_store};

const FAMILIES: [&str; 13] = [
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-short",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
];

/// The emulated driver has one state in a process: tests that use it follow each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// An emulated device, alone; `None`, aloud, where there is none.
fn device() -> Option<(MutexGuard<'static, ()>, Arc<dyn Ops>, Arc<Device>)> {
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

fn family(name: &str) -> ModelConfig {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/families");
    let text = std::fs::read_to_string(folder.join(name).join("config.json")).expect("it is there");
    let json = serde_json::from_str(&text).expect("it is JSON");
    ModelConfig::from_hf_json(&json, "config.json").expect("a good config")
}

/// What trains: low-rank matrices, also with magnitudes, or every weight.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lora,
    Dora,
    Everything,
}

struct Model {
    config: ModelConfig,
    decoder: Decoder,
    trainable: Trainable,
    acts: Activations,
    batch: Batch,
}

impl Model {
    fn new(config: &ModelConfig, ops: Arc<dyn Ops>, compute: Compute, kind: Kind) -> Self {
        Self::of_batch(config, ops, compute, kind, &[20, 3, 9])
    }

    fn of_batch(
        config: &ModelConfig,
        ops: Arc<dyn Ops>,
        compute: Compute,
        kind: Kind,
        lengths: &[usize],
    ) -> Self {
        let store = tiny_store(config);
        let mut decoder = Decoder::from_store(config.clone(), &store, ops, compute)
            .expect("the tiny model is complete");
        let mut lora = LoraConfig::new(4, 8.0, &["all-linear"]);
        lora.dropout = 0.1;
        lora.dora = kind == Kind::Dora;
        let selection = match kind {
            Kind::Lora | Kind::Dora => Selection::Adapter(lora),
            Kind::Everything => Selection::Everything,
        };
        let mut trainable = Trainable::zeroed(selection, config).expect("good settings");
        decoder.begin(&mut trainable, &store).expect("the tiny model is complete");
        let n = trainable.n_params();
        for (param, noise) in trainable.params_mut().iter_mut().zip(noise(4, n, 0.05)) {
            *param += noise;
        }
        decoder.refresh(&mut trainable);
        let batch = Batch::random(1, lengths, config.vocab_size);
        let n = lengths.iter().sum();
        let size = StepSize { tokens_max: n, scored_rows_max: n };
        let acts = Activations::new(&decoder, Some(&trainable), size, Keep::Everything)
            .expect("there is memory");
        Self { config: config.clone(), decoder, trainable, acts, batch }
    }

    /// Log-probabilities and gradients of one step.
    fn step(&mut self, grads: SliceMut<'_>) -> Vec<f32> {
        let stream = Stream::new(5, Purpose::Dropout);
        let dropout = Some(DropoutStep { stream: &stream, step: 2 });
        let pass = Pass { adapter: Some(&self.trainable), batch: self.batch.input(), dropout };
        let (rows, labels) = self.batch.scored();
        let scored = Scored { rows: &rows, labels: &labels };
        let mut logp = vec![0.0; rows.len()];
        let (decoder, acts) = (&self.decoder, &mut self.acts);
        decoder.forward(&pass, acts);
        decoder.logprobs_with_gradient(&pass, acts, scored, &mut logp);
        decoder.backward(&pass, acts, scored, &noise(6, rows.len(), 1.0), grads);
        logp
    }

    /// Logits after a prompt and two more pieces, with cached keys and values.
    fn cached(&mut self) -> Vec<f32> {
        let mut logits = vec![0.0; self.config.vocab_size];
        let mut cache = KvCache::new(&self.decoder, 20);
        for tokens in
            [&self.batch.tokens[..12], &self.batch.tokens[12..13], &self.batch.tokens[13..20]]
        {
            let sequence = CachedSequence { tokens, cache: &mut cache };
            let adapter = Some(&self.trainable);
            self.decoder.forward_cached(adapter, &mut [sequence], &mut self.acts, &mut logits);
        }
        logits
    }

    /// What a run plans for its calls' own time, without what is planned for every size.
    fn planned_workspace(&self) -> usize {
        let of = |size: StepSize| {
            let longest = size.tokens_max;
            let work = size.workload(&self.config, longest, self.decoder.compute(), false);
            self.decoder.ops().workspace_bytes(&work)
        };
        of(self.acts.size()) - of(StepSize { tokens_max: 0, scored_rows_max: 0 })
    }

    /// Log-probabilities, gradients and cached logits.
    fn all(mut self) -> [(&'static str, Vec<f32>); 3] {
        let mut grads = vec![0.0; self.trainable.n_params()];
        let logp = self.step((&mut grads).into());
        [("log-probabilities", logp), ("gradients", grads), ("cached logits", self.cached())]
    }
}

fn size(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// The largest difference, as a share of the size of all.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let apart = size(found.iter().zip(expected).map(|(found, expected)| found - expected));
    apart / size(expected.iter().copied())
}

/// With products in f32 they differ by rounding. With bfloat16 the processor rounds both factors of
/// each product, the device also what lies between two products: a few times as often.
#[test]
fn every_family_gives_what_the_processor_gives() {
    let Some((_alone, cuda, _)) = device() else { return };
    for name in FAMILIES {
        let config = family(name);
        for kind in [Kind::Lora, Kind::Dora, Kind::Everything] {
            let cpu = |compute| Model::new(&config, Arc::new(Cpu::new(1)), compute, kind).all();
            let (expected, rounded) = (cpu(Compute::F32), cpu(Compute::Bf16));
            for compute in [Compute::F32, Compute::Bf16] {
                let found = Model::new(&config, Arc::clone(&cuda), compute, kind).all();
                for (i, (what, found)) in found.iter().enumerate() {
                    let apart = difference(found, &expected[i].1);
                    let bound = match compute {
                        Compute::F32 => 1e-5,
                        // A row whose probabilities are nearly equal goes to another expert.
                        Compute::Bf16 if config.experts.is_some() => 0.5,
                        Compute::Bf16 => 4.0 * difference(&rounded[i].1, &expected[i].1),
                    };
                    let case = format!("{name}, {kind:?}, {compute:?}");
                    assert!(apart <= bound, "{case}: {what} are {apart:.2e} off, not {bound:.2e}");
                }
            }
        }
    }
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
