//! Options of a plugin: how they are given, how a plugin reads them, and what can be wrong.

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
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptionsError {
    /// The plugin has no such option.
    #[error("`{key}` is not an option of `{plugin}`; expected one of: {expected}")]
    Unknown {
        /// Name of the plugin.
        plugin: String,
        /// The option as given.
        key: String,
        /// Names that the plugin knows, with commas.
        expected: String,
    },
    /// The value has the wrong type or is out of range.
    #[error("option `{key}` is `{found}`; expected {expected}")]
    Value {
        /// The option.
        key: String,
        /// The value as given.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Weights of models that are merged, which do not work together.
    #[error("the weights {weights:?} {problem}")]
    Weights {
        /// As given.
        weights: Vec<f64>,
        /// What is wrong with them.
        problem: String,
    },
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
