//! The order of the work: groups of tensors, passes, pieces.

use crate::piece::{Cut, Workspace, cuts};
use crate::threads::for_each;
use crate::{MergeError, Tensor};
use forgelm_sdk::merge_method::{self, MergeMethod, Scope};

/// Pieces that are worked on between two meetings of the threads. Enough that a thread that
/// finishes early loses little; their results are held together.
const PIECES_TOGETHER: usize = 64;

/// A merge that is under way.
pub struct Engine<'a> {
    pub tensors: &'a [Tensor<'a>],
    pub method: &'a dyn MergeMethod,
    pub scope: Scope,
    pub n_threads: usize,
    /// Asked between pieces.
    pub is_stopped: &'a (dyn Fn() -> bool + Sync),
}

impl Engine<'_> {
    /// Merges the tensors in order and hands their bytes to `sink`, end to end, in parts of any
    /// length; ends early, without an error, when `sink` wants no more.
    pub fn run(&self, sink: &mut dyn FnMut(Vec<u8>) -> bool) -> Result<(), MergeError> {
        let mut group: Vec<Cut> = Vec::new();
        for (number, tensor) in self.tensors.iter().enumerate() {
            group.extend(cuts(number, tensor, self.scope));
            let is_last = number + 1 == self.tensors.len();
            if (group.len() >= PIECES_TOGETHER || is_last)
                && !self.merge_group(&std::mem::take(&mut group), sink)?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// All pieces of some tensors: the passes, then the results. Whether to go on.
    fn merge_group(
        &self,
        group: &[Cut],
        sink: &mut dyn FnMut(Vec<u8>) -> bool,
    ) -> Result<bool, MergeError> {
        let Some((first, last)) = group.first().zip(group.last()) else { return Ok(true) };
        let first = first.tensor;
        let mut facts: Vec<Vec<f64>> = vec![Vec::new(); last.tensor - first + 1];
        for pass in 0..self.method.passes().len() {
            self.pass(pass, group, first, &mut facts)?;
        }
        for together in group.chunks(PIECES_TOGETHER) {
            let bytes = together.iter().map(|cut| self.stored_bytes(cut)).sum();
            let mut stored = vec![0; bytes];
            let mut rest = stored.as_mut_slice();
            let mut jobs = Vec::with_capacity(together.len());
            for cut in together {
                let (own, others) = rest.split_at_mut(self.stored_bytes(cut));
                jobs.push((*cut, own));
                rest = others;
            }
            for_each(self.n_threads, jobs, Workspace::default, |space, (cut, stored)| {
                self.check_stopped()?;
                let tensor = &self.tensors[cut.tensor];
                space.merge(self.method, tensor, cut, &facts[cut.tensor - first], stored)
            })?;
            if !sink(stored) {
                return Ok(false);
            }
        }
        for tensor in &self.tensors[first..=last.tensor] {
            tensor.base.release();
            tensor.inputs.iter().flatten().for_each(|input| input.release());
        }
        Ok(true)
    }

    fn stored_bytes(&self, cut: &Cut) -> usize {
        cut.len * self.tensors[cut.tensor].dtype.block_bytes()
    }

    fn check_stopped(&self) -> Result<(), MergeError> {
        if (self.is_stopped)() { Err(MergeError::Stopped) } else { Ok(()) }
    }

    /// One pass over the tensors that an input changes. Facts are added to those of the passes
    /// before.
    fn pass(
        &self,
        pass: usize,
        group: &[Cut],
        first: usize,
        facts: &mut [Vec<f64>],
    ) -> Result<(), MergeError> {
        let sizes = self.method.passes()[pass];
        let gave_up = |tensor: &Tensor<'_>, failed: merge_method::Failed| MergeError::Method {
            tensor: tensor.name.to_owned(),
            message: failed.message,
        };
        let is_changed = |cut: &&Cut| !self.tensors[cut.tensor].is_unchanged();
        let measured: Vec<Cut> = group.iter().filter(is_changed).copied().collect();
        let mut totals: Vec<Option<Vec<f64>>> = vec![None; facts.len()];
        for together in measured.chunks(PIECES_TOGETHER) {
            let mut sums = vec![vec![0.0; sizes.n_sums]; together.len()];
            let jobs = together.iter().copied().zip(&mut sums).collect();
            for_each(self.n_threads, jobs, Workspace::default, |space, (cut, sums)| {
                self.check_stopped()?;
                let tensor = &self.tensors[cut.tensor];
                let known = &facts[cut.tensor - first];
                space.with_piece(tensor, cut, known, self.method.reads_base(), |piece, _| {
                    let measured = self.method.measure(pass, piece, sums);
                    measured.map_err(|failed| gave_up(tensor, failed))
                })
            })?;
            // In the order of the pieces: f64 sums depend on it.
            for (cut, sums) in together.iter().zip(sums) {
                match &mut totals[cut.tensor - first] {
                    Some(total) => total.iter_mut().zip(sums).for_each(|(t, s)| *t += s),
                    none => *none = Some(sums),
                }
            }
        }
        for (i, (total, known)) in totals.into_iter().zip(facts).enumerate() {
            let Some(total) = total else { continue };
            let tensor = &self.tensors[first + i];
            let mut found = vec![0.0; sizes.n_facts];
            let whole = merge_method::Tensor { name: tensor.name, len: tensor.len(), facts: known };
            let concluded = self.method.conclude(pass, &whole, &total, &mut found);
            concluded.map_err(|failed| gave_up(tensor, failed))?;
            known.extend(found);
        }
        Ok(())
    }
}
