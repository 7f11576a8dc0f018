//! Options of a plugin: how they are given, how a plugin reads them, and what can be wrong.

use serde_json::{Map, Value};
use std::fmt;
use std::ops::RangeInclusive;

/// The value of one option.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionValue {
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A word.
    Text(String),
}

impl From<&OptionValue> for Value {
    /// As JSON has it; a number that is not finite is null.
    fn from(value: &OptionValue) -> Self {
        match value {
            OptionValue::Number(number) => (*number).into(),
            OptionValue::Flag(flag) => (*flag).into(),
            OptionValue::Text(text) => text.as_str().into(),
        }
    }
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// An option that cannot be used. Raised while the run is planned, before any work.
#[derive(Debug, Clone, PartialEq)]
pub enum OptionsError {
    /// The plugin has no such option.
    Unknown {
        /// Name of the plugin.
        plugin: String,
        /// The option as given.
        key: String,
        /// Names that the plugin knows, with commas.
        expected: String,
    },
    /// The value has the wrong type or is out of range.
    Value {
        /// The option.
        key: String,
        /// The value as given.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Options that are no JSON object of numbers, flags and words.
    Json {
        /// What is wrong with them.
        problem: String,
    },
    /// What a plugin from a library said.
    Refused {
        /// Its message.
        message: String,
    },
    /// Its process died while it was made: no matter of options.
    Died {
        /// Which plugin, and how.
        message: String,
    },
    /// Weights of models that are merged, which do not work together.
    Weights {
        /// As given.
        weights: Vec<f64>,
        /// What is wrong with them.
        problem: String,
    },
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { plugin, key, expected } => {
                write!(f, "`{key}` is not an option of `{plugin}`; expected one of: {expected}")
            }
            Self::Value { key, found, expected } => {
                write!(f, "option `{key}` is `{found}`; expected {expected}")
            }
            Self::Json { problem } => write!(f, "the options {problem}"),
            Self::Refused { message } | Self::Died { message } => f.write_str(message),
            Self::Weights { weights, problem } => write!(f, "the weights {weights:?} {problem}"),
        }
    }
}

impl std::error::Error for OptionsError {}

/// Options as they cross the border: one JSON object.
///
/// # Errors
/// If a key is there twice, or a number is not finite.
pub fn to_json(options: &[(&str, OptionValue)]) -> Result<String, OptionsError> {
    let problem = |problem: String| Err(OptionsError::Json { problem });
    let mut object = Map::new();
    for (key, value) in options {
        let json = Value::from(value);
        if json.is_null() {
            return problem(format!("have `{key}` as `{value}`; expected a finite number"));
        }
        if object.insert((*key).to_owned(), json).is_some() {
            return problem(format!("have `{key}` twice"));
        }
    }
    Ok(Value::Object(object).to_string())
}

