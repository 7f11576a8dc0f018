//! Sizes of models, those of SmolLM2-135M above all, and numbers to fill them with.

use forgelm_kernels_api::RowSource;

pub(crate) const HIDDEN: usize = 576;
pub(crate) const MLP: usize = 1536;
pub(crate) const VOCABULARY: usize = 49_152;
pub(crate) const HEADS: usize = 9;
pub(crate) const KV_HEADS: usize = 3;
pub(crate) const HEAD_DIM: usize = 64;
pub(crate) const LAYERS: usize = 30;

/// Sizes of the weights of a decoder.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub name: &'static str,
    pub hidden: usize,
    /// Width of keys and values.
    pub kv: usize,
    pub mlp: usize,
    pub vocabulary: usize,
}

pub(crate) const MODELS: [Model; 3] = [
    Model {
        name: "smollm2-135m",
        hidden: HIDDEN,
        kv: KV_HEADS * HEAD_DIM,
        mlp: MLP,
        vocabulary: VOCABULARY,
    },
    Model { name: "qwen2.5-0.5b", hidden: 896, kv: 128, mlp: 4864, vocabulary: 151_936 },
    Model { name: "llama-3.2-1b", hidden: 2048, kv: 512, mlp: 8192, vocabulary: 128_256 },
];

impl Model {
    /// Query and output, key and value, gate and up, down, and the head: [N, K] of each.
    pub(crate) fn weights(&self) -> [(usize, usize); 5] {
        let Self { hidden, kv, mlp, vocabulary, .. } = *self;
        [(hidden, hidden), (kv, hidden), (mlp, hidden), (hidden, mlp), (vocabulary, hidden)]
    }
}

/// Small numbers without a pattern that matters.
pub(crate) fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A matrix whose rows are made when they are asked for.
pub(crate) struct Rows {
    pub n: usize,
    pub k: usize,
}

impl RowSource for Rows {
    fn n_rows(&self) -> usize {
        self.n
    }

    fn n_cols(&self) -> usize {
        self.k
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let hash = ((first_row * self.k + i) as u32).wrapping_mul(2_654_435_761) >> 8;
            *out = (hash as f32 / 8_388_608.0 - 1.0) * 0.05;
        }
    }
}
