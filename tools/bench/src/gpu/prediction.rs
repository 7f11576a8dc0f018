//! What a token of a LoRA step should take, from what the device was measured to do: products at
//! their rate, attention at its own, and the bytes of everything else at the rate of copies.
//!
//! Frozen weights are multiplied with twice, forward and backward: 4 operations a parameter. Causal
//! attention over s positions has 3.5 times the 2 s H D of its forward pass. The rest moves, a layer
//! and token, in bfloat16: rows of the residual stream 20 times (two norms with their sums, forward,
//! backward, and once again), queries and keys 5 times (norms and angles), rows of the MLP 11 times
//! (the gated product: 3 forward, 5 backward, 3 again), and the inputs and outputs of every linear
//! layer twice for the sides of its adapter.

use super::finding::Finding;
use super::shapes::Shape;

/// Rates that were measured, a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    /// Operations of products.
    pub products: f64,
    /// Operations of attention, forward and backward.
    pub attention: f64,
    /// Bytes that are read or written.
    pub copy: f64,
}

/// Seconds of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Prediction {
    pub products: f64,
    pub attention: f64,
    pub elementwise: f64,
    pub adapters: f64,
}

impl Prediction {
    pub(crate) fn seconds(&self) -> f64 {
        self.products + self.attention + self.elementwise + self.adapters
    }
}

impl Rates {
    /// As the parts before found them, for micro-batches of `t` tokens in sequences of `len`; `None`
    /// where these parts did not run.
    pub(crate) fn found(
        ceilings: &Finding,
        kernels: &Finding,
        t: usize,
        len: usize,
    ) -> Option<Self> {
        Some(Self {
            products: ceilings.number(&format!("/products_flops_per_second/{t}"))?,
            attention: kernels.number(&format!("/attention_flops_per_second/{len}"))?,
            copy: ceilings.number("/copy_bytes_per_second")?,
        })
    }
}

/// Bytes of a number that lives within a layer.
const BYTES: f64 = 2.0;

/// One layer.
pub(crate) fn layer(shape: &Shape, len: usize, rates: &Rates) -> Prediction {
    let widths: usize = shape.weights().iter().map(|(_, n, k)| n + k).sum();
    let (c, qk, f) = (shape.hidden, shape.q() + shape.kv(), shape.mlp);
    let moved = (20 * c + 5 * qk + 11 * f) as f64;
    Prediction {
        products: 4.0 * shape.layer_parameters() as f64 / rates.products,
        attention: 3.5 * 2.0 * (len * shape.q()) as f64 / rates.attention,
        elementwise: BYTES * moved / rates.copy,
        adapters: BYTES * (2 * widths) as f64 / rates.copy,
    }
}

/// All layers and the head.
pub(crate) fn step(shape: &Shape, len: usize, rates: &Rates) -> Prediction {
    let one = layer(shape, len, rates);
    let n = shape.layers as f64;
    let head = 4.0 * (shape.vocabulary * shape.hidden) as f64 / rates.products;
    Prediction {
        products: n * one.products + head,
        attention: n * one.attention,
        elementwise: n * one.elementwise,
        adapters: n * one.adapters,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Finding;
    use super::super::shapes::QWEN3_8B;
    use super::{Rates, step};

    /// The study of what a fast device should do took these rates, and came to 44.6, 4.7, 6.2 and
    /// 5 microseconds: 60 a token. No device was measured for it.
    #[test]
    fn the_prediction_of_the_study_follows_from_its_rates() {
        let rates = Rates { products: 680e12, attention: 449e12, copy: 2.8e12 };
        let found = step(&QWEN3_8B, 2048, &rates);
        for (found, expected, off) in [
            (found.products, 44.6e-6, 0.3e-6),
            (found.attention, 4.7e-6, 0.1e-6),
            (found.elementwise, 6.2e-6, 0.3e-6),
            (found.adapters, 5e-6, 1.2e-6),
            (found.seconds(), 60e-6, 1.5e-6),
        ] {
            assert!((found - expected).abs() < off, "{found:.3e}, expected {expected:.3e}");
        }
    }

    #[test]
    fn rates_are_those_of_the_same_sizes() {
        let ceilings = Finding {
            numbers: json!({
                "copy_bytes_per_second": 3.0,
                "products_flops_per_second": { "4096": 1.0, "8192": 2.0 },
            }),
            ..Finding::default()
        };
        let kernels = Finding {
            numbers: json!({ "attention_flops_per_second": { "2048": 5.0 } }),
            ..Finding::default()
        };
        let expected = Rates { products: 2.0, attention: 5.0, copy: 3.0 };
        assert_eq!(Rates::found(&ceilings, &kernels, 8192, 2048), Some(expected));
        assert_eq!(Rates::found(&ceilings, &kernels, 1, 2048), None);
        assert_eq!(Rates::found(&ceilings, &Finding::default(), 8192, 2048), None);
    }
}
