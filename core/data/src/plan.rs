//! Which sequences make the batch of a step: a pure function, so that a resumed run needs a number.

use std::sync::{Arc, Mutex, PoisonError};

use forgelm_tensor::random::{Purpose, Stream};

use crate::packing::Bins;

/// What a plan is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanSettings {
    /// `training.seed`.
    pub seed: u64,
    /// `data.shuffle`: a new order in each epoch; without, the order of the file in each.
    pub shuffle: bool,
    /// Sequences in a micro-batch, or bins when packed.
    pub per_device_train_batch_size: usize,
    /// Micro-batches in a step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data.
    pub num_train_epochs: u64,
    /// If set, this many steps whatever the epochs.
    pub max_steps: Option<u64>,
    /// With packing, the tokens of a bin.
    pub packed_to: Option<usize>,
}

/// The order of the data in a whole run.
///
/// A unit is a sequence, or with packing a bin of sequences. Epoch e takes the units in the order
/// `Stream::new(seed, Purpose::DataOrder).permutation(e, n)`; step s of an epoch takes the units
/// `[s B A, (s + 1) B A)` of that order, and micro-batch m of the step the m-th B of these. The last step of an
/// epoch may be smaller; no step crosses epochs.
#[derive(Debug, Clone)]
pub struct Plan {
    settings: PlanSettings,
    units: Units,
    steps_per_epoch: u64,
    n_steps: u64,
    /// The order of the epoch that was asked for last: a step needs a few places of it, and all of it is a pass
    /// over the units to make.
    last_order: Arc<Mutex<Option<Order>>>,
}

/// An epoch and the units in its order.
type Order = (u64, Arc<Vec<u32>>);

/// What is shuffled.
#[derive(Debug, Clone)]
enum Units {
    /// Each sequence alone.
    Single(usize),
    Bins(Bins),
}

impl Units {
    fn new(lengths: &[usize], packed_to: Option<usize>) -> Units {
        match packed_to {
            Some(capacity) => Units::Bins(Bins::best_fit_decreasing(lengths, capacity)),
            None => Units::Single(lengths.len()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Units::Single(n) => *n,
            Units::Bins(bins) => bins.len(),
        }
    }

    /// The sequences of some units.
    fn sequences(&self, units: impl Iterator<Item = usize>) -> Vec<usize> {
        match self {
            Units::Single(_) => units.collect(),
            Units::Bins(bins) => {
                units.flat_map(|unit| bins.members(unit).map(|i| i as usize)).collect()
            }
        }
    }
}

impl Plan {
    /// Plans a run over sequences of these lengths.
    ///
    /// Steps per epoch: `max(1, ceil(ceil(n / B) / A))`; in all `max_steps`, else epochs times steps per epoch.
    ///
    /// # Panics
    /// If there is no sequence, a size is 0, or there are 2^32 units: bugs in the caller.
    #[must_use]
    pub fn new(settings: PlanSettings, lengths: &[usize]) -> Plan {
        assert!(!lengths.is_empty(), "no sequence to plan for");
        let (b, a) = (settings.per_device_train_batch_size, settings.gradient_accumulation_steps);
        assert!(b > 0 && a > 0, "a batch of no sequences");
        let units = Units::new(lengths, settings.packed_to);
        let steps_per_epoch = units.len().div_ceil(b).div_ceil(a).max(1) as u64;
        let by_epochs = steps_per_epoch.saturating_mul(settings.num_train_epochs);
        let n_steps = settings.max_steps.unwrap_or(by_epochs);
        Plan { settings, units, steps_per_epoch, n_steps, last_order: Arc::default() }
    }

    /// The same steps in micro-batches of `b` units, `a` to a step.
    ///
    /// # Panics
    /// If `b * a` is not the product that the plan has: the steps would be others.
    #[must_use]
    pub fn recut(&self, b: usize, a: usize) -> Plan {
        let settings = &self.settings;
        assert_eq!(
            b * a,
            settings.per_device_train_batch_size * settings.gradient_accumulation_steps,
            "another effective batch"
        );
        let settings = PlanSettings {
            per_device_train_batch_size: b,
            gradient_accumulation_steps: a,
            ..settings.clone()
        };
        Plan { settings, ..self.clone() }
    }

    /// Units in a micro-batch and micro-batches in a step.
    #[must_use]
    pub fn cut(&self) -> (usize, usize) {
        (self.settings.per_device_train_batch_size, self.settings.gradient_accumulation_steps)
    }

    /// Optimizer steps in the run.
    #[must_use]
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Optimizer steps in a pass over the data.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Sequences, or bins when packed, in a pass over the data.
    #[must_use]
    pub fn n_units(&self) -> usize {
        self.units.len()
    }

    /// Passes over the data done after this many steps, for the metrics.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a number to show")]
    pub fn epoch_after(&self, steps_done: u64) -> f64 {
        steps_done as f64 / self.steps_per_epoch as f64
    }

