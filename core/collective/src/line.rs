//! The collective as the thread of a group uses it: arrays of numbers instead of bytes, and one
//! deadline.

use crate::CollectiveError;
use crate::sum::sum_of_ranks;
use forgelm_kernels_api::LinkError;
use forgelm_sdk::collective::Collective;
use forgelm_sdk::{Cause, Failed};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A collective with what belongs to it.
pub struct Line {
    collective: Box<dyn Collective>,
    deadline: Duration,
    /// Bytes that this process sent to others.
    n_sent: Arc<AtomicU64>,
    /// After a failure nothing more is tried.
    failed: Option<CollectiveError>,
    /// Groups with this process that were split off.
    parts: Vec<Self>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, size) = (self.rank(), self.n_ranks());
        f.debug_struct("Line").field("rank", &rank).field("size", &size).finish_non_exhaustive()
    }
}

impl Line {
    pub(crate) fn new(
        collective: Box<dyn Collective>,
        deadline: Duration,
        n_sent: Arc<AtomicU64>,
    ) -> Self {
        Self { collective, deadline, n_sent, failed: None, parts: Vec::new() }
    }

    /// This process.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Processes.
    #[must_use]
    pub fn n_ranks(&self) -> usize {
        self.collective.size()
    }

    pub(crate) fn library(&self) -> String {
        self.collective.library()
    }

    pub(crate) fn abort(&mut self, exit_code: i32) {
        self.collective.abort(exit_code);
    }

    pub(crate) fn failed(&self) -> Option<&CollectiveError> {
        self.failed.as_ref()
    }

    fn call<T>(
        &mut self,
        call: impl FnOnce(&mut dyn Collective, Duration) -> Result<T, Failed>,
    ) -> Result<T, CollectiveError> {
        if self.failed.is_some() {
            return Err(CollectiveError::Ended);
        }
        call(self.collective.as_mut(), self.deadline).map_err(|source| {
            let (rank, n_ranks) = (self.rank(), self.n_ranks());
            let error = CollectiveError::Failed { rank, n_ranks, source };
            self.failed = Some(error.clone());
            error
        })
    }

    fn count(&self, n_bytes: usize) {
        self.n_sent.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// A call of all processes that devices carry out, in its turn among the others: it sends `n_bytes`
    /// to other processes, and nothing more is tried after it failed.
    ///
    /// # Errors
    /// That of `call`.
    pub fn carry<T>(
        &mut self,
        n_bytes: usize,
        call: impl FnOnce() -> Result<T, LinkError>,
    ) -> Result<T, CollectiveError> {
        self.count(n_bytes);
        self.call(|_, _| {
            call().map_err(|error| {
                let cause = match error {
                    LinkError::Late { .. } => Cause::Deadline,
                    LinkError::Failed { .. } | LinkError::Ended => Cause::Work,
                };
                Failed { message: error.to_string(), cause }
            })
        })
    }

    /// Waits for every process.
    ///
    /// # Errors
    /// If one gives no sign before the deadline, or the library fails.
    pub fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.call(|collective, deadline| collective.barrier(deadline))
    }

    /// The processes that give the same color make calls of their own from now on: their number among
    /// such groups, and the rank of each in this one.
    pub(crate) fn split_off(&mut self, color: u32) -> Result<(usize, Vec<usize>), CollectiveError> {
        let colors = self.all_gather_known(&color.to_le_bytes(), &vec![4; self.n_ranks()])?;
        let colors = colors.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        let with = colors.enumerate().filter(|(_, of)| *of == color).map(|(rank, _)| rank);
        let with: Vec<usize> = with.collect();
        let split = self.call(|collective, deadline| collective.split(color, deadline))?;
        self.parts.push(Self::new(split, self.deadline, Arc::clone(&self.n_sent)));
        Ok((self.parts.len() - 1, with))
    }

    /// One of the groups that were split off.
    pub(crate) fn part(&mut self, index: usize) -> Result<&mut Self, CollectiveError> {
        self.parts.get_mut(index).filter(|_| self.failed.is_none()).ok_or(CollectiveError::Ended)
    }

    /// What each process has, by rank; `n_bytes` [p] are known to all.
    ///
    /// # Errors
    /// As [`Line::barrier`].
    pub fn all_gather_known(
        &mut self,
        own: &[u8],
        n_bytes: &[usize],
    ) -> Result<Vec<u8>, CollectiveError> {
        let mut all = Vec::new();
        self.all_gather_into(own, &mut all, n_bytes)?;
        Ok(all)
    }

