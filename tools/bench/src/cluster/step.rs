//! One optimizer step on every rank: who computes what, what is exchanged when, and what that takes.
//!
//! A micro-batch visits the units of a model, up and down again: embedding, layers, head, layers. Where
//! the frozen base lies in parts, a unit is gathered before each visit, the next one while this one is
//! computed. Gradients go as `core/train`'s `session/summing` has them: where their sum is shared out, those
//! of a unit when the pass down has left it.
//!
//! Papers: Rajbhandari et al. 2020, arXiv:1910.02054, section 7 (bytes of each stage); Zhao et al.
//! 2023, arXiv:2304.11277, section 4 (gathering units ahead).

use super::machine::{Circle, Cluster};
use super::timeline::Timeline;

/// Pieces of a unit's trained numbers that ranks own (`core/train`, `session/deal`; a test compares):
/// beyond so many ranks some own none.
pub(crate) const N_PIECES: usize = 64;

/// Bytes of a trained number, of its gradient, and of each of its two moments.
pub(crate) const NUMBER: f64 = 4.0;

/// What ranks have only parts of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Nothing.
    NoShard,
    /// The summed gradient and the optimizer's state.
    Zero2,
    /// Those, and the frozen base.
    FullShard,
    /// Those, and the frozen base within each host.
    HybridShard,
}

impl Strategy {
    pub(crate) const ALL: [Self; 4] =
        [Self::NoShard, Self::Zero2, Self::FullShard, Self::HybridShard];

    /// As a config has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoShard => "no_shard",
            Self::Zero2 => "zero2",
            Self::FullShard => "full_shard",
            Self::HybridShard => "hybrid_shard",
        }
    }

    /// Who has the base together.
    pub(crate) fn circle_of_base(self) -> Option<Circle> {
        match self {
            Self::NoShard | Self::Zero2 => None,
            Self::FullShard => Some(Circle::All),
            Self::HybridShard => Some(Circle::Host),
        }
    }

    /// In how many parts the summed gradient and the moments lie.
    pub(crate) fn parts_of_state(self, n_ranks: usize) -> usize {
        if self == Self::NoShard { 1 } else { n_ranks.min(N_PIECES) }
    }
}

/// A unit of the model, as a micro-batch meets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Visit {
    /// Seconds of computing.
    pub seconds: f64,
    /// Bytes of its frozen weights.
    pub bytes: f64,
    /// Trained numbers whose gradient is final behind it.
    pub trained: f64,
}

/// A step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub strategy: Strategy,
    /// Of one micro-batch, in order.
    pub visits: Vec<Visit>,
    /// Micro-batches of each rank.
    pub n_micro_batches: usize,
    /// Seconds in which a number is updated.
    pub update: f64,
    /// Whether the next unit, or a sum, is on its way while one computes.
    pub overlaps: bool,
}

impl Step {
    /// Trained numbers.
    fn n_trained(&self) -> f64 {
        self.visits.iter().map(|visit| visit.trained).sum()
    }
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// From its beginning to its end on the last rank.
    pub seconds: f64,
    /// Seconds of it in which that rank did not compute.
    pub exposed: f64,
    /// Bytes that a rank sends which has a part of everything.
    pub sent: f64,
    /// The fewest bytes with which the strategy can do.
    pub sent_least: f64,
    /// What no order of events is faster than: all computing, or all of those bytes.
    pub seconds_least: f64,
}

/// Simulates it.
pub(crate) fn simulate(step: &Step, cluster: &Cluster) -> Outcome {
    let mut running = Running {
        step,
        cluster,
        line: Timeline::new(cluster.n_ranks),
        sent: 0.0,
        coming: None,
        reducing: None,
    };
    // The leader's command: whether one follows and how long it is, and itself.
    running.words(2);
    for round in 0..step.n_micro_batches {
        running.micro_batch(round);
    }
    running.finish();
    running.outcome()
}

struct Running<'a> {
    step: &'a Step,
    cluster: &'a Cluster,
    line: Timeline,
    sent: f64,
    /// By rank: when the unit of the next visit is there.
    coming: Option<Vec<f64>>,
    /// When the gradient that is on its way has been added up.
    reducing: Option<f64>,
}

