//! A reward says how good an answer is: a function of the prompt, the answer and the rest of the
//! record.
//!
//! It never sees logits, tokens, a model or a device. The host adds the rewards that a run uses,
//! compares the answers to one prompt with each other, and refuses what is not a number.

use crate::Failed;
use crate::options::{OptionValue, OptionsError};

/// An answer to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The prompt as the model read it, its special tokens written out.
    pub prompt: &'a str,
    /// What the model answered, without special tokens.
    pub completion: &'a str,
    /// The columns of the record, the prompt as it was written too: one JSON object.
    pub record: &'a str,
}

/// A judge of answers.
pub trait Reward: Send + Sync {
    /// One number for each answer, in order; `None` where this reward has nothing to say. What an answer
    /// earns must not depend on the answers beside it, nor on what was judged before.
    ///
    /// # Errors
    /// If the answers cannot be judged. The run ends then: no answer is ever given a reward of zero
    /// in silence.
    fn judge(&self, answers: &[Answer<'_>]) -> Result<Vec<Option<f64>>, Failed>;
}

/// The entry of one reward in its library's list.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Equals the file's name.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Builds the reward from its options.
    pub build: Build,
}

/// Makes a reward from its options.
pub type Build = fn(options: &[(&str, OptionValue)]) -> Result<Box<dyn Reward>, OptionsError>;
