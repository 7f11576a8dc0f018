//! The processes of a run, and what each has of a step.

use super::deal::Deal;
use super::devices::Devices;
use crate::optimizer::Optimizer;
use forgelm_collective::{CollectiveError, Group, Pending};
use forgelm_kernels_api::{Buffer, DeviceLink, Ops, Slice, SliceMut};
use forgelm_model::Trainable;
use std::ops::Range;
use std::sync::Arc;

/// What the processes share out between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing: each has everything, and makes the whole update.
    Nothing,
    /// The summed gradient and the optimizer's state: each updates its part (ZeRO stage 2).
    Gradients,
}

/// The processes of a run, and what they share out.
#[derive(Clone, Copy)]
pub struct Team<'a> {
    /// The processes.
    pub group: &'a Group,
    /// What each has only a part of.
    pub sharing: Sharing,
    /// The kernels of the processor, where these update what trains and hold the optimizer's state,
    /// and those of a device do everything else.
    pub updates_on: Option<&'a Arc<dyn Ops>>,
    /// What carries numbers from device to device, where something does. Without `updates_on`.
    pub link: Option<&'a Arc<dyn DeviceLink>>,
}

/// Why processes cannot work on a step together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{n_ranks} processes share a step of {n_leaves} micro-batches\n  hint: start at most {n_leaves} \
     processes, or cut the step into more pieces: a smaller \
     `training.per_device_train_batch_size` and a larger `training.gradient_accumulation_steps`"
)]
pub struct TooManyRanks {
    /// Processes.
    pub n_ranks: usize,
    /// Micro-batches of a step.
    pub n_leaves: usize,
}

impl std::fmt::Debug for Team<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, sharing, updates_on, link } = self;
        f.debug_struct("Team")
            .field("group", group)
            .field("sharing", sharing)
            .field("updates_on", &updates_on.map(|ops| ops.name()))
            .field("link", link)
            .finish()
    }
}

impl Team<'_> {
    /// Whether a step of so many micro-batches has one for every process.
    ///
    /// # Errors
    /// If it has not.
    pub fn check(&self, n_leaves: usize) -> Result<(), TooManyRanks> {
        let n_ranks = self.group.n_ranks();
        if n_ranks > n_leaves { Err(TooManyRanks { n_ranks, n_leaves }) } else { Ok(()) }
    }

    /// Whether a run of this many processes gives the bits of a run of one, and of any other number of
    /// which this holds.
    #[must_use]
    pub fn is_comparable(&self) -> bool {
        self.group.n_ranks().is_power_of_two()
    }
}

/// See [`Team`]; with what follows from the parameters.
pub(super) struct Shares<'a> {
    group: &'a Group,
    sharing: Sharing,
    updates_on: Option<&'a Arc<dyn Ops>>,
    devices: Option<Devices<'a>>,
    /// Who has which of the numbers.
    pub(super) deal: Deal,
}

impl<'a> Shares<'a> {
    /// Of a team, over what trains, by the optimizer of all of it; `ops` compute.
    pub(super) fn new(
        team: Team<'a>,
        adapter: &Trainable,
        optimizer: &Optimizer,
        ops: &'a Arc<dyn Ops>,
    ) -> Self {
        let Team { group, sharing, updates_on, link } = team;
        let deal = Self::deal(adapter, optimizer, group);
        let devices = link.map(|link| Devices { link, ops });
        Self { group, sharing, updates_on, devices, deal }
    }

    /// Who has which of the numbers.
    pub(super) fn deal(adapter: &Trainable, optimizer: &Optimizer, group: &Group) -> Deal {
        Deal::new(optimizer, adapter.descending_parts(), group.n_ranks())
    }

