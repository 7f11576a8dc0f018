//! Answers that the policy gives itself: a group for each prompt of a step, judged, and weighed
//! against each other.
//!
//! Every answer has random numbers of its own, a function of (seed, step, record, index): what is
//! generated depends neither on what is generated beside it nor on where a run was resumed.

mod judge;

use crate::feed::{Feed, FeedError, Split};
use crate::flops::{Work, forward_flops};
use crate::session::{StepError, of_all};
use forgelm_collective::Group as Processes;
use forgelm_data::Sequence;
use forgelm_generate::{
    GenerateOptions, Generated, Generator, Request, RequestError, Sampling, StopReason,
};
use forgelm_model::{Decoder, Engine, MemoryPlan, ModelConfig, OutOfMemory, StepSize, Trainable};
use forgelm_sdk::trainer::Role;
use forgelm_tensor::random::{Purpose, Stream};
use judge::{Group, Judged};
pub use judge::{Judge, JudgeError, NamedReward};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Added to the spread of a group before its rewards are divided by it.
const SPREAD_MIN: f64 = 1e-4;
/// Answers that grow at once, at most: more would only read the weights less often.
const LANES_MAX: usize = 32;
/// Plain sampling: what is learned is the policy itself.
const SAMPLING: Sampling =
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, adaptive: None };

/// How answers come about.
#[derive(Clone, Copy)]
pub struct Rollouts<'a> {
    /// Answers to a prompt.
    pub n_generations: usize,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// Tokens of prompt and answer together, at most.
    pub context: usize,
    /// Tokens that end an answer.
    pub stop_ids: &'a [u32],
    /// Who rewards them.
    pub judge: Judge<'a>,
    /// Seed of the choice of tokens.
    pub seed: u64,
}

/// Why there are no answers to learn from.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The policy could not answer.
    #[error("record {record}: {source}")]
    Generate {
        /// Record that has the prompt.
        record: u64,
        /// Why.
        source: RequestError,
    },
    /// There is no memory for the answers.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// They could not be judged.
    #[error(transparent)]
    Judge(#[from] JudgeError),
}

/// Judged answers.
#[derive(Debug, Default)]
pub(crate) struct Rolled {
    /// Prompts with their answers, group after group.
    pub(crate) sequences: Vec<Sequence>,
    /// [answers]
    pub(crate) advantages: Vec<f32>,
    /// What was measured of them.
    pub(crate) measured: Measured,
    /// Arithmetic of the generation.
    pub(crate) flops: f64,
}

