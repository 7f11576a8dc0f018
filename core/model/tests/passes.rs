//! Equivalences of the forward pass: packing, caching, windows, memory plans.
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a test")]

mod support;

use std::sync::Arc;

use forgelm_kernels_api::Compute;
use forgelm_kernels_reference::Reference;
use forgelm_model::{
    Activations, Adapter, CachedSequence, Decoder, Engine, Keep, KvCache, LoraConfig, ModelConfig,
    Pass, StepSize,
};
use forgelm_tensor::random::{Purpose, Stream};
use support::{Batch, noise, tiny_config, tiny_decoder};

const ENGINE: Engine<'_> = Engine { ops: &Reference, compute: Compute::F32 };
const SIZE: StepSize = StepSize { tokens_max: 32, scored_rows_max: 32 };

fn activations(decoder: &Decoder, adapter: Option<&Adapter>, keep: Keep) -> Activations {
    Activations::new(decoder, adapter, SIZE, keep).expect("there is memory")
}

fn trained_adapter(config: &ModelConfig) -> Adapter {
    let lora = LoraConfig::new(4, 8.0, &["all-linear"]);
    let stream = Stream::new(1, Purpose::LoraInit);
    let mut adapter = Adapter::new(lora, config, &stream).expect("good settings");
    let n = adapter.params().len();
    adapter.params_mut().copy_from_slice(&noise(2, n, 0.2));
    adapter
}

/// Logits of every row.
fn logits(decoder: &Decoder, adapter: Option<&Adapter>, batch: &Batch) -> Vec<f32> {
    let mut acts = activations(decoder, adapter, Keep::Nothing);
    decoder.forward(&Pass { adapter, batch: batch.input(), dropout: None }, &mut acts);
    let rows: Vec<u32> = (0..batch.tokens.len() as u32).collect();
    let mut logits = vec![0.0; rows.len() * decoder.dims().v];
    decoder.logits(adapter, &mut acts, &rows, &mut logits);
    logits
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "value {i}: {a}, expected {b}");
    }
}

/// One sequence of a batch by itself.
fn alone(batch: &Batch, n: usize) -> Batch {
    let segment = batch.segments[n];
    let at = segment.start..segment.start + segment.len;
    Batch {
        tokens: batch.tokens[at.clone()].to_vec(),
        positions: batch.positions[at.clone()].to_vec(),
        segments: vec![forgelm_kernels_api::Segment { start: 0, len: segment.len }],
        row_keys: batch.row_keys[at].to_vec(),
    }
}

#[test]
fn packed_sequences_are_the_sequences_alone() {
    let config = tiny_config();
    let decoder = tiny_decoder(&config, Arc::new(Reference));
    let adapter = trained_adapter(&config);
    let batch = Batch::random(4, &[7, 1, 12], config.vocab_size);
    let packed = logits(&decoder, Some(&adapter), &batch);
    let each: Vec<f32> =
        (0..3).flat_map(|n| logits(&decoder, Some(&adapter), &alone(&batch, n))).collect();
    assert_eq!(packed, each);
}

fn assert_cached_is_whole(config: &ModelConfig) {
    let decoder = tiny_decoder(config, Arc::new(Reference));
    let adapter = trained_adapter(config);
    let batch = Batch::random(4, &[13, 9], config.vocab_size);
    let v = config.vocab_size;
    let whole = logits(&decoder, Some(&adapter), &batch);
    let mut acts = activations(&decoder, Some(&adapter), Keep::Nothing);
    let mut caches = [KvCache::new(&decoder, 13), KvCache::new(&decoder, 9)];
    // Prompts of 5 and 2 tokens, then steps of one or three tokens for both at once.
    let mut done = [0, 0];
    for steps in [[5, 2], [1, 3], [3, 1], [1, 1], [3, 2]] {
        let mut found = vec![0.0; 2 * v];
        let [first, second] = &mut caches;
        let new = |n: usize| {
            let from = batch.segments[n].start + done[n];
            &batch.tokens[from..from + steps[n]]
        };
        let mut sequences = [
            CachedSequence { tokens: new(0), cache: first },
            CachedSequence { tokens: new(1), cache: second },
        ];
        decoder.forward_cached(Some(&adapter), &mut sequences, &mut acts, &mut found);
        for n in 0..2 {
            done[n] += steps[n];
            let row = batch.segments[n].start + done[n] - 1;
            assert_near(&found[n * v..(n + 1) * v], &whole[row * v..(row + 1) * v]);
        }
    }
    assert_eq!(done, [13, 9]);
    assert_eq!((caches[0].len(), caches[1].len()), (13, 9));
}

#[test]
fn cached_generation_equals_the_whole_pass() {
    assert_cached_is_whole(&tiny_config());
}

#[test]
fn cached_generation_equals_the_whole_pass_under_a_window() {
    let mut config = tiny_config();
    config.sliding_window = Some(4);
    config.attention.windowed_layers = vec![true; 3];
    assert_cached_is_whole(&config);
}

