//! What trains, where each process has a part of it: how it comes together.
//!
//! After a step the numbers of each part of the model are gathered and what passes read of them is
//! formed again ([`Session::renew`]). Whole they are only where they are saved, on the leader; their
//! digest is formed by all, each of some blocks.

use super::Session;
use super::shares::Shares;
use super::together::Command;
use crate::checkpoint::{self, CheckpointError};
use crate::ledger::{self, BLOCK};
use crate::optimizer::Optimizer;
use forgelm_collective::{CollectiveError, Group, Pending};
use forgelm_kernels_api::Buffer;
use forgelm_model::Trainable;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

/// Keeps of what trains only what this process has of it, before it begins at the base. It is then for
/// a session of this group whose decoder has its weights in parts, and which shares out gradients.
pub fn share_out(adapter: &mut Trainable, optimizer: &Optimizer, group: &Group) {
    adapter.keep_only(&Shares::deal(adapter, optimizer, group).ranges(group.rank()));
}

/// Why numbers of an earlier step did not take the place of those that train.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The checkpoint cannot be read here.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The processes no longer speak to each other.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// Numbers of a process: where they lie in the buffer of everything, and whose they are.
type Piece = (Range<usize>, usize);

impl Shares<'_> {
    /// All that train, in the order of the buffer.
    fn pieces(&self) -> Vec<Piece> {
        let of_rank =
            |rank| self.deal.ranges(rank).into_iter().map(move |range: Range<usize>| (range, rank));
        let mut pieces: Vec<Piece> = (0..self.group().n_ranks()).flat_map(of_rank).collect();
        pieces.sort_by_key(|(range, _)| range.start);
        pieces
    }

    /// Brings every block of the buffer of everything to the process that `owner` names, where it is
    /// given to `take`, in order. As many blocks as there are processes travel at once.
    fn bring_blocks(
        &self,
        adapter: &Trainable,
        owner: impl Fn(usize) -> usize,
        take: &mut dyn FnMut(Vec<f32>),
    ) -> Result<(), CollectiveError> {
        let (rank, n_ranks) = (self.group().rank(), self.group().n_ranks());
        let (n, pieces) = (adapter.n_params(), self.pieces());
        let numbers = adapter.numbers().to_host();
        let n_blocks = n.div_ceil(BLOCK);
        for first in (0..n_blocks).step_by(n_ranks) {
            let blocks: Vec<usize> = (first..n_blocks.min(first + n_ranks)).collect();
            let of = |block: usize| within(&pieces, block * BLOCK..n.min((block + 1) * BLOCK));
            let (mut own, mut n_sent) = (Vec::new(), vec![0; n_ranks]);
            for (to, n_sent) in n_sent.iter_mut().enumerate() {
                let start = own.len();
                for &block in blocks.iter().filter(|&&block| owner(block) == to) {
                    for (range, _) in of(block).into_iter().filter(|(_, of)| *of == rank) {
                        own.extend_from_slice(&numbers[adapter.place(&range)]);
                    }
                }
                *n_sent = own.len() - start;
            }
            let mine: Vec<Vec<Piece>> =
                blocks.into_iter().filter(|&block| owner(block) == rank).map(&of).collect();
            let mut n_received = vec![0; n_ranks];
            for (range, from) in mine.iter().flatten() {
                n_received[*from] += range.len();
            }
            // Where the next numbers of each process are.
            let mut next = Vec::new();
            let mut end = 0;
            for n in &n_received {
                next.push(end);
                end += n;
            }
            let exchange =
                self.group().start(move |line| line.exchange(&own, &n_sent, &n_received));
            let received = exchange.wait()?;
            for pieces in mine {
                let mut block = Vec::new();
                for (range, from) in pieces {
                    let start = next[from];
                    next[from] += range.len();
                    block.extend_from_slice(&received[start..next[from]]);
                }
                take(block);
            }
        }
        Ok(())
    }
}

/// What pieces have of a range.
fn within(pieces: &[Piece], range: Range<usize>) -> Vec<Piece> {
    let first = pieces.partition_point(|(of, _)| of.end <= range.start);
    let reaching = pieces[first..].iter().take_while(|(of, _)| of.start < range.end);
    let part = |(of, rank): &Piece| (of.start.max(range.start)..of.end.min(range.end), *rank);
    reaching.map(part).collect()
}

