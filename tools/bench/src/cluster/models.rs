//! Models whose steps are reckoned: their units, what those weigh, and what a rank has of all of it.

use super::machine::{Circle, Cluster};
use super::step::{NUMBER, Step, Strategy, Visit};
use crate::gpu::shapes::{QWEN3_8B, RANK, Shape};
use forgelm_collective::PairwiseSum;

/// Qwen3-1.7B, Qwen3-8B and Llama 3 70B; norms are left out of all of them.
pub(crate) const MODELS: [Shape; 3] = [
    Shape {
        name: "1.7B",
        hidden: 2048,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        mlp: 6144,
        vocabulary: 151_936,
        is_tied: true,
    },
    Shape { name: "8B", ..QWEN3_8B },
    Shape {
        name: "70B",
        hidden: 8192,
        layers: 80,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        mlp: 28_672,
        vocabulary: 128_256,
        is_tied: false,
    },
];

/// How the frozen linear layers lie in memory. Embedding and head are bfloat16 in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Bf16,
    /// Four bits, and scales of blocks of 64 in one byte, with one more float for 256 of those
    /// (Dettmers et al. 2023, arXiv:2305.14314).
    Nf4,
}

impl Base {
    pub(crate) const ALL: [Self; 2] = [Self::Bf16, Self::Nf4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Nf4 => "nf4",
        }
    }

    /// Bytes of a weight of a linear layer.
    fn bytes(self) -> f64 {
        match self {
            Self::Bf16 => 2.0,
            Self::Nf4 => 0.5 + (1.0 + 4.0 / 256.0) / 64.0,
        }
    }
}

/// Bytes of a weight of the embedding or the head.
const TABLE: f64 = 2.0;

/// Bytes that a rank holds; what depends on the rows of a micro-batch is not among them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Memory {
    pub base: f64,
    /// Units that were gathered: the one that computes and the next.
    pub gathered: f64,
    pub adapters: f64,
    pub gradient: f64,
    pub optimizer: f64,
}

impl Memory {
    pub(crate) fn sum(&self) -> f64 {
        self.base + self.gathered + self.adapters + self.gradient + self.optimizer
    }
}

/// How a step is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    /// Tokens of a sequence, which is a micro-batch.
    pub n_tokens: usize,
    /// Micro-batches of each rank.
    pub n_micro_batches: usize,
    /// Operations a second.
    pub rate: f64,
    /// Bytes a second that an update reads and writes.
    pub copy: f64,
    /// Whether the next unit, or a sum, is on its way while one computes.
    pub overlaps: bool,
}

/// Numbers of the adapters of rank [`RANK`] on all linear layers of a layer.
fn adapters_of_layer(shape: &Shape) -> usize {
    shape.weights().iter().map(|(_, n, k)| RANK * (n + k)).sum()
}

/// Trained numbers.
pub(crate) fn n_trained(shape: &Shape) -> f64 {
    (shape.layers * adapters_of_layer(shape)) as f64
}

/// Weights of the embedding, and as many of the head.
fn table(shape: &Shape) -> f64 {
    (shape.vocabulary * shape.hidden) as f64
}

fn layer_bytes(shape: &Shape, base: Base) -> f64 {
    base.bytes() * shape.layer_parameters() as f64
}

fn base_bytes(shape: &Shape, base: Base) -> f64 {
    let n_tables = if shape.is_tied { 1.0 } else { 2.0 };
    shape.layers as f64 * layer_bytes(shape, base) + n_tables * TABLE * table(shape)
}

/// The units of a micro-batch, up and down. The head is met once: its gradient follows its product. A
/// layer is computed again before its gradient.
///
/// Operations of a token: 2 for each frozen weight, and 2 for the gradient of what goes into it;
/// 2 s H D for causal attention over s positions, and 2.5 times that for its gradient; 2 for each number
/// of an adapter, and 4 for its gradient.
pub(crate) fn visits(shape: &Shape, base: Base, work: &Work) -> Vec<Visit> {
    let seconds = |operations: f64| operations * work.n_tokens as f64 / work.rate;
    let weights = 2.0 * shape.layer_parameters() as f64;
    let attention = 2.0 * (work.n_tokens * shape.q()) as f64;
    let adapters = 2.0 * adapters_of_layer(shape) as f64;
    let up = weights + attention + adapters;
    let down = up + weights + 2.5 * attention + 2.0 * adapters;
    let bytes = layer_bytes(shape, base);
    let layers = |operations, trained| {
        vec![Visit { seconds: seconds(operations), bytes, trained }; shape.layers]
    };
    let embedding = Visit { seconds: 0.0, bytes: TABLE * table(shape), trained: 0.0 };
    // Its product, once more in chunks for the gradient, and that.
    let head = Visit { seconds: seconds(3.0 * 2.0 * table(shape)), ..embedding };
    let trained = adapters_of_layer(shape) as f64;
    [vec![embedding], layers(up, 0.0), vec![head], layers(down, trained)].concat()
}

/// The step of a model.
pub(crate) fn step(shape: &Shape, base: Base, strategy: Strategy, work: &Work) -> Step {
    // AdamW reads a number, its gradient and two moments, and writes all but the gradient.
    const MOVED: f64 = 7.0 * NUMBER;
    Step {
        strategy,
        visits: visits(shape, base, work),
        n_micro_batches: work.n_micro_batches,
        update: MOVED / work.copy,
        overlaps: work.overlaps,
    }
}

