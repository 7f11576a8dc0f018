//! Which tokens go to which experts, and the gradient of that choice.
//!
//! Papers: Shazeer et al. 2017, arXiv:1701.06538 (sparsely gated experts); the balance loss: Fedus
//! et al. 2021, arXiv:2101.03961, eq. 4 to 6, in the form of the published models: fractions and
//! probabilities are means over the rows of all layers together.

use crate::config::Experts;

/// The rows of a batch, ordered by expert and within an expert by row: the order of all additions,
/// whatever the number of threads.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    /// Where the rows of each expert begin [E + 1].
    starts: Vec<usize>,
    /// Packed rows [T k], by expert.
    rows: Vec<u32>,
    /// Factor on the expert's result [T k], by expert.
    weights: Vec<f32>,
    /// Gradients of the factors [T k], by expert.
    pub(super) dweights: Vec<f32>,
    /// Experts of each token, by falling probability [T k].
    chosen: Vec<u16>,
    /// Names of the rows of one expert, for dropout.
    pub(super) keys: Vec<u64>,
}

impl Routing {
    /// Chooses the k most probable experts of each row; of equal ones the first.
    ///
    /// Shapes: `probs` [T, E] read.
    pub(super) fn choose(&mut self, probs: &[f32], experts: &Experts) {
        let (e, k) = (experts.num_experts, experts.num_experts_per_tok);
        let t = probs.len() / e;
        self.chosen.clear();
        self.starts.clear();
        self.starts.resize(e + 1, 0);
        for row in probs.chunks_exact(e) {
            let first = self.chosen.len();
            for _ in 0..k {
                let taken = &self.chosen[first..];
                let best = (0..e as u16)
                    .filter(|expert| !taken.contains(expert))
                    .reduce(|a, b| if row[usize::from(b)] > row[usize::from(a)] { b } else { a })
                    .expect("k is at most E");
                self.chosen.push(best);
                self.starts[usize::from(best) + 1] += 1;
            }
        }
        for expert in 0..e {
            self.starts[expert + 1] += self.starts[expert];
        }
        let mut next: Vec<usize> = self.starts[..e].to_vec();
        self.rows.resize(t * k, 0);
        self.weights.resize(t * k, 0.0);
        self.dweights.clear();
        self.dweights.resize(t * k, 0.0);
        for (row, chosen) in self.chosen.chunks_exact(k).enumerate() {
            let probs = &probs[row * e..(row + 1) * e];
            let sum = divisor(probs, chosen, experts.norm_topk_prob);
            for &expert in chosen {
                let at = &mut next[usize::from(expert)];
                self.rows[*at] = row as u32;
                self.weights[*at] = probs[usize::from(expert)] / sum;
                *at += 1;
            }
        }
    }

    /// Where the rows of an expert lie among all.
    pub(super) fn range(&self, expert: usize) -> std::ops::Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// Collects the names of the rows of some places; none when there is no dropout.
    pub(super) fn take_keys(&mut self, range: std::ops::Range<usize>, row_keys: &[u64]) {
        self.keys.clear();
        if !row_keys.is_empty() {
            self.keys.extend(self.rows[range].iter().map(|&row| row_keys[row as usize]));
        }
    }

    /// Packed rows of some places.
    pub(super) fn rows(&self, range: std::ops::Range<usize>) -> &[u32] {
        &self.rows[range]
    }

    /// Factors of some places.
    pub(super) fn weights(&self, range: std::ops::Range<usize>) -> &[f32] {
        &self.weights[range]
    }

    /// From the gradient of the factors to that of the router's scores, through the choice, the
    /// sum to 1 where there is one, and the softmax; with what the balance loss adds to the
    /// gradient of each probability.
    ///
    /// Shapes: `dscores` [T, E] written, `probs` [T, E] and `balance` [E] read.
    pub(super) fn backward(
        &self,
        dscores: &mut [f32],
        probs: &[f32],
        balance: Option<&[f32]>,
        experts: &Experts,
    ) {
        let (e, k) = (experts.num_experts, experts.num_experts_per_tok);
        let mut next: Vec<usize> = self.starts[..e].to_vec();
        let rows = probs.chunks_exact(e).zip(dscores.chunks_exact_mut(e));
        for ((probs, dprobs), chosen) in rows.zip(self.chosen.chunks_exact(k)) {
            match balance {
                Some(balance) => dprobs.copy_from_slice(balance),
                None => dprobs.fill(0.0),
            }
            let sum = divisor(probs, chosen, experts.norm_topk_prob);
            // Of `p / sum(p)` with respect to p: `(dw - sum(dw w)) / sum(p)`.
            let places = |next: &[usize]| chosen.iter().map(|&e| next[usize::from(e)]).collect();
            let places: Vec<usize> = places(&next);
            let mean: f32 = match experts.norm_topk_prob {
                true => places.iter().map(|&at| self.dweights[at] * self.weights[at]).sum(),
                false => 0.0,
            };
            for (&expert, &at) in chosen.iter().zip(&places) {
                dprobs[usize::from(expert)] += (self.dweights[at] - mean) / sum;
                next[usize::from(expert)] += 1;
            }
            let dot: f32 = dprobs.iter().zip(probs).map(|(d, p)| d * p).sum();
            for (d, p) in dprobs.iter_mut().zip(probs) {
                *d = p * (*d - dot);
            }
        }
    }
}

