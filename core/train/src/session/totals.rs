//! What is added up over the micro-batches of a step or of the validation split.

use forgelm_sdk::trainer::Loss;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sums of losses and of what was measured beside them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Totals {
    loss_sum: Sum,
    pub(super) n_terms: u64,
    metrics: Vec<(String, Sum, u64)>,
}

/// A sum that goes from process to process bit by bit, also where it is no finite number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
struct Sum(f64);

impl From<u64> for Sum {
    fn from(bits: u64) -> Self {
        Self(f64::from_bits(bits))
    }
}

impl From<Sum> for u64 {
    fn from(sum: Sum) -> Self {
        sum.0.to_bits()
    }
}

impl From<Loss> for Totals {
    fn from(loss: Loss) -> Self {
        let metrics = loss.metrics.into_iter();
        Self {
            loss_sum: Sum(loss.loss_sum),
            n_terms: loss.n_terms,
            metrics: metrics.map(|of| (of.name.to_owned(), Sum(of.sum), of.n_terms)).collect(),
        }
    }
}

impl Totals {
    pub(super) fn loss_sum(&self) -> f64 {
        self.loss_sum.0
    }

    /// Adds what another micro-batch has.
    pub(super) fn add(&mut self, other: Self) {
        self.loss_sum.0 += other.loss_sum.0;
        self.n_terms += other.n_terms;
        for (name, sum, n_terms) in other.metrics {
            match self.metrics.iter_mut().find(|(known, _, _)| *known == name) {
                Some(known) => {
                    known.1.0 += sum.0;
                    known.2 += n_terms;
                }
                None => self.metrics.push((name, sum, n_terms)),
            }
        }
    }

    /// Mean loss over the terms.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub(super) fn mean_loss(&self) -> f64 {
        self.loss_sum.0 / self.n_terms.max(1) as f64
    }

    /// Means of what was measured, by name.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub(super) fn means(&self) -> BTreeMap<String, f64> {
        let mean = |(name, sum, n_terms): &(String, Sum, u64)| {
            (name.clone(), sum.0 / (*n_terms).max(1) as f64)
        };
        self.metrics.iter().map(mean).collect()
    }
}
