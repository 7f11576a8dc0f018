//! The same bits on any number of threads.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod support;

use std::sync::Arc;

use forgelm_kernels_api::Compute;
use forgelm_kernels_cpu::Cpu;
use forgelm_model::{
    Activations, CachedSequence, Decoder, DropoutStep, Keep, KvCache, LoraConfig, ModelConfig,
    Pass, Scored, Selection, StepSize, Trainable,
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

/// What trains: low-rank matrices, also with magnitudes, or every weight.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Lora,
    Dora,
    Everything,
}

fn selection(kind: Kind) -> Selection {
    let mut lora = LoraConfig::new(5, 10.0, &["all-linear"]);
    lora.dropout = 0.1;
    lora.dora = matches!(kind, Kind::Dora);
    match kind {
        Kind::Lora | Kind::Dora => Selection::Adapter(lora),
        Kind::Everything => Selection::Everything,
    }
}

/// Log-probabilities, gradients and cached logits of one step.
fn step(n_threads: usize, compute: Compute, kind: Kind) -> [Vec<f32>; 3] {
    let config = config();
    let ops = Arc::new(Cpu::new(n_threads));
    let store = tiny_store(&config);
    let mut decoder = Decoder::from_store(config.clone(), &store, ops, compute)
        .expect("the tiny model is complete");
    let mut adapter = Trainable::zeroed(selection(kind), &config).expect("good settings");
    decoder.begin(&mut adapter, &store).expect("the tiny model is complete");
    let n = adapter.params().len();
    for (param, noise) in adapter.params_mut().iter_mut().zip(noise(4, n, 0.1)) {
        *param += noise;
    }
    decoder.refresh(&mut adapter);
    let batch = Batch::random(1, &[70, 3, 129], config.vocab_size);
    let size = StepSize { tokens_max: 202, scored_rows_max: 202 };
    let mut acts = Activations::new(&decoder, Some(&adapter), size, Keep::Everything)
        .expect("there is memory");
    let stream = Stream::new(5, Purpose::Dropout);
    let dropout = Some(DropoutStep { stream: &stream, step: 2 });
    let pass = Pass { adapter: Some(&adapter), batch: batch.input(), dropout };
    let (rows, labels) = batch.scored();
    let scored = Scored { rows: &rows, labels: &labels };
    let mut logp = vec![0.0; rows.len()];
    let mut grads = vec![0.0; n];
    decoder.forward(&pass, &mut acts);
    decoder.logprobs_with_gradient(&pass, &mut acts, scored, &mut logp);
    decoder.backward(&pass, &mut acts, scored, &noise(6, rows.len(), 1.0), &mut grads);
    let mut logits = vec![0.0; config.vocab_size];
    let mut cache = KvCache::new(&decoder, 70);
    for tokens in [&batch.tokens[..60], &batch.tokens[60..61], &batch.tokens[61..70]] {
        let sequence = CachedSequence { tokens, cache: &mut cache };
        decoder.forward_cached(Some(&adapter), &mut [sequence], &mut acts, &mut logits);
    }
    [logp, grads, logits]
}

#[test]
fn a_step_gives_the_same_bits_on_1_2_3_and_4_threads() {
    let bits =
        |values: [Vec<f32>; 3]| values.map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    for compute in [Compute::F32, Compute::Bf16] {
        for kind in [Kind::Lora, Kind::Dora, Kind::Everything] {
            let one = bits(step(1, compute, kind));
            for n_threads in [2, 3, 4] {
                let more = bits(step(n_threads, compute, kind));
                assert!(more == one, "{kind:?}, {compute:?}, {n_threads} threads");
            }
        }
    }
}
