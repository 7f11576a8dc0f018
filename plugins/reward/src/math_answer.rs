//! Whether the last `Answer: ...` of an answer is the `gold_answer` of its record.
//!
//! The value begins after the mark and ends before a line end, before the next mark, and before a
//! point, exclamation or question mark that ends a sentence. Both values lose what stands around a
//! number (units, `$`, `%`) and are equal as texts, or as numbers to 1e-6. 1 or 0.
//!
//! Source: the built-in reward of ForgeLM's first implementation. Options: none. A record without
//! `gold_answer` gets 0: nothing is right there.

use forgelm_sdk::options::Reader;
use forgelm_sdk::reward::{Answer, Descriptor, Reward};
use forgelm_sdk::{Failed, OptionValue, OptionsError};
use serde_json::Value;

/// The entry in the kind's list.
pub const MATH_ANSWER: Descriptor = Descriptor {
    name: "math_answer",
    summary: "whether the last `Answer: ...` is the record's `gold_answer`",
    source: "ForgeLM's first implementation",
    build,
};

fn build(options: &[(&str, OptionValue)]) -> Result<Box<dyn Reward>, OptionsError> {
    Reader::new(MATH_ANSWER.name, options).finish()?;
    Ok(Box::new(MathAnswer))
}

struct MathAnswer;

const MARK: &str = "answer";
/// What may stand around a number, in the order in which it is taken off.
const AROUND: [&str; 13] =
    ["km/h", "m/s", "mL", "ml", "m²", "liters", "hours", "km", "cm", "kg", "$", "%", "m"];
/// Two numbers that are closer are equal.
const CLOSE: f64 = 1e-6;

impl Reward for MathAnswer {
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed> {
        answers.iter().map(|answer| reward(answer).map(Some)).collect()
    }
}

