//! What processes exchange from device to device, where their devices are linked: gradients, and what
//! was updated.
//!
//! The link only moves numbers. They are added by the ops of the device over the tree by which hosts
//! add: no bit is another.

use super::shares::{Shares, Sharing};
use forgelm_collective::{CollectiveError, Group, PairwiseTree, Pending};
use forgelm_kernels_api::{Buffer, DeviceLink, Ops, Precision, Slice, SliceMut};
use std::ops::Range;
use std::sync::Arc;

/// Devices of all processes, and what works on the one of this process.
#[derive(Clone, Copy)]
pub(super) struct Devices<'a> {
    pub(super) link: &'a Arc<dyn DeviceLink>,
    pub(super) ops: &'a Arc<dyn Ops>,
}

impl Devices<'_> {
    /// Memory of the device, at zero.
    ///
    /// Ends with a [`Failure`](forgelm_kernels_api::Failure) if there is none; so below.
    pub(super) fn zeros(&self, n: usize) -> Buffer {
        let made = self.ops.allocate(n, Precision::Exact);
        made.unwrap_or_else(|refused| refused.end("numbers between the devices"))
    }

    /// A copy of some numbers of the device, laid end to end.
    pub(super) fn joined(&self, from: &[Slice<'_>]) -> Buffer {
        let mut joined = self.zeros(from.iter().map(Slice::len).sum());
        let mut end = 0;
        for slice in from {
            let start = end;
            end += slice.len();
            self.ops.copy(joined.part_mut(start..end), *slice);
        }
        joined
    }

    fn add(&self, left: &mut Buffer, right: &Buffer) {
        self.ops.add(left.all_mut(), right.all());
    }

    /// Has each process give every other one its share of a part of the model; `own` is empty on those
    /// that are not among the first `n_with`.
    fn exchange(&self, shares: &Shares<'_>, part: usize, own: Buffer, n_with: usize) -> Exchange {
        let (rank, n_ranks) = (shares.group().rank(), shares.group().n_ranks());
        let counts: Vec<usize> = shares.deal.shares(part).iter().map(Range::len).collect();
        let n = counts[rank];
        let received: Vec<usize> =
            (0..n_ranks).map(|from| if from < n_with { n } else { 0 }).collect();
        let sent = if rank < n_with { counts } else { vec![0; n_ranks] };
        let (n_bytes, link) = (4 * (own.len() - sent[rank]), Arc::clone(self.link));
        let mut parts = self.zeros(n * n_with);
        let parts = shares.group().start(move |line| {
            line.carry(n_bytes, || link.all_to_all(own.all(), &sent, parts.all_mut(), &received))?;
            Ok(parts)
        });
        Exchange { part, n, n_with, parts }
    }

    /// The sum of what came.
    ///
    /// Shapes: result [share of this process].
    fn arrived(&self, exchange: Exchange) -> Result<Buffer, CollectiveError> {
        let Exchange { n, n_with, parts, .. } = exchange;
        let mut parts = parts.wait()?;
        if n == 0 || n_with < 2 {
            return Ok(parts);
        }
        // By the place of each: the one to the left takes the sum, the first one that of all.
        let mut add = |left: &mut usize, right: usize| {
            let (before, behind) = parts.all_mut().split_at(right * n);
            self.ops.add(before.part(*left * n..(*left + 1) * n), behind.as_slice().part(0..n));
        };
        let mut tree = PairwiseTree::default();
        (0..n_with).for_each(|place| tree.push(place, &mut add));
        tree.finish(&mut add);
        Ok(self.joined(&[parts.part(0..n)]))
    }

    /// Starts to bring the shares of a part together, which follow one another by rank.
    ///
    /// Shapes: `own` [share of this process] read, result [numbers of the part].
    pub(super) fn start_part(
        &self,
        group: &Group,
        shares: &[Range<usize>],
        own: Buffer,
    ) -> Pending<Buffer> {
        let counts: Vec<usize> = shares.iter().map(Range::len).collect();
        let n_bytes = 4 * own.len() * (group.n_ranks() - 1);
        let mut all = self.zeros(counts.iter().sum());
        let link = Arc::clone(self.link);
        group.start(move |line| {
            line.carry(n_bytes, || link.all_gather(own.all(), all.all_mut(), &counts))?;
            Ok(all)
        })
    }

    /// Puts together what each process has of all numbers, part by part.
    ///
    /// Shapes: `own` [numbers of this process] read, `to` [P] written.
    pub(super) fn gather(
        &self,
        shares: &Shares<'_>,
        own: &Buffer,
        mut to: SliceMut<'_>,
    ) -> Result<(), CollectiveError> {
        let mut end = 0;
        for part in 0..shares.deal.n_parts() {
            let start = end;
            end += shares.deal.shares(part)[shares.group().rank()].len();
            let all = shares.start_part(part, self.joined(&[own.part(start..end)])).wait()?;
            let mut end = 0;
            for slice in shares.deal.slices(part) {
                let start = end;
                end += slice.len();
                self.ops.copy(to.reborrow().part(slice.clone()), all.part(start..end));
            }
        }
        Ok(())
    }
}

