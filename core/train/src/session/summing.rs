//! Gradients of all micro-batches of a step, added up between the processes.
//!
//! A round is one micro-batch of each process, of those that have one. Where the sum is shared out a
//! part of the model is exchanged as soon as the pass down has left it, while the next one computes.

use super::shares::{Shares, Sharing};
use forgelm_collective::{CollectiveError, Line, PairwiseSum, Pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A gradient on its way to being summed over all micro-batches of a step.
pub(super) struct Summing<'s> {
    shares: &'s Shares<'s>,
    /// By part: of this process alone, or of its share over all.
    sums: Arc<Mutex<Vec<PairwiseSum>>>,
    /// A part travels while the next is computed.
    on_its_way: Option<Pending<()>>,
    n: usize,
    n_slots: usize,
}

impl<'s> Summing<'s> {
    pub(super) fn new(shares: &'s Shares<'s>, n: usize, n_slots: usize) -> Self {
        let sums = vec![PairwiseSum::default(); shares.deal.n_parts()];
        Self { shares, sums: Arc::new(Mutex::new(sums)), on_its_way: None, n, n_slots }
    }

    /// Takes what this process has of a part in a round: nothing where it has no micro-batch. All
    /// processes come to the same calls in the same order.
    pub(super) fn push(
        &mut self,
        round: usize,
        part: usize,
        gradient: Vec<f32>,
    ) -> Result<(), CollectiveError> {
        if self.shares.sharing() == Sharing::Nothing {
            lock(&self.sums)[part].push(gradient);
            return Ok(());
        }
        self.wait()?;
        let n_ranks = self.shares.group().n_ranks();
        let n_with = (self.n - round * n_ranks).min(n_ranks);
        let (ranges, sums) = (self.shares.deal.shares(part), Arc::clone(&self.sums));
        self.on_its_way = Some(self.shares.group().start(move |line| {
            let own = line.reduce_scatter(&gradient, &ranges, n_with)?;
            lock(&sums)[part].push(own);
            Ok(())
        }));
        Ok(())
    }

    /// [`Summing::push`] of all parts, from the gradient of everything.
    pub(super) fn push_whole(&mut self, round: usize, all: &[f32]) -> Result<(), CollectiveError> {
        let mut parts = 0..self.shares.deal.n_parts();
        parts.try_for_each(|part| self.push(round, part, self.shares.deal.take(part, all)))
    }

    fn wait(&mut self) -> Result<(), CollectiveError> {
        self.on_its_way.take().map_or(Ok(()), Pending::wait)
    }

    /// The sum of what this process has, part by part.
    pub(super) fn finish(mut self) -> Result<Vec<f32>, CollectiveError> {
        self.wait()?;
        let sums = std::mem::take(&mut *lock(&self.sums));
        let sums = sums.into_iter().map(|sum| sum.finish().unwrap_or_default());
        if self.shares.sharing() == Sharing::Gradients {
            return Ok(sums.flatten().collect());
        }
        let shares = self.shares;
        let with = |&rank: &usize| !shares.block(rank, self.n, self.n_slots).is_empty();
        let n_with = (0..shares.group().n_ranks()).filter(with).count();
        let mut own = Vec::new();
        for (part, sum) in sums.enumerate() {
            let ranges = shares.deal.shares(part);
            let of_all = move |line: &mut Line| line.reduce_scatter(&sum, &ranges, n_with);
            own.extend(shares.group().start(of_all).wait()?);
        }
        Ok(own)
    }
}

fn lock(sums: &Mutex<Vec<PairwiseSum>>) -> MutexGuard<'_, Vec<PairwiseSum>> {
    // A thread that panicked ends the run.
    sums.lock().unwrap_or_else(PoisonError::into_inner)
}