#[test]
fn a_window_changes_only_rows_beyond_it() {
    let mut config = tiny_config();
    let batch = Batch::random(4, &[12], config.vocab_size);
    let whole = logits(&tiny_decoder(&config, Arc::new(Reference)), None, &batch);
    config.sliding_window = Some(12);
    config.attention.windowed_layers = vec![true; 3];
    let wide = logits(&tiny_decoder(&config, Arc::new(Reference)), None, &batch);
    assert_eq!(whole, wide);
    config.sliding_window = Some(5);
    config.attention.windowed_layers = vec![true; 3];
    let narrow = logits(&tiny_decoder(&config, Arc::new(Reference)), None, &batch);
    let v = config.vocab_size;
    assert_eq!(narrow[..5 * v], whole[..5 * v]);
    assert_ne!(narrow[5 * v..6 * v], whole[5 * v..6 * v]);
}

#[test]
fn a_cache_that_is_cut_goes_on_from_there() {
    let config = tiny_config();
    let decoder = tiny_decoder(&config, Arc::new(Reference));
    let batch = Batch::random(4, &[8], config.vocab_size);
    let mut acts = activations(&decoder, None, Keep::Nothing);
    let mut cache = KvCache::new(&decoder, 8);
    let mut run = |tokens: &[u32], cache: &mut KvCache| {
        let mut logits = vec![0.0; config.vocab_size];
        let sequence = CachedSequence { tokens, cache };
        decoder.forward_cached(None, &mut [sequence], &mut acts, &mut logits);
        logits
    };
    run(&batch.tokens[..4], &mut cache);
    let once = run(&batch.tokens[4..6], &mut cache);
    cache.truncate(4);
    run(&[1], &mut cache);
    cache.truncate(4);
    assert_eq!(run(&batch.tokens[4..6], &mut cache), once);
}

#[test]
fn the_memory_plan_is_what_is_allocated() {
    let config = tiny_config();
    let mut lora = LoraConfig::new(4, 8.0, &["q_proj", "model.layers.1.mlp.down_proj"]);
    lora.dropout = 0.1;
    let stream = Stream::new(1, Purpose::LoraInit);
    let adapter = Adapter::new(lora, &config, &stream).expect("good settings");
    let decoder = tiny_decoder(&config, Arc::new(Reference));
    let total = |adapter: Option<&Adapter>, keep| {
        let plan = Activations::memory_plan(&config, adapter, SIZE, keep, decoder.engine());
        let mut acts = activations(&decoder, adapter, keep);
        assert_eq!(plan.total_bytes(), acts.n_bytes(), "{keep:?}");
        plan.total_bytes()
    };
    let everything = total(Some(&adapter), Keep::Everything);
    let inputs = total(Some(&adapter), Keep::LayerInputs);
    let nothing = total(None, Keep::Nothing);
    assert!(everything > inputs && inputs > nothing);
}

/// By hand, for T = 32, L = 3, C = 16, H D = 32, H_kv D = 8, F = 24, q_proj with r = 4:
/// a layer keeps x_mid 16, two norms 2, q 32, k 8, v 8, attn 32, lse 4, gate 24, up 24 and u 4.
#[test]
fn a_layer_keeps_what_the_plan_says() {
    let config = tiny_config();
    let stream = Stream::new(1, Purpose::LoraInit);
    let adapter = Adapter::new(LoraConfig::new(4, 8.0, &["q_proj"]), &config, &stream);
    let adapter = adapter.expect("good settings");
    let plan = Activations::memory_plan(&config, Some(&adapter), SIZE, Keep::Everything, ENGINE);
    let bytes =
        |name: &str| plan.buffers.iter().find(|b| b.name == name).map_or(0, |b| b.bytes) / (32 * 4);
    assert_eq!(bytes("residual stream"), 4 * 16);
    assert_eq!(bytes("residual stream after attention"), 3 * 16);
    assert_eq!(bytes("queries"), 3 * 32);
    assert_eq!(bytes("keys") + bytes("values"), 3 * 16);
    assert_eq!(bytes("attention output"), 3 * 32);
    assert_eq!(bytes("gate") + bytes("up"), 3 * 48);
    assert_eq!(bytes("low-rank products"), 3 * 4);
}

#[test]
fn layers_below_the_first_adapted_one_share_their_buffers() {
    let config = tiny_config();
    let stream = Stream::new(1, Purpose::LoraInit);
    let target = ["model.layers.2.self_attn.q_proj"];
    let upper = Adapter::new(LoraConfig::new(4, 8.0, &target), &config, &stream);
    let upper = upper.expect("good settings");
    let plan = Activations::memory_plan(&config, Some(&upper), SIZE, Keep::Everything, ENGINE);
    let gate = plan.buffers.iter().find(|b| b.name == "gate").expect("a gate");
    assert_eq!(gate.bytes, 32 * 24 * 4);
    // And the shared buffers do not change what is computed.
    let decoder = tiny_decoder(&config, Arc::new(Reference));
    let batch = Batch::random(4, &[7, 5], config.vocab_size);
    let mut acts = activations(&decoder, Some(&upper), Keep::Everything);
    let pass = Pass { adapter: None, batch: batch.input(), dropout: None };
    decoder.forward(&pass, &mut acts);
    let mut found = vec![0.0; 12 * config.vocab_size];
    decoder.logits(None, &mut acts, &(0..12).collect::<Vec<u32>>(), &mut found);
    assert_eq!(found, logits(&decoder, None, &batch));
}