impl Session<'_> {
    /// Forms again what passes read of what trains, part of the model by part, while the next one
    /// travels. All processes do.
    pub(super) fn renew(&mut self) -> Result<(), CollectiveError> {
        let shares = self.shares.as_ref().expect("it is in parts");
        let mut end = 0;
        let mut start = |part: usize, adapter: &Trainable| -> Pending<Buffer> {
            let n = shares.deal.shares(part)[shares.group().rank()].len();
            let own = shares.taken(&[adapter.numbers().part(end..end + n)]);
            end += n;
            shares.start_part(part, own)
        };
        let n_parts = shares.deal.n_parts();
        let mut coming = (n_parts > 0).then(|| start(0, &self.adapter));
        for part in 0..n_parts {
            let Some(came) = coming.take() else { break };
            let all = came.wait()?;
            coming = (part + 1 < n_parts).then(|| start(part + 1, &self.adapter));
            self.decoder.renew(&mut self.adapter, shares.deal.slices(part), &all);
        }
        self.decoder.renewed(&mut self.adapter);
        Ok(())
    }

    /// The digest of everything that trains; see [`ledger::weights_sha256`].
    ///
    /// # Errors
    /// If a process does not give its part.
    pub fn weights_sha256(&self, n_threads: usize) -> Result<String, CollectiveError> {
        if !self.adapter.is_in_parts() {
            return Ok(ledger::weights_sha256(&self.adapter.params(), n_threads));
        }
        self.lead(Command::DigestNumbers)?;
        let digest = self.digest_numbers();
        self.led();
        digest
    }

    pub(super) fn digest_numbers(&self) -> Result<String, CollectiveError> {
        let shares = self.shares.as_ref().expect("it is in parts");
        let n_ranks = shares.group().n_ranks();
        let mut own = Vec::new();
        let mut take = |block: Vec<f32>| own.extend(ledger::block_sha256(&block));
        shares.bring_blocks(&self.adapter, |block| block % n_ranks, &mut take)?;
        let of_ranks = shares.group().all_gather(own)?;
        let mut of_ranks: Vec<_> = of_ranks.iter().map(|of| of.as_chunks().0.iter()).collect();
        let n_blocks = self.adapter.n_params().div_ceil(BLOCK);
        let digests = (0..n_blocks).filter_map(|block| of_ranks[block % n_ranks].next().copied());
        Ok(ledger::of_blocks(&digests.collect::<Vec<_>>()))
    }

    /// What trains, with all its numbers.
    ///
    /// # Errors
    /// If a process does not give its part.
    pub fn whole_adapter(&self) -> Result<Cow<'_, Trainable>, CollectiveError> {
        if !self.adapter.is_in_parts() {
            return Ok(Cow::Borrowed(&self.adapter));
        }
        self.lead(Command::CollectNumbers)?;
        let all = self.collect_numbers();
        self.led();
        Ok(Cow::Owned(self.adapter.with_all(all?)))
    }

    /// All numbers, on the leader; none on the others.
    pub(super) fn collect_numbers(&self) -> Result<Vec<f32>, CollectiveError> {
        let shares = self.shares.as_ref().expect("it is in parts");
        let mut all = Vec::new();
        if shares.group().is_leader() {
            all.reserve_exact(self.adapter.n_params());
        }
        shares.bring_blocks(&self.adapter, |_| 0, &mut |block| all.extend(block))?;
        Ok(all)
    }

    /// Puts the numbers of a checkpoint in the place of those that train: better ones of an earlier
    /// step.
    ///
    /// # Errors
    /// If they cannot be read, on any process that has some.
    pub fn restore(&mut self, checkpoint: &Path) -> Result<(), RestoreError> {
        if !self.adapter.is_in_parts() {
            return self.restore_as_all(checkpoint);
        }
        self.lead(Command::Restore { checkpoint: checkpoint.to_owned() })?;
        let restored = self.restore_as_all(checkpoint);
        self.led();
        restored
    }

    pub(super) fn restore_as_all(&mut self, checkpoint: &Path) -> Result<(), RestoreError> {
        self.adapter = checkpoint::load_adapter(checkpoint, &self.adapter)?;
        if self.adapter.is_in_parts() {
            self.renew()?;
        }
        self.decoder.refresh(&mut self.adapter);
        Ok(())
    }
}
