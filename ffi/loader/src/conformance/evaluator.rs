//! An evaluator gives the same report again, and fails in words where a service is missing.

use super::{Finding, Outcome, Tried, same};
use crate::border::WORDLESS;
use forgelm_plugin::{Evaluators, Plugin};
use forgelm_sdk::evaluator::{
    Evaluator, Generate, HeldOut, RecordText, Report, Score, Services, TextPair, TextScore,
};
use forgelm_sdk::{Failed, OptionValue};

/// A model that is made up: a text's score is a function of its bytes.
struct MadeUp;

impl Score for MadeUp {
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed> {
        let score = |pair: &TextPair<'_>| {
            let bytes = pair.prompt.bytes().chain(pair.completion.bytes());
            let sum: u32 = bytes.map(u32::from).sum();
            let n_tokens = pair.completion.split_whitespace().count().max(1) as u64;
            TextScore { logp_sum: -f64::from(sum % 97) / 10.0 - 0.1, n_tokens }
        };
        Ok(pairs.iter().map(score).collect())
    }
}

impl Generate for MadeUp {
    fn generate(
        &self,
        prompts: &[&str],
        _options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed> {
        Ok(prompts.iter().map(|prompt| prompt.chars().rev().collect()).collect())
    }
}

/// Records of [`MadeUp`].
const N_RECORDS: u64 = 5;

fn record(i: u64) -> RecordText {
    RecordText { prompt: format!("question {i}?"), completion: format!("the answer is {i}") }
}

impl HeldOut for MadeUp {
    fn n_records(&self) -> u64 {
        N_RECORDS
    }

    fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed> {
        let end = first.saturating_add(n as u64);
        if end > N_RECORDS {
            return Err(Failed::argument(format!("record {end}; there are {N_RECORDS}")));
        }
        let records: Vec<RecordText> = (first..end).map(record).collect();
        let pairs: Vec<TextPair<'_>> = records
            .iter()
            .map(|record| TextPair { prompt: &record.prompt, completion: &record.completion })
            .collect();
        Score::score(self, &pairs)
    }

    fn text(&self, number: u64) -> Result<RecordText, Failed> {
        match number {
            0..N_RECORDS => Ok(record(number)),
            _ => Err(Failed::argument(format!("record {number}; there are {N_RECORDS}"))),
        }
    }
}

pub(super) fn check(plugin: &Plugin<Evaluators>, found: &mut Vec<Finding>) {
    let mut tried = Tried { plugin, found };
    let Some(evaluator) = tried.built((plugin.build)(&[])) else { return };
    let all = Services { score: Some(&MadeUp), generate: Some(&MadeUp), held_out: Some(&MadeUp) };
    let first = match evaluator.evaluate(&all) {
        Ok(first) => first,
        Err(failed) => return tried.property("judges a model", Err(failed.message)),
    };
    tried.property("judges a model", Ok(()));
    tried.property("gives the same report again", again(&*evaluator, &all, &first));
    // One that needs no service has nothing to say. One that panicked, or whose process died, is not
    // called again.
    let without = evaluator.evaluate(&Services::default());
    let outcome = match (evaluator.evaluate(&all), without) {
        (Err(failed), _) => Outcome::Fails(failed.message),
        (Ok(_), Err(silent)) if silent.message.ends_with(WORDLESS) => {
            Outcome::Fails(silent.message)
        }
        (Ok(_), _) => Outcome::Holds,
    };
    tried.note("says in words that a service is missing", outcome);
}

fn again(evaluator: &dyn Evaluator, all: &Services<'_>, first: &Report) -> Result<(), String> {
    let second = evaluator.evaluate(all).map_err(|failed| failed.message)?;
    same(&second, first)
}
