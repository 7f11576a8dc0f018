//! Whether an answer ends as asked, and a little for its length.
//!
//! `0.8 format + 0.2 length`. Format is 1 when the answer, without the spaces at its end, ends with
//! `answer`, spaces, `:`, white space and at least one more character, all of them on one line after
//! the white space; letters of either case. Length is the number of characters divided by 200, at
//! most 1: without it, answers that are all of the wrong form would be alike, and nothing would be
//! learned from them.
//!
//! Source: the built-in reward of ForgeLM's first implementation. Options: none.

use forgelm_sdk::options::Reader;
use forgelm_sdk::reward::{Answer, Descriptor, Reward};
use forgelm_sdk::{Failed, OptionValue, OptionsError};

/// The entry in the kind's list.
pub const FORMAT_LENGTH: Descriptor = Descriptor {
    name: "format_length",
    summary: "whether an answer ends with `Answer: ...`, and a little for its length",
    source: "ForgeLM's first implementation",
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Reward>, OptionsError> {
    Reader::new(FORMAT_LENGTH.name, options).finish()?;
    Ok(Box::new(FormatLength))
}

struct FormatLength;

/// Characters of an answer that is long enough.
const LONG_ENOUGH: f64 = 200.0;
const MARK: &str = "answer";

impl Reward for FormatLength {
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        Ok(answers.iter().map(|answer| Some(reward(answer.completion))).collect())
    }
}

#[expect(clippy::cast_precision_loss, reason = "answers are far below 2^53 characters")]
fn reward(completion: &str) -> f64 {
    let format = f64::from(u8::from(has_format(completion.trim_end())));
    let length = (completion.chars().count() as f64 / LONG_ENOUGH).min(1.0);
    0.8 * format + 0.2 * length
}

fn has_format(text: &str) -> bool {
    text.char_indices().any(|(at, _)| {
        let ends = || {
            let rest = text.get(at..at + MARK.len())?;
            let rest = rest.eq_ignore_ascii_case(MARK).then(|| &text[at + MARK.len()..])?;
            let value = rest.trim_start_matches(' ').strip_prefix(':')?.trim_start();
            Some(!value.is_empty() && !value.contains('\n'))
        };
        ends() == Some(true)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_examples() {
        for (completion, expected) in [
            ("So Answer: 15 km/h  ", 0.82),
            ("Answer: 5\nthanks", 0.016),
            ("Answer:", 0.007),
            ("ANSWER:\n42", 0.81),
            ("", 0.0),
            ("the answers : are", 0.017),
            ("Answer: 5\nanswer  : 6", 0.821),
        ] {
            let given = reward(completion);
            assert!((given - expected).abs() < 1e-12, "{completion:?}: {given}");
        }
        assert!((reward(&"x".repeat(500)) - 0.2).abs() < 1e-12, "long enough is enough");
        assert!((reward("é answer: é") - (0.8 + 0.2 * 11.0 / 200.0)).abs() < 1e-12);
    }
}
