//! A tiny random model.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of it")]

use std::sync::Arc;

use forgelm_kernels_api::{Compute, Ops, Segment};
use forgelm_model::{
    Activations, AttentionOptions, Decoder, Keep, Linear, MemoryStore, MlpOptions, ModelConfig,
    ModuleNames, NormOptions, PackedInput, Pass, Role, Rope, RopeScaling, StepSize,
};
use forgelm_tensor::random::{Purpose, Stream};

/// Three layers, four query heads on one key/value head.
pub fn tiny_config() -> ModelConfig {
    ModelConfig {
        place: "tiny".to_owned(),
        model_type: "llama".to_owned(),
        hidden_size: 16,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 1,
        head_dim: 8,
        intermediate_size: 24,
        vocab_size: 40,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        sliding_window: None,
        attention: AttentionOptions { windowed_layers: vec![false; 3], ..Default::default() },
        norms: NormOptions::default(),
        mlp: MlpOptions::default(),
        experts: None,
        embedding_scale: None,
        final_soft_cap: None,
        tie_word_embeddings: false,
        max_position_embeddings: 64,
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
        labels: None,
        float8: None,
    }
}

/// Uniform numbers in [-size, size], named by `seed`.
pub fn noise(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::LoraInit);
    (0..n as u64).map(|i| (2.0 * stream.uniform(0, i) - 1.0) * size).collect()
}

/// Random weights of the size that keeps activations near 1.
pub fn tiny_store(config: &ModelConfig) -> MemoryStore {
    let mut store = MemoryStore::named(config.module_names());
    let dims = config.dims();
    let head = (!config.tie_word_embeddings).then_some(Role::Head);
    for (i, role) in Role::always(config).into_iter().chain(head).enumerate() {
        let shape = role.shape(&dims);
        let n: usize = shape.iter().product();
        let values = match shape.as_slice() {
            [_] => noise(i as u64, n, 0.3).into_iter().map(|v| 1.0 + v).collect(),
            [.., k] => noise(i as u64, n, (3.0 / *k as f32).sqrt()),
            [] => unreachable!("every role has an axis"),
        };
        store.insert(&role.hf_name(config.module_names()), &shape, &values);
    }
    store
}

pub fn tiny_decoder(config: &ModelConfig, ops: Arc<dyn Ops>) -> Decoder {
    Decoder::from_store(config.clone(), &tiny_store(config), ops, Compute::F32)
        .expect("the tiny model is complete")
}

/// Sequences of these lengths, end to end, with random tokens.
pub struct Batch {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub segments: Vec<Segment>,
    pub row_keys: Vec<u64>,
}

impl Batch {
    pub fn random(seed: u64, lengths: &[usize], vocab_size: usize) -> Self {
        let stream = Stream::new(seed, Purpose::DataOrder);
        let (mut positions, mut segments, mut row_keys) = (Vec::new(), Vec::new(), Vec::new());
        for (s, &len) in lengths.iter().enumerate() {
            segments.push(Segment { start: positions.len(), len });
            for p in 0..len {
                positions.push(p as u32);
                row_keys.push(((s as u64) << 32) | p as u64);
            }
        }
        let tokens =
            (0..positions.len() as u64).map(|i| stream.bits(0, i)[0] % vocab_size as u32).collect();
        Self { tokens, positions, segments, row_keys }
    }

    pub fn input(&self) -> PackedInput<'_> {
        PackedInput {
            tokens: &self.tokens,
            positions: &self.positions,
            segments: &self.segments,
            row_keys: &self.row_keys,
        }
    }

    /// Every row but the last of each sequence, and the token that follows it.
    pub fn scored(&self) -> (Vec<u32>, Vec<u32>) {
        let rows: Vec<u32> = self
            .segments
            .iter()
            .flat_map(|s| s.start..s.start + s.len - 1)
            .map(|t| t as u32)
            .collect();
        let labels = rows.iter().map(|&t| self.tokens[t as usize + 1]).collect();
        (rows, labels)
    }
}

/// Every linear layer's last name.
pub fn short_name(linear: Linear) -> String {
    let module = linear.module(ModuleNames::Qwen);
    module.rsplit('.').next().expect("a name has a last part").to_owned()
}

/// Logits of every token, without an adapter. Shapes: result [T, V].
pub fn logits(decoder: &Decoder, batch: &Batch) -> Vec<f32> {
    let n = batch.tokens.len();
    let size = StepSize { tokens_max: n, scored_rows_max: n };
    let mut acts = Activations::new(decoder, None, size, Keep::Nothing).expect("there is memory");
    let rows: Vec<u32> = (0..).take(n).collect();
    let mut logits = vec![0.0; n * decoder.dims().v];
    decoder.forward(&Pass { adapter: None, batch: batch.input(), dropout: None }, &mut acts);
    decoder.logits(None, &mut acts, &rows, &mut logits);
    logits
}