/// Options that came over the border.
///
/// # Errors
/// If the text is no JSON object, or a value is no number, flag or word.
pub fn from_json(json: &str) -> Result<Vec<(String, OptionValue)>, OptionsError> {
    let problem = |problem: String| OptionsError::Json { problem };
    let object: Map<String, Value> = serde_json::from_str(json)
        .map_err(|error| problem(format!("are no JSON object: {error}")))?;
    let read = |(key, value): (String, Value)| {
        let value = match value {
            Value::Number(number) => number.as_f64().map(OptionValue::Number),
            Value::Bool(flag) => Some(OptionValue::Flag(flag)),
            Value::String(text) => Some(OptionValue::Text(text)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        let expected = "a number, true, false or a word";
        match value {
            Some(value) => Ok((key, value)),
            None => Err(problem(format!("have `{key}` as something else than {expected}"))),
        }
    };
    object.into_iter().map(read).collect()
}

/// Takes options one by one; what is left at the end is refused.
///
/// ```
/// use forgelm_sdk::options::{OptionValue, Reader};
///
/// let given = [("beta", OptionValue::Number(0.2))];
/// let mut options = Reader::new("dpo", &given);
/// let beta = options.number("beta", 0.1, 0.0..=1e6)?;
/// options.finish()?;
/// assert_eq!(beta, 0.2);
/// # Ok::<(), forgelm_sdk::OptionsError>(())
/// ```
#[derive(Debug)]
pub struct Reader<'a> {
    plugin: &'static str,
    given: Vec<&'a (&'a str, OptionValue)>,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    /// The options given to a plugin of this name.
    #[must_use]
    pub fn new(plugin: &'static str, given: &'a [(&'a str, OptionValue)]) -> Self {
        Self { plugin, given: given.iter().collect(), known: Vec::new() }
    }

    /// A number within `range`.
    ///
    /// # Errors
    /// If what was given is not a number, or is outside.
    pub fn number(
        &mut self,
        key: &'static str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64, OptionsError> {
        match self.take(key) {
            None => Ok(default),
            Some(OptionValue::Number(number)) if range.contains(number) => Ok(*number),
            Some(other) => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(wrong(key, other, expected))
            }
        }
    }

    /// A whole number within `range`; none is above 2^53.
    ///
    /// # Errors
    /// If what was given is not one, or is outside.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "whole numbers up to 2^53 are exact in both types"
    )]
    pub fn whole(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, OptionsError> {
        let inside = |number: f64| {
            let within = *range.start() as f64..=*range.end() as f64;
            (number.fract() == 0.0 && within.contains(&number)).then_some(number as u64)
        };
        let Some(value) = self.take(key) else { return Ok(default) };
        let found = match value {
            OptionValue::Number(number) => inside(*number),
            OptionValue::Flag(_) | OptionValue::Text(_) => None,
        };
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        found.ok_or_else(|| wrong(key, value, expected()))
    }

    /// A text, such as the name of a file, if it was given.
    ///
    /// # Errors
    /// If what was given is a number or a flag.
    pub fn text(&mut self, key: &'static str) -> Result<Option<&'a str>, OptionsError> {
        match self.take(key) {
            None => Ok(None),
            Some(OptionValue::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, other, "a text".to_owned())),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// If what was given is neither.
    pub fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, OptionsError> {
        match self.take(key) {
            None => Ok(default),
            Some(OptionValue::Flag(flag)) => Ok(*flag),
            Some(other) => Err(wrong(key, other, "true or false".to_owned())),
        }
    }

    /// One of `words`, as its index; the first is the default.
    ///
    /// # Errors
    /// If what was given is not among them.
    pub fn word(
        &mut self,
        key: &'static str,
        words: &[&'static str],
    ) -> Result<usize, OptionsError> {
        let Some(value) = self.take(key) else { return Ok(0) };
        let found = match value {
            OptionValue::Text(text) => words.iter().position(|word| word == text),
            OptionValue::Number(_) | OptionValue::Flag(_) => None,
        };
        found.ok_or_else(|| wrong(key, value, format!("one of: {}", words.join(", "))))
    }

    /// Refuses what nothing asked for.
    ///
    /// # Errors
    /// If an option is left, or one was given twice.
    pub fn finish(self) -> Result<(), OptionsError> {
        let Some((key, _)) = self.given.first() else { return Ok(()) };
        let none = || "none".to_owned();
        Err(OptionsError::Unknown {
            plugin: self.plugin.to_owned(),
            key: (*key).to_owned(),
            expected: if self.known.is_empty() { none() } else { self.known.join(", ") },
        })
    }

    fn take(&mut self, key: &'static str) -> Option<&'a OptionValue> {
        self.known.push(key);
        let at = self.given.iter().position(|(name, _)| *name == key)?;
        Some(&self.given.remove(at).1)
    }
}

fn wrong(key: &str, found: &OptionValue, expected: String) -> OptionsError {
    OptionsError::Value { key: key.to_owned(), found: found.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: fmt::Debug>(result: Result<T, OptionsError>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn a_wrong_value_says_what_would_do() {
        let given = [
            ("beta", OptionValue::Number(f64::NAN)),
            ("kind", OptionValue::Text("ppo".to_owned())),
            ("on", OptionValue::Number(1.0)),
        ];
        let mut options = Reader::new("dpo", &given);
        let beta = options.number("beta", 0.1, 0.0..=1.0);
        assert_eq!(message(beta), "option `beta` is `NaN`; expected a number from 0 to 1");
        let kind = options.word("kind", &["sigmoid", "ipo"]);
        assert_eq!(message(kind), "option `kind` is `ppo`; expected one of: sigmoid, ipo");
        let on = options.flag("on", false);
        assert_eq!(message(on), "option `on` is `1`; expected true or false");
        let given = [
            ("n", OptionValue::Number(1.5)),
            ("seed", OptionValue::Number(-1.0)),
            ("most", OptionValue::Number(9_007_199_254_740_992.0)),
            ("file", OptionValue::Flag(true)),
        ];
        let mut options = Reader::new("held_out_loss", &given);
        let n = options.whole("n", 1, 1..=8);
        assert_eq!(message(n), "option `n` is `1.5`; expected a whole number from 1 to 8");
        let seed = options.whole("seed", 1, 0..=8);
        assert_eq!(message(seed), "option `seed` is `-1`; expected a whole number from 0 to 8");
        assert_eq!(options.whole("most", 1, 0..=1 << 53), Ok(1 << 53));
        let file = options.text("file");
        assert_eq!(message(file), "option `file` is `true`; expected a text");
        assert_eq!(options.text("another"), Ok(None));
    }

    #[test]
    fn options_come_back_from_json_as_they_were() {
        let given = [
            ("beta", OptionValue::Number(0.1)),
            ("tiny", OptionValue::Number(5e-324)),
            ("on", OptionValue::Flag(true)),
            ("kind", OptionValue::Text("a \"b\"".to_owned())),
        ];
        let back = from_json(&to_json(&given).expect("finite")).expect("an object");
        let given: Vec<_> = given.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        assert_eq!(back, given);
        let infinite = to_json(&[("beta", OptionValue::Number(f64::INFINITY))]);
        let said = "the options have `beta` as `inf`; expected a finite number";
        assert_eq!(message(infinite), said);
        let twice = [("a", OptionValue::Flag(true)), ("a", OptionValue::Flag(false))];
        assert_eq!(message(to_json(&twice)), "the options have `a` twice");
        assert!(message(from_json("[1]")).starts_with("the options are no JSON object"));
        assert!(message(from_json("{\"a\": [1]}")).contains("`a` as something else"));
    }

    #[test]
    fn what_nothing_asked_for_is_refused() {
        let given = [("beta", OptionValue::Number(0.1)), ("beta", OptionValue::Number(0.2))];
        let mut options = Reader::new("dpo", &given);
        assert_eq!(options.number("beta", 0.5, 0.0..=1.0), Ok(0.1));
        let twice = options.finish();
        assert_eq!(message(twice), "`beta` is not an option of `dpo`; expected one of: beta");
        let left = Reader::new("sft", &given).finish();
        assert_eq!(message(left), "`beta` is not an option of `sft`; expected one of: none");
    }
}
