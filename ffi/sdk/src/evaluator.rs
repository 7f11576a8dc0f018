//! An evaluator judges a model that it sees only through two services of the host: scores of
//! texts, and answers to prompts.
//!
//! It never sees weights, a tokenizer or a device. What it finds is a JSON object: the host keeps
//! it with the evidence of the run.

use crate::Failed;
use crate::options::{OptionValue, OptionsError};
use serde_json::{Map, Value};

/// A text and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextPair<'a> {
    /// What comes first; not scored.
    pub prompt: &'a str,
    /// What is scored.
    pub completion: &'a str,
}

/// What the model thinks of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TextScore {
    /// Sum of the log-probabilities of its tokens.
    pub logp_sum: f64,
    /// Its tokens.
    pub n_tokens: u64,
}

/// Scores texts under the model.
pub trait Score {
    /// One score for each pair.
    ///
    /// # Errors
    /// If a text cannot be scored, or the run is to stop.
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed>;
}

/// Lets the model answer.
pub trait Generate {
    /// One answer for each prompt. Options: `max_new_tokens`, `temperature`, `top_p`, `seed`.
    ///
    /// # Errors
    /// If an option or a prompt cannot be used, or the run is to stop.
    fn generate(
        &self,
        prompts: &[&str],
        options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed>;
}

/// The model, as an evaluator sees it.
#[derive(Clone, Copy)]
pub struct Services<'a> {
    /// `forgelm.score/1`, where the host offers it.
    pub score: Option<&'a dyn Score>,
    /// `forgelm.generate/1`, where the host offers it.
    pub generate: Option<&'a dyn Generate>,
}

/// What an evaluator found: a JSON object.
pub type Report = Map<String, Value>;

/// A judge of models.
pub trait Evaluator: Send + Sync {
    /// Judges the model behind the services.
    ///
    /// # Errors
    /// If it cannot.
    fn evaluate(&self, model: &Services<'_>) -> Result<Report, Failed>;
}

/// The entry of one evaluator in its library's list.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Its name in a config; equals the file's name.
    pub name: &'static str,
    /// One line for a person.
    pub summary: &'static str,
    /// Where the measure was published.
    pub source: &'static str,
    /// Builds the evaluator from its options.
    pub build: Build,
}

/// Makes an evaluator from its options.
pub type Build = fn(options: &[(&str, OptionValue)]) -> Result<Box<dyn Evaluator>, OptionsError>;