impl Running<'_> {
    fn ranks(&self) -> std::ops::Range<usize> {
        0..self.cluster.n_ranks
    }

    fn now(&self) -> Vec<f64> {
        self.ranks().map(|rank| self.line.now(rank)).collect()
    }

    fn wait(&mut self, until: f64) {
        self.ranks().for_each(|rank| self.line.wait(rank, until));
    }

    fn compute(&mut self, seconds: f64) {
        self.ranks().for_each(|rank| self.line.compute(rank, seconds));
    }

    /// All ranks exchange something and wait for it.
    fn together(&mut self, seconds: f64) {
        let end = self.line.exchange(self.ranks(), &self.now(), seconds);
        self.wait(end);
    }

    fn words(&mut self, n: usize) {
        self.together(n as f64 * self.cluster.word());
    }

    fn micro_batch(&mut self, round: usize) {
        let n_visits = self.step.visits.len();
        for v in 0..n_visits {
            let there = self.coming.take().unwrap_or_else(|| self.gather(v, &self.now()));
            for (rank, there) in there.into_iter().enumerate() {
                self.line.wait(rank, there);
            }
            let is_last = round + 1 == self.step.n_micro_batches && v + 1 == n_visits;
            if self.step.overlaps && !is_last {
                self.coming = Some(self.gather((v + 1) % n_visits, &self.now()));
            }
            let Visit { seconds, trained, .. } = self.step.visits[v];
            self.compute(seconds);
            if self.step.strategy != Strategy::NoShard && trained > 0.0 {
                self.reduce_in_passing(trained);
            }
        }
    }

    /// A unit is asked for: when it is there, by rank.
    fn gather(&mut self, v: usize, asked: &[f64]) -> Vec<f64> {
        let (circle, bytes) = match self.step.strategy.circle_of_base() {
            Some(circle) if self.step.visits[v].bytes > 0.0 => (circle, self.step.visits[v].bytes),
            Some(_) | None => return asked.to_vec(),
        };
        let size = self.cluster.size(circle);
        let exchange = self.cluster.gather(circle, bytes, size);
        self.sent += exchange.sent;
        let mut there = Vec::with_capacity(asked.len());
        while there.len() < asked.len() {
            let ranks = there.len()..(there.len() + size).min(asked.len());
            let end = self.line.exchange(ranks.clone(), asked, exchange.seconds);
            there.resize(ranks.end, end);
        }
        there
    }

    fn n_owners(&self) -> usize {
        self.cluster.n_ranks.min(N_PIECES)
    }

    /// The gradient of a unit begins to travel, once the one before has come.
    fn reduce_in_passing(&mut self, trained: f64) {
        if let Some(earlier) = self.reducing.take() {
            self.wait(earlier);
        }
        let reduce = self.cluster.reduce(Circle::All, NUMBER * trained, self.n_owners());
        self.sent += reduce.sent;
        let there = self.line.exchange(self.ranks(), &self.now(), reduce.seconds);
        if !self.step.overlaps {
            self.wait(there);
        }
        self.reducing = Some(there);
    }

    /// Sums, losses and squares to all, the update, and updated numbers to all.
    fn finish(&mut self) {
        let (n_trained, n_parts) = (self.step.n_trained(), self.n_owners());
        let bytes = NUMBER * n_trained;
        let gather = self.cluster.gather(Circle::All, bytes, n_parts);
        self.sent += gather.sent;
        let n_updated = n_trained / self.parts_of_state();
        match self.reducing.take() {
            Some(last) => {
                self.wait(last);
                self.words(4);
                self.compute(self.step.update * n_updated);
                self.together(gather.seconds);
            }
            None => {
                let reduce = self.cluster.reduce(Circle::All, bytes, n_parts);
                self.sent += reduce.sent;
                self.together(reduce.seconds + gather.seconds);
                self.words(2);
                self.compute(self.step.update * n_updated);
            }
        }
    }

    fn parts_of_state(&self) -> f64 {
        self.step.strategy.parts_of_state(self.cluster.n_ranks) as f64
    }

    fn outcome(&self) -> Outcome {
        let end = |rank: &usize| self.line.now(*rank);
        let last =
            self.ranks().max_by(|a, b| end(a).total_cmp(&end(b))).expect("one rank at least");
        let seconds = end(&last);
        let computed = self.line.computed(last);
        let (sent_least, exchanging) = least(self.step, self.cluster);
        Outcome {
            seconds,
            exposed: seconds - computed,
            sent: self.sent,
            sent_least,
            seconds_least: computed.max(exchanging),
        }
    }
}

/// The fewest bytes that a rank sends, and the seconds that they take at the speed of the links: one
/// sum and one gather of what trains in as many parts as there are ranks, and each unit once a visit.
fn least(step: &Step, cluster: &Cluster) -> (f64, f64) {
    let (ideal, bytes) = (cluster.ideal(), NUMBER * step.n_trained());
    let trained = ideal.gather(Circle::All, bytes, cluster.n_ranks);
    let (mut sent, mut seconds) = (2.0 * trained.sent, 2.0 * trained.seconds);
    if let Some(circle) = step.strategy.circle_of_base() {
        for visit in &step.visits {
            let unit = ideal.gather(circle, visit.bytes, cluster.size(circle));
            sent += step.n_micro_batches as f64 * unit.sent;
            seconds += step.n_micro_batches as f64 * unit.seconds;
        }
    }
    (sent, seconds)
}

#[cfg(test)]
mod tests;