/// What the chosen probabilities are divided by.
fn divisor(probs: &[f32], chosen: &[u16], norm_topk_prob: bool) -> f32 {
    match norm_topk_prob {
        true => chosen.iter().map(|&expert| probs[usize::from(expert)]).sum(),
        false => 1.0,
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

    /// Takes up the rows of one layer.
    pub(super) fn add(&mut self, routing: &Routing, probs: &[f32], e: usize) {
        self.counts.resize(e, 0);
        self.sums.resize(e, 0.0);
        self.n += (probs.len() / e) as u64;
        for (expert, count) in self.counts.iter_mut().enumerate() {
            *count += routing.range(expert).len() as u64;
        }
        for row in probs.chunks_exact(e) {
            self.sums.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
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

#[cfg(test)]
mod tests {
    use super::Routing;
    use crate::config::Experts;
    use crate::names::ModuleNames;
    use forgelm_kernels_api::Ops;
    use forgelm_kernels_reference::Reference;

    fn experts(norm_topk_prob: bool) -> Experts {
        Experts {
            num_experts: 3,
            num_experts_per_tok: 2,
            intermediate_size: 4,
            shared_intermediate_size: None,
            norm_topk_prob,
            layers: vec![true],
            router_aux_loss_coef: 0.0,
            output_router_logits: false,
            names: ModuleNames::Qwen,
        }
    }

    /// Row 0 goes to experts 2 and 0, row 1 to 0 and 1 (a tie: the first), row 2 to 1 and 2.
    #[test]
    fn rows_are_ordered_by_expert() {
        let probs = [0.25, 0.125, 0.625, 0.375, 0.3125, 0.3125, 0.0, 0.75, 0.25];
        let mut routing = Routing::default();
        routing.choose(&probs, &experts(false));
        assert_eq!(routing.rows(routing.range(0)), [0, 1]);
        assert_eq!(routing.rows(routing.range(1)), [1, 2]);
        assert_eq!(routing.rows(routing.range(2)), [0, 2]);
        assert_eq!(routing.weights(0..6), [0.25, 0.375, 0.3125, 0.75, 0.625, 0.25]);
        routing.choose(&probs, &experts(true));
        assert_eq!(routing.weights(routing.range(2)), [0.625 / 0.875, 0.25]);
    }

    /// Finite differences of `sum(c w(softmax(s)))` while the choice stays the same.
    #[test]
    fn the_gradient_is_the_derivative() {
        let scores = [0.3_f32, -0.4, 1.1, 0.9, 0.1, -0.7];
        let c = [0.7_f32, -1.3, 0.4, 2.0];
        for norm in [false, true] {
            let value = |scores: &[f32]| -> f64 {
                let mut probs = scores.to_vec();
                Reference.softmax_rows((&mut probs).into(), 3);
                let mut routing = Routing::default();
                routing.choose(&probs, &experts(norm));
                routing.weights.iter().zip(c).map(|(w, c)| f64::from(*w) * f64::from(c)).sum()
            };
            let mut probs = scores.to_vec();
            Reference.softmax_rows((&mut probs).into(), 3);
            let mut routing = Routing::default();
            routing.choose(&probs, &experts(norm));
            routing.dweights.copy_from_slice(&c);
            let mut found = [0.0; 6];
            routing.backward(&mut found, &probs, None, &experts(norm));
            for i in 0..6 {
                let at = |step: f32| {
                    let mut moved = scores;
                    moved[i] += step;
                    value(&moved)
                };
                let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((f64::from(found[i]) - expected).abs() < 1e-4, "{norm} {i}: {expected}");
            }
        }
    }
}
