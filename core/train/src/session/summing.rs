//! Gradients of all micro-batches of a step, added up between the processes.
//!
//! A round is one micro-batch of each process, of those that have one. Where the sum is shared out a
//! part of the model is exchanged as soon as the pass down has left it, while the next one computes.

use super::devices::DeviceSumming;
use super::shares::{Shares, Sharing};
use forgelm_collective::{CollectiveError, Line, PairwiseSum, Pending};
use forgelm_kernels_api::{Buffer, Slice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A gradient on its way to being summed over all micro-batches of a step.
pub(super) struct Summing<'s> {
    shares: &'s Shares<'s>,
    way: Way<'s>,
    /// Micro-batches of this step, and of a whole one.
    n: usize,
    n_slots: usize,
}

/// How numbers go from process to process.
enum Way<'s> {
    Hosts(HostSumming<'s>),
    Devices(DeviceSumming<'s>),
}

impl<'s> Summing<'s> {
    pub(super) fn new(shares: &'s Shares<'s>, n: usize, n_slots: usize) -> Self {
        let way = match shares.devices() {
            None => Way::Hosts(HostSumming::new(shares)),
            Some(devices) => Way::Devices(DeviceSumming::new(shares, devices)),
        };
        Self { shares, way, n, n_slots }
    }

    /// Processes that have a micro-batch in a round, where sums are shared out.
    fn n_with(&self, round: usize) -> usize {
        let n_ranks = self.shares.group().n_ranks();
        self.n.saturating_sub(round * n_ranks).min(n_ranks)
    }

    /// Takes what this process has of a part in a round, slice by slice. All processes come to the same
    /// calls of this function and [`Summing::push_nothing`] in the same order.
    pub(super) fn push(
        &mut self,
        round: usize,
        part: usize,
        gradient: &[Slice<'_>],
    ) -> Result<(), CollectiveError> {
        let (n_with, gradient) = (self.n_with(round), self.shares.taken(gradient));
        match &mut self.way {
            Way::Hosts(hosts) => hosts.push(part, gradient, n_with),
            Way::Devices(devices) => devices.push(part, gradient, n_with),
        }
    }

    /// As [`Summing::push`], of a process that has no gradient: zeros, where it has a micro-batch.
    pub(super) fn push_nothing(
        &mut self,
        round: usize,
        part: usize,
        has_micro_batch: bool,
    ) -> Result<(), CollectiveError> {
        let n = if has_micro_batch { self.shares.deal.len(part) } else { 0 };
        self.push(round, part, &[(&vec![0.0; n][..]).into()])
    }

    /// [`Summing::push`] of all parts, from the gradient of everything.
    pub(super) fn push_whole(
        &mut self,
        round: usize,
        all: Slice<'_>,
    ) -> Result<(), CollectiveError> {
        let shares = self.shares;
        (0..shares.deal.n_parts()).try_for_each(|part| {
            let slices = shares.deal.slices(part).iter();
            self.push(round, part, &slices.map(|slice| all.part(slice.clone())).collect::<Vec<_>>())
        })
    }

    /// The sum of what this process has, part by part.
    pub(super) fn finish(self) -> Result<Buffer, CollectiveError> {
        let with = |&rank: &usize| !self.shares.block(rank, self.n, self.n_slots).is_empty();
        let n_with = (0..self.shares.group().n_ranks()).filter(with).count();
        match self.way {
            Way::Hosts(hosts) => Ok(hosts.finish(n_with)?.into()),
            Way::Devices(devices) => devices.finish(n_with),
        }
    }
}

/// See [`Summing`]; through the memory of the hosts.
struct HostSumming<'s> {
    shares: &'s Shares<'s>,
    /// By part: of this process alone, or of its share over all.
    sums: Arc<Mutex<Vec<PairwiseSum>>>,
    /// A part travels while the next is computed.
    on_its_way: Option<Pending<()>>,
}

impl<'s> HostSumming<'s> {
    fn new(shares: &'s Shares<'s>) -> Self {
        let sums = vec![PairwiseSum::default(); shares.deal.n_parts()];
        Self { shares, sums: Arc::new(Mutex::new(sums)), on_its_way: None }
    }

    fn push(
        &mut self,
        part: usize,
        gradient: Buffer,
        n_with: usize,
    ) -> Result<(), CollectiveError> {
        let gradient = gradient.into_host();
        if self.shares.sharing() == Sharing::Nothing {
            lock(&self.sums)[part].push(gradient);
            return Ok(());
        }
        self.wait()?;
        let (ranges, sums) = (self.shares.deal.shares(part), Arc::clone(&self.sums));
        self.on_its_way = Some(self.shares.group().start(move |line| {
            let own = line.reduce_scatter(&gradient, &ranges, n_with)?;
            lock(&sums)[part].push(own);
            Ok(())
        }));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), CollectiveError> {
        self.on_its_way.take().map_or(Ok(()), Pending::wait)
    }

    fn finish(mut self, n_with: usize) -> Result<Vec<f32>, CollectiveError> {
        self.wait()?;
        let sums = std::mem::take(&mut *lock(&self.sums));
        let sums = sums.into_iter().map(|sum| sum.finish().unwrap_or_default());
        if self.shares.sharing() == Sharing::Gradients {
            return Ok(sums.collect::<Vec<_>>().concat());
        }
        let mut own = Vec::new();
        for (part, sum) in sums.enumerate() {
            let ranges = self.shares.deal.shares(part);
            let of_all = move |line: &mut Line| line.reduce_scatter(&sum, &ranges, n_with);
            own.extend(self.shares.group().start(of_all).wait()?);
        }
        Ok(own)
    }
}

fn lock(sums: &Mutex<Vec<PairwiseSum>>) -> MutexGuard<'_, Vec<PairwiseSum>> {
    // A thread that panicked ends the run.
    sums.lock().unwrap_or_else(PoisonError::into_inner)
}
