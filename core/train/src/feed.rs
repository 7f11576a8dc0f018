//! Where the sequences of a step come from: the data, its order, and what an objective needs
//! besides. Sizes follow from it before anything is read.

use crate::references::{FileError, References};
use crate::rollouts::{RolloutError, Rollouts};
use crate::session::Cut;
use forgelm_data::{
    Plan, ScoredRows, Sequence, Sequences, StoreError, evaluation_batches, mismatched_partners,
};
use forgelm_model::StepSize;
use forgelm_sdk::trainer::{Needs, Records};

/// Units of a micro-batch of the validation split, at most.
const EVAL_BATCH_SIZE: usize = 8;

/// One of the two parts of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out.
    Validation,
}

/// Data, order and what the objective needs. A unit is what is never taken apart: a text, the two
/// answers of a pair, an answer with the mismatched pair that its prompt is part of.
#[derive(Clone, Copy)]
pub struct Feed<'a> {
    /// What the objective asks for.
    pub needs: Needs,
    /// Sequences to train on.
    pub train: &'a Sequences,
    /// Sequences held out.
    pub validation: &'a Sequences,
    /// Which units each step has.
    pub plan: &'a Plan,
    /// Prompts paired with others' answers, for labelled records.
    pub mismatched: Option<&'a Mismatched>,
    /// Log-probabilities of the reference model, once they are there.
    pub references: Option<&'a References>,
    /// How the policy answers prompts, for objectives that learn from its own answers. A unit is then
    /// a prompt, and a micro-batch has answers.
    pub rollouts: Option<Rollouts<'a>>,
}

/// Which answers stand behind which prompts to estimate how far the policy has moved (KTO): a
/// function of the data alone, so that the reference model reads each pair once.
///
/// Source: TRL pairs each prompt of a batch with the answer before it. Ours: the answer before it in
/// the order of the first epoch, across batches, so that no cut of a step changes a pair.
#[derive(Clone, Debug)]
pub struct Mismatched {
    partners: [Vec<u32>; 2],
    max_length: usize,
}

impl Mismatched {
    /// For data of this many records in each split.
    #[must_use]
    pub fn new(n_records: [usize; 2], max_length: usize, seed: u64, shuffle: bool) -> Self {
        let partners = n_records.map(|n| mismatched_partners(n, seed, shuffle));
        Self { partners, max_length }
    }

    /// The record that lends its answer; `None` where there is no other.
    fn partner(&self, split: Split, unit: usize) -> Option<usize> {
        let partner = self.partners[split as usize][unit] as usize;
        (partner != unit).then_some(partner)
    }
}

