//! my_plugin: a reward for ForgeLM.
//!
//! As it comes, it is for short answers: 1 up to 100 bytes, and less for more, `r = min(1, 100 / n)`.
//! Yours goes into `reward_of`. What an answer earns must not depend on the answers beside it.
#![forbid(unsafe_code)]

use forgelm_sdk::Failed;
use forgelm_sdk::options::Reader;
use forgelm_sdk::reward::{Answer, Descriptor, Reward};

/// Options of the reward, read in `REWARDS`, are fields of it.
struct Method;

const LONG_ENOUGH: f64 = 100.0;

/// What an answer earns: any finite number, or `None` where there is nothing to say of it.
/// The prompt and the columns of the record, a JSON object, are there too.
#[expect(clippy::cast_precision_loss, reason = "answers are far below 2^53 bytes")]
fn reward_of(answer: &Answer<'_>) -> Option<f64> {
    let n_bytes = answer.completion.len() as f64;
    Some(if n_bytes > LONG_ENOUGH { LONG_ENOUGH / n_bytes } else { 1.0 })
}

impl Reward for Method {
    /// Judges the answers to one prompt: one number for each, in order.
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        Ok(answers.iter().map(reward_of).collect())
    }
}

const REWARDS: &[Descriptor] = &[Descriptor {
    name: "my_plugin",
    summary: "1 for short answers, less for long ones",
    source: "the template of ForgeLM",
    build: |options| {
        // let mut options = Reader::new(..); let most = options.number("most", 1.0, 0.0..=9.0)?;
        Reader::new("my_plugin", options).finish()?;
        Ok(Box::new(Method))
    },
}];

forgelm_sdk::export_plugin!(rewards: REWARDS);