/// Shares of a part on their way.
struct Exchange {
    part: usize,
    /// Numbers of this process's share.
    n: usize,
    /// Processes that give some.
    n_with: usize,
    /// [`n_with` n]
    parts: Pending<Buffer>,
}

/// See [`Summing`](super::summing::Summing); on devices.
pub(super) struct DeviceSumming<'s> {
    shares: &'s Shares<'s>,
    devices: Devices<'s>,
    /// By part: of this process alone, or of its share over all.
    sums: Vec<PairwiseTree<Buffer>>,
    on_its_way: Option<Exchange>,
}

impl<'s> DeviceSumming<'s> {
    pub(super) fn new(shares: &'s Shares<'s>, devices: Devices<'s>) -> Self {
        let sums = (0..shares.deal.n_parts()).map(|_| PairwiseTree::default()).collect();
        Self { shares, devices, sums, on_its_way: None }
    }

    /// Takes what this process has of a part in a round in which `n_with` processes have something.
    pub(super) fn push(
        &mut self,
        part: usize,
        gradient: Buffer,
        n_with: usize,
    ) -> Result<(), CollectiveError> {
        if self.shares.sharing() == Sharing::Nothing {
            self.add(part, gradient);
            return Ok(());
        }
        self.wait()?;
        self.on_its_way = Some(self.devices.exchange(self.shares, part, gradient, n_with));
        Ok(())
    }

    fn add(&mut self, part: usize, leaf: Buffer) {
        let devices = self.devices;
        self.sums[part].push(leaf, |left, right| devices.add(left, &right));
    }

    fn wait(&mut self) -> Result<(), CollectiveError> {
        if let Some(exchange) = self.on_its_way.take() {
            let part = exchange.part;
            let own = self.devices.arrived(exchange)?;
            self.add(part, own);
        }
        Ok(())
    }

    /// The sum of what this process has, part by part; `n_with` processes have something of a step.
    pub(super) fn finish(mut self, n_with: usize) -> Result<Buffer, CollectiveError> {
        self.wait()?;
        let devices = self.devices;
        let add = |left: &mut Buffer, right: Buffer| devices.add(left, &right);
        let mut own = Vec::new();
        for (part, sum) in self.sums.into_iter().enumerate() {
            let sum = sum.finish(add).unwrap_or_else(|| devices.zeros(0));
            own.push(match self.shares.sharing() {
                Sharing::Gradients => sum,
                Sharing::Nothing => {
                    devices.arrived(devices.exchange(self.shares, part, sum, n_with))?
                }
            });
        }
        Ok(devices.joined(&own.iter().map(Buffer::all).collect::<Vec<_>>()))
    }
}