/// What a rank holds. Of gradients: the one that is computed, one that travels and comes in parts
/// (`shared_memory_plan` of `core/train`), of everything or of a layer, and sums of either all of it or
/// one part.
pub(crate) fn memory(
    shape: &Shape,
    base: Base,
    strategy: Strategy,
    work: &Work,
    cluster: &Cluster,
) -> Memory {
    let bytes = NUMBER * n_trained(shape);
    let parts_of_state = strategy.parts_of_state(cluster.n_ranks) as f64;
    let n_sums = PairwiseSum::n_held(work.n_micro_batches) as f64;
    let at_once = if strategy == Strategy::NoShard { bytes } else { bytes / shape.layers as f64 };
    let whole = base_bytes(shape, base);
    let units = visits(shape, base, work);
    let two = units.windows(2).map(|pair| pair[0].bytes + pair[1].bytes).fold(0.0, f64::max);
    let circle = strategy.circle_of_base().map(|circle: Circle| cluster.size(circle) as f64);
    Memory {
        base: circle.map_or(whole, |n| whole / n),
        gathered: circle.map_or(0.0, |_| two),
        adapters: bytes,
        gradient: 3.0 * at_once + n_sums * bytes / parts_of_state,
        optimizer: 2.0 * bytes / parts_of_state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work =
        Work { n_tokens: 10, n_micro_batches: 4, rate: 1e9, copy: 1e9, overlaps: true };

    fn all(n_ranks: usize) -> Cluster {
        super::super::machine::tests::slow(n_ranks, 8)
    }

    /// 1.72, 8.19 and 70.55 billion, as the model cards say. Norms are a ten-thousandth at most.
    #[test]
    fn models_weigh_what_their_cards_say() {
        for (shape, expected) in
            MODELS.iter().zip([1.720_574_976e9, 8.190_735_36e9, 70.553_706_496e9])
        {
            let found = base_bytes(shape, Base::Bf16) / 2.0;
            assert!((found / expected - 1.0).abs() < 1e-4, "{}: {found:.4e}", shape.name);
            let layer = shape.layer_parameters() as f64;
            let nf4 = shape.layers as f64 * layer * (2.0 - 0.515_869_140_625);
            assert!((2.0 * found - base_bytes(shape, Base::Nf4) - nf4).abs() < 1.0);
        }
    }

    /// Rank 16 on a layer of Qwen3-8B: 16 (8192 + 2 * 5120 + 8192 + 3 * 16384) numbers.
    #[test]
    fn adapters_are_as_large_as_their_matrices() {
        assert!((n_trained(&MODELS[1]) - 36.0 * 16.0 * 75_776.0).abs() < 0.5);
    }

    /// Every weight of a layer 6 times, of the head 6 times, attention and adapters besides.
    #[test]
    fn a_micro_batch_computes_every_weight_up_down_and_again() {
        let shape = &MODELS[1];
        let seconds: f64 = visits(shape, Base::Bf16, &WORK).iter().map(|visit| visit.seconds).sum();
        let of_layer = 6.0 * shape.layer_parameters() as f64
            + 4.5 * 2.0 * (10 * 4096) as f64
            + 8.0 * adapters_of_layer(shape) as f64;
        let expected = 10.0 * (36.0 * of_layer + 6.0 * table(shape)) / 1e9;
        assert!((seconds / expected - 1.0).abs() < 1e-12, "{seconds}, expected {expected}");
    }

    /// Four micro-batches: three sums are held at most. Base 16.38 GB, trained numbers 174.6 MB.
    #[test]
    fn a_rank_has_its_part_of_what_is_shared_out() {
        let memory =
            |strategy, n_ranks| memory(&MODELS[1], Base::Bf16, strategy, &WORK, &all(n_ranks));
        let (whole, bytes) = (base_bytes(&MODELS[1], Base::Bf16), NUMBER * n_trained(&MODELS[1]));
        let layer = layer_bytes(&MODELS[1], Base::Bf16);
        let two = TABLE * table(&MODELS[1]) + layer;
        // Of 36 layers one at a time.
        let one = 3.0 / 36.0;
        for (strategy, n_ranks, base, gathered, (at_once, sums)) in [
            (Strategy::NoShard, 64, whole, 0.0, (3.0, 3.0)),
            (Strategy::Zero2, 64, whole, 0.0, (one, 3.0 / 64.0)),
            // No more parts than pieces.
            (Strategy::Zero2, 1024, whole, 0.0, (one, 3.0 / 64.0)),
            (Strategy::FullShard, 64, whole / 64.0, two, (one, 3.0 / 64.0)),
            (Strategy::HybridShard, 64, whole / 8.0, two, (one, 3.0 / 64.0)),
        ] {
            let found = memory(strategy, n_ranks);
            let expected = Memory {
                base,
                gathered,
                adapters: bytes,
                gradient: bytes * (at_once + sums),
                optimizer: bytes * 2.0 * sums / 3.0,
            };
            assert!((found.sum() - expected.sum()).abs() < 1.0, "{strategy:?}: {found:?}");
            assert!((found.base - base).abs() < 1.0 && (found.gathered - gathered).abs() < 1.0);
        }
    }
}