impl Rollouts<'_> {
    /// Answers that grow at once, when a step has `n_answers`.
    #[must_use]
    pub fn n_lanes(n_answers: usize) -> usize {
        n_answers.min(LANES_MAX)
    }

    /// The largest micro-batch of `batch_size` answers, every one as long as allowed, to prompts of
    /// these lengths.
    pub(crate) fn largest_step(&self, prompts: &[usize], batch_size: usize) -> StepSize {
        let answered: Vec<StepSize> = prompts
            .iter()
            .flat_map(|&n_prompt| {
                let tokens_max = (n_prompt + self.max_new_tokens).min(self.context);
                let scored_rows_max = tokens_max.saturating_sub(n_prompt);
                std::iter::repeat_n(StepSize { tokens_max, scored_rows_max }, self.n_generations)
            })
            .collect();
        let sum = |answers: &[StepSize]| {
            answers
                .iter()
                .fold((0, 0), |sum, of| (sum.0 + of.tokens_max, sum.1 + of.scored_rows_max))
        };
        let sums = answered.chunks(batch_size.max(1)).map(sum);
        let (tokens_max, scored_rows_max) = sums.fold((1, 1), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        StepSize { tokens_max, scored_rows_max }
    }

    /// Every buffer that answering takes, by name and size.
    #[must_use]
    pub fn memory_plan(
        &self,
        model: &ModelConfig,
        policy: &Trainable,
        n_answers: usize,
        engine: Engine<'_>,
    ) -> MemoryPlan {
        let n_lanes = Self::n_lanes(n_answers);
        Generator::memory_plan(model, Some(policy), self.context, n_lanes, engine)
    }

    /// The answers to the prompts of a step under the policy as it stands; where processes make the
    /// step together, each answers some of the prompts.
    pub(crate) fn answer(
        &self,
        policy: (&Decoder, &Trainable),
        feed: &Feed<'_>,
        step: u64,
        units: &[usize],
        processes: Option<&Processes>,
    ) -> Result<Rolled, StepError> {
        let prompts = feed.sequences(Split::Train).read(units).map_err(FeedError::from)?;
        let (rank, n_ranks) = processes.map_or((0, 1), |of| (of.rank(), of.n_ranks()));
        let own = prompts.iter().enumerate().skip(rank).step_by(n_ranks);
        let (own, asked): (Vec<usize>, Vec<&Sequence>) = own.unzip();
        let answered = self.answered(policy, step, &asked).map_err(FeedError::from)?;
        let mut answered: Vec<(usize, Answered)> = own.into_iter().zip(answered).collect();
        if let Some(processes) = processes {
            policy.0.accompany()?;
            answered = of_all(processes, &answered)?;
        }
        let mut rolled = Rolled::default();
        for (index, of) in answered {
            let weighed = self.weigh(&prompts[index], of, &mut rolled);
            weighed.map_err(|error| FeedError::from(RolloutError::from(error)))?;
        }
        let (decoder, policy) = policy;
        rolled.flops = forward_flops(decoder.config(), policy, work(&rolled.sequences));
        Ok(rolled)
    }

    /// Answers with what each reward says of them, prompt by prompt.
    fn answered(
        &self,
        policy: (&Decoder, &Trainable),
        step: u64,
        prompts: &[&Sequence],
    ) -> Result<Vec<Answered>, RolloutError> {
        let mut generated = self.generate(policy, step, prompts)?.into_iter();
        let answered = |prompt: &&Sequence| {
            let group = generated.by_ref().take(self.n_generations);
            let (answers, ends): (Vec<Vec<u32>>, Vec<End>) =
                group.map(|answer| (answer.tokens, End::from(answer.reason))).unzip();
            let group = Group { record: prompt.record, prompt: &prompt.tokens, answers: &answers };
            let judged = self.judge.judge(&group)?;
            // What is no reward is told by who has it.
            judge::total(&judged, &group)?;
            Ok(Answered { values: judged.into_iter().map(|of| of.values).collect(), answers, ends })
        };
        prompts.iter().map(answered).collect()
    }

    fn generate(
        &self,
        (decoder, policy): (&Decoder, &Trainable),
        step: u64,
        prompts: &[&Sequence],
    ) -> Result<Vec<Generated>, RolloutError> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let n = self.n_generations;
        let options: Vec<GenerateOptions> = prompts
            .iter()
            .flat_map(|prompt| (0..n).map(|index| self.options(step, prompt.record, index)))
            .collect();
        let requests: Vec<Request<'_>> = options
            .iter()
            .enumerate()
            .map(|(i, options)| Request { prompt: &prompts[i / n].tokens, options })
            .collect();
        let n_lanes = Self::n_lanes(requests.len());
        let mut generator = Generator::with_lanes(decoder, Some(policy), self.context, n_lanes)?;
        let generated = generator.generate_all(&requests, &mut |_, _| ControlFlow::Continue(()));
        generated.map_err(|source| RolloutError::Generate {
            record: prompts[source.request / n].record,
            source,
        })
    }

    fn options(&self, step: u64, record: u64, index: usize) -> GenerateOptions {
        let stream = Stream::new(self.seed, Purpose::Rollout);
        let [low, high, ..] = stream.of_row(step, record).bits(0, index as u64);
        GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            sampling: SAMPLING,
            seed: u64::from(high) << 32 | u64::from(low),
            stop_ids: self.stop_ids.to_vec(),
            reuse_cache: false,
        }
    }

    /// Weighs the answers to a prompt against each other and adds them as sequences.
    fn weigh(
        &self,
        prompt: &Sequence,
        answered: Answered,
        rolled: &mut Rolled,
    ) -> Result<(), JudgeError> {
        let Answered { answers, ends, values } = answered;
        let group = Group { record: prompt.record, prompt: &prompt.tokens, answers: &answers };
        let named = self.judge.rewards.iter().zip(values);
        let judged: Vec<Judged> =
            named.map(|(reward, values)| Judged { reward: reward.name, values }).collect();
        let rewards = judge::total(&judged, &group)?;
        let (advantages, spread) = advantages(&rewards);
        rolled.measured.group(&judged, &rewards, spread);
        for ((answer, end), advantage) in answers.into_iter().zip(ends).zip(advantages) {
            let sequence = sequence(prompt, answer, end);
            rolled.measured.answer(sequence.n_trained(), end);
            rolled.sequences.push(sequence);
            rolled.advantages.push(advantage);
        }
        Ok(())
    }
}

