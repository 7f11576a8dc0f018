//! Models of every family on a library of ops, beside the processor.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]

use std::path::Path;
use std::sync::Arc;

use forgelm_kernels_api::{Compute, Ops, SliceMut};
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{
    Activations, CachedSequence, Decoder, DropoutStep, Keep, KvCache, LoraConfig, ModelConfig,
    Pass, Scored, Selection, StepSize, Trainable,
};
use forgelm_tensor::random::{Purpose, Stream};

use crate::support::{Batch, noise, tiny_store};

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

pub fn family(name: &str) -> ModelConfig {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden/families");
    let text = std::fs::read_to_string(folder.join(name).join("config.json")).expect("it is there");
    let json = serde_json::from_str(&text).expect("it is JSON");
    ModelConfig::from_hf_json(&json, "config.json").expect("a good config")
}

/// What trains: low-rank matrices, also with magnitudes, or every weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Lora,
    Dora,
    Everything,
}

pub struct Model {
    pub config: ModelConfig,
    pub decoder: Decoder,
    pub trainable: Trainable,
    pub acts: Activations,
    pub batch: Batch,
}

impl Model {
    pub fn new(config: &ModelConfig, ops: Arc<dyn Ops>, compute: Compute, kind: Kind) -> Self {
        Self::of_batch(config, ops, compute, kind, &[20, 3, 9])
    }

    pub fn of_batch(
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
    pub fn step(&mut self, grads: SliceMut<'_>) -> Vec<f32> {
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
    pub fn planned_workspace(&self) -> usize {
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
pub fn assert_as_on_the_processor(cuda: &Arc<dyn Ops>) {
    for name in FAMILIES {
        let config = family(name);
        for kind in [Kind::Lora, Kind::Dora, Kind::Everything] {
            let cpu = |compute| Model::new(&config, Arc::new(Cpu::new(1)), compute, kind).all();
            let (expected, rounded) = (cpu(Compute::F32), cpu(Compute::Bf16));
            let rounding = |i: usize| difference(&rounded[i].1, &expected[i].1);
            for compute in [Compute::F32, Compute::Bf16] {
                let found = Model::new(&config, Arc::clone(cuda), compute, kind).all();
                for (i, (what, found)) in found.iter().enumerate() {
                    let apart = difference(found, &expected[i].1);
                    let bound = match compute {
                        Compute::F32 => 1e-5,
                        // A row whose probabilities are nearly equal goes to another expert.
                        Compute::Bf16 if config.experts.is_some() => 0.5,
                        // One row of logits is fewer numbers to be a few times off on average.
                        Compute::Bf16 if *what == "cached logits" => 6.0 * rounding(i),
                        Compute::Bf16 => 4.0 * rounding(i),
                    };
                    let case = format!("{name}, {kind:?}, {compute:?}");
                    assert!(apart <= bound, "{case}: {what} are {apart:.2e} off, not {bound:.2e}");
                }
            }
        }
    }
}