    /// [`Line::all_gather_known`] into memory that is there: what is in `all` is lost.
    ///
    /// # Errors
    /// As [`Line::barrier`].
    pub fn all_gather_into(
        &mut self,
        own: &[u8],
        all: &mut Vec<u8>,
        n_bytes: &[usize],
    ) -> Result<(), CollectiveError> {
        all.resize(n_bytes.iter().sum(), 0);
        self.count(own.len() * (self.n_ranks() - 1));
        self.call(|collective, deadline| collective.all_gather(own, all, n_bytes, deadline))
    }

    /// What each process has, by rank; only it knows how much.
    ///
    /// # Errors
    /// As [`Line::barrier`].
    pub fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let p = self.n_ranks();
        let sizes = self.all_gather_known(&(own.len() as u64).to_le_bytes(), &vec![8; p])?;
        let size = |bytes: &[u8]| {
            let bytes = bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
            usize::try_from(bytes).unwrap_or(usize::MAX)
        };
        let sizes: Vec<usize> = sizes.chunks(8).map(size).collect();
        let all = self.all_gather_known(own, &sizes)?;
        let mut rest = all.as_slice();
        let parts = sizes.iter().map(|&size| {
            let (part, behind) = rest.split_at(size);
            rest = behind;
            part.to_vec()
        });
        Ok(parts.collect())
    }

    /// What the process `root` has; `n_bytes` are known to all.
    ///
    /// # Errors
    /// As [`Line::barrier`].
    pub fn broadcast(&mut self, bytes: &mut [u8], root: usize) -> Result<(), CollectiveError> {
        if self.rank() == root {
            self.count(bytes.len() * (self.n_ranks() - 1));
        }
        self.call(|collective, deadline| collective.broadcast(bytes, root, deadline))
    }

    /// Gives each rank its part of `own`, and gets one of each.
    ///
    /// Shapes: `own` [sum of `n_sent`] read, by rank; gives [sum of `n_received`], by rank; `n_sent` and
    /// `n_received` [p]. What one sends is what the other receives.
    ///
    /// # Errors
    /// As [`Line::barrier`].
    pub fn exchange(
        &mut self,
        own: &[f32],
        n_sent: &[usize],
        n_received: &[usize],
    ) -> Result<Vec<f32>, CollectiveError> {
        let n_bytes = |of: &[usize]| of.iter().map(|n| 4 * n).collect::<Vec<_>>();
        let (sent, received) = (n_bytes(n_sent), n_bytes(n_received));
        let mut parts = vec![0_f32; n_received.iter().sum()];
        self.count(sent.iter().sum::<usize>() - sent[self.rank()]);
        self.call(|collective, deadline| {
            let (own, parts) = (bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut parts));
            collective.all_to_all(own, &sent, parts, &received, deadline)
        })?;
        Ok(parts)
    }

    /// The sum over all ranks of the range that belongs to this one. A rank without numbers gives an
    /// empty array, and `n_with` ranks, the first ones, have some.
    ///
    /// Shapes: `own` [P] or empty; `ranges` cut P among the ranks.
    ///
    /// # Errors
    /// As [`Line::barrier`].
    ///
    /// # Panics
    /// If a rank that should have numbers has none, or the other way round: a bug of the caller.
    pub fn reduce_scatter(
        &mut self,
        own: &[f32],
        ranges: &[Range<usize>],
        n_with: usize,
    ) -> Result<Vec<f32>, CollectiveError> {
        let rank = self.rank();
        assert_eq!(own.is_empty(), rank >= n_with, "numbers of ranks below {n_with}");
        let n = ranges[rank].len();
        let sent: Vec<usize> =
            ranges.iter().map(|range| if own.is_empty() { 0 } else { range.len() }).collect();
        let received: Vec<usize> =
            (0..self.n_ranks()).map(|from| if from < n_with { n } else { 0 }).collect();
        let parts = self.exchange(own, &sent, &received)?;
        if n == 0 {
            return Ok(Vec::new());
        }
        let sum = sum_of_ranks(parts.chunks(n).map(<[f32]>::to_vec));
        Ok(sum.unwrap_or_else(|| vec![0.0; n]))
    }

    /// The ranges of all ranks, put together.
    ///
    /// Shapes: `own` as long as this rank's range; gives [P].
    ///
    /// # Errors
    /// As [`Line::barrier`].
    pub fn all_gather_ranges(
        &mut self,
        own: &[f32],
        ranges: &[Range<usize>],
    ) -> Result<Vec<f32>, CollectiveError> {
        let n_bytes: Vec<usize> = ranges.iter().map(|range| 4 * range.len()).collect();
        let mut all = vec![0_f32; ranges.iter().map(Range::len).sum()];
        self.count(4 * own.len() * (self.n_ranks() - 1));
        self.call(|collective, deadline| {
            let (own, all) = (bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
            collective.all_gather(own, all, &n_bytes, deadline)
        })?;
        Ok(all)
    }
}
