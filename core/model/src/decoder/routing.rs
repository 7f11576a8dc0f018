//! Which tokens go to which experts, and the gradient of that choice.
//!
//! The choice is made where the rows lie (`Ops::route`). The host learns how many rows each expert
//! has, for its products are as large, and nothing else of it; with dropout, whose masks are named
//! by rows, also which.
//!
//! Papers: Shazeer et al. 2017, arXiv:1701.06538 (sparsely gated experts); the balance loss: Fedus
//! et al. 2021, arXiv:2101.03961, eq. 4 to 6, in the form of the published models: fractions and
//! probabilities are means over the rows of all layers together.

use std::ops::Range;

use forgelm_kernels_api::{Choice, Ops, Routing, RoutingMut, Slice, SliceMut};

use crate::activations::{Indices, Rows};
use crate::config::Experts;

/// The rows of a batch, ordered by expert and within an expert by row: the order of all additions,
/// whatever the number of threads.
#[derive(Debug, Default)]
pub(crate) struct Routed {
    /// T of the last choice.
    n_rows: usize,
    /// Where the rows of each expert begin [E + 1].
    starts: Vec<usize>,
    /// Experts of each row, by falling probability [T k].
    pub(crate) chosen: Indices,
    /// Where each of these choices lies among `rows` [T k].
    pub(crate) places: Indices,
    /// Packed rows [T k], by expert.
    pub(crate) rows: Indices,
    /// Factor on the expert's result [T k], by expert.
    pub(crate) weights: Rows,
    /// Gradients of the factors [T k], by expert.
    pub(crate) dweights: Rows,
    /// Names of the rows [T k], by expert, for dropout; empty without.
    keys: Vec<u64>,
}

/// The part of a routing that is one expert's.
#[derive(Debug)]
pub(super) struct OfExpert<'a> {
    /// Packed rows [R].
    pub(super) rows: Slice<'a, u32>,
    /// Factors on the results [R].
    pub(super) weights: Slice<'a>,
    /// Gradients of the factors [R]; empty where nothing goes backward.
    pub(super) dweights: SliceMut<'a>,
    /// Names of the rows [R]; empty without dropout.
    pub(super) row_keys: &'a [u64],
}

impl Routed {
    /// Room for the routing of so many rows; without `dweights` where nothing goes backward.
    pub(crate) fn planned(rows_max: usize, experts: &Experts, has_gradients: bool) -> Self {
        let n = rows_max * experts.num_experts_per_tok;
        let indices = || Indices::new(n);
        Self {
            chosen: indices(),
            places: indices(),
            rows: indices(),
            weights: Rows::exact(n, 1),
            dweights: Rows::exact(n, usize::from(has_gradients)),
            ..Self::default()
        }
    }

    /// Chooses the most probable experts of each row.
    ///
    /// Shapes: `probs` [T, E] and `row_keys` [T] read: none without dropout. With a `balance` it
    /// takes up the choice.
    pub(super) fn choose(
        &mut self,
        ops: &dyn Ops,
        probs: Slice<'_>,
        (experts, row_keys): (&Experts, &[u64]),
        mut balance: Option<&mut Balance>,
    ) {
        let choice = choice(experts);
        self.n_rows = probs.len() / choice.n_experts;
        let n = self.n_rows * choice.n_chosen;
        let to = RoutingMut {
            chosen: self.chosen.get_mut(n),
            places: self.places.get_mut(n),
            rows: self.rows.get_mut(n),
            weights: self.weights.get_mut(n),
        };
        let sums = balance.as_deref_mut().map(|balance| balance.sums(choice.n_experts));
        self.starts = ops.route(to, probs, choice, sums);
        if let Some(balance) = balance {
            balance.count(self);
        }
        self.keys.clear();
        if !row_keys.is_empty() {
            let rows = self.rows.get(n).to_host();
            self.keys.extend(rows.iter().map(|&row| row_keys[row as usize]));
        }
    }

    /// Where the rows of an expert lie among all.
    pub(super) fn range(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// What an expert works on.
    pub(super) fn of(&mut self, range: Range<usize>) -> OfExpert<'_> {
        let has_keys = !self.keys.is_empty();
        let n = self.dweights.width();
        let dweights = self.dweights.get_mut(range.end).part(range.start * n..range.end * n);
        OfExpert {
            rows: self.rows.get(range.end).part(range.clone()),
            weights: self.weights.get(range.end).part(range.clone()),
            row_keys: if has_keys { &self.keys[range] } else { &[] },
            dweights,
        }
    }

    /// From the gradient of the factors to that of the router's scores; with what the balance loss
    /// adds to the gradient of each probability.
    ///
    /// Shapes: `dscores` [T, E] written, `probs` [T, E] and `balance` [E] read.
    pub(super) fn backward(
        &self,
        ops: &dyn Ops,
        dscores: SliceMut<'_>,
        probs: Slice<'_>,
        balance: Option<&[f32]>,
        experts: &Experts,
    ) {
        let n = self.n_rows * experts.num_experts_per_tok;
        let routing = Routing {
            chosen: self.chosen.get(n),
            places: self.places.get(n),
            rows: self.rows.get(n),
            weights: self.weights.get(n),
        };
        let (dweights, balance) = (self.dweights.get(n), balance.map(Slice::from));
        ops.route_backward(dscores, routing, probs, dweights, balance, choice(experts));
    }
}

fn choice(experts: &Experts) -> Choice {
    Choice {
        n_experts: experts.num_experts,
        n_chosen: experts.num_experts_per_tok,
        is_normalized: experts.norm_topk_prob,
    }
}

/// How evenly the experts of a batch are used.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    /// Rows that went to each expert, over all layers [E].
    counts: Vec<u64>,
    /// Sum of each expert's probability, over all layers [E].
    sums: Vec<f64>,
    /// Rows times layers.
    n: u64,
    /// Factor on the loss; its gradient is added in backward.
    pub(crate) weight: f32,
    /// Gradient of each probability [E].
    gradient: Vec<f32>,
}

impl Balance {
    pub(super) fn clear(&mut self) {
        self.counts.clear();
        self.sums.clear();
        self.n = 0;
    }

    /// What the probabilities of one layer's rows are added to.
    fn sums(&mut self, n_experts: usize) -> &mut [f64] {
        self.sums.resize(n_experts, 0.0);
        &mut self.sums
    }

    /// Takes up where the rows of one layer go.
    fn count(&mut self, routed: &Routed) {
        self.counts.resize(routed.starts.len() - 1, 0);
        self.n += routed.n_rows as u64;
        for (expert, count) in self.counts.iter_mut().enumerate() {
            *count += routed.range(expert).len() as u64;
        }
    }

    /// `E sum_e f_e P_e`; `None` when no row met a router.
    pub(crate) fn loss(&self) -> Option<f64> {
        let n = self.n as f64;
        let terms = self.counts.iter().zip(&self.sums).map(|(c, s)| *c as f64 / n * (s / n));
        (self.n > 0).then(|| self.counts.len() as f64 * terms.sum::<f64>())
    }

    /// What the weighted loss adds to the gradient of each probability: fractions are counts, so
    /// only the means vary.
    pub(super) fn gradient(&mut self) -> Option<&[f32]> {
        if self.weight == 0.0 || self.n == 0 {
            return None;
        }
        let n = self.n as f64;
        let factor = f64::from(self.weight) * self.counts.len() as f64 / (n * n);
        self.gradient.clear();
        self.gradient.extend(self.counts.iter().map(|c| (factor * *c as f64) as f32));
        Some(&self.gradient)
    }
}