    /// Micro-batches of a step: fewer in the last step of an epoch.
    #[must_use]
    pub fn n_micro_batches(&self, step: u64) -> usize {
        let (from, to) = self.range(step);
        (to - from).div_ceil(self.settings.per_device_train_batch_size)
    }

    /// The sequences of a micro-batch, by their numbers.
    #[must_use]
    pub fn at(&self, step: u64, micro_batch: usize) -> Vec<usize> {
        let (from, to) = self.range(step);
        let b = self.settings.per_device_train_batch_size;
        let from = (from + micro_batch * b).min(to);
        let to = (from + b).min(to);
        self.units_at(step, from, to)
    }

    /// The sequences of each micro-batch of a step: one shuffle for them all.
    #[must_use]
    pub fn step(&self, step: u64) -> Vec<Vec<usize>> {
        let (from, to) = self.range(step);
        let size = self.settings.per_device_train_batch_size;
        (from..to).step_by(size).map(|at| self.units_at(step, at, (at + size).min(to))).collect()
    }

    fn units_at(&self, step: u64, from: usize, to: usize) -> Vec<usize> {
        if !self.settings.shuffle {
            return self.units.sequences(from..to);
        }
        let order = self.order(step / self.steps_per_epoch);
        self.units.sequences(order[from..to].iter().map(|&unit| unit as usize))
    }

    /// The places of a step in the order of its epoch.
    fn range(&self, step: u64) -> (usize, usize) {
        let per_step =
            self.settings.per_device_train_batch_size * self.settings.gradient_accumulation_steps;
        let in_epoch = usize::try_from(step % self.steps_per_epoch).unwrap_or(usize::MAX);
        let from = in_epoch.saturating_mul(per_step).min(self.units.len());
        (from, (from + per_step).min(self.units.len()))
    }

    /// The units in the shuffled order of an epoch.
    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        // A thread that panicked has left a whole order or none.
        let mut last = self.last_order.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = last.as_ref().filter(|(of, _)| *of == epoch) {
            return Arc::clone(order);
        }
        // The old one goes first: two orders of many rows need not be in memory.
        *last = None;
        let n = u32::try_from(self.units.len()).expect("fewer than 2^32 units");
        let order = Stream::new(self.settings.seed, Purpose::DataOrder).permutation(epoch, n);
        let order = Arc::new(order);
        *last = Some((epoch, Arc::clone(&order)));
        order
    }
}

/// For each of `n` records the one whose answer its prompt is paired with, to estimate how far a policy has moved
/// (KTO): the one before it in the order of the first epoch, and the last one for the first. Two or more records are
/// never paired with themselves.
///
/// # Panics
/// If there are 2^32 records: a bug in the caller.
#[must_use]
pub fn mismatched_partners(n: usize, seed: u64, shuffle: bool) -> Vec<u32> {
    let n = u32::try_from(n).expect("fewer than 2^32 records");
    let order = match shuffle {
        true => Stream::new(seed, Purpose::DataOrder).permutation(0, n),
        false => (0..n).collect(),
    };
    let mut partners = vec![0; order.len()];
    let before = order.last().copied().into_iter().chain(order.iter().copied());
    for (&record, before) in order.iter().zip(before) {
        partners[record as usize] = before;
    }
    partners
}

