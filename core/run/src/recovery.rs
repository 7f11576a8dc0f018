//! What to try when memory does not suffice: the same steps, in smaller pieces.
//!
//! A step is cut into micro-batches, and the gradients are summed over all of them before anything
//! is divided, so that another cut of the same sequences is the same step. Two things can give:
//! activations can be computed again in the backward pass (the bits stay), and the micro-batch can
//! become smaller while accumulation grows (the effective batch stays exactly, and with it the
//! result up to the order of additions: it is, bit for bit, that of a run configured so).

use forgelm_config::Run;
use forgelm_model::Keep;
use forgelm_train::session::Cut;

/// One way to work through a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Micro-batch and accumulation.
    pub cut: Cut,
    /// What the forward pass keeps.
    pub keep: Keep,
}

/// What a config allows to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// `training.gradient_checkpointing`.
    pub gradient_checkpointing: Option<bool>,
    /// `training.oom_recovery`.
    pub is_recovering: bool,
    /// `training.oom_recovery_min_batch_size`.
    pub min_batch_size: usize,
}

impl Ladder {
    /// Of a config.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        Self {
            gradient_checkpointing: run.training.gradient_checkpointing,
            is_recovering: run.training.oom_recovery && !is_layerwise(run),
            min_batch_size: run.training.oom_recovery_min_batch_size,
        }
    }

    /// The first rung for this cut.
    #[must_use]
    pub fn first(self, cut: Cut) -> Rung {
        let keep = match self.gradient_checkpointing {
            Some(true) => Keep::LayerInputs,
            Some(false) | None => Keep::Everything,
        };
        Rung { cut, keep }
    }

    /// What to try when `rung` does not fit; `None` when there is nothing left.
    #[must_use]
    pub fn below(self, rung: Rung) -> Option<Rung> {
        if self.gradient_checkpointing.is_none() && rung.keep == Keep::Everything {
            return Some(Rung { keep: Keep::LayerInputs, ..rung });
        }
        if !self.is_recovering {
            return None;
        }
        smaller(rung.cut, self.min_batch_size).map(|cut| self.first(cut))
    }

    /// Every rung from the first on.
    pub fn rungs(self, cut: Cut) -> impl Iterator<Item = Rung> {
        std::iter::successors(Some(self.first(cut)), move |&rung| self.below(rung))
    }
}

/// Whether a step is one micro-batch and stays so.
fn is_layerwise(run: &Run) -> bool {
    run.training.galore_enabled && run.training.galore_optim.is_layerwise()
}

/// The largest micro-batch of at most half the size, not below `min`, that divides the effective
/// batch: an odd batch never changes it.
#[must_use]
pub fn smaller(cut: Cut, min: usize) -> Option<Cut> {
    let effective = cut.batch_size * cut.accumulation;
    let min = min.max(1);
    if cut.batch_size <= min {
        return None;
    }
    let batch_size =
        (min..=(cut.batch_size / 2).max(min)).rev().find(|size| effective.is_multiple_of(*size))?;
    Some(Cut { batch_size, accumulation: effective / batch_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(batch_size: usize, accumulation: usize, min: usize) -> Vec<(usize, usize)> {
        let first = Cut { batch_size, accumulation };
        std::iter::successors(Some(first), |&cut| smaller(cut, min))
            .map(|cut| (cut.batch_size, cut.accumulation))
            .collect()
    }

    /// The first two rows are the specification's table; in the third, an odd batch keeps its
    /// effective size.
    #[test]
    fn batches_halve_and_the_effective_batch_stays() {
        assert_eq!(sequence(8, 2, 1), [(8, 2), (4, 4), (2, 8), (1, 16)]);
        assert_eq!(sequence(6, 2, 1), [(6, 2), (3, 4), (1, 12)]);
        assert_eq!(sequence(5, 2, 1), [(5, 2), (2, 5), (1, 10)]);
        assert_eq!(sequence(7, 1, 1), [(7, 1), (1, 7)]);
        assert_eq!(sequence(8, 1, 4), [(8, 1), (4, 2)]);
        assert_eq!(sequence(8, 1, 3), [(8, 1), (4, 2)], "3 does not divide 8");
        assert_eq!(sequence(1, 4, 1), [(1, 4)]);
        assert_eq!(sequence(2, 4, 8), [(2, 4)], "already below the minimum");
    }

    #[test]
    fn recomputation_is_tried_before_a_smaller_batch() {
        let cut = |batch_size, accumulation| Cut { batch_size, accumulation };
        let ladder = |gradient_checkpointing, is_recovering| Ladder {
            gradient_checkpointing,
            is_recovering,
            min_batch_size: 1,
        };
        let rungs = |ladder: Ladder| -> Vec<_> {
            ladder.rungs(cut(2, 1)).map(|rung| (rung.cut.batch_size, rung.keep)).collect()
        };
        use Keep::{Everything, LayerInputs};
        assert_eq!(
            rungs(ladder(None, true)),
            [(2, Everything), (2, LayerInputs), (1, Everything), (1, LayerInputs)]
        );
        assert_eq!(rungs(ladder(Some(true), true)), [(2, LayerInputs), (1, LayerInputs)]);
        assert_eq!(rungs(ladder(Some(false), true)), [(2, Everything), (1, Everything)]);
        assert_eq!(rungs(ladder(None, false)), [(2, Everything), (2, LayerInputs)]);
        assert_eq!(rungs(ladder(Some(false), false)), [(2, Everything)]);
    }
}