/// The answers to a prompt, as one process tells them to the others.
#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    answers: Vec<Vec<u32>>,
    ends: Vec<End>,
    /// What each reward says of each answer.
    values: Vec<Vec<Option<f64>>>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    /// With this token, which is learned too.
    Token(u32),
    /// It was cut off.
    Cut,
}

impl From<StopReason> for End {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::StopToken(token) => Self::Token(token),
            StopReason::MaxNewTokens | StopReason::ContextFull | StopReason::Caller => Self::Cut,
        }
    }
}

/// A prompt with an answer; the token that ended it is part of what is learned.
fn sequence(prompt: &Sequence, answer: Vec<u32>, end: End) -> Sequence {
    let mut tokens = prompt.tokens.clone();
    tokens.extend(answer);
    if let End::Token(token) = end {
        tokens.push(token);
    }
    let trained = (0..tokens.len()).map(|t| t >= prompt.tokens.len()).collect();
    Sequence { record: prompt.record, role: Role::Rollout, tokens, trained }
}

/// How far each answer is above the mean of its group, in units of the group's spread; and the
/// spread: the standard deviation with n - 1.
///
/// Paper: Shao et al. 2024, arXiv:2402.03300, section 4.1.2. As TRL: 1e-4 is added to the spread.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
#[expect(clippy::cast_possible_truncation, reason = "advantages are f32")]
fn advantages(rewards: &[f64]) -> (Vec<f32>, f64) {
    let n = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / n;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let spread = (squares / (n - 1.0).max(1.0)).sqrt();
    let of = |reward: &f64| ((reward - mean) / (spread + SPREAD_MIN)) as f32;
    // All alike: rounding of the mean must not make a difference of them.
    let is_flat = rewards.iter().all(|reward| (reward - rewards[0]).abs() < f64::EPSILON);
    let advantages = rewards.iter().map(|reward| if is_flat { 0.0 } else { of(reward) }).collect();
    (advantages, if is_flat { 0.0 } else { spread })
}

/// Sums of what is measured over a step, each with its number of terms.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    sums: BTreeMap<String, (f64, u64)>,
    /// Shortest and longest answer.
    lengths: Option<(f64, f64)>,
}

impl Measured {
    fn add(&mut self, name: &str, value: f64) {
        let (sum, n) = self.sums.entry(name.to_owned()).or_default();
        *sum += value;
        *n += 1;
    }

