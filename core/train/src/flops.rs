//! Arithmetic of training, counted by sizes: the work that the model asks for, whatever the kernels
//! do besides (recomputed activations and logits are not counted again).

use forgelm_data::PackedBatch;
use forgelm_model::{ModelConfig, Trainable};

/// What of a batch costs arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Tokens.
    pub tokens: u64,
    /// Pairs of a token and one that it may attend to: `L (L + 1) / 2` for each sequence.
    pub pairs: u64,
    /// Rows of which a next token is scored.
    pub scored_rows: u64,
}

impl Work {
    /// Of a batch.
    #[must_use]
    pub fn of(batch: &PackedBatch) -> Self {
        let pairs = |len: usize| len as u64 * (len as u64 + 1) / 2;
        Self {
            tokens: batch.tokens.len() as u64,
            pairs: batch.segments.iter().map(|segment| pairs(segment.len)).sum(),
            scored_rows: batch.scored_rows.len() as u64,
        }
    }
}

/// Floating-point operations of a training step over this work: a product and a sum are two.
///
/// With P the weights of the layers, A those that are trained beside them, V C the head, Q the
/// width of all query heads, N layers of which backward reaches the upper share s:
/// forward `2 (P + A)` a token, `4 Q N` a pair, `2 V C` a scored row; backward the same again for
/// the gradient of the inputs of P (share s) and of the head, twice for attention (share s) and for
/// A. Windows of attention are not taken off.
///
/// Paper: Kaplan et al. 2020, arXiv:2001.08361, section 2.1, with the gradient of frozen weights
/// left out.
#[must_use]
pub fn training_flops(model: &ModelConfig, adapter: &Trainable, work: Work) -> f64 {
    let each = Each::of(model, adapter);
    let share = each.share;
    each.sum(work, [1.0 + share, 3.0, 1.0 + 2.0 * share, 2.0])
}

/// Floating-point operations of a pass without a gradient, counted as [`training_flops`] does.
#[must_use]
pub fn forward_flops(model: &ModelConfig, adapter: &Trainable, work: Work) -> f64 {
    Each::of(model, adapter).sum(work, [1.0; 4])
}

/// Arithmetic of the pass up.
struct Each {
    /// Of a token in the layers, and in what trains.
    token: [f64; 2],
    pair: f64,
    row: f64,
    /// Share of the layers that backward reaches.
    share: f64,
}

impl Each {
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn of(model: &ModelConfig, adapter: &Trainable) -> Self {
        let dims = model.dims();
        let head = (dims.v * dims.c) as f64;
        let outside = if model.tie_word_embeddings { head } else { 2.0 * head };
        let layers = model.n_parameters() as f64 - outside;
        let trained = adapter.n_params() as f64;
        Self {
            token: [2.0 * layers, 2.0 * trained],
            pair: 4.0 * (dims.q_width() * dims.l) as f64,
            row: 2.0 * head,
            share: (dims.l - adapter.first_layer().min(dims.l)) as f64 / dims.l as f64,
        }
    }

    /// Each part this many times: layers, what trains, attention, head.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn sum(&self, work: Work, [layers, trained, attention, head]: [f64; 4]) -> f64 {
        let (tokens, pairs, rows) =
            (work.tokens as f64, work.pairs as f64, work.scored_rows as f64);
        tokens * (self.token[0] * layers + self.token[1] * trained)
            + pairs * self.pair * attention
            + rows * self.row * head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_data::{Sequence, pack};

    #[test]
    fn work_counts_pairs_within_sequences() {
        let sequence = |n: u32| Sequence {
            role: forgelm_data::Role::Sole,
            record: 0,
            tokens: (0..n).collect(),
            trained: (0..n).map(|t| t > 0).collect(),
        };
        let (a, b) = (sequence(3), sequence(2));
        let work = Work::of(&pack(&[&a, &b]));
        assert_eq!(work, Work { tokens: 5, pairs: 6 + 3, scored_rows: 2 + 1 });
    }
}