/// Why the sequences of a step are not there.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The token file cannot be read.
    #[error(transparent)]
    Tokens(#[from] StoreError),
    /// The reference model's log-probabilities cannot be read.
    #[error(transparent)]
    References(#[from] FileError),
    /// The policy gave no answers to learn from.
    #[error(transparent)]
    Rollouts(#[from] RolloutError),
}

impl<'a> Feed<'a> {
    /// Of an objective that needs nothing but its sequences.
    #[must_use]
    pub fn new(
        needs: Needs,
        (train, validation): (&'a Sequences, &'a Sequences),
        plan: &'a Plan,
    ) -> Self {
        Self { needs, train, validation, plan, mismatched: None, references: None, rollouts: None }
    }

    /// Whether an objective reads mismatched pairs.
    #[must_use]
    pub fn needs_mismatched(needs: Needs) -> bool {
        needs.records == Records::Labelled && needs.reference
    }

    pub(crate) fn sequences(&self, split: Split) -> &'a Sequences {
        match split {
            Split::Train => self.train,
            Split::Validation => self.validation,
        }
    }

    pub(crate) fn scored_rows(&self) -> ScoredRows {
        if self.needs.prompts { ScoredRows::Prompts } else { ScoredRows::Trained }
    }

    /// The mismatched pair of a unit, where it has one.
    pub(crate) fn mismatched_of(
        &self,
        split: Split,
        unit: usize,
    ) -> Result<Option<Sequence>, StoreError> {
        let Some(mismatched) = self.mismatched else { return Ok(None) };
        let Some(partner) = mismatched.partner(split, unit) else { return Ok(None) };
        let read = self.sequences(split).read(&[unit, partner])?;
        Ok(Some(read[0].mismatched(&read[1], mismatched.max_length)))
    }

    /// Tokens and scored rows that some units have at most, as one micro-batch.
    fn size(&self, split: Split, units: &[usize]) -> StepSize {
        let sequences = self.sequences(split);
        let tokens = units.iter().map(|&unit| sequences.n_tokens(unit)).sum();
        let scored = match self.scored_rows() {
            ScoredRows::Trained => units.iter().map(|&unit| sequences.n_trained(unit)).sum(),
            ScoredRows::Prompts => tokens,
        };
        let mut size = StepSize { tokens_max: tokens, scored_rows_max: scored };
        if let Some(mismatched) = self.mismatched {
            let pairs = units.iter().filter_map(|&unit| {
                let answer = sequences.n_trained(mismatched.partner(split, unit)?) + 1;
                let prompt = sequences.n_tokens(unit) - sequences.n_trained(unit);
                Some((mismatched.max_length.min(prompt + answer), answer))
            });
            let (tokens, scored) = pairs.fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
            widen(&mut size, StepSize { tokens_max: tokens, scored_rows_max: scored });
        }
        size
    }

    /// How the plan cuts a step.
    #[must_use]
    pub fn cut(&self) -> Cut {
        let (batch_size, accumulation) = self.plan.cut();
        match &self.rollouts {
            None => Cut { batch_size, accumulation },
            Some(rollouts) => {
                let n_answers = batch_size * accumulation * rollouts.n_generations;
                Cut { batch_size: n_answers, accumulation: 1 }
            }
        }
    }

    /// Micro-batches of a whole step cut so.
    #[must_use]
    pub fn n_micro_batches(&self, cut: Cut) -> usize {
        match &self.rollouts {
            None => cut.accumulation,
            Some(rollouts) => {
                let (batch_size, accumulation) = self.plan.cut();
                let n_answers = batch_size * accumulation * rollouts.n_generations;
                n_answers.div_ceil(cut.batch_size.max(1))
            }
        }
    }

    /// The plan with steps cut so; as it is where the policy answers the units, whose answers are what
    /// is cut.
    pub(crate) fn plan_as(&self, cut: Cut) -> Plan {
        match &self.rollouts {
            None => self.plan.recut(cut.batch_size, cut.accumulation),
            Some(_) => self.plan.clone(),
        }
    }

    /// The largest micro-batch, training and validation together.
    #[must_use]
    pub fn largest_step(&self, cut: Cut) -> StepSize {
        let mut size = self.largest_training_step(cut);
        if self.rollouts.is_some() {
            return size;
        }
        for units in self.validation_groups(size.tokens_max).iter().flatten() {
            widen(&mut size, self.size(Split::Validation, units));
        }
        size
    }

    pub(crate) fn largest_training_step(&self, cut: Cut) -> StepSize {
        let mut size = StepSize { tokens_max: 1, scored_rows_max: 1 };
        if let Some(rollouts) = &self.rollouts {
            for step in 0..self.plan.n_steps() {
                let units = self.plan.step(step).concat();
                let prompts: Vec<usize> =
                    units.iter().map(|&unit| self.train.n_tokens(unit)).collect();
                widen(&mut size, rollouts.largest_step(&prompts, cut.batch_size));
            }
            return size;
        }
        let plan = self.plan_as(cut);
        for step in 0..plan.n_steps() {
            for micro_batch in plan.step(step) {
                widen(&mut size, self.size(Split::Train, &micro_batch));
            }
        }
        size
    }

    /// The largest unit of both splits by itself.
    pub(crate) fn largest_unit(&self) -> StepSize {
        let mut size = StepSize { tokens_max: 1, scored_rows_max: 1 };
        for split in [Split::Train, Split::Validation] {
            for unit in 0..self.sequences(split).len() {
                widen(&mut size, self.size(split, &[unit]));
            }
        }
        size
    }

    /// The validation split in groups that see the same mismatched pairs, each in micro-batches.
    /// But for a unit that is longer by itself, none has more than `tokens_max` tokens: evaluation
    /// needs no more memory than training.
    pub(crate) fn validation_groups(&self, tokens_max: usize) -> Vec<Vec<Vec<usize>>> {
        let lengths = self.validation.lengths();
        if self.mismatched.is_none() {
            return vec![evaluation_batches(&lengths, EVAL_BATCH_SIZE, tokens_max)];
        }
        let chunks = lengths.chunks(EVAL_BATCH_SIZE).enumerate();
        let group = |(i, lengths): (usize, &[usize])| {
            let mut batches = evaluation_batches(lengths, EVAL_BATCH_SIZE, tokens_max);
            batches.iter_mut().flatten().for_each(|unit| *unit += i * EVAL_BATCH_SIZE);
            batches
        };
        chunks.map(group).collect()
    }

    /// Units of the training split that the run reads, ascending.
    pub(crate) fn visited(&self) -> Vec<u32> {
        let n = self.train.len();
        let unit = |unit: usize| u32::try_from(unit).expect("fewer than 2^32 units");
        if self.plan.n_steps() >= self.plan.steps_per_epoch() {
            return (0..n).map(unit).collect();
        }
        let steps = (0..self.plan.n_steps()).flat_map(|step| self.plan.step(step).concat());
        let mut visited: Vec<u32> = steps.map(unit).collect();
        visited.sort_unstable();
        visited.dedup();
        visited
    }
}

/// Makes `size` at least `other`.
fn widen(size: &mut StepSize, other: StepSize) {
    size.tokens_max = size.tokens_max.max(other.tokens_max);
    size.scored_rows_max = size.scored_rows_max.max(other.scored_rows_max);
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgelm_data::PlanSettings;
    use forgelm_sdk::trainer::Role;

    /// A prompt of some tokens and an answer of some.
    fn answer(role: Role, record: u64, n_prompt: usize, n_answer: usize) -> Sequence {
        let n = u32::try_from(n_prompt + n_answer).expect("small");
        let trained = (0..n_prompt + n_answer).map(|t| t >= n_prompt).collect();
        Sequence { record, role, tokens: (0..n).collect(), trained }
    }

    fn plan(n_records: usize, max_steps: u64) -> Plan {
        let settings = PlanSettings {
            seed: 0,
            shuffle: false,
            per_device_train_batch_size: 2,
            gradient_accumulation_steps: 1,
            num_train_epochs: 1,
            max_steps: Some(max_steps),
            packed_to: None,
        };
        Plan::new(settings, &vec![1; n_records])
    }

    const NEEDS: Needs = Needs {
        records: Records::Labelled,
        reference: true,
        rollouts: false,
        prompts: false,
        dropout: false,
    };
    const CUT: Cut = Cut { batch_size: 2, accumulation: 1 };

    #[test]
    fn both_answers_of_a_pair_are_in_its_micro_batch() {
        let pair = |record, n| {
            [answer(Role::Chosen, record, 3, n), answer(Role::Rejected, record, 3, n + 1)]
        };
        let train = Sequences::pairs([pair(0, 2), pair(1, 4)].concat());
        let (validation, plan) = (Sequences::default(), plan(2, 1));
        let needs = Needs { records: Records::Preference, ..NEEDS };
        let feed = Feed::new(needs, (&train, &validation), &plan);
        let tokens = 4 * 3 + 2 + 3 + 4 + 5;
        let expected = StepSize { tokens_max: tokens, scored_rows_max: 14 };
        assert_eq!(feed.largest_step(CUT), expected);
        let prompts = Feed { needs: Needs { prompts: true, ..needs }, ..feed };
        assert_eq!(prompts.largest_step(CUT).scored_rows_max, tokens);
    }

    /// Record 0 lends its answer of 9 tokens to the prompt of 5 of record 1, and gets that of 1: as
    /// a pass of their own these are larger than the labelled answers.
    #[test]
    fn mismatched_pairs_are_counted_and_cut() {
        let train: Vec<Sequence> =
            vec![answer(Role::Chosen, 0, 2, 9), answer(Role::Rejected, 1, 5, 1)];
        let train = Sequences::from(train);
        let (validation, plan) = (Sequences::default(), plan(2, 1));
        let mismatched = Mismatched::new([2, 0], 12, 0, false);
        let feed = Feed {
            mismatched: Some(&mismatched),
            ..Feed::new(NEEDS, (&train, &validation), &plan)
        };
        let pair = feed.mismatched_of(Split::Train, 1).expect("read").expect("two records");
        assert_eq!((pair.role, pair.record), (Role::Kl, 1));
        assert_eq!(pair.tokens, [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8], "cut at 12 tokens");
        assert_eq!(pair.n_trained(), 7);
        let expected = StepSize { tokens_max: 12, scored_rows_max: 9 + 1 };
        assert_eq!(
            feed.size(Split::Train, &[1]),
            expected,
            "the answer's first token may be scored"
        );
        let alone = Mismatched::new([1, 0], 12, 0, false);
        let feed = Feed { mismatched: Some(&alone), ..feed };
        assert_eq!(feed.mismatched_of(Split::Train, 0).expect("read"), None, "no other answer");
    }

    #[test]
    fn groups_of_the_validation_split_do_not_depend_on_the_cut() {
        let train = Sequences::from(vec![answer(Role::Chosen, 0, 2, 2)]);
        let held_out: Vec<Sequence> = (0..19).map(|i| answer(Role::Chosen, i, 2, 2)).collect();
        let (held_out, plan) = (Sequences::from(held_out), plan(1, 1));
        let mismatched = Mismatched::new([1, 19], 12, 0, false);
        let feed =
            Feed { mismatched: Some(&mismatched), ..Feed::new(NEEDS, (&train, &held_out), &plan) };
        for tokens_max in [4, 9, 100] {
            let groups = feed.validation_groups(tokens_max);
            let lengths: Vec<usize> = groups.iter().map(|group| group.concat().len()).collect();
            assert_eq!(lengths, [8, 8, 3], "{tokens_max}");
            assert_eq!(groups.concat().concat(), (0..19).collect::<Vec<_>>());
        }
    }

    #[test]
    fn only_units_that_the_run_reads_are_visited() {
        let train: Vec<Sequence> = (0..7).map(|i| answer(Role::Chosen, i, 2, 2)).collect();
        let (train, validation) = (Sequences::from(train), Sequences::default());
        for (n_steps, expected) in [(1, 2), (3, 6), (4, 7), (9, 7)] {
            let plan = plan(7, n_steps);
            let feed = Feed::new(NEEDS, (&train, &validation), &plan);
            assert_eq!(feed.visited().len(), expected, "{n_steps} steps");
        }
    }
}