    fn group(&mut self, judged: &[Judged], rewards: &[f64], spread: f64) {
        for reward in rewards {
            self.add("reward", *reward);
        }
        self.add("reward_std", spread);
        self.add("frac_reward_zero_std", f64::from(u8::from(spread <= 0.0)));
        for of in judged {
            for value in of.values.iter().flatten() {
                self.add(&format!("rewards/{}/mean", of.reward), *value);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn answer(&mut self, n_tokens: usize, end: End) {
        let n = n_tokens as f64;
        let is_cut = end == End::Cut;
        self.add("completions/mean_length", n);
        self.add("completions/clipped_ratio", f64::from(u8::from(is_cut)));
        let (min, max) = self.lengths.unwrap_or((n, n));
        self.lengths = Some((min.min(n), max.max(n)));
    }

    /// The means, by name.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub(crate) fn means(&self) -> BTreeMap<String, f64> {
        let means = self.sums.iter().map(|(name, (sum, n))| (name.clone(), sum / *n as f64));
        let lengths = self.lengths.into_iter().flat_map(|(min, max)| {
            [("completions/min_length", min), ("completions/max_length", max)]
        });
        means.chain(lengths.map(|(name, value)| (name.to_owned(), value))).collect()
    }
}

fn work(sequences: &[Sequence]) -> Work {
    let pairs = |n: u64| n * (n + 1) / 2;
    sequences.iter().fold(Work::default(), |sum, sequence| {
        let n = sequence.tokens.len() as u64;
        Work {
            tokens: sum.tokens + n,
            pairs: sum.pairs + pairs(n),
            scored_rows: sum.scored_rows + sequence.n_trained() as u64,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rewards 0, 0, 1, 1: mean 0.5, spread sqrt(4 * 0.25 / 3) = 0.577350, so that each is 0.5 /
    /// (0.577350 + 0.0001) = 0.865875 away.
    #[test]
    fn advantages_by_hand() {
        let (advantages, spread) = advantages(&[0.0, 0.0, 1.0, 1.0]);
        assert!((spread - 0.577_350).abs() < 1e-6);
        for (found, expected) in advantages.iter().zip([-1.0, -1.0, 1.0, 1.0]) {
            assert!((found - expected * 0.865_875).abs() < 1e-6, "{advantages:?}");
        }
    }

    #[test]
    fn fault_075_a_group_without_spread_teaches_nothing_and_is_counted() {
        let (advantages, spread) = advantages(&[0.1, 0.1, 0.1]);
        assert_eq!((advantages, spread), (vec![0.0; 3], 0.0));
        let mut measured = Measured::default();
        measured.group(&[], &[0.1; 3], 0.0);
        measured.group(&[], &[0.0, 1.0], 0.5);
        let means = measured.means();
        assert!((means["frac_reward_zero_std"] - 0.5).abs() < 1e-12, "{means:?}");
        assert!((means["reward_std"] - 0.25).abs() < 1e-12, "{means:?}");
    }

    #[test]
    fn fault_076_answers_without_an_end_are_counted_as_cut() {
        let mut measured = Measured::default();
        measured.answer(5, End::Token(2));
        measured.answer(8, End::Cut);
        measured.answer(3, End::Cut);
        measured.answer(4, End::Token(2));
        let means = measured.means();
        assert!((means["completions/clipped_ratio"] - 0.5).abs() < 1e-12, "{means:?}");
        assert!((means["completions/mean_length"] - 5.0).abs() < 1e-12, "{means:?}");
        assert!((means["completions/min_length"] - 3.0).abs() < 1e-12, "{means:?}");
        assert!((means["completions/max_length"] - 8.0).abs() < 1e-12, "{means:?}");
    }

    /// The token that ends an answer is learned; a cut answer has none.
    #[test]
    fn an_answer_ends_with_the_token_that_ended_it() {
        let prompt = Sequence {
            record: 3,
            role: Role::Rollout,
            tokens: vec![7, 8],
            trained: vec![false; 2],
        };
        let ended = sequence(&prompt, vec![9], End::Token(2));
        assert_eq!((ended.tokens.as_slice(), ended.n_trained()), (&[7, 8, 9, 2][..], 2));
        let cut = sequence(&prompt, vec![9, 10], End::Cut);
        assert_eq!((cut.tokens.as_slice(), cut.n_trained()), (&[7, 8, 9, 10][..], 2));
        assert_eq!(cut.trained, [false, false, true, true]);
    }
}
