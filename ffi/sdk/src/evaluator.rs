//! An evaluator judges a model that it sees only through services of the host: scores of texts,
//! answers to prompts, and the records that the run holds out.
//!
//! It never sees weights, a tokenizer or a device. What it finds is a JSON object: the host keeps
//! it with the evidence of the run. Texts of its own it reads from the file that an option names.

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
    /// Sum of the natural logarithms of the probabilities of its tokens.
    pub logp_sum: f64,
    /// Its tokens.
    pub n_tokens: u64,
}

/// Scores texts under the model.
pub trait Score {
    /// One score for each pair, which does not depend on the others.
    ///
    /// The tokenizer cuts prompt and completion together, with what it puts before a text; the text of
    /// a special token is that token. A token that has a byte of the completion is scored, also where it
    /// begins in the prompt. The very first token, which nothing stands before, is not.
    ///
    /// # Errors
    /// If a text cannot be scored, or the run is to stop.
    fn score(&self, pairs: &[TextPair<'_>]) -> Result<Vec<TextScore>, Failed>;
}

/// Lets the model answer.
pub trait Generate {
    /// One answer for each prompt, which does not depend on the others. Options: `max_new_tokens`
    /// (256), `temperature` (0 always takes the likeliest token), `top_p` (1), `seed` (0), and `chat`
    /// (false): whether a prompt is a user's turn in the model's chat template, or a text that goes on,
    /// where the text of a special token is that token.
    ///
    /// # Errors
    /// If an option or a prompt cannot be used, or the run is to stop.
    fn generate(
        &self,
        prompts: &[&str],
        options: &[(&str, OptionValue)],
    ) -> Result<Vec<String>, Failed>;
}

/// A record as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordText {
    /// What stands before its first trained token.
    pub prompt: String,
    /// The rest.
    pub completion: String,
}

/// The records that the run holds out: its validation split. Of a record with several answers, the one
/// that is preferred; records without one are left out.
pub trait HeldOut {
    /// Number of records.
    fn n_records(&self) -> u64;

    /// Scores `n` records from `first` on, as the run evaluates itself: cut, rendered and masked as
    /// in training, over trained tokens.
    ///
    /// # Errors
    /// If there are not as many records, or the run is to stop.
    fn score(&self, first: u64, n: usize) -> Result<Vec<TextScore>, Failed>;

    /// A record as the model reads it, without what the tokenizer puts before a text: special tokens
    /// are there as texts.
    ///
    /// # Errors
    /// If there is no such record.
    fn text(&self, record: u64) -> Result<RecordText, Failed>;
}

/// The model, as an evaluator sees it.
#[derive(Clone, Copy, Default)]
pub struct Services<'a> {
    /// `forgelm.score/1`, where the host offers it.
    pub score: Option<&'a dyn Score>,
    /// `forgelm.generate/1`, where the host offers it.
    pub generate: Option<&'a dyn Generate>,
    /// `forgelm.held_out/1`, where the host offers it.
    pub held_out: Option<&'a dyn HeldOut>,
}

/// What an evaluator found: a JSON object. A value that is null is refused: it is what becomes of a
/// number that is not finite.
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
