//! The same bits on any number of threads.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod support;

use std::sync::Arc;

use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, DropoutStep, Keep, KvCache, LoraConfig,
    ModelConfig, Pass, Scored, StepSize,
};
use forgelm_tensor::random::{Purpose, Stream};
use support::{Batch, noise, tiny_config, tiny_store};

/// Large enough that every op is split over several tasks.
fn config() -> ModelConfig {
    let mut config = tiny_config();
    config.hidden_size = 96;
    config.head_dim = 32;
    config.intermediate_size = 200;
    config.vocab_size = 700;
    config
}

/// Log-probabilities, gradients and cached logits of one step.
fn step(n_threads: usize, compute: Compute) -> [Vec<f32>; 3] {
    let config = config();
    let ops = Arc::new(Cpu::new(n_threads));
    let decoder = Decoder::from_store(config.clone(), &tiny_store(&config), ops, compute)
        .expect("the tiny model is complete");
    let mut lora = LoraConfig::new(5, 10.0, &["all-linear"]);
    lora.dropout = 0.1;
    let mut adapter =
        Adapter::new(lora, &config, &Stream::new(3, Purpose::LoraInit)).expect("good settings");
    let n = adapter.params().len();
    adapter.params_mut().copy_from_slice(&noise(4, n, 0.1));
    let batch = Batch::random(1, &[70, 3, 129], config.vocab_size);
    let size = StepSize { tokens_max: 202, scored_rows_max: 202 };
    let mut acts =
        Activations::new(&config, Some(&adapter), size, Keep::Everything).expect("there is memory");
    let stream = Stream::new(5, Purpose::Dropout);
    let dropout = Some(DropoutStep { stream: &stream, step: 2 });
    let pass = Pass { adapter: Some(&adapter), batch: batch.input(), dropout };
    let (rows, labels) = batch.scored();
    let scored = Scored { rows: &rows, labels: &labels };
    let mut logp = vec![0.0; rows.len()];
    let mut grads = vec![0.0; n];
    decoder.forward(&pass, &mut acts);
    decoder.logprobs_with_gradient(&mut acts, scored, &mut logp);
    decoder.backward(&pass, &mut acts, scored, &noise(6, rows.len(), 1.0), &mut grads);
    let mut logits = vec![0.0; config.vocab_size];
    let mut cache = KvCache::new(&config, 70);
    for tokens in [&batch.tokens[..60], &batch.tokens[60..61], &batch.tokens[61..70]] {
        let sequence = CachedSequence { tokens, cache: &mut cache };
        decoder.forward_cached(Some(&adapter), &mut [sequence], &mut acts, &mut logits);
    }
    [logp, grads, logits]
}

#[test]
fn a_step_gives_the_same_bits_on_1_2_3_and_4_threads() {
    for compute in [Compute::F32, Compute::Bf16] {
        let bits = |values: [Vec<f32>; 3]| {
            values.map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let one = bits(step(1, compute));
        for n_threads in [2, 3, 4] {
            assert!(bits(step(n_threads, compute)) == one, "{compute:?}, {n_threads} threads");
        }
    }
}
