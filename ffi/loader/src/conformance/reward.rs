//! What an answer earns is a finite number, and does not depend on what is judged beside it or before.

use super::{Finding, Tried, same};
use forgelm_plugin::{Plugin, Rewards};
use forgelm_sdk::reward::{Answer, Reward};

const PROMPT: &str = "<|im_start|>user\nWhat is 6 times 7?<|im_end|>\n";
const RECORD: &str = r#"{"gold_answer": "42", "level": 2}"#;
const COMPLETIONS: [&str; 6] = [
    "Six times seven is forty-two. Answer: 42",
    "Answer: 41",
    "",
    "42 \u{e9}\u{20ac}\u{1f600}",
    "I do not know.\nAsk me another.",
    "Answer: 42",
];

pub(super) fn check(plugin: &Plugin<Rewards>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    let Some(reward) = tried.built((plugin.build)(&[])) else { return };
    let answers =
        COMPLETIONS.map(|completion| Answer { prompt: PROMPT, completion, record: RECORD });
    let first = match judged(&*reward, &answers) {
        Ok(first) => first,
        Err(why) => return tried.property("judges answers", Err(why)),
    };
    tried.property("judges answers", Ok(()));
    let bad =
        first.iter().position(|value| value.is_some_and(|bits| !f64::from_bits(bits).is_finite()));
    let finite = bad.map_or(Ok(()), |i| {
        let value = first[i].map(f64::from_bits).unwrap_or_default();
        Err(format!("{value} for {:?}", COMPLETIONS[i]))
    });
    tried.property("gives finite numbers", finite);
    let again = judged(&*reward, &answers).and_then(|again| same(&again, &first));
    tried.property("gives the same rewards again", again);
    let mut backward = answers;
    backward.reverse();
    let backward = judged(&*reward, &backward).and_then(|mut backward| {
        backward.reverse();
        same(&backward, &first)
    });
    tried.property("gives the same rewards in another order", backward);
    let alone = answers.iter().zip(&first).try_for_each(|(answer, first)| {
        judged(&*reward, &[*answer]).and_then(|alone| same(&alone, &vec![*first]))
    });
    tried.property("gives an answer the same reward alone", alone);
}

/// The bits of each reward.
fn judged(reward: &dyn Reward, answers: &[Answer<'_>]) -> Result<Vec<Option<u64>>, String> {
    let given = reward.judge(answers).map_err(|failed| failed.message)?;
    if given.len() != answers.len() {
        return Err(format!("{} rewards of {} answers", given.len(), answers.len()));
    }
    Ok(given.into_iter().map(|value| value.map(f64::to_bits)).collect())
}