/// The batches of a validation pass, in order: at most `batch_size` sequences each and, but for a
/// sequence that is longer by itself, at most `tokens_max` tokens.
///
/// # Panics
/// If `batch_size` is 0.
#[must_use]
pub fn evaluation_batches(
    lengths: &[usize],
    batch_size: usize,
    tokens_max: usize,
) -> Vec<Vec<usize>> {
    assert!(batch_size > 0, "a batch of no sequences");
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut n_tokens = 0;
    for (i, &len) in lengths.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if batch.len() < batch_size && n_tokens + len <= tokens_max => {
                batch.push(i);
                n_tokens += len;
            }
            _ => {
                batches.push(vec![i]);
                n_tokens = len;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::{Plan, PlanSettings, evaluation_batches, mismatched_partners};

    fn settings(b: usize, a: usize) -> PlanSettings {
        PlanSettings {
            seed: 7,
            shuffle: true,
            per_device_train_batch_size: b,
            gradient_accumulation_steps: a,
            num_train_epochs: 3,
            max_steps: None,
            packed_to: None,
        }
    }

    #[test]
    fn steps_follow_the_formula() {
        // (rows, B, A) to steps per epoch: ceil(ceil(rows / B) / A), at least 1.
        for (n, b, a, expected) in
            [(100, 4, 2, 13), (1, 4, 2, 1), (8, 4, 2, 1), (9, 4, 2, 2), (360, 4, 4, 23)]
        {
            let plan = Plan::new(settings(b, a), &vec![10; n]);
            assert_eq!(plan.steps_per_epoch(), expected, "{n} {b} {a}");
            assert_eq!(plan.n_steps(), 3 * expected);
        }
        let limited = Plan::new(PlanSettings { max_steps: Some(5), ..settings(4, 2) }, &[10; 100]);
        assert_eq!(limited.n_steps(), 5);
    }

    #[test]
    fn a_plan_cut_again_has_the_same_steps() {
        for n in [1, 7, 9, 40] {
            let plan = Plan::new(settings(6, 2), &vec![10; n]);
            for (b, a) in [(6, 2), (4, 3), (3, 4), (1, 12)] {
                let recut = plan.recut(b, a);
                let fresh = Plan::new(settings(b, a), &vec![10; n]);
                assert_eq!((recut.cut(), recut.n_steps()), ((b, a), plan.n_steps()));
                for step in 0..plan.n_steps() {
                    assert_eq!(recut.step(step), fresh.step(step), "{n} rows, {b} x {a}");
                    assert_eq!(recut.step(step).concat(), plan.step(step).concat());
                }
            }
        }
    }

    #[test]
    fn each_epoch_has_every_sequence_once_and_epochs_differ() {
        let plan = Plan::new(settings(4, 2), &[10; 101]);
        let epoch = |e: u64| -> Vec<usize> {
            (e * plan.steps_per_epoch()..(e + 1) * plan.steps_per_epoch())
                .flat_map(|s| plan.step(s).concat())
                .collect()
        };
        for e in 0..3 {
            let mut seen = epoch(e);
            seen.sort_unstable();
            assert_eq!(seen, (0..101).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
    }

    #[test]
    fn a_batch_is_a_function_of_the_step() {
        let plan = Plan::new(settings(4, 2), &[10; 101]);
        let forward: Vec<_> = (0..plan.n_steps()).map(|s| plan.step(s)).collect();
        for s in (0..plan.n_steps()).rev() {
            let again = Plan::new(settings(4, 2), &[10; 101]);
            assert_eq!(again.step(s), forward[usize::try_from(s).expect("small")]);
            let one_by_one: Vec<_> =
                (0..again.n_micro_batches(s)).map(|m| again.at(s, m)).collect();
            assert_eq!(one_by_one, again.step(s));
        }
    }

    #[test]
    fn a_step_has_the_same_sequences_however_it_is_cut() {
        let whole = Plan::new(settings(8, 1), &[10; 101]);
        for (b, a) in [(1, 8), (2, 4), (4, 2)] {
            let cut = Plan::new(settings(b, a), &[10; 101]);
            assert_eq!(cut.n_steps(), whole.n_steps());
            for step in 0..whole.n_steps() {
                assert_eq!(
                    cut.step(step).concat(),
                    whole.step(step).concat(),
                    "{b} x {a}, step {step}"
                );
            }
        }
    }

    #[test]
    fn fault_028_fewer_rows_than_a_batch_make_one_small_step() {
        let plan = Plan::new(settings(8, 4), &[10]);
        assert_eq!(plan.steps_per_epoch(), 1);
        assert_eq!(plan.step(0), vec![vec![0]]);
        assert_eq!(plan.step(2), vec![vec![0]]);
        assert_eq!(plan.n_micro_batches(0), 1);
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_file() {
        let plan = Plan::new(PlanSettings { shuffle: false, ..settings(2, 2) }, &[10; 5]);
        assert_eq!(plan.step(0), vec![vec![0, 1], vec![2, 3]]);
        assert_eq!(plan.step(1), vec![vec![4]]);
    }

    #[test]
    fn packed_units_are_bins() {
        let lengths = [5, 2, 3, 1, 8, 4, 4, 7, 6, 8, 8, 1, 3];
        let plan = Plan::new(PlanSettings { packed_to: Some(8), ..settings(1, 2) }, &lengths);
        assert_eq!(plan.n_units(), 8);
        assert_eq!(plan.steps_per_epoch(), 4);
        let mut seen: Vec<usize> = (0..4).flat_map(|s| plan.step(s).concat()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..13).collect::<Vec<_>>());
    }

    #[test]
    fn every_record_lends_its_answer_once_and_never_to_itself() {
        assert_eq!(mismatched_partners(4, 7, false), [3, 0, 1, 2]);
        let partners = mismatched_partners(50, 7, true);
        assert!(partners.iter().enumerate().all(|(i, &partner)| i != partner as usize));
        let mut lent = partners.clone();
        lent.sort_unstable();
        assert_eq!(lent, (0..50).collect::<Vec<_>>());
        assert_ne!(partners, mismatched_partners(50, 8, true));
        assert_eq!(mismatched_partners(1, 7, true), [0]);
        assert!(mismatched_partners(0, 7, true).is_empty());
    }

    #[test]
    fn evaluation_batches_are_bounded_in_sequences_and_tokens() {
        assert_eq!(evaluation_batches(&[3, 3, 3], 2, 100), vec![vec![0, 1], vec![2]]);
        assert_eq!(
            evaluation_batches(&[3, 3, 9, 1, 2], 8, 6),
            vec![vec![0, 1], vec![2], vec![3, 4]],
            "a sequence that is longer by itself stands alone"
        );
    }
}
