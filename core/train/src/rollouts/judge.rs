//! The rewards of the answers to one prompt.

use forgelm_sdk::reward::{Answer, Reward};
use forgelm_tokenize::{TokenizeError, Tokenizer};
use std::collections::BTreeMap;

/// A reward with its name.
pub struct NamedReward {
    /// As it appears in the metrics.
    pub name: &'static str,
    /// Who gives it.
    pub reward: Box<dyn Reward>,
}

/// Everything that rewards are given from.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Their sum is what counts.
    pub rewards: &'a [NamedReward],
    /// Tokens to text.
    pub tokenizer: &'a Tokenizer,
    /// The other columns of each record, as JSON objects.
    pub columns: &'a BTreeMap<u64, String>,
}

/// Why answers have no reward.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A reward failed, or gave what is no number.
    #[error(
        "the reward `{reward}` of record {record}: {problem}\n  hint: the last checkpoint is good"
    )]
    Reward {
        /// Its name.
        reward: &'static str,
        /// Record that has the prompt.
        record: u64,
        /// What is wrong.
        problem: String,
    },
    /// The tokens are no text.
    #[error(transparent)]
    Tokens(#[from] TokenizeError),
}

/// The answers to one prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    /// Record that has the prompt.
    pub(super) record: u64,
    /// Its tokens.
    pub(super) prompt: &'a [u32],
    /// The answers, without the tokens that ended them.
    pub(super) answers: &'a [Vec<u32>],
}

/// One reward of every answer of a group; `None` where it has nothing to say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judged {
    pub(super) reward: &'static str,
    pub(super) values: Vec<Option<f64>>,
}

impl Judge<'_> {
    /// Each reward of every answer.
    pub(super) fn judge(&self, group: &Group<'_>) -> Result<Vec<Judged>, JudgeError> {
        let prompt = self.tokenizer.decode(group.prompt)?;
        let text = |answer: &Vec<u32>| self.tokenizer.decode_without_specials(answer);
        let completions: Vec<String> = group.answers.iter().map(text).collect::<Result<_, _>>()?;
        let record = self.columns.get(&group.record).map_or("{}", String::as_str);
        let answer = |completion| Answer { prompt: &prompt, completion, record };
        let answers: Vec<Answer<'_>> = completions.iter().map(|text| answer(text)).collect();
        let judged = self.rewards.iter().map(|NamedReward { name, reward }| {
            let values = reward.judge(&answers).map_err(|error| JudgeError::Reward {
                reward: name,
                record: group.record,
                problem: error.to_string(),
            })?;
            Ok(Judged { reward: name, values })
        });
        judged.collect()
    }
}

/// The sum of all rewards of each answer. One that has nothing to say counts nothing; a number that
/// is not finite, and an answer of which no reward says anything, are errors.
pub(super) fn total(judged: &[Judged], group: &Group<'_>) -> Result<Vec<f64>, JudgeError> {
    let error = |judged: &Judged, problem| JudgeError::Reward {
        reward: judged.reward,
        record: group.record,
        problem,
    };
    for of in judged {
        if of.values.len() != group.answers.len() {
            let (found, n) = (of.values.len(), group.answers.len());
            return Err(error(of, format!("{found} numbers; expected {n}, one for each answer")));
        }
        if let Some(value) = of.values.iter().flatten().find(|value| !value.is_finite()) {
            return Err(error(of, format!("{value} is not a finite number")));
        }
    }
    (0..group.answers.len())
        .map(|i| {
            let given: Vec<f64> = judged.iter().filter_map(|of| of.values[i]).collect();
            match (given.is_empty(), judged.first()) {
                (true, Some(first)) => {
                    Err(error(first, format!("no reward says anything of answer {i}")))
                }
                (true, None) | (false, _) => Ok(given.iter().sum()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summed(judged: &[Judged]) -> Result<Vec<f64>, JudgeError> {
        let answers = vec![vec![1], vec![2]];
        total(judged, &Group { record: 4, prompt: &[0], answers: &answers })
    }

    fn judged(reward: &'static str, values: &[Option<f64>]) -> Judged {
        Judged { reward, values: values.to_vec() }
    }

    #[test]
    fn rewards_are_summed_and_one_that_says_nothing_is_left_out() {
        let sums =
            summed(&[judged("a", &[Some(0.5), None]), judged("b", &[Some(1.0), Some(-0.25)])]);
        assert_eq!(sums.expect("good"), [1.5, -0.25]);
    }

    #[test]
    fn fault_075_what_is_no_reward_ends_the_run_and_is_never_taken_for_zero() {
        for (of, said) in [
            (judged("a", &[Some(f64::NAN), Some(1.0)]), "NaN is not a finite number"),
            (judged("a", &[Some(f64::INFINITY), Some(1.0)]), "inf is not a finite number"),
            (judged("a", &[Some(1.0)]), "1 numbers; expected 2"),
            (judged("a", &[Some(1.0), None]), "no reward says anything of answer 1"),
        ] {
            let error = summed(&[of]).expect_err("refused").to_string();
            assert!(error.contains("the reward `a` of record 4"), "{error}");
            assert!(error.contains(said), "{error}");
        }
    }
}