fn reward(answer: &Answer<'_>) -> Result<f64, Failed> {
    let record: Value = serde_json::from_str(answer.record)
        .map_err(|error| Failed::new(format!("the record is no JSON: {error}")))?;
    let gold = match &record["gold_answer"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let value = last_value(answer.completion).unwrap_or_default();
    Ok(f64::from(u8::from(is_same(&value, &gold))))
}

/// What follows a mark that begins here: its value's place.
fn after_mark(text: &[char], at: usize) -> Option<usize> {
    let mark = text.get(at..at + MARK.len())?;
    if !mark.iter().zip(MARK.chars()).all(|(c, m)| c.eq_ignore_ascii_case(&m)) {
        return None;
    }
    let skip_spaces = |mut at: usize| {
        while text.get(at).is_some_and(|c| c.is_whitespace()) {
            at += 1;
        }
        at
    };
    let colon = skip_spaces(at + MARK.len());
    (text.get(colon) == Some(&':')).then(|| skip_spaces(colon + 1))
}

fn ends_sentence(c: char) -> bool {
    matches!(c, '.' | '!' | '?')
}

/// The end of a value that begins here; `None` if none does.
fn value_end(text: &[char], from: usize) -> Option<usize> {
    let first = *text.get(from)?;
    let is_fraction = first == '.' && text.get(from + 1).is_some_and(char::is_ascii_digit);
    if first.is_whitespace() || (ends_sentence(first) && !is_fraction) {
        return None;
    }
    let mut at = from + 1;
    while let Some(&c) = text.get(at) {
        let goes_on = if ends_sentence(c) {
            text.get(at + 1).is_some_and(|next| !next.is_whitespace())
        } else {
            c != '\n' && after_mark(text, at).is_none()
        };
        if !goes_on {
            break;
        }
        at += 1;
    }
    Some(at)
}

/// The value of the last mark that has one.
fn last_value(completion: &str) -> Option<String> {
    let text: Vec<char> = completion.chars().collect();
    let (mut at, mut last) = (0, None);
    while at < text.len() {
        let value = after_mark(&text, at).and_then(|from| Some(from..value_end(&text, from)?));
        match value {
            Some(value) => {
                at = value.end;
                last = Some(text[value].iter().collect());
            }
            None => at += 1,
        }
    }
    last
}

/// A value without what stands around it.
fn bare(value: &str) -> String {
    let mut value = value.trim().trim_end_matches(ends_sentence);
    for token in AROUND.iter().cycle().take(2 * AROUND.len()) {
        // `m` is a unit only beside a number or a space; everywhere else it is a letter of a word.
        let is_unit = |beside: Option<char>| {
            *token != "m" || beside.is_none_or(|c| c.is_numeric() || c.is_whitespace())
        };
        if let Some(rest) = value.strip_suffix(token).filter(|r| is_unit(r.chars().next_back())) {
            value = rest.trim_end();
        }
        if let Some(rest) = value.strip_prefix(token).filter(|r| is_unit(r.chars().next())) {
            value = rest.trim_start();
        }
    }
    value.trim().to_owned()
}

fn is_same(value: &str, gold: &str) -> bool {
    let (value, gold) = (bare(value), bare(gold));
    if value.is_empty() || gold.is_empty() {
        return false;
    }
    let numbers = || Some((number(&value)?, number(&gold)?));
    value == gold || numbers().is_some_and(|(a, b)| (a - b).abs() < CLOSE)
}

/// A number, with commas between thousands or none.
fn number(text: &str) -> Option<f64> {
    if has_thousands(text) { text.replace(',', "").parse().ok() } else { text.parse().ok() }
}

/// Whether commas stand before every third digit and nowhere else.
fn has_thousands(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(w, f)| (w, Some(f)));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mut groups = whole.split(',');
    let first = groups.next().is_some_and(|group| group.len() <= 3 && is_digits(group));
    let mut rest = groups.peekable();
    first
        && rest.peek().is_some()
        && rest.all(|group| group.len() == 3 && is_digits(group))
        && fraction.is_none_or(is_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_is_the_one_that_counts() {
        for (completion, expected) in [
            ("x Answer: 18. Because y", Some("18")),
            ("Answer: 5 Answer: 7", Some("7")),
            ("Answer: 1.5", Some("1.5")),
            ("Answer: .5", Some(".5")),
            ("answer: $40!", Some("$40")),
            ("Answer: 70 km/h", Some("70 km/h")),
            ("Answer: 12\nmore", Some("12")),
            ("Answer: ! Answer : 3", Some("3")),
            ("no marker", None),
            ("Answer:", None),
        ] {
            assert_eq!(last_value(completion).as_deref(), expected, "{completion:?}");
        }
    }

    #[test]
    fn the_worked_examples() {
        for (completion, gold, expected) in [
            ("… Answer: 18. Because y", "\"18\"", 1.0),
            ("Answer: 5 Answer: 7", "\"7\"", 1.0),
            ("Answer: 5,050", "\"5050\"", 1.0),
            ("Answer: .5", "\"0.5\"", 1.0),
            ("Answer: 12,5", "\"12.5\"", 0.0),
            ("Answer: 70 km/h", "\"70\"", 1.0),
            ("Answer: $", "\"%\"", 0.0),
            ("Answer: 2/5", "\"0.4\"", 0.0),
            ("Answer: 18", "18", 1.0),
            ("Answer: 18", "null", 0.0),
            ("Answer: m", "\"m\"", 0.0),
            ("Answer: 5 m", "\"5\"", 1.0),
            ("Answer: ham", "\"ha\"", 0.0),
            ("Answer: Paris.", "\"Paris\"", 1.0),
            ("Answer: nan", "\"NaN\"", 0.0),
        ] {
            let record = format!("{{\"gold_answer\": {gold}}}");
            let answer = Answer { prompt: "", completion, record: &record };
            let given = reward(&answer).expect("JSON");
            assert!((given - expected).abs() < 1e-12, "{completion:?} of {gold}: {given}");
        }
        let answer = Answer { prompt: "", completion: "Answer: 1", record: "{}" };
        assert_eq!(reward(&answer), Ok(0.0), "a record without the column");
        let broken = Answer { record: "{", ..answer };
        assert!(reward(&broken).expect_err("no JSON").to_string().contains("no JSON"));
    }
}