    /// The devices of all processes, where they are linked.
    pub(super) fn devices(&self) -> Option<Devices<'a>> {
        self.devices
    }

    /// See [`Team::updates_on`].
    pub(super) fn updates_on(&self) -> Option<&'a Arc<dyn Ops>> {
        self.updates_on
    }

    pub(super) fn group(&self) -> &'a Group {
        self.group
    }

    /// See [`Team::sharing`].
    pub(super) fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Where the elements of a process are.
    pub(super) fn ranges(&self, rank: usize) -> Vec<Range<usize>> {
        self.deal.ranges(rank)
    }

    pub(super) fn own_ranges(&self) -> Vec<Range<usize>> {
        self.ranges(self.group.rank())
    }

    /// The elements that this process has moments of, where it has not all.
    pub(super) fn own_part(&self) -> Option<Vec<Range<usize>>> {
        match self.sharing {
            Sharing::Nothing => None,
            Sharing::Gradients => Some(self.own_ranges()),
        }
    }

    /// A copy of some numbers, laid end to end, where processes exchange them from.
    pub(super) fn taken(&self, from: &[Slice<'_>]) -> Buffer {
        match &self.devices {
            Some(devices) => devices.joined(from),
            None => {
                let mut numbers = Vec::with_capacity(from.iter().map(Slice::len).sum());
                from.iter().for_each(|slice| numbers.extend_from_slice(&slice.to_host()));
                numbers.into()
            }
        }
    }

    /// Puts the numbers of all processes where they belong.
    ///
    /// Shapes: `own` [numbers of this process] read, `to` [P] written.
    pub(super) fn gather(&self, own: Buffer, mut to: SliceMut<'_>) -> Result<(), CollectiveError> {
        if let Some(devices) = &self.devices {
            return devices.gather(self, &own, to);
        }
        let mut end = 0;
        let range = |len: usize| {
            let start = end;
            end += len;
            start..end
        };
        let ranges = self.deal.lens().into_iter().map(range).collect();
        let of_ranks = self.group.all_gather_ranges(own.into_host(), ranges)?;
        let all = self.deal.put_together(&of_ranks);
        // At once: it may go to a device.
        to.copy_from_host(&all);
        Ok(())
    }

    /// Starts to bring the shares of a part of the model together.
    ///
    /// Shapes: `own` [share of this process] read, result [numbers of the part], slice by slice.
    pub(super) fn start_part(&self, part: usize, own: Buffer) -> Pending<Buffer> {
        let ranges = self.deal.shares(part);
        if let Some(devices) = &self.devices {
            return devices.start_part(self.group, &ranges, own);
        }
        let own = own.into_host();
        self.group.start(move |line| Ok(line.all_gather_ranges(&own, &ranges)?.into()))
    }

    /// The sum of all squares, piece by piece in their order, from those of this process.
    pub(super) fn sum_of_squares(
        &self,
        of_own: impl Fn(Range<usize>) -> f64,
    ) -> Result<f64, CollectiveError> {
        let pieces = self.deal.own_pieces(self.group.rank());
        let of = |piece: Range<usize>| if piece.is_empty() { 0.0 } else { of_own(piece) };
        let own = pieces.into_iter().flat_map(|piece| of(piece).to_bits().to_le_bytes()).collect();
        let of_ranks = self.group.all_gather(own)?;
        let values = |bytes: &Vec<u8>| -> Vec<f64> {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&bits| f64::from_bits(u64::from_le_bytes(bits)))
                .collect()
        };
        let of_ranks: Vec<Vec<f64>> = of_ranks.iter().map(values).collect();
        Ok(self.deal.in_order(&of_ranks).into_iter().sum())
    }

    /// The micro-batch of this process in each round of a step that has `n` of them, where a whole step
    /// has `n_slots`. All processes go through the same rounds.
    pub(super) fn leaves(&self, n: usize, n_slots: usize) -> Vec<Option<usize>> {
        let (rank, n_ranks) = (self.group.rank(), self.group.n_ranks());
        let leaf = |index: usize| (index < n).then_some(index);
        match self.sharing {
            Sharing::Nothing => self.block(rank, n, n_slots).map(leaf).collect(),
            // Sums of a round are made between the processes, so that each has its part alone.
            Sharing::Gradients => {
                (0..n.div_ceil(n_ranks)).map(|round| leaf(round * n_ranks + rank)).collect()
            }
        }
    }

    /// A whole subtree for each process, where their number allows it.
    pub(super) fn block(&self, rank: usize, n: usize, n_slots: usize) -> Range<usize> {
        let n_ranks = self.group.n_ranks();
        let n_slots = if n_ranks.is_power_of_two() { n_slots.next_power_of_two() } else { n_slots };
        let bound = |rank: usize| (rank * n_slots / n_ranks).min(n);
        bound(rank)..bound(rank + 1)
    }
}
